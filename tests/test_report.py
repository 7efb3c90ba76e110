"""The report: its numbers recomputed by other means, and its page as a browser sees it."""

import dataclasses
import itertools
import json
import re
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic import THESIS

from ddstudy.errors import UserError
from ddstudy.images.metrics import METRICS
from ddstudy.report import anova, figures, tables
from ddstudy.report.facts import facts
from ddstudy.report.page import render
from ddstudy.report.panels import COMPARE, read_panels
from ddstudy.spec.files import parse_spec
from ddstudy.spec.options import NOISES, TILINGS
from ddstudy.spec.options import THESIS as AXES
from ddstudy.store.study import StudyView, trials_table

SPACE = {
    "k": [8, 64, 128],
    "s": [8, 16],
    "l": [4, 6],
    "iterations": [2000, 5000],
    "noise": ["uniform", "blur3", "simplex"],
    "tiling": ["1x1", "4x5"],
}


def view_of(psnr=None, space=SPACE, **changes):
    """A study with one COMPLETE, stable trial per setting; `psnr` maps a setting to dB."""
    random = np.random.default_rng(0)
    spec = parse_spec({"name": "study", "space": space} | changes, "test")
    rows = [
        dict(setting)
        | {
            "number": number,
            "state": "COMPLETE",
            "fit_id": setting.fit.id,
            "psnr": random.uniform(20, 40) if psnr is None else psnr(setting),
            "ssim": random.uniform(),
            "ms_ssim": np.nan,
            "vif": random.uniform(),
            "psnr_foreground": random.uniform(15, 35),
            "cv_percent": random.uniform(0, 4),
            "seconds": random.uniform(0.5, 500),
            "parameters": float(setting["l"] * (setting["k"] ** 2 + 2 * setting["k"]) + setting["k"]),
            "stable": True,
            "reason": "",
            "shared": False,
            "disturbed": False,
            "device": "a processor",
            "engine": "fused float32",
            "started": datetime(2026, 1, 1, 12, 0),
            "finished": datetime(2026, 1, 1, 12, number % 60),
            "iterations_done": float(setting["iterations"]),
            "nmse": random.uniform(0.001, 0.1),
        }
        for number, setting in enumerate(spec.search_space)
    ]
    trials = pd.DataFrame(rows)
    trials["psnr_1dd"] = trials["psnr"] - random.uniform(0.5, 2, len(trials))
    return StudyView(spec.name, spec, {"target": "MNI152", "commit": "abc1234"}, trials)


def with_trouble(view):
    """Every 5th trial unstable and stopped half-way, every 7th unstable at the end, every 11th failed: no numbers."""
    trials = view.trials.astype({"stable": object, "shared": object})
    stopped, ended, failed = (trials["number"] % step == 0 for step in (5, 7, 11))
    trials.loc[stopped | ended, ["state", "stable", "reason"]] = ["PRUNED", False, "CV above 5 %"]
    trials.loc[stopped | ended, "cv_percent"] = 9.0
    trials.loc[stopped, "iterations_done"] /= 2
    numbers = [*METRICS, "psnr_1dd", "iterations_done"]
    trials.loc[failed, ["state", "reason"]] = ["FAIL", "worker lost"]
    trials.loc[failed, [*numbers, "stable", "shared"]] = np.nan
    return dataclasses.replace(view, trials=trials)


@pytest.fixture
def view():
    return with_trouble(view_of())


def test_the_store_provides_every_column_that_is_used(view):
    assert set(view.trials.columns) <= set(trials_table([], THESIS).columns)


# --- tables


def test_finished_trials_are_those_that_were_measured(view):
    measured = tables.finished(view.trials)
    assert set(measured["number"]) == {n for n in view.trials["number"] if n % 11}
    assert measured["stable"].dtype == bool


@pytest.mark.parametrize("objectives", [("psnr", "seconds"), ("psnr", "ssim", "parameters"), ("vif",)])
def test_pareto_front_is_what_comparing_all_with_all_finds(view, objectives):
    trials = view.trials.round({"psnr": 0, "seconds": -1, "ssim": 1})  # with ties
    trials.loc[3, objectives[0]] = np.nan
    signs = np.array([1 if METRICS[metric].minimized else -1 for metric in objectives])
    stable = trials[trials["stable"].eq(True)].dropna(subset=list(objectives))
    costs = {
        row.number: np.array([getattr(row, metric) for metric in objectives]) * signs for row in stable.itertuples()
    }
    expected = {
        one
        for one, cost in costs.items()
        if not any((other <= cost).all() and (other < cost).any() for other in costs.values())
    }
    mask = tables.pareto_front(trials, {metric: METRICS[metric].better for metric in objectives})
    assert mask.index.equals(trials.index)
    assert set(trials["number"][mask]) == expected


