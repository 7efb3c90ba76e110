"""The pool on real Ray clusters: same results, growth, faults. Several nodes are on this machine; some are killed."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import clusters
import pytest
import yaml
from points import fit_of

from ddstudy.errors import StoppedError, UserError, WorkError
from ddstudy.execution.executors import Event, Executor, Failed, Finished, InProcess, Started, Workers
from ddstudy.execution.ray_pool import Place, Ray, places
from ddstudy.images.volumes import Target, load_target
from ddstudy.spec.options import THESIS, FitSpec
from ddstudy.spec.schema import ExecutorSpec, StudySpec
from ddstudy.store.database import Store
from ddstudy.study import forecasting, planner, runner
from ddstudy.study.evaluate import Job, Result, device_name
from ddstudy.study.samplers import sampler
from ddstudy.tasks.cases import Case

CLUSTER = Path(__file__).parent.parent / "cluster"
MakeSpec = Callable[..., StudySpec]
slow = pytest.mark.slow


# slots


def wish_of(gpus_per_fit: float = 1.0, timed: bool = False, members: int = 5, need: float = 1.0) -> Any:
    executor = ExecutorSpec(kind="ray", gpus_per_fit=gpus_per_fit)
    fit = FitSpec(members=members)
    return clusters.wish("local", fit, executor=executor, timed=timed, bytes_per_fit=partial(float, need))


@pytest.mark.parametrize(
    ("resources", "wish", "device", "expected"),
    [
        ({"CPU": 8, "GPU": 2}, {}, "cuda", [Place("cuda", {"num_cpus": 1, "num_gpus": 1}, 4, False)] * 2),
        ({"CPU": 8, "GPU": 2}, {}, "auto", [Place("cuda", {"num_cpus": 1, "num_gpus": 1}, 4, False)] * 2),
        ({"CPU": 8, "GPU": 2}, {}, "cpu", [Place("cpu", {"num_cpus": 8, "num_gpus": 0}, 5, False)]),
        ({"CPU": 8}, {}, "auto", [Place("cpu", {"num_cpus": 8, "num_gpus": 0}, 5, False)]),
        ({"CPU": 8}, {}, "cuda", []),
        ({"memory": 1e9}, {}, "cpu", []),  # a head without processors
        # a third of a GPU, three times: a fraction never lies across two GPUs
        (
            {"CPU": 4, "GPU": 2},
            {"gpus_per_fit": 0.3},
            "cuda",
            [Place("cuda", {"num_cpus": 0, "num_gpus": 0.3}, 1, True)] * 6,
        ),
        ({"CPU": 16}, {}, "cpu", [Place("cpu", {"num_cpus": 5, "num_gpus": 0}, 5, True)] * 3),
        ({"CPU": 16}, {"timed": True}, "cpu", [Place("cpu", {"num_cpus": 16, "num_gpus": 0}, 5, False)]),
        ({"CPU": 16, "memory": 10.0}, {"need": 4}, "cpu", [Place("cpu", {"num_cpus": 5, "num_gpus": 0}, 5, True)] * 2),
    ],
)
def test_slots_of_a_node(resources: dict[str, float], wish: Any, device: str, expected: list[Place]) -> None:
    assert places(resources, wish_of(**wish), device) == expected


@pytest.mark.parametrize(
    ("executor", "said"), [({"gpus_per_fit": 0.5}, "fits on a GPU share time"), ({"mix": True}, "mix must be false")]
)
def test_what_spoils_seconds_is_refused(make_spec: MakeSpec, executor: dict[str, Any], said: str) -> None:
    make_spec(executor=executor)
    with pytest.raises(UserError, match=said):
        make_spec(executor=executor, objectives={"seconds": "minimize"})


def test_where_a_study_runs_is_no_part_of_it(make_spec: MakeSpec) -> None:
    elsewhere = make_spec(executor={"kind": "ray", "address": "auto", "gpus_per_fit": 0.5})
    assert elsewhere.fingerprint() == make_spec().fingerprint()


# same results


def go(
    spec: StudySpec, target: Target, executor: Executor, folder: Path, fault: Callable[[str], None] | None = None
) -> tuple[dict[Any, float], list[str]]:
    """Runs a study; after the first check, a fault befalls its fit. Setting -> PSNR, and the log."""
    log = []
    with Store(f"sqlite:///{folder}/{len(list(folder.iterdir()))}.db") as store:
        driven = store.drive(spec, target, sampler(spec))
        for progress in runner.run(driven, executor, forecasting.Forecast()):
            log.append(progress.message)
            if fault and progress.current:
                fault(progress.current.split()[0])
                fault = None
        assert progress.done == progress.total
        trials = store.view(spec.name).trials
    assert "FAIL" not in set(trials["state"])
    keys = list(trials[list(THESIS)].itertuples(index=False, name=None))
    assert len(set(keys)) == len(keys)
    return dict(zip(keys, trials["psnr"], strict=True)), log


@slow
def test_the_same_to_the_last_bit_wherever_it_runs_and_whatever_dies(
    cluster: "clusters.Cluster", pool: Ray, tmp_path: Path, make_spec: MakeSpec, tiny_target: Target
) -> None:
    spec = make_spec(
        space={"k": [2, 4], "l": [2, 3], "iterations": [1000, 4000]},
        fit={"check_every": 500},
    )
    here, _ = go(spec, tiny_target, InProcess(2), tmp_path)
    assert len(here) == 8
    calm, _ = go(spec, tiny_target, pool, tmp_path)
    assert calm == here

    shaken, log = go(spec, tiny_target, pool, tmp_path, fault=partial(clusters.kill_worker, cluster.address))
    assert shaken == here
    assert any("its worker was killed or crashed), trying again" in line for line in log)

    node = next(node for node in cluster.worker_nodes)
    lost, log = go(spec, tiny_target, pool, tmp_path, fault=lambda _: cluster.remove_node(node, allow_graceful=False))
    assert lost == here  # the rest by the worker that is left
    clusters.add_node(cluster)


# growth


@pytest.fixture(scope="module")
def small() -> "Iterator[clusters.Cluster]":
    """A cluster of one node; whoever adds a node takes it away again."""
    with clusters.cluster() as made:
        yield made


@slow
def test_a_node_that_joins_gets_work_and_one_that_leaves_is_forgotten(
    small: "clusters.Cluster", make_job: Callable[..., Job]
) -> None:
    with contextlib.closing(clusters.executor(small.address)) as pool:
        assert pool.slots == 1
        long = make_job(iterations=10_000_000)
        pool.submit("one", long)
        pool.submit("two", replace(long, fit=fit_of(3, 4, 2, "uniform", "1x1")))
        began, notes, node = {}, [], None
        for ticket, event in pool.events():
            if isinstance(event, Started):
                began[ticket] = event.worker
                if node is None:
                    node = clusters.add_node(small)
                elif len(began) == 2:
                    small.remove_node(node, allow_graceful=False)
            if isinstance(event, Workers):
                notes.append((event.slots, event.note.split()[-3]))
            if isinstance(event, Failed):
                assert event.kind == "lost"
                assert ticket == "two"
                pool.cancel("one")
            assert not isinstance(event, Result) or event.budget == 5
        assert len(set(began.values())) == 2
        assert (notes, pool.slots) == ([(2, "came:"), (1, "gone:")], 1)


@slow
def test_nodes_come_when_fits_wait_and_go_when_none_are_left(
    tmp_path_factory: pytest.TempPathFactory, make_job: Callable[..., Job]
) -> None:
    with clusters.autoscaling(2, tmp_path_factory.mktemp("r")) as address:
        pool = clusters.executor(address, idle_seconds=1)
        assert pool.slots == 1  # there was no node before
        long = make_job(iterations=10_000_000)
        names = ("one", "two")
        for k, ticket in enumerate(names, 2):
            pool.submit(ticket, replace(long, fit=fit_of(k, 4, 2, "uniform", "1x1")))
        began, notes = set(), []
        for ticket, event in pool.events():
            if isinstance(event, Workers):
                notes.append((event.slots, event.note.split(maxsplit=3)[-1]))
            assert not isinstance(event, Failed), event
            if isinstance(event, Started):
                began.add(ticket)
                if len(began) == 2:
                    pool.cancel("one")
            if isinstance(event, Workers) and began == set(names):
                # the one that has nothing left to do left its node
                pool.cancel("two")
        assert notes == [(2, "came: 2 workers"), (1, "is left to others: 1 workers")]
        # and comes back for more
        pool.submit("one", make_job())
        pool.submit("two", make_job(3))
        assert {t for t, event in pool.events() if isinstance(event, Finished)} == set(names)
        pool.close()


@slow
def test_a_full_cluster_is_waited_for_and_says_so(small: "clusters.Cluster") -> None:
    first = clusters.executor(small.address)
    told: list[str] = []

    def tell(note: str) -> None:
        told.append(note)
        first.close()

    second = clusters.executor(small.address, tell=tell)
    assert (second.slots, len(told)) == (1, 1)
    assert "all processors of the Ray cluster are in use" in told[0]
    assert second.device == device_name("cpu")
    second.close()


@slow
def test_an_event_of_another_thread_ends_what_runs(cluster: "clusters.Cluster", make_job: Callable[..., Job]) -> None:
    """Nothing comes from the cluster meanwhile that would wake the driver."""
    stop, endless = threading.Event(), make_job(iterations=10**9)
    endless = replace(endless, budgets=(10**9,), options=endless.options.model_copy(update={"check_every": 10**9}))
    with contextlib.closing(Ray(clusters.wish(cluster.address), print, stop)) as executor:
        executor.submit("endless", endless)
        events = executor.events()
        assert any(isinstance(event, Started) for _, event in events)
        watcher = threading.Thread(target=stop.set)
        watcher.start()
        with pytest.raises(StoppedError):
            list(events)
        watcher.join()


@slow
def test_devices_of_another_kind_stay_idle_where_seconds_are_compared(
    small: "clusters.Cluster", tmp_path: Path, make_job: Callable[..., Job]
) -> None:
    # what every process of the other node believes of its processor
    (tmp_path / "sitecustomize.py").write_text("""
