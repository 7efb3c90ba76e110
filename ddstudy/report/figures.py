"""Data -> figures: plotly drawings of the tables in `tables.py`, without arithmetic of their own.

The marks are Okabe and Ito's colours, those that keep a contrast of 3:1 on white and on near-black alike, and a group
has a symbol, a pattern or a place of its own besides. Text is a grey between the two, which a page may overrule.
"""

from __future__ import annotations

import html
import itertools
import math

import pandas as pd
import plotly.graph_objects as go

from ddstudy.report.anova import Importance
from ddstudy.spec.axes import AXES

LABELS = {
    "k": "channels k",
    "s": "scale factor s",
    "l": "blocks l",
    "iterations": "iterations",
    "noise": "noise",
    "tiling": "tiling",
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM",
    "vif": "VIF",
    "psnr_foreground": "PSNR in the foreground (dB)",
    "seconds": "seconds",
    "parameters": "parameters",
    "cv_percent": "CV (%)",
    "mse": "mean squared error",
}
DIGITS = {
    "psnr": 2,
    "ssim": 3,
    "ms_ssim": 3,
    "vif": 3,
    "psnr_foreground": 2,
    "seconds": 2,
    "parameters": 0,
    "cv_percent": 2,
}

_BLUE, _VERMILLION, _GREEN, _PURPLE, _GREY = "#0072b2", "#d55e00", "#009e73", "#b8609c", "#80868b"
_COLOURS = (_BLUE, _VERMILLION, _GREEN, _PURPLE, _GREY, "#a87b00", "#3b8fc4")
_BARS = ((_BLUE, ""), (_VERMILLION, "/"), (_GREEN, "x"), (_PURPLE, "."))
_SYMBOLS = ("circle", "x", "diamond", "square", "triangle-up", "cross", "star")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_ONE_TWO_FIVE = [digit * 10.0**power for power in range(-6, 9) for digit in (1, 2, 5)]
_TEXT, _GRID, _CLEAR = "#7d848c", "rgba(125, 132, 140, 0.28)", "rgba(0, 0, 0, 0)"
_AXIS = {
    "gridcolor": _GRID,
    "linecolor": _GRID,
    "zerolinecolor": _GRID,
    "automargin": True,
    "title": {"standoff": 8, "font": {"size": 13}},
    "fixedrange": True,  # else a finger that scrolls the page zooms the figure
}
_LAYOUT = {
    "font": {"family": "system-ui, sans-serif", "size": 13, "color": _TEXT},
    "paper_bgcolor": _CLEAR,
    "plot_bgcolor": _CLEAR,
    "margin": {"l": 8, "r": 12, "t": 36, "b": 8},
    "height": 360,
    "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "bgcolor": _CLEAR},
    "xaxis": _AXIS,
    "yaxis": _AXIS,
    "dragmode": False,
}


def pareto(trials: pd.DataFrame, front: pd.DataFrame, x: str, y: str) -> go.Figure:
    """Every measured trial in the plane of two metrics, with the stable trials that nobody dominates joined.

    Args:
        trials: measured trials, `tables.finished`.
        front: those of them on the front of `x` and `y`, in the order in which they are joined.
        x: metric across.
        y: metric upwards.
    """
    figure = _figure(LABELS[x], LABELS[y], {"height": 460})
    stable = trials["stable"]
    for name, rows, marker in (
        ("unstable", trials[~stable], {"color": _VERMILLION, "symbol": "x", "size": 5, "opacity": 0.6}),
        ("stable", trials[stable], {"color": _BLUE, "size": 6, "opacity": 0.6}),
        ("Pareto front", front, {"color": _GREEN, "symbol": "diamond", "size": 10}),
    ):
        figure.add_scatter(
            name=name,
            x=rows[x].tolist(),
            y=rows[y].tolist(),
            text=_hover(rows),
            customdata=rows["number"].tolist(),  # by which a page finds the thumbnail
            mode="lines+markers" if rows is front else "markers",
            marker=marker,
            line={"width": 1.5},
            hovertemplate=f"%{{text}}<br>{LABELS[y]} %{{y:.{DIGITS[y]}f}}<br>{LABELS[x]} %{{x:.{DIGITS[x]}f}}",
        )
    return _logarithmic(figure, x, y)


