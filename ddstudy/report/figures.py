"""Data -> figures: plotly drawings of the tables in `tables.py`, without arithmetic of their own.

The marks are Okabe and Ito's colours, those that keep a contrast of 3:1 on white and on near-black alike. Transparent
ones would not; marks that lie on each other are hollow instead. A group has a symbol, a pattern or a place of its own
besides. Text is a grey between white and black, which a page may overrule.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from ddstudy.images.metrics import METRICS
from ddstudy.report.anova import Importance
from ddstudy.report.words import FACETS, in_words, named, text_of, title_of
from ddstudy.spec.options import THESIS

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


def pareto(trials: pd.DataFrame, front: pd.DataFrame, x: str, y: str, axes: Sequence[str] = THESIS) -> go.Figure:
    """Every measured trial in the plane of two metrics, with the stable trials that nobody dominates joined.

    Args:
        trials: measured trials, `tables.finished`.
        front: those of them on the front of `x` and `y`, in the order in which they are joined.
        x: metric across.
        y: metric upwards.
        axes: of the study.
    """
    figure = _figure(title_of(x), title_of(y), {"height": 460})
    stable = trials["stable"]
    for name, rows, marker in (
        ("unstable", trials[~stable], {"color": _VERMILLION, "symbol": "x-thin-open", "size": 5}),
        ("stable", trials[stable], {"color": _BLUE, "symbol": "circle-open", "size": 6}),
        ("Pareto front", front, {"color": _GREEN, "symbol": "diamond", "size": 10}),
    ):
        figure.add_scatter(
            name=name,
            x=rows[x].tolist(),
            y=rows[y].tolist(),
            text=_hover(rows, axes),
            customdata=rows["number"].tolist(),  # by which a page finds the thumbnail
            mode="lines+markers" if rows is front else "markers",
            marker=marker,
            line={"width": 1.5},
            hovertemplate=f"%{{text}}<br>{_shown('y', y)}<br>{_shown('x', x)}",
        )
    return _logarithmic(figure, x, y)


def parallel(lines: pd.DataFrame, metric: str, axes: Sequence[str] = THESIS) -> go.Figure:
    """Trials as lines through their settings, of `tables.parallel`: drawn in SVG, so it prints and needs no WebGL."""
    figure = _figure("", "", {"height": 480, "showlegend": True})
    uprights = [*axes, metric]
    for name, rows, line in (
        ("other trials", lines[~lines["best"]], {"color": _GREY, "width": 0.6}),
        ("best trials", lines[lines["best"]], {"color": _BLUE, "width": 1.6}),
    ):
        path = rows[[f"{axis}_at" for axis in uprights]].assign(gap=None)  # None lifts the pen between two trials
        figure.add_scatter(
            name=name,
            x=[*range(len(uprights)), None] * len(rows),
            y=path.to_numpy(dtype=object).ravel().tolist(),
            mode="lines",
            line=line,
            opacity=0.45 if name == "other trials" else 1,  # the ground that the best lines stand out from
            hoverinfo="skip",
        )
    for place, axis in enumerate(axes):
        for value, rows in lines.groupby(axis, observed=True, dropna=False):
            at = float(rows[f"{axis}_at"].median())
            name = f"<b>{html.escape(text_of(value))}</b>"
            figure.add_annotation(x=place, y=at, text=name, showarrow=False, xanchor="left", xshift=4)
    for at, value in ((0.0, lines[metric].min()), (1.0, lines[metric].max())):
        figure.add_annotation(
            x=len(axes),
            y=at,
            text=f"<b>{value:{METRICS[metric].format}}</b>",
            showarrow=False,
            xanchor="left",
            xshift=4,
        )
    ticks = [*axes, METRICS[metric].label]
    figure.update_xaxes(
        tickvals=[*range(len(uprights))], ticktext=ticks, range=[-0.1, len(axes)], zeroline=False, side="top"
    )
    figure.update_xaxes(autotickangles=[0, 90])  # aslant on a narrow page, the long names would lie on the short ones
    return figure.update_yaxes(visible=False, range=[-0.04, 1.04]).update_layout(
        legend={"y": 1, "yref": "container", "yanchor": "top"}, margin={"t": 100, "r": 56}
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
    figure = _figure(title_of(x), title_of(y), {"boxmode": "group"})
    table = table.dropna(subset=[f"{y}_median"])
    groups = table.groupby(group, sort=False, dropna=False) if group else [("", table)]
    for (value, rows), colour in zip(groups, itertools.cycle(_COLOURS), strict=False):
        figure.add_box(
            name=_name_of(group, value),
            x=_places(rows, [x]),
            lowerfence=rows[f"{y}_min"].tolist(),
            q1=rows[f"{y}_q25"].tolist(),
            median=rows[f"{y}_median"].tolist(),
            mean=rows[f"{y}_mean"].tolist(),
            q3=rows[f"{y}_q75"].tolist(),
            upperfence=rows[f"{y}_max"].tolist(),
            marker={"color": colour},
            fillcolor=_CLEAR,  # the lines inside have their contrast to the page
            showlegend=group is not None,
            hoverinfo="skip",  # it would call the quartiles minimum and maximum
        )
    figure.update_xaxes(**_categories(table, [x]))
    return figure if group else figure.update_layout(margin_t=12)


def means(table: pd.DataFrame, x: str, y: str, group: str | None) -> go.Figure:
    """Average of a metric per value of `x`, bars for each value of `group` (thesis Figs. 4.2 and 4.3).

    Args:
        table: `tables.by_axis` over `x` and, where there is one, `group`.
        x: axis across.
        y: metric upwards.
        group: axis that splits each value of `x`.
    """
    figure = _figure(title_of(x), f"average {title_of(y)}", {"barmode": "group"})
    table = table.dropna(subset=[f"{y}_mean"])
    groups = table.groupby(group, sort=False, dropna=False) if group else [("", table)]
    for (value, rows), (colour, pattern) in zip(groups, itertools.cycle(_BARS), strict=False):
        figure.add_bar(
            name=_name_of(group, value),
            x=_places(rows, [x]),
            y=rows[f"{y}_mean"].tolist(),
            marker={"color": colour, "pattern": {"shape": pattern, "fillmode": "overlay"}},
            showlegend=group is not None,
            customdata=rows[f"{y}_n"].tolist(),
            hovertemplate=f"%{{x}}: %{{y:{METRICS[y].format}}} (%{{customdata}} trials)",
        )
    figure.update_xaxes(**_categories(table, [x]))
    return figure if group else figure.update_layout(margin_t=12)


def heatmap(table: pd.DataFrame, x: str, y: str, group: str) -> go.Figure:
    """Median of the metric `y` for every combination of the axes `x` (across) and `group` (upwards).

    Args:
        table: `tables.by_axis` over `group` and `x`.
        x: axis across.
        y: metric that the colour shows.
        group: axis upwards.
    """
    columns, rows = (list(dict.fromkeys(_places(table, [axis]))) for axis in (x, group))
    cells = dict(
        zip(
            zip(_places(table, [group]), _places(table, [x]), strict=True),
            zip(table[f"{y}_median"], table[f"{y}_n"], strict=True),
            strict=True,
        )
    )
    shown = [[cells.get((row, column), (math.nan, 0)) for column in columns] for row in rows]
    values = [[None if math.isnan(value) else value for value, _ in line] for line in shown]
    figure = _figure(title_of(x), title_of(group), {"height": 150 + 46 * len(rows), "margin": {"t": 12}})
    figure.add_heatmap(
        x=columns,
        y=rows,
        z=values,
        text=[["" if value is None else f"{value:{METRICS[y].format}}" for value in line] for line in values],
        customdata=[[count for _, count in line] for line in shown],
        texttemplate="%{text}",
        hovertemplate=f"{title_of(x)} %{{x}}, {title_of(group)} %{{y}}: "
        "%{text} (%{customdata} trials)<extra></extra>",
        colorscale="Cividis",
        hoverongaps=False,
        xgap=2,
        ygap=2,
        colorbar={
            "title": {"text": title_of(y), "side": "right", "font": {"size": 13}},
            "thickness": 12,
            "outlinewidth": 0,
        },
    )
    return figure.update_xaxes(type="category", showgrid=False).update_yaxes(type="category", showgrid=False)


def convergence(curves: pd.DataFrame, y: str, score: str = METRICS["psnr"].title) -> go.Figure:
    """Curves of the members of one or two fits, one below the other (thesis Figs. 2.3 and 4.5).

    Args:
        curves: of `tables.convergence`.
        y: `mse` or `psnr`.
        score: what `psnr` is.
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
        quantity = f"{score}, one member" if y == "psnr" else title_of(y)
        title_of_axis = {"title": {"text": quantity, "standoff": 8}}
        figure.update_layout({f"yaxis{axis}": _AXIS | {"domain": [top - 0.8 / len(fits), top]} | title_of_axis | scale})
    if len(fits) > 1:
        figure.update_xaxes(anchor="y2")
    return figure


