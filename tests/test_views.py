"""The views of a study with images and curves, and of several: their numbers by other means, and in a browser."""

import base64
import dataclasses
import itertools
import json
import math
import re
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pandas as pd
import pytest
import synthetic

import ddstudy.thesis.panels  # noqa: F401 - adds its kinds
from ddstudy.images.inputs import noise_volume
from ddstudy.images.tiling import split
from ddstudy.images.volumes import SIDES, error_png_bytes, load_target
from ddstudy.report import comparison, figures, images, tables
from ddstudy.report.answer import answer, best_of
from ddstudy.report.intervals import mean_of
from ddstudy.report.page import render
from ddstudy.report.panels import COMPARE, KINDS, parse_panel, read_panels
from ddstudy.report.panels.base import Faceted
from ddstudy.report.panels.outputs import of_best
from ddstudy.report.words import FACETS, in_words
from ddstudy.spec.options import NOISES, TILINGS, TargetSpec
from ddstudy.spec.options import THESIS as AXES
from ddstudy.store.database import Store
from ddstudy.store.study import StudyView

ROOT = Path(__file__).parents[1]
THESIS = ROOT / "dashboards" / "thesis.toml"
SPACE = {
    "k": [8, 64],
    "s": [4, 16],
    "l": [4],
    "iterations": [250, 500],
    "noise": list(NOISES),
    "tiling": ["1x1", "2x2", "3x3", "4x5"],
}
SIZE = (48, 60)
STUDIES = {"mid": (94, 0.0), "up": (114, 2.0), "down": (64, 14.0)}  # slice, and how much k costs there


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three slices of one volume, 96 settings each; `down` is measured in part only."""
    url = f"sqlite:///{tmp_path_factory.mktemp('views') / 'studies.db'}"
    for name, (index, shift) in STUDIES.items():
        spec = synthetic.spec_of(name, SPACE, target={} if name == "mid" else {"slice": index}, fit={"members": 3})
        with synthetic.driven(url, spec, SIZE, f"MNI152 T1 axial {index}") as study:
            settings = list(spec.search_space)
            synthetic.record(study, settings[: 60 if name == "down" else None], shift)
    return url


@pytest.fixture(scope="module")
def views(store: str) -> list[StudyView]:
    with Store(store, read_only=True) as opened:
        return [opened.view(name) for name in STUDIES]


@pytest.fixture
def view(views: list[StudyView]) -> StudyView:
    return views[0]


def panel(kind: str, **fields: object):
    return parse_panel({"kind": kind, "title": "T", **fields}, "test")


def stable(view: StudyView) -> pd.DataFrame:
    rows = view.trials
    return rows[rows["cv_percent"].le(5) & rows["psnr"].ge(15) & rows["vif"].le(1)]


def everything(view: StudyView, views: list[StudyView]) -> dict[str, object]:
    """A panel of every kind with all that it needs."""
    fields = {"x": "k", "y": "psnr", "group": "s", "table": "4.3"}
    own = {"pareto": {"x": "seconds"}, "fronts": {"x": "seconds"}, "noise": {"x": "noise"}, "convergence": {"y": "mse"}}
    return {
        kind: panel(
            kind, **{name: value for name, value in (fields | own.get(kind, {})).items() if name in model.model_fields}
        )
        for kind, model in KINDS.items()
        if kind not in ("by_level", "stopping", "judges", "priors")  # see test_task_views and test_priors_report
        and kind not in ("cases", "cases_by_axis", "cases_transfer", "cases_needed", "cases_slices", "held_out")
    }


# --- of one study


def test_every_kind_shows_something(view, views):
    for kind, one in everything(view, views).items():
        shown = one.show(views if one.compares else [view])
        assert not shown.missing, kind
        assert shown.figure is not None or shown.table is not None or shown.pictures, kind
        assert shown.sentence.endswith("."), kind


@pytest.mark.parametrize("group", [None, "noise"])
def test_means_are_those_of_pandas(view, group):
    bars = panel("means", x="tiling", y="seconds", **({"group": group} if group else {})).figure([view]).data
    keys = ["tiling", *([group] if group else [])]
    expected = view.trials.groupby(keys)["seconds"].mean()
    assert len(bars) == (3 if group else 1)
    for bar in bars:
        assert list(bar.x) == list(TILINGS)
        wanted = [expected[(tiling, bar.name) if group else tiling] for tiling in bar.x]
        assert list(bar.y) == pytest.approx(wanted)


def test_a_heat_map_is_the_median_of_stable_trials(view):
    [cells] = panel("heatmap", x="k", y="psnr", group="tiling").figure([view]).data
    expected = stable(view).pivot_table(index="tiling", columns="k", values="psnr", aggfunc="median")
    assert (list(cells.y), list(cells.x)) == (list(TILINGS), ["8", "64"])
    assert np.array(cells.z, float) == pytest.approx(expected.loc[list(TILINGS)].to_numpy(), nan_ok=True)


def test_an_empty_cell_of_a_heat_map_stays_empty(view):
    trials = view.trials.assign(stable=view.trials["stable"] & ~(view.trials["k"].eq(8) & view.trials["s"].eq(4)))
    table = tables.by_axis(trials[~(trials["k"].eq(64) & trials["s"].eq(16))], "s", "k", metrics=("psnr",))
    [cells] = figures.heatmap(table, "k", "psnr", "s").data
    assert [[value is None for value in line] for line in cells.z] == [[True, False], [False, True]]


RATE = "fit.learning_rate"


@pytest.fixture
def wider(views: list[StudyView]) -> list[StudyView]:
    """The same studies with one axis more, which does not apply to every third setting."""
    rates = [0.003, 0.01, math.nan]
    found = []
    for view in views:
        spec = synthetic.spec_of(view.name, SPACE | {RATE: rates[:2]}, fit={"members": 3})
        trials = view.trials.assign(**{RATE: [rates[n % 3] for n in view.trials["number"]]})
        found.append(dataclasses.replace(view, spec=spec, trials=trials))
        found[-1].__dict__["images"] = view.images
    return found


@pytest.mark.parametrize("facets", [["noise", "tiling"], [RATE], ["k"], ["noise", RATE, "s"]])
def test_every_kind_takes_any_axis(wider, facets):
    """A setting had six values, written down in each panel, and groups were pairs of noise and tiling."""
    view = wider[0]
    others = [axis for axis in (*AXES, RATE) if axis not in facets]
    good = stable(view)
    for kind, one in everything(view, wider).items():
        if kind in ("claims", "published", "importance"):
            continue  # the thesis', and of the whole study
        chosen = {"facets": facets} if isinstance(one, Faceted) else {}
        chosen |= {"group": RATE} if kind in ("quartiles", "means", "heatmap") else {}
        shown = one.model_copy(update=chosen).show(wider if one.compares else [view])
        assert not shown.missing, kind
        if kind == "unstable":
            high = view.trials["cv_percent"] > 5
            expected = high.groupby([view.trials[axis] for axis in facets], dropna=False).mean()
            assert sorted(shown.table.frame["share"]) == pytest.approx(sorted(expected))
        if kind == "ensemble":
            expected = good.groupby(facets, dropna=False)["psnr"].mean()
            assert sorted(shown.table.frame["psnr"]) == pytest.approx(sorted(expected))
        if kind == "best":
            rows = good.loc[good.groupby(facets, dropna=False)["psnr"].idxmax()]
            cells = {cell for row in shown.table.frame.itertuples(index=False) for cell in row if "\n" in str(cell)}
            numbers = [axis for axis in others if axis not in FACETS]
            for row in rows.to_dict("records"):
                inside = ", ".join("\u2013" if row[axis] != row[axis] else f"{row[axis]:g}" for axis in numbers)
                assert any(cell.startswith(f"{row['psnr']:.2f}\n{{{inside}}}") for cell in cells)
            assert len(cells) == len(rows)
        if kind == "outputs":
            captions = [picture.caption for line in shown.pictures for picture in line]
            assert sum("not measured" not in caption for caption in captions) == len(shown.table.frame)
            best = good.loc[good.groupby(facets, dropna=False)["psnr"].idxmax()]
            assert set(shown.table.frame["number"]) == set(best["number"])


def test_points_name_the_axes_that_apply(wider):
    drawn = panel("pareto", x="seconds", y="psnr").figure(wider[:1]).data
    texts = {number: text for line in drawn for number, text in zip(line.customdata, line.text, strict=True)}
    rates = wider[0].trials.set_index("number")[RATE]
    for number, text in texts.items():
        told = re.search(rf", {RATE} ([\d.]+)(<br>|$)", text)
        assert math.isnan(rates[number]) if told is None else float(told[1]) == rates[number]


def test_parallel_lines_pass_where_their_values_are(view):
    lines = tables.parallel(view.trials, "psnr")
    ranked = stable(view).sort_values("psnr", ascending=False)
    assert len(lines) == len(ranked)
    best = lines[lines["best"]]
    assert best["number"].tolist() == ranked["number"].head(round(0.05 * len(ranked))).tolist()
    for axis in AXES:
        order = {"noise": NOISES, "tiling": TILINGS}.get(axis, SPACE[axis])
        place = np.floor(lines[f"{axis}_at"] * len(order)).astype(int)
        assert [order[index] for index in place] == lines[axis].tolist()
        for _, rows in lines.groupby(axis):  # within a value, better lines are higher
            assert rows.sort_values(f"{axis}_at")["psnr"].is_monotonic_increasing
    assert lines["psnr_at"].min() == 0
    assert lines["psnr_at"].max() == 1


def test_many_lines_are_thinned_but_for_the_best(view):
    lines = tables.parallel(view.trials, "psnr", drawn=10)
    assert (~lines["best"]).sum() == 10
    assert lines["best"].sum() == tables.parallel(view.trials, "psnr")["best"].sum()


def test_parallel_lines_of_what_is_best_small(view):
    lines = tables.parallel(view.trials, "seconds")
    assert lines["seconds"].iloc[0] == stable(view)["seconds"].min()


def test_convergence_takes_the_largest_cv_and_the_smallest_stable_one(view):
    curves = tables.convergence(view, view.trials)
    last = view.trials[view.trials["iterations"] == 500].set_index("fit_id")
    fits = list(dict.fromkeys(curves["fit_id"]))
    assert fits[0] == last["cv_percent"].idxmax()
    assert fits[1] == last[last["stable"]]["cv_percent"].idxmin()
    for fit, rows in curves.groupby("fit_id"):
        trial = last.loc[fit]
        ends = rows[rows["iteration"] == 500].set_index("member")["psnr"]
        members = [trial[f"psnr_member_{member}"] for member in range(3)]
        assert ends.tolist() == pytest.approx([score - 9 * math.exp(-500 / 900) for score in members], abs=1e-3)
        assert rows["cv_percent"].unique() == pytest.approx([trial["cv_percent"]])
    assert curves["mse"].to_numpy() == pytest.approx(10 ** (-curves["psnr"].to_numpy() / 10))


def test_members_that_are_all_dead_are_not_those_that_agree_best(view):
    dead = view.trials["fit_id"] == "k8-s4-l4-uniform-1x1"
    trials = view.trials.assign(
        cv_percent=view.trials["cv_percent"].mask(dead, 0.0), stable=view.trials["stable"].mask(dead, False)
    )
    assert "k8-s4-l4-uniform-1x1" not in set(tables.convergence(view, trials)["fit_id"])


def test_of_each_group_the_best_stable_trial_is_shown(view):
    """It was the one setting that most pairs had, whose output may be far from the best."""
    pair = view.trials["noise"].eq("blur3") & view.trials["tiling"].eq("2x2")
    trials = view.trials.assign(stable=view.trials["stable"] & ~pair)
    rows = tables.best_of_groups(trials, "psnr")
    assert list(rows[["noise", "tiling"]].itertuples(index=False, name=None)) == list(
        itertools.product(NOISES, TILINGS)
    )
    for row in rows.itertuples():
        among = trials[trials["noise"].eq(row.noise) & trials["tiling"].eq(row.tiling)]
        unstable = (row.noise, row.tiling) == ("blur3", "2x2")
        assert row.stable != unstable
        assert row.psnr == (among if unstable else among[among["stable"]])["psnr"].max()
    (best,) = tables.best_of_groups(trials, "psnr", ()).itertuples()
    assert best.number == trials[trials["stable"]].set_index("number")["psnr"].idxmax()


# --- the answer


def test_what_cannot_be_told_from_the_best_by_its_members(view):
    (best,) = best_of(view)
    good = stable(view).sort_values("psnr", ascending=False)
    members = good[[f"psnr_member_{member}" for member in range(3)]]
    first = good.iloc[0]
    assert (best.setting["number"], best.settings, best.over, best.at) == (first["number"], len(good), "members", {})
    mine = mean_of(members.iloc[0])
    assert (best.mean.low, best.mean.high) == (mine.low, mine.high)
    reach = members.iloc[0].mean() - mine.low
    as_good = (members.mean(axis=1) >= members.iloc[0].mean() - reach) | (good["psnr"] >= first["psnr"] - reach)
    alike = good[as_good & good["number"].ne(first["number"])].sort_values("seconds")
    assert 0 < len(alike) < len(good) - 1
    assert best.alike["number"].tolist() == alike["number"].tolist()
    cheap, seconds = alike.iloc[-1], view.trials["seconds"]
    quicker = view.trials.assign(seconds=seconds.mask(view.trials["number"].eq(cheap["number"]), 0.25))
    said = answer(dataclasses.replace(view, trials=quicker))
    searched = [axis for axis in AXES if len(SPACE[axis]) > 1]
    assert f"Where time counts: {in_words(cheap, searched)}, ensemble PSNR {cheap['psnr']:.2f} dB." in said.lead
    assert f"the cheapest of them (trial {cheap['number']}) takes 0.2 s instead of" in " ".join(said.sentences)
    rough = dataclasses.replace(view, trials=view.trials.assign(disturbed=True))
    assert best_of(rough)[0].cheaper is None
    assert "their times cannot be compared" in " ".join(answer(rough).sentences)
    none = dataclasses.replace(view, trials=view.trials.assign(stable=False))
    assert (best_of(none), answer(none).number) == ([], None)
    assert answer(none).lead == f"None of {len(view.trials)} measured trials is stable, so none can be recommended."


def test_one_member_alone_gives_no_interval(view):
    columns = [f"psnr_member_{member}" for member in (1, 2)]
    alone = dataclasses.replace(view, trials=view.trials.assign(**dict.fromkeys(columns, math.nan)))
    assert best_of(alone)[0].mean is None
    assert "How sure this is cannot be said: each setting has one number." in answer(alone).sentences


def test_learning_curves_end_with_their_trials(view):
    curves = tables.learning_curves(view, checks=20)
    assert set(curves.of) == set(view.trials["number"])
    for row in view.trials.itertuples():
        iterations, means = curves.curve(row.number)
        mine = view.checks[view.checks["fit_id"].eq(row.fit_id)].groupby("iteration")["psnr"].mean()
        assert 5 <= len(iterations) <= 20
        assert max(iterations) <= row.iterations
        assert means == pytest.approx(mine[iterations].tolist(), abs=0.006)


# --- images


def decoded(uri: str) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(base64.b64decode(uri.partition(",")[2]), np.uint8), cv2.IMREAD_COLOR)


def test_outputs_are_the_images_that_were_kept(view):
    shown, best = panel("outputs").show([view]), stable(view).sort_values("psnr").iloc[-1]
    large = of_best(view, best.to_dict())
    assert large.caption.startswith(f"Trial {best['number']}, ensemble PSNR {best['psnr']:.2f} dB: ")
    assert (large.sides, len(large.faces), shown.large) == ("RL", 3, None)
    for (uri, words), name in zip(large.faces, ("target.png", "output.png", "error.png"), strict=True):
        kept = cv2.imread(str(view.images[best["number"]][name]))
        assert (decoded(uri) == kept).all()
        assert words.endswith("the best setting")
    rows = tables.best_of_groups(view.trials, "psnr")
    assert [len(line) for line in shown.pictures] == [4, 4, 4]
    for picture, row in zip(itertools.chain(*shown.pictures), rows.itertuples(), strict=True):
        unstable = "" if row.stable else ", unstable"
        assert picture.caption.startswith(f"{row.noise}, {row.tiling}: ensemble PSNR {row.psnr:.2f} dB{unstable}: ")
        assert f": k {row.k}, s {row.s}, " in picture.caption
        assert picture.sides == "RL"
        for (uri, words), name in zip(picture.faces, ("output.png", "error.png"), strict=True):
            kept = cv2.imread(str(view.images[row.number][name]))
            assert np.abs(decoded(uri).astype(int) - kept).mean() < 8  # WebP loses a little
            assert row.tiling in words


def test_colour_bars_are_the_colours_of_the_images(view):
    best = stable(view).sort_values("psnr").iloc[-1].to_dict()
    grey, output, error = of_best(view, best).scales
    assert grey == output
    levels = np.linspace(0, 1, 256, dtype=np.float32)[None, None]
    assert (decoded(grey[0])[0, :, 0] == np.arange(256)).all()
    drawn = error_png_bytes(0.2 * levels, 0 * levels)
    assert (decoded(error[0]) == cv2.imdecode(np.frombuffer(drawn, np.uint8), cv2.IMREAD_COLOR)).all()
    assert (grey[1:], error[1:]) == (("0", "1"), ("0", "0.2 and more"))
    colour = dataclasses.replace(view, facts=view.facts | {"target shape": "3x48x60"})
    colour.__dict__["images"] = view.images
    assert [scale is None for scale in of_best(colour, best).scales] == [True, True, False]


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_marks_stand_where_the_patient_is(view, tmp_path, plane):
    """Bright where the mark says it is: right, or anterior; as stored from left to right, and the other way round."""
    volume = np.zeros((12, 14, 16), dtype=np.float32)
    toward = {"R": np.s_[6:], "A": np.s_[:, 7:]}
    for flip in (1, -1):
        left, right = SIDES[plane]
        for letter, bright in ((left, 0), (right, -1)):
            stored = volume.copy()
            opposite = {"L": ("R", -1), "P": ("A", -1)}.get(letter, (letter, 1))
            stored[toward[opposite[0]]] = opposite[1]
            stored += np.linspace(0, 0.1, 16, dtype=np.float32)
            nibabel.save(nibabel.Nifti1Image(stored[::flip], np.diag([flip, 1.0, 1.0, 1.0])), tmp_path / "v.nii")
            target = load_target(TargetSpec(file=str(tmp_path / "v.nii"), plane=plane))
            means = target.image[0].mean(axis=0)
            assert means[bright] > means[-1 - bright] + 0.5
        of_plane = dataclasses.replace(
            view, facts={"target": target.name}, spec=view.spec.model_copy(update={"target": TargetSpec(plane=plane)})
        )
        assert images.sides(of_plane, {}) == SIDES[plane]
        assert images.sides(of_plane, {"target.plane": "sagittal"}) == "AP"


@pytest.mark.parametrize("name", ["photo.png", "an axial 9.png", "slice.npy"])
def test_pictures_have_no_marks(view, name):
    assert images.sides(dataclasses.replace(view, facts={"target": name}), {}) == ""


def test_a_blank_panel_of_images_says_why(view):
    """A filter that nothing passes was said to be images that were not kept."""

    def said(changed: StudyView, **fields: object) -> str:
        shown = panel("outputs", **fields).show([changed])
        assert not shown.pictures
        return ("" if shown.never else "No data yet. ") + shown.missing

    assert said(view, filter={"k": [192]}) == "No trial passes the filter: k is 8, 64 in this study."
    assert said(view, filter={RATE: [0.1]}) == f"The filter names {RATE}, which the study does not search."
    some = dataclasses.replace(view, trials=view.trials[view.trials["k"].eq(8)])
    assert (
        said(some, filter={"k": [64]})
        == f"No data yet. None of the {len(some.trials)} trials so far passes the filter."
    )
    off = dataclasses.replace(view, spec=view.spec.model_copy(update={"images": False}))
    assert said(off) == "The study keeps no images (images = false in the study file)."
    none = dataclasses.replace(view, trials=view.trials.iloc[:0])
    assert said(none) == "No data yet. Filled by measured trials."
    lost = dataclasses.replace(view)
    lost.__dict__["images"] = {number: {"output.png": Path("away/output.png")} for number in view.trials["number"]}
    assert said(lost) == "No data yet. Filled by the images themselves, which are gone from away or damaged."
    never = dataclasses.replace(view)
    never.__dict__["images"] = {}
    assert "were not" in said(never)


def test_a_lost_image_leaves_its_words(view, tmp_path):
    broken = tmp_path / "half.png"
    number = int(tables.best_of_groups(view.trials, "psnr")["number"].iloc[0])
    broken.write_bytes(view.images[number]["output.png"].read_bytes()[:40])
    changed = dataclasses.replace(view)
    changed.__dict__["images"] = {**view.images, number: {**view.images[number], "output.png": broken}}
    shown = panel("outputs").show([changed])
    assert shown.pictures[0][0].faces[0][0] == ""
    assert "no image of output: uniform, 1x1" in render([changed], (panel("outputs"),))


def test_thumbnails_are_where_the_sheet_says(view):
    files = {number: files["output.png"] for number, files in view.images.items()}
    sheet = images.sheet(files)
    picture = decoded(sheet.uri)
    assert set(sheet.numbers) == set(view.trials["number"])
    assert (sheet.height, sheet.width) == SIZE  # smaller than a thumbnail may be
    for place in (0, 17, len(files) - 1):
        row, column = divmod(place, sheet.columns)
        cut = picture[row * sheet.height :, column * sheet.width :][: sheet.height, : sheet.width]
        kept = cv2.imread(str(files[sheet.numbers[place]]))
        errors = [np.abs(cut.astype(int) - kept).mean(), np.abs(cut.astype(int) - cv2.imread(str(files[5]))).mean()]
        assert errors[0] < 12
        assert errors[0] < errors[1]
    assert images.sheet({1: Path("nowhere")}) is None


def test_noise_previews_are_the_inputs_of_the_study(view):
    shown = images.noise_previews(view)
    assert {kind: array.shape for kind, array in shown.items()} == dict.fromkeys(NOISES, (1, 12, 15))  # 48x60, s = 4
    assert shown["blur3"] == pytest.approx(cv2.GaussianBlur(shown["uniform"][0], (3, 3), 0.8)[None], abs=1e-6)
    sizes = images.feature_sizes(view)
    assert list(sizes) == [1, 2, 4, 8]
    options = view.spec.noise.model_dump() | {"feature_size": 4.0}
    assert (sizes[4] == noise_volume("simplex", 1, 12, 15, np.random.default_rng(0), **options)).all()
    rough = [np.abs(np.diff(array[0], axis=1)).mean() for array in sizes.values()]
    assert rough == sorted(rough, reverse=True)  # larger features are smoother


@pytest.mark.parametrize("tiling", TILINGS)
def test_tilings_hold_every_tile(view, tiling):
    target = synthetic.brain(*SIZE)
    shown = images.tilings(view, target)[tiling][0]
    for number, tile in enumerate(split(target, tiling)[:, 0]):
        row, column = divmod(number, int(tiling[-1]))
        top, left = row * (tile.shape[0] + 1), column * (tile.shape[1] + 1)
        assert (shown[top : top + tile.shape[0], left : left + tile.shape[1]] == tile).all()


# --- of several studies


def test_rank_correlations_are_those_of_spearman(views):
    stats = pytest.importorskip("scipy.stats")
    table = comparison.matched(views, lambda trials: trials, "psnr")
    for row in comparison.rank_correlations(table).itertuples():
        one, other = (stable(view).set_index(list(AXES))["psnr"] for view in views if view.name in (row.one, row.other))
        both = pd.concat([one, other], axis=1, join="inner")
        assert row.n == len(both)
        assert row.spearman == pytest.approx(stats.spearmanr(both.iloc[:, 0], both.iloc[:, 1]).statistic)


def test_what_the_best_setting_is_worth_elsewhere(views):
    table = comparison.transfer(comparison.matched(views, lambda trials: trials, "psnr"), "psnr")
    by_name = {view.name: stable(view).set_index(list(AXES))["psnr"] for view in views}
    assert set(zip(table["source"], table["target"], strict=True)) == {
        *itertools.permutations(STUDIES, 2),
        *(("", name) for name in STUDIES),
    }
    for row in table.to_dict("records"):
        setting, there = tuple(row[axis] for axis in AXES), by_name[row["target"]]
        if row["source"]:
            assert setting == by_name[row["source"]].idxmax()
        assert row["own_best"] == there.max()
        if setting in there.index:
            assert row["value"] == there[setting]
            assert row["loss"] == pytest.approx(there.max() - there[setting])
            assert row["rank"] == (there > there[setting]).sum() + 1
        else:
            assert pd.isna(row["value"])
            assert pd.isna(row["rank"])
    common = set.intersection(*(set(scores.index) for scores in by_name.values()))
    worst = {setting: max(scores.max() - scores[setting] for scores in by_name.values()) for setting in common}
    least = min(worst, key=worst.get)
    assert {tuple(row[axis] for axis in AXES) for row in table[table["source"] == ""].to_dict("records")} == {least}


def test_slices_stand_at_their_distance_from_the_middle(views):
    table = comparison.slices(views, lambda trials: trials, "psnr")
    by_name = {view.name: stable(view).set_index(list(AXES))["psnr"] for view in views}
    chosen = by_name["mid"].idxmax()
    assert table[["study", "slice", "distance"]].to_numpy().tolist() == [
        ["down", 64, -30],
        ["mid", 94, 0],
        ["up", 114, 20],
    ]
    for row in table.to_dict("records"):
        there, fits = by_name[row["study"]], {}
        assert row["best"] == pytest.approx(there.get(chosen, math.nan), nan_ok=True)
        assert row["best_change"] == pytest.approx(row["best"] - by_name["mid"][chosen], nan_ok=True)
        for k, s, l, iterations, *pair in set(there.index) & set(by_name["mid"].index):
            setting = (k, s, l, iterations, *pair)
            fits.setdefault((k, s, l, *pair), []).append((there[setting], by_name["mid"][setting]))
        means = np.mean([np.mean(values, axis=0) for values in fits.values()], axis=0)
        assert [row["here"], row["chosen"]] == pytest.approx(means)
        assert row["change"] == pytest.approx(means[0] - means[1])
        assert row["n"] == sum(map(len, fits.values()))
    assert comparison.slices(views[:1], lambda trials: trials, "psnr").empty


def test_each_slice_shows_what_the_chosen_setting_makes_of_it(views):
    chosen = stable(views[0]).sort_values("psnr").iloc[-1]
    shown = panel("slices", y="psnr").show(views)
    [row] = shown.pictures
    for picture, view in zip(row, (views[2], views[0], views[1]), strict=True):  # by slice
        index = STUDIES[view.name][0]
        [trial] = view.trials[(view.trials[list(AXES)] == chosen[list(AXES)]).all(axis=1)].to_dict("records")
        score = f"{trial['psnr']:.2f}" + ("" if trial["stable"] else ", unstable")
        assert picture.caption == f"slice {index} ({view.name}): ensemble PSNR (dB) {score}"
        assert picture.sides == "RL"
        for (uri, words), name in zip(picture.faces, ("target", "output", "error"), strict=True):
            assert uri == images.picture(view.images[trial["number"]][f"{name}.png"])
            assert words.endswith(f": slice {index}")


def test_slices_without_images_are_a_figure_alone(views):
    bare = [dataclasses.replace(view) for view in views]
    for view in bare:
        view.__dict__["images"] = {}
    shown = panel("slices", y="psnr").show(bare)
    assert shown.figure is not None
    assert shown.pictures == []
    assert "Images" not in shown.sentence


def test_a_slice_where_the_chosen_setting_is_missing_says_so(views):
    chosen = stable(views[0]).sort_values("psnr").iloc[-1]
    other = (views[1].trials[list(AXES)] != chosen[list(AXES)]).any(axis=1)
    fewer = dataclasses.replace(views[1], trials=views[1].trials[other])
    captions = [picture.caption for picture in panel("slices", y="psnr").show([views[0], fewer]).pictures[0]]
    assert captions[1] == "slice 114 (up): ensemble PSNR (dB) not measured"


def test_slices_of_another_volume_are_left_out(views):
    other = dataclasses.replace(views[1], facts=views[1].facts | {"target": "other.nii axial 114"})
    assert comparison.slices([views[0], other, views[2]], lambda trials: trials, "psnr")["study"].tolist() == [
        "down",
        "mid",
    ]


def test_fronts_are_the_fronts_of_each_study(views):
    drawn = panel("fronts", x="seconds", y="psnr").figure(views).data
    assert [line.name for line in drawn] == list(STUDIES)
    for line, view in zip(drawn, views, strict=True):
        rows = stable(view)[["seconds", "psnr"]].sort_values("seconds")
        front = rows[rows["psnr"] > rows["psnr"].cummax().shift(fill_value=-np.inf)]
        assert list(zip(line.x, line.y, strict=True)) == list(front.itertuples(index=False, name=None))


def test_a_comparison_is_left_out_of_a_page_about_one_study(views):
    assert 'id="compared' not in render(views[:1], (panel("ranks", y="psnr"), panel("best", y="psnr")))
    lacking = render(views[:2], (panel("ranks", y="psnr", data=["mid", "gone"]),))
    assert "naming the studies on the command line: gone" in lacking


def test_a_panel_is_about_the_studies_it_names(views):
    page = render(
        views, (panel("best", y="psnr", data=["up"]), panel("fronts", x="seconds", y="psnr", data=["mid", "up"]))
    )
    assert re.findall(r'<article class="panel\b[^"]*" id="([^"]+-panel-\d+)"', page) == [
        "compared-panel-1",
        "study-2-panel-1",
    ]
    drawn = json.loads(re.search(r'type="application/json">(.*?)</script>', page)[1])
    assert [line["name"] for line in drawn["data"]] == ["mid", "up"]


# --- the thesis


def test_the_thesis_dashboard_has_its_figures_and_tables(view, views):
    panels = read_panels(THESIS)
    numbers = {found[0] for one in panels if (found := re.match(r"(Figure|Table) \d\.\d", one.title))}
    figures_of = {
        f"Figure {number}" for number in ("3.1", "3.3", "3.4", "4.1", "4.2", "4.3", "4.4", "4.5", "4.6", "5.1")
    }
    assert numbers == figures_of | {f"Table {number}" for number in ("3.1", "4.1", "4.2", "4.3", "4.4", "4.5")}
    page = render([view], panels)
    assert "No data yet" not in page
    assert "Figure 5.1" not in page  # it takes another slice
    both = render(views, panels)
    assert both.index('id="compared"') < both.index('id="study-1"')
    assert "Figure 5.1" in both


# --- in a browser


@pytest.mark.slow
def test_the_page_of_several_studies_in_a_browser(views, tmp_path):
    from browser import chromium, drawn, errors
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    page = tmp_path / "report.html"
    page.write_text(render(views, read_panels(COMPARE) + read_panels()), encoding="utf-8")
    with chromium() as browser:
        browser.get(page.as_uri())
        drawn(browser)
        assert errors(browser) == []
        assert (
            browser.execute_script(
                "return performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:')).length"
            )
            == 0
        )
        assert (
            browser.execute_script("return [...document.images].filter(i => !i.complete || !i.naturalWidth).length")
            == 0
        )
        assert "No data yet" not in browser.find_element(By.TAG_NAME, "main").text

        # what a screen reader is told
        assert browser.execute_script(
            "return [...document.querySelectorAll('.plot')].every(p => p.role === 'img' && p.ariaLabel.length > 20)"
        )
        assert browser.execute_script(
            "return [...document.querySelectorAll('.pictures img')].every(i => i.alt.length > 5)"
        )
        levels = browser.execute_script("return [...document.querySelectorAll('h1, h2, h3')].map(h => h.tagName)")
        assert set(levels) == {"H1", "H2"}
        assert levels[0] == "H1"
        ids = browser.execute_script(
            "return [...document.querySelectorAll('[id]')].map(e => e.id).filter(i => !i.includes('clip'))"
        )
        ids = [one for one in ids if one.startswith(("study", "compared", "main"))]
        assert len(ids) == len(set(ids))

        # the keyboard: the first stop leads to the results
        browser.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
        assert browser.switch_to.active_element.text == "Skip to the results"

        # the best setting's images, each in a figure: they zoom together, follow the window and change places
        viewer = browser.find_element(By.CSS_SELECTOR, "#study-1 .viewer")
        WebDriverWait(browser, 40).until(lambda _: "zooms" in viewer.get_attribute("class"))
        assert viewer.rect["width"] >= browser.execute_script("return document.documentElement.clientWidth") / 2
        names = viewer.find_elements(By.CSS_SELECTOR, ".name")
        assert [name.text for name in names] == ["target", "output", "absolute error"]
        slices = "return [...arguments[0].querySelectorAll('.slice')].map(plot => {}"
        of_all = lambda what: browser.execute_script(slices.format(what), viewer)  # noqa: E731
        target, output, error = (np.array(z) for z in of_all("plot.data[0].z.map(row => [...row]))"))
        kept = {
            name: cv2.imread(str(views[0].images[best_of(views[0])[0].setting["number"]][f"{name}.png"]))[..., 0] / 255
            for name in ("target", "output")
        }
        assert target == pytest.approx(kept["target"], abs=1e-6)
        assert output == pytest.approx(kept["output"], abs=1e-6)
        # of colours, the nearest of 256 levels; what was kept has been rounded, too
        assert error == pytest.approx(np.clip(np.abs(kept["output"] - kept["target"]), 0, 0.2), abs=0.006)
        assert [side.text for side in viewer.find_elements(By.CSS_SELECTOR, ".left, .right")] == ["R", "L"] * 3
        viewer.send_keys("f")
        assert names[1].text == "target, in the output's place"
        assert np.array(of_all("[...plot.data[0].z[9]])"))[1] == pytest.approx(target[9])
        viewer.send_keys("f+")
        assert names[1].text == "output"
        ranges = of_all("plot.layout.xaxis.range)")
        assert [right - left for left, right in ranges] == [SIZE[1] / 2] * 3
        browser.execute_script(
            "const black = arguments[0].querySelector('.black'); black.value = 0.4;"
            " black.dispatchEvent(new Event('input'))",
            viewer,
        )
        assert of_all("plot.data[0].zmin)") == [0.4, 0.4, 0]
        viewer.send_keys("0")
        assert of_all("plot.layout.xaxis.range)") == [[-0.5, SIZE[1] - 0.5]] * 3

        # a key or a click shows an image of the others at full size
        for place, how in enumerate(("key", "click")):
            button = browser.find_elements(By.CSS_SELECTOR, "#study-1 .pictures button.image")[place]
            before = button.rect["width"]
            if how == "key":
                button.send_keys(Keys.ENTER)
            else:
                browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
                button.click()
            full = browser.find_element(By.CSS_SELECTOR, "dialog.full[open]")
            assert full.find_element(By.CSS_SELECTOR, ".image").rect["width"] > before
            assert [full.find_element(By.CSS_SELECTOR, side).text for side in (".left", ".right")] == ["R", "L"]
            assert "ensemble PSNR" in full.text
            assert full.rect["height"] <= browser.execute_script("return innerHeight")
            browser.switch_to.active_element.send_keys(Keys.ESCAPE)
            assert browser.find_elements(By.CSS_SELECTOR, "dialog") == []
            assert browser.switch_to.active_element == button

        # a pointer on a trial brings its thumbnail
        plot = browser.find_element(By.CSS_SELECTOR, "#study-1-panel-1 .plot")
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
        sheet = browser.find_element(By.CSS_SELECTOR, "#study-1 .thumbnail")
        assert not sheet.is_displayed()
        points = plot.find_elements(By.CSS_SELECTOR, ".scatterlayer .trace:last-child .point")
        ActionChains(browser).move_to_element(points[0]).perform()
        WebDriverWait(browser, 20).until(lambda _: sheet.is_displayed())
        front = json.loads(plot.find_element(By.XPATH, "following-sibling::script").get_attribute("textContent"))[
            "data"
        ][-1]
        place = json.loads(sheet.get_attribute("data-numbers")).index(front["customdata"][0])
        row, column = divmod(place, int(sheet.get_attribute("data-columns")))
        assert browser.execute_script("return arguments[0].style.objectPosition", sheet) == (
            f"{-column * SIZE[1]}px {-row * SIZE[0]}px"
        )
        assert browser.execute_script("const s = arguments[0]; return [s.clientWidth, s.clientHeight]", sheet) == [
            SIZE[1],
            SIZE[0],
        ]

        shown = browser.execute_script(
            "return Object.fromEntries([...document.querySelectorAll('#compared .panel')].map(panel =>"
            " [panel.querySelector('h2').textContent, [...panel.querySelectorAll('tbody tr')].map(row =>"
            " [...row.querySelectorAll('td')].map(cell => cell.textContent))]))"
        )
        correlations = comparison.rank_correlations(comparison.matched(views, lambda trials: trials, "psnr"))
        assert shown["Do settings rank alike?"] == [
            [row.one, row.other, str(row.n), f"{row.spearman:.3f}"] for row in correlations.itertuples()
        ]
        for width in (1280, 800, 390):
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            WebDriverWait(browser, 20).until(
                lambda browser, width=width: (
                    browser.execute_script("return document.documentElement.scrollWidth") <= width
                )
            )
        assert len(base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {})["data"])) > 100_000
        assert errors(browser) == []


@pytest.mark.slow
def test_findings_on_a_phone_and_on_paper(views, tmp_path):
    from browser import chromium, errors

    page = tmp_path / "report.html"
    page.write_text(render(views[:2], read_panels(THESIS)))
    opened = "return [...document.querySelectorAll(arguments[0])].map(details => details.open)"
    with chromium() as browser:
        for width, folds in ((390, False), (1280, True)):
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            browser.get(page.as_uri())
            assert set(browser.execute_script(opened, ".fold")) == {folds}
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
            cells = "[...document.querySelector('.blocks tbody tr').cells]"
            tops = browser.execute_script(f"return {cells}.map(cell => cell.getBoundingClientRect().top)")
            assert (len(set(tops)) == 1) == folds  # cells beside or below each other
        browser.execute_script("dispatchEvent(new Event('beforeprint'))")
        differences = browser.execute_script(opened, "#study-1 .differences")
        assert differences == [True] + [False] * (len(differences) - 1)
        assert len(differences) > 1
        assert all(browser.execute_script(opened, "#study-1 details:not(.differences, .numbers)"))
        browser.execute_script("dispatchEvent(new Event('afterprint'))")
        assert not any(browser.execute_script(opened, "#study-1 .differences"))
        assert errors(browser) == []


@pytest.mark.slow
def test_all_trials_stand_in_a_table_that_sorts_filters_and_marks_them_in_figures(view, tmp_path):
    from browser import barriers, chromium, drawn
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    page = tmp_path / "report.html"
    kinds = ("pareto", "outputs", "best")  # a figure, pictures, a table
    page.write_text(render([view], tuple(each for each in read_panels() if each.kind in kinds)), encoding="utf-8")
    rows = "[...document.querySelectorAll('.trials tbody tr')].map(row => Number(row.cells[0].textContent))"
    with chromium() as browser:
        browser.get(page.as_uri())
        drawn(browser)
        browser.execute_script("document.querySelector('.trials').scrollIntoView()")
        WebDriverWait(browser, 40).until(lambda b: len(b.execute_script(f"return {rows}")) == 10)
        best = view.trials.sort_values("psnr", ascending=False, kind="stable")
        shown = browser.execute_script(f"return {rows}")
        assert best.set_index("number")["psnr"][shown].round(2).tolist() == best["psnr"].head(10).round(2).tolist()
        browser.find_element(By.CSS_SELECTOR, ".trials input[type=search]").send_keys("uniform 3x3")
        of_pair = view.trials.loc[view.trials["noise"].eq("uniform") & view.trials["tiling"].eq("3x3"), "number"]
        WebDriverWait(browser, 40).until(lambda b: set(b.execute_script(f"return {rows}")) <= set(of_pair))
        browser.execute_script("document.querySelector('.trials tbody td').click()")
        (chosen, *_) = browser.execute_script(f"return {rows}")
        marked = browser.execute_script(
            "return document.querySelector('#study-1-panel-1 .plot').data.flatMap("
            "({customdata, selectedpoints}) => (selectedpoints ?? []).map(point => customdata[point]))"
        )
        assert set(marked) == {chosen}
        assert browser.execute_script("return document.querySelector('.curves').data.map(line => line.name)") == [
            f"trial {chosen}"
        ]
        # what hinders people, as far as a program can tell, in all that can be opened
        browser.execute_script("document.querySelectorAll('details').forEach(details => { details.open = true; })")
        assert [barriers(browser, scheme) for scheme in ("dark", "light")] == [[], []]
        assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
