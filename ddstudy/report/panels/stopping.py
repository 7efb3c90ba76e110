"""Where fits of a task stop, and where they should have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import pandas as pd

from ddstudy.images.metrics import METRICS
from ddstudy.report import figures, inverse, tables
from ddstudy.report.panels.base import Faceted, Panel, Shown, Table, chosen_by
from ddstudy.report.words import about_judge, in_words, named

if TYPE_CHECKING:
    from ddstudy.store.study import StudyView


class Stopping(Faceted):
    """Quality over the iterations of the best settings, with their answer and the oracle's, and the rules' gaps."""

    wide: ClassVar[bool] = True
    kind: Literal["stopping"]

    def of(self, view: StudyView, panels: Sequence[Panel]) -> list[Self]:
        """None where a clean image is copied, when more iterations are never worse, or where a fit is of one case."""
        return [self] if view.spec.is_task and not view.spec.cases.by_name else []

    def _of_study(self, view: StudyView) -> Shown:
        spec, (facets, others) = view.spec, self.split(view)
        what = METRICS[spec.quality].label
        oracle = "best check (the oracle's, which needs the truth)" if spec.knows_truth else "best check"
        sentence = (
            f"{what} of the ensemble over the iterations, of the fit with the best setting"
            + f" of each {self.group(facets)}" * self.has_groups(view)
        )
        sentence += f": the circle is its answer, the diamond the {oracle}."
        if not spec.is_task:
            return Shown(sentence, missing="This is about studies of a task.", never=True)
        trials = self.filter(view.trials)
        best = tables.best_of_groups(trials, chosen_by(view), facets if self.has_groups(view) else ())
        settings = {record.number: record.setting for record in view.records}
        curves = []
        for row in best.to_dict("records"):
            curve = inverse.curve_of(view.records, settings[row["number"]].fit)
            group = ", ".join(named(axis, row[axis]) for axis in facets) if self.has_groups(view) else "the best"
            curves.append(curve.assign(group=group, setting=in_words(row, others), answer=row["chosen_iteration"]))
        drawn = pd.concat(curves, ignore_index=True) if curves else pd.DataFrame()
        if drawn.empty:
            return Shown(sentence, missing="Filled by measured trials.")
        run = [str(rule) for rule in spec.values_of("fit.stop")]
        rules = inverse.stopping(trials, run).assign(of="trials")
        columns = {"rule": "rule", "number": "n", "of": "of", "ended early": "ended"}
        if not spec.knows_truth:
            sentence += f" {about_judge(spec)}"
            return Shown(sentence, figures.stopping(drawn, what), Table(rules, columns))
        shown = set(trials["number"])
        replays = inverse.replayed([record for record in view.records if record.number in shown], spec)
        sentence += " The gap is what of the oracle's PSNR an answer lacks."
        if len(replays):
            patience = f"with a patience of {spec.fit.patience:,} iterations"
            sentence += f" Rules that were not run are replayed on the fits that ran to their end, {patience}."
        rules = pd.concat([rules, replays.assign(of="fits, replayed")]) if len(replays) else rules
        columns |= {"mean gap (dB)": "mean_gap", "worst gap (dB)": "worst_gap"}
        return Shown(sentence, figures.stopping(drawn, what), Table(rules, columns))
