"""Images that were reconstructed."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pandas as pd

from ddstudy.images.metrics import METRICS
from ddstudy.report import images, tables
from ddstudy.report.panels.base import Faceted, Picture, Shown, Table, chosen_by, settings_of
from ddstudy.report.words import about_cases, about_judge, in_words, named, text_of, title_of

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


class Outputs(Faceted):
    """The best setting's target, output and error map, large; then the best outputs per group (thesis Fig. 4.1).

    Of a task there are the measurement, as it is looked at without a fit, and what of it the fit leaves over, too.
    Where the truth is not known, neither target nor error is.
    """

    wide: ClassVar[bool] = True
    kind: Literal["outputs"]

    def _of_study(self, view: StudyView) -> Shown:
        facets, others = self.split(view)
        spec, metric = view.spec, chosen_by(view)
        trials = self.filter(view.trials)
        first = tables.best_of_groups(trials, metric, ())
        grouped = self.has_groups(view)
        rows = tables.best_of_groups(trials, metric, facets) if grouped else first
        sentence = f"The output whose {title_of(metric)} is best among stable trials"
        if missing := _why_empty(view, rows["number"].tolist()):
            return Shown(f"{sentence}.", missing=missing, never=not view.spec.images)
        (best,) = first.to_dict("records")
        if not best["stable"]:
            sentence = f"No trial is stable. The output whose {title_of(metric)} is best all the same"
        shown = _names(view)
        beside = [words for name, words in _BESIDE.items() if name in shown]
        sentence += f", and {' and '.join(beside)}. Grey and colours are on the same scales in all images."
        if spec.score == "judge":
            sentence += f" {about_judge(spec)}"
        if sides := images.sides(view, best):
            sentence += f" {sides[0]} and {sides[1]} mark {_DIRECTIONS[sides]}."
        below = _names_below(view, rows, shown)
        if grouped:
            *others_below, last = (_FACES[name] for name in below)
            faces = f"{', '.join(others_below)} and {last} of " * spec.is_task
            sentence += f" Below, {faces}the best of each {self.group(facets)}, unstable only where none is stable."

        if spec.cases.by_name:
            sentence += f" Images are of the case {spec.cases.chosen_by[0]}, numbers {about_cases(spec)[15:]}"

        def caption(row: Row, axes: list[str]) -> str:
            of, whose = METRICS[metric], "" if metric == "judge" else "ensemble "
            score = f"{whose}{of.label} {row[metric]:,{of.format}} {of.unit}".strip() + ", unstable" * (
                not row["stable"]
            )
            if metric == "judge" and spec.knows_truth:
                score += f", PSNR {row['psnr']:.2f} dB"
            if pd.notna(row.get("baseline")):
                score += f" (the measurement's {row['baseline']:.2f} dB)"
            return f"{score}: {in_words(row, axes)}" if axes else score

        large = Picture(
            _faces(view, best, shown, "the best setting", large=True),
            f"Trial {best['number']}, {caption(best, [*facets, *others])}",
            sides,
            tuple(_scale(view, name) for name in shown),
        )
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
            return Picture(faces, f"{group}: {caption(row, others)}", images.sides(view, row))

        # the first of several facets has a row per value, the others stand side by side
        width = len(facets[1:] or facets)
        rights = {place[-width:] for place in kept}
        ordered = itertools.product(*([text_of(v) for v in tables.values_of(rows, axis)] for axis in facets[-width:]))
        across = [right for right in ordered if right in rights]
        down = dict.fromkeys(place[:-width] for place in kept)
        pictures = [[picture((*left, *right)) for right in across] for left in down]
        return Shown(sentence, large=large, table=table, pictures=pictures)


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


def _why_empty(view: StudyView, numbers: list[int]) -> str:
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