def test_equal_trials_share_the_front():
    trials = view_of(lambda setting: 30.0).trials.assign(seconds=1.0)
    assert tables.pareto_front(trials, {"psnr": "maximize", "seconds": "minimize"}).all()


@pytest.mark.parametrize("axis", AXES)
def test_by_axis_describes_each_value_as_by_hand(view, axis):
    table = tables.by_axis(view.trials, axis).set_index(axis)
    order = {"noise": NOISES, "tiling": TILINGS}.get(axis, sorted(SPACE[axis]))
    assert list(table.index) == [value for value in order if value in SPACE[axis]]
    for value, row in table.iterrows():
        rows = [r for r in view.trials.to_dict("records") if r[axis] == value and r["number"] % 11]
        stable = [r["psnr"] for r in rows if r["stable"]]
        seconds = [r["seconds"] for r in rows if r["iterations_done"] == r["iterations"]]
        assert row["n"] == len(rows)
        assert row["unstable_share"] == pytest.approx(1 - len(stable) / len(rows))
        for metric, values in (("psnr", stable), ("seconds", seconds)):
            assert row[f"{metric}_n"] == len(values)
            assert row[f"{metric}_mean"] == pytest.approx(np.mean(values))
            quartiles = [row[f"{metric}_{part}"] for part in ("min", "q25", "median", "q75", "max")]
            assert quartiles == pytest.approx(np.quantile(values, [0, 0.25, 0.5, 0.75, 1]))


def test_by_axis_of_several_axes_has_a_row_per_combination(view):
    table = tables.by_axis(view.trials, *tables.PAIR, metrics=("vif",))
    assert list(table[["tiling", "noise"]].itertuples(index=False, name=None)) == list(
        itertools.product(SPACE["tiling"], NOISES)
    )
    assert "psnr_median" not in table


PARETO = {"seconds": "minimize", "psnr": "maximize"}


def test_figures_say_which_seconds_other_programs_disturbed(view, tmp_path):
    view = dataclasses.replace(view, trials=view.trials.assign(device="a processor"))
    three = tables.comparable(view.trials, "seconds")["number"][:3]
    rough = dataclasses.replace(view, trials=view.trials.assign(disturbed=view.trials["number"].isin(three)))
    said = " The seconds of 3{} were disturbed by other programs on their machine."
    for kind, places in {
        "pareto": {"x": "seconds", "y": "psnr"},
        "fronts": {"x": "seconds", "y": "psnr"},
        "quartiles": {"x": "k", "y": "seconds"},
        "means": {"x": "k", "y": "seconds"},
        "heatmap": {"x": "k", "y": "seconds", "group": "l"},
    }.items():
        untimed = {**places, "y": "psnr"} | ({"x": "ssim"} if places["x"] == "seconds" else {})
        for fields, seen, words in ((places, rough, said), (places, view, ""), (untimed, rough, "")):
            text = "\n".join(f'{name} = "{value}"' for name, value in fields.items())
            (panel,) = panels_of(tmp_path, f'[[panel]]\nkind = "{kind}"\ntitle = "t"\n{text}')
            sentence = panel.show([seen]).sentence
            on_front = kind == "pareto" and rough.trials["disturbed"][tables.pareto_front(rough.trials, PARETO)].sum()
            assert ("disturbed" in sentence) == bool(words)
            assert words.format(f", {on_front} of them on the front," * (kind == "pareto")) in sentence


def test_time_on_a_shared_device_is_not_compared(view):
    shared = view.trials.assign(shared=True)
    table = tables.by_axis(shared, "k")
    assert (table["seconds_n"] == 0).all()
    assert table["seconds_median"].isna().all()
    assert (table["psnr_n"] > 0).all()


