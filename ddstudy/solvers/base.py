"""The solver protocol: what a solver is given, what it yields, and what solvers share.

A solver is given problems and a configuration, and yields snapshots at the iterations asked for. It sees the
measurement and never the image that quality is judged against: that stays with whoever evaluates the outputs.

Both solvers here are an `Ensemble`, the members of all problems in step, which `snapshots` takes from stop to stop.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ddstudy.priors.base import Prior
from ddstudy.tasks.base import Operator

EMA_ITERATIONS = 100  # of the average of weights: the mean of the first so many, then exponential with this constant
JITTER_ITERATIONS = 500  # with one standard deviation, before it decays
Optimiser = Literal["adam", "adamw", "radam", "sgd", "rmsprop", "lbfgs", "sgld"]
FLAT_VARIANCE = 1e-12  # of its squared mean: a channel of less variance in a tile is constant there but for rounding


@dataclass(frozen=True, eq=False)
class Problem:
    """All that a solver sees: a measurement y = A x + e, and the network whose output x is fitted to it.

    A sample of y that is NaN was not measured, or is held out: no loss has it.

    Attributes:
        prior: the network.
        measurement: float32, y. Without operator (T, C, h, w), cut into tiles; otherwise (*operator.shape). At least
            one sample is not NaN.
        inputs: float32 (M, T, *prior.input_shape), the fixed input tensors of M members.
        weights: float32 (M, prior.parameters), where the members start: at random, or where another fit ended.
        pixels: int64 (C H W,), where the slice's pixels are among the T C h w numbers of a member's output, in the
            slice's order: padding is none of them. None where they are all numbers in their order.
        operator: A; None: A = 1.
        shape: (C, H, W) of the slice that the operator takes; None: it is one tile.
        jitter_seeds: uint64 (M,), of the streams that `Config.jitter` is drawn from; not needed without.
        noise_seeds: uint64 (M,), of the streams that the noise of `sgld` is drawn from; not needed without.
    """

    prior: Prior
    measurement: NDArray[np.float32]
    inputs: NDArray[np.float32]
    weights: NDArray[np.float32]
    pixels: NDArray[np.int64] | None = None
    operator: Operator | None = None
    shape: tuple[int, int, int] | None = None
    jitter_seeds: NDArray[np.uint64] | None = None
    noise_seeds: NDArray[np.uint64] | None = None

    def __post_init__(self) -> None:
        if not self.measured:
            raise ValueError("the measurement has no sample but NaN")

    @cached_property
    def measured(self) -> int:
        """Number of samples that are not NaN."""
        return int(np.count_nonzero(~np.isnan(self.measurement)))

    @property
    def kind(self) -> tuple[object, ...]:
        """What problems that are fitted together have in common."""
        operator = None if self.operator is None else (self.operator, self.shape)
        return self.prior, self.inputs.shape[1:], self.measurement.shape, operator


@dataclass(frozen=True)
class Config:
    """How members are optimised: by default by Adam on the mean squared error of all samples that were measured.

    Attributes:
        learning_rate: of the optimiser, before any schedule; of `lbfgs` the first trial step of its line searches.
        keep: which weights of a member a snapshot shows: the `last`; the `best`, those of the least loss of all whose
            loss the fit has seen; or the `average`, the mean of the first `EMA_ITERATIONS` and an exponential moving
            average (EMA) of that time constant from there on. The optimiser goes the same way in any case. The loss
            is the one that is optimised.
        average: in [0, 1), weight of the past in an exponential average of outputs: the first output, and from then
            on mean <- average mean + (1 - average) output in each iteration (Ulyanov et al., 2018, with 0.99). A
            snapshot shows this mean, whatever `keep` says. Outputs are those whose losses the fit sees: of the current
            weights, before an update changes them, and of the jittered input. 0: none.
        jitter: standard deviation of normal noise that is added to the input tensor anew in each iteration. Snapshots
            that show weights have their outputs for the input as it is. 0: none.
        jitter_decay: what that is multiplied with every `JITTER_ITERATIONS` iterations.
        optimiser: with torch's defaults but for what follows. `sgld` is Adam with noise on the weights after each
            update; `lbfgs` has a strong Wolfe line search of up to 25 evaluations in each iteration.
        momentum: of `sgd`.
        weight_decay: times the weights is added to their gradient; of `adamw`, each update takes off this times the
            learning rate of the weights instead. `lbfgs` has none.
        sgld_noise: standard deviation of the noise of `sgld`, in learning rates; see `solvers.optimisers.Langevin`.
        schedule: of the learning rate; `step` multiplies it with `decay` every `decay_every` iterations.
        decay: see `schedule`.
        decay_every: see `schedule`.
        loss: a mean over the samples that were measured, of their errors e = A x - y: `mse` of e^2, `l1` of |e|,
            `huber` of e^2 / 2 where |e| <= delta and delta (|e| - delta / 2) beyond (Huber, 1964); `log_mse` is
            log(mse). The real and the imaginary part of a complex sample are two samples.
        huber_delta: see `loss`.
        tv_weight: times the total variation of x is added to the loss; see `solvers.fidelity.total_variation`.
    """

    learning_rate: float = 0.01
    keep: Literal["last", "best", "average"] = "last"
    average: float = 0.0
    jitter: float = 0.0
    jitter_decay: float = 1.0
    optimiser: Optimiser = "adam"
    momentum: float = 0.9
    weight_decay: float = 0.0
    sgld_noise: float = 2.0  # of Cheng et al.'s code
    schedule: Literal["constant", "step"] = "constant"
    decay: float = 0.5
    decay_every: int = 1000
    loss: Literal["mse", "l1", "huber", "log_mse"] = "mse"
    huber_delta: float = 0.05
    tv_weight: float = 0.0

    @property
    def is_plain_adam(self) -> bool:
        """Whether the optimiser is Adam with a constant learning rate and nothing else, for which there are kernels."""
        return self.optimiser == "adam" and self.schedule == "constant" and not self.weight_decay

    @property
    def is_plain_mse(self) -> bool:
        """Whether the loss is the mean squared error and nothing else, for which there are kernels."""
        return self.loss == "mse" and not self.tv_weight

    def rate_at(self, iteration: int) -> float:
        """The learning rate of the update that follows after so many."""
        if self.schedule == "constant":
            return self.learning_rate
        return self.learning_rate * self.decay ** (iteration // self.decay_every)


class Jitter:
    """The input of one member with new noise in each iteration, from a stream of its own.

    Noise is drawn by numpy in single precision for every solver and device.

    Args:
        config: how strong it is.
        problem: whose member it is.
        member: its index in the problem.

    Raises:
        ValueError: the problem has no seeds.
    """

    def __init__(self, config: Config, problem: Problem, member: int) -> None:
        if problem.jitter_seeds is None:
            raise ValueError("Config.jitter needs Problem.jitter_seeds")
        self._config, self._inputs = config, problem.inputs[member]
        self._stream = np.random.default_rng(int(problem.jitter_seeds[member]))
        self._iteration = 0

    def inputs(self) -> NDArray[np.float32]:
        """(T, *prior.input_shape) for the next iteration."""
        noise: NDArray[np.float32] = self._stream.standard_normal(self._inputs.shape, dtype=np.float32)
        scale = self._config.jitter * self._config.jitter_decay ** (self._iteration // JITTER_ITERATIONS)
        self._iteration += 1
        noise *= np.float32(scale)
        noise += self._inputs
        return noise


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The state of a fit after some iterations, for the weights that `Config.keep` chooses, or the average of outputs.

    Attributes:
        iteration: updates done.
        seconds: time spent on them, without metrics, snapshots or compilation; of a pack the share of its members.
        losses: float64 (M,), mean squared error of each member against the samples that were measured, without
            operator those among `Problem.pixels` (Eq. 2.3 without its padding); NaN where a member diverged. It is that
            whatever `Config.loss` is, so that it can be held against the noise's variance and told as PSNR.
        ranges: float32 (M, T), largest minus smallest output of each tile.
        fetch: takes the outputs from the device.
        fetch_weights: takes the weights that are shown from there; of averaged outputs the current ones. By default
            there are none.
    """

    iteration: int
    seconds: float
    losses: NDArray[np.float64]
    ranges: NDArray[np.float32]
    fetch: Callable[[], NDArray[np.float32]]
    fetch_weights: Callable[[], NDArray[np.float32]] = lambda: np.empty((1, 0), np.float32)

    @cached_property
    def outputs(self) -> NDArray[np.float32]:
        """(M, T, C, h, w), in [0, 1] but for a linear head; of a fit on a GPU, only until the fit goes on."""
        return self.fetch()

    @cached_property
    def weights(self) -> NDArray[np.float32]:
        """(M, parameters), a `Problem.weights` for a fit that goes on from here; only until this one goes on."""
        return self.fetch_weights()

    def fetched(self) -> Snapshot:
        """The same with outputs at hand, however far the fit goes on."""
        outputs = self.outputs
        return replace(self, fetch=lambda: outputs)


