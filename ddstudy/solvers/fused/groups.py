"""Members in groups: what the fused solver's threads iterate, one group and one step at a time.

On a processor each member is a group of its own, and threads take turns; on a GPU all members are one group, whose
iteration is captured once and replayed.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddstudy.priors.deep_decoder import DeepDecoder
from ddstudy.solvers.base import Config, Jitter, Problem, State, run_in, set_on_exit
from ddstudy.solvers.fused.kernels import Array, Fidelity, Kernels
from ddstudy.solvers.fused.step import Step

if TYPE_CHECKING:  # torch is heavy, and Adam does without
    from ddstudy.solvers.optimisers import FlatOptimiser, Langevin

_log = logging.getLogger("ddstudy")


@contextlib.contextmanager
def ensemble(
    problems: Sequence[Problem], config: Config, kernels: Kernels, *, threads: int, precision: str = "float32"
) -> Iterator[_Ensemble]:
    """The members of some problems, for kernels of either kind; see `ddstudy.solvers.base.Ensemble`.

    A member's numbers depend neither on `threads` nor on the members beside it. Everything is done in the ensemble's
    own threads: a fit on a GPU has one, with a stream of its own.

    Raises:
        TypeError: the prior is not a Deep Decoder.
    """
    prior = problems[0].prior
    if not isinstance(prior, DeepDecoder):
        raise TypeError(f"the fused solver is for Deep Decoders, not for {prior}")
    leaving = threading.Event()
    count = 1 if kernels.BATCHED else min(threads, sum(len(problem.weights) for problem in problems))
    with_torch = problems[0].operator is not None or not (config.is_plain_adam and config.is_plain_mse)
    begin = partial(_begin_with_torch, kernels) if with_torch else kernels.begin_thread
    with ThreadPoolExecutor(count, initializer=begin) as pool:
        made = _Ensemble(problems, prior, config, kernels, precision, pool, count, leaving)
        try:
            with set_on_exit(leaving):  # whoever leaves, by Ctrl-C for example, does not wait for a hundred iterations
                pool.submit(made.set_up).result()
                yield made
        finally:
            run_in(pool, made.close)


def _begin_with_torch(kernels: Kernels) -> None:
    """Where torch computes, it would split sums over threads, and take the cores of other members."""
    from ddstudy.images.metrics import take_one_core

    kernels.begin_thread()
    take_one_core()


class _Ensemble:
    """Groups of members, and the steps that they take turns in: one for each thread."""

    def __init__(
        self,
        problems: Sequence[Problem],
        prior: DeepDecoder,
        config: Config,
        kernels: Kernels,
        precision: str,
        pool: ThreadPoolExecutor,
        threads: int,
        leaving: threading.Event,
    ) -> None:
        self.problems = dict(enumerate(problems))
        self.prior, self.config, self.kernels, self.precision = prior, config, kernels, precision
        self.pool, self.threads, self.leaving = pool, threads, leaving
        self.measurements: dict[int, _Measurement] = {}
        self.fidelities: dict[int, Fidelity] = {}
        # of members, whose streams go on whatever group they are in
        everyone = [(index, m) for index, problem in self.problems.items() for m in range(len(problem.weights))]
        self.jitters: dict[tuple[int, int], Jitter] = {}
        if config.jitter:
            self.jitters = {(index, m): Jitter(config, problems[index], m) for index, m in everyone}
        self.noises: dict[tuple[int, int], Langevin] = {}
        if config.optimiser == "sgld":
            from ddstudy.solvers.optimisers import Langevin

            self.noises = {(index, m): Langevin(config, problems[index], m) for index, m in everyone}
        self.groups: list[_Group] = []
        self.steps: list[Step] = []
        self.advances = 0  # and closings: outputs on the device are those of the latest

    def set_up(self) -> None:
        """Makes groups and steps. Compiles and touches everything: that is not part of the fit's time."""
        everyone = [(index, m) for index, problem in self.problems.items() for m in range(len(problem.weights))]
        parts = [everyone] if self.kernels.BATCHED else [[member] for member in everyone]
        some = self.problems[everyone[0][0]]
        tiles = some.measurement
        if some.operator is not None:
            tiles = np.zeros((some.inputs.shape[1], self.prior.channels, *self.prior.sizes[-1]), np.float32)
        with self.kernels.device_lock(), _telling_of_compilation():
            self.steps = [
                Step(self.prior, tiles, len(parts[0]), self.kernels, self.precision) for _ in range(self.threads)
            ]
            if some.operator is None:
                self.measurements = _measurements(self.problems, self.kernels)
            if some.operator is not None or not self.config.is_plain_mse:
                self.fidelities = {
                    i: self.kernels.Fidelity(problem, self.config) for i, problem in self.problems.items()
                }
            for step in self.steps:
                first = self._group(parts[0], step)
                self.kernels.compile(partial(first.launch_all, step))
                first.launch_all(step)
            self.groups = [self._group(part, self.steps[0]) for part in parts]
            for group in self.groups:
                group.capture(self.steps[0])
            self.kernels.synchronize()

    def _group(self, members: Sequence[tuple[int, int]], step: Step) -> _Group:
        return _Group(self, members, step)

    def close(self) -> None:
        """Gives back what the device has of this ensemble; its snapshots' outputs are gone with it."""
        with self.kernels.device_lock():
            self.kernels.synchronize()
            for group in self.groups:
                group.close()
            self.measurements, self.fidelities, self.groups, self.steps = {}, {}, [], []
            self.advances += 1

    def advance(self, iterations: int, ended: Callable[[int], bool]) -> None:
        """See `Ensemble`."""
        queue = _Queue(self.groups, iterations, lambda g: self.leaving.is_set() or all(map(ended, g.rows)))

        def work(step: Step) -> None:
            queue.work(step)
            self.kernels.synchronize()

        self.advances += 1
        list(self.pool.map(work, self.steps))

    def states(self, indices: Collection[int]) -> dict[int, State]:
        """See `Ensemble`; of a GPU, numbers that are few come at once, and outputs when they are asked for."""
        groups = [group for group in self.groups if not group.rows.keys().isdisjoint(indices)]
        idle: SimpleQueue[Step] = SimpleQueue()
        for step in self.steps:
            idle.put(step)

        def states_of(group: _Group) -> dict[int, State]:
            step = idle.get()  # there are as many as threads
            with self.kernels.device_lock():
                on_device = group.shown(step)
                if not self.kernels.BATCHED:
                    on_device = self.kernels.to_numpy(on_device)  # before the next group takes the step
                states = {}
                for index in group.rows.keys() & set(indices):
                    outputs = on_device[group.rows[index]]
                    if index in self.measurements:
                        losses, ranges = self.kernels.summary(outputs, *self.measurements[index])
                    else:
                        losses, ranges = self.fidelities[index].summary(outputs)
                    fetch = partial(self._fetch, outputs, self.advances) if self.kernels.BATCHED else outputs.copy
                    fetch_weights = partial(self._fetch, group.kept.weights[group.rows[index]], self.advances)
                    states[index] = State(losses, ranges, fetch, fetch_weights)
            idle.put(step)
            return states

        found = list(self.pool.map(states_of, groups))
        return {index: _joined([states[index] for states in found if index in states]) for index in indices}

    def _fetch(self, on_device: Array, advances: int) -> NDArray[np.float32]:
        if advances != self.advances:
            raise RuntimeError("the fit has gone on since: what it had is no longer there")
        fetched: NDArray[np.float32] = self.pool.submit(self.kernels.to_numpy, on_device).result()
        return fetched

    def drop(self, indices: Collection[int]) -> None:
        """See `Ensemble`."""
        for index in indices:
            del self.problems[index]
        self.groups, before = [g for g in self.groups if g.rows.keys() <= self.problems.keys()], self.groups
        if not self.groups:  # all members are one group
            self.pool.submit(self._shrink, *before).result()

    def _shrink(self, old: _Group) -> None:
        """Goes on with fewer members in one group."""
        with self.kernels.device_lock():
            old.close()
            self.steps.clear()
            self.set_up()
            self.groups[0].take_over(old)
            self.kernels.synchronize()


