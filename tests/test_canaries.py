"""Private parts of libraries that ddstudy stands on: what is gone in a version is named here, before anything breaks.

pyproject.toml bounds each of these libraries from above. Whoever raises a bound runs these first. Of Optuna they are
the contract of `ddstudy.store.optuna_rows`: each private part has its name here, and does what is expected of it.
"""

import ast
import importlib
import inspect
import warnings
from pathlib import Path

import optuna
import optuna_dashboard
import pytest
from optuna.artifacts import get_all_artifact_meta
from optuna.distributions import FloatDistribution
from optuna.storages import InMemoryStorage
from plotly.graph_objects import Figure
from private_names import private_uses

from ddstudy import dashboard
from ddstudy.store import optuna_rows

OPTUNA = [
    "optuna.artifacts._upload:ARTIFACTS_ATTR_PREFIX",
    "optuna.artifacts._upload:ArtifactMeta",
    *(f"optuna.storages._rdb.models:{model}Model" for model in ("Study", "Trial", "TrialParam", "TrialValue")),
    "optuna.storages._rdb.models:TrialUserAttributeModel",
    "optuna.storages._rdb.models:TrialSystemAttributeModel",
    "optuna.storages._rdb.models:TrialIntermediateValueModel.intermediate_value_to_stored_repr",
    "optuna.storages._rdb.models:TrialValueModel.value_to_stored_repr",
    "optuna.storages._rdb.models:NOT_FOUND_MSG",
    "optuna.study._constrained_optimization:_CONSTRAINTS_KEY",
    "optuna.study.study:_SYSTEM_ATTR_METRIC_NAMES",
    "optuna.storages._rdb.storage:RDBStorage._get_trials",
    "optuna.storages._rdb.storage:RDBStorage._set_trial_param",
    "optuna.storages._cached_storage:_CachedStorage._read_trials_from_remote_storage",
    "optuna.study._frozen:FrozenStudy",
    "optuna.samplers:BaseGASampler._get_generation_key",
    "optuna.samplers:BaseGASampler._get_parent_cache_key_prefix",
    "optuna.samplers:GPSampler._optimize_acqf",
    "optuna._gp.search_space:SearchSpace.get_normalized_params",
    "optuna._gp.acqf:BaseAcquisitionFunc.eval_acqf_no_grad",
]
OF_OBJECTS = ["_study_id", "_trial_id", "_rng"]  # of Optuna's classes, which have them once they are made
DASHBOARD = [
    "optuna_dashboard:wsgi",
    "optuna_dashboard:save_note",
    "optuna_dashboard:save_plotly_graph_object",
    *(
        f"optuna_dashboard._app:{name}"
        for name in ("get_pareto_front_trials", "get_plotly_graph_objects", "get_trials")
    ),
    "optuna_dashboard._custom_plot_data:get_plotly_graph_objects",
    "optuna_dashboard._pareto_front:get_pareto_front_trials",
    "optuna_dashboard._serializer:CONSTRAINTS_KEY",
]
NUMBA = [
    *(f"numba.core.cgutils:{name}" for name in ("alloca_once_value", "for_range", "get_or_insert_function")),
    "numba.core.cgutils:unpack_tuple",
    *(f"numba.core.typing.templates:{name}" for name in ("AbstractTemplate", "infer_global", "signature")),
    *(f"numba.extending:{name}" for name in ("intrinsic", "lower_builtin", "models", "register_model")),
    *(f"llvmlite.ir:{name}" for name in ("Type", "VectorType", "Constant", "IntType")),
    "llvmlite.binding:get_host_cpu_features",
]
RAY = [
    "ray.util.scheduling_strategies:NodeAffinitySchedulingStrategy",
    *(f"ray.exceptions:{name}" for name in ("RayError", "OutOfMemoryError", "ActorUnavailableError")),
    "ray._private.services:canonicalize_bootstrap_address",
    "ray._private.accelerators:RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO_ENV_VAR",
]


@pytest.mark.parametrize("parts", [OPTUNA, DASHBOARD, NUMBA, RAY], ids=["optuna", "optuna_dashboard", "numba", "ray"])
def test_the_private_parts_that_are_used_are_there(parts: list[str]) -> None:
    gone = []
    for part in parts:
        module, _, names = part.partition(":")
        try:
            found = importlib.import_module(module)
            for name in names.split("."):
                found = getattr(found, name)
        except (AttributeError, ImportError):
            gone.append(part)
    assert not gone, f"gone: {', '.join(gone)}"


def test_what_is_overridden_is_called_as_before() -> None:
    from optuna.storages import RDBStorage
    from optuna.storages._rdb import models

    called = {"_get_trials": ["self", "study_id", "states", "included_trial_ids", "trial_id_greater_than"]}
    called["_set_trial_param"] = ["self", "trial_id", "param_name", "param_value_internal", "distribution"]
    called["_set_trial_param"] += ["previous_distribution"]
    called["_optimize_acqf"] = ["self", "acqf", "best_params"]
    for name, parameters in called.items():
        theirs = optuna.samplers.GPSampler if name == "_optimize_acqf" else RDBStorage
        assert list(inspect.signature(getattr(theirs, name)).parameters) == parameters, name
    columns = {table.name: set(table.columns.keys()) for table in models.BaseModel.metadata.tables.values()}
    from ddstudy.store.optuna_rows import _STUDIES, _TRIALS

    for table, own, parts in (_STUDIES, _TRIALS):
        for name, those in {table: own, **parts}.items():
            assert set(those.split(", ")) <= columns[name], name


