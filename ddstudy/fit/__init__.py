"""The fit engine: an ensemble of decoders is fitted to the tiles of one target; a fit is a generator of snapshots.

`fit` takes a `Problem` (arrays only: tiles, inputs, starting weights) and yields a `Snapshot` at each iteration
asked for. Whoever consumes it decides what to do with a snapshot and may stop at any of them. No schedule depends
on the total number of iterations, so a snapshot at 2,000 equals a fit that was asked for 2,000.

Two engines compute the same: `fused`, by hand-derived gradients in compiled kernels, and `reference`, plain torch with
autograd, for devices without kernels and as the oracle. `choose` says which one a device gets.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ddstudy.decoder import Geometry
from ddstudy.errors import UserError

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
        precision: `auto`, `float32` or `bfloat16`. `auto` is float32: see README, "Speed".

    Raises:
        UserError: the device does not have it.
    """
    kernels = device == "cpu" or (device.startswith("cuda") and _has_triton())
    if engine == "fused" and not kernels:
        raise UserError(f"fit.engine: there are no fused kernels for {device} here", "Valid: auto, reference.")
    if engine == "reference" or not kernels:
        if precision == "bfloat16":
            raise UserError("fit.precision: bfloat16 needs the fused engine", "Valid: auto, float32.")
        return Method("reference", "float32")
    if precision != "bfloat16":
        return Method("fused", "float32")
    if device == "cpu":
        from ddstudy.fit.kernels_cpu import HAS_BFLOAT16

        if not HAS_BFLOAT16:
            raise UserError("fit.precision: this processor does not multiply bfloat16", "Valid here: auto, float32.")
    return Method("fused", "bfloat16")


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
    """

    shape: Geometry
    tiles: NDArray[np.float32]
    inputs: NDArray[np.float32]
    weights: NDArray[np.float32]
    learning_rate: float
    keep: Literal["last", "best", "average"] = "last"


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The state of a fit after some iterations.

    Attributes:
        iteration: updates done.
        seconds: time spent on them, without metrics, snapshots or compilation.
        losses: float64 (M,), mean squared error over all tiles of each member, of the very weights that gave
            `outputs` (Eq. 2.3); NaN where a member diverged.
        outputs: float32 (M, T, C, h, w) in [0, 1].
    """

    iteration: int
    seconds: float
    losses: NDArray[np.float64]
    outputs: NDArray[np.float32]


def fit(
    problem: Problem,
    stops: Sequence[int],
    *,
    device: str = "cpu",
    threads: int = 1,
    method: Method | None = None,
    stop: threading.Event | None = None,
) -> Iterator[Snapshot]:
    """Fits all members and yields a snapshot at every stop.

    Args:
        problem: what is fitted; its arrays are not changed.
        stops: iterations to yield at, ascending, >= 1.
        device: a torch device, `cpu`, `cuda`, `cuda:1`, `mps`.
        threads: CPU threads that members are spread over; results do not depend on it.
        method: how it is computed; what `choose` finds for the device when not given.
        stop: set by another thread to end the fit soon, without a further snapshot.
    """
    method, stop = method or choose(device), stop or threading.Event()
    if method.engine == "reference":
        from ddstudy.fit import reference

        return reference.fit(problem, stops, device=device, threads=threads, stop=stop)
    from ddstudy.fit import fused

    kernels = fused.kernels_for(device)
    return fused.fit(problem, stops, kernels, threads=threads, stop=stop, precision=method.precision)


@contextlib.contextmanager
def setting(stop: threading.Event) -> Iterator[None]:
    """Sets an event on the way out: for engines, whose threads then end soon, by Ctrl-C for example."""
    try:
        yield
    finally:
        stop.set()
