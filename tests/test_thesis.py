"""The thesis' tables beside a study's: published numbers as they are, ours recomputed by loops."""

import dataclasses
import io
import itertools
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from test_findings import THESIS_LIKE, study, troubled

import ddstudy.thesis.panels  # noqa: F401 - adds its kinds
from ddstudy.errors import UserError
from ddstudy.report.page import render
from ddstudy.report.panels import parse_panel, read_panels
from ddstudy.spec.files import read_spec
from ddstudy.spec.options import NOISES, TILINGS
from ddstudy.spec.options import THESIS as AXES
from ddstudy.store.study import StudyView, trials_table
from ddstudy.terminal import print_answers
from ddstudy.thesis import findings, published

ROOT = Path(__file__).parents[1]
DASHBOARD = ROOT / "dashboards" / "thesis.toml"
PUBLISHED = published._thesis()
FOUR = ("k", "s", "l", "iterations")


def timed(view):
    rows = view.trials[~view.trials["shared"] & (view.trials["iterations_done"] == view.trials["iterations"])]
    return rows.dropna(subset=["seconds"]).to_dict("records")


# --- what was published


def test_the_published_settings_are_of_the_published_grid():
    space = PUBLISHED["study"]
    assert np.prod([len(space[axis]) for axis in FOUR]) == int(PUBLISHED["tables"]["text"]["published"]["settings"])
    for number in ("4.3", "4.4", "4.5"):
        rows = PUBLISHED["tables"][number]["rows"]
        assert [tuple(row[:2]) for row in rows] == list(itertools.product(TILINGS, NOISES))
        for row in rows:
            assert all(value in space[axis] for axis, value in zip(FOUR, row[2:6], strict=True))
    assert {tuple(row[:2]) for row in PUBLISHED["tables"]["4.2"]["rows"]} == set(
        itertools.product((4, 5, 6), (8, 16, 32))
    )


def test_sums_of_the_published_numbers_are_the_thesis():
    """Guards against a slip in copying: sums were taken from the thesis' own tables."""
    tables = PUBLISHED["tables"]
    assert sum(row[2] for row in tables["4.2"]["rows"]) == pytest.approx(319.317009)
    sums = {number: sum(row[6] for row in tables[number]["rows"]) for number in ("4.3", "4.4", "4.5")}
    assert sums == {"4.3": pytest.approx(391.48), "4.4": pytest.approx(10.50), "4.5": pytest.approx(4.60)}


def test_a_study_with_the_thesis_numbers_supports_what_it_says():
    """The rules pass on what the thesis publishes; beside it the study has what its text says, with some noise."""
    space = {axis: PUBLISHED["study"][axis] for axis in AXES}
    rows = {number: PUBLISHED["tables"][number]["rows"] for number in ("4.3", "4.4", "4.5")}
    at = {number: {(*row[2:6], row[1], row[0]): row[6] for row in table} for number, table in rows.items()}
    levels = {(row[0], row[1]): row[6] for row in rows["4.3"]}

    def psnr(x, r):
        best = levels[x.tiling, x.noise]
        return at["4.3"].get(tuple(getattr(x, axis) for axis in AXES), best - r.uniform(0.5, 4))

    def below(number):
        return lambda x, r: at[number].get(tuple(getattr(x, axis) for axis in AXES), r.uniform(0, 0.2))

    def seconds(x, r):
        time = (1.4 ** (x.l / 2) / 1.1 ** (math.log2(x.s) / 2)) * (2 if x.k > 64 else 1) * 1.3 ** (x.tiling == "4x5")
        return time * x.iterations * (1.1 if x.k > 64 and x.noise != "blur3" else 1) * math.exp(r.normal(0, 0.05))

    view = study(
        space=space,
        psnr=psnr,
        ssim=below("4.4"),
        vif=below("4.5"),
        psnr_foreground=20.0,
        cv_percent=lambda x, r: 9.0 if x.k > 64 and (x.noise != "blur3" or x.k > 96) and x.tiling[0] > "2" else 1.0,
        stable=lambda x, r: x.k < 128,
        seconds=seconds,
    )
    answers = {found.finding.name: found for found in findings.retest(view)}
    supported = {name for name, found in answers.items() if found.verdict == "supported"}
    assert not [name for name, found in answers.items() if found.verdict == "contradicted"]
    assert {"cv-64", "k-128", "best-iterations", "best-s", "best-k", "psnr-ssim", "tiles-psnr", "blur"} <= supported
    assert {name for name in answers if name.startswith("time")} <= supported
    # one of twelve best settings has 4 blocks, of which three of a third of all would have one or none in 5 %
    assert (answers["best-l"].effect, answers["best-l"].p) == pytest.approx((1 / 12, (2 / 3) ** 12 * 7))