def test_unstable_share_counts_a_cv_above_the_threshold(view):
    table = tables.unstable_share(view.trials, 5.0)
    assert len(table) == 6
    for row in table.itertuples():
        cvs = [
            r["cv_percent"]
            for r in view.trials.to_dict("records")
            if (r["noise"], r["tiling"]) == (row.noise, row.tiling) and not np.isnan(r["cv_percent"])
        ]
        assert (row.n, row.above) == (len(cvs), sum(cv > 5 for cv in cvs))
        assert row.share == pytest.approx(row.above / row.n)


@pytest.mark.parametrize(("metric", "best"), [("psnr", max), ("seconds", min)])
def test_best_settings_are_the_extremes_of_stable_trials(view, metric, best):
    table = tables.best_settings(view.trials, metric)
    assert len(table) == 6
    for row in table.to_dict("records"):
        pair = view.trials.query("noise == @row['noise'] and tiling == @row['tiling'] and stable == True")
        assert row[metric] == best(pair[metric])
        trial = view.trials.set_index("number").loc[row["number"]]
        assert all(trial[name] == row[name] for name in (*AXES, metric))


def test_of_equal_trials_the_first_is_best():
    trials = view_of(lambda setting: 30.0).trials.iloc[::-1]
    firsts = trials.groupby(["tiling", "noise"])["number"].min()
    table = tables.best_settings(trials, "psnr").set_index(["tiling", "noise"])
    assert table["number"].to_dict() == firsts.to_dict()


def test_best_by_metric_leaves_out_what_nobody_has(view):
    table = tables.best_by_metric(view.trials).set_index("metric")
    assert set(table.index) == set(METRICS) - {"ms_ssim", "judge", "spread_percent"}
    stable = view.trials[view.trials["stable"].eq(True)]
    assert table.loc["psnr", "value"] == stable["psnr"].max()
    assert table.loc["parameters", "value"] == stable["parameters"].min()


def test_gain_of_ensemble_is_the_mean_over_stable_trials(view):
    for row in tables.gain_of_ensemble(view.trials).itertuples():
        pair = view.trials.query("noise == @row.noise and tiling == @row.tiling and stable == True")
        assert (row.n, row.psnr, row.psnr_1dd) == pytest.approx(
            (len(pair), pair["psnr"].mean(), pair["psnr_1dd"].mean())
        )
        assert row.gain == pytest.approx((pair["psnr"] - pair["psnr_1dd"]).mean())


def test_reasons_are_grouped_without_their_numbers(view):
    """There was a line for every CV."""
    told = {
        "CV 5.2 % > 5 %": 1, "CV 7.5 % > 5 %": 2, "CV 9.1 % > 5 %": 3, "CV 10.1 % > 5 %": 4,
        "CV 6.0 % > 5 %, PSNR 12.3 dB < 15 dB": 1, "CV 60.0 % > 5 %, PSNR -1.5 dB < 15 dB": 1,
        "stopped at 300: CV 11.0 % > 5 %": 2, "stopped at 500: unstable for too long": 1,
        "stopped at 40 by the median pruner: 20.1 dB": 1, "stopped at 60 by the median pruner: 1DD 21.0 dB": 1,
        "a member diverged by iteration 250": 1, "VIF 1.20 > 1, 2 dead members": 1,
    }  # fmt: skip
    reasons = [text for text, n in told.items() for _ in range(n)]
    trials = view.trials.head(len(reasons) + 2).assign(state="PRUNED", stable=False, reason=[*reasons, "", "lost"])
    trials.loc[trials.index[-2], "stable"] = True  # is in no group
    trials.loc[trials.index[-1], "state"] = "FAIL"
    table = tables.reasons(trials)
    assert dict(zip(zip(table["state"], table["reason"], strict=True), table["n"], strict=True)) == {
        ("PRUNED", "CV above 5 %"): 10,
        ("PRUNED", "CV above 5 %, PSNR below 15 dB"): 2,
        ("PRUNED", "stopped early: CV above 5 %"): 2,
        ("PRUNED", "stopped early: unstable for too long"): 1,
        ("PRUNED", "stopped by the median pruner"): 2,
        ("PRUNED", "a member diverged"): 1,
        ("PRUNED", "VIF above 1, dead members"): 1,
        ("FAIL", "lost"): 1,
    }
    assert table["n"].is_monotonic_decreasing
    sizes = table.set_index("reason")["sizes"]
    assert sizes["CV above 5 %"] == "3 up to 7.5 %, 3 up to 10 %, 4 above 10 %"
    assert sizes["CV above 5 %, PSNR below 15 dB"] == "1 up to 7.5 %, 1 above 10 %"
    assert sizes["a member diverged"] == sizes["lost"] == ""