def learning_curves(curves: Mapping[int, tuple[Sequence[int], Sequence[float]]], score: str) -> go.Figure:
    """The curves of some trials in one plane; a page draws others in their place, in the same colours.

    Args:
        curves: number of a trial -> iterations and the mean of its members at each.
        score: what that is, with its unit.
    """
    figure = _figure("iterations", f"{score}, mean of members", {"showlegend": True, "colorway": list(_COLOURS)})
    for place, (number, (iterations, means)) in enumerate(curves.items()):
        figure.add_scatter(
            name=f"trial {number}",
            x=list(iterations),
            y=list(means),
            mode="lines",
            line={"width": 2, "dash": _DASHES[place % len(_DASHES)]},
            hovertemplate="iteration %{x}: %{y:.2f}",
        )
    return figure


def history(trials: pd.DataFrame, metric: str, axes: Sequence[str] = THESIS) -> go.Figure:
    """Trials in the order in which they finished, and the best so far.

    Args:
        trials: of `tables.history`.
        metric: that is best.
        axes: of the study.
    """
    figure = _figure("trials finished", title_of(metric), {})
    x, minimized = trials["place"].tolist(), METRICS[metric].minimized
    figure.add_scatter(
        name="trial",
        x=x,
        y=trials[metric].tolist(),
        customdata=trials["number"].tolist(),
        mode="markers",
        marker={"color": _GREY, "size": 6},
        text=_hover(trials, axes),
        hovertemplate=f"%{{text}}<br>%{{y:{METRICS[metric].format}}}<extra></extra>",
    )
    figure.add_scatter(
        name="lowest so far" if minimized else "highest so far",
        x=x,
        y=trials["best"].tolist(),
        mode="lines",
        line={"color": _BLUE, "width": 2, "shape": "hv"},
        hoverinfo="skip",
    )
    return figure