def test_the_readme_says_what_the_recorded_grid_says():
    def recorded(name, target):
        trials = pd.read_csv(ROOT / f"benchmarks/results/{name}.csv").assign(disturbed=False)
        facts = {"target": target, "target shape": "1x64x80"}
        return StudyView(name, read_spec(ROOT / f"studies/{name}.toml"), facts, trials)

    views = recorded("reduced", "MNI152 T1 axial 94"), recorded("reduced_upper", "MNI152 T1 axial 130")
    answers = {found.finding.name: found for found in findings.retest(views[0], views[1:])}
    by_verdict = {verdict: {n for n, found in answers.items() if found.verdict == verdict} for verdict in
                  ("supported", "contradicted", "not enough data")}  # fmt: skip
    assert by_verdict == {
        "supported": {"time-l", "time-s", "time-k-rise", "time-4x5", "tiles-psnr", "ensemble", "best-iterations",
                      "best-s", "slices"},
        "contradicted": {"tiles", "cv-64", "k-128", "time-k-flat"},
        "not enough data": {"blur", "best-k", "best-l", "time-l-s", "time-unstable", "psnr-ssim", "vif"},
    }  # fmt: skip
    text = " ".join((ROOT / "docs/thesis.md").read_text().split())
    for name, words, digits in (
        ("time-l", "(1.47 times from 4 to 6, 95 % interval 1.38 to 1.58)", 2),
        ("time-4x5", "(1.21 times, 1.13 to 1.28)", 2),
        ("tiles-psnr", "(3.5 dB, 2.1 to 5.0)", 1),
        ("ensemble", "(1.9 dB, 1.7 to 2.1)", 1),
        ("blur", "(-0.6 dB, -1.1 to -0.1", 1),
        ("slices", "2.3 dB worse", 1),
    ):
        found, said = answers[name], re.findall(r"-?\d+\.\d+", words)
        assert words in text
        assert said == [f"{value:.{digits}f}" for value in (found.effect, found.low, found.high)[: len(said)]]
    assert "21 points fewer settings have a CV above 5 %, 7 to 35" in text
    assert answers["tiles"].effect_text == "-21 points [-35, -7]"
    assert [f"{answers[name].effect:.0%}" for name in ("cv-64", "k-128", "best-k", "best-l")] == [
        "67%", "83%", "33%", "33%",
    ]  # fmt: skip
    assert f"p = {answers['blur'].p_corrected:.2f} among all" in text
    assert "whole slice +0.65 dB" in answers["slices"].tested
    assert "9.8 dB higher with 3x3 and 13.5 dB with 4x5" in text
    assert "another best setting in 5 of 9 pairs" in text
    assert "rises by 1.1 dB" in text
    assert "read as means over tiles -1.08 dB" in answers["tiles-psnr"].tested
    told = published.readings(views[0], "psnr")
    assert all(part in told for part in ("+9.76 with 3x3", "+13.54 with 4x5", "the best in 5 of 9 pairs"))