def parallel(lines: pd.DataFrame, metric: str) -> go.Figure:
    """Trials as lines through their settings, of `tables.parallel`: drawn in SVG, so it prints and needs no WebGL."""
    figure = _figure("", "", {"height": 480, "showlegend": True})
    axes = [*AXES, metric]
    for name, rows, line in (
        ("other trials", lines[~lines["best"]], {"color": _GREY, "width": 0.6}),
        ("best trials", lines[lines["best"]], {"color": _BLUE, "width": 1.6}),
    ):
        path = rows[[f"{axis}_at" for axis in axes]].assign(gap=None)  # None lifts the pen between two trials
        figure.add_scatter(
            name=name,
            x=[*range(len(axes)), None] * len(rows),
            y=path.to_numpy(dtype=object).ravel().tolist(),
            mode="lines",
            line=line,
            opacity=0.45 if name == "other trials" else 0.8,
            hoverinfo="skip",
        )
    for place, axis in enumerate(AXES):
        for value, rows in lines.groupby(axis, observed=True):
            at = float(rows[f"{axis}_at"].median())
            figure.add_annotation(x=place, y=at, text=f"<b>{value}</b>", showarrow=False, xanchor="left", xshift=4)
    for at, value in ((0.0, lines[metric].min()), (1.0, lines[metric].max())):
        figure.add_annotation(
            x=len(AXES), y=at, text=f"<b>{value:.{DIGITS[metric]}f}</b>", showarrow=False, xanchor="left", xshift=4
        )
    ticks = [*AXES, LABELS[metric].partition(" (")[0]]
    figure.update_xaxes(
        tickvals=[*range(len(axes))], ticktext=ticks, range=[-0.1, len(AXES)], zeroline=False, side="top"
    )
    return figure.update_yaxes(visible=False, range=[-0.04, 1.04]).update_layout(
        legend={"y": 1.12}, margin={"t": 72, "r": 56}
    )


def importance(result: Importance) -> go.Figure:
    """The ten largest shares of a metric's variance as bars, and what is left over."""
    shares = result.shares if len(result.shares) <= 11 else result.shares.iloc[[*range(10), -1]]
    figure = _figure("share of the variance", "", {"height": 110 + 22 * len(shares), "margin": {"t": 12}})
    figure.add_bar(
        orientation="h",
        x=shares["share"].tolist(),
        y=shares["term"].tolist(),
        marker={"color": _BLUE},
        text=[f"{share:.1%}" for share in shares["share"]],
        textposition="outside",
        cliponaxis=False,
        hovertemplate="%{y}: %{x:.2%}<extra></extra>",
    )
    figure.update_xaxes(tickformat=".0%", rangemode="tozero", nticks=5, tickangle=0)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False, ticklabelstandoff=6)
    return figure.update_layout(margin_r=52)


def quartiles(table: pd.DataFrame, x: str, y: str, group: str | None) -> go.Figure:
    """Boxes from the lower to the upper quartile with the median (line) and the mean (dashes) of a metric.

    Args:
        table: `tables.by_axis` over `x` and, where there is one, `group`.
        x: axis across.
        y: metric upwards.
        group: axis that splits each value of `x` into coloured boxes.

    The whiskers reach to the least and the greatest value.
    """
    figure = _figure(LABELS[x], LABELS[y], {"boxmode": "group"})
    table = table.dropna(subset=[f"{y}_median"])
    groups = table.groupby(group, sort=False) if group else [("", table)]
    for (value, rows), colour in zip(groups, itertools.cycle(_COLOURS), strict=False):
        figure.add_box(
            name=_name_of(group, value),
            x=[str(value) for value in rows[x]],
            lowerfence=rows[f"{y}_min"].tolist(),
            q1=rows[f"{y}_q25"].tolist(),
            median=rows[f"{y}_median"].tolist(),
            mean=rows[f"{y}_mean"].tolist(),
            q3=rows[f"{y}_q75"].tolist(),
            upperfence=rows[f"{y}_max"].tolist(),
            marker={"color": colour},
            showlegend=group is not None,
            hoverinfo="skip",  # it would call the quartiles minimum and maximum
        )
    figure.update_xaxes(**_categories(table, x))
    return figure if group else figure.update_layout(margin_t=12)


