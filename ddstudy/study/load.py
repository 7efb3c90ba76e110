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

DISTURBED_PERCENT = 10.0  # of a fit's time that its threads waited for a core; above, others have changed its seconds

_TASKS = "/proc/self/task"
T = TypeVar("T")


def watched(fit: Iterator[T], threads: int, *, on_processor: bool) -> Iterator[tuple[T, float | None]]:
    """What a fit yields, with the share of the time in which its threads could compute that they waited for a core.

    Args:
        fit: computes between what it yields; the time of its consumer does not count.
        threads: of the fit, that would be busy all the time.
        on_processor: whether it computes on the processor.

    Yields:
        What the fit yields, and the share so far in percent; None where it cannot be told.
    """
    ran = waited = 0.0
    while True:
        begun, used, before = time.perf_counter(), time.process_time(), _queues()
        try:
            item = next(fit)
        except StopIteration:
            return
        after = _queues()
        if before is not None and after is not None:
            ran, waited = ran + max(0.0, after[0] - before[0]), waited + max(0.0, after[1] - before[1])
        elif on_processor:
            busy = time.process_time() - used
            ran, waited = ran + busy, waited + max(0.0, threads * (time.perf_counter() - begun) - busy)
        yield item, 100 * waited / (ran + waited) if ran + waited else None


def _queues() -> tuple[float, float] | None:
    """Seconds that the threads of this process have run, and have waited for a core; None if unknown."""
    ran, waited, found = 0, 0, False
    with contextlib.suppress(OSError):
        for task in os.listdir(_TASKS):  # before and after every stretch of a fit: pathlib takes five times as long
            with contextlib.suppress(OSError, ValueError):  # threads come and go
                with open(f"{_TASKS}/{task}/schedstat", "rb", buffering=0) as file:
                    one, other, _ = file.read(100).split()
                ran, waited, found = ran + int(one), waited + int(other), True
    return (ran / 1e9, waited / 1e9) if found else None