def test_what_was_run_stands_before_its_numbers():
    view = view_of(
        fit={"members": 3, "seed": 7, "learning_rate": 0.003, "keep": "last"},
        stability={"cv_percent": 4, "min_psnr": 12, "prune": False},
    )
    stored = {"torch": "2.1", "target": "A axial 9", "target shape": "1x8x9", "commit": ""}
    numbers = view.trials["number"]
    trials = view.trials.assign(
        device=["A100" if n < 5 else "H100" for n in numbers], disturbed=numbers.lt(4), stable=numbers.ge(18)
    )
    trials["seconds"] = [100.0 if budget == 5000 else 40.0 for budget in trials["iterations"]]
    view = dataclasses.replace(view, facts=stored, trials=trials)
    told = facts(view)
    assert told == {
        "target": "A axial 9, 8x9",
        "objectives": "maximize psnr",
        "sampler": "grid",
        "members": "3; 3DD is the mean of their outputs, 1DD the mean of their own numbers",
        "seed": "7",
        "learning rate": "0.003",
        "iterate that counts": "the last one",
        "stable means": "CV of the members' PSNR <= 4 %, ensemble PSNR >= 12 dB, VIF <= 1; no fit is stopped for it",
        "trials by state": "144 COMPLETE",
        "measured": "144 of 144 settings",
        "unstable": "12.5% (18 of 144 measured trials)",
        "device": "H100 (139 trials), A100 (5 trials)",
        "engine": "fused float32",
        "duration": "2.0 h of fitting, between 2026-01-01 12:00 and 2026-01-01 12:59",  # 72 fits, to 5,000 iterations
        "load": "the seconds of 4 of 144 trials were disturbed by other programs on their machine",
        "versions": "torch 2.1",
    }
    assert [*told][-1] == "versions"
    page = render([view], ())
    assert all(f'<th scope="row">{name}</th>' in page for name in told)
    searched = view_of(space=SPACE | {"fit.members": [1, 5], "fit.keep": ["last", "best"]})
    told = facts(dataclasses.replace(searched, trials=searched.trials.assign(reused_from="other:1")))
    assert told["members"].startswith("searched: 1, 5; nDD is")
    assert told["iterate that counts"] == "searched: the last one, the one with the least loss so far"
    assert "duration" not in told  # all was imported


def test_no_quality_is_named_without_whose_it_is(view):
    """The mean of single members and the ensemble's were both called PSNR."""
    page = render([view], read_panels())
    scripts = [json.loads(text) for text in re.findall(r'type="application/json">(.*?)</script>', page)]
    plots = [script["layout"] for script in scripts if isinstance(script, dict)]
    titles = [axis["title"]["text"] for layout in plots for name, axis in layout.items() if name[1:5] == "axis"]
    assert {title for title in titles if "PSNR" in title} == {"ensemble PSNR (dB)", "PSNR (dB)"}
    assert titles.count("PSNR (dB)") == 1  # of bars of both, side by side, which say it
    headings = set(re.findall(r'<th scope="col"[^>]*>(.*?)</th>', page))
    assert {heading for heading in headings if "PSNR" in heading} == {"ensemble PSNR (dB)"}
    assert {"1DD (dB)", "5DD (dB)"} <= headings


def test_axes_of_one_value_have_no_panels(tmp_path):
    kinds = (
        "kind='heatmap'\nx='k'\ny='psnr'\ngroup='l'",
        "kind='heatmap'\nx='k'\ny='psnr'\ngroup='s'",
        "kind='importance'\ny='psnr'",
        "kind='unstable'",
        "kind='best'\ny='psnr'",
        "kind='unstable'\nfacets=['k', 'l']",
    )
    text = "".join(f"[[panel]]\ntitle='{number}'\n{kind}\n" for number, kind in enumerate(kinds))
    panels = panels_of(tmp_path, text)

    def titles(**space):
        view = view_of(space={"k": [8, 64], "s": [8, 16], "l": [4], "iterations": [100], **space})
        return [each.title for panel in panels for each in panel.of(view, panels)]

    assert titles() == ["1", "2", "5"]
    assert titles(s=[8]) == ["5"]
    assert titles(s=[8], tiling=["1x1", "2x2"]) == ["2", "3", "4", "5"]
    # a facet of one value is none: it has no column, and stands among the other axes
    view = view_of(space={"k": [8, 64], "s": [8], "l": [4], "iterations": [100], "tiling": ["1x1", "2x2"]})
    assert list(panels[3].show([view]).table.columns) == ["tiling", "settings", "CV > 5 %", "share"]
    assert panels[4].split(view) == (["tiling"], ["k", "s", "l", "iterations", "noise"])