def means(table: pd.DataFrame, x: str, y: str, group: str | None) -> go.Figure:
    """Average of a metric per value of `x`, bars for each value of `group` (thesis Figs. 4.2 and 4.3).

    Args:
        table: `tables.by_axis` over `x` and, where there is one, `group`.
        x: axis across.
        y: metric upwards.
        group: axis that splits each value of `x`.
    """
    figure = _figure(LABELS[x], f"average {LABELS[y]}", {"barmode": "group"})
    table = table.dropna(subset=[f"{y}_mean"])
    groups = table.groupby(group, sort=False) if group else [("", table)]
    for (value, rows), (colour, pattern) in zip(groups, itertools.cycle(_BARS), strict=False):
        figure.add_bar(
            name=_name_of(group, value),
            x=[str(value) for value in rows[x]],
            y=rows[f"{y}_mean"].tolist(),
            marker={"color": colour, "pattern": {"shape": pattern, "fillmode": "overlay"}},
            showlegend=group is not None,
            customdata=rows[f"{y}_n"].tolist(),
            hovertemplate=f"%{{x}}: %{{y:.{DIGITS[y]}f}} (%{{customdata}} trials)",
        )
    figure.update_xaxes(**_categories(table, x))
    return figure if group else figure.update_layout(margin_t=12)


def heatmap(table: pd.DataFrame, x: str, y: str, group: str) -> go.Figure:
    """Median of the metric `y` for every combination of the axes `x` (across) and `group` (upwards).

    Args:
        table: `tables.by_axis` over `group` and `x`.
        x: axis across.
        y: metric that the colour shows.
        group: axis upwards.
    """
    columns, rows = (list(dict.fromkeys(table[axis])) for axis in (x, group))
    cells = dict(
        zip(
            zip(table[group], table[x], strict=True),
            zip(table[f"{y}_median"], table[f"{y}_n"], strict=True),
            strict=True,
        )
    )
    shown = [[cells.get((row, column), (math.nan, 0)) for column in columns] for row in rows]
    values = [[None if math.isnan(value) else value for value, _ in line] for line in shown]
    figure = _figure(LABELS[x], LABELS[group], {"height": 150 + 46 * len(rows), "margin": {"t": 12}})
    figure.add_heatmap(
        x=[str(value) for value in columns],
        y=[str(value) for value in rows],
        z=values,
        text=[["" if value is None else f"{value:.{DIGITS[y]}f}" for value in line] for line in values],
        customdata=[[count for _, count in line] for line in shown],
        texttemplate="%{text}",
        hovertemplate=f"{LABELS[x]} %{{x}}, {LABELS[group]} %{{y}}: %{{text}} (%{{customdata}} trials)<extra></extra>",
        colorscale="Cividis",
        hoverongaps=False,
        xgap=2,
        ygap=2,
        colorbar={"title": {"text": LABELS[y], "side": "right"}, "thickness": 12, "outlinewidth": 0},
    )
    return figure.update_xaxes(type="category", showgrid=False).update_yaxes(type="category", showgrid=False)


