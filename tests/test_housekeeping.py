"""Whole studies are deleted, renamed and copied, with their images and their cases."""

import shutil
from collections.abc import Callable
from pathlib import Path

import drivers
import optuna
import pytest

import ddstudy
from ddstudy.errors import UserError
from ddstudy.spec.schema import StudySpec
from ddstudy.store.database import Store

MakeSpec = Callable[..., StudySpec]
SPACE = {"k": [2], "iterations": [5, 10]}


@pytest.fixture(scope="module")
def made(make_spec: MakeSpec, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Fills a store with two studies, `tiny` with cases and `other` without; their folder of images."""

    def make(store: str) -> Path:
        images = tmp_path_factory.mktemp("made") / "images"
        table = {"table": [{"name": "one"}, {"name": "two"}]}
        ddstudy.run(make_spec(cases=table, space=SPACE), store=store, artifacts=images, threads=1)
        ddstudy.run(make_spec(name="other", space=SPACE), store=store, artifacts=images, threads=1)
        return images

    return make


@pytest.fixture(scope="module")
def in_sqlite(made: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A file of SQLite with them, and their images."""
    file = tmp_path_factory.mktemp("sqlite") / "studies.db"
    return file, made(f"sqlite:///{file}")


@pytest.fixture
def folder(store_url: str, made: Callable[[str], Path], tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The folder of images of a store with both."""
    if not store_url.startswith("sqlite"):
        return made(store_url)
    file, images = request.getfixturevalue("in_sqlite")
    shutil.copy(file, store_url.removeprefix("sqlite:///"))
    return Path(shutil.copytree(images, tmp_path / "images"))


def test_a_study_is_deleted_with_its_images_and_nothing_else_is(
    store_url: str, folder: Path, make_spec: MakeSpec
) -> None:
    other = ddstudy.open_study("other", store=store_url, artifacts=folder)
    kept = {path.name for files in other.view.images.values() for path in files.values()}
    assert kept < {path.name for path in folder.iterdir()}
    code, said = drivers.here("delete", "tiny", "--yes", "--store", store_url, "--artifacts", str(folder))
    assert (code, said) == (0, "Deleted study 'tiny' with 2 trials\n")
    assert {path.name for path in folder.iterdir()} == kept
    assert [study.name for study in ddstudy.studies(store=store_url)] == ["other"]
    with Store(store_url) as store:
        assert [study.study_name for study in store.storage.get_all_studies()] == ["other"]
    again = ddstudy.run(make_spec(space=SPACE), store=store_url, artifacts=folder, threads=1)  # the name is free
    assert again.view.measured == 2


def test_a_renamed_study_goes_on_under_its_new_name(store_url: str, folder: Path, make_spec: MakeSpec) -> None:
    ddstudy.rename("tiny", "renamed", store=store_url)
    found = ddstudy.open_study("renamed", store=store_url, artifacts=folder)
    assert (found.spec.name, found.cases is not None and found.cases.name) == ("renamed", "renamed.cases")
    spec = make_spec(name="renamed", cases={"table": [{"name": "one"}, {"name": "two"}]}, space=SPACE)
    said: list[str] = []
    done = ddstudy.run(spec, store=store_url, artifacts=folder, tell=said.append)
    assert "Nothing left to do." in said
    assert (done.view.measured, all(path.is_file() for f in done.view.images.values() for path in f.values())) == (
        2,
        True,
    )
    for new, why in (("other", "there is a study 'other' already"), ("no name", "cannot be 'no name'")):
        with pytest.raises(UserError, match=why):
            ddstudy.rename("renamed", new, store=store_url)


@pytest.mark.parametrize("there", ["sqlite:///copy.db", "postgres_url"])
def test_a_copy_is_the_study(
    store_url: str, folder: Path, make_spec: MakeSpec, there: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    to = request.getfixturevalue(there) if there == "postgres_url" else there
    if to == store_url:
        to = f"sqlite:///{tmp_path}/copy.db"
    images = tmp_path / "copied"
    ddstudy.copy("tiny", to=to, new="twin", store=store_url, artifacts=folder, to_artifacts=images)
    one = ddstudy.open_study("tiny", store=store_url, artifacts=folder)
    other = ddstudy.open_study("twin", store=to, artifacts=images)
    assert one.cases is not None
    assert other.cases is not None
    for mine, theirs in ((one, other), (one.cases, other.cases)):
        assert mine.trials.equals(theirs.trials)
        for number, files in mine.view.images.items():
            assert all(
                theirs.view.images[number][name].read_bytes() == path.read_bytes() for name, path in files.items()
            )
    said: list[str] = []
    spec = make_spec(name="twin", cases={"table": [{"name": "one"}, {"name": "two"}]}, space=SPACE)
    ddstudy.run(spec, store=to, artifacts=images, tell=said.append)
    assert "Nothing left to do." in said
    with pytest.raises(UserError, match="there is a study 'twin' already"):
        ddstudy.copy("tiny", to=to, new="twin", store=store_url, artifacts=folder)


def test_a_copy_that_is_stopped_is_no_study_and_can_be_made_again(
    store_url: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, to = optuna.copy_study, f"sqlite:///{tmp_path}/copy.db"

    def stopped(**how: object) -> None:
        real(**how)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(optuna, "copy_study", stopped)
    with pytest.raises(KeyboardInterrupt):
        ddstudy.copy("tiny", to=to, store=store_url, artifacts=folder)
    monkeypatch.undo()
    ddstudy.copy("tiny", to=to, store=store_url, artifacts=folder)
    with Store(to) as store:
        assert sorted(study.study_name for study in store.storage.get_all_studies()) == ["tiny", "tiny.cases"]


def test_a_study_that_is_being_run_is_left_alone(store_url: str, folder: Path, make_spec: MakeSpec) -> None:
    from ddstudy.images.targets import load_targets
    from ddstudy.study.samplers import sampler

    spec = make_spec(name="other", space=SPACE)
    with Store(store_url) as store:
        writer = store.drive(spec, load_targets(spec), sampler(spec))
        assert writer.leases.take("k2-s4-l2-uniform-1x1")
        for change in (ddstudy.delete, lambda name, store: ddstudy.rename(name, "new", store=store)):
            with pytest.raises(UserError, match=r"is writing to this file|a driver is at work on it"):
                change("other", store=store_url)
    with pytest.raises(UserError, match="no study 'none'"):
        ddstudy.delete("none", store=store_url)
    assert drivers.here("copy", "none", "--store", store_url)[0] == 2
