import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import optuna
import postgres
import pytest
import sqlalchemy as sa
from drivers import beside
from old_stores import restore
from optuna.artifacts import get_all_artifact_meta
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from points import fit_of, setting_of

import ddstudy
from ddstudy.errors import UserError, WorkError
from ddstudy.execution.executors import InProcess
from ddstudy.images.volumes import Target
from ddstudy.spec.axes import Setting
from ddstudy.spec.options import THESIS
from ddstudy.spec.schema import StudySpec
from ddstudy.store.database import Store
from ddstudy.store.optuna_rows import distributions
from ddstudy.store.study import StudyView
from ddstudy.store.urls import parse_url, said
from ddstudy.store.writer import StudyWriter
from ddstudy.study import forecasting, runner
from ddstudy.study.evaluate import Result
from ddstudy.study.samplers import POPULATION, sampler

MakeSpec = Callable[..., StudySpec]
FIT = fit_of(2, 4, 2, "uniform", "1x1")
SETTING = setting_of(2, 4, 2, 5, "uniform", "1x1")


def measured(**values: Any) -> Result:
    numbers: dict[str, Any] = {
        "psnr": 30.25,
        "ssim": 0.9,
        "cv_percent": 2.5,
        "sd_db": 0.7,
        "seconds": 1.5,
        "iterations_done": 5,
        "parameters": 52,
        "device": "a processor",
        "engine": "reference",
        **values,
    }
    output = np.full((1, 27, 22), 0.5, dtype=np.float32)
    curve: dict[str, list[object]] = {"iterations": [5], "seconds": [1.5], "psnr_members": [[30.0, 31.0]]}
    return Result(5, {k: v for k, v in numbers.items() if v is not None}, output, curve, False)


def record(driven: StudyWriter, result: Result, setting: Setting = SETTING) -> None:
    driven.record(setting, result, shared=False, started=datetime.now())


@pytest.fixture
def drive(
    store_url: str, tmp_path: Path, make_spec: MakeSpec, tiny_target: Target
) -> Iterator[Callable[..., StudyWriter]]:
    with contextlib.ExitStack() as stores:

        def start(spec: StudySpec | None = None, target: Target = tiny_target, **options: Any) -> StudyWriter:
            spec = spec or make_spec()
            store = stores.enter_context(Store(store_url, tmp_path / "images", **options))
            driven = store.drive(spec, target, sampler(spec))
            driven.store = store  # type: ignore[attr-defined]  # for tests that close it or look behind it
            return driven

        yield start


def look(url: str, name: str | None = None) -> StudyView:
    with Store(url, read_only=True) as store:
        return store.view(name)


def test_result_comes_back_as_it_went_in(drive: Callable[..., StudyWriter], store_url: str) -> None:
    driven = drive()
    started = datetime.now()
    driven.record(SETTING, measured(vif=0.5), shared=True, started=started)
    view = look(store_url)
    (row,) = view.trials.to_dict("records")
    assert view.name == "tiny"
    assert view.spec.fingerprint() == driven.spec.fingerprint()
    assert view.facts["target"] == driven.target.name
    assert Setting({axis: row[axis] for axis in THESIS}) == SETTING
    assert (row["psnr"], row["ssim"], row["vif"], row["cv_percent"], row["seconds"]) == (30.25, 0.9, 0.5, 2.5, 1.5)
    assert row["state"] == "COMPLETE"
    assert row["stable"] is True
    assert row["reason"] == ""
    assert row["shared"] is True
    assert np.isnan(row["ms_ssim"])
    assert abs((row["started"] - started).total_seconds()) < 1
    assert set(driven.measured()) == {SETTING}
    (trial,) = driven.trials()
    assert trial.params["k"] == 2  # true values, for every other view of the database
    assert json.loads(trial.user_attrs["curve"])["psnr_members"] == [[30.0, 31.0]]
    assert trial.constraints == {"cv_percent": -47.5, "psnr": -30.25, "vif": -9.5}


def test_a_study_of_a_later_version_is_shown_as_far_as_it_is_understood(
    drive: Callable[..., StudyWriter], store_url: str
) -> None:
    driven = drive()
    tree = json.loads(driven.spec.stored())
    driven.study.set_user_attr("ddstudy:spec", json.dumps({**tree, "solver": {"name": "lbfgs"}}))
    assert look(store_url).spec == driven.spec
    driven.study.set_user_attr("ddstudy:spec", json.dumps({**tree, "schema": 99}))
    with pytest.raises(UserError, match="study 'tiny': its study file is of a later version"):
        look(store_url)


