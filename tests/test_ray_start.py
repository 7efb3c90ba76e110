"""Ray clusters that the executor starts or looks for, files by which people start one, and what their processes see."""

import contextlib
import json
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import clusters
import pytest
import yaml
from points import fit_of

from ddstudy.errors import UserError, WorkError
from ddstudy.execution.executors import Event, Failed, Finished, Started, Workers
from ddstudy.spec.schema import StudySpec
from ddstudy.study.evaluate import Job, Result

CLUSTER = Path(__file__).parent.parent / "cluster"
MakeSpec = Callable[..., StudySpec]
slow = pytest.mark.slow


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
def test_a_submitted_job_runs_a_study_with_the_package_from_its_runtime_environment(
    tmp_path: Path, picture: Path
) -> None:
    pytest.importorskip("aiohttp", reason="ray job submit needs ray[default]")
    lists = "k = [2, 4]\ns = [4]\nl = [2]\niterations = [5, 10]"
    (tmp_path / "tiny.toml").write_text(f"[target]\nfile = '{picture}'\n[space]\n{lists}\n[fit]\nmembers = 2\n")
    environment = json.dumps({"py_modules": [str(CLUSTER.parent / "ddstudy")]})
    # clusters beside this one have an agent at the usual port, and Ray tells a job of the cluster that its folder names
    ports = {"dashboard_port": 0, "dashboard_agent_listen_port": clusters.free_port("127.0.0.1")}
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as ray,  # sockets need a short path
        clusters.cluster(**{"include_dashboard": True, "temp_dir": ray, **ports}) as head,
    ):
        Path(ray, "ray_current_cluster").write_text(head.address)
        submit = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--runtime-env-json", environment]
        submit += ["--address", f"http://{head.head_node.webui_url}", "--"]
        program = f"{sys.executable} -m ddstudy.cli run {tmp_path}/tiny.toml --ray --store sqlite:///{tmp_path}/job.db"
        done = subprocess.run([*submit, *program.split()], capture_output=True, text=True, timeout=200)
    assert "4 settings measured" in done.stdout, done.stdout + done.stderr


# clusters that are not there


@slow
def test_no_cluster_at_an_address() -> None:
    for address in ("nonsense://1", "127.0.0.1:1"):
        with pytest.raises(UserError, match="no Ray cluster at"):
            clusters.executor(address)
    with pytest.raises(UserError, match="which Ray's client cannot"):
        clusters.executor("ray://127.0.0.1:10001")


@slow
@pytest.mark.timeout(100)
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
        with pytest.raises(UserError) as said:
            clusters.executor("auto")
    why = "refused" if how == "nobody listens" else "does not answer as Ray does"
    assert re.match(rf"no Ray cluster at 'auto', which is [0-9.]+:{port} here: .*{why}\nValid: ", str(said.value))


def test_what_the_process_beside_the_driver_wrote_last_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])  # so it finds no library at all
    with pytest.raises(WorkError) as said:
        clusters.executor("local")
    assert str(said.value).startswith("the Ray cluster is gone: ModuleNotFoundError: ")
    assert len(str(said.value).splitlines()) == 2


# a cluster that an autoscaler feeds


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


# a cluster that the driver starts


@slow
def test_memory_that_runs_out_fails_its_fit_only(local: dict[str, list[Event]]) -> None:
    ends = {ticket: events[-1] for ticket, events in local.items()}
    assert (ends["k2"].why, ends["k2"].kind) == ("MemoryError: no memory is left", "memory")
    assert "Traceback" in ends["k2"].log
    assert (ends["k3"].why, ends["k3"].kind) == ("its worker was killed or crashed", "error")
    assert "OOM killer" in ends["k3"].log
    assert isinstance(ends["k4"], Finished)


@slow
def test_files_in_the_users_folder_are_no_libraries(local: dict[str, list[Event]]) -> None:
    """Its queue.py, numpy.py or ray.py ended Ray's processes, and all that was said is that the cluster is gone."""
    assert [event for event in local["k5"] if isinstance(event, Failed | Finished)] == [Finished()]


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
