"""Priors side by side: what the best setting of each reaches, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field

from ddstudy.images.metrics import METRICS
from ddstudy.report import figures, priors
from ddstudy.report.inverse import case_axes, levels_of
from ddstudy.report.panels.base import Filtered, Panel, Shown, Table, roughness, settings_of, whose
from ddstudy.report.words import MISSING, axes_of, title_of
from ddstudy.spec.schema import MetricName

if TYPE_CHECKING:
    import pandas as pd

    from ddstudy.store.study import StudyView


class Priors(Filtered):
    """The best setting of each prior, its time and parameters, the front of each, and the gain over the handcrafted."""

    wide: ClassVar[bool] = True
    kind: Literal["priors"]
    y: MetricName = Field(..., description="metric of quality that is best")

    def of(self, view: StudyView, panels: Sequence[Panel]) -> list[Self]:
        """None where a study has one prior."""
        return [self] if self._compares(view) else []

    def _compares(self, view: StudyView) -> bool:
        return len(view.spec.values_of(priors.PRIOR)) > 1

    def _of_study(self, view: StudyView) -> Shown:
        if not self._compares(view):
            return Shown("", missing="This takes a study over several values of prior.kind.", never=True)
        y, axes, levels = self.y, axes_of(view), levels_of(view)
        trials = self.filter(view.trials)
        table = priors.best_of_each(trials, axes, levels, y)
        sentence = (
            f"The stable setting with the best {title_of(y)} of each prior, and each prior's Pareto front of that and "
            "seconds."
        )
        if table.empty:
            return Shown(sentence, missing=f"Filled by {whose(y)[1]}.")
        if "gain" in table:
            over = list(dict.fromkeys(table["over"].dropna())) if "over" in table else []
            single = ", of a single member," if over == ["members"] else ""
            sentence += f" The gain{single} is over the best prior without weights on the same measurement"
            sentence += f", with its 95 % interval over {' or '.join(over)}." if over else "."
        sentence += roughness([view], self, "seconds")
        points = priors.fronts(trials, levels, "seconds", y)
        # what is fitted to every case alike is no column
        shown = [axis for axis in axes if axis in table and (axis in levels or axis not in case_axes(axes))]
        columns = {axis: axis for axis in [*levels, priors.PRIOR]} | {title_of(y): y}
        columns |= {"seconds": "seconds", "parameters": "parameters"}
        if "gain" in table:
            columns |= {"gain": "gain"} | ({"95 % interval": "interval"} if "gain_low" in table else {})
        columns |= {"trial": "number"} | {axis: axis for axis in shown if axis not in columns}
        made = settings_of(_with_interval(table, METRICS[y].digits), shown)
        return Shown(sentence, figures.fronts(points, "seconds", y, axes), Table(made, columns))


def _with_interval(table: pd.DataFrame, digits: int) -> pd.DataFrame:
    if "gain_low" not in table:
        return table
    low, high = table["gain_low"], table["gain_high"]
    words = [
        MISSING if one != one else f"{one:+.{digits}f} to {other:+.{digits}f}"  # NaN where there is none
        for one, other in zip(low, high, strict=True)
    ]
    return table.assign(interval=words)
