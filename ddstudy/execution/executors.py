"""Where fits run: what an executor is, and the two that run them in this process; `ray_pool` has the third.

An executor takes jobs, runs them and hands their events back; it knows nothing of Optuna or of what a job means to
the study. `InProcess` is the default and runs one fit at a time on the cores that `layout` gives it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from ddstudy.errors import StoppedError, UserError, WorkError
from ddstudy.priors.deep_decoder import DeepDecoder
from ddstudy.solvers import fused
from ddstudy.spec.options import FitSpec, rows_and_columns
from ddstudy.study.evaluate import Check, Ending, Job, Result, evaluate, evaluate_together, is_stopped


@dataclass(frozen=True)
class Started:
    """A job has begun on a worker, whose name is for people, and on a torch device."""

    worker: str
    device: str = ""


@dataclass(frozen=True)
class Finished:
    """A job has ended."""


@dataclass(frozen=True)
class Failed:
    """A job could not be done: infrastructure, never instability.

    Attributes:
        why: in one line, for people.
        log: all that is known, for a search for the cause.
        shared: other fits ran on its device.
        kind: `memory` was short, its machine was `lost`, which says nothing about the job, or any other `error`.
    """

    why: str
    log: str = ""
    shared: bool = False
    kind: Literal["error", "memory", "lost"] = "error"


@dataclass(frozen=True)
class Workers:
    """Workers came or went, under an empty ticket: there are so many slots now, on devices of this name."""

    slots: int
    note: str
    device: str = ""


Event = Started | Check | Result | Finished | Failed | Workers


class Executor(Protocol):
    """Runs jobs; every submitted job ends with `Finished` or `Failed`."""

    @property
    def slots(self) -> int:
        """Jobs, or packs of them, that run at the same time, by now."""

    def room(self, job: Job) -> int:
        """How many jobs of this one's kind are done fastest as one pack here, its `joint` at least."""

    def submit(self, ticket: str, job: Job) -> None:
        """Adds a job under a name of the caller's choice."""

    def submit_together(self, jobs: Mapping[str, Job]) -> None:
        """Adds jobs of one kind as a pack; each has its own events and its own end."""

    def cancel(self, ticket: str) -> None:
        """Ends a job early; its next event is `Finished`, or one that was on its way."""

    def expect(self, jobs: int) -> None:
        """Tells how many more jobs could run now; an executor that can get more slots does so for them."""

    def events(self) -> Iterator[tuple[str, Event]]:
        """The events of all jobs as they come, until none is left; jobs may be added meanwhile."""

    def close(self) -> None:
        """Stops what still runs."""


