"""Which axes a metric depends on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ddstudy.report import anova, figures
from ddstudy.report.panels.base import Panel, Shown, Table
from ddstudy.report.words import title_of
from ddstudy.spec.schema import MetricName

if TYPE_CHECKING:
    from ddstudy.store.study import StudyView


class Importance(Panel):
    """Share of the variance of a metric that each axis explains; of the whole study, so without a filter."""

    kind: Literal["importance"]
    y: MetricName = Field(..., description="metric whose variance is explained")

    def _of_study(self, view: StudyView) -> Shown:
        result = anova.importance(view.trials, view.axes, self.y)
        sentence = f"How much of the variance of {title_of(self.y)} over all measured settings each axis explains"
        if result.shares.empty:
            return Shown(f"{sentence}.", missing=result.reason)
        sentence += f", by {result.evaluator}. A trial that was stopped counts with the value at which it stopped."
        if view.spec.search.sampler not in ("grid", "random", "qmc"):
            sentence += " The shares are rough: a search chose the settings and hardly measured what it thought bad."
        if len(result.shares) > 11:
            sentence += f" Drawn are the ten largest terms and the rest; the table has all {len(result.shares)}."
        return Shown(sentence, figures.importance(result), Table(result.shares, {"term": "term", "share": "share"}))