def test_what_the_findings_say_of_the_thesis_own_tables():
    best = {
        number: [tuple(row[2:6]) for row in PUBLISHED["tables"][number]["rows"]] for number in ("4.3", "4.4", "4.5")
    }
    same = [
        sum(one == other for one, other in zip(best["4.3"], best[number], strict=True)) for number in ("4.4", "4.5")
    ]
    assert same == [9, 8]
    assert [sum(setting[2] == 4 for setting in settings) for settings in best.values()] == [1, 1, 1]
    means = {
        tiling: np.mean([row[6] for row in PUBLISHED["tables"]["4.3"]["rows"] if row[0] == tiling])
        for tiling in TILINGS
    }
    view = study(space=THESIS_LIKE | {"k": [8, 64]})
    said = {found.finding.name: found.tested for found in findings.retest(view)}
    assert f"(thesis: {', '.join(f'{tiling} {mean:.2f}' for tiling, mean in means.items())})" in said["tiles-psnr"]
    *others, most = PUBLISHED["tables"]["4.1"]["seconds"]["tiling"].values()
    assert f"(thesis: {most / np.prod(others) ** (1 / 3):.2f}, of the means" in said["time-4x5"]
    at = {tuple(row[:2]): math.log(row[2]) for row in PUBLISHED["tables"]["4.2"]["rows"]}
    of_l = np.mean([at[6, s] - at[4, s] for s in (8, 32)])
    of_s = np.mean([at[l, 8] - at[l, 32] for l in (4, 6)])
    assert f"{math.exp(of_l):.2f} for l 4 to 6, {math.exp(of_s):.2f} for s 32 to 8" in said["time-l-s"]


# --- ours


@pytest.mark.parametrize("axis", ["noise", "tiling"])
def test_times_of_pairs_are_means_over_matched_settings(axis):
    view = troubled()
    values = {"noise": NOISES, "tiling": TILINGS}[axis]
    at = {tuple(row[name] for name in AXES if name != axis): {} for row in timed(view)}
    for row in timed(view):
        at[tuple(row[name] for name in AXES if name != axis)][row[axis]] = row["seconds"]
    sets = [found for found in at.values() if len(found) == len(values)]
    means = {value: np.mean([one[value] for one in sets]) for value in values}
    table = published.beside(view, "4.1").table.set_index("mean over").loc[list(values)]
    assert table["ours (s)"].to_dict() == pytest.approx(means)
    assert set(table["settings"]) == {len(sets)}
    assert table["ours / first"].to_dict() == pytest.approx({v: m / means[values[0]] for v, m in means.items()})
    known = PUBLISHED["tables"]["4.1"]["seconds"][axis]
    assert table["thesis (s)"].to_dict() == known
    assert table["thesis / first"].iloc[-1] == pytest.approx(known[values[-1]] / known[values[0]])


def test_times_of_blocks_are_those_of_the_thesis_setting_where_it_was_measured():
    view = study(seconds=lambda x, r: r.uniform(1, 9))
    ours = published.beside(view, "4.2")
    rows = view.trials.query("k == 8 and iterations == 2000 and noise == 'uniform' and tiling == '4x5'")
    measured = ours.table.dropna(subset=["ours (s)"]).set_index(["l", "s"])["ours (s)"]
    assert measured.to_dict() == rows.set_index(["l", "s"])["seconds"].to_dict()
    assert len(ours.table) == 9
    assert ours.table["thesis / first"].iloc[-1] == pytest.approx(43.957175 / 28.645849)
    assert ours.table["ours / first"].dropna().iloc[0] == 1
    assert "as the thesis" in ours.ours


def test_times_of_blocks_elsewhere_are_the_nearest_and_say_so():
    space = THESIS_LIKE | {"k": [32, 64], "iterations": [250, 500], "tiling": ["1x1", "3x3"], "s": [4]}
    view = study(space=space, seconds=lambda x, r: float(x.l * 10 + x.k))
    ours = published.beside(view, "4.2")
    assert ours.ours.startswith("Ours at k 32, iterations 250, noise uniform, tiling 3x3; the thesis has k 8, iter")
    assert ours.table.dropna(subset=["ours (s)"])["ours (s)"].tolist() == [72, 92]
    assert ours.table[ours.table["s"] == 4]["thesis (s)"].isna().all()