class _Measurement(NamedTuple):
    """A problem's measurement where the kernels compute: (1, T, C, h, w), and which of its numbers are pixels."""

    tiles: Array
    pixels: Array | None


def _measurements(problems: Mapping[int, Problem], kernels: Kernels) -> dict[int, _Measurement]:
    """Of each problem; those of equal tiles share them."""
    made: dict[int, _Measurement] = {}
    for index, problem in problems.items():
        equal = (made[i].tiles for i in made if np.array_equal(problems[i].measurement, problem.measurement))
        tiles = next(equal, None)
        if tiles is None:
            tiles = kernels.from_numpy(problem.measurement[None], "float32")
        pixels = None if problem.pixels is None else kernels.from_numpy(problem.pixels, "int64")
        made[index] = _Measurement(tiles, pixels)
    return made


def _joined(states: list[State]) -> State:
    """Of members that are in several groups."""
    if len(states) == 1:
        return states[0]
    return State(
        np.concatenate([state.losses for state in states]),
        np.concatenate([state.ranges for state in states]),
        lambda: np.concatenate([state.fetch() for state in states]),
        lambda: np.concatenate([state.fetch_weights() for state in states]),
    )


class _Group:
    """Members that are computed together, and their optimiser.

    Args:
        ensemble: whose they are.
        members: index of the problem and of the member in it, for each; those of a problem follow each other.
        step: where they are computed.

    Attributes:
        rows: which members are a problem's.
        captured_iterate: `iterate`, ready to be repeated; `captured_forward` likewise. Both by `capture`.
    """

    captured_iterate: Callable[[Step], None]
    captured_forward: Callable[[Step], None]

    def __init__(self, ensemble: _Ensemble, members: Sequence[tuple[int, int]], step: Step) -> None:
        problems, config, self.kernels = ensemble.problems, ensemble.config, step.kernels
        owners = [index for index, _ in members]
        self.rows = {index: slice(owners.index(index), owners.index(index) + owners.count(index)) for index in owners}
        self.inputs = self.current_inputs = step.pad(np.stack([problems[index].inputs[m] for index, m in members]))
        self.jitters = [ensemble.jitters[member] for member in members] if ensemble.jitters else []
        if self.jitters:
            self.current_inputs = step.pad(np.stack([problems[index].inputs[m] for index, m in members]))
        starts = np.stack([problems[index].weights[m] for index, m in members])
        self.weights = self.kernels.from_numpy(starts, step.dtype)
        self.gradients = self.kernels.from_numpy(np.zeros_like(starts), step.dtype)
        # one of the two
        self.adam = self.kernels.Adam(self.weights, config.learning_rate) if config.is_plain_adam else None
        self.flat: FlatOptimiser | None = None
        if self.adam is None:
            from ddstudy.solvers.optimisers import FlatOptimiser

            weights, gradients = (self.kernels.as_tensor(values) for values in (self.weights, self.gradients))
            noises = [ensemble.noises[member] for member in members] if ensemble.noises else []
            self.flat = FlatOptimiser(config, weights, gradients, noises)
        self.kept = self.kernels.Iterate(self.weights, "last" if config.average else config.keep)
        self.average = self.kernels.Average(step.outputs, config.average) if config.average else None
        self.measured = self.kernels.from_numpy(np.array([problems[index].measured for index in owners]), "int64")
        self.fidelities = [
            (ensemble.fidelities[index], rows) for index, rows in self.rows.items() if ensemble.fidelities
        ]
        if self.fidelities:
            self.losses = self.kernels.zeros((len(members),), "float64")
            # dL/d outputs, in the measurement's place; what is no pixel stays zero
            self.measurement = self.kernels.zeros(tuple(step.outputs.shape), step.dtype)
            return
        self.measurement = ensemble.measurements[owners[0]].tiles
        if any(ensemble.measurements[index].tiles is not self.measurement for index in self.rows):
            each = np.stack([problems[index].measurement for index in owners])
            self.measurement = self.kernels.from_numpy(each, step.dtype)

    def advance(self, step: Step) -> None:
        """One iteration, once it is captured."""
        if self.jitters:
            with self.kernels.device_lock():
                step.write_inputs(self.current_inputs, np.stack([jitter.inputs() for jitter in self.jitters]))
        if self.flat is not None:
            with self.kernels.device_lock():
                self.flat.prepare()
        self.captured_iterate(step)

    def iterate(self, step: Step) -> None:
        step.measurement, step.measured = self.measurement, self.measured
        if self.fidelities:
            losses = self._fit_samples(step)
        else:
            losses = step.mse(self.current_inputs, self.weights, self.gradients)
        if self.average is not None:
            self.average.update(step.outputs)
        self.kept.update(losses, self.weights)
        if self.adam is not None:
            self.adam.update(self.gradients)
        if self.flat is not None:
            self.flat.update()

    def _fit_samples(self, step: Step) -> Array:
        """Losses that kernels do not have, and their gradient."""
        outputs = step.forward(self.current_inputs, self.weights)
        for fidelity, rows in self.fidelities:
            fidelity.gradient(outputs[rows], self.losses[rows], self.measurement[rows])
        step.backward(self.current_inputs, self.weights, self.measurement, self.gradients)
        return self.losses

    def forward(self, step: Step) -> None:
        step.forward(self.inputs, self.kept.weights)

    def launch_all(self, step: Step) -> None:
        """Whatever is captured later."""
        self.iterate(step)
        self.forward(step)

    def shown(self, step: Step) -> Array:
        """The outputs (M, T, C, h, w) of a snapshot."""
        if self.average is not None:
            return self.average.mean
        self.captured_forward(step)
        return step.outputs

    def capture(self, step: Step) -> None:
        """Once everything that `iterate` and `forward` launch was launched before."""
        self.captured_iterate = self.kernels.captured(self.iterate, step)
        self.captured_forward = self.kernels.captured(self.forward, step)

    def take_over(self, old: _Group) -> None:
        """Goes on where some members stood in a larger group."""
        members = [m for index in self.rows for m in range(len(old.weights))[old.rows[index]]]
        if self.flat is not None and old.flat is not None:
            self.flat.take_over(old.flat, members)
        for ours, theirs in [(self.adam, old.adam), (self.kept, old.kept), (self.average, old.average)]:
            if theirs is None:
                continue
            for name, value in vars(theirs).items():
                into = getattr(ours, name)
                if hasattr(value, "shape"):  # of fewer members, where there is a number for each
                    into[...] = value if into.shape == value.shape else value[members]
                elif isinstance(value, int | float):
                    setattr(ours, name, value)

    def close(self) -> None:
        """Frees what was captured now, rather than whenever Python collects what refers to itself."""
        if hasattr(self, "captured_iterate"):
            del self.captured_iterate, self.captured_forward


@functools.cache  # once, though a second kind of fit may need more kernels
def _tell_of_compilation() -> None:
    _log.warning("Compiling the kernels of the fit, once on this machine: up to half a minute.")


@contextlib.contextmanager
def _telling_of_compilation() -> Iterator[None]:
    """Kernels that are on disk load within a second."""
    timer = threading.Timer(2.0, _tell_of_compilation)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Queue:
    """Iterations still to do; threads take the group that is most behind, so that none is idle but at the very end."""

    def __init__(self, groups: list[_Group], iterations: int, ended: Callable[[_Group], bool]) -> None:
        self._lock = threading.Lock()
        self._waiting = [(iterations, i, group) for i, group in enumerate(groups)]
        self._ended = ended

    def work(self, step: Step) -> None:
        """Iterates until nothing waits."""
        mine: tuple[int, int, _Group] | None = None
        while True:
            with self._lock:
                if mine and mine[0] > 1:
                    self._waiting.append((mine[0] - 1, *mine[1:]))
                if not self._waiting:
                    return
                mine = max(self._waiting, key=lambda entry: entry[:2])
                self._waiting.remove(mine)
            if self._ended(mine[2]):
                mine = None
            else:
                mine[2].advance(step)
