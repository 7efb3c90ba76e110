"""Real Ray clusters for tests: several nodes on this machine, whose workers and nodes can be killed, and stub fits."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddstudy.execution.executors import careful
from ddstudy.execution.ray_pool import Ray, Wish
from ddstudy.spec.options import FitSpec
from ddstudy.spec.schema import ExecutorSpec
from ddstudy.study.evaluate import Check, Job, Result

if TYPE_CHECKING:
    import pytest
    from ray.cluster_utils import Cluster

# workers find this module, whose stub fits they run
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
# a token in the home folder, which Ray makes at times, would close some of these clusters to us
os.environ["RAY_AUTH_MODE"] = "disabled"
SMALL = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
ALONE = {"no_monitor": True, "include_log_monitor": False}  # what a head starts beside itself and is not needed here
# a head looks after its nodes, otherwise every 3 seconds, and misses one five times before it is lost
WATCHFUL = {"_system_config": {"health_check_period_ms": 400, "health_check_initial_delay_ms": 500}}


@contextlib.contextmanager
def cluster(**head: Any) -> "Iterator[Cluster]":
    """A head with one processor."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **SMALL, **ALONE, **WATCHFUL, **head})
    try:
        yield made
    finally:
        made.shutdown()


@contextlib.contextmanager
def autoscaling(most: int, folder: Path) -> Iterator[str]:
    """A head without processors, and Ray's autoscaler, which starts nodes of one processor when they are wanted.

    Yields:
        The head's address.
    """
    from ray._private.services import get_node_ip_address

    host = get_node_ip_address()
    ports = [free_port(host) for _ in range(2)]
    head = f"{0:056x}"
    nodes = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "gcs_address": f"{host}:{ports[0]}",
        "head_node_id": head,
        "launch_multiple": True,
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    }
    kind = {"node_config": {}, "min_workers": 0}
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    lists = (*(f"{name}_commands" for name in commands), "cluster_synced_files", "rsync_exclude", "rsync_filter")
    config = {
        "cluster_name": "here",
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "upscaling_speed": 100.0,
        **{name: [] for name in lists},
        "max_workers": most,
        "idle_timeout_minutes": 0.02,
        "provider": nodes,
        "auth": {},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "max_workers": 0, **kind},
            "cpu": {"resources": {"CPU": 1, "object_store_memory": 80 * 2**20}, "max_workers": most, **kind},
        },
    }
    (folder / "autoscaler.json").write_text(json.dumps(config))
    ours = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_enable_autoscaler_v2": "0"}
    names = {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": head, "RAY_CLOUD_INSTANCE_ID": head}
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--disable-usage-stats", "--num-cpus=0"]
    command += [f"--autoscaling-config={folder}/autoscaler.json", f"--port={ports[0]}", f"--temp-dir={folder}"]
    command += [f"--dashboard-agent-listen-port={ports[1]}", "--include-dashboard=false"]
    try:
        started = subprocess.run(command, env=os.environ | ours | names, capture_output=True, text=True, timeout=60)
        assert started.returncode == 0, started.stdout + started.stderr
        yield f"{host}:{ports[0]}"
    finally:  # `ray stop` would end every cluster of this machine
        until(lambda: not kill(str(folder)))


def free_port(host: str) -> int:
    with socket.socket() as free:
        free.bind((host, 0))
        return int(free.getsockname()[1])


def kill(words: str) -> int:
    """SIGKILL to every process with these words in its command line; how many there were."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if words.encode() in (process / "cmdline").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)
                count += 1
    return count


def add_node(cluster: "Cluster", **how: Any) -> Any:
    return cluster.add_node(num_cpus=1, object_store_memory=SMALL["object_store_memory"], **how)


def wish(address: str, fit: FitSpec | None = None, **changes: Any) -> Wish:
    fit = fit or FitSpec(members=2, device="cpu")
    spec = ExecutorSpec(kind="ray", address=address)
    nothing_much = partial(float, 1)
    return replace(Wish(fit, spec, timed=False, bytes_per_fit=nothing_much, bytes_on_gpu=nothing_much), **changes)


def executor(address: str, tell: Callable[[str], object] = print, **changes: Any) -> Ray:
    return Ray(wish(address, **changes), tell)


def kill_worker(address: str, fit_id: str) -> bool:
    """SIGKILL to the worker of a cluster that is fitting something; False if none is any more.

    Ray calls processes after what they do.
    """
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cmdline").read_bytes().startswith(f"ray::{fit_id}".encode()):
                node = (process / "stat").read_text().rpartition(")")[2].split()[1]
                if address.encode() in Path(f"/proc/{node}/cmdline").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)
                    return True
    return False


def anything(job: Job, *, device: str, threads: int, stop: threading.Event) -> Iterator[Check | Result]:
    """By k, 2: the fit notices that memory ran out; 3: the kernel ends it, as it ends processes that take too much;
    4: it tells what a worker could read of whoever started it; 5: it is a real one.
    """
    k = job.fit["k"]
    if k == 2:
        raise MemoryError("no memory is left")
    if k == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if k == 4:
        own = b"\n".join(Path(f"/proc/{pid}/{file}").read_bytes() for pid in (os.getpid(), os.getppid())
                         for file in ("environ", "cmdline"))  # fmt: skip
        values: dict[str, float | int | str] = {"environment": own.decode(errors="replace")}
        yield Result(1, values, np.zeros((1, 1, 1), np.float32), {}, False)
    if k == 5:
        yield from careful(job, device=device, threads=threads, stop=stop)


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    """Waits for something that nobody tells of."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "never happened"
        time.sleep(0.05)


def hide_all(folder: Path, monkeypatch: "pytest.MonkeyPatch") -> None:
    """Lets programs that are started now find no cluster of Ray among the processes, as if none ran here."""
    (folder / "sitecustomize.py").write_text("import psutil\n\npsutil.process_iter = lambda *_: iter(())\n")
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
