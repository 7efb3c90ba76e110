"""Stores that were edited by hand or damaged on a disk: what can be read is shown, the rest is named, nothing breaks.

The edits are seeded: NULLs, wrong types, broken JSON, unknown states, missing rows, odd distributions and dates in
every table and column, of a real store. What they look for is any traceback, and an answer 500.
"""

import contextlib
import io
import json
import shutil
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from random import Random

import pytest
import sqlalchemy as sa
from old_stores import restore
from test_dashboard import call

from ddstudy import cli, dashboard, open_study
from ddstudy.errors import UserError, WorkError
from ddstudy.images.volumes import load_target
from ddstudy.spec.files import read_spec
from ddstudy.store.database import Store
from ddstudy.store.leases import AtWork
from ddstudy.study.forecasting import outlook
from ddstudy.study.samplers import sampler

Cli = Callable[..., tuple[int, str, str]]
ODD = [
    *(None, "", "abc", "{", "[]", "{}", "null", '"text"', "NaN", "1e999", "-1", "1.5", "true", '{"a": 1}', "9" * 5000),
    *(-1, 0, 1, 2**63 - 1, 1.5, float("inf"), -1e308, b"\xff\xfe", "[" * 3000, '"\\ud800"', "<b>"),
    *("0001-01-01 00:00:00", "9999-12-31 23:59:59", "2026-11-27", "DONE", "RUNNING", "WAITING", "FAIL", "INF_POS"),
    *('{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 5, "high": 1}}',),
    *('{"name": "CategoricalDistribution", "attributes": {"choices": [[1], {"a": 2}]}}',),
]
KEYS = ["stable", "psnr", "constraints:x", "artifacts:x", "fixed_params", "state", "NSGAIISampler:generation", "", None]
FORGIVING = (" NOT NULL", "")  # as tables are that were rebuilt by hand


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store that is sound."""
    folder = tmp_path_factory.mktemp("sound")
    restore(Path(__file__).parent / "data" / "store-87a1aef.sql.gz", folder)
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def ddstudy(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Cli:
    """Runs a command on the store in this process: exit code, output, errors."""
    monkeypatch.setenv("DDSTUDY_STORE", f"sqlite:///{folder / 'old.db'}")
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ddstudy", *arguments])
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            cli.main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out.getvalue(), err.getvalue()

    return run


def edit(file: Path, random: Random) -> None:
    """One to three edits by hand, of rows and columns drawn at random."""
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for _ in range(random.choice([1, 1, 1, 2, 3])):
            table = random.choice(tables)
            columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            ids = [row[0] for row in database.execute(f"SELECT rowid FROM {table}")]
            column = random.choice(columns)
            value: object = random.choice(KEYS if column == "key" else ODD)
            if column == "value_json" and random.random() < 0.7:
                value = json.dumps(random.choice(["x", None, 1, -1, [], {}, 1.5, True, float("nan"), 10**30]))
            with contextlib.suppress(sqlite3.IntegrityError):
                if not ids:
                    continue
                if random.random() < 0.1:
                    database.execute(f"DELETE FROM {table} WHERE rowid = ?", (random.choice(ids),))
                else:
                    database.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (value, random.choice(ids)))


def flip(file: Path, random: Random) -> None:
    """Bytes that a bad disk changed; the file may end early, too."""
    content = bytearray(file.read_bytes())
    for _ in range(random.choice([1, 3, 10, 40])):
        content[random.randrange(100, len(content))] = random.randrange(256)
    file.write_bytes(content[: random.choice([len(content)] * 9 + [random.randrange(len(content))])])


def forgive(file: Path) -> None:
    """Takes NOT NULL from all columns."""
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        database.execute("PRAGMA writable_schema = ON")
        database.execute("UPDATE sqlite_master SET sql = replace(sql, ?, ?) WHERE type = 'table'", FORGIVING)


def drive(folder: Path, name: str) -> None:
    """Begins to go on with a study: reads what is done and asks for more."""
    spec = read_spec(folder / f"{name}.toml")
    with contextlib.suppress(UserError, WorkError), Store(f"sqlite:///{folder / 'old.db'}") as store:
        driven = store.drive(spec, load_target(spec.target), sampler(spec))
        driven.study.sampler = sampler(spec, len(driven.measured()))
        if len(driven.measured()) < len(spec.search_space):
            driven.ask()


@pytest.mark.parametrize(("damage", "cases"), [(edit, 5), (flip, 5)])
def test_no_damage_ends_in_a_traceback(
    sound: Path, folder: Path, ddstudy: Cli, damage: Callable[[Path, Random], None], cases: int
) -> None:
    codes = set()
    for seed in range(cases):
        random = Random(seed)
        for name in ("old.db", "old.db-wal", "old.db-shm"):
            (folder / name).unlink(missing_ok=True)
        file = folder / "old.db"
        shutil.copy(sound / "old.db", file)
        if random.random() < 0.5:
            forgive(file)
        damage(file, random)
        name = random.choice(["grid", "tpe", "pareto"])
        for command in (("status",), ("export", name), *[("report", name)] * (seed % 8 == 0)):
            code, _, err = ddstudy(*command)
            codes.add(code)
            assert code in (0, 1, 2), (seed, err)
            assert (code == 0) == (not err), (seed, err)
            assert len(err.splitlines()) <= 14, (seed, err)
        with contextlib.suppress(UserError), Store(f"sqlite:///{file}", read_only=True) as store:
            app = dashboard.app(store.storage, None)
            for path in ("/api/studies", *(f"/api/studies/{study}" for study in (1, 2, 3))):
                assert call(app, "GET", path)[0] in (200, 404, 503), (seed, path)
        drive(folder, name)
    assert codes == {0, 1, 2}


@pytest.mark.parametrize("gone", [False, True], ids=["garbage", "gone"])
def test_the_dashboard_says_that_its_store_cannot_be_read(sound: Path, folder: Path, gone: bool) -> None:
    """It asked the store before it was ready for what that may raise: a 500 with a traceback."""
    file = folder / "old.db"
    shutil.copy(sound / "old.db", file)
    with Store(f"sqlite:///{file}", read_only=True) as store:
        app = dashboard.app(store.storage, folder)
        file.write_bytes(b"garbage" * 1000)
        if gone:
            file.unlink()
        store.storage.engine.dispose()
        for path in ("/api/studies", "/api/studies/1", "/api/studies/1/param_importances", "/csv/1", "/artifacts/1/a"):
            status, _, body = call(app, "GET", path)
            assert status == 503, path
            assert b"cannot be read" in body


TRIAL_2 = "(SELECT trial_id FROM trials WHERE number = 2 AND study_id = 1)"


@pytest.mark.parametrize(
    ("edits", "why"),
    [
        (f"UPDATE trials SET state = 'DONE' WHERE trial_id = {TRIAL_2}", "its state is 'DONE'"),
        (f"UPDATE trials SET datetime_start = 'noon' WHERE trial_id = {TRIAL_2}", "a time of it is 'noon'"),
        (
            f"UPDATE trials SET datetime_complete = NULL WHERE trial_id = {TRIAL_2}",
            "it is COMPLETE and has no time of its",
        ),
        (f"DELETE FROM trial_values WHERE trial_id = {TRIAL_2}", "it is COMPLETE and has no value"),
        (
            f"UPDATE trial_user_attributes SET value_json = '{{' WHERE key = 'psnr' AND trial_id = {TRIAL_2}",
            "its attribute 'psnr' is no JSON",
        ),
        (
            f"UPDATE trial_user_attributes SET value_json = '\"30\"' WHERE key = 'psnr' AND trial_id = {TRIAL_2}",
            "its attribute 'psnr' is no number",
        ),
        (
            f"DELETE FROM trial_user_attributes WHERE key = 'stable' AND trial_id = {TRIAL_2}",
            "it is no result of ddstudy: it has no attribute 'stable'",
        ),
        (
            f"UPDATE trial_user_attributes SET value_json = '\"[]\"' WHERE key = 'curve' AND trial_id = {TRIAL_2}",
            "its attribute 'curve' is not that of a fit",
        ),
        (
            f"UPDATE trial_params SET param_value = 7 WHERE param_name = 'tiling' AND trial_id = {TRIAL_2}",
            "its parameter 'tiling' is 7.0",
        ),
        (
            f"UPDATE trial_params SET distribution_json = '{{}}' WHERE param_name = 'k' AND trial_id = {TRIAL_2}",
            "the distribution of its parameter 'k' cannot be read",
        ),
        (
            f"UPDATE trial_system_attributes SET value_json = '\"x\"' WHERE key LIKE 'constraints:c%' "
            f"AND trial_id = {TRIAL_2}",
            "its constraint 'cv_percent' is no number",
        ),
    ],
)
def test_a_trial_that_cannot_be_read_is_named_and_the_others_are_shown(
    folder: Path, ddstudy: Cli, edits: str, why: str
) -> None:
    with contextlib.closing(sqlite3.connect(folder / "old.db")) as database, database:
        assert database.execute(edits).rowcount == 1
    code, out, err = ddstudy("status")
    assert code == 1
    assert f"grid: trial 2 is left out: {why}" in err
    assert len(err.splitlines()) == 2
    assert "tpe" in out
    assert "pareto" in out
    code, out, err = ddstudy("export", "grid")
    assert (code, "(3 trials)" in out, why in err) == (1, True, True)
    assert ddstudy("export", "tpe")[0] == 0
    with pytest.warns(UserWarning, match="grid: trial 2 is left out"):
        assert len(open_study("grid", f"sqlite:///{folder / 'old.db'}").trials) == 3
    spec = read_spec(folder / "grid.toml")
    with Store(f"sqlite:///{folder / 'old.db'}") as store:
        driven = store.drive(spec, load_target(spec.target), sampler(spec))
        assert len(driven.measured()) == 3
        free = next(setting for setting in spec.search_space if setting not in driven.measured())
        assert driven.leases.take(free.fit.id)  # and may be measured again


@pytest.mark.parametrize("key", ["spec", "facts"])
def test_a_study_that_cannot_be_read_is_named_and_the_others_are_shown(folder: Path, ddstudy: Cli, key: str) -> None:
    with contextlib.closing(sqlite3.connect(folder / "old.db")) as database, database:
        where = f"key = 'ddstudy:{key}' AND study_id = 2"
        database.execute(f"UPDATE study_user_attributes SET value_json = '\"{{\"' WHERE {where}")
        database.execute("UPDATE study_directions SET direction = 'UP' WHERE study_id = 3")
    code, out, err = ddstudy("status")
    assert code == 1
    assert "study 'pareto' cannot be read: the direction of an objective is 'UP'" in err
    assert "study 'tpe': its " in err
    assert "cannot be read" in err
    assert "grid" in out
    for name in ("tpe", "pareto"):
        code, _, err = ddstudy("export", name)
        assert (code, f"study '{name}'" in err, len(err.splitlines())) == (2, True, 2)
        code, _, err = ddstudy("run", str(folder / f"{name}.toml"))
        assert (code, f"study '{name}'" in err, len(err.splitlines())) == (2, True, 2)
    assert ddstudy("export", "grid")[0] == 0


def test_what_a_driver_tells_may_be_odd(folder: Path) -> None:
    """`status --watch` ended in a traceback."""
    url = f"sqlite:///{folder / 'old.db'}"
    ends = [f'{{"worker": "w", "ends": {value}}}' for value in ("1e999", "NaN", '"soon"', "9" * 400, "true")]
    with Store(url) as store, Store(url, read_only=True) as looking:
        lease = "INSERT INTO ddstudy_claims (study_id, fit, driver, expires, doing) VALUES (1, 'k1', 'a/1/b', 9e9, ?)"
        for doing in [*ODD, *ends, '{"worker": 1}', '{"iteration": "x"}', '{"of": null}', '{"fit": "k2"}']:
            if doing is None or type(doing) is bytes:
                continue  # which the table or its driver refuses
            with store.storage.engine.begin() as connection:
                connection.exec_driver_sql("DELETE FROM ddstudy_claims")
                connection.exec_driver_sql(lease, (doing,))
            at_work = looking.at_work("grid")
            assert at_work == [AtWork("k1", "a/1")], doing
            outlook(looking.view("grid"), at_work, datetime.now())


def test_a_damaged_study_is_named_where_the_latest_is_asked_for(folder: Path, ddstudy: Cli) -> None:
    """Another one was taken for it, and nothing said."""
    with contextlib.closing(sqlite3.connect(folder / "old.db")) as database, database:
        database.execute("UPDATE study_directions SET direction = 'UP' WHERE study_id = 3")
    why = "study 'pareto' cannot be read: the direction of an objective is 'UP'"
    for command in ("logs", "export", "report", "findings"):
        code, out, err = ddstudy(command)
        assert (code, why in err) == (1, True)
        assert "tpe" in out + err or command == "report"
    with pytest.warns(UserWarning, match="study 'pareto' cannot be read"):
        assert open_study(store=f"sqlite:///{folder / 'old.db'}").name == "tpe"
    for name, said in (("pareto", why), ("tpe", "differs: search.seed")):
        spec = folder / f"{name}.toml"
        spec.write_text(spec.read_text().replace('"tpe"', '"tpe"\nseed = 1'))
        for options in ((), ("--dry-run",)):  # which went on
            code, _, err = ddstudy("run", str(spec), *options)
            assert (code, said in err, len(err.splitlines())) == (2, True, 2), err


def test_a_store_that_cannot_be_opened_is_left_by_all_connections(folder: Path) -> None:
    with contextlib.closing(sqlite3.connect(folder / "old.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'v99'")
    counts: Counter[str] = Counter()
    listeners = {name: lambda *_, name=name: counts.update([name]) for name in ("connect", "close")}
    for name, listener in listeners.items():
        sa.event.listen(sa.Pool, name, listener)
    try:
        with pytest.raises(UserError, match="cannot be opened"):
            Store(f"sqlite:///{folder / 'old.db'}")
    finally:
        for name, listener in listeners.items():
            sa.event.remove(sa.Pool, name, listener)
    assert counts["connect"] == counts["close"] > 0
