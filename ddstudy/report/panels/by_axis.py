"""A metric over the values of one axis or two: boxes, bars, a heat map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from ddstudy.report import figures, tables
from ddstudy.report.panels.base import Axis, Filtered, Panel, Shown, Table, roughness, settings_of, whose
from ddstudy.report.words import named, title_of
from ddstudy.spec.options import OPTIONS
from ddstudy.spec.schema import MetricName

if TYPE_CHECKING:
    from ddstudy.store.study import StudyView


OTHERS = "others"  # every axis that no other panel of the kind has across


class _ByAxis(Filtered):
    x: Axis = Field(..., description="axis of the setting across")
    y: MetricName = Field(..., description="metric that is summarised")
    group: Axis | None = Field(None, description="axis of the setting that splits each value of x")

    @model_validator(mode="after")
    def _two_axes(self) -> Self:
        if self.group == self.x:
            raise ValueError("x and group must differ")
        return self

    @property
    def axes(self) -> list[str]:
        return [self.x, *([self.group] if self.group else [])]

    def of(self, view: StudyView, panels: Sequence[Panel]) -> list[Self]:
        """None where an axis has one value in the study, which says nothing; those of `others` for each of these."""
        space = view.spec.search_space
        if self.x != OTHERS:
            return [self] if any(axis not in space.names or len(space[axis]) > 1 for axis in self.axes) else []
        alike = [panel for panel in panels if isinstance(panel, type(self)) and panel.y == self.y]
        shown = {axis for panel in alike for axis in panel.axes}
        others = [axis for axis in view.axes if axis not in shown and len(space[axis]) > 1]
        return [self.model_copy(update={"x": axis, "title": f"{self.title} {OPTIONS[axis].label}"}) for axis in others]

    def show(self, views: Sequence[StudyView]) -> Shown:
        """What it shows of a study."""
        if missing := [axis for axis in self.axes if axis not in views[0].axes]:
            return Shown("", missing=f"Filled by a study that searches {' and '.join(missing)}.", never=True)
        return super().show(views)


class Quartiles(_ByAxis):
    """How a metric is distributed per value of an axis."""

    kind: Literal["quartiles"]
    x: Axis | Literal["others"] = Field(..., description="axis of the setting across; 'others': a panel for each other")

    def _of_study(self, view: StudyView) -> Shown:
        y, axes = self.y, self.axes
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
        y, axes = self.y, self.axes
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

    def of(self, view: StudyView, panels: Sequence[Panel]) -> list[Self]:
        """None where it would be one row or one column."""
        space = view.spec.search_space
        return [self] if all(axis not in space.names or len(space[axis]) > 1 for axis in self.axes) else []

    def _of_study(self, view: StudyView) -> Shown:
        x, y, group = self.x, self.y, self.group
        table = tables.by_axis(self.filter(view.trials), group, x, metrics=(y,))
        who, needed = whose(y)
        sentence = f"Median {title_of(y)} over {who}; an empty cell has none.{roughness([view], self, self.y)}"
        if not table[f"{y}_n"].sum():
            return Shown(sentence, missing=f"Filled by {needed}.")
        for axis in self.axes:
            if len(values := tables.values_of(table, axis)) == 1:
                so_far = f"so far all have {named(axis, values[0])}"
                return Shown(sentence, missing=f"Filled by trials of a second value of {axis}; {so_far}.")
        columns = {group: group, x: x, "measured": "n", "unstable": "unstable_share", "counted": f"{y}_n"}
        columns |= {"median": f"{y}_median"}
        return Shown(sentence, figures.heatmap(table, x, y, group), Table(settings_of(table, [group, x]), columns))
