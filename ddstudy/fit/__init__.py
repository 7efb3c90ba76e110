"""The fit engine: an ensemble of decoders is fitted to the tiles of one target; a fit is a generator of snapshots.

`fit` takes a `Problem` (arrays only: tiles, inputs, starting weights) and yields a `Snapshot` at each iteration
asked for. Whoever consumes it decides what to do with a snapshot and may stop at any of them. No schedule depends
on the total number of iterations, so a snapshot at 2,000 equals a fit that was asked for 2,000.

`fit_together` fits several problems of equal shapes, a *pack*: their members go through the same launches, which fills
a GPU, and each has the numbers of its own fit alone. Each ends when it likes; the others go on.

Two engines compute the same: `fused`, by hand-derived gradients in compiled kernels, and `reference`, plain torch with
autograd, for devices without kernels and as the oracle. `choose` says which one a device gets.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ddstudy.errors import UserError
from ddstudy.priors.deep_decoder import Geometry

AVERAGED = 100  # iterations that the running average reaches back
FLAT = 1e-12  # of its squared mean: a channel whose variance in a tile is less is constant there but for rounding


@dataclass(frozen=True)
class Method:
    """How a fit is computed.

    Attributes:
        engine: `fused` or `reference`.
        precision: of the factors of matrix products; everything else, and their sums, are float32.
    """

    engine: Literal["fused", "reference"]
    precision: Literal["float32", "bfloat16"]

    def __str__(self) -> str:
        """As recorded with every trial."""
        return f"{self.engine} {self.precision}"


def choose(device: str, engine: str = "auto", precision: str = "auto") -> Method:
    """The fastest method that a device has within what is asked for.

    Args:
        device: a torch device, `cpu`, `cuda`, `cuda:1`, `mps`.
        engine: `auto`, `fused` or `reference`.
        precision: `auto`, `float32` or, on CUDA GPUs, `bfloat16`. `auto` is float32: see README, "Speed".

    Raises:
        UserError: the device does not have it.
    """
    kernels = device == "cpu" or (device.startswith("cuda") and _has_triton())
    if engine == "fused" and not kernels:
        raise UserError(f"fit.engine: there are no fused kernels for {device} here", "Valid: auto, reference.")
    found: Literal["fused", "reference"] = "fused" if kernels and engine != "reference" else "reference"
    if precision != "bfloat16":
        return Method(found, "float32")
    if found == "reference" or device == "cpu":
        raise UserError(
            f"fit.precision: bfloat16 needs the fused engine on a CUDA GPU, this is the {found} engine on {device}",
            "Valid there: auto, float32.",
        )
    return Method(found, "bfloat16")


def _has_triton() -> bool:
    from importlib.util import find_spec

    return find_spec("triton") is not None


@dataclass(frozen=True, eq=False)
class Problem:
    """What an engine fits.

    Attributes:
        shape: geometry of the decoder.
        tiles: float32 (T, C, h, w), the target cut into tiles.
        inputs: float32 (M, T, k, h0, w0), the fixed input tensors of M members.
        weights: float32 (M, parameters), the members' random starts.
        learning_rate: of Adam.
        keep: which parameters of a member a snapshot shows: the `last`; the `best`, those with the least loss of all
            whose loss the fit has seen; or the `average`, with weights that fall by 1 / e in `AVERAGED` iterations.
            Adam goes the same way in any case.
        pixels: int64 (C H W,), where the slice's pixels are among the numbers of `tiles`, in the slice's order: padding
            is none of them. None where they are all numbers of `tiles` in their order.
    """

    shape: Geometry
    tiles: NDArray[np.float32]
    inputs: NDArray[np.float32]
    weights: NDArray[np.float32]
    learning_rate: float
    keep: Literal["last", "best", "average"] = "last"
    pixels: NDArray[np.int64] | None = None

    @property
    def kind(self) -> tuple[object, ...]:
        """What problems that are fitted together have in common."""
        return self.shape, self.tiles.shape, self.learning_rate, self.keep


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The state of a fit after some iterations, of the weights that count (`Problem.keep`).

    Attributes:
        iteration: updates done.
        seconds: time spent on them, without metrics, snapshots or compilation; of a pack the share of its members.
        losses: float64 (M,), mean squared error of each member over `Problem.pixels` (Eq. 2.3 without its padding);
            NaN where a member diverged.
        ranges: float32 (M, T), largest minus smallest output of each tile.
        fetch: takes the outputs from the device.
    """

    iteration: int
    seconds: float
    losses: NDArray[np.float64]
    ranges: NDArray[np.float32]
    fetch: Callable[[], NDArray[np.float32]]

    @cached_property
    def outputs(self) -> NDArray[np.float32]:
        """(M, T, C, h, w) in [0, 1]; of a fit on a GPU, to be asked for before the fit goes on."""
        return self.fetch()

    def fetched(self) -> Snapshot:
        """The same with outputs at hand, however far the fit goes on."""
        outputs = self.outputs
        return replace(self, fetch=lambda: outputs)


