"""The thesis' tables from a study's own trials, what was published beside each number of ours.

The published numbers are in `published.toml`. Ours follow the rules of `ddstudy.report.tables`, and means are
over matched settings only: those measured for every value that a table compares.

Of a slice in tiles a metric has two readings. A study's own is of the joined slice, edges between tiles included, and
by this one settings are chosen, and stable. The other is the mean over tiles, which the thesis may have: "image
patches" were too small for its MS-SSIM (sec. 3.4.2). They choose other settings, so the tables of metrics have both.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import pandas as pd

from ddstudy.errors import UserError
from ddstudy.images.metrics import COLUMNS, METRICS
from ddstudy.report.tables import (
    PAIR,
    best_settings,
    comparable,
    finished,
    gain_of_ensemble,
    paired,
    stopped,
    thin_inputs,
    timed,
)
from ddstudy.spec.options import OPTIONS, THESIS, TILINGS, Value

if TYPE_CHECKING:
    from ddstudy.spec.schema import StudySpec
    from ddstudy.store.study import StudyView

Number = Literal["3.1", "4.1", "4.2", "4.3", "4.4", "4.5", "text"]
OF_COPIES = "The thesis is about copies of clean slices: its findings and tables are not tested on an inverse task."
OF_DECODERS = "The thesis is about its Deep Decoder: its findings and tables are not tested on other priors."
NUMBERS: tuple[Number, ...] = get_args(Number)
_FILE = Path(__file__).with_suffix(".toml")


@dataclass(frozen=True)
class Beside:
    """One table of the thesis beside ours.

    Attributes:
        title: what it is about.
        source: where the thesis has it.
        table: one row per line of the table; numbers that either side lacks are NaN.
        ours: what our numbers are.
        differences: where image, device, budgets or settings are not the thesis', see `differences`.
    """

    title: str
    source: str
    table: pd.DataFrame
    ours: str
    differences: dict[str, str]


@cache
def _thesis() -> dict[str, Any]:
    return tomllib.loads(_FILE.read_text(encoding="utf-8"))


def seconds_by_blocks() -> dict[tuple[int, int], float]:
    """Table 4.2: (l, s) -> seconds."""
    return {(l, s): seconds for l, s, seconds in _thesis()["tables"]["4.2"]["rows"]}


def beside_the_thesis(spec: StudySpec) -> str:
    """Why a study is not about what the thesis is about, a sentence; empty if it is."""
    if spec.is_task:
        return OF_COPIES
    return "" if spec.values_of("prior.kind") == ("deep_decoder",) else OF_DECODERS


def beside(view: StudyView, number: Number) -> Beside:
    """One table of the thesis, or the numbers of its text, from the trials of a study.

    Raises:
        UserError: there is no such table, or the study is of something else.
    """
    if number not in NUMBERS:
        raise UserError(f"no table {number!r} of the thesis", f"Valid: {', '.join(NUMBERS)}.")
    if why := beside_the_thesis(view.spec):
        valid = "Valid: a study without a [task], of prior.kind = 'deep_decoder'."
        raise UserError(f"study {view.name}: {why[0].lower()}{why[1:-1]}", valid)
    known = _thesis()["tables"][number]
    make: dict[str, Callable[[StudyView, dict[str, Any]], tuple[pd.DataFrame, str]]] = {
        "3.1": _options,
        "4.1": _time_by_pair,
        "4.2": _time_by_blocks,
        "text": _text,
    }
    table, ours = make.get(number, _best)(_like_thesis(view), known)
    return Beside(known["title"], known["source"], table, ours, differences(view))


def _beside_thesis(view: StudyView) -> dict[str, Value]:
    """Of every axis that the thesis did not search, the value of the trials that stand beside it.

    That is the default; but of the iterates the last, where it is searched.
    """
    last = _thesis()["study"]["options"]["fit.keep"]
    is_kept = "fit.keep" in view.axes and last in view.spec.search_space["fit.keep"]
    return {axis: OPTIONS[axis].default for axis in view.axes[len(THESIS) :]} | ({"fit.keep": last} if is_kept else {})


def _like_thesis(view: StudyView) -> StudyView:
    """A study with those trials only that stand beside the thesis."""
    trials = view.trials
    for axis, value in _beside_thesis(view).items():
        trials = trials[trials[axis].isna() | trials[axis].eq(value)]
    return replace(view, trials=trials)


def by_tiles(trials: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The same trials with the mean over tiles as their metric; of one tile it is the slice's."""
    return trials.assign(**{metric: trials[COLUMNS["tiles"][metric]]})


