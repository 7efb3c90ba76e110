"""Studies -> one HTML page that needs nothing but itself: no network, no other file.

Which panels it shows is said by `ddstudy.report.panels`; the facts of a study always come first.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from ddstudy.errors import UserError
from ddstudy.report import claims, figures, tables, thesis
from ddstudy.report.figures import DIGITS, LABELS
from ddstudy.report.panels import (
    Best,
    Claims,
    Ensemble,
    Filtered,
    Importance,
    Panel,
    Panels,
    Pareto,
    Published,
    Quartiles,
    Unstable,
)
from ddstudy.settings import AXES, NOISES, TILINGS
from ddstudy.spec import BETTER

if TYPE_CHECKING:
    from ddstudy.store import StudyView


@dataclass(frozen=True)
class _Shown:
    """A panel's content: one sentence, and a figure, a table, or both. `missing` says what would fill it."""

    sentence: str
    figure: go.Figure | None = None
    table: str = ""
    missing: str = ""
    wide: bool = False


def figure(view: StudyView, panel: Panel) -> go.Figure:
    """The figure of one panel.

    Raises:
        UserError: the panel is a table, or the study has no data for it.
    """
    shown = _show(view, panel)
    if shown.figure is None:
        raise UserError(f"study {view.name}: no figure of '{panel.kind}'", shown.missing or "This kind is a table.")
    return shown.figure


def _show(view: StudyView, panel: Panel) -> _Shown:
    match panel:
        case Pareto():
            return _pareto(view, panel)
        case Importance():
            return _importance(view, panel)
        case Quartiles():
            return _quartiles(view, panel)
        case Unstable():
            return _unstable(view, panel)
        case Ensemble():
            return _ensemble(view, panel)
        case Best():
            return _best(view, panel)
        case Published():
            return _published(view, panel)
        case Claims():
            return _claims(view)


def _pareto(view: StudyView, panel: Pareto) -> _Shown:
    x, y = panel.x, panel.y
    trials = tables.finished(panel.filter(view.trials)).dropna(subset=[x, y])
    directions = BETTER | view.spec.objectives
    front = trials[tables.pareto_front(trials, {x: directions[x], y: directions[y]})].sort_values([x, y])
    if trials.empty:
        return _Shown("Every measured trial.", missing=f"Filled by measured trials with {LABELS[x]} and {LABELS[y]}.")
    sentence = (
        f"Every measured trial; {len(front):,} of {trials['stable'].sum():,} stable ones form the front: "
        f"none is better in both {LABELS[x]} and {LABELS[y]}. A trial that was stopped stands where it stopped."
    )
    if "seconds" in (x, y) and (shared := int(trials["shared"].eq(True).sum())):
        sentence += f" {shared:,} shared their device with another fit and look slower than they are."
    columns = {"trial": "number"} | {axis: axis for axis in AXES} | {LABELS[x]: x, LABELS[y]: y}
    return _Shown(sentence, figures.pareto(trials, front, x, y), _table(front, columns))


def _importance(view: StudyView, panel: Importance) -> _Shown:
    result = tables.importance(view, panel.y)
    sentence = f"How much of the variance of {LABELS[panel.y]} over all measured trials each axis explains"
    if result.shares.empty:
        return _Shown(f"{sentence}.", missing=result.reason)
    sentence += f", by {result.evaluator}. A trial that was stopped counts with the value at which it stopped."
    if len(result.shares) > 11:
        sentence += f" Drawn are the ten largest terms and the rest; the table has all {len(result.shares)}."
    return _Shown(sentence, figures.importance(result), _table(result.shares, {"term": "term", "share": "share"}))


def _quartiles(view: StudyView, panel: Quartiles) -> _Shown:
    y, axes = panel.y, [panel.x, *([panel.group] if panel.group else [])]
    table = tables.by_axis(panel.filter(view.trials), *axes, metrics=(y,))
    who = "stable trials" if y in tables.QUALITY else "measured trials"
    needed = f"{who} with {LABELS[y]}"
    if y == "seconds":
        who = needed = "trials, stable or not, that ran all their iterations on a device of their own"
    sentence = f"Lower to upper quartile of {LABELS[y]} over {who}; the line is the median, the dashes are the mean."
    if not table[f"{y}_n"].sum():
        return _Shown(sentence, missing=f"Filled by {needed}.")
    names = {"mean": f"{y}_mean", "lower quartile": f"{y}_q25", "median": f"{y}_median", "upper quartile": f"{y}_q75"}
    columns = {axis: axis for axis in axes} | {"measured": "n", "unstable": "unstable_share", "counted": f"{y}_n"}
    return _Shown(sentence, figures.quartiles(table, panel.x, y, panel.group), _table(table, columns | names))


