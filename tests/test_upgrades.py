"""A store that an earlier version made opens, goes on and reports; what the versions differ in is said, never mixed."""

import contextlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
from drivers import here
from old_stores import STUDIES, restore
from pydantic import Field
from test_store import measured, record

import ddstudy
from ddstudy.errors import UserError
from ddstudy.images.volumes import Target, load_target
from ddstudy.spec import files, schema
from ddstudy.spec.options import FitSpec
from ddstudy.spec.schema import StudySpec
from ddstudy.store.database import Store
from ddstudy.study.samplers import sampler

MakeSpec = Callable[..., StudySpec]
DUMP = Path(__file__).parent / "data" / "store-87a1aef.sql.gz"
OF_TRIALS = ("trials", "trial_params", "trial_values", "trial_user_attributes", "trial_system_attributes")


@pytest.fixture
def old(tmp_path: Path) -> str:
    """URL of a store that 87a1aef made, with what its studies need beside it."""
    return restore(DUMP, tmp_path)


def rows(folder: Path) -> set[tuple[object, ...]]:
    """All that is stored of trials that are finished."""
    with contextlib.closing(sqlite3.connect(folder / "old.db")) as database:
        return {
            (table, *row)
            for table in (*OF_TRIALS, "trial_intermediate_values")
            for row in database.execute(f"SELECT * FROM {table}")
        }


def change(folder: Path, study: str, key: str, edit: Callable[[dict[str, object]], object]) -> None:
    """Edits what is stored of a study."""
    with contextlib.closing(sqlite3.connect(folder / "old.db")) as database, database:
        where = "key = ? AND study_id = (SELECT study_id FROM studies WHERE study_name = ?)"
        look = f"SELECT value_json FROM study_user_attributes WHERE {where}"
        [[stored]] = database.execute(look, (key, study))
        tree = json.loads(json.loads(stored))
        edit(tree)
        new = json.dumps(json.dumps(tree))
        database.execute(f"UPDATE study_user_attributes SET value_json = ? WHERE {where}", (new, key, study))


def drive(url: str, name: str, folder: Path) -> None:
    spec = files.read_spec(folder / f"{name}.toml")
    with Store(url) as store:
        store.drive(spec, load_target(spec.target), sampler(spec))


def test_every_study_of_an_old_store_goes_on_to_its_end(old: str, tmp_path: Path) -> None:
    before = rows(tmp_path)
    for study in STUDIES:
        code, printed = here("run", f"{study}.toml", "--store", old)
        assert code == 0, printed
    assert before <= rows(tmp_path)  # finished trials to the last digit
    with Store(old, read_only=True) as store:
        for study in STUDIES:
            view = store.view(study)
            assert view.measured == view.spec.trials == (8 if study == "grid" else 6)
            assert not view.left_out
            results = view.trials[view.trials["state"] != "FAIL"]
            assert not results.duplicated(["k", "s", "l", "iterations", "noise", "tiling"]).any()
            ours = results[results["version"].notna()]
            assert 0 < len(ours) < len(results)
    for command in (("status",), ("report", *STUDIES), ("export", "pareto"), ("findings",), ("claims",)):
        code, printed = here(*command, "--store", old)
        assert code == 0, printed


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A version with one more option, which has a default; undone within a test, it is today's again."""

    class LaterFitSpec(FitSpec):
        restarts: str = Field("none", description="of the fit")

    class LaterSpec(StudySpec):
        fit: LaterFitSpec = LaterFitSpec()  # type: ignore[call-arg]

    monkeypatch.setattr(files, "StudySpec", LaterSpec)
    return monkeypatch


