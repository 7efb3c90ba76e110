"""Data -> figures: plotly drawings of the tables in `tables.py`, without arithmetic of their own.

The marks are Okabe and Ito's colours, those that keep a contrast of 3:1 on white and on near-black alike, and a group
has a symbol, a pattern or a place of its own besides. Text is a grey between the two, which a page may overrule.
"""

from __future__ import annotations

import html
import itertools

import pandas as pd
import plotly.graph_objects as go

from ddstudy.report.tables import Importance

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

_BLUE, _VERMILLION, _GREEN, _PURPLE = "#0072b2", "#d55e00", "#009e73", "#b8609c"
_COLOURS = (_BLUE, _VERMILLION, _GREEN, _PURPLE, "#80868b", "#a87b00", "#3b8fc4")
_BARS = ((_BLUE, ""), (_VERMILLION, "/"), (_GREEN, "x"))
_ONE_TWO_FIVE = [digit * 10.0**power for power in range(-3, 9) for digit in (1, 2, 5)]
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
            mode="lines+markers" if rows is front else "markers",
            marker=marker,
            line={"width": 1.5},
            hovertemplate=f"%{{text}}<br>{LABELS[y]} %{{y:.{DIGITS[y]}f}}<br>{LABELS[x]} %{{x:.{DIGITS[x]}f}}",
        )
    for metric, update in ((x, figure.update_xaxes), (y, figure.update_yaxes)):
        if metric in ("seconds", "parameters"):  # both span orders of magnitude
            update(type="log", tickvals=_ONE_TWO_FIVE, tickformat=",~r")
    return figure


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
    """
    figure = _figure(LABELS[x], LABELS[y], {"boxmode": "group"})
    table = table.dropna(subset=[f"{y}_median"])
    groups = table.groupby(group, sort=False) if group else [("", table)]
    for (value, rows), colour in zip(groups, itertools.cycle(_COLOURS), strict=False):
        figure.add_box(
            name=f"{group} {value!s}" if group in ("k", "s", "l") else str(value),
            x=[str(value) for value in rows[x]],
            q1=rows[f"{y}_q25"].tolist(),
            median=rows[f"{y}_median"].tolist(),
            mean=rows[f"{y}_mean"].tolist(),
            q3=rows[f"{y}_q75"].tolist(),
            marker={"color": colour},
            showlegend=group is not None,
            hoverinfo="skip",  # it would call the quartiles minimum and maximum
        )
    figure.update_xaxes(**_categories(table, x))
    return figure if group else figure.update_layout(margin_t=12)


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
