"""The members of an ensemble: how they converge, where they disagree, what their mean gains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field

from ddstudy.images.metrics import METRICS
from ddstudy.report import figures, tables
from ddstudy.report.panels.base import Faceted, Filtered, Panel, Shown, Table, settings_of
from ddstudy.report.words import title_of

if TYPE_CHECKING:
    from ddstudy.store.study import StudyView


class Convergence(Filtered):
    """Curves of the members of two fits, where they disagree most and least (thesis Figs. 2.3 and 4.5)."""

    kind: Literal["convergence"]
    y: Literal["mse", "psnr"] = Field("mse", description="what is drawn over the iterations")

    def _of_study(self, view: StudyView) -> Shown:
        curves = tables.convergence(view, self.filter(view.trials))
        quantity = METRICS["psnr"].title if self.y == "psnr" else title_of(self.y)
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
        ends = curves[curves["iteration"] == curves.groupby("fit_id")["iteration"].transform("max")]
        ends = ends.assign(member=ends["member"] + 1)
        columns = {"fit": "fit_id", "CV (%)": "cv_percent", "member": "member", "iterations": "iteration"}
        return Shown(
            sentence,
            figures.convergence(curves, self.y),
            Table(ends, columns | {"PSNR of the member (dB)": "psnr", "MSE": "mse"}),
        )


class Unstable(Faceted):
    """Share of settings whose members disagree, per group of trials (thesis Fig. 4.4)."""

    kind: Literal["unstable"]

    def of(self, view: StudyView, panels: Sequence[Panel]) -> list[Self]:
        """None where all trials are one group, which would be one bar."""
        return [self] if self.has_groups(view) else []

    def _of_study(self, view: StudyView) -> Shown:
        threshold, (facets, _) = view.spec.stability.cv_percent, self.split(view)
        table = tables.unstable_share(self.filter(view.trials), threshold, facets)
        sentence = (
            f"Share of measured settings whose members' PSNR has a coefficient of variation above {threshold:g} %."
        )
        if table.empty or view.spec.fit.members == 1:
            return Shown(sentence, missing="Filled by measured trials of at least two members.")
        columns = {axis: axis for axis in reversed(facets)}
        columns |= {"settings": "n", f"CV > {threshold:g} %": "above", "share": "share"}
        return Shown(sentence, figures.unstable(table, facets), Table(settings_of(table, facets), columns))


class Ensemble(Faceted):
    """PSNR of one decoder and of the ensemble, per group of trials (thesis Fig. 4.6)."""

    kind: Literal["ensemble"]

    def _of_study(self, view: StudyView) -> Shown:
        members, (facets, _) = view.spec.fit.members, self.split(view)
        table = tables.gain_of_ensemble(self.filter(view.trials), facets)
        sentence = (
            f"Mean PSNR over stable trials of one decoder (1DD) and of the mean of {members} outputs ({members}DD)."
        )
        if table.empty or members == 1:
            return Shown(sentence, missing="Filled by stable trials of at least two members.")
        columns = {axis: axis for axis in reversed(facets)}
        columns |= {"trials": "n", "1DD (dB)": "psnr_1dd", f"{members}DD (dB)": "psnr", "gain (dB)": "gain"}
        return Shown(sentence, figures.ensemble(table, members, facets), Table(settings_of(table, facets), columns))
