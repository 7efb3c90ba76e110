"""Studies -> one HTML page that needs nothing but itself: no network, no other file.

Which panels it shows is said by `ddstudy.report.panels`; the answer of a study always comes first, then all its trials
and what was asked. Here numbers become text, and what stands where is decided; the markup, the style and the script are
in `templates/`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import jinja2
import pandas as pd
from plotly.offline import get_plotlyjs

from ddstudy.images.metrics import METRICS
from ddstudy.report import figures, images, tables
from ddstudy.report.answer import answer
from ddstudy.report.facts import facts
from ddstudy.report.panels import Filtered, Panel, Picture, Shown, Table, panels_of
from ddstudy.report.panels.outputs import of_best, why_no_images
from ddstudy.report.words import digits_of, text_of, title_of
from ddstudy.spec.files import toml_of

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ddstudy.store.study import StudyView

_MOST_THUMBNAILS = 2500  # 3 MB of them
_MOST_REASONS = 10
TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("ddstudy.report"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    undefined=jinja2.StrictUndefined,
)


@dataclass(frozen=True)
class _Grid:
    """A table whose cells are text: of two lines, the first is the more important.

    Attributes:
        headings: of the columns.
        rows: cells.
        numeric: which columns are numbers, and stand to the right.
        folded: as in `Table`.
    """

    headings: list[str]
    rows: list[list[str]]
    numeric: list[bool]
    folded: str = ""


@dataclass(frozen=True)
class _Article:
    """A panel as the page shows it."""

    place: str  # the anchor
    title: str
    sentence: str
    shown: Shown
    table: _Grid | None
    wide: bool


@dataclass(frozen=True)
class _Answer:
    """What a page opens with.

    Attributes:
        lead: what is best.
        sentences: how sure that is.
        how: how it is computed.
        picture: the best setting's images; None where there are none, which `missing` says.
        missing: why there are none.
        table: a row per level of a task, or the Pareto front.
        about: what that is.
        best: the best setting by each metric.
    """

    lead: str
    sentences: tuple[str, ...]
    how: str
    picture: Picture | None
    missing: str
    table: _Grid | None
    about: str
    best: _Grid | None


@dataclass(frozen=True)
class _Facts:
    """What was asked and run."""

    values: dict[str, str]
    reasons: _Grid | None
    more_reasons: str
    toml: str


@dataclass(frozen=True)
class _Trials:
    """All finished trials, for a table that is sorted, searched and filtered in the page.

    Attributes:
        columns: heading, and whether it is a number, of each.
        rows: as JSON, a list of values for each trial, its number first.
        order: column and direction in which they stand at first.
        thumbnails: their outputs, which figures show beside the pointer, too.
        figure: of the learning curves of those that are chosen, at first of the best one; None where none were kept.
        curves: as JSON, all of them: see `tables.learning_curves`.
    """

    columns: str
    rows: str
    order: str
    thumbnails: images.Sheet | None
    figure: go.Figure | None
    curves: str


@dataclass(frozen=True)
class _Section:
    """A study, or several side by side, which have no facts."""

    place: str  # the anchor
    title: str
    about: str
    panels: list[_Article] = field(default_factory=list)
    answer: _Answer | None = None
    facts: _Facts | None = None
    trials: _Trials | None = None


def render(views: Iterable[StudyView], panels: tuple[Panel, ...], version: str = "") -> str:
    """The page: the panels that compare studies, then one section per study, its answer first.

    Args:
        views: the studies.
        panels: what is shown of each, for example `read_panels()`.
        version: of what is shown, for a page that `ddstudy.live` serves: it asks for the status of the studies every
            two seconds, and for itself again when there is a newer one. Empty for a file.

    Returns:
        A whole HTML document that loads nothing.
    """
    views = list(views)
    names = ", ".join(view.name for view in views)
    sections = [_study(view, panels, f"study-{place}") for place, view in enumerate(views, 1)]
    if len(views) > 1 and (compared := _compared(views, panels)):
        sections.insert(0, _Section("compared", "Side by side", names, compared))
    # DataTables with its plug-ins, as one module; a script element must not hold the end of one
    tables_js, tables_css = (
        files("itables").joinpath("html", f"dt_bundle.{kind}").read_text() for kind in ("js", "css")
    )
    return TEMPLATES.get_template("page.html").render(
        title=names or "no study",
        sections=sections,
        version=version,
        plotly=get_plotlyjs(),
        datatables=_inline(tables_js) if any(section.trials for section in sections) else "",
        datatables_css=tables_css,
    )


def _inline(value: Any) -> str:
    """JSON that can stand in a script element."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _compared(views: Sequence[StudyView], panels: tuple[Panel, ...]) -> list[_Article]:
    """The panels that are about several studies at once."""
    compared = [panel for panel in panels if panel.compares]
    return [_article(panel, views, f"compared-panel-{number}") for number, panel in enumerate(compared, 1)]


def _study(view: StudyView, panels: tuple[Panel, ...], place: str) -> _Section:
    shown = enumerate(panels_of(view, panels), 1)
    articles = [_article(panel, [view], f"{place}-panel-{number}") for number, panel in shown]
    found = answer(view)
    picture, missing = None, ""
    if found.number is not None:
        (best,) = view.trials[view.trials["number"] == found.number].to_dict("records")
        missing = why_no_images(view, [found.number])
        picture = None if missing else of_best(view, best)
    table = None if found.table is None else _grid(found.table)
    best_by_metric = _best(view)
    opening = _Answer(found.lead, found.sentences, found.how, picture, missing, table, found.about, best_by_metric)
    about = view.spec.description
    return _Section(place, view.name, about, articles, opening, _facts(view), _trials(view, found.number))