def test_states_and_constraints(drive: Callable[..., StudyWriter], make_spec: MakeSpec) -> None:
    limits = {"cv_percent": 5.0, "min_psnr": 15.0}
    cases = [
        ({}, "COMPLETE", True),
        ({"cv_percent": 7.0}, "PRUNED", False),
        ({"psnr": 12.0}, "PRUNED", False),
        ({"vif": 11.0}, "PRUNED", False),
        ({"psnr": None, "cv_percent": None}, "PRUNED", False),  # diverged
    ]
    settings = list(make_spec(space={"l": [2, 3]}).search_space)
    for prune in (True, False):
        driven = drive(make_spec(name=f"p{prune}", space={"l": [2, 3]}, stability={**limits, "prune": prune}))
        for setting, (values, state, stable) in zip(settings, cases, strict=False):
            record(driven, measured(**values), setting)
            trial = driven.trials()[-1]
            diverged = values.get("psnr", 0) is None
            assert trial.state.name == (state if prune or diverged else "COMPLETE")
            assert trial.user_attrs["stable"] is stable
            assert (max(trial.constraints.values()) <= 0) is stable
            assert bool(trial.user_attrs["reason"]) is not stable
            if trial.state == TrialState.PRUNED and not diverged:
                assert trial.value == trial.user_attrs["psnr"]  # never the CV
        driven.store.close()


def test_asked_trials_get_the_same_record(drive: Callable[..., StudyWriter], make_spec: MakeSpec) -> None:
    for objectives in ({"psnr": "maximize"}, {"psnr": "maximize", "seconds": "minimize"}):
        spec = make_spec(name=f"o{len(objectives)}", objectives=objectives, search={"sampler": "tpe"})
        driven = drive(spec)
        for values in ({}, {"cv_percent": 70.0}):
            trial, setting = driven.ask()
            driven.record(setting, measured(**values), shared=False, started=datetime.now(), trial=trial)
            asked = driven.trials()[-1]
            other = next(s for s in driven.space if s not in driven.measured())
            record(driven, measured(**values), other)
            added = driven.trials()[-1]
            assert asked.state == added.state
            assert asked.constraints == added.constraints
            assert asked.user_attrs == added.user_attrs | {"fit_id": setting.fit.id}
            assert asked.values == added.values
            assert asked.intermediate_values == added.intermediate_values
        driven.store.close()


def test_images_are_artifacts_of_the_trial(
    drive: Callable[..., StudyWriter], make_spec: MakeSpec, tmp_path: Path
) -> None:
    driven = drive()
    record(driven, measured())
    record(driven, measured(), setting_of(4, 4, 2, 5, "uniform", "1x1"))
    metas = [get_all_artifact_meta(trial, storage=driven.store.storage) for trial in driven.trials()]
    first, second = ({meta.filename: meta.artifact_id for meta in one} for one in metas)
    assert set(first) == set(second) == {"target.png", "output.png", "error.png"}
    assert first["target.png"] == second["target.png"]  # stored once
    for artifact in first.values():
        assert (tmp_path / "images" / artifact).read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "images").iterdir())) == 5
    driven.store.close()
    bare = drive(make_spec(name="bare", images=False))
    record(bare, measured())
    assert not get_all_artifact_meta(bare.trials()[0], storage=bare.store.storage)


def test_changed_study_is_refused_with_the_difference(
    drive: Callable[..., StudyWriter], make_spec: MakeSpec, tiny_target: Target
) -> None:
    first = drive()
    record(first, measured())
    first.store.close()
    drive(make_spec(description="only words", fit={"device": "cpu"})).store.close()
    with pytest.raises(UserError, match=r"fit\.seed: stored 0, now 7") as caught:
        drive(make_spec(fit={"seed": 7}))
    assert "--name" in str(caught.value).split("\n")[1]
    with pytest.raises(UserError, match=r"space\.k: stored \[2, 4\], now \[2\]"):
        drive(make_spec(space={"k": [2]}))
    with pytest.raises(UserError, match="objectives"):
        drive(make_spec(objectives={"seconds": "minimize"}))
    with pytest.raises(UserError, match=r"target: stored .* with other pixels"):
        drive(target=Target(1 - tiny_target.image, tiny_target.name, tiny_target.affine))


