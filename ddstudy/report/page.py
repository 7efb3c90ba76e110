"""Studies -> one HTML page that needs nothing but itself: no network, no other file.

Which panels it shows is said by `ddstudy.report.panels`; the facts of a study always come first.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from plotly.offline import get_plotlyjs

from ddstudy.report import images, tables
from ddstudy.report.contents import COMPARISONS, Picture, Shown, Table, show
from ddstudy.report.figures import DIGITS, LABELS
from ddstudy.report.panels import Filtered, Panel, Panels
from ddstudy.spec.axes import AXES

if TYPE_CHECKING:
    from ddstudy.store.study import StudyView

_MOST_THUMBNAILS = 2500  # 3 MB of them


def render(views: Iterable[StudyView], panels: Panels, reload_seconds: int = 0) -> str:
    """The page: the panels that compare studies, then one section per study, its facts first.

    Args:
        views: the studies.
        panels: what is shown of each, for example `read_panels()`.
        reload_seconds: the page loads itself again so often, for a file that is written anew; 0 is never.

    Returns:
        A whole HTML document that loads nothing.
    """
    views = list(views)
    title = html.escape(", ".join(view.name for view in views) or "no study")
    studies = "".join(_study(view, panels, f"study-{place}") for place, view in enumerate(views, 1))
    compared = _compared(views, panels) if views else ""
    links = [f'<a href="#study-{place}">{html.escape(view.name)}</a>' for place, view in enumerate(views, 1)]
    sections = [studies]
    if compared:
        place = 0 if len(views) > 1 else 1  # of one study these panels can only say what they lack
        links.insert(place, '<a href="#compared">Side by side</a>')
        sections.insert(place, compared)
    navigation = f'<nav aria-label="Studies">{" ".join(links)}</nav>' if len(links) > 1 else ""
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
<body{f' data-reload="{reload_seconds}"' if reload_seconds else ""}>
<a class="skip" href="#main">Skip to the results</a>
<header><p>ddstudy report{" of a running study" if reload_seconds else ""}</p>{navigation}</header>
<main id="main">{"".join(sections) or "<p>The store holds no study.</p>"}</main>
<script>{get_plotlyjs()}</script>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def _compared(views: Sequence[StudyView], panels: Panels) -> str:
    """The panels that are about several studies at once."""
    shown = [_panel(panel, views, f"compared-panel-{number}") for number, panel in _numbered(panels, comparison=True)]
    if not shown:
        return ""
    about = f"<p>{html.escape(', '.join(view.name for view in views))}</p>"
    return (
        f'<section class="study" id="compared"><h1>Side by side</h1>{about}'
        f'<div class="panels">{"".join(markup for markup, _ in shown)}</div></section>'
    )


def _study(view: StudyView, panels: Panels, place: str) -> str:
    shown = [
        (panel, *_panel(panel, [view], f"{place}-panel-{number}"))
        for number, panel in _numbered(panels, comparison=False)
        if panel.data is None or view.name in panel.data
    ]
    description = f"<p>{html.escape(view.spec.description)}</p>" if view.spec.description else ""
    links = "".join(
        f'<li><a href="#{place}-panel-{number}">{html.escape(panel.title)}</a></li>'
        for number, panel in _numbered(panels, comparison=False)
        if panel.data is None or view.name in panel.data
    )
    index = f'<details class="index"><summary>Panels</summary><ul>{links}</ul></details>' if links else ""
    thumbnails = _thumbnails(view) if any(content.thumbnails for _, _, content in shown) else ""
    return (
        f'<section class="study" id="{place}"><h1>{html.escape(view.name)}</h1>{description}{index}'
        f'<div class="panels">{_facts(view)}{"".join(markup for _, markup, _ in shown)}</div>{thumbnails}</section>'
    )


def _numbered(panels: Panels, *, comparison: bool) -> list[tuple[int, Panel]]:
    return [(number, panel) for number, panel in enumerate(panels, 1) if isinstance(panel, COMPARISONS) == comparison]


def _thumbnails(view: StudyView) -> str:
    """The outputs of all trials in one picture, of which the script shows a piece beside the pointer."""
    best_first = view.trials.sort_values("psnr", ascending=False, kind="stable")["number"].head(_MOST_THUMBNAILS)
    files = {number: view.images.get(number, {}).get("output.png") for number in best_first.tolist()}
    sheet = images.sheet({number: file for number, file in files.items() if file is not None})
    if sheet is None:
        return ""
    return (
        f'<img class="thumbnail" hidden alt="" src="{sheet.uri}" width="{sheet.width}" height="{sheet.height}" '
        f'data-columns="{sheet.columns}" data-numbers="{json.dumps(sheet.numbers)}">'
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
    rows = "".join(
        f'<tr><th scope="row">{html.escape(key)}</th><td>{html.escape(value)}</td></tr>' for key, value in facts.items()
    )
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
    table = _table(Table(shown, {"state": "state", "reason": "reason", "trials": "n"}))
    return f"<details><summary>Why trials failed or are unstable</summary>{table}{more}</details>"


def _panel(panel: Panel, views: Sequence[StudyView], place: str) -> tuple[str, Shown]:
    """A panel's article, and what it shows."""
    shown = _content(panel, views)
    narrowed = str(panel.filter) if isinstance(panel, Filtered) else ""
    sentence = html.escape(shown.sentence[:1].upper() + shown.sentence[1:] + (f" Only {narrowed}." if narrowed else ""))
    title = html.escape(panel.title)
    if shown.missing:
        content = _missing(shown.missing)
    else:
        table = "" if shown.table is None else _table(shown.table)
        content = _pictures(shown.pictures) if shown.pictures else ""
        if shown.figure is not None:
            drawing = shown.figure.to_json()  # plotly writes "<" as an escape, so no text in it ends the script element
            content += (
                f'<div class="plot" role="img" aria-label="{title}. {sentence}"></div>'
                f'<script type="application/json">{drawing}</script>'
            )
        content += f"<details><summary>Numbers</summary>{table}</details>" if content and table else table
        content += _differences(shown.differences) if shown.differences else ""
    wide = " wide" if panel.kind in _WIDE else ""
    article = f'<article class="panel{wide}" id="{place}"><h2>{title}</h2><p>{sentence}</p>{content}</article>'
    return article, shown


