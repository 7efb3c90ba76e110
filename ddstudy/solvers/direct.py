"""The solver of priors without weights: applies them once, on the processor."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from ddstudy.priors.handcrafted import Handcrafted
from ddstudy.solvers.base import Snapshot, summary


def solve(prior: Handcrafted, samples: NDArray[np.float32]) -> Snapshot:
    """What a prior makes of a measured image (C, H, W): the state after 0 iterations of its one member and tile."""
    prior.prepare()  # not part of the time
    start = time.perf_counter()
    outputs = prior.apply(samples)[None, None]
    seconds = time.perf_counter() - start
    return Snapshot(0, seconds, *summary(outputs, samples[None], None), lambda: outputs)