def test_an_option_that_came_later_has_its_default_in_stored_studies(
    old: str, tmp_path: Path, later: pytest.MonkeyPatch
) -> None:
    for study in STUDIES:
        drive(old, study, tmp_path)
    study = (tmp_path / "grid.toml").read_text()
    (tmp_path / "grid.toml").write_text(study.replace("[fit]", '[fit]\nrestarts = "warm"'))
    with pytest.raises(UserError, match=r"differs: fit\.restarts: stored 'none', now 'warm'"):
        drive(old, "grid", tmp_path)
    with Store(old, read_only=True) as store:
        assert store.view("grid").spec.fit.restarts == "none"  # type: ignore[attr-defined]
    later.undo()  # a store of the later version in today's
    with Store(old, read_only=True) as store:
        assert len(store.view("grid").trials) == 4
    (tmp_path / "grid.toml").write_text(study)
    with pytest.raises(UserError, match=r"stored by a later version.* not know: fit\.restarts"):
        drive(old, "grid", tmp_path)


def test_stored_fingerprints_may_lack_what_is_in_the_study_file(old: str, tmp_path: Path) -> None:
    change(tmp_path, "tpe", "ddstudy:fingerprint", lambda stored: [stored.pop(key) for key in list(stored)[:-1]])
    drive(old, "tpe", tmp_path)
    change(tmp_path, "tpe", "ddstudy:fingerprint", lambda stored: stored.pop("target"))
    with pytest.raises(UserError, match="its fingerprint cannot be read"):
        drive(old, "tpe", tmp_path)


def test_results_of_two_arithmetics_are_not_mixed(
    old: str, tmp_path: Path, make_spec: MakeSpec, tiny_target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = {"commit": "ada91e6", "created": "2026-11-26T08:20:00"}  # before the gradients were mended
    change(tmp_path, "tpe", "ddstudy:facts", lambda facts: facts.update(older))
    with pytest.raises(UserError, match=r"results are of arithmetic 1, this version has 2.* must not mix") as caught:
        drive(old, "tpe", tmp_path)
    assert "--name" in str(caught.value).splitlines()[1]
    new = f"sqlite:///{tmp_path / 'new.db'}"
    with Store(new) as store:
        record(store.drive(make_spec(), tiny_target, sampler(make_spec())), measured())
    monkeypatch.setattr(schema, "NUMERICS", 3)
    with Store(new) as store, pytest.raises(UserError, match="results are of arithmetic 2, this version has 3"):
        store.drive(make_spec(), tiny_target, sampler(make_spec()))
    with Store(new) as store, pytest.raises(UserError, match=r"--reuse tiny.*: its results are of arithmetic 2"):
        store.source("tiny", make_spec(name="other"), tiny_target)
    with Store(new, read_only=True) as store:
        assert store.view("tiny").measured == 1


def test_trials_carry_version_and_commit_of_who_measured_them(
    old: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, printed = here("run", "grid.toml", "--name", "again", "--reuse", "grid", "--store", old)
    assert code == 0, printed
    with Store(old, read_only=True) as store:
        trials = store.view("again").trials
    imported = trials["reused_from"].notna()
    assert imported.sum() == 4
    assert set(trials["version"]) == {"0.1.0", ddstudy.__version__}
    assert set(trials.loc[imported, "commit"]) == {"87a1aef"}


@pytest.mark.parametrize("zone", ["UTC", "CET-1", "EST5"])
def test_old_times_are_the_clock_of_who_ran_it_and_new_ones_that_of_who_looks(
    old: str, monkeypatch: pytest.MonkeyPatch, zone: str
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        with Store(old, read_only=True) as store:
            grid, tpe = store.view("grid").trials, store.view("tpe").trials
        # made at 06:21 in a zone of UTC+1: grids and passed budgets were stored so, what a sampler asked for in UTC
        assert set(grid["started"].dt.hour) == {6}
        offset = {"UTC": 0, "CET-1": 1, "EST5": -5}[zone]
        assert tpe["started"].dt.hour.tolist() == [(5 + offset) % 24, 6, (5 + offset) % 24, 6]
        assert datetime(2026, 11, 27) < grid["finished"].min() < datetime(2026, 11, 28)
    finally:
        monkeypatch.undo()
        time.tzset()
