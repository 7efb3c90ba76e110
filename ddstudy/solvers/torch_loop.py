"""The solver in plain torch: any prior's network and loss, autograd and torch's optimisers, member by member.

It is the oracle of every faster solver and runs on any torch device. Members share no operation, and each is
computed by one thread whatever the number of cores: sums that are split over threads differ in their last bits, and
a fit amplifies that. So a member's numbers depend neither on the members beside it nor on the cores.

An iteration of a small network is some hundred short kernels, which a GPU does faster than Python launches them. So on
CUDA an iteration of all members, each on a stream of its own, is captured once as a graph and then repeated: the same
kernels, without Python, and members side by side. (In one network, convolutions of all members would become grouped
ones, and sums take another order.) What comes from the host, jitter, noise and learning rate, is written to the GPU
between two repetitions. Only `lbfgs`, whose line search looks at losses, goes without.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ddstudy.solvers import cuda
from ddstudy.solvers.base import (
    EMA_ITERATIONS,
    Config,
    Jitter,
    Problem,
    Snapshot,
    State,
    run_in,
    set_on_exit,
    snapshots,
    summary,
)
from ddstudy.solvers.fidelity import Fidelity
from ddstudy.solvers.optimisers import Langevin, optimiser_of, set_learning_rate

_log = logging.getLogger(__name__)
_RECOVERS = torch.__version__ >= "2.13"  # before, a capture that fails leaves torch's allocator as if it went on


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
    leaving, captured = threading.Event(), _is_captured(device, config)
    where = cuda.device_of(device)  # of this thread
    count = 1 if captured else min(threads, sum(len(problem.weights) for problem in problems))

    def begin_thread() -> None:
        torch.set_num_threads(1)
        if captured:
            cuda.begin_thread(where)

    with ThreadPoolExecutor(count, initializer=begin_thread) as pool:
        made = (_Captured if captured else _Ensemble)(problems, config, where, pool, leaving)
        try:
            with set_on_exit(leaving):  # whoever leaves, by Ctrl-C for example, does not wait for a hundred iterations
                yield made
        finally:
            run_in(pool, made.close)


def _is_captured(device: str, config: Config) -> bool:
    return device.startswith("cuda") and config.optimiser != "lbfgs"


class _Ensemble:
    """The members of some problems on any torch device; see `ddstudy.solvers.base.Ensemble`."""

    captured = False

    def __init__(
        self,
        problems: Sequence[Problem],
        config: Config,
        device: torch.device,
        pool: ThreadPoolExecutor,
        leaving: threading.Event,
    ) -> None:
        self.problems, self.config, self.device, self.pool, self.leaving = problems, config, device, pool, leaving
        self.members: dict[int, list[_Member]] = {}
        self.advances = 0  # weights are those of the latest
        for index, problem in enumerate(problems):
            (loss,) = self._map(partial(_loss, config=config, device=device), [problem])
            make = partial(_Member, problem, config, loss=loss, device=device, captured=self.captured)
            self.members[index] = self._map(make, range(len(problem.weights)))
        # sets up kernels and memory: not part of the fit's time
        self._map(_Member.backward, itertools.chain(*self.members.values()))
        self._synchronize()

    def _map(self, work: Callable[..., Any], *arguments: Iterable[Any]) -> list[Any]:
        """Of each, in the threads."""
        return list(self.pool.map(work, *arguments))

    def advance(self, iterations: int, ended: Callable[[int], bool]) -> None:
        def work(index: int, member: _Member) -> None:
            for _ in range(iterations):
                if self.leaving.is_set() or ended(index):
                    return
                member.prepare()
                member.iterate()

        self.advances += 1
        pairs = [(index, member) for index, members in self.members.items() for member in members]
        self._map(work, *zip(*pairs, strict=True))
        self._synchronize()

    def states(self, indices: Collection[int]) -> dict[int, State]:
        states = {}
        for index in indices:
            outputs = np.stack(self._map(_Member.output, self.members[index]))
            problem = self.problems[index]
            if problem.operator is None:
                found = summary(outputs, problem.measurement, problem.pixels)
            else:
                fidelity = Fidelity(problem, self.config, "cpu")
                found = self.pool.submit(fidelity.summary, torch.from_numpy(outputs)).result()
            fetch_weights = partial(self._weights, index, self.advances)
            states[index] = State(*found, partial(np.copy, outputs), fetch_weights)
        return states

    def _weights(self, index: int, advances: int) -> NDArray[np.float32]:
        if advances != self.advances:
            raise RuntimeError("the fit has gone on since: what it had is no longer there")
        return np.stack(self._map(_Member.weights, self.members[index]))

    def drop(self, indices: Collection[int]) -> None:
        for index in indices:
            del self.members[index]

    def close(self) -> None:
        """Gives back what the device has of this ensemble; its snapshots' weights are gone with it."""
        self.drop(list(self.members))
        self.advances += 1

    def _synchronize(self) -> None:
        if self.device.type == "mps":
            torch.mps.synchronize()
        else:
            cuda.synchronize(self.device)  # of whose members all threads use the default stream