import builtins, io
real = builtins.open
builtins.open = lambda file, *rest, **named: (
    io.StringIO("model name : Other") if file == "/proc/cpuinfo" else real(file, *rest, **named)
)
""")
    with contextlib.closing(clusters.executor(small.address, timed=True)) as pool:
        path = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
        node = clusters.add_node(small, env_vars={"PYTHONPATH": path})
        pool.submit("long", make_job(iterations=10_000_000))
        for ticket, event in pool.events():
            if isinstance(event, Workers):
                assert event.slots == 1
                assert f"it is no {device_name('cpu')} but Other" in event.note
                pool.cancel("long")
            assert ticket != "long" or not isinstance(event, Failed)
    small.remove_node(node, allow_graceful=False)


# files for clusters


def test_the_launchers_file_is_valid_for_ray() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    validate_config(prepare_config(config))


def test_the_rayjob_is_what_rays_autoscaler_reads() -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler._private.util import validate_config

    job = yaml.safe_load((CLUSTER / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert all(isinstance(v, str) for v in job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].values())
    config = _derive_autoscaling_config_from_ray_cr(
        {"metadata": {"name": "ddstudy", "namespace": "default"}, "spec": job["spec"]["rayClusterSpec"]}
    )
    validate_config(config)
    kinds = {name: kind["resources"] for name, kind in config["available_node_types"].items()}
    assert kinds["headgroup"]["CPU"] == 0
    assert (kinds["gpu"]["CPU"], kinds["gpu"]["GPU"]) == (4, 1)
    workers = yaml.safe_dump(job["spec"]["rayClusterSpec"]["workerGroupSpecs"])
    assert "DDSTUDY_STORE" not in workers


@slow
def test_a_submitted_job_runs_a_study_with_the_package_from_its_runtime_environment(folder: Path) -> None:
    pytest.importorskip("aiohttp", reason="ray job submit needs ray[default]")
    environment = json.dumps({"py_modules": [str(CLUSTER.parent / "ddstudy")]})
    # clusters beside this one have an agent at the usual port
    ports = {"dashboard_port": 0, "dashboard_agent_listen_port": clusters.free_port("127.0.0.1")}
    with clusters.cluster(cpus=2, **{"include_dashboard": True, **ports}) as head:
        submit = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--runtime-env-json", environment]
        submit += ["--address", f"http://{head.head_node.webui_url}", "--"]
        program = f"{sys.executable} -m ddstudy.cli run {folder}/tiny.toml --ray --store sqlite:///{folder}/job.db"
        done = subprocess.run([*submit, *program.split()], capture_output=True, text=True, timeout=200)
    assert "8 settings measured" in done.stdout, done.stdout + done.stderr


# faults


@slow
def test_memory_that_runs_out_fails_its_fit_only(local: dict[str, list[Event]]) -> None:
    ends = {ticket: events[-1] for ticket, events in local.items()}
    assert (ends["k2"].why, ends["k2"].kind) == ("MemoryError: no memory is left", "memory")
    assert "Traceback" in ends["k2"].log
    assert (ends["k3"].why, ends["k3"].kind) == ("its worker was killed or crashed", "error")
    assert "OOM killer" in ends["k3"].log
    assert isinstance(ends["k4"], Finished)


@slow
def test_a_full_object_store_costs_time_only(
    cluster: "clusters.Cluster", pool: Ray, make_job: Callable[..., Job]
) -> None:
    script = f"""
