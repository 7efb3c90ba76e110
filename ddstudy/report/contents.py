"""A panel and studies -> what is shown: a sentence, a figure, a table, pictures, or what would fill them.

The numbers are made by `tables`, `comparison` and `images`, the drawings by `figures`; here they meet, in words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from ddstudy.errors import UserError
from ddstudy.images.metrics import QUALITY
from ddstudy.report import anova, claims, comparison, figures, images, tables, thesis
from ddstudy.report.figures import DIGITS, LABELS
from ddstudy.report.panels import (
    Best,
    Claims,
    Convergence,
    Ensemble,
    Fronts,
    Heatmap,
    Importance,
    Means,
    NoisePreview,
    Outputs,
    Panel,
    Parallel,
    Pareto,
    Published,
    Quartiles,
    Ranks,
    Slices,
    Tilings,
    Transfer,
    Unstable,
)
from ddstudy.spec.axes import AXES, NOISES, TILINGS
from ddstudy.spec.schema import BETTER

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ddstudy.store.study import StudyView

COMPARISONS = (Fronts, Ranks, Transfer, Slices)


@dataclass(frozen=True)
class Table:
    """Rows for people.

    Attributes:
        frame: the numbers.
        columns: heading -> column of the frame.
        digits: after the point, of fractions in columns that are not named after a metric.
        folded: heading of a column of long words. Where the page is narrow, each row is a block of its own, and these
            words are folded away.
    """

    frame: pd.DataFrame
    columns: dict[str, str]
    digits: int = 2
    folded: str = ""


@dataclass(frozen=True)
class Picture:
    """An image with its words.

    Attributes:
        faces: images beside or below each other, each with what it shows, for those who do not see it. The address is
            empty where there is no image.
        caption: one line below them.
    """

    faces: tuple[tuple[str, str], ...]
    caption: str


@dataclass(frozen=True)
class Shown:
    """What a panel shows.

    Attributes:
        sentence: what it says, and which trials it is about.
        figure: drawn from the numbers of `table`.
        table: numbers.
        pictures: rows of images, as they stand beside each other.
        missing: what would fill the panel; then it holds nothing else.
        differences: where image, device or budgets are not the thesis', topic -> sentence.
        thumbnails: the figure's points carry the numbers of trials whose outputs can be shown.
    """

    sentence: str
    figure: go.Figure | None = None
    table: Table | None = None
    pictures: list[list[Picture]] = field(default_factory=list)
    missing: str = ""
    differences: dict[str, str] = field(default_factory=dict)
    thumbnails: bool = False


def figure(panel: Panel, views: Sequence[StudyView]) -> go.Figure:
    """The figure of one panel.

    Raises:
        UserError: the panel has none, or the studies have no data for it.
    """
    shown = show(panel, views)
    if shown.figure is None:
        names = ", ".join(view.name for view in views)
        what = "images" if shown.pictures else "a table"
        raise UserError(f"study {names}: no figure of '{panel.kind}'", shown.missing or f"This kind is {what}.")
    return shown.figure


def show(panel: Panel, views: Sequence[StudyView]) -> Shown:
    """What a panel shows of studies: of the first one, unless the panel compares several."""
    match panel:
        case Fronts():
            return _fronts(views, panel)
        case Ranks():
            return _ranks(views, panel)
        case Transfer():
            return _transfer(views, panel)
        case Slices():
            return _slices(views, panel)
    view = views[0]
    match panel:
        case Pareto():
            return _pareto(view, panel)
        case Parallel():
            return _parallel(view, panel)
        case Importance():
            return _importance(view, panel)
        case Quartiles():
            return _quartiles(view, panel)
        case Means():
            return _means(view, panel)
        case Heatmap():
            return _heatmap(view, panel)
        case Convergence():
            return _convergence(view, panel)
        case Unstable():
            return _unstable(view, panel)
        case Ensemble():
            return _ensemble(view, panel)
        case Best():
            return _best(view, panel)
        case Outputs():
            return _outputs(view, panel)
        case NoisePreview():
            return _noise(view, panel)
        case Tilings():
            return _tilings(view, panel)
        case Published():
            return _published(view, panel)
        case Claims():
            return _claims(view)


def _pareto(view: StudyView, panel: Pareto) -> Shown:
    x, y = panel.x, panel.y
    trials = tables.finished(panel.filter(view.trials)).dropna(subset=[x, y])
    directions = BETTER | view.spec.objectives
    front = trials[tables.pareto_front(trials, {x: directions[x], y: directions[y]})].sort_values([x, y])
    if trials.empty:
        return Shown("Every measured trial.", missing=f"Filled by measured trials with {LABELS[x]} and {LABELS[y]}.")
    sentence = (
        f"Every measured trial; {len(front):,} of {trials['stable'].sum():,} stable ones form the front: "
        f"none is better in both {LABELS[x]} and {LABELS[y]}. A trial that was stopped stands where it stopped."
    )
    if "seconds" in (x, y) and (shared := int(trials["shared"].eq(True).sum())):
        sentence += f" {shared:,} shared their device with another fit and look slower than they are."
    if "seconds" in (x, y) and (rough := int(trials["disturbed"].eq(True).sum())):
        on_front = int(front["disturbed"].eq(True).sum())
        of_them = f"The seconds of {rough:,}, {on_front:,} of them on the front,"
        sentence += f" {of_them} were disturbed by other programs on their machine."
    columns = {"trial": "number"} | {axis: axis for axis in AXES} | {LABELS[x]: x, LABELS[y]: y}
    return Shown(sentence, figures.pareto(trials, front, x, y), Table(front, columns), thumbnails=True)


def _importance(view: StudyView, panel: Importance) -> Shown:
    result = anova.importance(view.trials, AXES, panel.y)
    sentence = f"How much of the variance of {LABELS[panel.y]} over all measured settings each axis explains"
    if result.shares.empty:
        return Shown(f"{sentence}.", missing=result.reason)
    sentence += f", by {result.evaluator}. A trial that was stopped counts with the value at which it stopped."
    if view.spec.search.sampler not in ("grid", "random", "qmc"):
        sentence += " The shares are rough: a search chose the settings and hardly measured what it thought bad."
    if len(result.shares) > 11:
        sentence += f" Drawn are the ten largest terms and the rest; the table has all {len(result.shares)}."
    return Shown(sentence, figures.importance(result), Table(result.shares, {"term": "term", "share": "share"}))


def _quartiles(view: StudyView, panel: Quartiles) -> Shown:
    y, axes = panel.y, [panel.x, *([panel.group] if panel.group else [])]
    table = tables.by_axis(panel.filter(view.trials), *axes, metrics=(y,))
    who, needed = _who(y)
    sentence = f"{LABELS[y]} over {who}: the box is the middle half, the line the median, the dashes are the mean."
    sentence += _roughness([view], panel)
    if not table[f"{y}_n"].sum():
        return Shown(sentence, missing=f"Filled by {needed}.")
    names = {"mean": "mean", "least": "min", "lower quartile": "q25", "median": "median", "upper quartile": "q75"}
    names = {heading: f"{y}_{part}" for heading, part in (names | {"greatest": "max"}).items()}
    columns = {axis: axis for axis in axes} | {"measured": "n", "unstable": "unstable_share", "counted": f"{y}_n"}
    return Shown(sentence, figures.quartiles(table, panel.x, y, panel.group), Table(table, columns | names))


def _unstable(view: StudyView, panel: Unstable) -> Shown:
    threshold = view.spec.stability.cv_percent
    table = tables.unstable_share(panel.filter(view.trials), threshold)
    sentence = f"Share of measured settings whose members' PSNR has a coefficient of variation above {threshold:g} %."
    if table.empty or view.spec.fit.members == 1:
        return Shown(sentence, missing="Filled by measured trials of at least two members.")
    columns = {
        "tiling": "tiling",
        "noise": "noise",
        "settings": "n",
        f"CV > {threshold:g} %": "above",
        "share": "share",
    }
    return Shown(sentence, figures.unstable(table), Table(table, columns))


def _ensemble(view: StudyView, panel: Ensemble) -> Shown:
    members = view.spec.fit.members
    table = tables.gain_of_ensemble(panel.filter(view.trials))
    sentence = f"Mean PSNR over stable trials of one decoder (1DD) and of the mean of {members} outputs ({members}DD)."
    if table.empty or members == 1:
        return Shown(sentence, missing="Filled by stable trials of at least two members.")
    columns = {"tiling": "tiling", "noise": "noise", "trials": "n"}
    columns |= {"1DD (dB)": "psnr_1dd", f"{members}DD (dB)": "psnr", "gain (dB)": "gain"}
    return Shown(sentence, figures.ensemble(table, members), Table(table, columns))


def _best(view: StudyView, panel: Best) -> Shown:
    best = tables.best_settings(panel.filter(view.trials), panel.y)
    word = "Lowest" if BETTER[panel.y] == "minimize" else "Highest"
    sentence = f"{word} {LABELS[panel.y]} among stable trials of each pair, and its setting {{k, s, l, iterations}}."
    if best.empty:
        return Shown(sentence, missing=f"Filled by stable trials with {LABELS[panel.y]}.")
    cells = {
        (row.tiling, row.noise): f"{getattr(row, panel.y):,.{DIGITS[panel.y]}f}\n"
        f"{{{row.k}, {row.s}, {row.l}, {row.iterations}}}"
        for row in best.itertuples()
    }
    noises = [noise for noise in NOISES if noise in set(best["noise"])]
    rows = [
        {"tiling": tiling} | {noise: cells.get((tiling, noise), "\u2013") for noise in noises}
        for tiling in TILINGS
        if tiling in set(best["tiling"])
    ]
    return Shown(sentence, table=Table(pd.DataFrame(rows), {"tiling": "tiling"} | {noise: noise for noise in noises}))


def _roughness(views: Sequence[StudyView], panel: Fronts | Quartiles | Means | Heatmap) -> str:
    """Says where seconds that are shown are not those of the fits alone."""
    shown = [panel.filter(view.trials) for view in views if "seconds" in (panel.x, panel.y)]
    count = sum(map(tables.disturbed, shown))
    return f" The seconds of {count:,} were disturbed by other programs on their machine." if count else ""


def _who(metric: str) -> tuple[str, str]:
    """Whose `metric` is compared, in words, and who would fill a panel that has none."""
    if metric == "seconds":
        who = "trials, stable or not, that ran all their iterations on a device of their own"
        return who, who
    who = "stable trials" if metric in QUALITY else "measured trials"
    return who, f"{who} with {LABELS[metric]}"


def _parallel(view: StudyView, panel: Parallel) -> Shown:
    y = panel.y
    lines = tables.parallel(panel.filter(view.trials), y)
    word = "lowest" if BETTER[y] == "minimize" else "highest"
    sentence = (
        f"Each line is a trial; blue are the {int(lines['best'].sum()):,} with the {word} {LABELS[y]} (5 %). Around a "
        "value the lines are ordered by it, so a blue bundle marks what the best settings share."
    )
    if lines.empty:
        return Shown("Each line is a trial, the best ones in blue.", missing=f"Filled by {_who(y)[1]}.")
    columns = {"trial": "number"} | {axis: axis for axis in AXES} | {LABELS[y]: y}
    return Shown(sentence, figures.parallel(lines, y), Table(lines[lines["best"]], columns))


def _means(view: StudyView, panel: Means) -> Shown:
    y, axes = panel.y, [panel.x, *([panel.group] if panel.group else [])]
    table = tables.by_axis(panel.filter(view.trials), *axes, metrics=(y,))
    who, needed = _who(y)
    sentence = f"Average {LABELS[y]} over {who}.{_roughness([view], panel)}"
    if not table[f"{y}_n"].sum():
        return Shown(sentence, missing=f"Filled by {needed}.")
    columns = {axis: axis for axis in axes} | {f"average {LABELS[y]}": f"{y}_mean", "trials": f"{y}_n"}
    return Shown(sentence, figures.means(table, panel.x, y, panel.group), Table(table, columns))


def _heatmap(view: StudyView, panel: Heatmap) -> Shown:
    x, y, group = panel.x, panel.y, panel.group
    table = tables.by_axis(panel.filter(view.trials), group, x, metrics=(y,))
    who, needed = _who(y)
    sentence = f"Median {LABELS[y]} over {who}; an empty cell has none.{_roughness([view], panel)}"
    if not table[f"{y}_n"].sum():
        return Shown(sentence, missing=f"Filled by {needed}.")
    columns = {group: group, x: x, "measured": "n", "unstable": "unstable_share", "counted": f"{y}_n"}
    return Shown(sentence, figures.heatmap(table, x, y, group), Table(table, columns | {"median": f"{y}_median"}))


def _convergence(view: StudyView, panel: Convergence) -> Shown:
    curves = tables.convergence(view, panel.filter(view.trials))
    what = f"{LABELS[panel.y]} of each member over the iterations"
    if curves.empty:
        return Shown(f"{what}.", missing="Filled by trials whose members were checked on the way (fit.check_every).")
    fits = list(dict.fromkeys(curves["fit_id"]))
    sentence = f"{what}: the fit whose members disagree most at its end, and the stable one whose members agree best."
    if len(fits) == 1:
        sentence = f"{what}, fit {fits[0]}."
    ends = curves[curves["iteration"] == curves.groupby("fit_id")["iteration"].transform("max")]
    ends = ends.assign(member=ends["member"] + 1)
    columns = {"fit": "fit_id", "CV (%)": "cv_percent", "member": "member", "iterations": "iteration"}
    return Shown(
        sentence, figures.convergence(curves, panel.y), Table(ends, columns | {"PSNR (dB)": "psnr", "MSE": "mse"})
    )


def _outputs(view: StudyView, panel: Outputs) -> Shown:
    sentence = "Output of the ensemble and its absolute error (black 0 to bright 0.2) for each pair, one setting."
    rows = tables.gallery(panel.filter(view.trials))
    every: list[Any] = list(rows.itertuples())
    kept = [row for row in every if "output.png" in view.images.get(row.number, {})]
    uris = {
        (row.noise, row.tiling, name): images.picture(view.images[row.number][f"{name}.png"])
        for row in kept
        for name in ("output", "error")
    }
    if not any(uris.values()):
        wanted = "Filled by measured trials whose images were kept (images = true in the study file)"
        return Shown(sentence, missing=f"{wanted} and are still in the folder of images.")
    one = kept[0]
    sentence = (
        f"Output of the ensemble and its absolute error (black 0 to bright 0.2) for each pair at k = {one.k}, "
        f"s = {one.s}, l = {one.l}, {one.iterations} iterations."
    )
    by_pair = {(row.noise, row.tiling): row for row in kept}
    tilings = [tiling for tiling in TILINGS if any(pair[1] == tiling for pair in by_pair)]

    def picture(noise: str, tiling: str) -> Picture:
        row = by_pair.get((noise, tiling))
        score = "not measured" if row is None else f"{row.psnr:.2f} dB" + ", unstable" * (not row.stable)
        names = {"output": "output", "error": "absolute error"}
        faces = [(uris.get((noise, tiling, name)) or "", f"{word}: {noise}, {tiling}") for name, word in names.items()]
        return Picture(tuple(faces), f"{noise}, {tiling}: {score}")

    noises = dict.fromkeys(row.noise for row in kept)
    pictures = [[picture(noise, tiling) for tiling in tilings] for noise in noises]
    columns = {axis: axis for axis in ("noise", "tiling")} | {"trial": "number", "PSNR (dB)": "psnr", "SSIM": "ssim"}
    return Shown(sentence, table=Table(rows, columns | {"VIF": "vif", "CV (%)": "cv_percent"}), pictures=pictures)


def _noise(view: StudyView, panel: NoisePreview) -> Shown:
    kinds = panel.x == "noise"
    if "target shape" not in view.facts:
        return Shown("Input tensors.", missing="Filled by a study that tells the size of its target.")
    shown = images.noise_previews(view) if kinds else images.feature_sizes(view)
    _, rows, columns = next(iter(shown.values())).shape
    what = "Kinds of noise, from one stream" if kinds else "Simplex noise of growing feature size"
    sentence = f"{what}: one channel at the study's largest input size, {rows} x {columns}."
    low, high = view.spec.noise.range
    pictures = []
    for name, array in shown.items():
        caption = str(name) if kinds else f"feature size {name:g}"
        pictures.append(Picture(((images.drawn((array - low) / (high - low)), f"noise: {caption}"),), caption))
    return Shown(sentence, pictures=[pictures])


def _tilings(view: StudyView, panel: Tilings) -> Shown:
    sentence = f"The target, {view.facts['target']}, in the tiles that are fitted as one batch."
    file = next((files["target.png"] for files in view.images.values() if "target.png" in files), None)
    target = None if file is None else images.read_grey(file)
    if target is None:
        return Shown(sentence, missing="Filled by the first trial whose images are kept (images = true).")
    cut = images.tilings(view, target).items()
    pictures = [Picture(((images.drawn(array), f"target in {tiling} tiles"),), tiling) for tiling, array in cut]
    return Shown(sentence, pictures=[pictures])


def _published(view: StudyView, panel: Published) -> Shown:
    ours = thesis.beside(view, panel.table)
    if tables.finished(view.trials).empty:
        return Shown(f"{ours.source}.", missing="Filled by measured trials.")
    columns = {name: name for name in ours.table.columns}
    return Shown(f"{ours.source}. {ours.ours}", table=Table(ours.table, columns), differences=ours.differences)


def _claims(view: StudyView) -> Shown:
    sentence = (
        "The thesis' findings on this study. The effect stands with its 95 % interval, over matched settings: equal on "
        f"all other axes. `ddstudy claims {view.name} --trials NAME` says how a claim is decided and lists its trials."
    )
    rows = [
        {
            "finding": f"{answer.claim.finding} ({answer.claim.source})",
            "answer": f"{answer.verdict}\n{answer.effect_text}",
            "compared": answer.tested,
            "trials": len(answer.numbers),
            "name": answer.claim.name,
        }
        for answer in claims.retest(view)
    ]
    columns = {name: name for name in ("finding", "answer", "compared", "trials", "name")}
    return Shown(
        sentence, table=Table(pd.DataFrame(rows), columns, folded="compared"), differences=thesis.differences(view)
    )


# --- several studies


def _fronts(views: Sequence[StudyView], panel: Fronts) -> Shown:
    x, y = panel.x, panel.y
    sentence = f"The Pareto front of each study's stable trials: none is better in both {LABELS[x]} and {LABELS[y]}."
    found = []
    for view in views:
        trials = tables.finished(panel.filter(view.trials)).dropna(subset=[x, y])
        directions = BETTER | view.spec.objectives
        front = trials[tables.pareto_front(trials, {x: directions[x], y: directions[y]})].sort_values([x, y])
        found.append(front.assign(study=view.name))
    points = pd.concat(found, ignore_index=True)
    if points.empty:
        return Shown(sentence, missing=f"Filled by stable trials with {LABELS[x]} and {LABELS[y]}.")
    devices = {device for view in views for device in view.trials["device"].dropna().unique()}
    if "seconds" in (x, y) and len(devices) > 1:
        sentence += f" Seconds are of different devices: {', '.join(sorted(devices))}."
    sentence += _roughness(views, panel)
    columns = {"study": "study", "trial": "number"} | {axis: axis for axis in AXES} | {LABELS[x]: x, LABELS[y]: y}
    return Shown(sentence, figures.fronts(points, x, y), Table(points, columns))


def _ranks(views: Sequence[StudyView], panel: Ranks) -> Shown:
    y = panel.y
    sentence = (
        f"{LABELS[y]} of the same settings in two studies. Spearman's rank correlation is 1 where both rank them alike "
        f"and 0 where one says nothing of the other. Counted are {_who(y)[0]}."
    )
    table = comparison.matched(views, panel.filter, y)
    correlations = comparison.rank_correlations(table)
    if not (correlations["n"] > 0).any():
        return Shown(sentence, missing="Filled by settings that two of the studies both measured.")
    columns = {"study": "one", "other study": "other", "settings of both": "n", "Spearman": "spearman"}
    return Shown(sentence, figures.ranks(table, y), Table(correlations, columns, digits=3))


def _transfer(views: Sequence[StudyView], panel: Transfer) -> Shown:
    y = panel.y
    sentence = (
        f"The setting with the best {LABELS[y]} of each study, and what it is worth in the others: the loss against "
        "their own best, and its rank among their settings. A dash: not measured there, or not stable. Last, the "
        "setting that loses least where it loses most."
    )
    table = comparison.transfer(comparison.matched(views, panel.filter, y), y)
    if table.empty:
        return Shown(sentence, missing=f"Filled by {_who(y)[1]} in two studies.")
    names = [f"{{{row.k}, {row.s}, {row.l}, {row.iterations}}} {row.noise} {row.tiling}" for row in table.itertuples()]
    columns = {"best of": "source", "setting": "setting", "in": "target", LABELS[y]: "value", "best there": "own_best"}
    columns |= {"loss": "loss", "rank": "rank", "of": "n"}
    return Shown(
        sentence,
        table=Table(table.assign(setting=names, source=table["source"].replace("", "all")), columns, DIGITS[y]),
    )


def _slices(views: Sequence[StudyView], panel: Slices) -> Shown:
    y = panel.y
    sentence = f"{LABELS[y]} over the slices of one volume, with each slice's best setting and with the chosen slice's."
    table = comparison.slices(views, panel.filter, y)
    if table.empty:
        return Shown(sentence, missing="Filled by studies of two or more slices of one volume, cut in the same plane.")
    one = table.iloc[0]
    sentence += (
        f" That is k = {one['k']}, s = {one['s']}, l = {one['l']}, {one['iterations']} iterations, {one['noise']}, "
        f"{one['tiling']}. Counted are {_who(y)[0]}."
    )
    columns = {"study": "study", "slice": "slice", "distance": "distance", "settings": "n"}
    columns |= {"chosen setting": "chosen", "own best": "own_best"}
    pictures = _slice_pictures(views, table, y)
    if pictures:
        sentence += " Images, by slice: target, output of the ensemble, absolute error (black 0 to bright 0.2)."
    return Shown(sentence, figures.slices(table, y), Table(table, columns, DIGITS[y]), pictures)


def _slice_pictures(views: Sequence[StudyView], table: pd.DataFrame, metric: str) -> list[list[Picture]]:
    """What the chosen setting makes of each slice; empty where no image is left.

    Args:
        views: the studies.
        table: of `comparison.slices`.
        metric: told below the images.
    """
    by_name = {view.name: view for view in views}
    names = {"target": "target", "output": "output", "error": "absolute error"}
    pictures = []
    for row in table.itertuples():
        view = by_name[str(row.study)]
        chosen = (view.trials[list(AXES)] == table.iloc[0][list(AXES)]).all(axis=1)
        faces, score = [("", f"output: slice {row.slice}")], "not measured"
        for trial in tables.finished(view.trials[chosen]).to_dict("records"):
            files = view.images.get(trial["number"], {})
            uris = {name: images.picture(files[f"{name}.png"]) for name in names if f"{name}.png" in files}
            faces = [(uris.get(name) or "", f"{words}: slice {row.slice}") for name, words in names.items()]
            score = f"{trial[metric]:,.{DIGITS[metric]}f}" + ", unstable" * (not trial["stable"])
        pictures.append(Picture(tuple(faces), f"slice {row.slice} ({row.study}): {LABELS[metric]} {score}"))
    if not any(uri for picture in pictures for uri, _ in picture.faces):
        return []
    return [pictures[first : first + 4] for first in range(0, len(pictures), 4)]