def usable_cores() -> int:
    """Cores that this process may use: its affinity, or the share that its control group has, rounded.

    psutil knows no control groups; joblib rounds 1.2 cores up to 2 and looks at the root group only, which outside of
    containers (systemd, Slurm) has no limit.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _control_group("cpu.max").split()
    if len(quota) == 2 and quota[0].isdecimal():
        cores = min(cores, max(1, round(int(quota[0]) / int(quota[1]))))
    return cores


def usable_memory(*, swap: bool = False) -> float:
    """Bytes that fits may take here: what is free, within the limit of the control group; infinite if unknown.

    Args:
        swap: count what the system can make free by swapping, too.
    """
    try:
        with open("/proc/meminfo") as meminfo:
            lines = {line.partition(":")[0]: 1024 * int(line.split()[1]) for line in meminfo}
        free, spare = lines["MemAvailable"], lines["SwapFree"] if swap else 0
    except (OSError, KeyError):
        return float("inf")
    limit, used = _control_group("memory.max").strip(), _control_group("memory.current").strip()
    if limit.isdecimal() and used.isdecimal():
        stat = dict(line.split() for line in _control_group("memory.stat").splitlines())
        cached = sum(int(stat.get(name, 0)) for name in ("active_file", "inactive_file"))  # freed when it is needed
        free = min(free, int(limit) - int(used) + cached)
    return free + spare


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
    cores: int | None = None,
    memory: float | None = None,
) -> Layout:
    """Fills the cores: one fit on as many threads as it has members, then further fits beside it.

    Threads take the member that is most behind, so one fit keeps as many cores busy as it has members, and its seconds
    stay comparable; so several run only where cores are left over. A GPU takes one fit at a time, and so does the
    reference engine, whose memory was never measured.

    Args:
        spec: of the study.
        device: where fits run.
        exclusive: seconds are an objective: never more than one fit at a time.
        bytes_per_fit: memory of the largest fit, asked for where it decides; workers are fewer where memory is short.
        workers: the user's wish.
        threads: the user's wish.
        cores: of another machine.
        memory: bytes that are free on it.

    Raises:
        UserError: several fits at a time were asked for while seconds are an objective.
    """
    if exclusive and (workers or 1) > 1:
        raise UserError(
            "--workers: fits that share a processor cannot be timed, and seconds are an objective of this study",
            "Valid: --workers 1.",
        )
    cores = cores or usable_cores()
    if threads is None:
        threads = min(spec.members, max(1, cores // (workers or 1)))
    if workers is None:
        alone = exclusive or device != "cpu" or spec.engine == "reference"
        workers = 1 if alone else max(1, cores // threads)
        if workers > 1:
            free = usable_memory() if memory is None else memory
            workers = max(1, min(workers, int(free * 0.8 // bytes_per_fit())))
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


def careful(job: Job, *, device: str, threads: int, stop: threading.Event | None = None) -> Iterator[Check | Result]:
    """`evaluate`, if there is memory for the fit: else the system would kill the whole run.

    Raises:
        NoMemoryError: the fit needs more memory than is free on its device.
    """
    _need_memory([job], device, threads)
    yield from evaluate(job, device=device, threads=threads, stop=stop)


def careful_together(
    jobs: Sequence[Job], *, device: str, threads: int, stops: Sequence[threading.Event]
) -> Iterator[tuple[int, Check | Result | None]]:
    """`evaluate_together`, likewise."""
    _need_memory(jobs, device, threads)
    yield from evaluate_together(jobs, device=device, threads=threads, stops=stops)


def _need_memory(jobs: Sequence[Job], device: str, threads: int) -> None:
    first, on_gpu = jobs[0], device.startswith("cuda")
    prior = first.model
    if first.method(device).engine != "fused":  # the memory of others was never measured
        return
    assert isinstance(prior, DeepDecoder)
    rows, columns = rows_and_columns(first.fit.tiling)
    members = sum(job.options.members for job in jobs) // first.joint
    kernels = fused.kernels_for(device) if on_gpu else None
    samples = first.width * first.case.measurement.operated
    need = fused.memory(prior, rows * columns, members, threads, kernels, config=first.config, samples=samples)
    if need > (free := _free_on_gpu(device) if on_gpu else usable_memory(swap=True)):
        raise NoMemoryError(f"the fit needs {need / 1e9:.2f} GB of memory, {free / 1e9:.2f} GB are free")


class NoMemoryError(WorkError):
    """A fit was not begun, since its device has too little memory for it."""


_NO_MEMORY = 2  # of CUDA's error codes
# how libraries that raise a plain RuntimeError begin to say it: torch on the processor, Triton, cuBLAS
_NO_MEMORY_TEXTS = ("DefaultCPUAllocator: ", "Triton Error [CUDA]: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_short_of_memory(error: BaseException) -> bool:
    """Whether an exception tells of memory that was not there, of the processor or a GPU."""
    import torch

    if isinstance(error, MemoryError | NoMemoryError | torch.OutOfMemoryError):
        return True
    if getattr(error, "error_code", None) == _NO_MEMORY:  # of torch.AcceleratorError, which came with torch 2.8
        return True
    return type(error) is RuntimeError and any(text in str(error) for text in _NO_MEMORY_TEXTS)


def failure(error: BaseException, log: str, *, shared: bool) -> Failed:
    """What is told of a job that ended with an exception."""
    return Failed(describe(error), log, shared, "memory" if is_short_of_memory(error) else "error")


def describe(error: BaseException) -> str:
    """An exception in one line."""
    kind = "" if isinstance(error, WorkError) else f"{type(error).__name__}: "
    return f"{kind}{error}".strip().partition("\n")[0][:500]


def room_on(device: str, job: Job, workers: int) -> int:
    """How many fits like a job's fill a device together, by its free memory; see `Executor.room`.

    On the processor a pack gains nothing: members are computed one by one there (benchmarks/layout.py).

    Args:
        device: a torch device.
        job: one of them.
        workers: packs that run there at the same time.
    """
    prior, members = job.model, job.options.members
    if job.method(device).engine != "fused" or not device.startswith("cuda"):
        return job.joint
    import torch

    free = _free_on_gpu(device)
    held = torch.cuda.memory_allocated(device)  # by fits that run beside
    assert isinstance(prior, DeepDecoder)
    rows, columns = rows_and_columns(job.fit.tiling)
    samples, room = job.joint * job.case.measurement.operated, min(free, (free + held) / workers)
    most = fused.capacity(prior, rows * columns, device, room, config=job.config, samples=samples)
    return job.joint * max(1, most // members)


def _free_on_gpu(device: str) -> float:
    """Bytes of a GPU that a fit may take: what is free, and what torch keeps of fits that are over."""
    import torch

    reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return float(torch.cuda.mem_get_info(device)[0] + reusable)


class InProcess:
    """One fit, or one pack, at a time, in this thread: nothing else runs while a fit is timed.

    Args:
        threads: of a fit.
        stop: set by the caller to end all jobs soon; `events` then raises `StoppedError`.
    """

    slots = 1

    def __init__(self, threads: int, stop: threading.Event | None = None) -> None:
        self._threads = threads
        self._stop = stop
        self._waiting: deque[dict[str, Job]] = deque()
        self._stops: dict[str, threading.Event] = {}

    def room(self, job: Job) -> int:
        """See `Executor`."""
        return room_on(resolve_device(job.options.device), job, self.slots)

    def submit(self, ticket: str, job: Job) -> None:
        """See `Executor`."""
        self.submit_together({ticket: job})

    def submit_together(self, jobs: Mapping[str, Job]) -> None:
        """See `Executor`."""
        for job in jobs.values():
            resolve_device(job.options.device)
        self._waiting.append(dict(jobs))

    def cancel(self, ticket: str) -> None:
        """See `Executor`."""
        self._stops[ticket].set()

    def expect(self, jobs: int) -> None:
        """See `Executor`."""

    def events(self) -> Iterator[tuple[str, Event]]:
        """See `Executor`."""
        while self._waiting:
            jobs = self._waiting.popleft()
            self._stops = {ticket: Ending(self._stop) for ticket in jobs}
            for ticket, event in pack_events(jobs, self._stops, socket.gethostname(), self._threads):
                if isinstance(event, UserError):
                    raise event
                raise_if_stopped(self._stop, event)
                yield ticket, event

    def close(self) -> None:
        """See `Executor`."""
        self._waiting.clear()


class Threads:
    """Several fits at a time, each in a thread: compiled kernels and torch leave Python's lock to the others.

    Args:
        layout: fits at a time, and threads of each.
        stop: as for `InProcess`.
    """

    def __init__(self, layout: Layout, stop: threading.Event | None = None) -> None:
        self._stop = stop
        self.slots = layout.workers
        self._threads = layout.threads
        self._pool = ThreadPoolExecutor(layout.workers)
        self._queue: queue.SimpleQueue[tuple[str, Event | UserError]] = queue.SimpleQueue()
        self._stops: dict[str, threading.Event] = {}
        self._names: queue.SimpleQueue[str] = queue.SimpleQueue()
        for index in range(layout.workers):
            self._names.put(f"{socket.gethostname()} {index + 1}")

    def room(self, job: Job) -> int:
        """See `Executor`."""
        return room_on(resolve_device(job.options.device), job, self.slots)

    def submit(self, ticket: str, job: Job) -> None:
        """See `Executor`."""
        self.submit_together({ticket: job})

    def submit_together(self, jobs: Mapping[str, Job]) -> None:
        """See `Executor`."""
        stops: dict[str, threading.Event] = {ticket: Ending(self._stop) for ticket in jobs}
        for job in jobs.values():
            resolve_device(job.options.device)
        self._stops |= stops
        self._pool.submit(self._fit, dict(jobs), stops)

    def _fit(self, jobs: Mapping[str, Job], stops: Mapping[str, threading.Event]) -> None:
        name = self._names.get()
        for ticket, event in pack_events(jobs, stops, name, self._threads, shared=True):
            self._queue.put((ticket, event))
        self._names.put(name)

    def cancel(self, ticket: str) -> None:
        """See `Executor`."""
        self._stops[ticket].set()

    def expect(self, jobs: int) -> None:
        """See `Executor`."""

    def events(self) -> Iterator[tuple[str, Event]]:
        """See `Executor`."""
        while self._stops:
            ticket, event = self._queue.get()
            if isinstance(event, UserError):
                raise event
            raise_if_stopped(self._stop, event)
            if isinstance(event, Finished | Failed):
                del self._stops[ticket]
            yield ticket, event

    def close(self) -> None:
        """See `Executor`."""
        for stop in self._stops.values():
            stop.set()
        self._pool.shutdown(cancel_futures=True)


def raise_if_stopped(stop: threading.Event | None, event: Event) -> None:
    """Ends an executor's events where its caller wants no more; a result that is there is handed over first."""
    if is_stopped(stop) and not isinstance(event, Result):
        raise StoppedError("stopped")


