import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from points import setting_of

from ddstudy.spec.axes import Setting
from ddstudy.spec.files import parse_spec
from ddstudy.store.optuna_rows import TrialStorage, distributions
from ddstudy.store.records import Outcome, Outcomes

SPEC = parse_spec(
    {
        "name": "a",
        "space": {"k": [*range(1, 100)], "s": [8, 16], "l": [4, 5], "iterations": [10, 500]}
        | {"noise": ["uniform", "blur3"], "tiling": ["1x1", "4x5"]},
        "search": {"sampler": "tpe"},
    },
    "test",
)
SPACE = distributions(SPEC.search_space)


def setting(k: int = 8) -> Setting:
    return setting_of(k, 16, 5, 500, "blur3", "4x5")


def measured(k: int = 8, **attrs: Any) -> dict[str, Any]:
    """What a driver records of a result."""
    curve = {"iterations": [500], "seconds": [1.5], "psnr_members": [[30.0, 31.0]]}
    known = {"fit_id": setting(k).fit.id, "iterations_done": 500, "seconds": 1.5, "psnr": 30.25, "stable": True}
    return known | {"shared": False, "device": "ä", "curve": json.dumps(curve), "version": "1"} | attrs


def finished(k: int = 8, state: TrialState = TrialState.COMPLETE, **options: Any) -> FrozenTrial:
    described = {
        "values": [0.5],
        "user_attrs": measured(k),
        "system_attrs": {"artifact": "{}"},
        "intermediate_values": {500: 0.5, 501: float("inf"), 502: float("nan")},
        "constraints": {"cv_percent": -1.0},
        **options,
    }
    params = dict(setting(k))
    trial = create_trial(state=state, params=params, distributions=SPACE, **described)
    trial.datetime_start = datetime(2024, 5, 6, 7, 8, 9)
    return trial


ZONES = [("UTC", "sqlite"), ("CET-1CEST", "sqlite"), ("NST3:30", "sqlite"), ("NST3:30", "postgres")]


@pytest.fixture(params=ZONES, ids="-".join)
def store_url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty database wherever it is: times once were off by the zone's offset, which UTC hides."""
    zone, kind = request.param
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    yield request.getfixturevalue(f"{kind}_url")
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def storage(store_url: str) -> Iterator[TrialStorage]:
    opened = TrialStorage(store_url.replace("postgresql:", "postgresql+psycopg:"))
    opened.make_table()
    yield opened
    opened.remove_session()
    opened.engine.dispose()


def study_of(storage: RDBStorage, name: str = "a", objectives: int = 1) -> int:
    return int(optuna.create_study(storage=storage, study_name=name, directions=["maximize"] * objectives)._study_id)


def results_of(storage: TrialStorage, study: int) -> Outcomes:
    return Outcomes(storage, study, SPEC)


@contextmanager
def statements(engine: sa.Engine) -> Iterator[list[str]]:
    """What is sent to a database meanwhile."""
    sent: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        sent.append(statement)

    sa.event.listen(engine, "before_cursor_execute", note)
    yield sent
    sa.event.remove(engine, "before_cursor_execute", note)


@pytest.mark.parametrize(("key", "value"), [("qmc:0a", "1"), ("NSGAIISampler:parent:1", [1, "2"])])
def test_a_study_whose_sampler_would_fail_is_named(storage: TrialStorage, key: str, value: Any) -> None:
    """The place in a QMC sequence was looked for under a key of an earlier Optuna."""
    for name in ("a", "b"):
        study_of(storage, name)
    storage.set_study_system_attr(storage.get_study_id_from_name("a"), key, value)
    found, damaged = storage.read_studies()
    assert [study.study_name for study in found] == ["b"]
    assert damaged == {"a": f"its attribute '{key}' is not what a sampler keeps"}


@pytest.mark.parametrize(
    ("objectives", "trial"),
    [
        (1, finished()),
        (1, finished(state=TrialState.PRUNED)),
        (1, finished(values=[float("inf")])),
        (1, finished(state=TrialState.PRUNED, values=None, intermediate_values={})),
        (1, finished(state=TrialState.FAIL, values=None, system_attrs={}, user_attrs={}, constraints=None)),
        (2, finished(values=[0.5, -2.0])),
    ],
    ids=["complete", "pruned", "infinite", "diverged", "failed", "two objectives"],
)
def test_added_trials_are_what_optuna_would_have_stored(
    storage: TrialStorage, store_url: str, objectives: int, trial: FrozenTrial
) -> None:
    theirs = RDBStorage(store_url.replace("postgresql:", "postgresql+psycopg:"))
    stored = []
    for writer, name in ((storage, "ours"), (theirs, "theirs")):
        study = study_of(writer, name, objectives)
        for _ in range(2):
            writer.create_new_trial(study, trial)
        stored.append([{**vars(it), "_trial_id": None} for it in theirs.get_all_trials(study)])
    theirs.remove_session()
    theirs.engine.dispose()
    assert repr(stored[0]) == repr(stored[1])  # repr, since NaN is not equal to itself
    assert [it["_number"] if "_number" in it else it["number"] for it in stored[0]] == [0, 1]