def test_a_row_of_a_heat_map_is_none(tmp_path):
    (panel,) = panels_of(tmp_path, "[[panel]]\ntitle='a'\nkind='heatmap'\nx='k'\ny='psnr'\ngroup='l'")
    view = view_of()
    begun = dataclasses.replace(view, trials=view.trials[view.trials["l"].eq(4)])
    assert panel.show([begun]).missing == "Filled by trials of a second value of l; so far all have l 4."
    (panel,) = panels_of(tmp_path, "[[panel]]\ntitle='a'\nkind='importance'\ny='psnr'")
    view = view_of(space=SPACE | {"k": list(range(8, 20))})
    one = view.trials.drop_duplicates("k")
    assert "so far they differ in k alone" in panel.show([dataclasses.replace(view, trials=one)]).missing


def test_tables_leave_the_trials_as_they_were(view):
    before = view.trials.copy(deep=True)
    render([view], read_panels())
    pd.testing.assert_frame_equal(view.trials, before)


# --- panels


def test_the_packaged_panels_are_valid():
    assert [panel.kind for panel in read_panels()].count("best") == 3
    assert {panel.kind for panel in read_panels(COMPARE)} == {"fronts", "ranks", "transfer", "slices"}


@pytest.mark.parametrize(
    ("text", "wrong", "valid"),
    [
        ("panel = 3", "names no panel", "[[panel]]"),
        ("", "names no panel", "[[panel]]"),
        ("panels = []", "panels: unknown key", "[[panel]]"),
        ("[[panel]", "not valid TOML", "overview.toml"),
        ("[[panel]]\ntitle = 'a'", "panel 1: kind: missing", "pareto, parallel, importance"),
        ("[[panel]]\nkind = 'pie'", "panel 1: kind: unknown, 'pie'", "pareto, parallel, importance"),
        ("[[panel]]\nkind = 'best'\ny = 'psnr'", "panel 1: title: missing", "heading of the panel"),
        ("[[panel]]\nkind = 'best'\ntitle = 'a'\ny = 'PSNR'", "panel 1: y:", '"psnr", "ssim"'),
        (
            "[[panel]]\nkind = 'best'\ntitle = 'a'\ny = 'psnr'\nx = 'k'",
            "panel 1: x: unknown key",
            "kind, title, data, filter, facets, y",
        ),
        ("[[panel]]\nkind = 'unstable'\ntitel = 'a'", "titel: unknown key", "Did you mean 'title'?"),
        ("[[panel]]\nkind = 'pareto'\ntitle = 'a'\nx = 'vif'\ny = 'vif'", "x and y must differ", '"psnr"'),
        (
            "[[panel]]\nkind = 'quartiles'\ntitle = 'a'\nx = 'k'\ny = 'psnr'\ngroup = 'k'",
            "x and group must differ",
            '"k"',
        ),
        (
            "[[panel]]\nkind = 'unstable'\ntitle = 'a'\nfilter = {noise = ['pink']}",
            "filter.noise[0]:",
            '"uniform", "blur3"',
        ),
        (
            "[[panel]]\nkind = 'unstable'\ntitle = 'a'\nfilter = {q = [1]}",
            "filter.q: unknown key",
            "k, s, l, iterations",
        ),
        ("[[panel]]\nkind = 'unstable'\ntitle = 'a'\nfilter = 3", "filter:", "axis = [values]"),
        (
            "[[panel]]\nkind = 'importance'\ntitle = 'a'\ny = 'psnr'\nfilter = {k = [8]}",
            "filter: unknown key",
            "kind, title, data, y",
        ),
        (
            "[[panel]]\nkind = 'unstable'\ntitle = 'a'\nfacets = ['k', 'noise', 'k']",
            "facets: must not name an axis twice",
            "axes by which trials are grouped",
        ),
        ("[[panel]]\nkind = 'unstable'\ntitle = 'a'\nfacets = []", "facets: ", "axes by which trials are grouped"),
        ("[[panel]]\nkind = 'unstable'\ntitle = 'a'\nfacets = ['q']", "facets[0]: ", '"k", "s"'),
    ],
)
def test_a_wrong_panel_is_named_with_what_is_valid(tmp_path, text, wrong, valid):
    path = tmp_path / "panels.toml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_panels(path)
    first, second, *more = str(error.value).splitlines()
    assert first.startswith(str(path))
    assert bool(more) == ("titel" in text)  # and is missing
    assert wrong in first
    assert valid in second


