"""The reference engine: plain torch modules, autograd and Adam, one member per thread.

It is the oracle of every faster engine and runs on any torch device. Members share no operation, and each is
computed by one thread whatever the number of cores: sums that are split over threads differ in their last bits, and
a fit amplifies that. So a member's numbers depend neither on the members beside it nor on the cores.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ddstudy.decoder import EPS, Geometry
from ddstudy.fit import AVERAGED, Problem, Snapshot, setting


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


def fit(
    problem: Problem, stops: Sequence[int], *, device: str, threads: int, stop: threading.Event
) -> Iterator[Snapshot]:
    """See `ddstudy.fit.fit`."""
    tiles = torch.tensor(problem.tiles, device=device)
    members = [_Member(problem, index, tiles) for index in range(len(problem.weights))]
    done, seconds = 0, 0.0
    left = threading.Event()
    with (
        ThreadPoolExecutor(min(threads, len(members)), initializer=torch.set_num_threads, initargs=(1,)) as pool,
        setting(left),  # whoever leaves, by Ctrl-C for example, does not wait for a hundred iterations
    ):
        list(pool.map(_Member.gradient, members))  # sets up kernels and memory: not part of the fit's time
        for last in stops:
            start = _now(device)
            list(
                pool.map(
                    partial(_Member.advance, iterations=last - done, ended=lambda: left.is_set() or stop.is_set()),
                    members,
                )
            )
            if stop.is_set():
                return
            seconds += _now(device) - start
            done = last
            outputs = np.stack(list(pool.map(_Member.output, members)))
            errors = (outputs.astype(np.float64) - problem.tiles) ** 2
            yield Snapshot(done, seconds, errors.mean(axis=(1, 2, 3, 4)), outputs)


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


def _now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device == "mps":
        torch.mps.synchronize()
    return time.perf_counter()
