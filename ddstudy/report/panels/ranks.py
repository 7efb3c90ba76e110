"""Whether settings rank alike in several studies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ddstudy.report import comparison, figures
from ddstudy.report.panels.base import Comparison, Filtered, Shown, Table, whose
from ddstudy.report.words import title_of
from ddstudy.spec.schema import MetricName

if TYPE_CHECKING:
    from ddstudy.store.study import StudyView


class Ranks(Comparison, Filtered):
    """Whether settings rank alike in several studies: a metric against itself, and Spearman's correlation."""

    kind: Literal["ranks"]
    y: MetricName = Field(..., description="metric by which settings are ranked")

    def _of_studies(self, views: Sequence[StudyView]) -> Shown:
        y = self.y
        sentence = (
            f"{title_of(y)} of the same settings in two studies. Spearman's rank correlation is 1 where both rank "
            f"them alike and 0 where one says nothing of the other. Counted are {whose(y)[0]}."
        )
        table = comparison.matched(views, self.filter, y)
        correlations = comparison.rank_correlations(table)
        if not (correlations["n"] > 0).any():
            return Shown(sentence, missing="Filled by settings that two of the studies both measured.")
        columns = {"study": "one", "other study": "other", "settings of both": "n", "Spearman": "spearman"}
        return Shown(sentence, figures.ranks(table, y), Table(correlations, columns, digits=3))