def readings(view: StudyView, metric: str) -> str:
    """How much the mean over tiles is above a metric of the joined slice, and whether it chooses another setting.

    Returns:
        One sentence; empty where no stable trial of several tiles has both.
    """
    tiles = COLUMNS["tiles"][metric]
    rows = comparable(_like_thesis(view).trials, metric).dropna(subset=[tiles])
    rows = rows[rows["tiling"] != "1x1"]
    if rows.empty:
        return ""
    above = (rows[tiles] - rows[metric]).groupby(rows["tiling"]).mean()
    shown = f"+{METRICS[metric].format}"
    each = _listed([f"{above[tiling]:{shown}} with {tiling}" for tiling in TILINGS if tiling in above])
    best = [best_settings(some, metric).set_index(list(PAIR))["number"] for some in (rows, by_tiles(rows, metric))]
    others = int((best[0] != best[1]).sum())
    return (
        f"Over the stable trials {METRICS[metric].title} as the mean over tiles, less that of the joined slice, is "
        f"{each}; by the former another setting is the best in {others} of {len(best[0])} pairs with several tiles."
    )


def differences(view: StudyView) -> dict[str, str]:
    """Where a study is not the thesis': what differs -> one sentence; of other tasks or priors image and device."""
    thesis, measured = _thesis()["study"], finished(view.trials)
    space, limits = view.spec.search_space, view.spec.stability
    shape = view.facts.get("target shape", "").removeprefix("1x")
    theirs = "x".join(map(str, thesis["size"]))
    image = f"{view.facts.get('target', 'another image')}, {shape or 'of unknown size'}"
    devices = ", ".join(sorted(set(measured["device"].dropna()))) or "an unknown device"
    found = {"image": f"The image is {image}; the thesis has {thesis['image']}, {theirs}."}
    if not (elsewhere := beside_the_thesis(view.spec)) and (by_reading := readings(view, "psnr")):
        found["metrics"] = f"Metrics are of the joined slice; the thesis' may be means over tiles. {by_reading}"
    found["device"] = f"Times are of {devices}; the thesis names no device."
    if elsewhere:
        return found
    if shape != theirs:
        found["size of the input"] = "The same s makes an input tensor of another size, since the image has another."
    if flat := " or ".join(f"{tiling} and s = {s}" for tiling, s in thin_inputs(view)):
        found["flat tiles"] = f"With {flat} a tile's input has one row or column: findings leave out such flat tiles."
    for axis in THESIS:
        ours = list(space[axis])
        if set(ours) != set(thesis[axis]):
            found[axis] = f"{axis} is {_listed(ours)}; in the thesis {_listed(thesis[axis])}."
    chosen = _beside_thesis(view)
    for axis, value in chosen.items():
        what = f"{axis} is searched, too: {_listed(list(space[axis]))}"
        found[axis] = f"{what}; beside the thesis stand the trials with {value}."
    channels = chosen.get("noise.channels", view.spec.noise.channels)
    has_channels = any(space.applies(OPTIONS["noise.channels"], {"noise": noise}) for noise in space["noise"])
    if has_channels and channels != thesis["options"]["noise.channels"]:
        found["channels"] = (
            "The noise of each channel is drawn by itself; in the thesis, read literally, all lie between two images "
            "(sec. 3.2), which is noise.channels = 'interpolated' and costs some 20 dB (k 64, s 4, l 4, 1,000 "
            "iterations, 64x80 pixels)."
        )
    if view.spec.fit.members != thesis["members"]:
        found["members"] = f"Ensembles have {view.spec.fit.members} members; in the thesis {thesis['members']}."
    if (kept := chosen.get("fit.keep", view.spec.fit.keep)) != thesis["options"]["fit.keep"]:
        found["iterate"] = f"The iterate that counts is the {kept}; in the thesis the last."
    if (limits.cv_percent, limits.min_psnr, limits.max_vif) != (5, 15, 1):
        found["filter"] = (
            f"Stable means CV <= {limits.cv_percent:g} %, PSNR >= {limits.min_psnr:g} dB, VIF <= {limits.max_vif:g}; "
            "in the thesis 5 %, 15 dB, 1."
        )
    if early := int(stopped(measured).sum()):
        found["stopped early"] = f"{early:,} trials were stopped early; in the thesis none."
    if (count := len(measured.drop_duplicates(list(THESIS)))) < len(space):
        found["not measured"] = f"{count:,} of {len(space):,} settings are measured."
    return found


