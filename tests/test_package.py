"""What is installed: the wheel holds all that the package reads, and a checkout needs no links."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import clusters
import pytest
from hatchling.builders.wheel import WheelBuilder

from ddstudy.errors import UserError
from ddstudy.execution.ray_pool import Ray
from ddstudy.store.urls import parse_url

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ddstudy"


def files(folder: Path) -> set[str]:
    """Of the package below a folder."""
    found = (path for path in (folder / "ddstudy").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix() for path in found}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of a wheel, built from a copy as a downloaded archive is: without Git."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    shutil.copytree(PACKAGE, source / "ddstudy", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    (wheel,) = WheelBuilder(str(source)).build(directory=str(folder), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_holds_every_file_of_the_package(installed: Path) -> None:
    assert files(installed) == files(ROOT)
    assert {"ddstudy/data/quick.toml", "ddstudy/report/templates/page.html"} <= files(installed)


def test_the_packaged_files_are_found_without_the_repository(installed: Path, tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
import ddstudy
from ddstudy import cli
from ddstudy.report.page import render
from ddstudy.report.panels import COMPARE, read_panels
from ddstudy.thesis import published
from ddstudy.results import Study
from ddstudy.errors import UserError
assert Path(ddstudy.__file__).is_relative_to(sys.argv[1])
assert read_panels() and read_panels(COMPARE) and published.seconds_by_blocks()
try:
    Study(None).figure("published", table="9.9")
except UserError as error:  # the table is unknown, not the kind
    assert '"4.3"' in str(error), error
assert "The store holds no study." in render([], ())
sys.argv[1:] = ["validate", str(Path(cli.__file__).parent / "data" / "quick.toml")]
cli.main()
"""
    command = [sys.executable, "-c", code, str(installed)]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(installed), "PATH": ""}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "48 settings" in done.stdout


def test_the_repository_has_no_links() -> None:
    """A checkout on Windows, or an archive, has a link as a text file that holds a path."""
    for folder in ("ddstudy", "studies", "dashboards", "benchmarks", "cluster", "tests"):
        assert [path for path in (ROOT / folder).rglob("*") if path.is_symlink()] == []


@pytest.mark.parametrize(
    ("use", "said", "extra"),
    [
        (lambda: parse_url("postgresql://me:secret@host/db"), "psycopg is not installed", "postgres"),
        (lambda: Ray(clusters.wish("auto"), print), "ray is not installed", "ray"),
    ],
)
def test_what_is_not_installed_is_named(
    use: Callable[[], object], said: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"{said}\nInstall it: pip install 'ddstudy\[{extra}\]'") as refused:
        use()
    assert "secret" not in str(refused.value)


def test_what_is_told_of_the_package_is_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"\nversion: {project['version']}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {project['version']}\n" in (ROOT / "CHANGELOG.md").read_text()
    assert (ROOT / "LICENSE").read_text().startswith(f"{project['license']} License\n")
    needed = [*project["dependencies"], *(one for some in project["optional-dependencies"].values() for one in some)]
    names = {re.split(r"[\[<>=;]", one)[0].lower() for one in needed} - {"ddstudy", "mkdocs-jupyter", "mkdocs-material"}
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert names <= pinned
