from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import optuna
import pytest
from points import setting_of

from ddstudy.spec.axes import Setting
from ddstudy.spec.options import THESIS
from ddstudy.spec.schema import Sampler, StudySpec
from ddstudy.store.optuna_rows import distributions
from ddstudy.study.samplers import SpaceExhaustedError, sampler

MakeSpec = Callable[..., StudySpec]
SEARCHES = [name for name in get_args(Sampler) if name != "grid"]
SPACE = {"k": [8, 16, 64], "s": [8, 16], "l": [4, 5], "iterations": [10, 500], "noise": ["uniform", "blur3"]}


def study_of(spec: StudySpec, **options: Any) -> optuna.Study:
    return optuna.create_study(sampler=sampler(spec), directions=list(spec.objectives.values()), **options)


def ask(study: optuna.Study, spec: StudySpec) -> tuple[optuna.Trial, Setting]:
    trial = study.ask(fixed_distributions=distributions(spec.search_space))
    return trial, Setting({axis: trial.params[axis] for axis in THESIS})


def score(setting: Setting) -> float:
    return float(np.log(setting["k"]) + setting["iterations"] / 500 - setting["l"] / 10)


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("objectives", [{"psnr": "maximize"}, {"psnr": "maximize", "seconds": "minimize"}])
def test_every_sampler_visits_every_setting_once_and_then_says_so(
    make_spec: MakeSpec, name: str, objectives: dict[str, str]
) -> None:
    smaller = {**SPACE, "l": [4]} if name == "gp" else SPACE  # a GP thinks a third of a second per proposal
    spec = make_spec(space=smaller, search={"sampler": name}, objectives=objectives)
    study, space = study_of(spec), spec.search_space
    seen = []
    for index in range(len(space)):
        trial, setting = ask(study, spec)
        seen.append(setting)
        if index % 7 == 3:
            trial.set_constraint("cv_percent", 1.0)
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            trial.set_constraint("cv_percent", -1.0)
            study.tell(trial, [score(setting), 1.0 * setting["k"]][: len(objectives)])
    assert len(set(seen)) == len(space)
    assert all(setting in space for setting in seen)
    with pytest.raises(SpaceExhaustedError):
        ask(study, spec)


@pytest.mark.parametrize("name", SEARCHES)
def test_proposals_in_flight_are_of_different_fits(make_spec: MakeSpec, name: str) -> None:
    spec = make_spec(space=SPACE, search={"sampler": name})
    study = study_of(spec)
    asked = [ask(study, spec)[1] for _ in range(8)]
    assert len({setting.fit for setting in asked}) == 8


def test_failed_settings_may_be_proposed_again(make_spec: MakeSpec) -> None:
    spec = make_spec(space={"k": [4], "iterations": [5]}, search={"sampler": "random"})
    study = study_of(spec)
    trial, first = ask(study, spec)
    study.tell(trial, state=optuna.trial.TrialState.FAIL)
    assert ask(study, spec)[1] == first


def test_start_of_a_search_is_uniform_over_the_listed_values(make_spec: MakeSpec) -> None:
    spec = make_spec(space={"k": [8, 16, 32, 64, 96, 128, 192], "iterations": list(range(2000, 2100))})
    spec = spec.model_copy(update={"search": spec.search.model_copy(update={"sampler": "random"})})
    study = study_of(spec)
    counts = dict.fromkeys(spec.search_space["k"], 0)
    for _ in range(350):
        trial, setting = ask(study, spec)
        counts[setting["k"]] += 1
        study.tell(trial, 1.0)
    assert min(counts.values()) > 25  # 50 expected of each; drawn on a log scale, 192 would get 22


def test_tpe_finds_the_best_of_a_large_space_sooner_than_chance(make_spec: MakeSpec) -> None:
    space = {"k": [8, 16, 32, 64, 96, 128, 192], "s": [8, 16, 32], "l": [4, 5, 6], "iterations": [2000, 5000, 7000]}
    needed: dict[str, list[int]] = {"tpe": [], "random": []}
    for name, counts in needed.items():
        for seed in range(6):
            spec = make_spec(space=space, search={"sampler": name, "seed": seed})
            study, best = study_of(spec), max(map(score, spec.search_space))
            setting = None
            while setting is None or score(setting) < best:
                trial, setting = ask(study, spec)
                study.tell(trial, score(setting))
            counts.append(len(study.trials))
    assert np.mean(needed["tpe"]) < 0.8 * np.mean(needed["random"])


