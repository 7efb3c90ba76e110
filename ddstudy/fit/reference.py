"""The reference engine: plain torch modules, autograd and Adam, one member per thread.

It is the oracle of every faster engine and runs on any torch device. Members share no operation, and each is
computed by one thread whatever the number of cores: sums that are split over threads differ in their last bits, and
a fit amplifies that. So a member's numbers depend neither on the members beside it nor on the cores.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ddstudy.fit import AVERAGED, Look, Problem, setting, summary
from ddstudy.priors.deep_decoder import EPS, Geometry


class Block(nn.Module):
    """B_{i+1} = norm(relu(upsample(conv(B_i)))) (Eq. 2.1); (tiles, k, h, w) -> (tiles, k, *size)."""

    def __init__(self, k: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.conv = nn.Conv2d(k, k, 1, bias=False)
        # per tile and channel: batch normalisation would mix the tiles (sec. 3.2)
        self.norm = nn.InstanceNorm2d(k, eps=EPS, affine=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One block."""
        up = nn.functional.interpolate(self.conv(x), self.size, mode="bilinear", align_corners=False)
        normalised: torch.Tensor = self.norm(torch.relu(up))
        return normalised


class DeepDecoder(nn.Module):
    """The reference network in plain torch: input (tiles, k, h0, w0) -> output (tiles, channels, h, w) in [0, 1]."""

    def __init__(self, shape: Geometry) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(shape.k, size) for size in shape.sizes[1:]))
        self.head = nn.Conv2d(shape.k, shape.channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """All blocks and the head (Eq. 2.2)."""
        return torch.sigmoid(self.head(self.blocks(x)))


@contextlib.contextmanager
def ensemble(problems: Sequence[Problem], *, device: str, threads: int) -> Iterator[_Ensemble]:
    """The members of some problems on any torch device; see `ddstudy.fit.Ensemble`."""
    left = threading.Event()
    count = min(threads, sum(len(problem.weights) for problem in problems))
    with (
        ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool,
        setting(left),  # whoever leaves, by Ctrl-C for example, does not wait for a hundred iterations
    ):
        yield _Ensemble(problems, device, pool, left)


class _Ensemble:
    def __init__(
        self, problems: Sequence[Problem], device: str, pool: ThreadPoolExecutor, left: threading.Event
    ) -> None:
        self.problems, self.device, self.pool, self.left = problems, device, pool, left
        self.members: dict[int, list[_Member]] = {}
        for index, problem in enumerate(problems):
            tiles = torch.tensor(problem.tiles, device=device)
            self.members[index] = [_Member(problem, m, tiles) for m in range(len(problem.weights))]
        # sets up kernels and memory: not part of the fit's time
        list(pool.map(_Member.gradient, itertools.chain(*self.members.values())))
        self._wait()

    def advance(self, iterations: int, ended: Callable[[int], bool]) -> None:
        def work(index: int, member: _Member) -> None:
            member.advance(iterations, lambda: self.left.is_set() or ended(index))

        pairs = [(index, member) for index, members in self.members.items() for member in members]
        list(self.pool.map(work, *zip(*pairs, strict=True)))
        self._wait()

    def look(self, indices: Collection[int]) -> dict[int, Look]:
        looks = {}
        for index in indices:
            outputs = np.stack(list(self.pool.map(_Member.output, self.members[index])))
            problem = self.problems[index]
            losses, ranges = summary(outputs, problem.tiles, problem.pixels)
            looks[index] = Look(losses, ranges, partial(np.copy, outputs))
        return looks

    def drop(self, indices: Collection[int]) -> None:
        for index in indices:
            del self.members[index]

    def _wait(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.current_stream(self.device).synchronize()  # all members' threads use it
        elif self.device == "mps":
            torch.mps.synchronize()


class _Member:
    """One decoder and its optimiser."""

    def __init__(self, problem: Problem, index: int, tiles: torch.Tensor) -> None:
        self.tiles = tiles
        self.input = torch.tensor(problem.inputs[index], device=tiles.device)
        self.net = DeepDecoder(problem.shape)
        nn.utils.vector_to_parameters(torch.tensor(problem.weights[index]), self.net.parameters())
        self.net.to(tiles.device)
        self.keep, self.least, self.seen = problem.keep, torch.tensor(torch.inf, device=tiles.device), 0
        self.kept = self.net if self.keep == "last" else copy.deepcopy(self.net)
        # fused: one call for all parameters instead of a dozen small ones for each
        self.adam = torch.optim.Adam(self.net.parameters(), lr=problem.learning_rate, fused=tiles.device.type != "mps")

    def gradient(self) -> None:
        self.adam.zero_grad(set_to_none=True)
        loss = nn.functional.mse_loss(self.net(self.input), self.tiles)
        loss.backward()
        self.loss = loss.detach()

    def advance(self, iterations: int, ended: Callable[[], bool]) -> None:
        for _ in range(iterations):
            if ended():
                return
            self.gradient()
            self.see()
            self.adam.step()

    @torch.no_grad()
    def see(self) -> None:
        """Keeps the parameters that count, before they change."""
        if self.keep == "best" and not self.loss >= self.least:  # NaN is kept
            self.least = self.loss
            nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(self.net.parameters()), self.kept.parameters())
        elif self.keep == "average":
            self.seen += 1
            for mean, parameter in zip(self.kept.parameters(), self.net.parameters(), strict=True):
                mean.lerp_(parameter, 1 / min(self.seen, AVERAGED))

    @torch.no_grad()
    def output(self) -> NDArray[np.float32]:
        output: NDArray[np.float32] = self.kept(self.input).cpu().numpy()
        return output