def test_all_that_is_wrong_with_a_list_of_panels_is_said(tmp_path):
    """One mistake was, and the next at the next try."""
    path = tmp_path / "panels.toml"
    panels = ["kind = 'unstable'\ntitle = 'a'", "kind = 'best'\ntitel = 'b'", "kind = 'pie'", "kind = 'tilings'"]
    path.write_text("".join(["watch = 1\n", *(f"[[panel]]\n{panel}\n" for panel in panels)]))
    with pytest.raises(UserError) as caught:
        read_panels(path)
    lines = str(caught.value).replace(f"{path}: ", "").splitlines()
    assert [line for line in lines if not line.startswith(("Valid", "Did you mean"))] == [
        "watch: unknown key",
        "panel 2: titel: unknown key",
        "panel 2: title: missing",
        "panel 2: y: missing",
        "panel 3: kind: unknown, 'pie'",
        "panel 4: title: missing",
    ]
    assert lines[lines.index("panel 2: titel: unknown key") + 1].startswith("Did you mean 'title'?")
    path.write_text("[[panel]]\nkind = 'pie'\n" * 5000)
    with pytest.raises(UserError) as caught:
        read_panels(path)
    assert str(caught.value).count("\n") == 40
    assert str(caught.value).endswith("And 4,980 more panels.")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="no such list of panels"):
        read_panels(tmp_path / "none.toml")


def panels_of(tmp_path, text):
    path = tmp_path / "panels.toml"
    path.write_text(text)
    return read_panels(path)


# --- figures


def test_figures_draw_the_tables_numbers(view):
    table = tables.by_axis(view.trials, "l", "s")
    boxes = figures.quartiles(table, "l", "seconds", "s").data
    assert [box.name for box in boxes] == ["s 8", "s 16"]
    for box, s in zip(boxes, (8, 16), strict=True):
        assert list(box.median) == table[table["s"] == s]["seconds_median"].tolist()
    front = tables.finished(view.trials)[tables.pareto_front(tables.finished(view.trials), {"psnr": "maximize"})]
    drawn = figures.pareto(tables.finished(view.trials), front, "seconds", "psnr").data
    assert sum(len(points.x) for points in drawn) == len(tables.finished(view.trials)) + len(front)


def test_importance_draws_ten_terms_and_the_rest():
    bars = figures.importance(anova.importance(view_of().trials, AXES)).data[0]
    assert len(bars.y) == 11
    assert bars.y[-1] == "higher order"


def luminance(colour):
    """Relative luminance as WCAG defines it, of a colour's three parts in [0, 1]."""
    return np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]


def parts_of(colour):
    digits = colour.removeprefix("#")
    digits = "".join(digit * 2 for digit in digits) if len(digits) == 3 else digits
    return np.array([int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)])


def test_marks_stand_out_in_light_and_dark(view):
    """WCAG 2.1, 1.4.11: 3:1. Transparent ones did not reach it; what the best lines stand out from need not."""
    style = (Path(figures.__file__).parent / "templates" / "page.css").read_text()
    light, dark = map(parts_of, re.findall(r"--card: (#\w+)", style))
    assert luminance(light) > 0.9
    assert luminance(dark) < 0.1
    other = dataclasses.replace(view, name="other", trials=view.trials.assign(device="cpu"))
    both = [dataclasses.replace(view, trials=other.trials), other]
    shown = [panel.show(both) for panel in (*read_panels(), *read_panels(COMPARE))]
    marks = [mark for it in shown if it.figure for mark in it.figure.data if mark.type != "heatmap"]
    assert len(marks) > 20
    for mark in marks:
        if mark.name == "other trials":
            continue
        for part in (mark.marker, getattr(mark, "line", None)):
            if part is None or part.color is None:
                continue
            opacity = (mark.opacity or 1) * (getattr(part, "opacity", None) or 1)
            for ground in (light, dark):
                seen = opacity * parts_of(part.color) + (1 - opacity) * ground
                low, high = sorted((luminance(seen), luminance(ground)))
                assert (high + 0.05) / (low + 0.05) >= 3, (mark.name, part.color, opacity)
    boxes = [mark for mark in marks if mark.type == "box"]
    assert {box.fillcolor for box in boxes} == {"rgba(0, 0, 0, 0)"}  # else the median is drawn on its own colour