def unstable(table: pd.DataFrame, facets: Sequence[str] = FACETS) -> go.Figure:
    """Share of settings above the threshold of the CV (thesis Fig. 4.4), a colour per value of the first facet.

    Args:
        table: of `tables.unstable_share`.
        facets: of the table.
    """
    group, across = _split(facets)
    figure = _figure(_titles(across), "share of settings", {"barmode": "group"})
    groups = table.groupby(group, sort=False, dropna=False) if group else [("", table)]
    for (value, rows), (colour, pattern) in zip(groups, itertools.cycle(_BARS), strict=False):
        figure.add_bar(
            name=_name_of(group, value),
            x=_places(rows, across),
            y=rows["share"].tolist(),
            marker={"color": colour, "pattern": {"shape": pattern, "fillmode": "overlay"}},
            customdata=rows[["above", "n"]].to_numpy().tolist(),
            hovertemplate="%{x}: %{y:.1%} (%{customdata[0]} of %{customdata[1]})",
        )
    figure.update_xaxes(**_categories(table, across))
    return figure.update_yaxes(tickformat=".0%", rangemode="tozero")


def ensemble(table: pd.DataFrame, members: int, facets: Sequence[str] = FACETS, metric: str = "psnr") -> go.Figure:
    """Mean PSNR of one decoder and of the ensemble, per combination of the facets' values (thesis Fig. 4.6).

    Args:
        table: of `tables.gain_of_ensemble`.
        members: of the ensemble.
        facets: of the table.
        metric: of the table.
    """
    group, across = _split(facets)
    figure = _figure(_titles(facets), METRICS[metric].title, {"barmode": "group"})
    if not group:
        figure.update_xaxes(**_categories(table, across))
    for column, name, (colour, pattern) in zip((f"{metric}_1dd", metric), ("1DD", f"{members}DD"), _BARS, strict=False):
        figure.add_bar(
            name=name,
            x=[_places(table, across), _places(table, [group])] if group else _places(table, across),
            y=table[column].tolist(),
            marker={"color": colour, "pattern": {"shape": pattern, "fillmode": "overlay"}},
            hovertemplate="%{x}: %{y:.2f} dB",
        )
    return figure