@pytest.mark.parametrize(("number", "metric"), [("4.3", "psnr"), ("4.4", "ssim"), ("4.5", "vif")])
def test_best_settings_stand_beside_the_published_ones(number, metric):
    view, random = troubled(), np.random.default_rng(2)
    is_whole = view.trials["tiling"] == "1x1"
    tiles = view.trials[metric].where(is_whole, random.uniform(0, 1, len(view.trials)))
    view = dataclasses.replace(view, trials=view.trials.assign(**{f"{metric}_tiles": tiles}))
    stable = view.trials[view.trials["stable"].eq(True)]
    table = published.beside(view, number).table
    assert len(table) == 12
    unit, others = " (dB)" if metric == "psnr" else "", 0
    for row, known in zip(table.to_dict("records"), PUBLISHED["tables"][number]["rows"], strict=True):
        pair = stable[(stable["tiling"] == row["tiling"]) & (stable["noise"] == row["noise"])]
        assert row[f"thesis{unit}"] == known[6]
        assert row["thesis at"] == "{" + ", ".join(map(str, known[2:6])) + "}"
        for reading, column in (("joined", metric), ("tiles", f"{metric}_tiles")):
            if (row["tiling"], reading) == ("1x1", "tiles"):  # of one tile there is one reading
                assert np.isnan(row[f"tiles{unit}"])
                assert row["tiles at"] == row["tiles trial"] == ""
                continue
            best = pair.loc[pair[column].idxmax()]
            assert row[f"{reading}{unit}"] == best[column]
            assert row[f"{reading} trial"] == str(best["number"])
            assert row[f"{reading} at"] == "{" + ", ".join(str(best[axis]) for axis in FOUR) + "}"
        others += row["tiling"] != "1x1" and row["joined trial"] != row["tiles trial"]
    assert others > 0
    assert f"another setting is the best in {others} of 9 pairs" in published.beside(view, number).ours


def test_our_result_at_the_published_setting_is_shown_where_there_is_one():
    view = study(space=THESIS_LIKE | {"k": [64, 96], "s": [8, 16], "iterations": [5000, 7000]})
    table = published.beside(view, "4.3").table
    there = view.trials.set_index(list(AXES))
    for row, known in zip(table.to_dict("records"), PUBLISHED["tables"]["4.3"]["rows"], strict=True):
        key = (*known[2:6], known[1], known[0])
        assert row["joined at theirs"] == pytest.approx(there["psnr"].get(key, np.nan), nan_ok=True)
        tiles = there["psnr_tiles"].get(key, np.nan) if known[0] != "1x1" else np.nan
        assert row["tiles at theirs"] == pytest.approx(tiles, nan_ok=True)
    assert table["joined at theirs"].notna().sum() == 8  # the others have l = 5
    assert table["tiles at theirs"].notna().sum() == 5


# of each tiling, by how much the mean over tiles is higher: two values, of 4 and of 6 blocks
ABOVE = {"1x1": (0, 0), "2x2": (0.25, -0.25), "3x3": (12.0, 8.0), "4x5": (14.0, 13.5)}


def two_readings(**tables):
    """Of the joined slice 6 blocks are better by 1 dB; of means over tiles 4 blocks are where they gain more by it."""
    view = study(
        space=THESIS_LIKE | {"k": [8, 64]},
        psnr=lambda x, r: 20 + x.k / 100 + (x.l == 6),
        psnr_tiles=lambda x, r: 20 + x.k / 100 + (x.l == 6) + ABOVE[x.tiling][x.l == 6],
        tree=tables,
    )
    broken = view.trials.iloc[[0]].assign(number=10**6, stable=False, tiling="3x3", psnr_tiles=99.0)
    return dataclasses.replace(view, trials=pd.concat([view.trials, broken], ignore_index=True))


def test_both_readings_of_metrics_are_told():
    view = two_readings()
    sentence = (
        "Over the stable trials PSNR (dB) as the mean over tiles, less that of the joined slice, is +0.00 with 2x2, "
        "+10.00 with 3x3, +13.75 with 4x5; by the former another setting is the best in 3 of 9 pairs with several "
        "tiles."
    )
    assert published.readings(view, "psnr") == sentence
    told = published.differences(view)["metrics"]
    assert told == f"Metrics are of the joined slice; the thesis' may be means over tiles. {sentence}"
    assert published.beside(view, "4.3").ours.endswith(sentence)
    text = published.beside(view, "text").table.set_index("number").loc["l of the settings with the best PSNR"]
    assert text[["ours", "by tiles"]].tolist() == ["6", "4, 6"]
    (found,) = [one for one in findings.retest(view) if one.finding.name == "tiles-psnr"]
    assert (found.effect, "read as means over tiles -13.75 dB" in found.tested) == (0, True)


def test_of_one_tile_there_is_one_reading():
    view = study(space=THESIS_LIKE | {"tiling": ["1x1"]})
    assert published.readings(view, "psnr") == ""
    assert "metrics" not in published.differences(view)
    assert set(published.beside(view, "text").table["by tiles"]) == {""}
    assert published.beside(view, "4.3").ours.endswith("{k, s, l, iterations}.")