def _unstable(view: StudyView, panel: Unstable) -> _Shown:
    threshold = view.spec.stability.cv_percent
    table = tables.unstable_share(panel.filter(view.trials), threshold)
    sentence = f"Share of measured settings whose members' PSNR has a coefficient of variation above {threshold:g} %."
    if table.empty or view.spec.fit.members == 1:
        return _Shown(sentence, missing="Filled by measured trials of at least two members.")
    columns = {
        "tiling": "tiling",
        "noise": "noise",
        "settings": "n",
        f"CV > {threshold:g} %": "above",
        "share": "share",
    }
    return _Shown(sentence, figures.unstable(table), _table(table, columns))


def _ensemble(view: StudyView, panel: Ensemble) -> _Shown:
    members = view.spec.fit.members
    table = tables.gain_of_ensemble(panel.filter(view.trials))
    sentence = f"Mean PSNR over stable trials of one decoder (1DD) and of the mean of {members} outputs ({members}DD)."
    if table.empty or members == 1:
        return _Shown(sentence, missing="Filled by stable trials of at least two members.")
    columns = {"tiling": "tiling", "noise": "noise", "trials": "n"}
    columns |= {"1DD (dB)": "psnr_1dd", f"{members}DD (dB)": "psnr", "gain (dB)": "gain"}
    return _Shown(sentence, figures.ensemble(table, members), _table(table, columns))


def _best(view: StudyView, panel: Best) -> _Shown:
    best = tables.best_settings(panel.filter(view.trials), panel.y)
    word = "Lowest" if BETTER[panel.y] == "minimize" else "Highest"
    sentence = f"{word} {LABELS[panel.y]} among stable trials of each pair, and its setting {{k, s, l, iterations}}."
    if best.empty:
        return _Shown(sentence, missing=f"Filled by stable trials with {LABELS[panel.y]}.")
    cells = {
        (row.tiling, row.noise): f"<strong>{_number(getattr(row, panel.y), DIGITS[panel.y])}</strong><br>"
        f"{{{row.k}, {row.s}, {row.l}, {row.iterations}}}"
        for row in best.itertuples()
    }
    noises = [noise for noise in NOISES if noise in set(best["noise"])]
    rows = [
        [tiling, *(cells.get((tiling, noise), "&ndash;") for noise in noises)]
        for tiling in TILINGS
        if tiling in set(best["tiling"])
    ]
    return _Shown(sentence, table=_rows(["", *noises], rows))


def _published(view: StudyView, panel: Published) -> _Shown:
    ours = thesis.beside(view, panel.table)
    if tables.finished(view.trials).empty:
        return _Shown(f"{ours.source}.", missing="Filled by measured trials.")
    numbers = [pd.api.types.is_float_dtype(kind) for kind in ours.table.dtypes]
    rows = [
        [_number(cell, 2) if isinstance(cell, float) else html.escape(str(cell)) for cell in row]
        for row in ours.table.itertuples(index=False)
    ]
    table = _rows(list(ours.table.columns), rows, numbers) + _differences(ours.differences)
    return _Shown(f"{ours.source}. {ours.ours}", table=table, wide=len(numbers) > 7)


def _claims(view: StudyView) -> _Shown:
    sentence = (
        "The thesis' findings on this study. The effect stands with its 95 % interval, over matched settings: equal on "
        f"all other axes. `ddstudy claims {view.name} --trials NAME` says how a claim is decided and lists its trials."
    )
    rows = [
        [
            f"{html.escape(answer.claim.finding)}<br><small>{html.escape(answer.claim.source)}</small>",
            f"<strong>{answer.verdict}</strong>",
            html.escape(answer.effect_text),
            html.escape(answer.tested),
            f"{len(answer.numbers):,}",
            html.escape(answer.claim.name),
        ]
        for answer in claims.retest(view)
    ]
    table = _rows(["finding", "answer", "effect", "compared", "trials", "name"], rows)
    return _Shown(sentence, table=table + _differences(thesis.differences(view)), wide=True)


def _differences(found: dict[str, str]) -> str:
    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in found.values())
    return (
        f"<details><summary>Not as in the thesis: {html.escape(', '.join(found))}</summary><ul>{items}</ul></details>"
    )


# --- the page