def test_adding_and_reading_cost_the_same_however_many_trials_there_are(storage: TrialStorage) -> None:
    study = study_of(storage)
    results = results_of(storage, study)
    counts = []
    for k in range(1, 30):
        with statements(storage.engine) as sent:
            storage.create_new_trial(study, finished(k))
            assert len(results.read()) == k
        counts.append(len(sent))
        assert not any("count(" in statement for statement in sent)
    assert len(set(counts[1:])) == 1
    assert counts[1] < 20


def test_numbers_go_on_after_asked_trials_and_are_of_each_study(storage: TrialStorage) -> None:
    first, second = study_of(storage, "first"), study_of(storage, "second")
    storage.create_new_trial(first)
    storage.create_new_trial(second, finished())
    storage.create_new_trial(first, finished())
    storage.create_new_trial(first)
    assert [trial.number for trial in storage.get_all_trials(first)] == [0, 1, 2]
    assert [trial.number for trial in storage.get_all_trials(second)] == [0]


def test_only_running_trials_are_described(storage: TrialStorage) -> None:
    study = study_of(storage)
    asked = storage.create_new_trial(study)
    for _ in range(2):  # as after a connection that broke: nothing happens twice
        assert storage.describe_result(study, asked, finished(), setting()) is True
    described = storage.get_trial(asked)
    expected = finished()
    assert described.state == TrialState.RUNNING
    assert (described.user_attrs, described.system_attrs) == (expected.user_attrs, expected.system_attrs)
    assert described.constraints == expected.constraints
    assert described.intermediate_values[501] == float("inf")
    closed = storage.create_new_trial(study)
    storage.set_trial_state_values(closed, TrialState.FAIL)
    assert storage.describe_result(study, closed, finished(9), setting(9)) is None
    assert not storage.get_trial(closed).user_attrs
    assert storage.describe_result(study, storage.create_new_trial(study), finished(), setting()) is False


def test_results_are_those_of_all_drivers_also_of_trials_that_were_asked_for_earlier(storage: TrialStorage) -> None:
    study, other = study_of(storage), study_of(storage, "other")
    results = results_of(storage, study)
    assert results.read() == {}
    asked = storage.create_new_trial(study)  # another driver's search, which takes its time
    storage.create_new_trial(other, finished(99))
    storage.create_new_trial(study, finished(1))
    given_up = finished(2, TrialState.FAIL, values=None, user_attrs={"given_up": True, "version": "1"})
    failed = storage.create_new_trial(study, given_up)
    storage.create_new_trial(study, finished(3, TrialState.PRUNED, user_attrs=measured(3, stable=False)))
    storage.create_new_trial(study, finished(4, values=[float("inf")]))
    expected = {
        setting(1): Outcome(TrialState.COMPLETE, True, 0.5),
        setting(3): Outcome(TrialState.PRUNED, False, 0.5),
        setting(4): Outcome(TrialState.COMPLETE, True, float("inf")),
    }
    known = results.read()
    assert known == expected
    assert results.given_up == {failed: setting(2)}
    results.add(setting(5), Outcome(TrialState.COMPLETE, True, 1.0))  # our own
    storage.create_new_trial(study, finished(5, values=[1.0]))
    for axis, distribution in SPACE.items():
        storage.set_trial_param(asked, axis, distribution.to_internal_repr(setting(6)[axis]), distribution)
    assert results.read() is known
    assert setting(6) not in known
    for key, value in measured(6).items():
        storage.set_trial_user_attr(asked, key, value)
    storage.set_trial_state_values(asked, TrialState.COMPLETE, [2.0])
    assert [it["k"] for it in results.read()] == [1, 3, 4, 5, 6]
    assert known[setting(6)] == Outcome(TrialState.COMPLETE, True, 2.0)
    with statements(storage.engine) as sent:
        assert len(results.read()) == 5
    assert len(sent) == 1  # all is finished and read: nothing more to fetch


def test_what_is_read_is_what_optuna_reads(storage: TrialStorage, store_url: str) -> None:
    study = study_of(storage, objectives=2)
    asked = storage.create_new_trial(study)
    storage.set_trial_param(asked, "noise", 1.0, SPACE["noise"])
    values, steps = [0.5, float("-inf")], {500: 0.5, 501: float("inf")}  # no NaN, which is not equal to itself
    for trial in (finished(values=values), finished(9, TrialState.FAIL, values=None)):
        trial.intermediate_values = steps
        storage.create_new_trial(study, trial)
    optuna.load_study(study_name="a", storage=storage).enqueue_trial({"k": 7})
    theirs = RDBStorage(store_url.replace("postgresql:", "postgresql+psycopg:"))
    expected = theirs.get_all_trials(study)
    assert len(expected) == 4
    assert storage.get_all_trials(study) == expected
    assert storage.get_trial(asked) == expected[0]
    running = storage.get_all_trials(study, states=(TrialState.RUNNING,))
    assert [trial._trial_id for trial in running] == [asked]
    assert [vars(it) for it in storage.get_all_studies()] == [vars(it) for it in theirs.get_all_studies()]
    theirs.remove_session()
    theirs.engine.dispose()
