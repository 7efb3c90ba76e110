"""What the levels of a task do to the best setting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field

from ddstudy.report import figures, inverse
from ddstudy.report.panels.base import Axis, Filtered, Panel, Shown, Table, settings_of, whose
from ddstudy.report.words import text_of, title_of
from ddstudy.spec.options import OPTIONS
from ddstudy.spec.schema import MetricName

if TYPE_CHECKING:
    from ddstudy.store.study import StudyView

_ALL = "levels"  # every axis of the task that makes it harder or easier


class ByLevel(Filtered):
    """The best setting at every noise level, acceleration, share or factor, beside the measurement itself."""

    kind: Literal["by_level"]
    x: Axis | Literal["levels"] = Field("levels", description="axis of the task across; 'levels': a panel for each")
    y: MetricName = Field("psnr", description="metric that is best")

    def of(self, view: StudyView, panels: Sequence[Panel]) -> list[Self]:
        """One for each level of the task that has several values."""
        if self.x != _ALL:
            return [self]
        levels = [axis for axis in inverse.levels_of(view) if axis in inverse.LEVELS]
        titles = {axis: f"{self.title} {OPTIONS[axis].label}" for axis in levels}
        return [self.model_copy(update={"x": axis, "title": title}) for axis, title in titles.items()]

    def _of_study(self, view: StudyView) -> Shown:
        y, levels, space = self.y, inverse.levels_of(view), view.spec.search_space
        searched = [axis for axis in levels if axis in inverse.LEVELS]
        level = self.x if self.x != _ALL else next(iter(searched), None)
        if level not in levels:
            wanted = self.x if self.x != _ALL else " or ".join(inverse.LEVELS)
            return Shown("", missing=f"Filled by a study of a task that searches {wanted}.", never=True)
        groups = [axis for axis in levels if axis != level]
        axes = {axis: space[axis] for axis in view.axes}
        trials, name = self.filter(view.trials), OPTIONS[level].label
        if y != view.spec.quality:
            trials = trials.assign(baseline=math.nan)  # which is in that metric
        table = inverse.by_level(trials, level, y, axes, groups)
        setting = [axis for axis in inverse.setting_axes(view.axes) if len(space[axis]) > 1]
        sentence = f"{title_of(y)} of the best stable setting at each {name}"
        sentence += ", and what that setting is worth at the others (thin)" * (table[level].nunique() > 1)
        if table["baseline"].notna().any():
            sentence += "; dotted, the measurement itself without any fit"
        cases = int(table["cases"].max()) if len(table) else 1
        sentence += f". Settings are averaged over {cases} measurements." if cases > 1 else "."
        if table.empty:
            return Shown(sentence, missing=f"Filled by {whose(y)[1]}.")
        if absent := [text_of(value) for value in space[level] if value not in set(table[level])]:
            sentence += f" At {', '.join(absent)} no setting is stable so far."
        lines = inverse.carried(trials, level, y, axes, groups)
        columns = {axis: axis for axis in [*groups, level]} | {title_of(y): y}
        if table["baseline"].notna().any():
            columns |= {"measurement (dB)": "baseline", "gain (dB)": "gain"}
        columns |= {axis: axis for axis in setting} | {"at an end of its list": "ends", "settings": "settings"}
        drawn = figures.by_level(table, lines, level, y, groups, setting)
        return Shown(sentence, drawn, Table(settings_of(table, [*groups, level, *setting]), columns))