def test_every_private_part_of_optuna_that_is_used_is_named_here() -> None:
    """What is used and not listed would fail somewhere, some day, under another name."""
    named = {part for one in OPTUNA for part in (one, one.rpartition(".")[2])} | set(OF_OBJECTS)
    modules = {one.partition(":")[0] for one in OPTUNA}
    for use in private_uses(ast.parse(Path(optuna_rows.__file__).read_text()), {}):
        assert use in named or use.replace(":", ".") in modules, use


@pytest.fixture
def storage() -> InMemoryStorage:
    return InMemoryStorage()


@pytest.fixture
def study(storage: InMemoryStorage) -> optuna.Study:
    """A genetic search of 9 trials with a limit each, in populations of 4."""

    def measured(trial: optuna.Trial) -> float:
        trial.set_constraint("cv_percent", float(trial.number - 5))
        return trial.suggest_float("x", 0, 1)

    sampler = optuna.samplers.NSGAIISampler(seed=0, population_size=4)
    study = optuna.create_study(storage=storage, sampler=sampler, study_name="genetic")
    study.optimize(measured, n_trials=9)
    return study


def test_ids_are_those_that_storages_know(storage: InMemoryStorage, study: optuna.Study) -> None:
    """Only private names tell them: `_study_id`, `_trial_id`."""
    [frozen] = storage.get_all_studies()
    wanted = storage.get_study_id_from_name("genetic")
    assert optuna_rows.id_of(study) == optuna_rows.id_of(frozen) == wanted
    for known in (study.ask(), *study.trials):
        wanted = storage.get_trial_id_from_study_id_trial_number(optuna_rows.id_of(study), known.number)
        assert optuna_rows.id_of(known) == wanted


def test_optuna_keeps_its_own_attributes_under_the_keys_that_are_looked_for(
    storage: InMemoryStorage, study: optuna.Study
) -> None:
    """A damaged value under a key that is not looked for would pass, and end whatever of Optuna reads it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(["psnr"])
        qmc = optuna.samplers.QMCSampler(seed=0, warn_independent_sampling=False)
        qmc.sample_relative(study, study.trials[0], {"x": FloatDistribution(0, 1)})
    study.enqueue_trial({"x": 0.25})
    [frozen] = storage.get_all_studies()
    parts = (optuna_rows._SYSTEM_ATTR_METRIC_NAMES, optuna_rows._PARENTS, optuna_rows._QMC)
    for part in parts:
        assert any(part in key for key in frozen.system_attrs), part
    measured, waiting = study.trials[8], study.trials[-1]
    for part in (optuna_rows._GENERATION, f"{optuna_rows._CONSTRAINTS_KEY}:"):
        assert any(part in key for key in measured.system_attrs), part
    assert optuna_rows.enqueued(waiting) == {"x": 0.25}, optuna_rows._ENQUEUED
    measured.system_attrs = optuna_rows.with_one_list_of_constraints(measured)
    assert dict(measured.constraints) == {"0": 3.0}  # once, as Optuna reads what is from before version 5


def test_the_latest_generation_is_the_one_that_optuna_gives_next(study: optuna.Study) -> None:
    sampler = study.sampler
    assert isinstance(sampler, optuna.samplers.BaseGASampler)
    [(key, generation)] = optuna_rows.latest_generation(sampler, study.trials).items()
    assert generation == max(sampler.get_trial_generation(study, trial) for trial in study.trials) == 2
    study.add_trial(optuna.create_trial(value=0.5, system_attrs={key: generation}))
    assert len(sampler.get_population(study, generation)) == 2
    assert optuna_rows.latest_generation(optuna.samplers.RandomSampler(), study.trials) == {}


def test_images_are_found_by_optunas_own_function(storage: InMemoryStorage, study: optuna.Study) -> None:
    attribute = optuna_rows.image_attribute("0af", "output.png")
    study.add_trial(optuna.create_trial(value=0.5, system_attrs=attribute))
    [meta] = get_all_artifact_meta(study.trials[-1], storage=storage)
    assert optuna_rows.images_of(study.trials[-1]) == {key: vars(meta) for key in attribute}
    assert (meta.artifact_id, meta.filename, meta.mimetype) == ("0af", "output.png", "image/png")


def test_a_gp_decides_between_what_is_listed(study: optuna.Study) -> None:
    study.sampler = sampler = optuna_rows.ListedGP(seed=0, n_startup_trials=2)
    sampler.candidates, sampler.looks = [{"x": value / 64} for value in range(33)], 8
    for _ in range(3):
        assert study.ask({"x": FloatDistribution(0, 1)}).params["x"] * 64 in range(33)


def test_notes_and_figures_are_saved_as_the_dashboard_reads_them(storage: InMemoryStorage, study: optuna.Study) -> None:
    saved = dashboard._saved_note("a note") | dashboard._saved_figures({"b": Figure(), "a": Figure()})
    for key, value in saved.items():
        storage.set_study_system_attr(optuna_rows.id_of(study), key, value)
    assert optuna_dashboard.get_note(study) == "a note"
    assert dashboard._in_order(saved) == {"a": Figure().to_json(), "b": Figure().to_json()}