def convergence(curves: pd.DataFrame, y: str) -> go.Figure:
    """Curves of the members of one or two fits, one below the other (thesis Figs. 2.3 and 4.5).

    Args:
        curves: of `tables.convergence`.
        y: `mse` or `psnr`.
    """
    fits = list(dict.fromkeys(curves["fit_id"]))
    figure = _figure("iteration", "", {"height": 130 + 210 * len(fits), "showlegend": False})
    for place, fit in enumerate(fits):
        rows = curves[curves["fit_id"] == fit]
        axis = "" if place == 0 else str(place + 1)
        top = 1 - place / len(fits)
        for (member, one), colour in zip(rows.groupby("member"), itertools.cycle(_COLOURS), strict=False):
            figure.add_scatter(
                name=f"member {int(member) + 1}",
                x=one["iteration"].tolist(),
                y=one[y].tolist(),
                mode="lines",
                line={"color": colour, "dash": _DASHES[int(member) % len(_DASHES)], "width": 1.6},
                yaxis=f"y{axis}",
                hovertemplate=f"iteration %{{x}}: %{{y:.{4 if y == 'mse' else 2}{'e' if y == 'mse' else 'f'}}}",
            )
        title = f"{fit}, CV {rows['cv_percent'].iloc[0]:.2f} %"
        figure.add_annotation(
            text=title, x=0, y=top, xref="paper", yref="paper", xanchor="left", yanchor="bottom", showarrow=False
        )
        scale = {"type": "log", "tickvals": _ONE_TWO_FIVE, "tickformat": ".0e"} if y == "mse" else {}
        title_of_axis = {"title": {"text": LABELS[y], "standoff": 8}}
        figure.update_layout({f"yaxis{axis}": _AXIS | {"domain": [top - 0.8 / len(fits), top]} | title_of_axis | scale})
    if len(fits) > 1:
        figure.update_xaxes(anchor="y2")
    return figure


def unstable(table: pd.DataFrame) -> go.Figure:
    """Share of settings above the threshold of the CV, per pair (thesis Fig. 4.4). Of `tables.unstable_share`."""
    figure = _figure(LABELS["tiling"], "share of settings", {"barmode": "group"})
    for (noise, rows), (colour, pattern) in zip(table.groupby("noise", sort=False), _BARS, strict=False):
        figure.add_bar(
            name=str(noise),
            x=rows["tiling"].tolist(),
            y=rows["share"].tolist(),
            marker={"color": colour, "pattern": {"shape": pattern, "fillmode": "overlay"}},
            customdata=rows[["above", "n"]].to_numpy().tolist(),
            hovertemplate="%{x}: %{y:.1%} (%{customdata[0]} of %{customdata[1]})",
        )
    figure.update_xaxes(**_categories(table, "tiling"))
    return figure.update_yaxes(tickformat=".0%", rangemode="tozero")


def ensemble(table: pd.DataFrame, members: int) -> go.Figure:
    """Mean PSNR of one decoder and of the ensemble, per pair (thesis Fig. 4.6). Of `tables.gain_of_ensemble`."""
    figure = _figure("noise and tiling", LABELS["psnr"], {"barmode": "group"})
    for column, name, (colour, pattern) in zip(("psnr_1dd", "psnr"), ("1DD", f"{members}DD"), _BARS, strict=False):
        figure.add_bar(
            name=name,
            x=[table["tiling"].tolist(), table["noise"].tolist()],
            y=table[column].tolist(),
            marker={"color": colour, "pattern": {"shape": pattern, "fillmode": "overlay"}},
            hovertemplate="%{x}: %{y:.2f} dB",
        )
    return figure


def fronts(points: pd.DataFrame, x: str, y: str) -> go.Figure:
    """The Pareto fronts of several studies in one plane.

    Args:
        points: the trials on each study's front, in the order in which they are joined, with a column `study`.
        x: metric across.
        y: metric upwards.
    """
    figure = _figure(LABELS[x], LABELS[y], {"height": 460})
    for place, (study, rows) in enumerate(points.groupby("study", sort=False)):
        figure.add_scatter(
            name=html.escape(str(study)),
            x=rows[x].tolist(),
            y=rows[y].tolist(),
            text=_hover(rows),
            mode="lines+markers",
            marker={"color": _COLOURS[place % len(_COLOURS)], "symbol": _SYMBOLS[place % len(_SYMBOLS)], "size": 8},
            line={"width": 1.5, "dash": _DASHES[place % len(_DASHES)]},
            hovertemplate=f"%{{text}}<br>{LABELS[y]} %{{y:.{DIGITS[y]}f}}<br>{LABELS[x]} %{{x:.{DIGITS[x]}f}}",
        )
    return _logarithmic(figure, x, y)