def render(views: Iterable[StudyView], panels: Panels) -> str:
    """The page: one section per study, the facts first, then the panels.

    Args:
        views: the studies.
        panels: what is shown of each, for example `read_panels()`.

    Returns:
        A whole HTML document that loads nothing.
    """
    views = list(views)
    title = html.escape(", ".join(view.name for view in views) or "no study")
    studies = "".join(_study(view, panels, f"study-{place}") for place, view in enumerate(views, 1))
    links = [f'<a href="#study-{place}">{html.escape(view.name)}</a>' for place, view in enumerate(views, 1)]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title} - ddstudy report</title>
<style>{_STYLE}</style>
</head>
<body>
<header><p>ddstudy report</p>{f"<nav>{' '.join(links)}</nav>" if len(links) > 1 else ""}</header>
<main>{studies or "<p>The store holds no study.</p>"}</main>
<script>{get_plotlyjs()}</script>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def _study(view: StudyView, panels: Panels, place: str) -> str:
    shown = "".join(
        _section(panel, _show(view, panel), f"{place}-panel-{number}") for number, panel in enumerate(panels, 1)
    )
    description = f"<p>{html.escape(view.spec.description)}</p>" if view.spec.description else ""
    return (
        f'<section class="study" id="{place}"><h1>{html.escape(view.name)}</h1>{description}'
        f'<div class="panels">{_facts(view)}{shown}</div></section>'
    )


def _facts(view: StudyView) -> str:
    trials = view.trials
    measured = tables.finished(trials)
    states = ", ".join(f"{count:,} {state}" for state, count in trials["state"].value_counts().items())
    unstable = int((~measured["stable"]).sum())
    share = (
        f"{unstable / len(measured):.1%} ({unstable:,} of {len(measured):,} measured trials)" if len(measured) else ""
    )
    facts = view.facts | {
        "objectives": ", ".join(f"{direction} {metric}" for metric, direction in view.spec.objectives.items()),
        "sampler": view.spec.search.sampler,
        "trials by state": states or "none yet",
        "measured": f"{len(measured.drop_duplicates(list(AXES))):,} of {len(view.spec.space.search_space):,} settings",
        "unstable": share or "no trial is measured yet",
    }
    rows = "".join(f"<tr><th>{html.escape(key)}</th><td>{html.escape(value)}</td></tr>" for key, value in facts.items())
    best = tables.best_by_metric(trials)
    return (
        f'<article class="panel"><h2>Facts</h2><div class="scroll"><table class="facts">{rows}</table></div>'
        f"{_reasons(trials)}</article>"
        f'<article class="panel"><h2>Best settings</h2><p>The best stable trial for each metric.</p>'
        f"{_best_table(best) if len(best) else _missing('Filled by stable trials.')}</article>"
    )


def _best_table(best: pd.DataFrame) -> str:
    rows = [
        [LABELS[row["metric"]], _number(row["value"], DIGITS[row["metric"]]), str(row["number"])]
        + [str(row[axis]) for axis in AXES]
        for row in best.to_dict("records")
    ]
    return _rows(["best", "value", "trial", *AXES], rows)


def _reasons(trials: pd.DataFrame) -> str:
    reasons = tables.reasons(trials)
    if reasons.empty:
        return ""
    shown = reasons.head(10)
    more = f"<p>{len(reasons) - 10:,} more reasons are in the exported table.</p>" if len(reasons) > 10 else ""
    table = _table(shown, {"state": "state", "reason": "reason", "trials": "n"})
    return f"<details><summary>Why trials failed or are unstable</summary>{table}{more}</details>"


def _section(panel: Panel, shown: _Shown, place: str) -> str:
    narrowed = str(panel.filter) if isinstance(panel, Filtered) else ""
    sentence = html.escape(shown.sentence + (f" Only {narrowed}." if narrowed else ""))
    title = html.escape(panel.title)
    content = _missing(shown.missing) if shown.missing else shown.table
    if shown.figure is not None:
        drawing = shown.figure.to_json()  # plotly writes "<" as an escape, so no text in it ends the script element
        content = (
            f'<div class="plot" role="img" aria-label="{title}. {sentence}"></div>'
            f'<script type="application/json">{drawing}</script>'
            f"<details><summary>Numbers</summary>{shown.table}</details>"
        )
    wide = " wide" if panel.kind == "pareto" or shown.wide else ""
    return f'<article class="panel{wide}" id="{place}"><h2>{title}</h2><p>{sentence}</p>{content}</article>'