def fronts(points: pd.DataFrame, x: str, y: str, axes: Sequence[str] = THESIS) -> go.Figure:
    """The Pareto fronts of several studies in one plane.

    Args:
        points: the trials on each study's front, in the order in which they are joined, with a column `study`.
        x: metric across.
        y: metric upwards.
        axes: of the studies.
    """
    figure = _figure(title_of(x), title_of(y), {"height": 460})
    for place, (study, rows) in enumerate(points.groupby("study", sort=False)):
        figure.add_scatter(
            name=html.escape(str(study)),
            x=rows[x].tolist(),
            y=rows[y].tolist(),
            text=_hover(rows, axes),
            mode="lines+markers",
            marker={"color": _COLOURS[place % len(_COLOURS)], "symbol": _SYMBOLS[place % len(_SYMBOLS)], "size": 8},
            line={"width": 1.5, "dash": _DASHES[place % len(_DASHES)]},
            hovertemplate=f"%{{text}}<br>{_shown('y', y)}<br>{_shown('x', x)}",
        )
    return _logarithmic(figure, x, y)


def ranks(table: pd.DataFrame, metric: str) -> go.Figure:
    """The same settings in the first study and in each other one. Of `comparison.matched`."""
    first, *others = table.columns
    axes = [str(name) for name in table.index.names]
    figure = _figure(f"{title_of(metric)}, {html.escape(first)}", title_of(metric), {"height": 460, "showlegend": True})
    for place, other in enumerate(others):
        both = table[[first, other]].dropna()
        figure.add_scatter(
            name=html.escape(other),
            x=both[first].tolist(),
            y=both[other].tolist(),
            text=[html.escape(in_words(dict(zip(axes, setting, strict=True)), axes)) for setting in both.index],
            mode="markers",
            marker={
                "color": _COLOURS[place % len(_COLOURS)],
                "symbol": f"{_SYMBOLS[place % len(_SYMBOLS)]}-open",
                "size": 6,
            },
            hovertemplate=f"%{{text}}<br>%{{x:{METRICS[metric].format}}} here, %{{y:{METRICS[metric].format}}} there",
        )
    return _logarithmic(figure, metric, metric)


def slices(table: pd.DataFrame, metric: str) -> go.Figure:
    """Changes of a metric over the slices of a volume (thesis Fig. 5.1). Of `comparison.slices`."""
    figure = _figure("slices from the chosen one", f"change of {title_of(metric)}", {})
    for column, name, colour, symbol, dash in (
        ("change", "mean over the same settings", _BLUE, "circle", "solid"),
        ("best_change", "the chosen slice's best setting", _VERMILLION, "x", "dash"),
    ):
        figure.add_scatter(
            name=name,
            x=table["distance"].tolist(),
            y=table[column].tolist(),
            text=[html.escape(study) for study in table["study"]],
            mode="lines+markers",
            marker={"color": colour, "symbol": symbol, "size": 9},
            line={"width": 1.5, "dash": dash},
            hovertemplate=f"%{{text}}: %{{y:{METRICS[metric].format}}}",
        )
    return figure


def cases(table: pd.DataFrame, metric: str) -> go.Figure:
    """A metric of the common setting and of each case's own best, over the cases. Of `cases.by_case`."""
    figure = _figure("case", title_of(metric), {"xaxis": {**_AXIS, "type": "category"}})
    for column, name, colour, symbol, dash in (
        ("own", "best of the case", _BLUE, "circle-open", "dot"),
        ("common", "one setting for all", _VERMILLION, "x", "solid"),
    ):
        figure.add_scatter(
            name=name,
            x=[html.escape(case) for case in table["case"]],
            y=table[column].tolist(),
            mode="lines+markers",
            marker={"color": colour, "symbol": symbol, "size": 9},
            line={"width": 1.5, "dash": dash},
            hovertemplate=f"%{{x}}: %{{y:{METRICS[metric].format}}}",
        )
    return figure


