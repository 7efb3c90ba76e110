"""What a notebook shows of a study, of trials beside each other, and of one fit: a small table, and the images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from ddstudy.errors import counted
from ddstudy.images.metrics import METRICS
from ddstudy.report import images, tables
from ddstudy.report.page import TEMPLATES
from ddstudy.report.words import ensemble_of, text_of, with_whose

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ddstudy.store.study import StudyView

_SHOWN = ("psnr", "judge", "ssim", "vif", "cv_percent", "seconds")  # of the metrics: what fits into a small table
_FACES = ("target", "measurement", "output", "error")


def of_study(view: StudyView) -> str:
    """A study: how far it is, the best stable trials, and the images of the first of them."""
    best = tables.best_by_metric(view.trials, view.axes)
    best = best[best["metric"].isin([*view.spec.objectives, *_SHOWN])]
    if view.spec.score == "psnr":
        best = best[best["metric"] != "judge"]  # which is the same number
    axes = _searched(view)
    rows = [
        [with_whose(row["metric"], ensemble_of(view.spec)), _written(row["metric"], row["value"]), str(row["number"])]
        + [text_of(row[axis]) for axis in axes]
        for row in best.to_dict("records")
    ]
    first = best.loc[best["metric"] == next(iter(view.spec.objectives)), "number"].tolist()
    about = f"{view.measured:,} of {counted(view.spec.trials, 'setting')} of {view.facts['target']}"
    headings = ["best", "value", "trial", *axes]
    return _html(f"Study {view.name}: {about}", headings, rows, [_faces(view, number) for number in first])


def of_trials(view: StudyView, table: pd.DataFrame) -> str:
    """Trials beside each other.

    Args:
        view: their study.
        table: of `Study.compare`.
    """
    rows = [[name, *(_written(name, value) for value in row)] for name, *row in table.itertuples(name=None)]
    headings = ["", *(f"trial {number}" for number in table.columns)]
    pictures = [_faces(view, int(number)) for number in table.columns]
    return _html(f"Trials of {view.name}", headings, rows, pictures)


def of_fit(title: str, values: dict[str, Any], target: NDArray[np.float32], output: NDArray[np.float32]) -> str:
    """One fit: its measurements, the image and what was made of it, (C, H, W) in [0, 1]."""
    rows = [[name, _written(name, values[name])] for name in _SHOWN if name in values]
    faces = [("target", images.drawn(target)), ("output", images.drawn(output))]
    return _html(title, ["", "value"], rows, [faces])


def compared(view: StudyView, numbers: Sequence[int]) -> pd.DataFrame:
    """Trials as columns: axes, whether they are stable, and what was measured, as rows."""
    trials = view.trials.set_index("number").loc[list(numbers)]
    measured = [name for name in METRICS if name in trials and trials[name].notna().any()]
    return trials[[*_searched(view), "state", "stable", *measured]].T


def _searched(view: StudyView) -> list[str]:
    """The axes with several values."""
    return [axis for axis in view.axes if len(view.spec.search_space[axis]) > 1]


def _faces(view: StudyView, number: int) -> list[tuple[str, str]]:
    """The images of a trial: what each is, and its address."""
    files = view.images.get(number, {})
    found = [(name, images.picture(files[f"{name}.png"])) for name in _FACES if f"{name}.png" in files]
    return [(f"{name} of trial {number}" if name != "target" else name, address) for name, address in found if address]


def _written(name: str, value: Any) -> str:
    is_number = name in METRICS and isinstance(value, int | float)
    return f"{value:,{METRICS[name].format}}" if is_number and not math.isnan(value) else text_of(value)


def _html(
    title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], pictures: Sequence[Sequence[tuple[str, str]]]
) -> str:
    parts = {"title": title, "headings": headings, "rows": rows, "pictures": pictures}
    return TEMPLATES.get_template("notebook.html").render(parts)
