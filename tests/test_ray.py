"""The executor on a Ray cluster: slots, the same results as here, nodes that come and go, and faults it outlives."""

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import clusters
import pytest
from drivers import here
from points import fit_of
from test_executors import (  # noqa: F401 - of every executor
    test_a_cancelled_job_ends_early_and_the_next_one_runs,
    test_failure_is_an_event_not_an_end,
    test_jobs_give_their_events_in_order_and_end,
    test_jobs_may_be_added_while_others_run,
)

from ddstudy.errors import StoppedError, UserError
from ddstudy.execution.executors import Executor, Failed, Finished, InProcess, Started, Workers
from ddstudy.execution.ray_pool import Place, Ray, places
from ddstudy.images.volumes import Target
from ddstudy.spec.options import FitSpec
from ddstudy.spec.schema import ExecutorSpec, StudySpec
from ddstudy.store.database import Store
from ddstudy.study import forecasting, runner
from ddstudy.study.evaluate import Job, Result, device_name
from ddstudy.study.samplers import sampler
from ddstudy.tasks.cases import Case

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


# what holds for every executor


@pytest.fixture(params=[pytest.param("ray", marks=slow)])
def executor(pool: Ray) -> Ray:
    """For the imported tests."""
    return pool


# same results


def go(
    spec: StudySpec, target: Target, executor: Executor, folder: Path, faults: Sequence[Callable[[str], bool]] = ()
) -> tuple[dict[Any, float], list[str]]:
    """Runs a study; one fault after the other befalls it, at a check each. Setting -> PSNR, and the log.

    A fault is given the fit that was checked, and says whether it came to be.
    """
    log, ahead = [], list(faults)
    with Store(f"sqlite:///{folder}/{len(list(folder.iterdir()))}.db") as store:
        driven = store.drive(spec, target, sampler(spec))
        for progress in runner.run(driven, executor, forecasting.Forecast()):
            log.append(progress.message)
            if ahead and progress.current and ahead[0](progress.current.split()[0]):
                del ahead[0]
        assert not ahead
        assert progress.done == progress.total
        trials = store.view(spec.name).trials
    assert "FAIL" not in set(trials["state"])
    keys = list(zip(trials["fit_id"], trials["iterations"], strict=True))
    assert len(set(keys)) == len(keys)
    return dict(zip(keys, trials["psnr"], strict=True)), log


@slow
def test_the_same_to_the_last_bit_wherever_it_runs_and_whatever_dies(
    cluster: "clusters.Cluster",
    pool: Ray,
    tmp_path: Path,
    make_spec: MakeSpec,
    make_job: Callable[..., Job],
    tiny_target: Target,
) -> None:
    """One fit loses its node, the next its worker; the others are calm."""
    spec = make_spec(
        space={"k": [2, 4], "l": [2, 3], "iterations": [500, 2000]},
        fit={"check_every": 250},
    )
    node = clusters.add_node(cluster)
    pool.submit("long", make_job(iterations=10_000_000))
    for _, event in pool.events():
        if isinstance(event, Workers):
            pool.cancel("long")
    assert pool.slots == 2

    def lose_node(_: str) -> bool:
        cluster.remove_node(node, allow_graceful=False)
        return True

    here, _ = go(spec, tiny_target, InProcess(2), tmp_path)
    assert len(here) == 8
    there, log = go(spec, tiny_target, pool, tmp_path, [lose_node, partial(clusters.kill_worker, cluster.address)])
    assert there == here
    for said in ("its node was lost, beginning again elsewhere", "(its worker was killed or crashed), trying again"):
        assert any(said in line for line in log), log


@slow
def test_priors_of_every_kind_are_the_same_on_ray(
    pool: Ray, tmp_path: Path, make_spec: MakeSpec, tiny_target: Target
) -> None:
    """The fused kernels' other decoder, networks of the torch loop, and one without weights."""
    trained = [
        {"kind": ["deep_decoder_2019", "conv_decoder", "dip"], "k": [4], "l": [2]},
        {"kind": "siren", "k": [8], "l": [1], "fit.learning_rate": [0.001]},
    ]
    space = {"iterations": [10, 20], "prior": [*trained, {"kind": "tv", "strength": [0.1]}]}
    spec = make_spec(space=space, task={"kind": "denoise", "sigma": 0.1})
    here, _ = go(spec, tiny_target, InProcess(2), tmp_path)
    assert len(here) == 9
    assert len(set(here.values())) == 9
    there, _ = go(spec, tiny_target, pool, tmp_path)
    assert there == here


# faults