def by_level(
    table: pd.DataFrame, lines: pd.DataFrame, level: str, metric: str, groups: Sequence[str], axes: Sequence[str]
) -> go.Figure:
    """A metric of the best setting at each level, of each of these settings at the others, and of the measurement.

    Args:
        table: of `inverse.by_level`.
        lines: of `inverse.carried`.
        level: axis across.
        metric: upwards.
        groups: further axes of the task; each combination of their values has a colour.
        axes: of the setting that are told.
    """
    figure = _figure(title_of(level), title_of(metric), {"height": 420, "showlegend": True})
    value = f"%{{y:{METRICS[metric].format}}}"
    for place, (group, rows) in enumerate(_each(table, groups)):
        colour = _COLOURS[place % len(_COLOURS)]
        words = ", ".join(map(named, groups, group))
        carried = lines
        for axis, wanted in zip(groups, group, strict=True):
            carried = carried[carried[axis].map(text_of) == text_of(wanted)]
        for number, (_, line) in enumerate(carried.groupby("chosen_at", sort=False)):
            known = line.dropna(subset=[metric])
            figure.add_scatter(
                name="best of another level",
                legendgroup="carried",
                x=known[level].tolist(),
                y=known[metric].tolist(),
                text=[html.escape(in_words(row, axes)) for row in known.to_dict("records")],
                mode="lines",
                line={"color": colour, "width": 1, "dash": _DASHES[1:][number % 4]},
                showlegend=place == number == 0 and len(rows) > 1,
                hovertemplate=f"%{{text}}: {value}",
            )
        figure.add_scatter(
            name=html.escape(", ".join(filter(None, ["best setting", words]))),
            x=rows[level].tolist(),
            y=rows[metric].tolist(),
            text=[html.escape(in_words(row, axes)) for row in rows.to_dict("records")],
            mode="lines+markers",
            marker={"color": colour, "symbol": _SYMBOLS[place % len(_SYMBOLS)], "size": 9},
            line={"width": 2},
            hovertemplate=f"%{{text}}: {value}",
        )
        if len(known := rows.dropna(subset=["baseline"])):
            figure.add_scatter(
                name=html.escape(", ".join(filter(None, ["measurement", words]))),
                x=known[level].tolist(),
                y=known["baseline"].tolist(),
                mode="lines+markers",
                marker={"color": colour if groups else _GREY, "symbol": "line-ew-open", "size": 9},
                line={"width": 1.5, "dash": "dot"},
                hovertemplate="%{y:.2f} dB",
            )
    return figure.update_xaxes(tickvals=table[level].drop_duplicates().tolist())


def stopping(curves: pd.DataFrame, quantity: str) -> go.Figure:
    """Quality over the iterations of fits, with the iterate that is the answer and the best check.

    Args:
        curves: rows of `inverse.curve_of` with the columns `group` (a curve each), `setting` in words and `answer`, the
            iteration of the answer.
        quantity: upwards, in dB.
    """
    figure = _figure("iterations", f"{quantity} (dB)", {"height": 440, "showlegend": True})
    for place, (group, rows) in enumerate(curves.groupby("group", sort=False)):
        colour, name = _COLOURS[place % len(_COLOURS)], html.escape(str(group))
        at_answer = rows[rows["iteration"] == rows["answer"]]
        best = rows.loc[[rows["score"].idxmax()]]
        line = {"color": colour, "dash": _DASHES[place % len(_DASHES)], "width": 1.6}
        for marked, marker, words in (
            (rows, None, html.escape(str(rows["setting"].iloc[0]))),
            (at_answer, {"symbol": "circle", "size": 11, "color": colour}, "answer"),
            (best, {"symbol": "diamond-open", "size": 13, "color": colour, "line": {"width": 2}}, "best check"),
        ):
            figure.add_scatter(
                name=name,
                legendgroup=name,
                x=marked["iteration"].tolist(),
                y=marked["score"].tolist(),
                mode="lines" if marker is None else "markers",
                line=line if marker is None else None,
                marker=marker,
                showlegend=marker is None,
                hovertemplate=f"{name}, {words}<br>iteration %{{x}}: %{{y:.2f}} dB<extra></extra>",
            )
    return figure


