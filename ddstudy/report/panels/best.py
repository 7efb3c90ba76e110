"""The best settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Self

import pandas as pd
from pydantic import Field

from ddstudy.images.metrics import METRICS
from ddstudy.report import tables
from ddstudy.report.panels.base import Faceted, Panel, Shown, Table
from ddstudy.report.words import MISSING, in_braces, text_of, title_of
from ddstudy.spec.schema import MetricName

if TYPE_CHECKING:
    from ddstudy.store.study import StudyView


class Best(Faceted):
    """The best setting of each group of trials (thesis Tables 4.3 to 4.5)."""

    kind: Literal["best"]
    y: MetricName = Field(..., description="metric that is best")

    def of(self, view: StudyView, panels: Sequence[Panel]) -> list[Self]:
        """None where all trials are one group: its best stands among the study's facts."""
        return [self] if self.has_groups(view) else []

    def _of_study(self, view: StudyView) -> Shown:
        facets, others = self.split(view)
        best = tables.best_settings(self.filter(view.trials), self.y, facets, [*facets, *others])
        word = "Lowest" if METRICS[self.y].minimized else "Highest"
        names = f"{{{', '.join(others)}}}"
        sentence = (
            f"{word} {title_of(self.y)} among stable trials of each {self.group(facets)}, and its setting {names}."
        )
        if best.empty:
            return Shown(sentence, missing=f"Filled by stable trials with {title_of(self.y)}.")
        # the first of several facets has a column per value, the others have rows
        down = facets[1:] or facets
        columns = [text_of(value) for value in tables.values_of(best, facets[0])] if len(facets) > 1 else ["best"]
        rows: dict[tuple[str, ...], dict[str, str]] = {}
        for one in best.to_dict("records"):
            place = tuple(text_of(one[axis]) for axis in down)
            cells = rows.setdefault(place, dict(zip(down, place, strict=True)) | dict.fromkeys(columns, MISSING))
            cell = f"{one[self.y]:,{METRICS[self.y].format}}\n{in_braces(one, others)}"
            cells[text_of(one[facets[0]]) if len(facets) > 1 else "best"] = cell
        frame = pd.DataFrame(list(rows.values()))
        return Shown(sentence, table=Table(frame, {name: name for name in frame.columns}))
