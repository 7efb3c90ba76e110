"""How a search went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field

from ddstudy.report import figures, tables
from ddstudy.report.panels.base import Filtered, Panel, Shown, Table, settings_of
from ddstudy.report.words import title_of
from ddstudy.spec.schema import MetricName

if TYPE_CHECKING:
    from ddstudy.store.study import StudyView


class History(Filtered):
    """The best stable trial so far over the trials of a search."""

    kind: Literal["history"]
    y: MetricName = Field(..., description="metric that grows better")

    def of(self, view: StudyView, panels: Sequence[Panel]) -> list[Self]:
        """None of a grid, whose order says nothing."""
        return [self] if view.spec.search.sampler != "grid" else []

    def _of_study(self, view: StudyView) -> Shown:
        sentence = f"{title_of(self.y)} of each stable trial in the order in which they finished, and the best so far."
        table = tables.history(self.filter(view.trials), self.y)
        if table.empty:
            return Shown(sentence, missing=f"Filled by stable trials with {title_of(self.y)}.")
        better = table[table["best"] != table["best"].shift()]
        columns = {"trial": "number", title_of(self.y): self.y} | {axis: axis for axis in view.axes}
        shown = Table(settings_of(better, view.axes), columns)
        return Shown(sentence, figures.history(table, self.y, view.axes), shown, thumbnails=True)
