"""The executor on Ray clusters whose nodes come, go, are in use, or are of another kind."""

import contextlib
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import clusters
import pytest
from points import fit_of

from ddstudy.errors import StoppedError
from ddstudy.execution.executors import Failed, Finished, Started, Workers
from ddstudy.execution.ray_pool import Ray
from ddstudy.spec.schema import StudySpec
from ddstudy.study.evaluate import Job, Result, device_name

MakeSpec = Callable[..., StudySpec]
slow = pytest.mark.slow


@slow
def test_a_node_that_joins_gets_work_and_one_that_leaves_is_forgotten(
    cluster: "clusters.Cluster", make_job: Callable[..., Job]
) -> None:
    with contextlib.closing(clusters.executor(cluster.address)) as pool:
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
def test_a_full_cluster_is_waited_for_and_says_so(cluster: "clusters.Cluster") -> None:
    first = clusters.executor(cluster.address)
    told: list[str] = []

    def tell(note: str) -> None:
        told.append(note)
        first.close()

    second = clusters.executor(cluster.address, tell=tell)
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