def judges(
    trials: pd.DataFrame, table: pd.DataFrame, levels: Sequence[str], axes: Sequence[str], across: str
) -> go.Figure:
    """Settings by a judge and by the truth, the best of each marked.

    Args:
        trials: stable ones with `judge` and `psnr`.
        table: of `inverse.regret`.
        levels: axes of the task; each combination of their values has a colour.
        axes: of the study.
        across: what the judge's axis is called.
    """
    figure = _figure(across, title_of("psnr"), {"height": 460, "showlegend": True})
    for place, (group, rows) in enumerate(_each(trials, levels)):
        figure.add_scatter(
            name=html.escape(", ".join(map(named, levels, group)) or "settings"),
            x=rows["judge"].tolist(),
            y=rows["psnr"].tolist(),
            text=_hover(rows, axes),
            mode="markers",
            marker={
                "color": _COLOURS[place % len(_COLOURS)],
                "symbol": f"{_SYMBOLS[place % len(_SYMBOLS)]}-open",
                "size": 6,
            },
            hovertemplate="%{text}<br>judge %{x:.2f} dB, PSNR %{y:.2f} dB<extra></extra>",
        )
    by_number = trials.set_index("number", drop=False)
    for column, name, marker in (
        (
            "oracle_number",
            "best by the truth",
            {"symbol": "circle-open", "size": 16, "line": {"width": 2}, "color": _GREEN},
        ),
        ("chosen_number", "best by the judge", {"symbol": "star", "size": 10, "color": _VERMILLION}),
    ):
        rows = by_number.loc[table[column]]
        figure.add_scatter(
            name=name,
            x=rows["judge"].tolist(),
            y=rows["psnr"].tolist(),
            text=_hover(rows, axes),
            mode="markers",
            marker=marker,
            hovertemplate="%{text}<br>judge %{x:.2f} dB, PSNR %{y:.2f} dB<extra></extra>",
        )
    return figure


def _each(rows: pd.DataFrame, axes: Sequence[str]) -> list[tuple[tuple[object, ...], pd.DataFrame]]:
    """The rows of each combination of some axes' values, in their order of appearance; without axes, all of them."""
    return list(rows.groupby(list(axes), sort=False, dropna=False)) if axes else [((), rows)]


def _shown(where: str, metric: str) -> str:
    """A metric and its value at a point, for plotly to fill in."""
    return f"{title_of(metric)} %{{{where}:{METRICS[metric].format}}}"


def _logarithmic(figure: go.Figure, x: str, y: str) -> go.Figure:
    for metric, update in ((x, figure.update_xaxes), (y, figure.update_yaxes)):
        if METRICS[metric].logarithmic:
            update(type="log", tickvals=_ONE_TWO_FIVE, tickformat=",~r")
    return figure


def _split(facets: Sequence[str]) -> tuple[str | None, list[str]]:
    """The facet that has a colour or a level of its own, and those that stand across; of one facet, only this."""
    group, *across = facets
    return (group, across) if across else (None, [group])


def _titles(axes: Sequence[str]) -> str:
    return " and ".join(map(title_of, axes))


def _places(rows: pd.DataFrame, axes: Sequence[str]) -> list[str]:
    """Where rows stand across, in words."""
    return [" ".join(map(text_of, row)) for row in rows[list(axes)].itertuples(index=False, name=None)]


def _name_of(group: str | None, value: object) -> str:
    return named(group, value) if group else ""


def _figure(x: str, y: str, layout: dict[str, object]) -> go.Figure:
    template = go.layout.Template(layout=_LAYOUT)
    titles = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
    return go.Figure(layout={"template": template} | titles | layout)


def _hover(rows: pd.DataFrame, axes: Sequence[str]) -> list[str]:
    """The setting and, where there is one, the reason. Plotly reads hover text as markup."""
    return [
        f"trial {row['number']}: {html.escape(in_words(row, axes))}"
        + (f"<br>{html.escape(row['reason'])}" if isinstance(row["reason"], str) and row["reason"] else "")
        for row in rows.to_dict("records")
    ]


def _categories(table: pd.DataFrame, axes: Sequence[str]) -> dict[str, object]:
    """Values side by side in the table's order, even where they are numbers or one group lacks some."""
    return {"type": "category", "categoryorder": "array", "categoryarray": list(dict.fromkeys(_places(table, axes)))}