def _trials(view: StudyView, best: int | None) -> _Trials | None:
    """Its finished trials, axes with one value left out."""
    trials = view.trials
    if trials.empty:
        return None
    axes = [axis for axis in view.axes if trials[axis].nunique(dropna=False) > 1]
    members = f"{view.spec.score}_1dd"
    told = [*METRICS, members] if view.spec.score == "psnr" else [*METRICS, members, "psnr_1dd"]
    metrics = [name for name in told if name in trials and trials[name].notna().any()]
    metrics = [name for name in metrics if not (name == "judge" and view.spec.score == "psnr")]
    titles = [f"1DD {METRICS[name[:-4]].title}" if name.endswith("_1dd") else title_of(name) for name in metrics]
    headings = ["trial", "state", *axes, *titles, "why unstable, pruned or failed"]
    values = trials[["number", "state", *axes, *metrics, "reason"]]
    digits = [digits_of(str(column)) for column in values]
    rows = [[*map(_plain, row, digits)] for row in values.itertuples(index=False, name=None)]
    numeric = [pd.api.types.is_numeric_dtype(kind) for kind in values.dtypes]
    first = 2 + len(axes) + metrics.index(view.spec.quality) if view.spec.quality in metrics else 0
    columns = [{"title": title, "number": number} for title, number in zip(headings, numeric, strict=True)]
    order = _inline([[first, "desc" if first else "asc"]])
    curves = tables.learning_curves(view)
    figure = None
    if curves.of:
        shown = best if best in curves.of else next(iter(curves.of))
        figure = figures.learning_curves({shown: curves.curve(shown)}, METRICS[view.spec.score].title)
    return _Trials(
        _inline(columns), _inline(rows), order, _thumbnails(view), figure, _inline(dataclasses.asdict(curves))
    )


def _plain(value: Any, digits: int | None) -> Any:
    """A value for JSON, with the digits of its metric."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float):
        return float(f"{value:.6g}") if digits is None else round(value, digits)
    return getattr(value, "item", lambda: value)()


def _thumbnails(view: StudyView) -> images.Sheet | None:
    """The outputs of all trials in one picture, of which the script shows a piece beside the pointer."""
    best_first = view.trials.sort_values(view.spec.quality, ascending=False, kind="stable")["number"]
    best_first = best_first.head(_MOST_THUMBNAILS)
    files = {number: view.images.get(number, {}).get("output.png") for number in best_first.tolist()}
    return images.sheet({number: file for number, file in files.items() if file is not None})


def _facts(view: StudyView) -> _Facts:
    reasons = tables.reasons(view.trials)
    columns = {"state": "state", "reason": "reason", "trials": "n", "of which": "sizes"}
    shown = Table(reasons.head(_MOST_REASONS), columns)
    return _Facts(
        values=facts(view),
        reasons=_grid(shown) if len(reasons) else None,
        more_reasons=f"{len(reasons) - _MOST_REASONS:,}" if len(reasons) > _MOST_REASONS else "",
        toml=toml_of(view.spec),
    )


def _best(view: StudyView) -> _Grid | None:
    """The best stable trial by each metric; None where none is stable."""
    axes, best = view.axes, tables.best_by_metric(view.trials, view.axes)
    if view.spec.score == "psnr":
        best = best[best["metric"] != "judge"]  # which is the same number
    rows = [
        [title_of(row["metric"]), _number(row["value"], METRICS[row["metric"]].digits), str(row["number"])]
        + [text_of(row[axis]) for axis in axes]
        for row in best.to_dict("records")
    ]
    headings = ["best", "value", "trial", *axes]
    return _Grid(headings, rows, [False] * len(headings)) if rows else None


def _article(panel: Panel, views: Sequence[StudyView], place: str) -> _Article:
    shown = _content(panel, views)
    narrowed = str(panel.filter) if isinstance(panel, Filtered) else ""
    sentence = shown.sentence[:1].upper() + shown.sentence[1:] + (f" Only {narrowed}." if narrowed else "")
    table = None if shown.table is None else _grid(shown.table)
    return _Article(place, panel.title, sentence, shown, table, panel.wide)


def _content(panel: Panel, views: Sequence[StudyView]) -> Shown:
    if not panel.compares:
        return panel.show(views)
    among = [view for view in views if panel.data is None or view.name in panel.data]
    absent = sorted(set(panel.data or ()) - {view.name for view in views})
    if absent:
        return Shown("", missing=f"Filled by naming the studies on the command line: {', '.join(absent)}.")
    if len(among) < 2:
        return Shown("", missing="Filled by a second one of the studies that the panel names.")
    return panel.show(among)


def _grid(table: Table) -> _Grid:
    frame = table.frame[list(table.columns.values())]
    formats = [_format(column, table.digits) for column in table.columns.values()]
    numeric = [pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes]
    rows = [[form(value) for form, value in zip(formats, row, strict=True)] for row in frame.itertuples(index=False)]
    return _Grid(list(table.columns), rows, numeric, table.folded)


def _format(column: str, digits: int) -> Callable[[Any], str]:
    if column.endswith("share"):
        return lambda value: f"{value:.1%}"
    if column == "mse":
        return lambda value: f"{value:.2e}"
    if (of_metric := digits_of(column)) is not None:
        return lambda value: _number(value, of_metric)
    return lambda value: _cell(value, digits)


def _cell(value: Any, digits: int) -> str:
    is_number = value is None or value is pd.NA or isinstance(value, float)
    return _number(value, digits) if is_number else str(value)


def _number(value: Any, digits: int) -> str:
    return "\u2013" if pd.isna(value) else f"{value:,.{digits}f}"
