"""What it costs to choose a setting without the truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Self

from ddstudy.report import figures, inverse, tables
from ddstudy.report.panels.base import Filtered, Panel, Shown, Table, settings_of
from ddstudy.report.words import about_judge, title_of

if TYPE_CHECKING:
    from ddstudy.store.study import StudyView


class Judges(Filtered):
    """A judge that is not the truth against the truth: regret of its choice, and whether both rank settings alike."""

    kind: Literal["judges"]

    def of(self, view: StudyView, panels: Sequence[Panel]) -> list[Self]:
        """None where there are not two of them to compare."""
        return [self] if self._compares_two(view) else []

    def _compares_two(self, view: StudyView) -> bool:
        return view.spec.knows_truth and view.spec.score == "judge"

    def _of_study(self, view: StudyView) -> Shown:
        if not self._compares_two(view):
            return Shown("", missing="This takes a simulated task whose judge is not the truth.", never=True)
        trials = tables.comparable(self.filter(view.trials), "judge").dropna(subset=["psnr"])
        table = inverse.regret(trials, view.axes)
        sentence = f"Each stable setting by the judge and by the truth. {about_judge(view.spec)}"
        if table.empty:
            return Shown(sentence, missing="Filled by stable trials.")
        mean, worst = table["regret"].mean(), table["regret"].max()
        where = f"over {len(table)} measurements on average, {worst:.2f} dB at worst" if len(table) > 1 else "here"
        sentence += f" Choosing by the judge instead of the truth costs {mean:.2f} dB {where}."
        cases = [axis for axis in inverse.case_axes(view.axes) if len(view.spec.search_space[axis]) > 1]
        columns = {axis: axis for axis in cases} | {"settings": "n", "truth's best (dB)": "oracle"}
        columns |= {"judge's best (dB)": "chosen", "regret (dB)": "regret", "rank correlation": "spearman"}
        columns |= {"trial of the truth's": "oracle_number", "of the judge's": "chosen_number"}
        drawn = figures.judges(trials, table, inverse.levels_of(view), list(view.axes), title_of("judge"))
        return Shown(sentence, drawn, Table(settings_of(table, cases), columns))
