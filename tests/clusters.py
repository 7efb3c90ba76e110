"""Real Ray clusters for tests: several nodes on this machine, whose workers and nodes can be killed, and stub fits."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddstudy.evaluate import Check, Job, Measurement
from ddstudy.ray_pool import Ray, Wish
from ddstudy.spec import ExecutorSpec, FitSpec

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

# workers find this module, whose stub fits they run
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
SMALL = {"object_store_memory": 80 * 2**20, "include_dashboard": False}


@contextlib.contextmanager
def cluster(nodes: int = 1, cpus: int = 1, **head: Any) -> "Iterator[Cluster]":
    """Nodes with some processors each; the first is the head."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus, **SMALL, **head})
    try:
        for _ in range(nodes - 1):
            add_node(made, cpus)
        yield made
    finally:
        made.shutdown()


def add_node(cluster: "Cluster", cpus: int = 1) -> Any:
    return cluster.add_node(num_cpus=cpus, object_store_memory=SMALL["object_store_memory"])


def wish(address: str, fit: FitSpec | None = None, **changes: Any) -> Wish:
    fit = fit or FitSpec(members=2, device="cpu")
    spec = ExecutorSpec(kind="ray", address=address)
    return Wish(fit, spec, timed=False, bytes_per_fit=partial(float, 1), **changes)


def executor(address: str, work: Callable[..., Any] | None = None) -> Ray:
    return Ray(wish(address, **({"work": work} if work else {})))


def kill_worker(fit_id: str) -> None:
    """SIGKILL to the worker that is fitting something: Ray calls processes after what they do."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cmdline").read_bytes().startswith(f"ray::{fit_id}".encode()):
                os.kill(int(process.name), signal.SIGKILL)
                return
    raise LookupError(fit_id)


def nothing(job: Job, *, device: str, threads: int, stop: threading.Event) -> Iterator[Check | Measurement]:
    """A fit that takes no time."""
    for budget in job.budgets:
        values: dict[str, float | int | str] = {"seconds": 0.0, "psnr": 1.0, "iterations_done": budget}
        yield Check(budget, 0.0, (1.0, 1.0))
        yield Measurement(
            budget, values, np.zeros((1, 1, 1), np.float32), {"iterations": [], "psnr_members": []}, False
        )


def out_of_memory(job: Job, *, device: str, threads: int, stop: threading.Event) -> Iterator[Check | Measurement]:
    """k = 2: the fit notices; k = 3: the kernel ends it, as it ends processes that take too much; else all is well."""
    if job.fit.k == 2:
        raise MemoryError("no memory is left")
    if job.fit.k == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    yield from nothing(job, device=device, threads=threads, stop=stop)


def environment(job: Job, *, device: str, threads: int, stop: threading.Event) -> Iterator[Check | Measurement]:
    """What a worker could read of whoever started it."""
    own = b"\n".join(Path(f"/proc/{pid}/{file}").read_bytes() for pid in (os.getpid(), os.getppid())
                     for file in ("environ", "cmdline"))  # fmt: skip
    values: dict[str, float | int | str] = {"environment": own.decode(errors="replace")}
    yield Measurement(1, values, np.zeros((1, 1, 1), np.float32), {}, False)


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    """Waits for something that nobody tells of."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "never happened"
        time.sleep(0.05)
