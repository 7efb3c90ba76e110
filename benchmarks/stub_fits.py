"""A fit that takes no time, for `ray_scale.py`; a module of its own, so that workers import nothing else for it."""

import threading
from collections.abc import Iterator

import numpy as np

from ddstudy.study.evaluate import Check, Job, Result

OUTPUT = np.zeros((1, 256, 320), np.float32)  # what a fit of the thesis' slice sends back


def nothing(job: Job, *, device: str, threads: int, stop: threading.Event) -> Iterator[Check | Result]:
    """A check and a result."""
    values: dict[str, float | int | str] = dict.fromkeys(("seconds", "psnr", "cv_percent", "vif"), 1.0)
    values |= {"iterations_done": max(job.budgets), "device": device}
    yield Check(1, 0.0, (30.0,))
    curve: dict[str, list[object]] = {"iterations": [1], "seconds": [0.0], "psnr_members": [[30.0]]}
    yield Result(max(job.budgets), values, OUTPUT, curve, False)