def test_leases_are_exclusive(store_url: str, make_spec: MakeSpec, tiny_target: Target) -> None:
    spec = make_spec()
    first_store = Store(store_url, lease_seconds=0.9)
    first = first_store.drive(spec, tiny_target, sampler(spec))
    second = beside(second_store := Store(store_url, lease_seconds=0.9), first)
    assert first.leases.take(FIT.id)
    assert not second.leases.take(FIT.id)
    assert first.leases.holds(FIT.id)
    assert not second.leases.holds(FIT.id)
    assert second.leases.take(fit_of(4, 4, 2, "uniform", "1x1").id)
    time.sleep(1.5)  # longer than the lease: the lease is alive because its driver renews it
    assert first.leases.holds(FIT.id)
    assert not second.leases.take(FIT.id)
    first.leases._ended.set()  # as if it had died: nothing renews its leases any more
    first.leases._renewer.join()
    deadline = time.monotonic() + 10
    while not second.leases.take(FIT.id):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not first.leases.holds(FIT.id)
    first.leases.release(FIT.id)  # must not free what is another's now
    assert second.leases.holds(FIT.id)
    second.leases.end()
    assert first.leases.take(FIT.id)
    second_store.close()
    first_store.close()


def test_lease_that_is_looked_at_stays_for_half_a_lease(
    store_url: str, make_spec: MakeSpec, tiny_target: Target
) -> None:
    spec = make_spec()
    with Store(store_url, lease_seconds=3) as store:
        first = store.drive(spec, tiny_target, sampler(spec))
        first.leases._ended.set()  # nothing else renews it
        first.leases._renewer.join()
        assert first.leases.take(FIT.id)
        taken = time.monotonic()
        store.driver = "another"
        second = beside(store, first)
        time.sleep(1.8)
        assert first.leases.holds(FIT.id)
        time.sleep(max(0, taken + 3.1 - time.monotonic()))
        assert not second.leases.take(FIT.id)
        second.leases.end()


def test_abandoned_trials_are_closed_with_the_reason(
    store_url: str, drive: Callable[..., StudyWriter], make_spec: MakeSpec
) -> None:
    spec = make_spec(search={"sampler": "random"})
    dead = drive(spec, lease_seconds=0.2)
    _, setting = dead.ask()
    dead.leases.take(setting.fit.id)
    dead.leases._ended.set()
    dead.leases._renewer.join()
    dead.store._stack.pop_all()  # died without a word
    if store_url.startswith("sqlite"):
        Path(f"{store_url.removeprefix('sqlite:///')}.lock").unlink(missing_ok=True)
    time.sleep(0.3)  # past the lease
    living = drive(spec, lease_seconds=0.2)
    (trial,) = living.trials()
    assert trial.state == TrialState.FAIL
    assert "died" in trial.user_attrs["reason"]
    assert not living.measured()


def test_drivers_that_start_together_make_one_study(
    postgres_url: str, make_spec: MakeSpec, tiny_target: Target
) -> None:
    spec = make_spec()

    def begin(_: int) -> int:
        with Store(postgres_url) as store:
            return int(store.drive(spec, tiny_target, sampler(spec)).study._study_id)

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(begin, range(6))) == {1}


def test_second_driver_of_a_sqlite_file_is_refused(tmp_path: Path, make_spec: MakeSpec, tiny_target: Target) -> None:
    url, spec = f"sqlite:///{tmp_path / 'one.db'}", make_spec()
    with Store(url) as one:
        one.drive(spec, tiny_target, sampler(spec))
        with Store(url) as two, pytest.raises(UserError, match="another ddstudy run"):
            two.drive(spec, tiny_target, sampler(spec))
    with Store(url) as three:
        three.drive(spec, tiny_target, sampler(spec))


def test_a_transaction_that_reads_first_keeps_others_from_writing_before_it(
    tmp_path: Path, make_spec: MakeSpec, tiny_target: Target
) -> None:
    url, spec = f"sqlite:///{tmp_path / 'one.db'}", make_spec()
    count, change = sa.text("SELECT count(*) FROM studies"), sa.text("UPDATE studies SET study_name = 'renamed'")
    with Store(url) as store:
        store.drive(spec, tiny_target, sampler(spec))
        other = sa.create_engine(url, connect_args={"timeout": 0})
        with store.storage.engine.begin() as connection:
            assert connection.scalar(count) == 1
            with pytest.raises(sa.exc.OperationalError, match="locked"), other.begin() as late:
                late.execute(change)
            connection.execute(change)
        with other.begin() as late:
            assert late.execute(change).rowcount == 1
        other.dispose()


