"""The fit engine: an ensemble of decoders is fitted to the tiles of one target; a fit is a generator of snapshots.

`fit` takes a `Problem` (arrays only: tiles, inputs, starting weights) and yields a `Snapshot` at each iteration
asked for. Whoever consumes it decides what to do with a snapshot and may stop at any of them. No schedule depends
on the total number of iterations, so a snapshot at 2,000 equals a fit that was asked for 2,000.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddstudy.decoder import Geometry

ENGINE = "reference"  # name recorded with every trial


@dataclass(frozen=True, eq=False)
class Problem:
    """What an engine fits.

    Attributes:
        shape: geometry of the decoder.
        tiles: float32 (T, C, h, w), the target cut into tiles.
        inputs: float32 (M, T, k, h0, w0), the fixed input tensors of M members.
        weights: float32 (M, parameters), the members' random starts.
        learning_rate: of Adam.
    """

    shape: Geometry
    tiles: NDArray[np.float32]
    inputs: NDArray[np.float32]
    weights: NDArray[np.float32]
    learning_rate: float


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


def fit(problem: Problem, stops: Sequence[int], *, device: str = "cpu", threads: int = 1) -> Iterator[Snapshot]:
    """Fits all members and yields a snapshot at every stop.

    Args:
        problem: what is fitted; its arrays are not changed.
        stops: iterations to yield at, ascending, >= 1.
        device: a torch device, `cpu`, `cuda`, `cuda:1`, `mps`.
        threads: CPU threads that members are spread over; results do not depend on it.
    """
    from ddstudy.fit.reference import fit as reference_fit

    return reference_fit(problem, stops, device=device, threads=threads)