def _differences(found: dict[str, str]) -> str:
    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in found.values())
    return (
        f'<details class="differences"><summary>Not as in the thesis: {html.escape(", ".join(found))}</summary>'
        f"<ul>{items}</ul></details>"
    )


def _content(panel: Panel, views: Sequence[StudyView]) -> Shown:
    if not isinstance(panel, COMPARISONS):
        return show(panel, views)
    among = [view for view in views if panel.data is None or view.name in panel.data]
    absent = sorted(set(panel.data or ()) - {view.name for view in views})
    if absent:
        return Shown("", missing=f"Filled by naming the studies on the command line: {', '.join(absent)}.")
    if len(among) < 2:
        return Shown("", missing="Filled by a second study: name two or more on the command line.")
    return show(panel, among)


def _pictures(rows: list[list[Picture]]) -> str:
    cells = "".join(
        f"<figure><div>{''.join(_image(*face) for face in picture.faces)}</div>"
        f"<figcaption>{html.escape(picture.caption)}</figcaption></figure>"
        for row in rows
        for picture in row
    )
    return f'<div class="pictures" style="--columns: {max(map(len, rows))}">{cells}</div>'


def _image(uri: str, words: str) -> str:
    words = html.escape(words)
    return f'<img src="{uri}" alt="{words}">' if uri else f'<p class="none">no image of {words}</p>'


def _missing(words: str) -> str:
    return f'<p class="missing">No data yet. {html.escape(words)}</p>'


