"""Fits on a Ray cluster: a pool of workers, one per slot, that grows and shrinks with the cluster.

Ray lives in a process of its own beside the driver. When a cluster is gone, Ray ends the process that was connected to
it, without asking; the driver outlives that, says so in one line and keeps its leases in order until then. And the
command line and environment of that process, which the cluster sees, hold no password of the store.

`Ray` is the executor in the driver. `serve` is the other process: a `_Pool`, in which every slot is a coroutine that
makes its worker, hands it one job after another and passes on what comes back. `_Worker` is the actor.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ddstudy.errors import StoppedError, UserError, WorkError
from ddstudy.execution.executors import (
    Event,
    Failed,
    Finished,
    Started,
    Workers,
    careful,
    describe,
    failure,
    layout,
    raise_if_stopped,
    usable_cores,
    work_events,
)
from ddstudy.spec.options import FitSpec
from ddstudy.spec.schema import ExecutorSpec
from ddstudy.study.evaluate import Check, Job, Result, device_name
from ddstudy.tasks.cases import Case

LOOK_SECONDS = 1.0  # between looks at the nodes of the cluster
STOP_SECONDS = 0.2  # between looks whether the caller wants an end, while nothing comes
TOGETHER_SECONDS = 0.05  # events that follow each other faster travel together
PATIENCE_SECONDS = 600.0  # without any worker: nodes of a cloud may take minutes to start
SILENCE_SECONDS = 10.0  # without any worker, before the user is told what is waited for
CONTEXT_BYTES = 1e9  # of CUDA and its libraries in each process; a cautious guess, nothing was measured
TRIES = 3  # of starting a worker, before its slot is given up
ANSWER_SECONDS = 5.0  # of a cluster that is asked whether it is there
GONE = "the Ray cluster is gone"
KEPT = "What was finished is kept; the same command goes on."

Work = Callable[..., Iterator[Check | Result]]


@dataclass(frozen=True)
class Wish:
    """What a study wants of a cluster.

    Attributes:
        fit: members, device and engine of its fits.
        executor: address, and how GPUs are shared.
        timed: seconds are an objective: a fit has its device to itself, and all devices are of one kind.
        bytes_per_fit: memory of the largest fit on the processor; asked for where it decides.
        bytes_on_gpu: of the largest fit on a GPU, likewise.
        work: what a worker does with a job.
        idle_seconds: of a worker that no job is left for, until it leaves its node to others or to an autoscaler.
    """

    fit: FitSpec
    executor: ExecutorSpec
    timed: bool
    bytes_per_fit: Callable[[], float]
    bytes_on_gpu: Callable[[], float]
    work: Work = careful
    idle_seconds: float = 60.0


@dataclass(frozen=True)
class Place:
    """A slot on a node.

    Attributes:
        device: `cuda` or `cpu`.
        resources: what Ray sets aside for it: `num_cpus` and `num_gpus`.
        threads: of a fit.
        shared: whether other fits run on the same device.
    """

    device: str
    resources: dict[str, float]
    threads: int
    shared: bool


class Ray:
    """Fits on the workers of a Ray cluster.

    Args:
        wish: what the study wants.
        tell: is told what is waited for before the first worker is there.
        stop: set by the caller to end all jobs soon; `events` then raises `StoppedError`.

    Attributes:
        slots: workers by now.
        device: name of their devices; of those of the first worker if the cluster has several kinds.

    Raises:
        UserError: there is no such cluster, or it cannot do what the study wants.
        WorkError: no worker starts.
    """

    def __init__(self, wish: Wish, tell: Callable[[str], object], stop: threading.Event | None = None) -> None:
        if importlib.util.find_spec("ray") is None:  # importing it would take a second, and is the other process' part
            raise UserError("executor.kind = 'ray': ray is not installed", "Install it: pip install 'ddstudy[ray]'.")
        self.slots = 0
        self._stop = stop
        self.device = ""
        self._jobs: set[str] = set()
        self._expected = 0
        self._cases: dict[int, Case] = {}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (of the process, which outlives this function)
        ours, theirs = socket.socketpair()
        with theirs:
            # it imports what this process imports; neither it nor Ray's workers, which inherit its folder, import from
            # the user's folder: a queue.py or numpy.py there is not the library
            begin = f"import sys; sys.path[:] = {sys.path!r}; from ddstudy.execution.ray_pool import serve"
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", f"{begin}; serve({theirs.fileno()})"],
                pass_fds=[theirs.fileno()],
                cwd=Path(__file__).parents[2],
                env=environment_for_ray(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
            )
        self._pipe = Connection(ours.detach())
        try:
            self._pipe.send(wish)
            while not self.slots:
                for event in self._receive()[1]:
                    if isinstance(event, Workers) and not event.slots:
                        tell(event.note)
        except BaseException:
            self.close()
            raise

    def room(self, job: Job) -> int:
        """See `Executor`; a worker does one job at a time."""
        return 1

    def submit_together(self, jobs: Mapping[str, Job]) -> None:
        """See `Executor`."""
        for ticket, job in jobs.items():
            self.submit(ticket, job)

    def submit(self, ticket: str, job: Job) -> None:
        """See `Executor`."""
        key = id(job.case)
        if key not in self._cases:
            self._cases[key] = job.case  # kept, so that no other takes its place
            self._send("case", key, job.case)
        self._jobs.add(ticket)
        parts = {field.name: getattr(job, field.name) for field in fields(job) if field.name != "case"}
        self._send("submit", ticket, key, parts)

    def cancel(self, ticket: str) -> None:
        """See `Executor`."""
        self._send("cancel", ticket)

    def expect(self, jobs: int) -> None:
        """See `Executor`."""
        if jobs != self._expected:
            self._expected = jobs
            self._send("expect", jobs)

    def events(self) -> Iterator[tuple[str, Event]]:
        """See `Executor`."""
        while self._jobs:
            ticket, events = self._receive()
            for event in events:
                if isinstance(event, Finished | Failed):
                    self._jobs.discard(ticket)
                raise_if_stopped(self._stop, event)
                yield ticket, event

    def close(self) -> None:
        """See `Executor`."""
        self._jobs.clear()
        self._pipe.close()  # which ends the other process
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _send(self, *message: Any) -> None:
        with contextlib.suppress(OSError):  # it is gone; why is the next thing that we receive
            self._pipe.send(message)

    def _receive(self) -> tuple[str, list[Event]]:
        try:
            while self._stop is not None and not self._pipe.poll(STOP_SECONDS):
                if self._stop.is_set():
                    raise StoppedError("stopped")
            ticket, events = self._pipe.recv()
        except (EOFError, OSError):
            raise WorkError(f"{GONE}{self._last_words()}\n{KEPT}") from None
        for event in events:
            if isinstance(event, Workers):
                self.slots, self.device = event.slots, self.device or event.device
            if isinstance(event, Exception):
                raise event
        return ticket, events

    def _last_words(self) -> str:
        """The last line that the other process wrote to stderr, if it failed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        words = next((line.strip() for line in reversed(lines) if line.strip()), "")
        words = re.sub(r"^\[[^]]*\] \S+:\d+: ", "", words)  # time, process and source line
        return f": {textwrap.shorten(words, 160, placeholder=' ..')}" * bool(words)


