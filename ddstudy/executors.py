"""Where fits run: in this process, or on a Ray cluster.

An executor takes jobs, runs them and hands their events back; it knows nothing of Optuna or of what a job means to
the study. The in-process executor is the default and runs one fit at a time on all cores.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from ddstudy.errors import UserError
from ddstudy.evaluate import Check, Job, Measurement, evaluate


@dataclass(frozen=True)
class Finished:
    """A job has ended."""


@dataclass(frozen=True)
class Failed:
    """A job could not be done: infrastructure, never instability."""

    why: str


Event = Check | Measurement | Finished | Failed


class Executor(Protocol):
    """Runs jobs; every submitted job ends with `Finished` or `Failed`.

    Attributes:
        slots: jobs that run at the same time.
        shared: whether several fits share a device, so that their seconds are not comparable.
    """

    slots: int
    shared: bool

    def submit(self, ticket: str, job: Job) -> None:
        """Adds a job under a name of the caller's choice."""

    def events(self) -> Iterator[tuple[str, Event]]:
        """The events of all jobs as they come, until none is left; jobs may be added meanwhile."""

    def close(self) -> None:
        """Stops what still runs."""


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resolve_device(wanted: str) -> str:
    """`auto` -> the fastest device that is here.

    Raises:
        UserError: the device is not here.
    """
    import torch

    has_cuda = torch.cuda.is_available()
    has_mps = torch.backends.mps.is_available()
    if wanted == "auto":
        return "cuda" if has_cuda else "mps" if has_mps else "cpu"
    count = torch.cuda.device_count() if has_cuda else 0
    index = int(wanted.partition(":")[2] or 0)
    if (wanted.startswith("cuda") and index >= count) or (wanted == "mps" and not has_mps):
        here = ["cpu", *(f"cuda:{i}" for i in range(count)), *(["mps"] if has_mps else [])]
        raise UserError(f"fit.device: there is no {wanted} on this machine", f"Valid here: auto, {', '.join(here)}.")
    return wanted


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().partition("\n")[0][:500]


class InProcess:
    """One fit at a time, in this process."""

    slots = 1
    shared = False

    def __init__(self) -> None:
        self._waiting: deque[tuple[str, Job]] = deque()

    def submit(self, ticket: str, job: Job) -> None:
        """See `Executor`."""
        resolve_device(job.options.device)
        self._waiting.append((ticket, job))

    def events(self) -> Iterator[tuple[str, Event]]:
        """See `Executor`."""
        while self._waiting:
            ticket, job = self._waiting.popleft()
            work = evaluate(job, device=resolve_device(job.options.device), threads=usable_cores())
            with contextlib.closing(work):  # type: ignore[type-var]  # a generator has close()
                while True:
                    try:
                        event: Event | None = next(work, None)
                    except UserError:
                        raise
                    except Exception as error:  # whatever a device or library raises, the study goes on
                        event = Failed(_describe(error))
                    yield ticket, event or Finished()
                    if event is None or isinstance(event, Failed):
                        break

    def close(self) -> None:
        """See `Executor`."""
        self._waiting.clear()


class Ray:
    """Fits as Ray tasks, one GPU each, or one core each where there is no GPU.

    Args:
        address: of a running cluster, `auto` to find it, or `local` to start one on this machine.

    Raises:
        UserError: the cluster cannot be reached.
    """

    def __init__(self, address: str) -> None:
        import ray

        self._ray = ray
        options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "ERROR"}
        if address == "local":
            options |= {"num_cpus": usable_cores(), "include_dashboard": False}
        try:
            ray.init(**options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(
                f"no Ray cluster at '{address}': {_describe(error)}",
                "Valid: local, auto (a cluster started with `ray start`), or HOST:PORT.",
            ) from None
        resources = ray.cluster_resources()
        self._gpus = resources.get("GPU", 0) >= 1
        self.slots = max(1, int(resources["GPU" if self._gpus else "CPU"]))
        self.shared = not self._gpus and self.slots > 1
        # a generator task: its events stream back one by one
        self._task = ray.remote(_ray_fit).options(
            num_cpus=1, num_gpus=1 if self._gpus else 0, max_retries=0, num_returns="streaming"
        )
        self._running: dict[Any, str] = {}

    def submit(self, ticket: str, job: Job) -> None:
        """See `Executor`."""
        self._running[self._task.remote(job)] = ticket

    def events(self) -> Iterator[tuple[str, Event]]:
        """See `Executor`."""
        while self._running:
            ready, _ = self._ray.wait(list(self._running), num_returns=1)
            stream: Any = ready[0]
            ticket = self._running[stream]
            try:
                event: Event = self._ray.get(next(stream))
            except StopIteration:
                event = Finished()
            except self._ray.exceptions.RayError as error:
                event = Failed(_describe(getattr(error, "cause", None) or error))
            if isinstance(event, Finished | Failed):
                del self._running[stream]
            yield ticket, event

    def close(self) -> None:
        """See `Executor`."""
        for stream in self._running:
            self._ray.cancel(stream)
        self._running.clear()
        self._ray.shutdown()


def _ray_fit(job: Job) -> Iterator[Check | Measurement]:
    device = resolve_device(job.options.device)
    yield from evaluate(job, device=device, threads=1)
