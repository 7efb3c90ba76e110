"""Results over the slices of one volume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import pandas as pd
from pydantic import Field

from ddstudy.images.metrics import METRICS
from ddstudy.report import comparison, figures, images, tables
from ddstudy.report.panels.base import Comparison, Filter, Filtered, Panel, Picture, Shown, Table, whose
from ddstudy.report.words import axes_of, in_words, title_of
from ddstudy.spec.schema import MetricName

if TYPE_CHECKING:
    from ddstudy.store.study import StudyView


class Slices(Comparison, Filtered):
    """Results away from the slice for which the setting was chosen (thesis Fig. 5.1)."""

    kind: Literal["slices"]
    y: MetricName = Field(..., description="metric upwards")

    def _of_studies(self, views: Sequence[StudyView]) -> Shown:
        return _over_slices([each for view in views for each in view.each_case or [view]], self.y, self.filter)


class CasesSlices(Filtered):
    """The same over the slices that are cases of one study."""

    wide: ClassVar[bool] = True
    kind: Literal["cases_slices"]
    y: MetricName = Field(..., description="metric upwards")

    def of(self, view: StudyView, panels: Sequence[Panel]) -> list[Self]:
        """None where cases are not slices of one volume."""
        own = [case.own for case in view.spec.cases.by_name.values()]
        return [self] if own and all(case.keys() == {"target.slice"} for case in own) else []

    def _of_study(self, view: StudyView) -> Shown:
        return _over_slices(view.each_case, self.y, self.filter)


def _over_slices(views: Sequence[StudyView], y: str, trials: Filter) -> Shown:
    sentence = (
        f"{title_of(y)} on each slice of a volume less that of the same settings on the chosen slice: their mean, "
        "a fit counting once, and with the chosen slice's best setting."
    )
    if y == "psnr":
        sentence += " More black background raises it by itself; psnr_foreground leaves that out."
    table = comparison.slices(views, trials, y)
    if table.empty:
        return Shown(sentence, missing="Filled by studies of two or more slices of one volume, cut in the same plane.")
    setting = in_words(table.to_dict("records")[0], axes_of(*views))
    sentence += f" The best is {setting}. Counted are {whose(y)[0]}."
    columns = {"study": "study", "slice": "slice", "distance": "distance", "settings": "n"}
    columns |= {"mean here": "here", "on the chosen slice": "chosen", "change": "change"}
    columns |= {"best setting": "best", "its change": "best_change"}
    pictures = _slice_pictures(views, table, y)
    if pictures:
        sentence += " Images, by slice: target, output of the ensemble, absolute error (black 0 to bright 0.2)."
    return Shown(sentence, figures.slices(table, y), Table(table, columns, METRICS[y].digits), pictures=pictures)


def _slice_pictures(views: Sequence[StudyView], table: pd.DataFrame, metric: str) -> list[list[Picture]]:
    """What the chosen setting makes of each slice; empty where no image is left.

    Args:
        views: the studies.
        table: of `comparison.slices`.
        metric: told below the images.
    """
    by_name, axes = {view.name: view for view in views}, list(axes_of(*views))
    names = {"target": "target", "output": "output", "error": "absolute error"}
    pictures = []
    for row in table.itertuples():
        view = by_name[str(row.study)]
        settings, setting = view.trials[axes], table.iloc[0][axes]
        chosen = (settings.eq(setting) | (settings.isna() & setting.isna())).all(axis=1)
        faces, score = [("", f"output: slice {row.slice}")], "not measured"
        for trial in tables.finished(view.trials[chosen]).to_dict("records"):
            files = view.images.get(trial["number"], {})
            uris = {name: images.picture(files[f"{name}.png"]) for name in names if f"{name}.png" in files}
            faces = [(uris.get(name) or "", f"{words}: slice {row.slice}") for name, words in names.items()]
            score = f"{trial[metric]:,{METRICS[metric].format}}" + ", unstable" * (not trial["stable"])
        caption = f"slice {row.slice} ({row.study}): {title_of(metric)} {score}"
        pictures.append(Picture(tuple(faces), caption, images.sides(view, dict(setting))))
    if not any(uri for picture in pictures for uri, _ in picture.faces):
        return []
    return [pictures[first : first + 4] for first in range(0, len(pictures), 4)]
