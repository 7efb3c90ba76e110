"""How undisturbed a fit was: what others do on its machine changes its seconds, and nothing else would tell.

A thread that could run and has no core waits in the queue of one. Linux counts that per thread; elsewhere a fit on the
processor, whose threads have no other reason to rest, shows it by the processor time that it lacks.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import TypeVar

DISTURBED_PERCENT = 10.0  # of a fit's time that its threads waited for a core: beyond, its seconds are not its own

_TASKS = "/proc/self/task"
T = TypeVar("T")


def watched(fit: Iterator[T], threads: int, *, on_processor: bool) -> Iterator[tuple[T, float | None]]:
    """What a fit yields, with the share of its time so far that its threads waited for a core.

    Args:
        fit: computes between what it yields; the time of whoever consumes it does not count.
        threads: of the fit, that would be busy all the time; 1 for one that drives a GPU.
        on_processor: whether it computes on the processor.

    Yields:
        What the fit yields, and the share in percent; None where it cannot be told.
    """
    waited, passed = 0.0, 0.0
    while True:
        begun, used, queued = time.perf_counter(), time.process_time(), _queued()
        try:
            item = next(fit)
        except StopIteration:
            return
        wall = (time.perf_counter() - begun) * threads
        passed += wall
        if queued is not None:
            waited += max(0.0, (_queued() or queued) - queued)
        elif on_processor:
            waited += max(0.0, wall - (time.process_time() - used))
        known = queued is not None or on_processor
        yield item, min(100.0, 100 * waited / passed) if known and passed else None


def _queued() -> float | None:
    """Seconds that the threads of this process have waited for a core; None where nobody counts them."""
    total, found = 0, False
    with contextlib.suppress(OSError):
        for task in os.listdir(_TASKS):  # before and after every stretch of a fit: pathlib takes five times as long
            with contextlib.suppress(OSError, ValueError, IndexError):  # threads come and go
                with open(f"{_TASKS}/{task}/schedstat", "rb", buffering=0) as file:
                    total += int(file.read(100).split()[1])
                found = True
    return total / 1e9 if found else None