def test_where_tiles_have_no_metric_their_columns_are_empty():
    """VIF of tiles that are too small for it; of a store that is older than the reading."""
    view = study(vif_tiles=math.nan)
    table = published.beside(view, "4.5").table
    assert table["joined"].notna().all()
    assert table["tiles"].isna().all()
    assert published.readings(view, "vif") == ""


def test_options_are_those_that_were_measured():
    view = study()
    some = dataclasses.replace(view, trials=view.trials.query("k < 100"))
    table = published.beside(some, "3.1").table.set_index("axis")
    assert table.loc["k"].tolist() == ["8, 16, 32, 64, 96, 128, 192", "8, 64, 96"]
    assert table.loc["noise", "ours"] == "uniform, blur3, simplex"


def test_numbers_of_the_text():
    view = study(
        space=THESIS_LIKE | {"l": [4, 5]},
        parameters=lambda x, r: float(x.l * (x.k**2 + 2 * x.k) + x.k),
        cv_percent=lambda x, r: 9.0 if x.k == 96 else 1.0,
        stable=lambda x, r: x.k < 96,
        psnr=lambda x, r: 30 + x.k + x.l,
    )
    table = published.beside(view, "text").table
    ours = dict(zip(table["number"], table["ours"], strict=True))
    assert table["by tiles"].tolist() == [""] * 7 + table["ours"].tolist()[7:]
    assert ours["settings per pair"] == "32"
    assert ours["pairs of noise and tiling"] == "12"
    assert ours["parameters with k = 64, l = 5"] == "21,184"
    assert ours["k of settings with CV > 5 %"] == "96"
    assert ours["k discarded whole by the filter"] == "96, 128"
    assert ours["gain of the ensemble, dB, lowest and highest mean of a pair"] == "2.5 to 2.5"
    assert ours["k of the settings with the best PSNR"] == "64"
    assert ours["l of the settings with the best PSNR"] == "5"


# --- in words


def test_a_study_like_the_thesis_differs_in_image_device_and_what_is_open():
    space = {axis: PUBLISHED["study"][axis] for axis in AXES}
    view = study(space=space, tree={"fit": {"keep": "last"}}, facts={"target shape": "1x256x320"})
    found = published.differences(view)
    assert list(found) == ["image", "metrics", "device", "channels"]
    assert found["image"] == "The image is MNI152 T1 axial 94, 256x320; the thesis has a T1 brain mid slice, 256x320."
    assert found["device"] == "Times are of a processor; the thesis names no device."
    assert "all lie between two images (sec. 3.2), which is noise.channels = 'interpolated'" in found["channels"]


def test_channels_differ_where_they_are_drawn_each_by_itself():
    literal = study(tree={"noise": {"channels": "interpolated"}})
    simplex = study(space=THESIS_LIKE | {"noise": ["simplex"]})  # one volume, whatever the option
    assert "channels" in published.differences(study())
    assert "channels" not in published.differences(literal) | published.differences(simplex)


def test_beside_the_thesis_stand_its_own_iterate_and_defaults():
    space = THESIS_LIKE | {"k": [8, 64], "fit.keep": ["best", "last"], "fit.learning_rate": [0.01, 0.02]}
    view = study(space=space, psnr=lambda x, r: 30 + r.uniform())
    rows = view.trials[view.trials["fit.keep"].eq("last") & view.trials["fit.learning_rate"].eq(0.01)]
    best = rows.groupby(["tiling", "noise"])["psnr"].max()
    table = published.beside(view, "4.3").table.set_index(["tiling", "noise"])
    assert table["joined (dB)"].to_dict() == best.to_dict()
    found = published.differences(view)
    assert "iterate" not in found
    assert found["fit.keep"] == "fit.keep is searched, too: best, last; beside the thesis stand the trials with last."
    assert found["fit.learning_rate"].endswith("0.01, 0.02; beside the thesis stand the trials with 0.01.")
    without = study(space=space | {"fit.keep": ["best", "average"]})
    assert published.differences(without)["iterate"].startswith("The iterate that counts is the best; in the thesis")


