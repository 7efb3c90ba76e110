"""How axes, metrics and settings are written, for people: one place for tables, figures, panels and pages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ddstudy.errors import counted
from ddstudy.images.metrics import METRICS
from ddstudy.spec.options import OPTIONS

if TYPE_CHECKING:
    from ddstudy.spec.schema import StudySpec
    from ddstudy.store.study import StudyView

FACETS = ("noise", "tiling")  # the thesis' pairs: by these, settings are grouped unless a panel names other axes
MISSING = "\u2013"  # of an option that does not apply, and of what was not measured
_STATISTICS = ("1dd", "mean", "min", "q25", "median", "q75", "max")  # of a metric, as columns of tables have them
_TITLES = {
    "mse": "mean squared error",
    "judge": METRICS["judge"].title,  # an ensemble of judges it is not
}
_JUDGES = {
    "truth": "the truth",
    "repeat": "the repeat, a second measurement",
    "held_out": "held-out samples of the measurement, which no loss sees",
}


def title_of(name: str) -> str:
    """An axis or a metric with its unit, as it stands beside an axis of a figure."""
    if name in METRICS and name not in _TITLES:
        metric = METRICS[name]
        # single members have one of their own, so it is said whose this is
        return f"ensemble {metric.title}" if "members" in metric.inputs else metric.title
    if name in _TITLES or name not in OPTIONS:
        return _TITLES.get(name, name)
    option = OPTIONS[name]
    return f"{option.label} ({option.unit})" if option.unit else option.label


def ensemble_of(spec: StudySpec) -> str:
    """The name of a study's ensemble, as the thesis has it: `5DD`; `nDD` where the number of members is searched."""
    members = spec.values_of("fit.members")
    return f"{members[0]}DD" if len(members) == 1 else "nDD"


def with_whose(metric: str, ensemble: str) -> str:
    """A metric as it is named in study files, with the ensemble where single members have one of their own."""
    return f"{metric} {ensemble}" if "members" in METRICS[metric].inputs else metric


def about_judge(*specs: StudySpec) -> str:
    """What the judge's score of studies is, in a sentence."""
    against = dict.fromkeys(_JUDGES[spec.judge.against] for spec in specs)
    unknown = "; the truth is not known" * (not all(spec.knows_truth for spec in specs))
    return f"The judge's score is PSNR against {' or '.join(against)}{unknown}."


def about_cases(spec: StudySpec) -> str:
    """What the settings of a study are judged over, in a sentence."""
    cases = spec.cases
    first, *others = cases.chosen_by
    names = f"{first} to {others[-1]}" if others else first
    how = {"mean": "the mean", "worst": "the worst", "quantile": f"the {cases.quantile:g} quantile from the worst"}
    held_out = f"; {counted(len(cases.held_out), 'case')} held out" if cases.held_out else ""
    return f"Each number is {how[cases.objective]} over {counted(len(cases.chosen_by), 'case')} ({names}){held_out}."


def digits_of(column: str) -> int | None:
    """Digits after the point of a metric, or of a statistic of one; None of other columns."""
    if column not in METRICS:
        column, _, statistic = column.rpartition("_")
        if statistic not in _STATISTICS:
            return None
    return METRICS[column].digits if column in METRICS else None


def axes_of(*views: StudyView) -> tuple[str, ...]:
    """The axes of studies, in their order; each is a column of the table of trials."""
    searched = {axis for view in views for axis in view.axes}
    return tuple(axis for axis in OPTIONS if axis in searched)


def text_of(value: Any) -> str:
    """A value of an axis; a dash where the option does not apply."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    return f"{value:g}" if isinstance(value, float) else str(value)


def named(axis: str, value: Any) -> str:
    """A value of an axis with its name, where it does not speak for itself: `k 64`, `sigma 0.1`, `uniform`."""
    if axis == "iterations":
        return f"{text_of(value)} iterations"
    if axis in (*FACETS, "prior.kind"):
        return text_of(value)
    return f"{axis.removeprefix('task.').removeprefix('prior.')} {text_of(value)}"


def in_words(setting: Mapping[Any, Any], axes: Sequence[str]) -> str:
    """A setting, without options that do not apply: `k 64, s 16, l 5, 2000 iterations, uniform, 1x1`."""
    missing = {
        axis for axis in axes if text_of(setting[axis]) == MISSING or (axis == "iterations" and not setting[axis])
    }
    return ", ".join(named(axis, setting[axis]) for axis in axes if axis not in missing)


def in_braces(setting: Mapping[Any, Any], axes: Sequence[str]) -> str:
    """A setting as the thesis has it: `{64, 16, 5, 2000} uniform 1x1`."""
    inside = ", ".join(text_of(setting[axis]) for axis in axes if axis not in FACETS)
    return " ".join([f"{{{inside}}}", *(text_of(setting[axis]) for axis in axes if axis in FACETS)])
