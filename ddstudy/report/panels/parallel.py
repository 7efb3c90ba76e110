"""Trials as lines through their settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from ddstudy.images.metrics import METRICS
from ddstudy.report import figures, tables
from ddstudy.report.inverse import levels_of
from ddstudy.report.panels.base import Filtered, Shown, Table, settings_of, whose
from ddstudy.report.words import title_of
from ddstudy.spec.options import OPTIONS
from ddstudy.spec.schema import MetricName

if TYPE_CHECKING:
    from ddstudy.store.study import StudyView


class Parallel(Filtered):
    """Every trial as a line through its setting, the best ones in front."""

    wide: ClassVar[bool] = True
    kind: Literal["parallel"]
    y: MetricName = Field(..., description="metric that ranks the trials")

    def _of_study(self, view: StudyView) -> Shown:
        y, space = self.y, view.spec.search_space
        axes = [axis for axis in view.axes if len(space[axis]) > 1] or list(view.axes)  # one value tells nothing
        levels = levels_of(view)
        lines = tables.parallel(self.filter(view.trials), y, axes, levels=levels)
        word = "lowest" if METRICS[y].minimized else "highest"
        of_each = f" of each {' and '.join(OPTIONS[axis].label for axis in levels)}" if levels else ""
        sentence = (
            f"Each line is a trial; blue are the {int(lines['best'].sum()):,} with the {word} {title_of(y)}{of_each} "
            "(5 %). Around a value the lines are ordered by it, so a blue bundle marks what the best settings share."
        )
        if lines.empty:
            return Shown("Each line is a trial, the best ones in blue.", missing=f"Filled by {whose(y)[1]}.")
        best = lines[lines["best"]]
        columns = {"trial": "number"} | {axis: axis for axis in axes} | {title_of(y): y}
        return Shown(sentence, figures.parallel(lines, y, axes), Table(settings_of(best, axes), columns))
