"""Trials in the plane of two metrics, and who is best in both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import pandas as pd

from ddstudy.images.metrics import METRICS
from ddstudy.report import figures, tables
from ddstudy.report.panels.base import Comparison, Plane, Shown, Table, roughness, settings_of
from ddstudy.report.words import axes_of, title_of

if TYPE_CHECKING:
    from ddstudy.store.study import StudyView


class Pareto(Plane):
    """Every trial in the plane of two metrics, and its Pareto front."""

    wide: ClassVar[bool] = True
    kind: Literal["pareto"]

    def _of_study(self, view: StudyView) -> Shown:
        x, y, axes = self.x, self.y, axes_of(view)
        trials = tables.finished(self.filter(view.trials)).dropna(subset=[x, y])
        directions = {name: METRICS[name].better for name in (x, y)} | view.spec.objectives
        front = trials[tables.pareto_front(trials, {x: directions[x], y: directions[y]})].sort_values([x, y])
        if trials.empty:
            return Shown(
                "Every measured trial.", missing=f"Filled by measured trials with {title_of(x)} and {title_of(y)}."
            )
        sentence = (
            f"Every measured trial; {len(front):,} of {trials['stable'].sum():,} stable ones form the front: "
            f"none is better in both {title_of(x)} and {title_of(y)}. A trial that was stopped stands where it stopped."
        )
        if "seconds" in (x, y) and (shared := int(trials["shared"].eq(True).sum())):
            sentence += f" {shared:,} shared their device with another fit and look slower than they are."
        if "seconds" in (x, y) and (rough := int(trials["disturbed"].eq(True).sum())):
            on_front = int(front["disturbed"].eq(True).sum())
            of_them = f"The seconds of {rough:,}, {on_front:,} of them on the front,"
            sentence += f" {of_them} were disturbed by other programs on their machine."
        columns = {"trial": "number"} | {axis: axis for axis in axes} | {title_of(x): x, title_of(y): y}
        return Shown(
            sentence,
            figures.pareto(trials, front, x, y, axes),
            Table(settings_of(front, axes), columns),
            thumbnails=True,
        )


class Fronts(Comparison, Plane):
    """The Pareto fronts of several studies in one plane."""

    wide: ClassVar[bool] = True
    kind: Literal["fronts"]

    def _of_studies(self, views: Sequence[StudyView]) -> Shown:
        x, y, axes = self.x, self.y, axes_of(*views)
        sentence = (
            f"The Pareto front of each study's stable trials: none is better in both {title_of(x)} and {title_of(y)}."
        )
        found = []
        for view in views:
            trials = tables.finished(self.filter(view.trials)).dropna(subset=[x, y])
            directions = {name: METRICS[name].better for name in (x, y)} | view.spec.objectives
            front = trials[tables.pareto_front(trials, {x: directions[x], y: directions[y]})].sort_values([x, y])
            found.append(front.assign(study=view.name))
        points = pd.concat(found, ignore_index=True)
        if points.empty:
            return Shown(sentence, missing=f"Filled by stable trials with {title_of(x)} and {title_of(y)}.")
        devices = {device for view in views for device in view.trials["device"].dropna().unique()}
        if "seconds" in (x, y) and len(devices) > 1:
            sentence += f" Seconds are of different devices: {', '.join(sorted(devices))}."
        sentence += roughness(views, self, self.x, self.y)
        columns = (
            {"study": "study", "trial": "number"} | {axis: axis for axis in axes} | {title_of(x): x, title_of(y): y}
        )
        return Shown(sentence, figures.fronts(points, x, y, axes), Table(settings_of(points, axes), columns))