import ray, sys, numpy as np
ray.init({cluster.address!r}, log_to_driver=False)
kept = [ray.put(np.zeros(5_000_000)) for _ in range(4)]  # 160 MB into stores of 80
print("full", flush=True)
sys.stdin.read()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", script], text=True, **pipes) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "full\n"
        work = make_job()
        image = work.case.measurement.samples.repeat(40, axis=1).repeat(40, axis=2).copy()
        big = Case.of(Target(image, "big", None))  # 3.8 MB, twice
        pool.submit("big", replace(work, case=big))
        ends = [event for _, event in pool.events() if isinstance(event, Failed | Finished | Result)]
        assert [type(event) for event in ends] == [Result, Result, Finished]
        other.communicate()


@slow
def test_when_the_cluster_is_gone_the_run_says_so_and_the_same_command_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "2")  # Ray waits for a minute by itself
    command = [sys.executable, "-m", "ddstudy.cli", "run", "tiny.toml", "--ray"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": folder, "text": True}
    with clusters.cluster() as doomed:
        monkeypatch.setenv("RAY_ADDRESS", doomed.address)
        with subprocess.Popen(command, **pipes) as run:
            assert run.stdout is not None
            for line in run.stdout:
                if "dB, CV" in line:
                    break
            doomed.remove_node(doomed.head_node, allow_graceful=False)
            _, err = run.communicate(timeout=60)
    assert run.returncode == 1
    kept = "What was finished is kept; the same command goes on."
    assert re.fullmatch(rf"ddstudy: the Ray cluster is gone: Failed to connect to GCS .*\n{kept}\n", err), err
    monkeypatch.delenv("RAY_ADDRESS")
    again = subprocess.run(command, check=True, **pipes)
    assert "trials, 4 fits of 2 members, " in again.stdout
    assert "8 settings measured" in again.stdout


@slow
def test_no_cluster_at_an_address() -> None:
    for address in ("nonsense://1", "127.0.0.1:1"):
        with pytest.raises(UserError, match="no Ray cluster at"):
            clusters.executor(address)
    with pytest.raises(UserError, match="which Ray's client cannot"):
        clusters.executor("ray://127.0.0.1:10001")


@slow
@pytest.mark.parametrize("how", ["nobody listens", "another server", "a stale file"])
def test_auto_says_within_seconds_that_its_cluster_is_dead(
    how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ray tries for 500 seconds, and says nothing."""
    with socket.socket() as server:
        server.bind(("", 0))  # Ray takes this machine's own address for 127.0.0.1
        port = server.getsockname()[1]
        if how != "nobody listens":
            server.listen()
        if how == "a stale file":
            clusters.hide_all(tmp_path, monkeypatch)  # Ray would take one that runs rather than the file
            monkeypatch.delenv("RAY_ADDRESS", raising=False)
            monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
            (tmp_path / "ray").mkdir()
            (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{port}")
        else:
            monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        began = time.monotonic()
        with pytest.raises(UserError) as said:
            clusters.executor("auto")
    assert time.monotonic() - began < 10
    why = "refused" if how == "nobody listens" else "does not answer as Ray does"
    assert re.match(rf"no Ray cluster at 'auto', which is [0-9.]+:{port} here: .*{why}\nValid: ", str(said.value))


@slow
def test_files_in_the_users_folder_are_no_libraries(local: dict[str, list[Event]]) -> None:
    """Its queue.py, numpy.py or ray.py ended Ray's processes, and all that was said is that the cluster is gone."""
    assert [event for event in local["k5"] if isinstance(event, Failed | Finished)] == [Finished()]


def test_what_the_process_beside_the_driver_wrote_last_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])  # so it finds no library at all
    with pytest.raises(WorkError) as said:
        clusters.executor("local")
    assert str(said.value).startswith("the Ray cluster is gone: ModuleNotFoundError: ")
    assert len(str(said.value).splitlines()) == 2