class Solver(Protocol):
    """Fits several problems of one kind at once and yields the snapshots of each at its stops.

    A member's numbers depend on its problem and the configuration only: not on the threads, the problems beside it, or
    the stops. No schedule depends on the total number of iterations.
    """

    def __call__(
        self,
        problems: Sequence[Problem],
        config: Config,
        stops: Sequence[Sequence[int]],
        *,
        device: str,
        threads: int,
        ended: Sequence[threading.Event],
    ) -> Iterator[tuple[int, Snapshot]]:
        """Solves.

        Args:
            problems: all of one `Problem.kind`; their arrays are not changed.
            config: how their members are optimised.
            stops: of each problem, iterations to yield at, ascending, >= 1.
            device: a torch device, `cpu`, `cuda`, `cuda:1`, `mps`.
            threads: CPU threads that members are spread over.
            ended: of each problem, an event that ends it soon, without a further snapshot, while the others go on.

        Yields:
            The index of a problem and its snapshot.
        """


class State(NamedTuple):
    """How a problem stands: what a `Snapshot` says of it besides iteration and seconds."""

    losses: NDArray[np.float64]
    ranges: NDArray[np.float32]
    fetch: Callable[[], NDArray[np.float32]]
    fetch_weights: Callable[[], NDArray[np.float32]]


