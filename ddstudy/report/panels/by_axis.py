"""A metric over the values of one axis or two: boxes, bars, a heat map."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from ddstudy.report import figures, tables
from ddstudy.report.panels.base import Axis, Filtered, Shown, Table, roughness, settings_of, whose
from ddstudy.report.words import title_of
from ddstudy.spec.schema import MetricName

if TYPE_CHECKING:
    from ddstudy.store.study import StudyView


class _ByAxis(Filtered):
    x: Axis = Field(..., description="axis of the setting across")
    y: MetricName = Field(..., description="metric that is summarised")
    group: Axis | None = Field(None, description="axis of the setting that splits each value of x")

    @model_validator(mode="after")
    def _two_axes(self) -> Self:
        if self.group == self.x:
            raise ValueError("x and group must differ")
        return self


class Quartiles(_ByAxis):
    """How a metric is distributed per value of an axis."""

    kind: Literal["quartiles"]

    def _of_study(self, view: StudyView) -> Shown:
        y, axes = self.y, [self.x, *([self.group] if self.group else [])]
        table = tables.by_axis(self.filter(view.trials), *axes, metrics=(y,))
        who, needed = whose(y)
        sentence = (
            f"{title_of(y)} over {who}: the box is the middle half, the line the median, the dashes are the mean."
        )
        sentence += roughness([view], self, self.y)
        if not table[f"{y}_n"].sum():
            return Shown(sentence, missing=f"Filled by {needed}.")
        names = {"mean": "mean", "least": "min", "lower quartile": "q25", "median": "median", "upper quartile": "q75"}
        names = {heading: f"{y}_{part}" for heading, part in (names | {"greatest": "max"}).items()}
        columns = {axis: axis for axis in axes} | {"measured": "n", "unstable": "unstable_share", "counted": f"{y}_n"}
        return Shown(
            sentence, figures.quartiles(table, self.x, y, self.group), Table(settings_of(table, axes), columns | names)
        )


class Means(_ByAxis):
    """Average of a metric per value of an axis (thesis Figs. 4.2 and 4.3, Tables 4.1 and 4.2)."""

    kind: Literal["means"]

    def _of_study(self, view: StudyView) -> Shown:
        y, axes = self.y, [self.x, *([self.group] if self.group else [])]
        table = tables.by_axis(self.filter(view.trials), *axes, metrics=(y,))
        who, needed = whose(y)
        sentence = f"Average {title_of(y)} over {who}.{roughness([view], self, self.y)}"
        if not table[f"{y}_n"].sum():
            return Shown(sentence, missing=f"Filled by {needed}.")
        columns = {axis: axis for axis in axes} | {f"average {title_of(y)}": f"{y}_mean", "trials": f"{y}_n"}
        return Shown(sentence, figures.means(table, self.x, y, self.group), Table(settings_of(table, axes), columns))


class Heatmap(_ByAxis):
    """Median of a metric for every combination of two axes."""

    kind: Literal["heatmap"]
    group: Axis = Field(..., description="axis of the setting upwards")

    def _of_study(self, view: StudyView) -> Shown:
        x, y, group = self.x, self.y, self.group
        table = tables.by_axis(self.filter(view.trials), group, x, metrics=(y,))
        who, needed = whose(y)
        sentence = f"Median {title_of(y)} over {who}; an empty cell has none.{roughness([view], self, self.y)}"
        if not table[f"{y}_n"].sum():
            return Shown(sentence, missing=f"Filled by {needed}.")
        columns = {group: group, x: x, "measured": "n", "unstable": "unstable_share", "counted": f"{y}_n"}
        columns |= {"median": f"{y}_median"}
        return Shown(sentence, figures.heatmap(table, x, y, group), Table(settings_of(table, [group, x]), columns))