def pack_events(
    jobs: Mapping[str, Job], stops: Mapping[str, threading.Event], worker: str, threads: int, *, shared: bool = False
) -> Iterator[tuple[str, Event | UserError]]:
    """The events of a pack under its jobs' tickets, each from its start to its end or its failure.

    An exception fails all jobs that were still running; the caller tries each of them again, alone.

    Args:
        jobs: of one kind, under their tickets; one alone is a pack, too.
        stops: of each, an event that ends it early.
        worker: name for people.
        threads: of the fit.
        shared: whether other fits run on its device.
    """
    tickets = list(jobs)
    device = resolve_device(jobs[tickets[0]].options.device)
    for ticket in tickets:
        yield ticket, Started(worker, device)
    work = careful_together(
        list(jobs.values()), device=device, threads=threads, stops=[stops[ticket] for ticket in tickets]
    )
    for index, event in _guarded(work, len(jobs), shared or len(jobs) > 1):
        yield tickets[index], event


def work_events(work: Iterator[Check | Result], *, shared: bool = False) -> Iterator[Event | UserError]:
    """A fit's events with its end or its failure; a mistake of the user's comes as the last.

    Args:
        work: `evaluate` of a job.
        shared: whether other fits run on its device.
    """

    def alone() -> Iterator[tuple[int, Check | Result | None]]:
        for event in work:
            yield 0, event
        yield 0, None

    return (event for _, event in _guarded(alone(), 1, shared))


def _guarded(
    work: Iterator[tuple[int, Check | Result | None]], jobs: int, shared: bool
) -> Iterator[tuple[int, Event | UserError]]:
    going = set(range(jobs))
    with contextlib.closing(work):  # type: ignore[type-var]  # a generator has close()
        while going:
            try:
                index, event = next(work)
            except UserError as error:
                yield min(going), error
                return
            except Exception as error:  # whatever a device or library raises, the study goes on
                failed = failure(error, traceback.format_exc(), shared=shared)
                yield from ((index, failed) for index in sorted(going))
                return
            if event is None:
                going.remove(index)
                yield index, Finished()
            else:
                yield index, replace(event, shared=shared) if isinstance(event, Result) else event
