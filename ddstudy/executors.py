"""Where fits run: in this process, or on a Ray cluster.

An executor takes jobs, runs them and hands their events back; it knows nothing of Optuna or of what a job means to
the study. `InProcess` is the default and runs one fit at a time on the cores that `layout` gives it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from ddstudy.errors import UserError
from ddstudy.evaluate import Check, Job, Measurement, evaluate
from ddstudy.spec import FitSpec


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

    def cancel(self, ticket: str) -> None:
        """Ends a job early; its next event is `Finished`, or one that was on its way."""

    def events(self) -> Iterator[tuple[str, Event]]:
        """The events of all jobs as they come, until none is left; jobs may be added meanwhile."""

    def close(self) -> None:
        """Stops what still runs."""


def usable_cores() -> int:
    """Cores that this process may use: its affinity, or the share that its control group has, rounded."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _control_group("cpu.max").split()
    if len(quota) == 2 and quota[0].isdecimal():
        cores = min(cores, max(1, round(int(quota[0]) / int(quota[1]))))
    return cores


def usable_memory() -> float:
    """Bytes that fits may take here: what is free, within the limit of the control group; infinite if unknown."""
    try:
        with open("/proc/meminfo") as meminfo:
            free = next(int(line.split()[1]) * 1024 for line in meminfo if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float("inf")
    limit, used = _control_group("memory.max").strip(), _control_group("memory.current").strip()
    return min(free, int(limit) - int(used)) if limit.isdecimal() and used.isdecimal() else free


def _control_group(file: str) -> str:
    """A file of this process' control group (version 2), empty where there is none; the root is ours in a container."""
    try:
        with open("/proc/self/cgroup") as groups:
            path = next(line.strip()[3:] for line in groups if line.startswith("0::"))
    except (OSError, StopIteration):
        return ""
    for folder in (f"/sys/fs/cgroup{path}", "/sys/fs/cgroup"):
        try:
            with open(f"{folder.rstrip('/')}/{file}") as found:
                return found.read()
        except OSError:
            continue
    return ""


@dataclass(frozen=True)
class Layout:
    """How the cores of a machine are used.

    Attributes:
        workers: fits at the same time.
        threads: threads of each; a member is computed by one thread, so more than there are members are of no use.
    """

    workers: int
    threads: int


def layout(
    spec: FitSpec,
    device: str,
    *,
    exclusive: bool,
    bytes_per_fit: Callable[[], float],
    workers: int | None = None,
    threads: int | None = None,
) -> Layout:
    """Fills the cores: one fit on as many threads as it has members, then further fits beside it.

    Threads take the member that is most behind, so one fit keeps as many cores busy as it has members, and its seconds
    stay comparable; so several run only where cores are left over. A GPU takes one fit at a time, and so does the
    reference engine, whose memory nobody has measured.

    Args:
        spec: of the study.
        device: where fits run.
        exclusive: seconds are an objective: never more than one fit at a time.
        bytes_per_fit: memory of the largest fit, asked for where it decides; workers are fewer where memory is short.
        workers: the user's wish.
        threads: the user's wish.

    Raises:
        UserError: several fits at a time were asked for while seconds are an objective.
    """
    if exclusive and (workers or 1) > 1:
        raise UserError(
            "--workers: fits that share a processor cannot be timed, and seconds are an objective of this study",
            "Valid: --workers 1.",
        )
    cores = usable_cores()
    if threads is None:
        threads = min(spec.members, max(1, cores // (workers or 1)))
    if workers is None:
        alone = exclusive or device != "cpu" or spec.engine == "reference"
        workers = 1 if alone else max(1, cores // threads)
        if workers > 1:
            workers = max(1, min(workers, int(usable_memory() * 0.8 // bytes_per_fit())))
    return Layout(workers, threads)


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
    """One fit at a time, in this thread: nothing else runs while a fit is timed.

    Args:
        threads: of a fit.
    """

    slots = 1
    shared = False

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._waiting: deque[tuple[str, Job]] = deque()
        self._stop = threading.Event()

    def submit(self, ticket: str, job: Job) -> None:
        """See `Executor`."""
        resolve_device(job.options.device)
        self._waiting.append((ticket, job))

    def cancel(self, ticket: str) -> None:
        """See `Executor`; a job that runs is the only one that anybody has heard of."""
        self._stop.set()

    def events(self) -> Iterator[tuple[str, Event]]:
        """See `Executor`."""
        while self._waiting:
            ticket, job = self._waiting.popleft()
            self._stop.clear()
            for event in _events(job, self._threads, self._stop):
                if isinstance(event, UserError):
                    raise event
                yield ticket, event

    def close(self) -> None:
        """See `Executor`."""
        self._waiting.clear()


class Threads:
    """Several fits at a time, each in a thread: compiled kernels and torch leave Python's lock to the others.

    Args:
        layout: fits at a time, and threads of each.
    """

    shared = True

    def __init__(self, layout: Layout) -> None:
        self.slots = layout.workers
        self._threads = layout.threads
        self._pool = ThreadPoolExecutor(layout.workers)
        self._queue: queue.SimpleQueue[tuple[str, Event | UserError]] = queue.SimpleQueue()
        self._stops: dict[str, threading.Event] = {}

    def submit(self, ticket: str, job: Job) -> None:
        """See `Executor`."""
        resolve_device(job.options.device)
        self._stops[ticket] = threading.Event()
        self._pool.submit(self._fit, ticket, job, self._stops[ticket])

    def _fit(self, ticket: str, job: Job, stop: threading.Event) -> None:
        for event in _events(job, self._threads, stop):
            self._queue.put((ticket, event))

    def cancel(self, ticket: str) -> None:
        """See `Executor`."""
        self._stops[ticket].set()

    def events(self) -> Iterator[tuple[str, Event]]:
        """See `Executor`."""
        while self._stops:
            ticket, event = self._queue.get()
            if isinstance(event, UserError):
                raise event
            if isinstance(event, Finished | Failed):
                del self._stops[ticket]
            yield ticket, event

    def close(self) -> None:
        """See `Executor`."""
        for stop in self._stops.values():
            stop.set()
        self._pool.shutdown(cancel_futures=True)


def _events(job: Job, threads: int, stop: threading.Event | None = None) -> Iterator[Event | UserError]:
    """A fit's events with its end or its failure; a mistake of the user's comes as the last."""
    work = evaluate(job, device=resolve_device(job.options.device), threads=threads, stop=stop)
    with contextlib.closing(work):  # type: ignore[type-var]  # a generator has close()
        while True:
            try:
                event = next(work, None)
            except UserError as error:
                yield error
                return
            except Exception as error:  # whatever a device or library raises, the study goes on
                yield Failed(_describe(error))
                return
            if event is None:
                yield Finished()
                return
            yield event


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
        self._cancelled: set[str] = set()

    def submit(self, ticket: str, job: Job) -> None:
        """See `Executor`."""
        self._running[self._task.remote(job)] = ticket

    def cancel(self, ticket: str) -> None:
        """See `Executor`."""
        self._cancelled.add(ticket)
        for stream, name in self._running.items():
            if name == ticket:
                self._ray.cancel(stream)

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
                if ticket in self._cancelled:
                    event = Finished()
            if isinstance(event, Finished | Failed):
                self._cancelled.discard(ticket)
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