# secrets


@slow
def test_what_opens_the_store_never_reaches_a_worker(local: dict[str, list[Event]]) -> None:
    (found,) = [event for event in local["k4"] if isinstance(event, Result)]
    assert "PATH=" in str(found.values["environment"])
    assert "s3cret" not in str(found.values["environment"])


@pytest.fixture(scope="module")
def local(make_job: Callable[..., Job], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Event]]:
    """Events of four fits on a cluster that the driver starts: in a folder of such files, and what opens the store set.

    Two run out of memory, one tells what its worker sees, one is a real one.
    """
    folder = tmp_path_factory.mktemp("local")
    for name in ("queue", "numpy", "ray", "ddstudy", "numba"):
        (folder / f"{name}.py").write_text("raise SystemExit('a library that is none')")
    events: dict[str, list[Event]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setattr(sys, "path", [place for place in sys.path if place])
        patch.setenv("DDSTUDY_STORE", "postgresql://me:s3cret@host/db")
        patch.setenv("PGPASSWORD", "s3cret")
        with contextlib.closing(clusters.executor("", work=clusters.anything)) as pool:
            for k in (2, 3, 4, 5):
                pool.submit(f"k{k}", make_job(k))
            for ticket, event in pool.events():
                events.setdefault(ticket, []).append(event)
    return events


@pytest.fixture(scope="module")
def make_job(make_spec: MakeSpec) -> Callable[..., Job]:
    spec = make_spec(fit={"check_every": 500})
    target = load_target(spec.target)

    def make(k: int = 2, iterations: int = 10) -> Job:
        return planner.job(spec, target, fit_of(k, 4, 2, "uniform", "1x1"), (5, iterations))

    return make


@pytest.fixture
def folder(tmp_path: Path, picture: Path) -> Path:
    """Eight settings in four fits that take a second each."""
    (tmp_path / "tiny.toml").write_text(f"""
[target]
file = "{picture}"

[space]
k = [2, 4]
s = [4]
l = [2, 3]
iterations = [1000, 5000]

[fit]
members = 2
""")
    return tmp_path
