"""The members of an ensemble: how they converge, where they disagree, what their mean gains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field

from ddstudy.images.metrics import METRICS
from ddstudy.report import figures, tables
from ddstudy.report.panels.base import Faceted, Filtered, Panel, Shown, Table, settings_of
from ddstudy.report.words import about_judge, title_of

if TYPE_CHECKING:
    from ddstudy.store.study import StudyView


class Convergence(Filtered):
    """Curves of the members of two fits, where they disagree most and least (thesis Figs. 2.3 and 4.5)."""

    kind: Literal["convergence"]
    y: Literal["mse", "psnr"] = Field("mse", description="what is drawn over the iterations")

    def of(self, view: StudyView, panels: Sequence[Panel]) -> list[Self]:
        """None where nothing has members."""
        return [self] if view.spec.trains else []

    def _of_study(self, view: StudyView) -> Shown:
        curves = tables.convergence(view, tables.trained(self.filter(view.trials)))
        score = METRICS[view.spec.score].title  # members are scored by the judge
        y, quantity = ("mse", title_of("mse")) if self.y == "mse" else ("psnr", score)
        what = f"{quantity} of each member over the iterations"
        if curves.empty:
            return Shown(
                f"{what}.", missing="Filled by trials whose members were checked on the way (fit.check_every)."
            )
        fits = list(dict.fromkeys(curves["fit_id"]))
        sentence = (
            f"{what}: the fit whose members disagree most at its end, and the stable one whose members agree best."
        )
        if len(fits) == 1:
            sentence = f"{what}, fit {fits[0]}."
        if view.spec.score == "judge":
            sentence += f" {about_judge(view.spec)}"
        ends = curves[curves["iteration"] == curves.groupby("fit_id")["iteration"].transform("max")]
        ends = ends.assign(member=ends["member"] + 1)
        columns = {"fit": "fit_id", "CV (%)": "cv_percent", "member": "member", "iterations": "iteration"}
        return Shown(
            sentence,
            figures.convergence(curves, y, score),
            Table(ends, columns | {f"{METRICS[view.spec.score].label} of the member (dB)": "psnr", "MSE": "mse"}),
        )


class Unstable(Faceted):
    """Share of settings whose members disagree, per group of trials (thesis Fig. 4.4)."""

    kind: Literal["unstable"]

    def of(self, view: StudyView, panels: Sequence[Panel]) -> list[Self]:
        """None where all trials are one group, which would be one bar, or nothing has members."""
        return [self] if self.has_groups(view) and view.spec.trains else []

    def _of_study(self, view: StudyView) -> Shown:
        limits, (facets, _) = view.spec.stability, self.split(view)
        by_truth = view.spec.score == "psnr"
        threshold, percent = (
            (limits.cv_percent, "cv_percent") if by_truth else (limits.spread_percent, "spread_percent")
        )
        table = tables.unstable_share(tables.trained(self.filter(view.trials)), threshold, facets, percent)
        what = "PSNR has a coefficient of variation" if by_truth else "outputs have a spread, relative to their mean,"
        sentence = f"Share of measured settings whose members' {what} above {threshold:g} %."
        if table.empty or view.spec.fit.members == 1:
            return Shown(sentence, missing="Filled by measured trials of at least two members.")
        columns = {axis: axis for axis in reversed(facets)}
        columns |= {"settings": "n", f"{'CV' if by_truth else 'spread'} > {threshold:g} %": "above", "share": "share"}
        return Shown(sentence, figures.unstable(table, facets), Table(settings_of(table, facets), columns))


class Ensemble(Faceted):
    """PSNR of one decoder and of the ensemble, per group of trials (thesis Fig. 4.6)."""

    kind: Literal["ensemble"]

    def of(self, view: StudyView, panels: Sequence[Panel]) -> list[Self]:
        """None where nothing has members."""
        return [self] if view.spec.trains else []

    def _of_study(self, view: StudyView) -> Shown:
        members, (facets, _), metric = view.spec.fit.members, self.split(view), view.spec.quality
        table = tables.gain_of_ensemble(tables.trained(self.filter(view.trials)), facets, metric)
        name = "PSNR" if metric == "psnr" else "score by the judge"
        sentence = (
            f"Mean {name} over stable trials of one decoder (1DD) and of the mean of {members} outputs ({members}DD)."
        )
        if metric == "judge":
            sentence += f" {about_judge(view.spec)}"
        if table.empty or members == 1:
            return Shown(sentence, missing="Filled by stable trials of at least two members.")
        columns = {axis: axis for axis in reversed(facets)}
        columns |= {"trials": "n", "1DD (dB)": f"{metric}_1dd", f"{members}DD (dB)": metric, "gain (dB)": "gain"}
        return Shown(
            sentence, figures.ensemble(table, members, facets, metric), Table(settings_of(table, facets), columns)
        )