def _table(table: Table) -> str:
    frame = table.frame[list(table.columns.values())]
    formats = [_format(column, table.digits) for column in table.columns.values()]
    numbers = [pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes]
    rows = [[form(value) for form, value in zip(formats, row, strict=True)] for row in frame.itertuples(index=False)]
    if not table.folded:
        return _rows(list(table.columns), rows, numbers)
    return _blocks(list(table.columns), rows, table.folded)


def _blocks(headings: list[str], rows: list[list[str]], folded: str) -> str:
    """A table of cells that are HTML already, whose rows are blocks on a narrow page; see `Table.folded`."""

    def cell(heading: str, content: str) -> str:
        if heading == folded:
            content = f'<details class="fold" open><summary>{html.escape(heading)}</summary>{content}</details>'
        return f'<td role="cell" data-heading="{html.escape(heading)}">{content}</td>'

    head = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in headings)
    body = "".join(f'<tr role="row">{"".join(map(cell, headings, row))}</tr>' for row in rows)
    # the roles, since a browser may take what is laid out as blocks for no table
    return f'<table class="blocks" role="table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _rows(headings: list[str], rows: list[list[str]], numbers: Iterable[bool] = ()) -> str:
    """A table of cells that are HTML already; `numbers` says which columns stand to the right."""
    sides = [' class="number"' if number else "" for number in numbers] or [""] * len(headings)
    head = "".join(
        f'<th scope="col"{side}>{html.escape(text)}</th>' for side, text in zip(sides, headings, strict=True)
    )
    body = "".join(
        f"<tr>{''.join(f'<td{side}>{cell}</td>' for side, cell in zip(sides, row, strict=True))}</tr>" for row in rows
    )
    # whoever has no pointer scrolls a wide table with the arrow keys, which needs the focus
    opened = '<div class="scroll" tabindex="0" role="region" aria-label="Table">'
    return f"{opened}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _format(column: str, digits: int) -> Callable[[Any], str]:
    if column.endswith("share"):
        return lambda value: f"{value:.1%}"
    if column == "mse":
        return lambda value: f"{value:.2e}"
    for metric, of_metric in DIGITS.items():
        parts = ("1dd", "mean", "min", "q25", "median", "q75", "max")
        if column == metric or column in {f"{metric}_{part}" for part in parts}:
            return lambda value: _number(value, of_metric)
    return lambda value: _cell(value, digits)


def _cell(value: Any, digits: int) -> str:
    if value is None or value is pd.NA or isinstance(value, float):
        return _number(value, digits)
    first, line, rest = html.escape(str(value)).partition("\n")
    return f"<strong>{first}</strong><br>{rest}" if line else first


def _number(value: Any, digits: int) -> str:
    return "&ndash;" if pd.isna(value) else f"{value:,.{digits}f}"


_WIDE = ("pareto", "parallel", "outputs", "fronts", "transfer", "published", "findings")
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
.fold { margin: 0; }
@media screen and (width < 600px) {
  .blocks, .blocks tbody, .blocks tr, .blocks td { display: block; }
  .blocks thead { position: absolute; left: -99rem; }
  .blocks tr { padding-block: 0.75rem; }
  .blocks td { padding: 0.1rem 0; }
  .blocks td:first-child { font-size: 0.95rem; }
  .blocks td:nth-child(n + 3):not(:has(.fold))::before { content: attr(data-heading) ": "; color: var(--soft); }
}
@media not all and (width < 600px) { .fold > summary { display: none; } }
@media print { .fold > summary { display: none; } }
.plot { width: 100%; }
.plot text:not(.hoverlayer *, .heatmap-label *) { fill: var(--ink) !important; }
.pictures { display: grid; gap: 0.5rem; grid-template-columns: repeat(var(--columns), minmax(0, 18rem)); }
.pictures figure { margin: 0; }
.pictures figure div { display: grid; gap: 2px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 7rem), 1fr)); }
.pictures figure div:has(> :nth-child(3)) { grid-template-columns: 1fr; }
.pictures img { display: block; width: 100%; image-rendering: pixelated; border-radius: 0.2rem; }
.pictures figcaption, .none { margin: 0; color: var(--soft); font-size: 0.8rem; overflow-wrap: anywhere; }
.thumbnail { position: fixed; z-index: 9; object-fit: none; transform: scale(2); transform-origin: 0 0;
  pointer-events: none; outline: 1px solid var(--line); }
