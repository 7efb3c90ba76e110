"""The executor on a Ray cluster: slots, the same results as here, and faults that it outlives."""

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import clusters
import pytest
from drivers import here

from ddstudy.errors import UserError
from ddstudy.execution.executors import Executor, Failed, Finished, InProcess, Workers
from ddstudy.execution.ray_pool import Place, Ray, places
from ddstudy.images.volumes import Target
from ddstudy.spec.options import FitSpec
from ddstudy.spec.schema import ExecutorSpec, StudySpec
from ddstudy.store.database import Store
from ddstudy.study import forecasting, runner
from ddstudy.study.evaluate import Job, Result
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
        space={"k": [2, 4], "l": [2, 3], "iterations": [1000, 4000]},
        fit={"check_every": 500},
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
        image = work.case.measurement.samples.repeat(40, axis=1).repeat(40, axis=2).copy()
        big = Case.of(Target(image, "big", None))  # 3.8 MB, twice
        pool.submit("big", replace(work, case=big))
        ends = [event for _, event in pool.events() if isinstance(event, Failed | Finished | Result)]
        assert [type(event) for event in ends] == [Result, Result, Finished]
        other.communicate()


@slow
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