def test_read_only_store_refuses_writes(store_url: str, drive: Callable[..., StudyWriter]) -> None:
    driven = drive()
    record(driven, measured())
    with Store(store_url, read_only=True) as looking:
        study = looking.storage.get_all_studies()[0]
        with pytest.raises(StorageInternalError) as caught:
            looking.storage.set_study_user_attr(study._study_id, "a", 1)
        assert "read" in str(caught.value.__cause__)
        assert "only" in str(caught.value.__cause__)
        assert len(looking.view("tiny").trials) == 1
        with pytest.raises(UserError, match="no study 'other'"):
            looking.view("other")


def test_empty_store_and_unfinished_trials_have_the_same_columns(
    drive: Callable[..., StudyWriter], store_url: str, make_spec: MakeSpec
) -> None:
    driven = drive(make_spec(search={"sampler": "random"}))
    empty = look(store_url).trials
    driven.ask()
    asked = look(store_url).trials
    assert list(empty.columns) == list(asked.columns)
    assert len(empty) == len(asked) == 0
    driven.record_failure(SETTING, "out of memory")
    failed = look(store_url).trials
    assert list(failed.columns)[: len(empty.columns)] == list(empty.columns)
    assert failed.iloc[0][["state", "reason"]].tolist() == ["FAIL", "out of memory"]
    assert np.isnan(failed.iloc[0]["psnr"])


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("study.db", "not a database URL"),
        ("", "not a database URL"),
        ("sqlite://", "no SQLite file"),
        ("sqlite://study.db", "no SQLite file"),
        ("sqlite:///:memory:", "no SQLite file"),
        ("mysql://root:hidden@localhost/db", "mysql"),
        ("postgresql+asyncpg://root:hidden@localhost/db", "a postgresql URL"),
        ("hidden://root:hidden@localhost/db", "a foreign URL"),
        ("postgresql://root:hid@den@localhost/db", "%40"),
        ("postgresql://ro/ot:hidden@localhost/db", "an '@' where none belongs"),
        ("postgresql:///root:hidden@localhost/db", "an '@' where none belongs: postgresql:///***:***@***/***"),
        ("postgresql://root@localhost:99999/hidden", "no valid port"),
        ("postgresql://root:a@local host/hidden", "no valid host"),
        ("postgresql://localhost/db#hidden", "no valid database"),
        ("postgresql://root:a@localhost/db?x&hidden=1", "an option that is none of PostgreSQL's"),
        ("postgresql://root@hidden:hidden/db", "not a database URL"),
        ("postgresql+psycopg//root:hidden@h//://db", "not a database URL"),  # took all before '://' for the scheme
        ("sqlite:///a.db?timeout=hidden", "SQLite takes none"),  # each ended in a traceback
        ("sqlite:///a.db?cache=%00", "SQLite takes none"),
    ],
)
def test_urls_that_are_refused_without_repeating_them(url: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_url(url)
    assert said in str(caught.value)
    assert "den" not in str(caught.value)
    assert len(str(caught.value).split("\n")) == 2


def test_no_mistake_in_a_url_shows_a_password(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = Random(13)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as closed:
        port = closed.getsockname()[1]
    said: set[str] = set()
    for _ in range(300):
        parts = ["".join(random.choices("QXZWKV", k=4)) for _ in range(3)]  # in no word, host or path
        password = "".join(part + random.choice(["", *"@:/#%?&=[] \\{}$"]) for part in parts)
        scheme = random.choice(
            ["postgresql", "postgres", "postgresql+psycopg2", "postgresql+psycopg", "sqlite", "mysql"]
        )
        url = [scheme, "://", "me", ":", password, "@", "127.0.0.1", f":{port}", "/", "db", random.choice(["", "?a=b"])]
        for _ in range(random.choice([0, 0, 1, 1, 2])):
            place = random.randrange(len(url))
            url[place] = random.choice(["", url[place] * 2, "/", "@", ":", "?", f"?password={password}"])
        for read_only in (True, False):
            try:
                with Store("".join(url), tmp_path, read_only=read_only) as store:
                    said.add(store.shown_url)
            except UserError as error:
                said.add(str(error))
            shown = str(said) + "".join(capsys.readouterr())
            assert not [part for part in parts if part in shown], url
    assert len(said) > 30
    assert all(len(message.split("\n")) <= 2 for message in said)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg", "postgresql+psycopg2"])
def test_every_name_of_postgresql_is_understood(scheme: str) -> None:
    parsed = parse_url(f"{scheme}://me:pass/wo:rd%40@localhost/db")
    assert parsed.drivername == "postgresql+psycopg"
    assert (parsed.password, parsed.host, parsed.database) == ("pass/wo:rd@", "localhost", "db")


def test_passwords_are_never_shown(postgres_url: str) -> None:
    with Store(postgres_url) as store:
        assert postgres.PASSWORD not in store.shown_url
        assert "***" in store.shown_url
    for wrong in (postgres_url.replace("@", "xyz@"), f"{postgres_url}_none"):
        with pytest.raises(UserError) as caught:
            Store(wrong)
        assert postgres.PASSWORD not in str(caught.value)
        assert len(str(caught.value).split("\n")) == 2


def test_unreachable_server_is_named_without_passwords() -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as closed:
        port = closed.getsockname()[1]
    for read_only in (True, False):
        with pytest.raises(UserError) as caught:
            Store(f"postgresql://me:hidden@127.0.0.1:{port}/db?sslpassword=hidden", read_only=read_only)
        assert f"postgresql+psycopg://me:***@127.0.0.1:{port}/db" in str(caught.value)
        assert "hidden" not in str(caught.value)
        assert len(str(caught.value).split("\n")) == 2


def test_database_of_another_optuna(drive: Callable[..., StudyWriter], store_url: str) -> None:
    with drive().store.storage.engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = 'v2.6.0.a'"))
    with pytest.raises(UserError, match="optuna storage upgrade"):
        Store(store_url, read_only=True)


def test_missing_file_and_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such database"):
        Store(f"sqlite:///{tmp_path / 'none.db'}", read_only=True)
    with pytest.raises(UserError, match="no such folder"):
        Store(f"sqlite:///{tmp_path / 'none' / 'a.db'}")
    assert not list(tmp_path.iterdir())


def test_no_file_is_left_beside_what_is_no_regular_file(tmp_path: Path) -> None:
    """SQLite made a journal beside /dev/full."""
    os.mkfifo(tmp_path / "pipe")
    for read_only in (True, False):
        with pytest.raises(UserError, match="is no regular file"):
            Store(f"sqlite:///{tmp_path / 'pipe'}", read_only=read_only)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.parametrize("content", [b"", b"text " * 999], ids=["empty", "text"])
def test_file_that_is_no_database_of_ours(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "other.db"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"other\.db: (cannot be opened|no studies yet)"):
        Store(f"sqlite:///{file}", read_only=True)
    assert file.read_bytes() == content
    if content:
        with pytest.raises(UserError, match=r"other\.db: cannot be opened"):
            Store(f"sqlite:///{file}")
        assert file.read_bytes() == content


@pytest.mark.parametrize("relative", [False, True])
def test_odd_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool, make_spec: MakeSpec, tiny_target: Target
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("a b?c%20#ü&mode=rw")
    folder.mkdir()
    file = folder / "study {1}.db"
    # SQLAlchemy's own escaping: '?' would begin the options of a URL
    url = sa.URL.create("sqlite", database=str(file if relative else file.absolute())).render_as_string()
    spec = make_spec()
    with Store(url) as store:
        record(store.drive(spec, tiny_target, sampler(spec)), measured())
    assert sorted(path.name for path in folder.iterdir() if not path.name.endswith(("-wal", "-shm", ".lock"))) == [
        "study {1}-artifacts",
        "study {1}.db",
    ]
    assert len(look(url).trials) == 1


def test_distributions_hold_the_listed_values(make_spec: MakeSpec) -> None:
    space = make_spec(space={"k": [8, 192, 16], "noise": ["uniform", "simplex"]}).search_space
    for name, axis in distributions(space).items():
        for value in space[name]:
            assert axis._contains(axis.to_internal_repr(value))


def test_a_setting_has_one_result_whoever_records_at_the_same_time(
    store_url: str, drive: Callable[..., StudyWriter], make_spec: MakeSpec, tiny_target: Target
) -> None:
    spec = make_spec(search={"sampler": "random"})
    one = drive(spec)
    two = beside(one.store, one)  # a driver beside it, past every lease
    trial, setting = one.ask()
    assert two.record(setting, measured(), shared=False, started=datetime.now()) is not None
    assert one.record(setting, measured(), shared=False, started=datetime.now(), trial=trial) is None
    assert one.record(setting, measured(), shared=False, started=datetime.now()) is None
    one.fail(trial, "another was faster")
    assert [trial.state.name for trial in one.trials()] == ["FAIL", "COMPLETE"]
    two.leases.end()


def test_a_driver_that_died_while_it_told_a_result_leaves_the_setting_free(
    drive: Callable[..., StudyWriter], make_spec: MakeSpec
) -> None:
    driven = drive(make_spec(search={"sampler": "random"}))
    trial, setting = driven.ask()
    system_attrs = {"ddstudy:result": f"{driven.study._study_id}/{setting.id}"}
    driven.store.storage.set_trial_system_attr(trial._trial_id, *next(iter(system_attrs.items())))
    driven.fail(trial, "the driver of this trial died")
    assert driven.record(setting, measured(), shared=False, started=datetime.now(), trial=trial) is not None
    assert [trial.state.name for trial in driven.trials()] == ["FAIL", "COMPLETE"]
    assert driven.record(setting, measured(), shared=False, started=datetime.now()) is None


def test_leases_count_the_drivers_that_died_with_a_fit(
    store_url: str, make_spec: MakeSpec, tiny_target: Target
) -> None:
    spec = make_spec()
    with Store(store_url, lease_seconds=-1) as store:  # every lease is over at once
        dead = store.drive(spec, tiny_target, sampler(spec))
        counts = []
        for name in "abc":
            store.driver = name
            living = beside(store, dead)
            assert living.leases.take(FIT.id)
            counts.append(living.leases.deaths[FIT.id])
            living.leases._ended.set()
        assert counts == [0, 1, 2]
        assert living.leases.orphans() == {FIT.id}
        living.leases.release(FIT.id)  # done, or given up
        assert living.leases.orphans() == set()
        assert dead.leases.take(FIT.id)
        assert dead.leases.deaths[FIT.id] == 0


def test_images_that_cannot_be_written_cost_no_number(drive: Callable[..., StudyWriter], tmp_path: Path) -> None:
    (tmp_path / "images").write_text("no folder")
    driven = drive()
    record(driven, measured())
    (trial,) = driven.trials()
    assert trial.state == TrialState.COMPLETE
    assert trial.user_attrs["images"].startswith("not kept: ")
    assert driven.store.view("tiny").lost_images == "1 trials never had theirs kept"


def test_leases_of_an_older_database_get_their_new_column(store_url: str, make_spec: MakeSpec) -> None:
    with Store(store_url) as store, store.storage.engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE ddstudy_claims DROP COLUMN deaths"))
    with Store(store_url) as store:
        columns = {column["name"] for column in sa.inspect(store.storage.engine).get_columns("ddstudy_claims")}
    assert "deaths" in columns


def forecast_of(seconds: float) -> forecasting.Forecast:
    known = forecasting.Forecast()
    known.learn("deep_decoder auto", 1e6, seconds)
    return known


def copy_study(source: str, name: str, target: str, copy: str) -> None:
    """As `optuna.copy_study`, which leaves its connections open."""
    storages = [RDBStorage(parse_url(url).render_as_string(hide_password=False)) for url in (source, target)]
    optuna.copy_study(from_study_name=name, from_storage=storages[0], to_storage=storages[1], to_study_name=copy)
    for storage in storages:
        storage.remove_session()
        storage.engine.dispose()


def test_copies_are_studies_of_their_own(
    store_url: str, drive: Callable[..., StudyWriter], make_spec: MakeSpec, tiny_target: Target, tmp_path: Path
) -> None:
    first = drive()
    record(first, measured(psnr=31.5))
    first.store.close()
    elsewhere = f"sqlite:///{tmp_path / 'copies.db'}"
    places = [(store_url, "copy"), (store_url, "beside"), (elsewhere, "first"), (elsewhere, "second")]
    for url, name in places:
        copy_study(store_url, "tiny", url, name)
    for url, name in places:
        spec = make_spec(name=name, space={"k": [2, 4, 8]})  # beside the original, a list that grows
        with Store(url) as store:
            driven = store.drive(spec, tiny_target, sampler(spec))
            assert set(driven.measured()) == {SETTING}
            assert driven.record(SETTING, measured(), shared=False, started=datetime.now()) is None
            if name == "copy":
                with contextlib.closing(InProcess(1)) as executor:
                    last = list(runner.run(driven, executor, forecast_of(0.001)))[-1]
                assert (last.done, last.failed) == (6, 0)
            assert store.view(name).trials.iloc[0]["psnr"] == 31.5
    assert [len(look(store_url, name).trials) for name in ("tiny", "copy", "beside")] == [1, 6, 1]


def test_a_store_of_the_first_version_may_be_copied_within(tmp_path: Path) -> None:
    url = restore(Path(__file__).parent / "data" / "store-87a1aef.sql.gz", tmp_path)
    with Store(url):  # opened for writing: the index that kept a mark from being there twice is gone
        pass
    copy_study(url, "grid", url, "copy")
    assert look(url, "copy").measured == 4


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_a_genetic_search_goes_on_in_a_copy(
    drive: Callable[..., StudyWriter], make_spec: MakeSpec, tiny_target: Target, store_url: str
) -> None:
    spec = make_spec(space={"k": [*range(2, 30)]}, search={"sampler": "nsga2", "trials": 50})
    driven = drive(spec)
    for _ in range(POPULATION + 2):  # one into the second generation, for which parents are noted
        trial, setting = driven.ask()
        driven.record(setting, measured(), shared=False, started=datetime.now(), trial=trial)
    driven.store.close()
    copy_study(store_url, "tiny", store_url, "copy")
    copy = drive(spec.model_copy(update={"name": "copy"}))
    for _ in range(3):
        copy.ask()
    assert len(copy.measured()) == POPULATION + 2


def test_what_was_enqueued_is_tried_first_or_refused_in_words(
    drive: Callable[..., StudyWriter], make_spec: MakeSpec
) -> None:
    driven = drive(make_spec(search={"sampler": "random"}))
    record(driven, measured())
    for params in (dict(SETTING), {"k": 3}, {"k": [2]}, {"noise": "pink"}, {"tiling": 4}, {"iterations": 10, "k": 4}):
        driven.study.enqueue_trial(params)
    trial, setting = driven.ask()
    assert setting == setting_of(4, 4, 2, 10, "uniform", "1x1")
    driven.record(setting, measured(), shared=False, started=datetime.now(), trial=trial)
    _, *refused, last = driven.trials()
    assert last.state == TrialState.COMPLETE
    reasons = [trial.user_attrs["reason"] for trial in refused]
    assert "has a result already" in reasons[0]
    assert "enqueued with k = 3, which the study does not list" in reasons[1]
    assert len(reasons) == 5
    assert driven.ask()[1]["k"] in (2, 4)


def test_trials_that_are_not_ours_are_no_results(drive: Callable[..., StudyWriter], make_spec: MakeSpec) -> None:
    driven = drive(make_spec(search={"sampler": "tpe"}))
    record(driven, measured())
    good = driven.trials()[0]
    space = distributions(driven.space)
    other = {**space, "k": optuna.distributions.IntDistribution(1, 99, log=True)}
    params = {**good.params, "k": 4}
    foreign = [
        optuna.trial.create_trial(value=99.0, params=params, distributions=space),
        optuna.trial.create_trial(
            value=99.0, params={**params, "k": 77}, distributions=other, user_attrs=good.user_attrs
        ),
        optuna.trial.create_trial(value=99.0, params={"k": 4}, distributions={"k": space["k"]}),
        optuna.trial.create_trial(value=99.0, params=params, distributions=space, user_attrs=good.user_attrs),
    ]
    for trial in foreign:  # by another program: a study of Optuna's keeps what it adds itself
        driven.store.storage.create_new_trial(driven.study._study_id, trial)
    view = driven.store.view()
    assert view.measured == 1
    assert len(view.records) == 1  # what --reuse imports
    assert list(view.left_out) == ["1", "2", "3", "4"]
    assert [why.split(":")[0] for why in view.left_out.values()] == [
        "it is no result of ddstudy",
        "k = 77 is not in the lists of the study",
        "its parameters are not those of a setting",
        "its attribute 'fit_id' is of another fit",
    ]
    assert len(driven.measured()) == len(driven.trials()) == 1  # neither Optuna nor its samplers see the others
    _, setting = driven.ask()
    assert setting != SETTING
    assert driven.record(setting_of(4, 4, 2, 5, "uniform", "1x1"), measured(), shared=False, started=datetime.now())


def test_a_run_ends_where_the_store_refuses_a_result_that_nobody_can_read(
    store_url: str, make_spec: MakeSpec, tiny_target: Target
) -> None:
    spec = make_spec()
    with Store(store_url, lease_seconds=2) as store, contextlib.closing(InProcess(1)) as executor:
        driven = store.drive(spec, tiny_target, sampler(spec))
        foreign = optuna.trial.create_trial(value=1.0)  # another program's, noted meanwhile as if it were a result
        trial = store.storage.create_new_trial(driven.study._study_id, foreign)
        store.storage.note_results(driven.study._study_id, {}, {SETTING.id: trial})
        steps = list(runner.run(driven, executor, forecast_of(0.001)))
        assert (steps[-1].done, steps[-1].failed) == (3, 1)
        assert any("cannot be read" in step.message for step in steps)
    with Store(store_url) as store, contextlib.closing(InProcess(1)) as executor:  # the next run finds it out
        driven = store.drive(spec, tiny_target, sampler(spec))
        last = list(runner.run(driven, executor, forecast_of(0.001)))[-1]
        assert (last.done, last.failed) == (4, 0)


def test_damaged_rows_cost_their_trials_only(drive: Callable[..., StudyWriter], store_url: str) -> None:
    driven = drive()
    for setting in list(driven.space)[:3]:
        record(driven, measured(), setting)
    with driven.store.storage.engine.begin() as connection:  # a time that no driver for Python can read
        connection.execute(sa.text("UPDATE trials SET datetime_start = 'infinity' WHERE number = 0"))
        broken = "UPDATE trial_user_attributes SET value_json = '{' WHERE key = 'psnr' AND trial_id = 2"
        connection.execute(sa.text(broken))
    view = look(store_url)
    assert view.trials["number"].tolist() == [2]
    assert len(view.left_out) == 2
    assert "its attribute 'psnr' is no JSON" in view.left_out.values()


def test_a_store_that_fails_is_told_without_secrets(tmp_path: Path) -> None:
    """Only what failed while it was opened was masked."""
    file = tmp_path / "me:hidden@h.db"
    with pytest.raises(WorkError) as caught, Store(f"sqlite:///{file}") as store, store.storage.engine.begin() as row:
        row.exec_driver_sql(f"ATTACH '{file / 'x'}' AS other")
    assert str(caught.value).startswith("the store failed: unable to open database")
    assert "the same command goes on" in str(caught.value)
    assert "hidden" not in str(caught.value)
    error = sa.exc.OperationalError("", {}, Exception("no user 'me' with password hidden at h\nmore"))
    url = parse_url("postgresql://me:hidden@h/db?sslpassword=secret")
    assert said(error, url) == "no user 'me' with password *** at h"
    wrapped = StorageInternalError("see below")
    wrapped.__cause__ = error
    assert said(wrapped, url) == said(error, url)


def test_long_identities_are_kept_also_in_a_store_that_had_no_room_for_them(
    store_url: str, make_spec: MakeSpec, tiny_target: Target, tmp_path: Path
) -> None:
    """PostgreSQL minds the length of a text, SQLite does not."""
    with Store(store_url) as store:
        store.drive(make_spec(), tiny_target, sampler(make_spec()))
        if not store.is_sqlite:
            with store.storage.engine.begin() as connection:  # as the first versions made them
                connection.exec_driver_sql("ALTER TABLE ddstudy_claims ALTER COLUMN fit TYPE VARCHAR(100)")
                connection.exec_driver_sql("ALTER TABLE ddstudy_measured ALTER COLUMN setting TYPE VARCHAR(100)")
    name = "a" * 100
    spec = make_spec(name="long", cases={"table": [{"name": name}]})
    assert spec.by_case is not None
    (setting, *_) = spec.by_case.search_space
    assert len(setting.id) > 100
    study = ddstudy.run(spec, store=store_url, artifacts=tmp_path / "images", threads=1)
    assert (study.view.measured, study.cases is not None and study.cases.view.measured) == (4, 4)
