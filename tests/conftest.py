import os
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import clusters
import numpy as np
import postgres
import pytest
import quick_stores  # noqa: F401 - for all tests
from points import fit_of

from ddstudy.execution.ray_pool import Ray
from ddstudy.images.volumes import Target, load_target
from ddstudy.spec.files import parse_spec
from ddstudy.spec.schema import StudySpec
from ddstudy.study import planner
from ddstudy.study.evaluate import Job

# files that take long, about the longest first: whole files are shared out, and the last must not be a long one. Three
# workers get two each to begin with, in turn: those of Ray mostly wait, and one worker has them, beside two at work
LONG = [f"test_{name}" for name in ("ray", "cases", "views", "ray_start", "cli", "tasks", "dashboard", "runner",
                                    "faults", "volumes", "live", "axes", "findings",
                                    "damage", "housekeeping", "priors_report", "store", "priors", "fused", "together",
                                    "samplers", "api_run", "optimisers", "report")]  # fmt: skip


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files come by how long they take; tests that need a cluster of Ray are marked, so that one serves them all."""
    for item in items:
        if "cluster" in getattr(item, "fixturenames", ()):
            item.add_marker("cluster")
    place = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Programs that tests start can be interrupted, even where the suite itself runs in the background of a shell.

    Such a shell ignores SIGINT for its children, and children hand that on; Python then installs no handler.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a test leaves in its working folder lands in the repository."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What tests time is not disturbed by other programs, as it happens to be on any machine."""
    monkeypatch.setattr("ddstudy.study.evaluate.DISTURBED_PERCENT", 100.0)


@pytest.fixture(autouse=True)
def _soon_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run tries its fits for some seconds before it begins, a hundred times longer than these fits take."""
    monkeypatch.setattr("ddstudy.study.forecasting.CALIBRATION_SECONDS", 0.1)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a real server: the one named by DDSTUDY_TEST_POSTGRES, or one that the tests start."""
    given = os.environ.get("DDSTUDY_TEST_POSTGRES")
    if given:
        yield given
        return
    with postgres.server() as server:
        yield server.url


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest) -> str:
    """An empty database of each kind."""
    url: str = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
    return url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """An empty SQLite database."""
    return f"sqlite:///{tmp_path / 'studies.db'}"


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """An empty PostgreSQL database."""
    with postgres.database(postgres_server, f"t_{uuid.uuid4().hex}") as url:
        yield url


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smooth grey image of odd size, 27x22, as a .npy file."""
    y, x = np.mgrid[0:27, 0:22]
    image = np.sin(x / 5) * np.cos(y / 7) + ((x - 8) ** 2 + (y - 15) ** 2 < 25)
    path = tmp_path_factory.mktemp("picture") / "picture.npy"
    np.save(path, image)
    return path


@pytest.fixture(scope="session")
def make_spec(picture: Path) -> Callable[..., StudySpec]:
    """A study of tiny fits: 2 x 2 settings on one pair; tables given by name replace or extend its own."""

    def make(**tables: Any) -> StudySpec:
        tree: dict[str, Any] = {
            "name": "tiny",
            "target": {"file": str(picture)},
            "space": {"k": [2, 4], "s": [4], "l": [2], "iterations": [5, 10]},
            "fit": {"members": 2, "check_every": 2},
            # nothing is pruned by chance: such short fits have no quality to speak of
            "stability": {"min_psnr": 0.0, "cv_percent": 50.0, "max_vif": 10.0},
        }
        for name, value in tables.items():
            tree[name] = {**tree.get(name, {}), **value} if isinstance(value, dict) else value
        return parse_spec(tree, "test")

    return make


@pytest.fixture
def tiny_target(make_spec: Callable[..., StudySpec]) -> Target:
    return load_target(make_spec().target)


@pytest.fixture(scope="session")
def make_job(make_spec: Callable[..., StudySpec]) -> Callable[..., Job]:
    """Makes the fit of a tiny decoder with k channels, to 5 iterations and to more, with a check every 500."""
    target = load_target(make_spec().target)

    def make(k: int = 2, iterations: int = 10, check_every: int = 500) -> Job:
        spec = make_spec(fit={"check_every": check_every})
        return planner.job(spec, target, fit_of(k, 4, 2, "uniform", "1x1"), (5, iterations))

    return make


@pytest.fixture(scope="module")  # of the session, it would go on beside other tests, and take 5 % of a core
def cluster() -> "Iterator[clusters.Cluster]":
    """A Ray cluster of one node with one processor; whoever adds a node takes it away again."""
    with clusters.cluster() as made:
        yield made


@pytest.fixture(scope="module")
def pool(cluster: "clusters.Cluster") -> Iterator[Ray]:
    """The executor on it."""
    executor = clusters.executor(cluster.address)
    yield executor
    executor.close()
