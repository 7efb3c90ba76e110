"""The solver in plain torch: any prior's network and loss, autograd and torch's optimisers, one member per thread.

It is the oracle of every faster solver and runs on any torch device. Members share no operation, and each is
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

from ddstudy.solvers.base import (
    EMA_ITERATIONS,
    Config,
    Jitter,
    Problem,
    Snapshot,
    State,
    set_on_exit,
    snapshots,
    summary,
)
from ddstudy.solvers.fidelity import Fidelity
from ddstudy.solvers.optimisers import Langevin, add_noise, optimiser_of, set_learning_rate


def solve(
    problems: Sequence[Problem],
    config: Config,
    stops: Sequence[Sequence[int]],
    *,
    device: str,
    threads: int,
    ended: Sequence[threading.Event],
) -> Iterator[tuple[int, Snapshot]]:
    """See `ddstudy.solvers.base.Solver`."""
    return snapshots(_ensemble(problems, config, device, threads), problems, stops, ended)


@contextlib.contextmanager
def _ensemble(problems: Sequence[Problem], config: Config, device: str, threads: int) -> Iterator[_Ensemble]:
    leaving = threading.Event()
    count = min(threads, sum(len(problem.weights) for problem in problems))
    with (
        ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool,
        set_on_exit(leaving),  # whoever leaves, by Ctrl-C for example, does not wait for a hundred iterations
    ):
        yield _Ensemble(problems, config, device, pool, leaving)


class _Ensemble:
    """The members of some problems on any torch device; see `ddstudy.solvers.base.Ensemble`."""

    def __init__(
        self,
        problems: Sequence[Problem],
        config: Config,
        device: str,
        pool: ThreadPoolExecutor,
        leaving: threading.Event,
    ) -> None:
        self.problems, self.config, self.device, self.pool, self.leaving = problems, config, device, pool, leaving
        self.members: dict[int, list[_Member]] = {}
        self.advances = 0  # weights are those of the latest
        for index, problem in enumerate(problems):
            loss = _loss(problem, config, device)
            self.members[index] = [_Member(problem, config, m, loss, device) for m in range(len(problem.weights))]
        # sets up kernels and memory: not part of the fit's time
        list(pool.map(_Member.backward, itertools.chain(*self.members.values())))
        self._synchronize()

    def advance(self, iterations: int, ended: Callable[[int], bool]) -> None:
        def work(index: int, member: _Member) -> None:
            member.advance(iterations, lambda: self.leaving.is_set() or ended(index))

        self.advances += 1
        pairs = [(index, member) for index, members in self.members.items() for member in members]
        list(self.pool.map(work, *zip(*pairs, strict=True)))
        self._synchronize()

    def states(self, indices: Collection[int]) -> dict[int, State]:
        states = {}
        for index in indices:
            outputs = np.stack(list(self.pool.map(_Member.output, self.members[index])))
            problem = self.problems[index]
            if problem.operator is None:
                found = summary(outputs, problem.measurement, problem.pixels)
            else:
                fidelity = Fidelity(problem, self.config, "cpu")
                found = self.pool.submit(fidelity.summary, torch.from_numpy(outputs)).result()
            fetch_weights = partial(self._weights, self.members[index], self.advances)
            states[index] = State(*found, partial(np.copy, outputs), fetch_weights)
        return states

    def _weights(self, members: Sequence[_Member], advances: int) -> NDArray[np.float32]:
        if advances != self.advances:
            raise RuntimeError("the fit has gone on since: what it had is no longer there")
        return np.stack([member.weights() for member in members])

    def drop(self, indices: Collection[int]) -> None:
        for index in indices:
            del self.members[index]

    def _synchronize(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.current_stream(self.device).synchronize()  # all members' threads use it
        elif self.device == "mps":
            torch.mps.synchronize()


def _loss(problem: Problem, config: Config, device: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Of one member's outputs (T, C, h, w), over the samples that were measured."""
    if problem.operator is not None or not config.is_plain_mse:
        return Fidelity(problem, config, device).loss
    measurement = torch.tensor(problem.measurement, device=device)
    if problem.measured == problem.measurement.size:
        return partial(nn.functional.mse_loss, target=measurement)
    known = ~measurement.isnan()
    return lambda outputs: torch.where(known, outputs - measurement, 0.0).square().sum() / problem.measured


class _Member:
    """One network and its optimiser."""

    def __init__(
        self, problem: Problem, config: Config, index: int, loss: Callable[[torch.Tensor], torch.Tensor], device: str
    ) -> None:
        self.loss_of, self.device = loss, device
        self.input = self.current_input = torch.tensor(problem.inputs[index], device=device)
        self.net = problem.prior.build()
        nn.utils.vector_to_parameters(torch.tensor(problem.weights[index]), self.net.parameters())
        self.net.to(device)
        self.jitter = Jitter(config, problem, index) if config.jitter else None
        self.average, self.mean = config.average, torch.empty(0)
        self.keep, self.best_loss, self.averaged = config.keep, torch.tensor(torch.inf, device=device), 0
        self.kept = self.net if self.keep == "last" else copy.deepcopy(self.net)
        self.config, self.iteration = config, 0
        self.optimiser = optimiser_of(config, self.net.parameters(), device)
        self.langevin = Langevin(config, problem, index) if config.optimiser == "sgld" else None

    def backward(self) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        outputs = self.net(self.current_input)
        loss = self.loss_of(outputs)
        loss.backward()
        self.loss, self.outputs = loss.detach(), outputs.detach()

    def advance(self, iterations: int, ended: Callable[[], bool]) -> None:
        for _ in range(iterations):
            if ended():
                return
            if self.jitter is not None:
                self.current_input = torch.from_numpy(self.jitter.inputs()).to(self.device)
            self.backward()
            if self.average:
                self.mean = self.mean.lerp(self.outputs, 1 - self.average) if len(self.mean) else self.outputs
            self.update_kept()
            self.update()

    def update(self) -> None:
        """One step of the optimiser along the gradient that was just computed."""
        set_learning_rate(self.optimiser, self.config, self.iteration)
        self.iteration += 1
        if isinstance(self.optimiser, torch.optim.LBFGS):
            known = [self.loss]  # of the first evaluation that it asks for

            def evaluate() -> float:
                if not known:
                    self.backward()
                return float(known.pop() if known else self.loss)

            self.optimiser.step(evaluate)
        else:
            self.optimiser.step()
        if self.langevin is not None:
            add_noise(list(self.net.parameters()), self.langevin.draw())

    @torch.no_grad()
    def update_kept(self) -> None:
        """Takes the weights that the loss was just computed of, before they change, as `Config.keep` says."""
        if self.keep == "best" and not self.loss >= self.best_loss:  # NaN is kept
            self.best_loss = self.loss
            nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(self.net.parameters()), self.kept.parameters())
        elif self.keep == "average":
            self.averaged += 1
            for mean, parameter in zip(self.kept.parameters(), self.net.parameters(), strict=True):
                mean.lerp_(parameter, 1 / min(self.averaged, EMA_ITERATIONS))

    @torch.no_grad()
    def output(self) -> NDArray[np.float32]:
        shown = self.mean if self.average else self.kept(self.input)
        output: NDArray[np.float32] = shown.cpu().numpy()
        return output

    def weights(self) -> NDArray[np.float32]:
        weights: NDArray[np.float32] = nn.utils.parameters_to_vector(self.kept.parameters()).detach().cpu().numpy()
        return weights