def ranks(table: pd.DataFrame, metric: str) -> go.Figure:
    """The same settings in the first study and in each other one. Of `comparison.matched`."""
    first, *others = table.columns
    figure = _figure(f"{LABELS[metric]}, {html.escape(first)}", LABELS[metric], {"height": 460, "showlegend": True})
    for place, other in enumerate(others):
        both = table[[first, other]].dropna()
        figure.add_scatter(
            name=html.escape(other),
            x=both[first].tolist(),
            y=both[other].tolist(),
            text=[
                f"k {k}, s {s}, l {l}, {i} iterations, {noise}, {tiling}" for k, s, l, i, noise, tiling in both.index
            ],
            mode="markers",
            marker={
                "color": _COLOURS[place % len(_COLOURS)],
                "symbol": _SYMBOLS[place % len(_SYMBOLS)],
                "size": 6,
                "opacity": 0.7,
            },
            hovertemplate=f"%{{text}}<br>%{{x:.{DIGITS[metric]}f}} here, %{{y:.{DIGITS[metric]}f}} there",
        )
    return _logarithmic(figure, metric, metric)


def slices(table: pd.DataFrame, metric: str) -> go.Figure:
    """A metric over the slices of a volume (thesis Fig. 5.1). Of `comparison.slices`."""
    figure = _figure("slices from the chosen one", LABELS[metric], {})
    for column, name, colour, symbol, dash in (
        ("own_best", "each slice's own best setting", _BLUE, "circle", "solid"),
        ("chosen", "the chosen slice's best setting", _VERMILLION, "x", "dash"),
    ):
        figure.add_scatter(
            name=name,
            x=table["distance"].tolist(),
            y=table[column].tolist(),
            text=[html.escape(study) for study in table["study"]],
            mode="lines+markers",
            marker={"color": colour, "symbol": symbol, "size": 9},
            line={"width": 1.5, "dash": dash},
            hovertemplate=f"%{{text}}: %{{y:.{DIGITS[metric]}f}}",
        )
    return figure


def _logarithmic(figure: go.Figure, x: str, y: str) -> go.Figure:
    for metric, update in ((x, figure.update_xaxes), (y, figure.update_yaxes)):
        if metric in ("seconds", "parameters"):  # both span orders of magnitude
            update(type="log", tickvals=_ONE_TWO_FIVE, tickformat=",~r")
    return figure


def _name_of(group: str | None, value: object) -> str:
    return f"{group} {value!s}" if group in ("k", "s", "l") else str(value)


def _figure(x: str, y: str, layout: dict[str, object]) -> go.Figure:
    template = go.layout.Template(layout=_LAYOUT)
    titles = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
    return go.Figure(layout={"template": template} | titles | layout)


def _hover(rows: pd.DataFrame) -> list[str]:
    """The setting and, where there is one, the reason. Plotly reads hover text as markup."""
    return [
        f"trial {row.number}: k {row.k}, s {row.s}, l {row.l}, {row.iterations} iterations, {row.noise}, {row.tiling}"
        + (f"<br>{html.escape(row.reason)}" if isinstance(row.reason, str) and row.reason else "")
        for row in rows.itertuples()
    ]


def _categories(table: pd.DataFrame, axis: str) -> dict[str, object]:
    """Values side by side in the table's order, even where they are numbers or one group lacks some."""
    return {"type": "category", "categoryorder": "array", "categoryarray": [str(v) for v in table[axis].unique()]}
