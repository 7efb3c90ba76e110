"""The best settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pandas as pd
from pydantic import Field

from ddstudy.images.metrics import METRICS
from ddstudy.report import tables
from ddstudy.report.panels.base import Filtered, Shown, Table
from ddstudy.report.words import title_of
from ddstudy.spec.axes import NOISES, TILINGS
from ddstudy.spec.schema import MetricName

if TYPE_CHECKING:
    from ddstudy.store.study import StudyView


class Best(Filtered):
    """The best setting of each pair (thesis Tables 4.3 to 4.5)."""

    kind: Literal["best"]
    y: MetricName = Field(..., description="metric that is best")

    def _of_study(self, view: StudyView) -> Shown:
        best = tables.best_settings(self.filter(view.trials), self.y)
        word = "Lowest" if METRICS[self.y].minimized else "Highest"
        sentence = (
            f"{word} {title_of(self.y)} among stable trials of each pair, and its setting {{k, s, l, iterations}}."
        )
        if best.empty:
            return Shown(sentence, missing=f"Filled by stable trials with {title_of(self.y)}.")
        cells = {
            (row.tiling, row.noise): f"{getattr(row, self.y):,{METRICS[self.y].format}}\n"
            f"{{{row.k}, {row.s}, {row.l}, {row.iterations}}}"
            for row in best.itertuples()
        }
        noises = [noise for noise in NOISES if noise in set(best["noise"])]
        rows = [
            {"tiling": tiling} | {noise: cells.get((tiling, noise), "\u2013") for noise in noises}
            for tiling in TILINGS
            if tiling in set(best["tiling"])
        ]
        return Shown(
            sentence, table=Table(pd.DataFrame(rows), {"tiling": "tiling"} | {noise: noise for noise in noises})
        )
