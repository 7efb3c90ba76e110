"""Panels of the thesis beside ours: published numbers and re-tested findings."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import pandas as pd
from pydantic import Field

from ddstudy.report import tables
from ddstudy.report.panels.base import Panel, Shown, Table, register
from ddstudy.thesis import findings, published
from ddstudy.thesis.published import Number

if TYPE_CHECKING:
    from ddstudy.store.study import StudyView


class Published(Panel):
    """A table of the thesis beside ours, of the whole study."""

    wide: ClassVar[bool] = True
    kind: Literal["published"]
    table: Number = Field(..., description="table of the thesis, or the numbers of its text")

    def _of_study(self, view: StudyView) -> Shown:
        if why := published.beside_the_thesis(view.spec):
            return Shown("", missing=why, never=True)
        ours = published.beside(view, self.table)
        if tables.finished(view.trials).empty:
            return Shown(f"{ours.source}.", missing="Filled by measured trials.")
        columns = {name: name for name in ours.table.columns}
        return Shown(f"{ours.source}. {ours.ours}", table=Table(ours.table, columns), differences=ours.differences)


class Findings(Panel):
    """The thesis' findings, re-tested on the whole study."""

    wide: ClassVar[bool] = True
    kind: Literal["findings"]

    def _of_study(self, view: StudyView) -> Shown:
        if findings.about(view.spec) is None:
            return Shown("", missing=published.beside_the_thesis(view.spec), never=True)
        answers = findings.retest(view)
        sentence = (
            f"The thesis' findings on this study. {findings.in_short(answers)} The effect stands with its 95 % "
            f"interval, over matched settings: equal on all other axes. `ddstudy findings {view.name} --trials NAME` "
            f"says how one is decided and lists its trials. {findings.TOGETHER}"
        )
        rows = [
            {
                "finding": f"{answer.finding.statement} ({answer.finding.source})",
                "answer": f"{answer.verdict}\n{answer.effect_text}",
                "compared": answer.tested,
                "trials": len(answer.numbers),
                "name": answer.finding.name,
            }
            for answer in answers
        ]
        columns = {name: name for name in ("finding", "answer", "compared", "trials", "name")}
        return Shown(
            sentence,
            table=Table(pd.DataFrame(rows), columns, folded="compared"),
            differences=published.differences(view),
        )


register(Published, Findings)
