"""What the best setting of each study is worth in the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from ddstudy.images.metrics import METRICS
from ddstudy.report import comparison
from ddstudy.report.panels.base import Comparison, Filtered, Shown, Table, whose
from ddstudy.report.words import axes_of, in_braces, title_of
from ddstudy.spec.schema import MetricName

if TYPE_CHECKING:
    from ddstudy.store.study import StudyView


class Transfer(Comparison, Filtered):
    """What the best setting of each study is worth in the others."""

    wide: ClassVar[bool] = True
    kind: Literal["transfer"]
    y: MetricName = Field(..., description="metric that is best")

    def _of_studies(self, views: Sequence[StudyView]) -> Shown:
        y = self.y
        sentence = (
            f"The setting with the best {title_of(y)} of each study, and what it is worth in the others: the loss "
            "against their own best, and its rank among their settings. A dash: not measured there, or not stable. "
            "Last, the setting that loses least where it loses most."
        )
        table = comparison.transfer(comparison.matched(views, self.filter, y), y)
        if table.empty:
            return Shown(sentence, missing=f"Filled by {whose(y)[1]} in two studies.")
        axes = axes_of(*views)
        names = [in_braces(row, axes) for row in table.to_dict("records")]
        table = table.assign(setting=names, source=table["source"].replace("", "all"))
        columns = {"best of": "source", "setting": "setting", "in": "target", title_of(y): "value"}
        columns |= {"best there": "own_best", "loss": "loss", "rank": "rank", "of": "n"}
        return Shown(sentence, table=Table(table, columns, METRICS[y].digits))