.index ul { columns: 16rem; margin: 0.5rem 0; padding-left: 1.2rem; font-size: 0.9rem; }
.skip { position: absolute; left: -99rem; }
.skip:focus { left: 0.5rem; }
@media print {
  body { padding: 0; background: none; }
  .panels { display: block; }
  .panel { margin-bottom: 1rem; }
  .index, .skip, .thumbnail { display: none; }
  .plot, tr, figure, .panel > p { break-inside: avoid; }
  .scroll { overflow: visible; }
  table { font-size: 0.7rem; }
  th, td { padding-right: 0.5rem; }
  thead th { white-space: normal; }
  h2, .panel > p, summary { break-after: avoid; }
}
"""

# Figures follow the width of the paper while they are printed, and what is closed is opened, but the list of
# differences, which is the same at each table, only once a study. A page that is written anew comes back at the same
# place, and not while someone moves about in it.
_SCRIPT = """
const plots = [...document.querySelectorAll(".plot")];
for (const plot of plots) {
  const { data, layout } = JSON.parse(plot.nextElementSibling.textContent);
  Plotly.newPlot(plot, data, layout, { responsive: true, displayModeBar: false });
}
for (const sheet of document.querySelectorAll(".thumbnail")) {
  const { columns, numbers } = sheet.dataset;
  const [width, height] = ["width", "height"].map(side => Number(sheet.getAttribute(side)));
  const places = new Map(JSON.parse(numbers).map((number, place) => [number, place]));
  for (const plot of sheet.closest(".study").querySelectorAll(".plot")) {
    plot.on("plotly_hover", ({ points, event }) => {
      const place = places.get(points[0].customdata);
      sheet.hidden = place === undefined;
      if (sheet.hidden) return;
      const left = (place % columns) * width, top = Math.floor(place / columns) * height;
      sheet.style.objectPosition = `${-left}px ${-top}px`;
      sheet.style.left = `${Math.min(event.clientX + 20, innerWidth - 2 * width - 8)}px`;
      const above = event.clientY + 40 + 2 * height > innerHeight;
      sheet.style.top = `${above ? event.clientY - 40 - 2 * height : event.clientY + 40}px`;
    });
    plot.on("plotly_unhover", () => { sheet.hidden = true; });
  }
}
if (matchMedia("(width < 600px)").matches)
  for (const fold of document.querySelectorAll(".fold")) fold.open = false;
addEventListener("beforeprint", () => {
  for (const study of document.querySelectorAll(".study")) {
    const again = [...study.querySelectorAll(".differences")].slice(1);
    for (const details of study.querySelectorAll("details:not([open])"))
      if (!again.includes(details)) details.open = details.opened = true;
  }
  for (const plot of plots) Plotly.relayout(plot, { width: 640 });
});
addEventListener("afterprint", () => {
  for (const details of document.querySelectorAll("details")) if (details.opened) details.open = details.opened = false;
  for (const plot of plots) Plotly.relayout(plot, { width: null, autosize: true });
});
const seconds = Number(document.body.dataset.reload);
if (seconds) {
  const all = [...document.querySelectorAll("details")];
  const { top, open } = JSON.parse(sessionStorage.getItem("place") ?? '{"top": 0, "open": []}');
  for (const place of open) if (all[place]) all[place].open = true;
  scrollTo(0, top);
  let moved = 0;
  for (const kind of ["pointermove", "keydown", "scroll"]) addEventListener(kind, () => { moved = Date.now(); });
  setInterval(() => {
    if (Date.now() - moved < 3000) return;
    const open = all.flatMap((details, place) => details.open ? [place] : []);
    sessionStorage.setItem("place", JSON.stringify({ top: scrollY, open }));
    location.reload();
  }, seconds * 1000);
}
"""
