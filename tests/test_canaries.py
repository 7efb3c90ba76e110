"""Private parts of libraries that ddstudy stands on: what is gone in a version is named here, before anything breaks.

pyproject.toml bounds each of these libraries from above. Whoever raises a bound runs these first.
"""

import importlib
import inspect

import pytest

OPTUNA = [
    "optuna.artifacts._upload:ARTIFACTS_ATTR_PREFIX",
    "optuna.artifacts._upload:ArtifactMeta",
    *(f"optuna.storages._rdb.models:{model}Model" for model in ("Study", "Trial", "TrialParam", "TrialValue")),
    "optuna.storages._rdb.models:TrialUserAttributeModel",
    "optuna.storages._rdb.models:TrialSystemAttributeModel",
    "optuna.storages._rdb.models:TrialIntermediateValueModel.intermediate_value_to_stored_repr",
    "optuna.storages._rdb.models:TrialValueModel.value_to_stored_repr",
    "optuna.storages._rdb.models:NOT_FOUND_MSG",
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
DASHBOARD = [
    "optuna_dashboard:wsgi",
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
    for name, parameters in called.items():
        assert list(inspect.signature(getattr(RDBStorage, name)).parameters) == parameters
    columns = {table.name: set(table.columns.keys()) for table in models.BaseModel.metadata.tables.values()}
    from ddstudy.store.optuna_rows import _STUDIES, _TRIALS

    for table, own, parts in (_STUDIES, _TRIALS):
        for name, those in {table: own, **parts}.items():
            assert set(those.split(", ")) <= columns[name]