class _Captured(_Ensemble):
    """The members of some problems on a CUDA GPU, whose iteration is a graph; one thread launches everything."""

    captured = True
    replay: Callable[[], None] | None = None
    begun = False

    def _map(self, work: Callable[..., Any], *arguments: Iterable[Any]) -> list[Any]:
        def alone(*of_one: Any) -> Any:
            with cuda.lock_of(self.device):
                done = work(*of_one)
                cuda.synchronize(self.device)
            return done

        return super()._map(alone, *arguments)

    def advance(self, iterations: int, ended: Callable[[int], bool]) -> None:
        self.advances += 1
        self.pool.submit(self._advance, iterations, ended).result()

    def _advance(self, iterations: int, ended: Callable[[int], bool]) -> None:
        members = list(itertools.chain(*self.members.values()))
        for _ in range(iterations):
            if self.leaving.is_set() or all(map(ended, self.members)):
                break
            with cuda.lock_of(self.device):
                for member in members:
                    member.prepare()
                if not self.begun:  # what the first iteration allocates lives on beside the graph
                    _one_after_another(members)
                    cuda.synchronize(self.device)
                elif self.replay is None:
                    self.replay = self._capture(members)
            if self.replay is not None:
                self.replay()
            self.begun = True
        cuda.synchronize(self.device)

    def _capture(self, members: Sequence[_Member]) -> Callable[[], None]:
        try:
            return cuda.graph_of([member.iterate for member in members], self.device)
        except RuntimeError as error:  # of a driver or an operation that cannot
            if isinstance(error, torch.OutOfMemoryError) or not _RECOVERS:
                raise
            _tell_that_there_is_no_graph(str(self.device), str(error).partition("\n")[0])

        def launch() -> None:
            with cuda.lock_of(self.device):
                _one_after_another(members)

        return launch

    def drop(self, indices: Collection[int]) -> None:
        with cuda.lock_of(self.device):
            super().drop(indices)
            self.replay = None


@functools.cache  # once, though every fit tries
def _tell_that_there_is_no_graph(device: str, why: str) -> None:
    _log.warning("%s: iterations are launched one by one, which is slower: no graph of them: %s", device, why)


def _one_after_another(members: Sequence[_Member]) -> None:
    for member in members:
        member.iterate()


def _loss(problem: Problem, config: Config, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
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
        self,
        problem: Problem,
        config: Config,
        index: int,
        *,
        loss: Callable[[torch.Tensor], torch.Tensor],
        device: torch.device,
        captured: bool,
    ) -> None:
        self.config, self.loss_of, self.captured, self.iteration = config, loss, captured, 0
        self.input = torch.tensor(problem.inputs[index], device=device)
        self.current_input = self.input.clone() if config.jitter else self.input
        self.jitter = Jitter(config, problem, index) if config.jitter else None
        self.net = problem.prior.build()
        nn.utils.vector_to_parameters(torch.tensor(problem.weights[index]), self.net.parameters())
        self.net.to(device)
        self.parameters = list(self.net.parameters())
        self.mean = torch.empty(0)  # of outputs
        self.kept = self.net if config.keep == "last" else copy.deepcopy(self.net)
        self.best_loss, self.averaged = torch.tensor(torch.inf, device=device), torch.zeros((), device=device)
        self.optimiser = optimiser_of(config, self.parameters, str(device), captured=captured)
        self.langevin = Langevin(config, problem, index) if config.optimiser == "sgld" else None
        self.noise = torch.zeros(problem.prior.parameters if self.langevin else 0, device=device)

    def backward(self) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        outputs = self.net(self.current_input)
        loss = self.loss_of(outputs)
        loss.backward()
        self.loss, self.outputs = loss.detach(), outputs.detach()

    def prepare(self) -> None:
        """What comes from outside before an iteration, and is no part of a graph."""
        if self.jitter is not None:
            self.current_input.copy_(torch.from_numpy(self.jitter.inputs()))
        set_learning_rate(self.optimiser, self.config, self.iteration)
        if self.langevin is not None:
            self.noise.copy_(torch.from_numpy(self.langevin.draw()))
        self.iteration += 1

    def iterate(self) -> None:
        """One iteration. Captured, it looks at nothing on the device, and after the first its state stays in place."""
        self.backward()
        if self.config.average:
            if len(self.mean):
                self.mean.lerp_(self.outputs, 1 - self.config.average)
            else:
                self.mean = self.outputs.clone()
        self.update_kept()
        self.update()

    @torch.no_grad()
    def update_kept(self) -> None:
        """Takes the weights that the loss was just computed of, before they change, as `Config.keep` says."""
        kept = list(self.kept.parameters())
        if self.config.keep == "best":
            better = ~(self.loss >= self.best_loss)  # NaN is kept
            if not (self.captured or better):
                return
            self.best_loss.copy_(torch.where(better, self.loss, self.best_loss))
            for ours, current in zip(kept, self.parameters, strict=True):
                ours.copy_(torch.where(better, current, ours))
        elif self.config.keep == "average":
            self.averaged += 1
            share = 1 / self.averaged.clamp(max=EMA_ITERATIONS)
            for mean, current in zip(kept, self.parameters, strict=True):
                mean.lerp_(current, share)

    def update(self) -> None:
        """One step of the optimiser along the gradient that was just computed."""
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
            with torch.no_grad():
                noises = self.noise.split([parameter.numel() for parameter in self.parameters])
                for parameter, noise in zip(self.parameters, noises, strict=True):
                    parameter.add_(noise.view_as(parameter))

    @torch.no_grad()
    def output(self) -> NDArray[np.float32]:
        shown = self.mean if self.config.average else self.kept(self.input)
        output: NDArray[np.float32] = shown.cpu().numpy()
        return output

    def weights(self) -> NDArray[np.float32]:
        weights: NDArray[np.float32] = nn.utils.parameters_to_vector(self.kept.parameters()).detach().cpu().numpy()
        return weights