def _options(view: StudyView, known: dict[str, Any]) -> tuple[pd.DataFrame, str]:
    thesis, measured = _thesis()["study"], finished(view.trials)
    rows = []
    for axis in THESIS:
        ours = [value for value in view.spec.search_space[axis] if value in set(measured[axis])]
        rows.append((axis, _listed(thesis[axis]), _listed(ours) or "none yet"))
    return pd.DataFrame(rows, columns=["axis", "thesis", "ours"]), "Ours are the values that were measured."


def _time_by_pair(view: StudyView, known: dict[str, Any]) -> tuple[pd.DataFrame, str]:
    trials, parts = timed(view.trials), []
    for axis, published in known["seconds"].items():
        there = set(trials[axis])
        sets = paired(trials, axis, [value for value in published if value in there], "seconds")
        part = pd.DataFrame({"thesis (s)": published, "ours (s)": sets.mean()}, index=list(published), dtype=float)
        for side in ("thesis", "ours"):
            part[f"{side} / first"] = part[f"{side} (s)"] / part[f"{side} (s)"].iloc[0]
        part["settings"] = [len(sets) if value in sets else 0 for value in published]
        parts.append(part.rename_axis("mean over").reset_index())
    words = "Ours are means over the settings that were timed, undisturbed, for each noise, or for each tiling."
    return pd.concat(parts, ignore_index=True), words


def _time_by_blocks(view: StudyView, known: dict[str, Any]) -> tuple[pd.DataFrame, str]:
    rows, chosen = timed(view.trials), known["setting"]
    at = {}
    for axis, value in chosen.items():
        there = [one for one in view.spec.search_space[axis] if one in set(rows[axis])]
        # where the thesis' own value was not measured: the least channels and iterations, the most tiles
        at[axis] = value if value in there or not there else there[-1] if axis == "tiling" else there[0]
        rows = rows[rows[axis] == at[axis]]
    published = pd.DataFrame(known["rows"], columns=["l", "s", "thesis (s)"]).set_index(["l", "s"])
    ours = rows.drop_duplicates(list(THESIS)).set_index(["l", "s"])["seconds"].rename("ours (s)")
    table = published.join(ours, how="outer").reset_index().sort_values(["l", "s"], ascending=[True, False])
    for side in ("thesis", "ours"):
        seconds = table[f"{side} (s)"]
        table[f"{side} / first"] = seconds / (seconds.dropna().iloc[0] if seconds.notna().any() else float("nan"))
    where = ", ".join(f"{axis} {value}" for axis, value in at.items())
    instead = ", ".join(f"{axis} {value}" for axis, value in chosen.items() if at[axis] != value)
    words = f"Ours at {where}" + (f"; the thesis has {instead}." if instead else ", as the thesis.")
    return table.reset_index(drop=True), words


