"""Images that were reconstructed."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import pandas as pd

from ddstudy.images.metrics import METRICS
from ddstudy.report import images, tables
from ddstudy.report.panels.base import Faceted, Panel, Picture, Shown, Table, chosen_by, settings_of
from ddstudy.report.words import about_cases, about_judge, axes_of, in_words, named, text_of, title_of

if TYPE_CHECKING:
    from ddstudy.store.study import StudyView

_FACES = {
    "target": "target",
    "measurement": "measurement",
    "output": "output",
    "error": "absolute error",
    "residual": "residual of the measurement",
}
_BESIDE = {"error": "its absolute error", "residual": "what of the measurement it leaves over"}
_DIRECTIONS = {"RL": "the patient's right and left", "AP": "anterior and posterior"}
Row = Mapping[Hashable, Any]


def of_best(view: StudyView, best: Row) -> Picture:
    """Target, output and error map of a trial, large; of a task the measurement and what the fit leaves over, too.

    Where the truth is not known, neither target nor error is.
    """
    shown, axes = _names(view), [axis for axis in axes_of(view) if len(view.spec.search_space[axis]) > 1]
    caption = f"Trial {best['number']}, {_caption(view, best, axes or axes_of(view))}."
    sides = images.sides(view, best)
    if sides:
        caption += f" {sides[0]} and {sides[1]} mark {_DIRECTIONS[sides]}."
    if view.spec.cases.by_name:
        caption += f" Images are of the case {view.spec.cases.chosen_by[0]}, numbers {about_cases(view.spec)[15:]}"
    faces = _faces(view, best, shown, "the best setting", large=True)
    return Picture(faces, caption, sides, tuple(_scale(view, name) for name in shown))


class Outputs(Faceted):
    """The best outputs and error maps of each group (thesis Fig. 4.1), of a task measurements and residuals, too.

    Where there is one group, or a filter, the images of its best setting are large; those of the whole study stand at
    the top of a page.
    """

    wide: ClassVar[bool] = True
    kind: Literal["outputs"]

    def of(self, view: StudyView, panels: Sequence[Panel]) -> list[Self]:
        """None where all trials are one group: its best stands at the top of the page."""
        return [self] if self.has_groups(view) or str(self.filter) else []

    def _of_study(self, view: StudyView) -> Shown:
        facets, others = self.split(view)
        spec, metric = view.spec, chosen_by(view)
        trials = self.filter(view.trials)
        first = tables.best_of_groups(trials, metric, ())
        grouped = self.has_groups(view)
        rows = tables.best_of_groups(trials, metric, facets) if grouped else first
        sentence = f"The output whose {title_of(metric)} is best"
        sentence += f" of each {self.group(facets)}, unstable only where none is stable" if grouped else ""
        if missing := why_no_images(view, rows["number"].tolist()):
            return Shown(f"{sentence}.", missing=missing, never=not view.spec.images)
        (best,) = first.to_dict("records")
        if not best["stable"]:
            sentence += ", though no trial is stable"
        shown = _names(view)
        below = _names_below(view, rows, shown)
        if beside := [words for name, words in _BESIDE.items() if name in (below if grouped else shown)]:
            sentence += f", and {' and '.join(beside)}"
        sentence += ". Grey and colours are on the same scales in all images."
        if spec.score == "judge":
            sentence += f" {about_judge(spec)}"
        if (sides := images.sides(view, best)) and grouped:
            sentence += f" {sides[0]} and {sides[1]} mark {_DIRECTIONS[sides]}."
        if spec.cases.by_name and grouped:
            sentence += f" Images are of the case {spec.cases.chosen_by[0]}, numbers {about_cases(spec)[15:]}"
        large = of_best(view, best) if not grouped or str(self.filter) else None
        columns = {axis: axis for axis in [*facets, *others]} | {"trial": "number"}
        told = ["psnr", "ssim", "vif"] * spec.knows_truth + ["judge"] * (spec.score == "judge")
        columns |= {title_of(name): name for name in told} | {"CV (%)": "cv_percent"}
        columns |= {"measurement (dB)": "baseline"} if spec.is_task and rows["baseline"].notna().any() else {}
        table = Table(settings_of(rows, [*facets, *others]), columns)
        if not grouped:
            return Shown(sentence, large=large, table=table)

        kept = {tuple(text_of(row[axis]) for axis in facets): row for row in rows.to_dict("records")}

        def picture(place: tuple[str, ...]) -> Picture:
            row, group = kept.get(place), ", ".join(map(named, facets, place))
            if row is None:
                return Picture((("", f"output: {group}"),), f"{group}: not measured")
            faces = _faces(view, row, below, group)
            return Picture(faces, f"{group}: {_caption(view, row, others)}", images.sides(view, row))

        # the first of several facets has a row per value, the others stand side by side
        width = len(facets[1:] or facets)
        rights = {place[-width:] for place in kept}
        ordered = itertools.product(*([text_of(v) for v in tables.values_of(rows, axis)] for axis in facets[-width:]))
        across = [right for right in ordered if right in rights]
        down = dict.fromkeys(place[:-width] for place in kept)
        pictures = [[picture((*left, *right)) for right in across] for left in down]
        return Shown(sentence, large=large, table=table, pictures=pictures)


def _caption(view: StudyView, row: Row, axes: Sequence[str]) -> str:
    """What a trial reached, and its setting."""
    metric = chosen_by(view)
    of, whose = METRICS[metric], "" if metric == "judge" else "ensemble "
    score = f"{whose}{of.label} {row[metric]:,{of.format}} {of.unit}".strip() + ", unstable" * (not row["stable"])
    if metric == "judge" and view.spec.knows_truth:
        score += f", PSNR {row['psnr']:.2f} dB"
    if pd.notna(row.get("baseline")):
        score += f" (the measurement's {row['baseline']:.2f} dB)"
    return f"{score}: {in_words(row, axes)}" if axes else score


def _file(view: StudyView, row: Row, name: str) -> Path | None:
    return view.images.get(row["number"], {}).get(f"{name}.png")


def _faces(
    view: StudyView, row: Row, names: list[str], whose: str, *, large: bool = False
) -> tuple[tuple[str, str], ...]:
    """Images of a trial with what they show; without an address where the file is gone or damaged."""
    files = {name: _file(view, row, name) for name in names}
    uris = {name: images.picture(file, large=large) if file else None for name, file in files.items()}
    return tuple((uris[name] or "", f"{_FACES[name]}: {whose}") for name in names)


def _names(view: StudyView) -> list[str]:
    """Which images there are of a trial."""
    of_truth = ["target", "error"] if view.spec.knows_truth else []
    of_task = ["measurement", "residual"] if view.spec.is_task else []
    return [name for name in _FACES if name == "output" or name in (*of_truth, *of_task)]


def _names_below(view: StudyView, rows: pd.DataFrame, shown: list[str]) -> list[str]:
    """Which of these are shown of each group: one target stands above, and small residuals tell little."""
    if view.spec.is_task:
        repeated = not any(axis.startswith("target.") for axis in view.axes)
        return [name for name in shown if name != "residual" and not (name == "target" and repeated)]
    files = {_file(view, row, "target") for row in rows.to_dict("records")}
    return [name for name in shown if name != "target" or len(files) > 1]


def _scale(view: StudyView, name: str) -> tuple[str, str, str] | None:
    """What stands below an image. Colours of a picture are its own."""
    if name in ("error", "residual"):
        return images.scale("error"), "0", "0.2 and more"
    is_grey = not view.facts.get("target shape", "1x").startswith("3x")
    return (images.scale("grey"), "0", "1") if is_grey else None


def why_no_images(view: StudyView, numbers: list[int]) -> str:
    """Why there is no image to show; empty where there is one."""
    if not numbers:
        return "Filled by measured trials."
    if not view.spec.images:
        return "The study keeps no images (images = false in the study file)."
    outputs = [file for number in numbers if (file := view.images.get(number, {}).get("output.png"))]
    if not outputs:
        return "Filled by trials whose images are kept; of those that would stand here they were not."
    if not any(images.picture(file) for file in outputs):
        return f"Filled by the images themselves, which are gone from {outputs[0].parent.name} or damaged."
    return ""