class Ensemble(Protocol):
    """The members of some problems on a device, which iterate in step."""

    def advance(self, iterations: int, ended: Callable[[int], bool]) -> None:
        """Iterates; members of a problem that has `ended` may stop early."""

    def states(self, indices: Collection[int]) -> Mapping[int, State]:
        """How some problems stand, by their index."""

    def drop(self, indices: Collection[int]) -> None:
        """Goes on without some problems."""


def snapshots(
    opened: contextlib.AbstractContextManager[Ensemble],
    problems: Sequence[Problem],
    stops: Sequence[Sequence[int]],
    ended: Sequence[threading.Event],
) -> Iterator[tuple[int, Snapshot]]:
    """Takes an ensemble from stop to stop; arguments and what is yielded are those of `Solver`."""
    remaining = {index: sorted(set(chosen)) for index, chosen in enumerate(stops) if chosen}
    seconds, done = [0.0] * len(problems), 0
    with opened as ensemble:
        while remaining:
            next_stop = min(ahead[0] for ahead in remaining.values())
            start = time.perf_counter()
            ensemble.advance(next_stop - done, lambda index: ended[index].is_set())
            spent, done = time.perf_counter() - start, next_stop
            members = sum(len(problems[index].weights) for index in remaining)
            for index in remaining:
                seconds[index] += spent * len(problems[index].weights) / members
            stopping = [index for index, ahead in remaining.items() if ahead[0] == done]
            states = ensemble.states([index for index in stopping if not ended[index].is_set()])
            for index, state in states.items():
                if not ended[index].is_set():
                    yield index, Snapshot(done, seconds[index], *state)
            for index in stopping:
                del remaining[index][0]
            finished = {index for index, ahead in remaining.items() if not ahead or ended[index].is_set()}
            for index in finished:
                del remaining[index]
            if remaining and finished:
                ensemble.drop(finished)


def summary(
    outputs: NDArray[np.float32], measurement: NDArray[np.float32], pixels: NDArray[np.int64] | None
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Losses (M,) and ranges (M, T) of outputs (M, T, C, h, w), as `Snapshot` has them; measurement (T, C, h, w).

    Without operator; with one, `ddstudy.solvers.fidelity.Fidelity.summary` has them.
    """
    predicted, measured = outputs.reshape(len(outputs), -1), measurement.reshape(-1)
    if pixels is not None:
        predicted, measured = predicted[:, pixels], measured[pixels]
    known = ~np.isnan(measured)
    if not known.all():
        predicted, measured = predicted[:, known], measured[known]
    errors = predicted.astype(np.float64) - measured
    return (errors**2).mean(axis=1), np.ptp(outputs, axis=(2, 3, 4))


def run_in(pool: Executor, work: Callable[[], None]) -> None:
    """Runs in a thread of a pool, or in this one when the program is on its way out, and pools take nothing more."""
    try:
        running = pool.submit(work)
    except RuntimeError:
        work()
    else:
        running.result()


@contextlib.contextmanager
def set_on_exit(event: threading.Event) -> Iterator[None]:
    """Sets an event on the way out: for solvers, whose threads then end soon, by Ctrl-C for example."""
    try:
        yield
    finally:
        event.set()