@slow
def test_a_full_object_store_costs_time_only(
    cluster: "clusters.Cluster", pool: Ray, make_job: Callable[..., Job]
) -> None:
    script = f"""
import ray, sys, numpy as np
ray.init({cluster.address!r}, log_to_driver=False)
kept = [ray.put(np.zeros(5_000_000)) for _ in range(4)]  # 160 MB into a store of 80
print("full", flush=True)
sys.stdin.read()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", script], text=True, **pipes) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "full\n"
        work = make_job()
        image = work.case.measurement.samples.repeat(12, axis=1).repeat(12, axis=2).copy()
        big = Case.of(Target(image, "big", None))  # 342 kB, twice: what has more than 100 goes into the store
        pool.submit("big", replace(work, case=big))
        ends = [event for _, event in pool.events() if isinstance(event, Failed | Finished | Result)]
        assert [type(event) for event in ends] == [Result, Result, Finished]
        other.communicate()


# nodes


@slow
def test_a_node_that_joins_gets_work_and_one_that_leaves_is_forgotten(
    cluster: "clusters.Cluster", pool: Ray, make_job: Callable[..., Job]
) -> None:
    assert pool.slots == 1
    long = make_job(iterations=10_000_000)
    pool.submit("one", long)
    pool.submit("two", replace(long, fit=fit_of(3, 4, 2, "uniform", "1x1")))
    began, notes, node = {}, [], None
    for ticket, event in pool.events():
        if isinstance(event, Started):
            began[ticket] = event.worker
            if node is None:
                node = clusters.add_node(cluster)
            elif len(began) == 2:
                cluster.remove_node(node, allow_graceful=False)
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
def test_a_full_cluster_is_waited_for_and_an_event_of_another_thread_ends_what_runs(
    cluster: "clusters.Cluster", pool: Ray, make_job: Callable[..., Job]
) -> None:
    """What runs has nothing to say that would wake the driver. The tests after this one have executors of their own."""
    told: list[str] = []

    def tell(note: str) -> None:
        told.append(note)
        pool.close()

    stop, endless = threading.Event(), make_job(iterations=10**9, check_every=10**9)
    with contextlib.closing(Ray(clusters.wish(cluster.address), tell, stop)) as second:
        assert (second.slots, len(told)) == (1, 1)
        assert "all processors of the Ray cluster are in use" in told[0]
        assert second.device == device_name("cpu")
        second.submit("endless", replace(endless, budgets=(10**9,)))
        events = second.events()
        assert any(isinstance(event, Started) for _, event in events)
        watcher = threading.Thread(target=stop.set)
        watcher.start()
        with pytest.raises(StoppedError):
            list(events)
        watcher.join()


@slow
def test_devices_of_another_kind_stay_idle_where_seconds_are_compared(
    cluster: "clusters.Cluster", tmp_path: Path, make_job: Callable[..., Job]
) -> None:
    # what every process of the other node believes of its processor
    (tmp_path / "sitecustomize.py").write_text("""
import builtins, io
real = builtins.open
builtins.open = lambda file, *rest, **named: (
    io.StringIO("model name : Other") if file == "/proc/cpuinfo" else real(file, *rest, **named)
)
""")
    with contextlib.closing(clusters.executor(cluster.address, timed=True)) as pool:
        path = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
        node = clusters.add_node(cluster, env_vars={"PYTHONPATH": path})
        pool.submit("long", make_job(iterations=10_000_000))
        for ticket, event in pool.events():
            if isinstance(event, Workers):
                assert event.slots == 1
                assert f"it is no {device_name('cpu')} but Other" in event.note
                pool.cancel("long")
            assert ticket != "long" or not isinstance(event, Failed)
    cluster.remove_node(node, allow_graceful=False)


# an end


@slow
@pytest.mark.cluster
def test_when_the_cluster_is_gone_the_run_says_so_and_its_study_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "2")  # Ray waits for a minute by itself
    store = f"sqlite:///{folder}/study.db"
    command = [sys.executable, "-m", "ddstudy.cli", "run", "tiny.toml", "--ray", "--store", store]
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
    code, again = here("run", str(folder / "tiny.toml"), "--store", store)
    assert code == 0
    assert "trials, 4 fits of 2 members, " in again
    assert "8 settings measured" in again


@pytest.fixture
def folder(tmp_path: Path, picture: Path) -> Path:
    """Eight settings in four fits that take most of a second each."""
    (tmp_path / "tiny.toml").write_text(f"""
[target]
file = "{picture}"

[space]
k = [2, 4]
s = [4]
l = [2, 3]
iterations = [500, 3000]

[fit]
members = 2
""")
    return tmp_path