def environment_for_ray() -> dict[str, str]:
    """Our environment without what opens the store: workers of a cluster that we start would inherit it."""
    environment = {key: value for key, value in os.environ.items() if key != "DDSTUDY_STORE" and key[:2] != "PG"}
    # a worker without a GPU says which device it computes on; Ray warns that it hides all GPUs from such a one
    environment["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    return environment


def places(resources: dict[str, float], wish: Wish, device: str) -> list[Place]:
    """The slots of a node.

    Args:
        resources: of the node, as Ray counts them: `CPU`, `GPU`, `memory` in bytes.
        wish: of the study.
        device: `cuda`, `cpu`, or `auto` for GPUs where the node has any and else its processor.
    """
    cpus, gpus = int(resources.get("CPU", 0)), resources.get("GPU", 0)
    share = wish.executor.gpus_per_fit
    if device != "cpu" and gpus >= 1:
        # Ray never spreads a fraction over two devices
        count = int(gpus) * int(1 / share + 1e-9)
        own = {"num_cpus": 1.0 if cpus >= count else 0.0, "num_gpus": share}
        return [Place("cuda", own, max(1, min(wish.fit.members, cpus // count)), share < 1)] * count
    if device == "cuda" or not cpus:
        return []
    cores = layout(
        wish.fit, "cpu", exclusive=wish.timed, bytes_per_fit=wish.bytes_per_fit, cores=cpus,
        memory=resources.get("memory"),
    )  # fmt: skip
    # a fit with a node to itself takes all of its cores, so that no other driver's fits run beside it
    own = {"num_cpus": float(cpus if cores.workers == 1 else cores.threads), "num_gpus": 0.0}
    return [Place("cpu", own, cores.threads, cores.workers > 1)] * cores.workers


class _Worker:
    """The actor: fits one job after another.

    Args:
        place: what it has.
        work: what it does with a job.
    """

    def __init__(self, place: Place, work: Work) -> None:
        self._place, self._work = place, work
        self._stop = threading.Event()
        self._ticket = ""

    def device(self) -> tuple[str, float]:
        """Name of its device, and bytes of its whole GPU or 0."""
        name, memory = device_name(self._place.device), 0.0
        if self._place.device == "cuda":
            import torch

            memory = float(torch.cuda.get_device_properties(0).total_memory)
        return name, memory

    def stop(self, ticket: str) -> None:
        """Ends a job soon, if it still runs."""
        if ticket == self._ticket:
            self._stop.set()

    def fit(self, ticket: str, case: Case, parts: dict[str, Any]) -> Iterator[list[Event | UserError]]:
        """The events of a job, those together that come together."""
        self._stop.clear()
        self._ticket = ticket
        job = Job(case=case, **parts)
        # the processor is asked for where the GPU failed
        device = "cpu" if job.options.device == "cpu" else self._place.device
        work = self._work(job, device=device, threads=self._place.threads, stop=self._stop)
        batch: list[Event | UserError] = []
        told = time.monotonic()
        for event in work_events(work, shared=self._place.shared):
            batch.append(event)
            if time.monotonic() - told > TOGETHER_SECONDS:
                yield batch
                batch, told = [], time.monotonic()
        if batch:
            yield batch


def serve(descriptor: int) -> None:
    """The process beside the driver: connects to the cluster, and ends with the driver's end of the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which then closes the pipe
    pipe = Connection(descriptor)
    pool = _Pool(pipe, pipe.recv())
    try:
        asyncio.run(pool.run())
    except (UserError, WorkError) as error:
        pool.tell("", [error])
    except Exception:  # a fault of ours: the driver raises it with its traceback, which would end here
        pool.tell("", [RuntimeError(traceback.format_exc())])
    finally:
        pool.leave()


class _Pool:
    """The slots of a cluster and the jobs that wait for one."""

    def __init__(self, pipe: Connection, wish: Wish) -> None:
        import ray

        self._ray: Any = ray
        self._pipe, self._wish = pipe, wish
        self._cases: dict[int, Any] = {}
        self._waiting: asyncio.Queue[tuple[str, int, Any]] = asyncio.Queue()
        self._running: dict[str, Any] = {}  # ticket -> worker
        self._cancelled: set[str] = set()
        self._nodes: dict[str, list[asyncio.Task[None]]] = {}
        self._slots = 0
        self._device_name = ""  # of the first worker
        self._begun = False
        self._expected = 0
        self._requests: list[Any] = []
        self._given_up = ""
        self._number = itertools.count(1)  # of the slots
        self._end: asyncio.Future[None]

    # the driver's side

    def tell(self, ticket: str, events: list[Any]) -> None:
        """Sends events to the driver."""
        with contextlib.suppress(OSError):
            self._pipe.send((ticket, events))

    def leave(self) -> None:
        """Leaves the cluster, or ends the one that was started here."""
        self._ray.shutdown()

    def _listen(self) -> None:
        """Does what the driver says, message by message."""
        try:
            while self._pipe.poll():
                what, *arguments = self._pipe.recv()
                getattr(self, f"_on_{what}")(*arguments)
        except (EOFError, OSError):
            if not self._end.done():
                self._end.set_result(None)
        except Exception as error:  # the event loop would only log it: `run` raises it
            if not self._end.done():
                self._end.set_exception(error)

    def _on_case(self, key: int, case: Case) -> None:
        try:
            self._cases[key] = self._ray.put(case)
        except self._ray.exceptions.RayError as error:
            raise WorkError(f"the measurement does not fit into Ray's object store: {describe(error)}") from None

    def _on_submit(self, ticket: str, case: int, parts: dict[str, Any]) -> None:
        self._cancelled.discard(ticket)
        self._waiting.put_nowait((ticket, case, parts))

    def _on_cancel(self, ticket: str) -> None:
        if ticket in self._running:
            self._running[ticket].stop.options(concurrency_group="control").remote(ticket)
        else:
            self._cancelled.add(ticket)

    def _on_expect(self, jobs: int) -> None:
        self._expected = jobs

    # the cluster's side

    async def run(self) -> None:
        """Keeps the slots in step with the nodes until the driver leaves."""
        loop = asyncio.get_running_loop()
        self._end = loop.create_future()
        self._connect()
        loop.add_reader(self._pipe.fileno(), self._listen)
        device, since, told = self._device(), time.monotonic(), False
        while not self._end.done():
            try:
                nodes = await asyncio.to_thread(self._ray.nodes)
            except Exception:  # Ray raises many kinds for a lost head, and soon ends this process
                raise WorkError(f"{GONE}\n{KEPT}") from None
            self._follow({node["NodeID"]: node for node in nodes if node["Alive"]}, device)
            self._request_slots(device)
            if self._slots:
                since = time.monotonic()
            elif self._given_up and not any(not task.done() for tasks in self._nodes.values() for task in tasks):
                raise WorkError(f"no worker starts: {self._given_up}\nEvery node needs ddstudy; see docs/ray.md.")
            elif time.monotonic() - since > PATIENCE_SECONDS:
                raise WorkError("the Ray cluster has no worker for this study\nThe same command goes on once it has.")
            elif time.monotonic() - since > SILENCE_SECONDS and not self._begun and not told:
                what = {"cuda": "GPUs", "cpu": "processors"}.get(device, "devices")
                why = f"all {what} of the Ray cluster are in use, or a node is still starting"
                self.tell("", [Workers(0, f"Waiting for a worker, up to {PATIENCE_SECONDS / 60:.0f} minutes: {why}.")])
                told = True
            await asyncio.wait([self._end], timeout=LOOK_SECONDS)
        self._end.result()

    def _connect(self) -> None:
        address = self._wish.executor.address or os.environ.get("RAY_ADDRESS") or "local"
        valid = "Valid: local, auto (a cluster started with `ray start`) or HOST:PORT."
        if not os.environ.get("RAY_AUTH_MODE"):  # `ray start` uses tokens where it finds one, who connects must say so
            valid += " A cluster that wants a token needs RAY_AUTH_MODE=token."
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address == "local":
            options |= {"num_cpus": usable_cores(), "include_dashboard": False}
        try:
            found = address
            if address == "auto":  # private: in public Ray says what `auto` is only once it is connected
                found = self._ray._private.services.canonicalize_bootstrap_address(address)
            if found.startswith("ray://"):
                why = f"{found}: fits stream back, which Ray's client cannot"
                raise UserError(why, f"{valid} Or `ray job submit`.")
            if found != "local":
                _check_head(found)
            self._ray.init(address=found, **options)
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # of many kinds: connection, version, address
            where = f"'{address}'" if found == address else f"'{address}', which is {found} here"
            raise UserError(f"no Ray cluster at {where}: {describe(error)}", valid) from None

    def _device(self) -> str:
        """Which devices the study uses: of `auto`, GPUs if the cluster has any now, and processors else."""
        wanted = self._wish.fit.device
        if wanted not in ("auto", "cpu", "cuda"):
            raise UserError(f"fit.device: Ray chooses among devices, {wanted} is one", "Valid on Ray: auto, cpu, cuda.")
        if wanted == "auto" and not self._wish.executor.mix:
            return "cuda" if self._ray.cluster_resources().get("GPU", 0) >= 1 else "cpu"
        return wanted

    def _follow(self, alive: dict[str, Any], device: str) -> None:
        for node, found in alive.items():
            if node not in self._nodes:
                slots = places(found["Resources"], self._wish, device)
                names = (f"{found['NodeManagerHostname']} {place.device} {next(self._number)}" for place in slots)
                tasks = [self._run_slot(node, *slot) for slot in zip(names, slots, strict=True)]
                self._nodes[node] = [asyncio.create_task(task) for task in tasks]
                for task in self._nodes[node]:
                    task.add_done_callback(self._on_end_of_slot)
        for node in self._nodes.keys() - alive.keys():
            for task in self._nodes.pop(node):
                task.cancel()

    def _on_end_of_slot(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (fault := task.exception()) and not self._end.done():
            self._end.set_exception(fault)

    def _request_slots(self, device: str) -> None:
        """Lets an autoscaler see what is wanted: tasks that need a further slot each, and end where they find one.

        At most as many as there are slots, so that a cluster doubles at a time. They end with this process, which a
        request to the autoscaler itself would not.
        """
        if self._requests:
            self._requests = self._ray.wait(self._requests, num_returns=len(self._requests), timeout=0)[1]
        wanted = min(self._expected + self._waiting.qsize(), self._slots) if self._slots else 1
        while len(self._requests) > wanted:
            self._ray.cancel(self._requests.pop())
        needs = {"num_gpus": self._wish.executor.gpus_per_fit} if device == "cuda" else {"num_cpus": 1}
        if len(self._requests) < wanted:
            task = self._ray.remote(_nothing).options(**{"num_cpus": 0} | needs, max_retries=0)
            self._requests += [task.remote() for _ in range(wanted - len(self._requests))]

    async def _run_slot(self, node: str, name: str, place: Place) -> None:
        """One slot: makes its worker, gives it job after job, and makes another when it dies."""
        failures = 0
        while failures < TRIES:
            worker = self._start_worker(node, place)
            try:
                device, memory = await worker.device.remote()
            except self._ray.exceptions.RayError as error:
                failures, self._given_up = failures + 1, str(error).strip().splitlines()[-1]
                continue
            failures = 0
            if not self._comparable(name, device) or not await self._fits(place, memory):
                return
            self._count(1, f"{name} came")
            outcome = "is gone"  # also where the node is lost, and this slot with it
            try:
                while (work := await self._next()) is not None and await self._job(name, worker, work, place):
                    pass
                outcome = outcome if work else "is left to others"
            finally:
                self._count(-1, f"{name} {outcome}")
            self._ray.kill(worker)
            while work is None and not self._expected and self._waiting.empty():
                await asyncio.sleep(LOOK_SECONDS)

    async def _next(self) -> tuple[str, int, Any] | None:
        """The next job; None if there is none for long and none is expected, though not for the last worker."""
        while True:
            try:
                return await asyncio.wait_for(self._waiting.get(), self._wish.idle_seconds)
            except TimeoutError:
                if not self._expected and self._slots > 1:
                    return None

    def _comparable(self, name: str, device: str) -> bool:
        """Whether seconds on a device are seconds of this study, if it compares any."""
        self._device_name = self._device_name or device
        if not self._wish.timed or device == self._device_name:
            return True
        why = f"{name} stays idle: seconds are an objective, and it is no {self._device_name} but {device}"
        self.tell("", [Workers(self._slots, why)])
        return False

    def _start_worker(self, node: str, place: Place) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        affinity = NodeAffinitySchedulingStrategy(node, soft=False)
        options = {"scheduling_strategy": affinity, "max_restarts": 0, **place.resources}
        actor = self._ray.remote(concurrency_groups={"control": 1})(_Worker).options(**options)
        return actor.remote(place, self._wish.work)

    async def _fits(self, place: Place, memory: float) -> bool:
        """Whether a fit has the memory that it needs in its share of a GPU."""
        share = place.resources["num_gpus"]
        if place.device != "cuda" or share >= 1:
            return True
        need = CONTEXT_BYTES + await asyncio.to_thread(self._wish.bytes_on_gpu)
        if need <= share * memory:
            return True
        wrong = f"executor.gpus_per_fit: the largest fit needs {need / 1e9:.1f} GB, {share:g} of a GPU has "
        self._given_up = f"{wrong}{share * memory / 1e9:.1f} GB"
        if not self._begun and not self._end.done():
            valid = f"Valid here: {min(1.0, need / memory + 0.005):.2f} to 1." if need < memory else "Valid here: 1."
            self._end.set_exception(UserError(self._given_up, valid))
        return False

    def _count(self, change: int, what: str) -> None:
        self._slots += change
        self.tell("", [Workers(self._slots, f"{what}: {self._slots} workers" * self._begun, self._device_name)])
        self._begun = True

    async def _job(self, name: str, worker: Any, work: tuple[str, int, Any], place: Place) -> bool:
        """Does one job; False if the worker is lost."""
        ticket, case, parts = work
        if ticket in self._cancelled:
            self._cancelled.discard(ticket)
            self.tell(ticket, [Finished()])
            return True
        self._running[ticket] = worker
        self.tell(ticket, [Started(name, "cpu" if parts["options"].device == "cpu" else place.device)])
        try:
            task = worker.fit.options(num_returns="streaming", name=parts["fit"].id)
            async for reference in task.remote(ticket, self._cases[case], parts):
                events = await reference
                if isinstance(events[-1], Finished | Failed | UserError):
                    del self._running[ticket]  # before the driver hears of it and uses the ticket again
                    self.tell(ticket, events)
                    break
                self.tell(ticket, events)
        except self._ray.exceptions.RayError as error:
            worker.stop.options(concurrency_group="control").remote(ticket)  # in case it still runs
            cause = await self._cause_of_death(worker)
            if self._running.get(ticket) is worker:
                del self._running[ticket]
                self.tell(ticket, [self._describe_loss(error, cause, place)])
            return cause is None
        finally:
            if self._running.get(ticket) is worker:  # the slot's node is gone, and the slot with it
                del self._running[ticket]
                self.tell(ticket, [Failed("its node was lost", kind="lost")])
        return True

    async def _cause_of_death(self, worker: Any) -> Exception | None:
        """What a worker died of; None if it lives."""
        while True:
            try:
                await worker.device.remote()
            except self._ray.exceptions.ActorUnavailableError:  # Ray does not know yet: a node may be away for a moment
                await asyncio.sleep(LOOK_SECONDS)
            except self._ray.exceptions.RayError as error:
                died: Exception = error
                return died
            else:
                return None

    def _describe_loss(self, error: Exception, cause: Exception | None, place: Place) -> Failed:
        """What the driver is told of a job that Ray lost."""
        log, known = f"{error}\n{cause or ''}".strip(), self._ray.exceptions
        # of an actor that died, Ray tells the cause in its message only
        if isinstance(error, known.OutOfMemoryError) or "low on memory" in log:
            return Failed("Ray ended its worker, since the node ran out of memory", log, place.shared, "memory")
        if isinstance(error, known.NodeDiedError) or "node has died" in log:
            return Failed("its node was lost", log, kind="lost")
        if cause is not None:
            return Failed("its worker was killed or crashed", log, place.shared)
        return failure(getattr(error, "cause", None) or error, log, shared=place.shared)


def _check_head(address: str) -> None:
    """Whether a cluster's head answers at HOST:PORT: where none does, Ray itself would try for minutes.

    Raises:
        OSError: nobody listens, or nobody answers as a server of gRPC does.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        return  # Ray says what is wrong with it
    with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS) as connection:
        if os.environ.get("RAY_USE_TLS") == "1":
            return
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        with contextlib.suppress(TimeoutError):
            if connection.recv(9)[3:4] == b"\4":  # both sides of HTTP/2 begin with their settings
                return
        raise ConnectionError("what listens there does not answer as Ray does")


def _nothing() -> None:
    """The task by which a slot is requested."""