def _best(view: StudyView, known: dict[str, Any]) -> tuple[pd.DataFrame, str]:
    metric, four = known["metric"], ["k", "s", "l", "iterations"]
    unit = f" ({METRICS[metric].unit})" if METRICS[metric].unit else ""
    theirs = pd.DataFrame(known["rows"], columns=[*PAIR, *four, "value"])
    several = view.trials[view.trials["tiling"] != "1x1"]
    sides = {
        name: (
            {(row["tiling"], row["noise"]): row for row in best_settings(trials, metric).to_dict("records")},
            comparable(trials, metric).drop_duplicates(list(THESIS)).set_index(list(THESIS))[metric],
        )
        for name, trials in (("joined", view.trials), ("tiles", by_tiles(several, metric)))
    }
    rows = []
    for row in theirs.to_dict("records"):
        line = {axis: row[axis] for axis in PAIR} | {f"thesis{unit}": row["value"], "thesis at": _setting(row)}
        for name, (ours, at) in sides.items():
            best = ours.get((row["tiling"], row["noise"]))
            line |= {
                f"{name}{unit}": best[metric] if best else float("nan"),
                f"{name} at": _setting(best) if best else "",
                f"{name} at theirs": at.get(tuple(row[axis] for axis in THESIS), float("nan")),
                f"{name} trial": str(best["number"]) if best else "",
            }
        rows.append(line)
    words = (
        f"Ours is the best stable trial of each pair by {METRICS[metric].label}: of the joined slice, and by the mean "
        f"over tiles where there are several, large enough for it. Settings are {{k, s, l, iterations}}. "
        f"{readings(view, metric)}"
    )
    return pd.DataFrame(rows), words.rstrip()


def _text(view: StudyView, known: dict[str, Any]) -> tuple[pd.DataFrame, str]:
    trials, space = finished(view.trials), view.spec.search_space
    pairs = len(space["noise"]) * len(space["tiling"])
    high = trials[trials["cv_percent"] > 5]
    stable_k = set(trials[trials["stable"]]["k"])
    gains = gain_of_ensemble(view.trials)["gain"]
    known_k = trials[(trials["k"] == 64) & (trials["l"] == 5)]["parameters"]
    ours = {
        "settings": ("settings per pair", str(len(space) // pairs)),
        "pairs": ("pairs of noise and tiling", str(pairs)),
        "members": ("members of an ensemble", str(view.spec.fit.members)),
        "parameters": ("parameters with k = 64, l = 5", f"{known_k.iloc[0]:,.0f}" if len(known_k) else ""),
        "high_cv": ("k of settings with CV > 5 %", _listed(sorted(set(high["k"]))) or "none"),
        "discarded": ("k discarded whole by the filter", _listed(sorted(set(trials["k"]) - stable_k)) or "none"),
        "gain": ("gain of the ensemble, dB, lowest and highest mean of a pair", _range(gains)),
    }
    rows = [(words, known["published"][key], value or "not measured", "") for key, (words, value) in ours.items()]
    joined, tiles = (best_settings(some, "psnr") for some in (view.trials, by_tiles(view.trials, "psnr")))
    has_tiles = set(space["tiling"]) != {"1x1"}
    for axis in ("k", "s", "l", "iterations"):
        of_joined, of_tiles = (_listed(sorted(set(best[axis]))) or "not measured" for best in (joined, tiles))
        words = f"{axis} of the settings with the best PSNR"
        rows.append((words, known["published"][f"best_{axis}"], of_joined, of_tiles if has_tiles else ""))
    words = (
        f"Ours are of all measured settings, PSNR of the joined slice or the mean over tiles. {readings(view, 'psnr')}"
    )
    return pd.DataFrame(rows, columns=["number", "thesis", "ours", "by tiles"]), words.rstrip()


def _setting(row: Mapping[Any, Any]) -> str:
    return f"{{{row['k']}, {row['s']}, {row['l']}, {row['iterations']}}}"


def _listed(values: list[Any]) -> str:
    return ", ".join(map(str, values))


def _range(values: pd.Series[float]) -> str:
    return f"{values.min():.1f} to {values.max():.1f}" if len(values) else ""