def fit(
    problem: Problem,
    stops: Sequence[int],
    *,
    device: str = "cpu",
    threads: int = 1,
    method: Method | None = None,
) -> Iterator[Snapshot]:
    """Fits all members and yields a snapshot at every stop, with its outputs.

    Args:
        problem: what is fitted; its arrays are not changed.
        stops: iterations to yield at, ascending, >= 1.
        device: a torch device, `cpu`, `cuda`, `cuda:1`, `mps`.
        threads: CPU threads that members are spread over; results do not depend on it.
        method: how it is computed; what `choose` finds for the device when not given.
    """
    pack = fit_together([problem], [stops], device=device, threads=threads, method=method)
    return (snapshot.fetched() for _, snapshot in pack)


def fit_together(
    problems: Sequence[Problem],
    stops: Sequence[Sequence[int]],
    *,
    device: str = "cpu",
    threads: int = 1,
    method: Method | None = None,
    ended: Sequence[threading.Event] | None = None,
) -> Iterator[tuple[int, Snapshot]]:
    """Fits several problems of one kind at once and yields the snapshots of each at its stops.

    Args:
        problems: what is fitted, all of one `Problem.kind`.
        stops: of each problem, iterations to yield at, ascending, >= 1.
        device: a torch device, `cpu`, `cuda`, `cuda:1`, `mps`.
        threads: CPU threads that members are spread over; results do not depend on it.
        method: how it is computed; what `choose` finds for the device when not given.
        ended: of each problem, an event that ends it soon, without a further snapshot, while the others go on; set by
            whoever consumes the snapshots, or by another thread.

    Yields:
        The index of a problem and its snapshot.

    Raises:
        ValueError: the problems are of several kinds.
        UserError: the device does not have the method.
    """
    if len({problem.kind for problem in problems}) != 1:
        raise ValueError("problems that are fitted together have one shape, number of tiles, learning rate and keep")
    method = choose(device, method.engine, method.precision) if method else choose(device)
    ended = ended or [threading.Event() for _ in problems]
    if method.engine == "reference":
        from ddstudy.fit import reference

        return follow(reference.ensemble(problems, device=device, threads=threads), problems, stops, ended)
    from ddstudy.fit import fused

    opened = fused.ensemble(problems, fused.kernels_for(device), threads=threads, precision=method.precision)
    return follow(opened, problems, stops, ended)


class Look(NamedTuple):
    """How a problem stands: what a `Snapshot` says of it."""

    losses: NDArray[np.float64]
    ranges: NDArray[np.float32]
    fetch: Callable[[], NDArray[np.float32]]


class Ensemble(Protocol):
    """What an engine makes of problems: all of their members, which iterate in step."""

    def advance(self, iterations: int, ended: Callable[[int], bool]) -> None:
        """Iterates; members of a problem that has `ended` may stop early."""

    def look(self, indices: Collection[int]) -> Mapping[int, Look]:
        """How some problems stand."""

    def drop(self, indices: Collection[int]) -> None:
        """Goes on without some problems."""


def follow(
    opened: contextlib.AbstractContextManager[Ensemble],
    problems: Sequence[Problem],
    stops: Sequence[Sequence[int]],
    ended: Sequence[threading.Event],
) -> Iterator[tuple[int, Snapshot]]:
    """Takes an ensemble from stop to stop, see `fit_together`."""
    left = {index: sorted(set(own)) for index, own in enumerate(stops) if own}
    seconds, done = [0.0] * len(problems), 0
    with opened as ensemble:
        while left:
            reach = min(own[0] for own in left.values())
            start = time.perf_counter()
            ensemble.advance(reach - done, lambda index: ended[index].is_set())
            spent, done = time.perf_counter() - start, reach
            members = sum(len(problems[index].weights) for index in left)
            for index in left:
                seconds[index] += spent * len(problems[index].weights) / members
            here = [index for index, own in left.items() if own[0] == done]
            looks = ensemble.look([index for index in here if not ended[index].is_set()])
            for index, look in looks.items():
                if not ended[index].is_set():
                    yield index, Snapshot(done, seconds[index], *look)
            for index in here:
                del left[index][0]
            over = {index for index, own in left.items() if not own or ended[index].is_set()}
            for index in over:
                del left[index]
            if left and over:
                ensemble.drop(over)


def summary(
    outputs: NDArray[np.float32], tiles: NDArray[np.float32], pixels: NDArray[np.int64] | None
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Losses (M,) and ranges (M, T) of outputs (M, T, C, h, w), as `Snapshot` has them; `tiles` (T, C, h, w)."""
    seen, truth = outputs.reshape(len(outputs), -1), tiles.reshape(-1)
    if pixels is not None:
        seen, truth = seen[:, pixels], truth[pixels]
    errors = seen.astype(np.float64) - truth
    return (errors**2).mean(axis=1), np.ptp(outputs, axis=(2, 3, 4))


@contextlib.contextmanager
def setting(stop: threading.Event) -> Iterator[None]:
    """Sets an event on the way out: for engines, whose threads then end soon, by Ctrl-C for example."""
    try:
        yield
    finally:
        stop.set()