def test_every_difference_is_named():
    view = study(
        space=THESIS_LIKE | {"s": [4, 16], "iterations": [250, 500]},
        tree={"fit": {"members": 3, "keep": "best"}, "stability": {"cv_percent": 2.0}},
        facts={"target shape": "1x64x80"},
        iterations_done=250.0,
    )
    words = " ".join(published.differences(dataclasses.replace(view, trials=view.trials.iloc[1:])).values())
    for part in (
        "64x80; the thesis has a T1 brain mid slice, 256x320",
        "same s makes an input tensor of another size",
        "With 3x3 and s = 16 or 4x5 and s = 16 a tile's input has one row or column",
        "iterations is 250, 500; in the thesis 2000, 5000, 7000.",
        "Ensembles have 3 members; in the thesis 5.",
        "The iterate that counts is the best; in the thesis the last.",
        "Stable means CV <= 2 %",
        "192 trials were stopped early",
        f"{len(view.trials) - 1:,} of {len(view.trials):,} settings are measured.",
    ):
        assert part in words


def test_thin_inputs_are_those_that_the_decoder_would_get():
    from ddstudy.images.tiling import tile_shape
    from ddstudy.priors.deep_decoder import deep_decoder
    from ddstudy.report.tables import thin_inputs

    for shape in ((64, 80), (27, 22), (256, 320), (41, 40)):
        view = study(space=THESIS_LIKE | {"s": [4, 7, 16, 32, 300]}, facts={"target shape": f"1x{shape[0]}x{shape[1]}"})
        expected = [
            (tiling, s)
            for tiling, s in itertools.product(TILINGS, (4, 7, 16, 32, 300))
            if deep_decoder(8, s, 4, *tile_shape(*shape, tiling)).sizes[0].count(1)
        ]
        assert thin_inputs(view) == expected


# --- in the report


def test_the_thesis_dashboard_has_every_table_and_the_findings():
    panels = read_panels(DASHBOARD)
    assert {panel.table for panel in panels if panel.kind == "published"} == set(published.NUMBERS)
    assert "findings" in [panel.kind for panel in panels]


@pytest.mark.parametrize("number", published.NUMBERS)
def test_a_published_table_is_shown_with_its_words(number):
    view = troubled()
    ours = published.beside(view, number)
    page = render([view], (parse_panel({"kind": "published", "title": "T", "table": number}, "test"),))
    panel = re.search(r"<h2>T</h2>(.*?)</article>", page, flags=re.DOTALL)[1]
    assert ours.source in panel
    assert panel.count("<tr>") == len(ours.table) + 1
    assert "Not as in the thesis: image, metrics, device, size of the input, k, s" in panel
    for name, kind in ours.table.dtypes.items():
        if pd.api.types.is_float_dtype(kind):
            value = ours.table[name].dropna().iloc[-1]
            assert f'<td class="number">{value:,.2f}</td>' in panel


def test_an_empty_study_says_what_is_missing():
    ours = tuple(panel for panel in read_panels(DASHBOARD) if panel.kind in ("published", "findings"))
    page = render([dataclasses.replace(study(), trials=trials_table([], AXES))], ours)
    assert page.count("No data yet. Filled by measured trials.") == len(published.NUMBERS)
    assert page.count("not enough data") == 20


def test_a_table_that_is_not_there_is_refused():
    with pytest.raises(UserError, match=r'panel 1: table: .*\n.*"3.1", "4.1"'):
        parse_panel({"kind": "published", "title": "T", "table": "5.1"}, "panel 1")
    with pytest.raises(UserError, match=r"no table '5.1' of the thesis\nValid: 3.1, 4.1"):
        published.beside(study(), "5.1")


@pytest.mark.parametrize("width", [80, 120])
def test_the_differences_break_between_words_on_a_terminal(width):
    """They were left to the terminal, which breaks a line wherever it ends."""
    view = study()
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    answers = findings.retest(view)[:1]
    print_answers(console, view, answers)
    *_, footer = re.split("\n\n|\u2518\n", console.file.getvalue())
    assert max(map(len, footer.splitlines())) <= width
    assert len(footer.splitlines()) > 1
    ends = [findings.in_short(answers), findings.TOGETHER, *published.differences(view).values()]
    assert footer.split() == " ".join(ends).split()
