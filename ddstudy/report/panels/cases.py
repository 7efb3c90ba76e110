"""Studies of several cases: how one choice does on each, what it loses elsewhere, how sure it is, held-out cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import pandas as pd
from pydantic import Field

from ddstudy.errors import counted
from ddstudy.images.metrics import METRICS
from ddstudy.report import cases, figures
from ddstudy.report.panels.base import Panel, Shown, Table, settings_of
from ddstudy.report.words import MISSING, in_words, text_of, title_of
from ddstudy.spec.schema import MetricName

if TYPE_CHECKING:
    from ddstudy.report.cases import Scores
    from ddstudy.store.study import StudyView

_HOW = {"mean": "mean", "worst": "worst number", "quantile": "quantile"}


class _OfCases(Panel):
    """A panel about a study of several cases."""

    y: MetricName = Field("psnr", description="metric of quality")

    def of(self, view: StudyView, panels: Sequence[Panel]) -> list[Self]:
        """None where a study has no cases."""
        return [self] if view.spec.cases.by_name else []

    def _of_study(self, view: StudyView) -> Shown:
        if not view.spec.cases.by_name:
            return Shown("", missing="This takes a study with [cases].", never=True)
        found = cases.scores(view, self.y)
        if found is None or len(found.cases) < 2:
            missing = "Filled by stable settings that were measured on all cases, of which there are two or more."
            return Shown("", missing=missing)
        return self._of_scores(view, found)

    def _of_scores(self, view: StudyView, found: Scores) -> Shown:
        raise NotImplementedError  # a kind has this


class Cases(_OfCases):
    """One choice for all cases beside the best of each case."""

    wide: ClassVar[bool] = True
    kind: Literal["cases"]

    def _of_scores(self, view: StudyView, found: Scores) -> Shown:
        table, digits = cases.by_case(found), METRICS[self.y].digits
        common = found.settings.iloc[found.common].to_dict()
        how = _HOW[view.spec.cases.objective]
        worst = table.iloc[int(table["regret"].argmax())]
        sentence = (
            f"{title_of(self.y)} on each of {len(table)} cases, of the stable setting with the best {how} over all of "
            f"them ({in_words(common, view.axes)}) and of each case's own best. The common setting loses "
            f"{table['regret'].mean():.{digits}f} on average and {worst['regret']:.{digits}f} at most, on "
            f"{worst['case']}. Ranks of {counted(len(found.settings), 'setting')} on a case and on the others have a "
            f"correlation of {table['correlation'].mean():.2f} (1: the same order)."
        )
        columns = {"case": "case", "common setting": "common", "its rank": "rank", "own best": "own"}
        columns |= {"regret": "regret", "rank correlation": "correlation"}
        columns |= {axis: axis for axis in view.axes if len(view.spec.search_space[axis]) > 1}
        shown = settings_of(table, list(view.axes))
        return Shown(sentence, figures.cases(table, self.y), Table(shown, columns, digits))


class CasesByAxis(_OfCases):
    """Whether cases agree about each axis."""

    kind: Literal["cases_by_axis"]

    def _of_scores(self, view: StudyView, found: Scores) -> Shown:
        table = cases.by_axis(found)
        if table.empty:
            return Shown("", missing="This takes an axis with two values or more.", never=True)
        sentence = (
            "How far cases agree about each axis: in how many the own best setting has the common setting's value; "
            "which value is best on average over all others, and how many prefer it, too; and how alike the order of "
            "its values is from case to case (rank correlation, 1: the same)."
        )
        for column in ("common", "preferred"):
            table[column] = table[column].map(text_of)
        for column in ("agree", "preferred_agree"):
            table[column] = table[column].map("{:.0%}".format)
        columns = {"axis": "axis", "common setting": "common", "cases that agree": "agree"}
        columns |= {"best on average": "preferred", "cases that prefer it": "preferred_agree"}
        return Shown(sentence, table=Table(table, columns | {"rank correlation": "correlation"}))


class CasesTransfer(_OfCases):
    """What is lost where settings are chosen on other cases."""

    kind: Literal["cases_transfer"]

    def _of_scores(self, view: StudyView, found: Scores) -> Shown:
        table, digits = cases.transfer(view, found), METRICS[self.y].digits
        if table.empty:
            return Shown("", missing="This takes cases that differ in slice, file, noise level or seed.", never=True)
        sentence = (
            f"What the best setting of some cases loses on cases that differ in one respect, against the best of their "
            f"own, in {title_of(self.y)}: the mean over cases with its 95 % interval, and the worst case."
        )
        table["interval"] = _intervals(table, "low", "high", digits)
        columns = {"cases differ in": "differ", "groups": "groups", "regret": "regret", "95 % interval": "interval"}
        return Shown(
            sentence, table=Table(table, columns | {"worst": "worst", "rank correlation": "correlation"}, digits)
        )


class CasesNeeded(_OfCases):
    """How many cases settle a choice."""

    kind: Literal["cases_needed"]

    def _of_scores(self, view: StudyView, found: Scores) -> Shown:
        table, digits = cases.needed(view, found), METRICS[self.y].digits
        enough = table[table["settled"] >= 0.95]
        unit = METRICS[self.y].unit
        limit = f"{cases.SETTLED:g} {unit}".strip()
        sentence = (
            f"If settings were chosen by fewer cases, drawn at random: how often the choice is that of all "
            f"{len(found.cases)}, how often it loses at most {limit} over all of them, and what it loses on average. "
            f"{counted(int(enough['cases'].iloc[0]), 'case')} settle it in 95 % of the draws."
        )
        for column in ("same", "settled"):
            table[column] = table[column].map("{:.0%}".format)
        columns = {"cases": "cases", "same choice": "same", f"within {limit}": "settled", "regret": "regret"}
        return Shown(sentence, table=Table(table, columns, digits))


class HeldOut(Panel):
    """The chosen settings on cases that took no part in the choice."""

    wide: ClassVar[bool] = True
    kind: Literal["held_out"]
    y: MetricName = Field("psnr", description="metric of quality")

    def of(self, view: StudyView, panels: Sequence[Panel]) -> list[Self]:
        """None where no case is held out."""
        return [self] if view.spec.cases.held_out else []

    def _of_study(self, view: StudyView) -> Shown:
        if not view.spec.cases.held_out:
            return Shown("", missing="This takes a study with held-out cases: cases.holdout.", never=True)
        table, digits = cases.judged(view, self.y), METRICS[self.y].digits
        sentence = (
            f"{title_of(self.y)} of the chosen settings on {counted(len(view.spec.cases.held_out), 'case')} that took "
            "no part in the choice, with its 95 % interval over them; and what the first one gains over each other on "
            "the same cases."
        )
        if table.empty:
            return Shown(sentence, missing=f"Filled by `ddstudy judge {view.name}`.")
        table["interval"] = _intervals(table, "low", "high", digits)
        columns = {"over the other cases": "chosen", "on held-out cases": "held_out", "95 % interval": "interval"}
        if "difference" in table:
            table["gain"] = _intervals(table, "difference_low", "difference_high", digits, "+")
            columns |= {"gain of the first": "difference", "its 95 % interval": "gain"}
        shown = settings_of(table, list(view.axes))
        return Shown(sentence, table=Table(shown, {axis: axis for axis in view.axes} | columns, digits))


def _intervals(table: pd.DataFrame, low: str, high: str, digits: int, sign: str = "") -> list[str]:
    return [
        MISSING if one != one else f"{one:{sign}.{digits}f} to {other:{sign}.{digits}f}"  # NaN where there is none
        for one, other in zip(table[low], table[high], strict=True)
    ]
