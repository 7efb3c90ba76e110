"""A study that is being run, at a glance: what is done, time left, who fits what, the best image, how it was found.

These are parts of a page that change every few seconds, while the report below them is made anew more rarely.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ddstudy.errors import counted, duration
from ddstudy.images.metrics import METRICS
from ddstudy.report import figures, images, tables
from ddstudy.report.page import TEMPLATES
from ddstudy.report.words import ensemble_of, in_words, with_whose
from ddstudy.store.study import failed_settings

if TYPE_CHECKING:
    from ddstudy.store.leases import AtWork
    from ddstudy.store.study import StudyView
    from ddstudy.study.forecasting import Outlook


def progress(view: StudyView, at_work: Sequence[AtWork], ahead: Outlook) -> dict[str, Any]:
    """What changes all the time: `progress` as HTML, `done` of `total` settings.

    Args:
        view: the study, which may be some seconds old.
        at_work: fits that are being done.
        ahead: its pace, and the time that is left.
    """
    html = _template().progress(view, told(view, at_work, ahead), at_work)
    return {"name": view.name, "done": view.measured, "total": view.spec.trials, "progress": str(html)}


def found(view: StudyView) -> dict[str, Any]:
    """What changes with trials: the `best` so far as HTML, empty if there is none, and its `history` for plotly."""
    metric = next(iter(view.spec.objectives))
    rows = tables.history(view.trials, metric)
    if rows.empty:
        return {"best": "", "history": None}
    history = json.loads(figures.history(rows, metric, view.axes).to_json())
    return {"best": str(_template().best(*_best(view, metric))), "history": history}


def told(view: StudyView, at_work: Sequence[AtWork], ahead: Outlook) -> str:
    """Where a study stands, in a line."""
    pruned, failed = int(view.trials["state"].eq("PRUNED").sum()), len(failed_settings(view.trials, view.axes))
    parts = [f"{view.measured:,} of {counted(view.spec.trials, 'setting')}"]
    parts += [f"{pruned:,} pruned"] if pruned else []
    parts += [f"{failed:,} failed"] if failed else []
    if not at_work:
        return ", ".join([*parts, "done" if view.is_over else "nobody is at work on it: `ddstudy run` goes on"])
    parts += [f"{ahead.per_minute:.1f} a minute"] if ahead.per_minute else []
    parts += [f"about {duration(ahead.eta_seconds)} left"] if ahead.eta_seconds is not None else []
    return ", ".join(parts)


def _best(view: StudyView, metric: str) -> tuple[str, str]:
    """The output of the best trial so far, as an address, and what it is in words."""
    (best,) = tables.best_settings(view.trials, metric, (), view.axes).to_dict("records")
    file = view.images.get(best["number"], {}).get("output.png")
    number = f"{best[metric]:,{METRICS[metric].format}} {METRICS[metric].unit}".strip()
    words = f"{with_whose(metric, ensemble_of(view.spec))} {number}, trial {best['number']}"
    return (file and images.picture(file)) or "", f"Best so far: {words}: {in_words(best, view.axes)}"


def _template() -> Any:
    return TEMPLATES.get_template("status.html").module