@pytest.mark.parametrize(("sampler", "rough"), [("grid", False), ("random", False), ("tpe", True)])
def test_shares_after_a_search_are_called_rough(sampler, rough):
    [panel] = [panel for panel in read_panels() if panel.kind == "importance"]
    shown = panel.show([view_of(search={"sampler": sampler})])
    assert ("rough" in shown.sentence) is rough


# --- the page


def test_no_text_of_a_study_is_markup(view, tmp_path):
    evil = "</script><img src=x onerror=alert(1)>"
    trials = view.trials.assign(reason=evil)
    spec = view.spec.model_copy(update={"description": evil})
    page = render(
        [dataclasses.replace(view, name=evil, spec=spec, facts={evil: evil}, trials=trials)],
        panels_of(tmp_path, f"[[panel]]\nkind = 'pareto'\ntitle = '{evil}'\nx = 'seconds'\ny = 'psnr'"),
    )
    assert "<img" not in page
    drawn = json.loads(re.search(r'type="application/json">(.*?)</script>', page)[1])
    assert all("<img" not in text for points in drawn["data"] for text in points["text"])  # plotly reads markup too
    assert page.count("</script>") == page.count("<script")


def test_a_page_refers_to_nothing_outside(view):
    page = render([view], read_panels())
    own = re.sub(r"(<script[^>]*>).*?</script>", r"\1", page, flags=re.DOTALL)
    assert set(re.findall(r'(?:src|href)="([^"]*)"', own)) - set(re.findall(r'"(#[\w-]+)"', own)) == {"data:,"}
    assert set(re.findall(r'href="#([\w-]+)"', own)) <= set(re.findall(r' id="([\w-]+)"', own))
    assert "@import" not in own
    assert set(re.findall(r"url\((.{5})", own)) == {"data:"}


@pytest.mark.parametrize(
    "trials",
    [
        trials_table([], THESIS),
        view_of().trials.assign(
            state="FAIL", stable=False, reason="lost", **dict.fromkeys([*METRICS, "psnr_1dd"], np.nan)
        ),
    ],
    ids=["empty", "only FAIL"],
)
def test_a_study_without_measurements_says_what_is_missing(trials):
    page = render([dataclasses.replace(view_of(), trials=trials)], read_panels())
    shown = [each for panel in read_panels() for each in panel.of(view_of(), read_panels())]
    assert page.count("No data yet.") == len(shown)
    assert "no trial is measured yet" in page
    assert '<p class="lead">No trial is measured yet.</p>' in page


def test_no_study_at_all_is_a_page_too():
    assert "The store holds no study." in render([], read_panels())


def test_single_valued_axes_and_one_member_are_shown():
    space = {"k": [8], "s": [8], "l": [4], "iterations": [100]}
    page = render([view_of(space=space, fit={"members": 1})], read_panels())
    assert "1 of 1 settings" in page
    assert "at least two members" in page
    # nothing over an axis of one value: the best of one group, its share of unstable trials, what PSNR depends on
    titles = set(re.findall(r"<h2>(.*?)</h2>", page))
    assert titles == {"Answer", "What was asked and run", "All trials"} | {
        panel.title for panel in read_panels() if panel.kind in ("pareto", "parallel", "convergence", "ensemble")
    }
    assert "Best and the only stable setting: k 8, s 8, l 4, 100 iterations, " in page
    assert "How sure this is cannot be said: each setting has one number." in page


def test_metrics_that_a_study_lacks_leave_only_their_panels_empty(view, tmp_path):
    panels = panels_of(
        tmp_path, "".join(f"[[panel]]\nkind='best'\ntitle='{y}'\ny='{y}'\n" for y in ("ms_ssim", "psnr"))
    )
    page = render([view], panels)
    assert page.count("No data yet. Filled by stable trials with ensemble MS-SSIM.") == 1


