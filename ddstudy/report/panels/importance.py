"""Which axes a metric depends on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Self

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

    def of(self, view: StudyView, panels: Sequence[Panel]) -> list[Self]:
        """None where fewer than two axes have several values: all would be the one's."""
        space = view.spec.search_space
        return [self] if sum(len(space[axis]) > 1 for axis in view.axes) > 1 else []

    def _of_study(self, view: StudyView) -> Shown:
        result = anova.importance(view.trials, view.axes, self.y)
        sentence = f"How much of the variance of {title_of(self.y)} over all measured settings each axis explains"
        if result.shares.empty:
            return Shown(f"{sentence}.", missing=result.reason)
        if len(result.shares) == 2:  # an axis and the rest
            only = f"so far they differ in {result.shares['term'].iloc[0]} alone"
            return Shown(f"{sentence}.", missing=f"Filled by settings that differ in two axes or more; {only}.")
        sentence += f", by {result.evaluator}. A trial that was stopped counts with the value at which it stopped."
        if view.spec.search.sampler not in ("grid", "random", "qmc"):
            sentence += " The shares are rough: a search chose the settings and hardly measured what it thought bad."
        if len(result.shares) > 11:
            sentence += f" Drawn are the ten largest terms and the rest; the table has all {len(result.shares)}."
        return Shown(sentence, figures.importance(result), Table(result.shares, {"term": "term", "share": "share"}))