def test_same_seed_same_proposals_and_a_continued_study_draws_anew(make_spec: MakeSpec) -> None:
    spec = make_spec(space=SPACE, search={"sampler": "tpe"})
    one, other = study_of(spec), study_of(spec)
    assert [ask(one, spec)[1] for _ in range(5)] == [ask(other, spec)[1] for _ in range(5)]
    first, later = sampler(spec, 0), sampler(spec, 5)
    assert first._rng.integers(2**32) != later._rng.integers(2**32)  # type: ignore[attr-defined]


def test_params_are_true_values(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec(space=SPACE, search={"sampler": "qmc"})
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'a.db'}")
    study = study_of(spec, storage=storage)
    ask(study, spec)
    assert spec.search_space.setting(study.trials[0].params) in spec.search_space
    storage.remove_session()
    storage.engine.dispose()


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_asks_for_the_largest_budget_of_a_fit_unless_time_counts(make_spec: MakeSpec, name: str) -> None:
    space = {**SPACE, "iterations": [10, 50, 500]}
    spec = make_spec(space=space, search={"sampler": name})
    study = study_of(spec)
    asked: list[Setting] = []
    for _ in range(14):
        trial, setting = ask(study, spec)
        assert setting["iterations"] == (500, 50, 10)[[other.fit for other in asked].count(setting.fit)]
        asked.append(setting)
        study.tell(trial, score(setting))
    timed = make_spec(space=space, search={"sampler": name}, objectives={"psnr": "maximize", "seconds": "minimize"})
    study = study_of(timed)
    assert len({ask(study, timed)[1]["iterations"] for _ in range(8)}) > 1


def test_gp_takes_the_unmeasured_setting_that_promises_most(make_spec: MakeSpec) -> None:
    """Its acquisition is looked up at every listed setting: it finds a lonely best value that climbing passes by."""
    space = {"k": [8, 16, 32, 64, 96, 128, 192], "s": [8, 16, 32], "l": [4, 5, 6], "iterations": [2000]}
    spec = make_spec(space=space, search={"sampler": "gp"})
    study, best = study_of(spec), setting_of(96, 16, 5, 2000, "uniform", "1x1")
    asked = []
    while not asked or asked[-1] != best:
        trial, setting = ask(study, spec)
        asked.append(setting)
        axes = ((np.log2(setting["k"]), np.log2(96)), (np.log2(setting["s"]), 4), (setting["l"], 5))
        study.tell(trial, -float(sum((one - other) ** 2 for one, other in axes)))
    assert len(asked) < 30  # of 63
    assert len(set(asked)) == len(asked)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("seed", range(3))
def test_gp_learns_from_unstable_trials(make_spec: MakeSpec, seed: int) -> None:
    """PRUNED trials have values: a GP that has nothing else goes where the objective rises and fits grow stable."""
    space = {"k": [8, 16, 24, 32, 48, 64, 96, 128, 192], "s": [8], "l": [5], "iterations": [2000]}
    spec = make_spec(space=space, search={"sampler": "gp", "seed": seed})
    study = study_of(spec)
    study.set_metric_names(["psnr"])
    for k, psnr, cv in ((24, 28.0, 5.5), (32, 27.0, 6.5), (48, 26.0, 8.0), (96, 24.0, 14.0)):
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.PRUNED,
                params=dict(setting_of(k, 8, 5, 2000, "uniform", "1x1")),
                distributions=distributions(spec.search_space),
                user_attrs={"psnr": psnr, "cv_percent": cv},
                constraints={"cv_percent": cv - 5, "psnr": 15 - psnr},
            )
        )
    assert ask(study, spec)[1]["k"] in (8, 16)  # of 8, 16, 64, 128, 192