def test_a_filter_narrows_a_panel_and_is_named(view, tmp_path):
    text = "[[panel]]\nkind='quartiles'\ntitle='a'\nx='l'\ny='seconds'\nfilter={k=[8], noise=['uniform', 'blur3']}"
    page = render([view], panels_of(tmp_path, text))
    assert "Only k = 8, noise = uniform or blur3." in page
    kept = view.trials.query("k == 8 and noise != 'simplex'")
    drawn = json.loads(re.search(r'type="application/json">(.*?)</script>', page)[1])
    assert drawn["data"][0]["median"] == tables.by_axis(kept, "l")["seconds_median"].tolist()


def test_a_thesis_sized_study_makes_a_page_below_ten_megabytes():
    page = render([view_of(space=THESIS)], read_panels())
    assert "2,268 of 2,268 settings" in page
    assert len(page.encode()) < 10e6


# --- in a browser

# pairs of texts of one figure that lie on each other
COLLISIONS = """
const found = [];
for (const plot of document.querySelectorAll(".plot")) {
  const texts = [...plot.querySelectorAll("text:not(.hoverlayer *)")].filter(text => text.textContent.trim());
  const boxes = texts.map(text => text.getBoundingClientRect());
  for (const [i, a] of boxes.entries())
    for (const [j, b] of boxes.entries())
      if (i < j && Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
          && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2)
        found.push([texts[i].textContent, texts[j].textContent]);
}
return found;
"""


@pytest.mark.slow
def test_the_page_in_a_browser(view, tmp_path):
    pytest.importorskip("selenium", reason="needs selenium")
    from browser import chromium, drawn, errors
    from selenium.webdriver.support.ui import WebDriverWait

    other = dataclasses.replace(view, name="<b>empty</b>", trials=trials_table([], THESIS))
    page = tmp_path / "report.html"
    page.write_text(render([view, other], read_panels()), encoding="utf-8")
    with chromium() as browser:
        for scheme, ink in (("light", "rgb(28, 33, 38)"), ("dark", "rgb(228, 232, 236)")):
            media = [{"name": "prefers-color-scheme", "value": scheme}]
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
            browser.get(page.as_uri())
            drawn(browser)
            assert errors(browser) == []
            assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
            figures = browser.execute_script(
                "return [...document.querySelectorAll('.plot')].map(p => p.querySelectorAll('.main-svg').length)"
            )
            tables_only = {"best", "outputs", "convergence"}  # nothing was kept of the images and curves of this study
            shown = [each for panel in read_panels() for each in panel.of(view, read_panels())]
            assert len(figures) == sum(panel.kind not in tables_only for panel in shown)
            assert all(figures)
            fills = browser.execute_script(
                "return [...document.querySelectorAll('.plot .xtick text')].map(t => getComputedStyle(t).fill)"
            )
            assert set(fills) == {ink}

        shown = browser.execute_script(
            "return Object.fromEntries([...document.querySelectorAll('#study-1 .panel')].map(panel =>"
            " [panel.querySelector('h2').textContent, [...panel.querySelectorAll('tbody tr')].map(row =>"
            " [...row.querySelectorAll('td')].map(cell => cell.textContent))]))"
        )
        table = tables.by_axis(view.trials, "k")
        assert shown["PSNR and channels"] == [
            [str(row.k), str(row.n), f"{row.unstable_share:.1%}", str(row.psnr_n)]
            + [
                f"{value:.2f}"
                for value in (row.psnr_mean, row.psnr_min, row.psnr_q25, row.psnr_median, row.psnr_q75, row.psnr_max)
            ]
            for row in table.itertuples()
        ]
        best = view.trials.query("stable == True and tiling == '1x1' and noise == 'blur3'").sort_values("vif").iloc[-1]
        assert shown["Settings with the best VIF"][0][2] == (
            f"{best['vif']:.3f}{{{best['k']}, {best['s']}, {best['l']}, {best['iterations']}}}"
        )

        for width in (1280, 800, 390):
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            WebDriverWait(browser, 20).until(
                lambda browser, width=width: (
                    browser.execute_script(
                        "return Math.max(...[...document.querySelectorAll('.main-svg')]"
                        ".map(drawing => drawing.getBoundingClientRect().right))"
                    )
                    <= width
                )
            )
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
            assert browser.execute_script(COLLISIONS) == []
        browser.execute_cdp_cmd("Page.printToPDF", {})
        assert errors(browser) == []