def _missing(words: str) -> str:
    return f'<p class="missing">No data yet. {html.escape(words)}</p>'


def _table(frame: pd.DataFrame, columns: dict[str, str]) -> str:
    """A table of the frame's columns under other headings."""
    frame = frame[list(columns.values())]
    formats = [_format(column) for column in columns.values()]
    numbers = [pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes]
    rows = [[form(value) for form, value in zip(formats, row, strict=True)] for row in frame.itertuples(index=False)]
    return _rows(list(columns), rows, numbers)


def _rows(headings: list[str], rows: list[list[str]], numbers: Iterable[bool] = ()) -> str:
    """A table of cells that are HTML already; `numbers` says which columns stand to the right."""
    sides = [' class="number"' if number else "" for number in numbers] or [""] * len(headings)
    head = "".join(f"<th{side}>{html.escape(text)}</th>" for side, text in zip(sides, headings, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{side}>{cell}</td>' for side, cell in zip(sides, row, strict=True))}</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _format(column: str) -> Callable[[Any], str]:
    if column.endswith("share"):
        return lambda value: f"{value:.1%}"
    for metric, digits in DIGITS.items():
        if column == metric or column in {f"{metric}_{part}" for part in ("1dd", "mean", "q25", "median", "q75")}:
            return lambda value: _number(value, digits)
    return (lambda value: _number(value, 2)) if column == "gain" else (lambda value: html.escape(str(value)))


def _number(value: float, digits: int) -> str:
    return "&ndash;" if pd.isna(value) else f"{value:,.{digits}f}"


_STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --soft: #59626b; --line: #d9dee3; --page: #f4f6f8; --card: #fff;
  --link: #00609a; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ec; --soft: #a3adb7; --line: #343c45; --page: #0e1114; --card: #15191e; --link: #6db8e8; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 1rem clamp(0.75rem, 3vw, 2rem) 3rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
header { display: flex; flex-wrap: wrap; gap: 0.25rem 1.5rem; color: var(--soft); }
header p { margin: 0; }
nav { display: flex; flex-wrap: wrap; gap: 0.25rem 1rem; }
a { color: var(--link); }
main, header { max-width: 84rem; margin-inline: auto; }
h1 { margin: 0.5rem 0 0.25rem; font-size: 1.6rem; overflow-wrap: anywhere; }
h2 { margin: 0; font-size: 1.05rem; }
.study + .study { margin-top: 3rem; }
.panels { display: grid; gap: 1rem; margin-top: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 32rem), 1fr)); }
.panel { min-width: 0; padding: 1rem; background: var(--card); border: 1px solid var(--line); border-radius: 0.5rem; }
.wide { grid-column: 1 / -1; }
.panel > p { margin: 0.25rem 0 0.75rem; color: var(--soft); font-size: 0.9rem; }
.panel > .missing { padding: 1.5rem; border: 1px dashed var(--line); border-radius: 0.5rem; text-align: center; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.9rem 0.25rem 0; text-align: left; vertical-align: top; }
.number { text-align: right; }
thead th { color: var(--soft); font-weight: 600; white-space: nowrap; }
tbody tr { border-top: 1px solid var(--line); }
.facts th { color: var(--soft); font-weight: 400; white-space: nowrap; }
.facts td { overflow-wrap: anywhere; }
details { margin-top: 0.75rem; }
summary { color: var(--soft); font-size: 0.9rem; cursor: pointer; }
.plot { width: 100%; }
.plot text:not(.hoverlayer *) { fill: var(--ink) !important; }
@media print {
  body { padding: 0; background: none; }
  .panels { display: block; }
  .panel { margin-bottom: 1rem; }
  .plot, tr { break-inside: avoid; }
  h2, .panel > p, summary { break-after: avoid; }
}
"""

# figures follow the width of the paper while they are printed, and closed tables are opened
_SCRIPT = """
const plots = [...document.querySelectorAll(".plot")];
for (const plot of plots) {
  const { data, layout } = JSON.parse(plot.nextElementSibling.textContent);
  Plotly.newPlot(plot, data, layout, { responsive: true, displayModeBar: false });
}
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details:not([open])")) details.open = details.opened = true;
  for (const plot of plots) Plotly.relayout(plot, { width: 640 });
});
addEventListener("afterprint", () => {
  for (const details of document.querySelectorAll("details")) if (details.opened) details.open = details.opened = false;
  for (const plot of plots) Plotly.relayout(plot, { width: null, autosize: true });
});
"""
