"""Reports of inverse tasks, with and without the truth: their numbers by other means, and what their pages say."""

import dataclasses
import io
import itertools
import math
import re
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import synthetic
from rich.console import Console
from scipy.stats import spearmanr
from typer.testing import CliRunner

import ddstudy
import ddstudy.thesis.panels
from ddstudy.api import asked
from ddstudy.cli import app
from ddstudy.dashboard import publish
from ddstudy.errors import UserError
from ddstudy.images.metrics import METRICS
from ddstudy.report import answer, inverse, tables
from ddstudy.report.facts import facts
from ddstudy.report.intervals import mean_of
from ddstudy.report.page import render
from ddstudy.report.panels import OVERVIEW, panels_of, parse_panel, read_panels
from ddstudy.report.panels.outputs import of_best
from ddstudy.results import Study
from ddstudy.spec.axes import Setting
from ddstudy.spec.schema import StudySpec
from ddstudy.store.database import Store
from ddstudy.store.study import StudyView
from ddstudy.study.evaluate import Result
from ddstudy.terminal import print_answers, print_fit, print_studies, print_summary
from ddstudy.thesis import published

ROOT = Path(__file__).parents[1]
SPACE = {"k": [4, 8, 16], "s": [4], "l": [2], "iterations": [20, 40, 80, 160], "noise": ["uniform", "blur3"]}
SIZE = (24, 32)
SIGMAS, SEEDS = [0.05, 0.1, 0.2], [0, 1]


def specs() -> dict[str, StudySpec]:
    axes = {"task.sigma": SIGMAS, "task.seed": SEEDS}
    judges = {"against": "repeat"}
    fit = {"members": 2, "check_every": 20}
    return {
        # truth and another judge are known; several levels, each with two measurements
        "levels": synthetic.spec_of("levels", SPACE | axes, task={"kind": "denoise"}, judge=judges, fit=fit),
        "measured": synthetic.spec_of(
            "measured",
            SPACE,
            task={"kind": "inpaint", "source": "file", "mask": "mask.npy", "sigma": 0.08},
            judge={"against": "held_out", "share": 0.2},
            fit=fit | {"stop": "emv"},
        ),
        "copies": synthetic.spec_of("copies", SPACE, fit=fit),
    }


def result_of(spec: StudySpec, setting: Setting, target: np.ndarray) -> Result:
    """PSNR is best inside: more iterations and channels are worse from a point on, sooner where noise is strong."""
    task = spec.at(setting).task
    random = np.random.default_rng([setting.fit.digest, setting["iterations"], task.seed])
    best_effort = 7.3 - math.log2(task.sigma / 0.05)

    def psnr_at(iterations: int) -> float:
        channels = 0.5 * (math.log2(setting["k"]) - 3) ** 2
        return 30 - 40 * task.sigma - channels - 1.5 * (math.log2(iterations) - best_effort) ** 2

    made = synthetic.measurement(setting, 2, target)
    checks = list(range(20, setting["iterations"] + 1, 20))
    scores = [psnr_at(check) for check in checks]
    psnr = psnr_at(setting["iterations"]) + random.normal(0, 0.2)
    judge = -10 * math.log10(10 ** (-psnr / 10) + task.sigma**2) + random.normal(0, 0.5)
    values = made.values | {"psnr": psnr, "psnr_1dd": psnr - 1, "judge": judge, "judge_1dd": judge - 0.5}
    values |= {
        "spread_percent": 3.0 + 30 * (setting["k"] == 4 and task.seed == 1),
        "baseline": -20 * math.log10(task.sigma),
    }
    values |= {
        "chosen_iteration": max(20, setting["iterations"] // 2 // 20 * 20)
        if task.source == "file"
        else setting["iterations"]
    }
    if task.source == "file":
        values = {
            name: value for name, value in values.items() if not name.startswith(("psnr", "ssim", "ms_ssim", "vif"))
        }
        values.pop("baseline")
        values |= {"ended_by": "emv"} if setting["k"] == 16 else {}
    else:
        best = max(scores)
        values |= {"oracle_psnr": best, "oracle_iteration": checks[scores.index(best)], "oracle_gap": best - scores[-1]}
    members = [[round(score - 0.5, 3), round(score + 0.5, 3)] for score in scores]
    curve = {
        "iterations": checks,
        "seconds": [0.1 * check for check in checks],
        "psnr_members": members,
        "score": scores,
        "loss": [10 ** (-score / 10) + 1e-3 for score in scores],
    }
    return Result(setting["iterations"], values, made.output, curve, stopped=False, residual=target - made.output)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tasks")
    url = f"sqlite:///{folder / 'studies.db'}"
    mask = np.random.default_rng(0).random(SIZE) < 0.7
    np.save(folder / "mask.npy", mask)
    for name, spec in specs().items():
        if name == "measured":
            spec = spec.model_copy(update={"task": spec.task.model_copy(update={"mask": str(folder / "mask.npy")})})
        with synthetic.driven(url, spec, SIZE) as study:
            for setting in spec.search_space:
                if spec.is_task:
                    made = result_of(spec, setting, study.target.image)
                    study.record(setting, made, shared=False, started=datetime.now())
                else:
                    synthetic.record(study, [setting])
    return url


@pytest.fixture(scope="module")
def views(store: str) -> dict[str, StudyView]:
    with Store(store, read_only=True) as opened:
        found = {name: opened.view(name) for name in specs()}
    assert not any(view.left_out for view in found.values())
    return found


def panel(kind: str, **fields: object):
    return parse_panel({"kind": kind, "title": "T", **fields}, "test")


def stable(view: StudyView) -> pd.DataFrame:
    return view.trials[view.trials["spread_percent"].le(20)]


# --- numbers


def test_the_best_of_a_level_is_found_by_comparing_all(views):
    view = views["levels"]
    axes = {axis: view.spec.search_space[axis] for axis in view.axes}
    table = inverse.by_level(view.trials, "task.sigma", "psnr", axes).set_index("task.sigma")
    assert list(table.index) == SIGMAS
    for sigma, row in table.iterrows():
        means = {}
        for k, iterations, noise in itertools.product(SPACE["k"], SPACE["iterations"], SPACE["noise"]):
            rows = stable(view).query(
                "k == @k and iterations == @iterations and noise == @noise and `task.sigma` == @sigma"
            )
            if len(rows) == len(SEEDS):  # k = 4 is unstable with one of the measurements
                means[k, iterations, noise] = rows["psnr"].mean()
        best = max(means, key=means.get)
        assert (row["k"], row["iterations"], row["noise"]) == best
        assert row["psnr"] == pytest.approx(means[best])
        assert (row["settings"], row["cases"]) == (len(means), 2)
        assert row["baseline"] == pytest.approx(-20 * math.log10(sigma))
        assert row["gain"] == pytest.approx(row["psnr"] - row["baseline"])
        ends = [
            name
            for name, value in (("k", best[0]), ("iterations", best[1]))
            if value in (min(SPACE[name]), max(SPACE[name]))
        ]
        assert row["ends"] == ", ".join(ends)
    assert table["ends"].tolist() == ["iterations", "", ""]  # fewer and more are both worse, sooner with more noise
    assert table["iterations"].tolist() == [160, 80, 40]


def test_each_level_has_an_answer_over_its_measurements(views):
    """Settings are compared on the same measurements: their difference may be sure where their own numbers are not."""
    view = views["levels"]
    found = answer.best_of(view)
    assert [best.at for best in found] == [{"task.sigma": sigma} for sigma in SIGMAS]
    for best in found:
        rows = stable(view)[stable(view)["task.sigma"].eq(best.at["task.sigma"])]
        wide = rows.pivot_table(index=["k", "iterations", "noise"], columns="task.seed", values="judge").dropna()
        first = wide.loc[wide.mean(axis=1).idxmax()]
        assert best.setting["value"] == pytest.approx(first.mean())
        assert tuple(best.setting[axis] for axis in ("k", "iterations", "noise")) == first.name
        assert (best.over, best.settings) == ("measurements", len(wide))
        alike = [setting for setting, row in wide.iterrows() if mean_of(first - row).low <= 0 and setting != first.name]
        told = best.alike[["k", "iterations", "noise"]].itertuples(index=False, name=None)
        assert set(told) == set(alike)
    said = answer.answer(view)
    assert said.lead.startswith("What is best depends on noise level: 3 settings are best at 3 levels.")
    assert len(said.table.frame) == 3
    assert said.number == max(found, key=lambda best: best.setting["value"]).setting["number"]


def test_what_is_measured_is_told_from_what_is_chosen():
    axes = ["k", "target.slice", "task.sigma", "task.coils", "task.consistency", "task.loss_filter", "fit.stop"]
    assert inverse.case_axes(axes) == ["target.slice", "task.sigma", "task.coils"]
    assert inverse.setting_axes(axes) == ["k", "task.consistency", "task.loss_filter", "fit.stop"]


def test_a_carried_setting_is_the_best_at_home_only(views):
    view = views["levels"]
    axes = {axis: view.spec.search_space[axis] for axis in view.axes}
    best = inverse.by_level(view.trials, "task.sigma", "psnr", axes).set_index("task.sigma")
    lines = inverse.carried(view.trials, "task.sigma", "psnr", axes)
    assert len(lines) == len(SIGMAS) ** 2
    for row in lines.to_dict("records"):
        at = row["task.sigma"]
        assert row["psnr"] <= best.loc[at, "psnr"]
        assert row["k"] == best.loc[row["chosen_at"], "k"]
        if row["chosen_at"] == at:
            assert row["psnr"] == best.loc[at, "psnr"]


def test_levels_of_other_axes_of_the_task_are_told_apart(views):
    view = views["levels"]
    axes = {axis: view.spec.search_space[axis] for axis in view.axes}
    table = inverse.by_level(view.trials, "task.sigma", "psnr", axes, ["task.seed"])
    assert table[["task.seed", "task.sigma"]].to_numpy().tolist() == [[y, sigma] for y in SEEDS for sigma in SIGMAS]
    expected = stable(view).groupby(["task.seed", "task.sigma"])["psnr"].max()
    assert table["psnr"].tolist() == pytest.approx(expected.tolist())
    assert (table["cases"] == 1).all()


def test_regret_is_what_the_judges_choice_lacks(views):
    view = views["levels"]
    table = inverse.regret(view.trials, view.axes)
    assert len(table) == len(SIGMAS) * len(SEEDS)
    for row in table.to_dict("records"):
        case = stable(view)
        case = case[case["task.sigma"].eq(row["task.sigma"]) & case["task.seed"].eq(row["task.seed"])]
        chosen = case.loc[case["judge"].idxmax()]
        assert row["n"] == len(case)
        assert row["regret"] == pytest.approx(case["psnr"].max() - chosen["psnr"])
        assert row["chosen_number"] == chosen["number"]
        assert row["spearman"] == pytest.approx(spearmanr(case["psnr"], case["judge"]).statistic)
    assert (table["regret"] >= 0).all()
    assert table["regret"].max() > 0


def test_a_judge_that_ranks_as_the_truth_does_costs_nothing(views):
    view = views["levels"]
    table = inverse.regret(view.trials.assign(judge=view.trials["psnr"] / 3 - 1), view.axes)
    assert (table["regret"] == 0).all()
    assert table["spearman"].to_numpy() == pytest.approx(1)
    reversed_ = inverse.regret(view.trials.assign(judge=-view.trials["psnr"]), view.axes)
    assert reversed_["spearman"].to_numpy() == pytest.approx(-1)


def test_regret_without_cases_is_one_row(views):
    view = views["levels"]
    one = view.trials.query("`task.sigma` == 0.1 and `task.seed` == 0")
    (row,) = inverse.regret(one, ["k", "iterations", "noise"]).to_dict("records")
    assert row["oracle"] == one[one["spread_percent"] <= 20]["psnr"].max()


def test_gaps_of_rules_are_those_of_their_trials(views):
    trials = views["levels"].trials
    (row,) = inverse.stopping(trials, ["budget"]).to_dict("records")
    gap = trials["oracle_gap"]
    assert row == {"rule": "budget", "n": len(trials), "ended": 0, "mean_gap": gap.mean(), "worst_gap": gap.max()}
    two = trials.assign(**{"fit.stop": np.where(trials["k"] == 4, "emv", "budget")})
    table = inverse.stopping(two, ["budget", "emv"]).set_index("rule")
    assert table.loc["emv", "worst_gap"] == trials.loc[trials["k"] == 4, "oracle_gap"].max()
    (unknown,) = inverse.stopping(views["measured"].trials, ["emv"]).to_dict("records")
    assert math.isnan(unknown["mean_gap"])
    assert unknown["ended"] == len(SPACE["iterations"]) * len(SPACE["noise"])


def test_rules_that_were_not_run_are_replayed(views):
    view = views["levels"]
    table = inverse.replayed(view.records, view.spec).set_index("rule")
    assert list(table.index) == ["discrepancy"]  # of the others, nothing was recorded
    gaps, ended = [], 0
    whole = [record for record in view.records if record.setting["iterations"] == 160]
    for record in whole:
        curve, sigma = record.curve, record.setting["task.sigma"]
        reached = [at for at, loss in enumerate(curve["loss"]) if loss <= sigma**2]
        ended += bool(reached) and reached[0] < len(curve["loss"]) - 1
        gaps.append(max(curve["score"]) - curve["score"][reached[0] if reached else -1])
    row = table.loc["discrepancy"]
    assert (row["n"], row["ended"]) == (len(whole), ended)
    assert [row["mean_gap"], row["worst_gap"]] == pytest.approx([np.mean(gaps), max(gaps)])
    shown = panel("stopping").show([view])
    assert shown.table.frame["of"].tolist() == ["trials", "fits, replayed"]
    assert inverse.replayed(views["measured"].records, views["measured"].spec).empty  # no fit ran to its end for sure


def test_best_lines_are_the_best_of_each_level(views):
    trials = views["levels"].trials
    lines = tables.parallel(trials, "psnr", ["k"], levels=["task.sigma"])
    best = trials.set_index("number").loc[lines[lines["best"]]["number"]]
    counts = stable(views["levels"]).groupby("task.sigma")["psnr"].nlargest(2).droplevel(0)
    assert len(best) == sum(max(1, round(0.05 * n)) for n in stable(views["levels"])["task.sigma"].value_counts())
    assert set(best["psnr"]) <= set(counts)


def test_by_axis_takes_the_score_that_there_is(views):
    assert "psnr_mean" in tables.by_axis(views["levels"].trials, "k")
    table = tables.by_axis(views["measured"].trials, "k").set_index("k")
    expected = stable(views["measured"]).groupby("k")["judge"].mean()
    assert table["judge_mean"].tolist() == pytest.approx(expected.tolist())


# --- pages


def test_every_panel_of_a_study_without_truth_is_filled_and_says_what_the_score_is(views):
    view = views["measured"]
    shown = {each.title: each.show([view]) for each in panels_of(view, read_panels())}
    titles = list(shown)
    assert not any("PSNR" in title or "SSIM" in title or "VIF" in title for title in titles)
    assert {"Score and channels", "Score and iterations", "What score depends on", "Where fits stop"} <= set(titles)
    against = "held-out samples of the measurement, which no loss sees"
    about = f"The judge's score is PSNR against {against}; the truth is not known."
    for title, one in shown.items():
        assert not one.missing, title
        if title.startswith("Time") or title == "Settings that depend on the initialisation":
            continue
        assert about in one.sentence, title
        assert "PSNR" not in one.sentence.replace(about, ""), title


def test_a_page_says_nothing_of_tasks_where_slices_are_copied(views):
    """Kinds, titles and facts are those of before."""
    view = views["copies"]
    kinds = {each.kind for each in panels_of(view, read_panels())}
    assert not kinds & {"by_level", "stopping", "judges"}
    assert not {"task", "judge", "stopping rule"} & facts(view).keys()
    page = render([view], read_panels())
    assert "judge" not in page.partition("<script>")[0]
    for kind in ("by_level", "stopping", "judges"):
        assert panel(kind).show([view]).never


def test_pages_of_tasks_have_panels_of_their_own(views):
    kinds = [each.kind for each in panels_of(views["levels"], read_panels())]
    assert kinds[2:5] == ["by_level", "judges", "stopping"]
    assert "judges" not in {each.kind for each in panels_of(views["measured"], read_panels())}
    page = render([views["levels"], views["measured"]], read_panels())
    assert "Best setting and noise level" in page
    assert "Score and channels" in page
    assert "NaN" not in page.partition("<script>")[0]


def test_facts_tell_task_and_judge_in_words(views):
    told = facts(views["levels"])
    assert told["task"] == "denoise: Gaussian noise of sigma 0.05, 0.1 or 0.2, measurement seed 0 or 1"
    assert (
        told["judge"] == "PSNR against the repeat, a second measurement; the truth is known, too, and does not choose"
    )
    assert told["stable means"].startswith("spread of the members' outputs <= 20 %")
    told = facts(views["measured"])
    assert told["task"].startswith("inpaint: the file is the measurement, the truth is not known, pixels of ")
    assert "held-out samples (20%) of the measurement" in told["judge"]
    assert told["stopping rule"] == "exponential moving variance (ES-EMV)"


def test_facts_of_undersampled_mr(views):
    task = {"kind": "mri", "acceleration": 4.0, "sigma": 0.01}
    spec = synthetic.spec_of("mr", SPACE | {"task.coils": [1, 4]}, task=task)
    trials = views["copies"].trials.assign(**{"task.coils": 1})
    told = facts(dataclasses.replace(views["copies"], spec=spec, trials=trials))
    assert told["task"] == (
        "mri: 4-fold undersampled k-space, random columns, centre 0.08, 1 or 4 coils, complex Gaussian noise of sigma "
        "0.01, measurement seed 0"
    )
    assert told["judge"] == "the truth: PSNR against it"


def test_outputs_of_a_task_are_shown_beside_what_was_measured(views):
    shown = panel("outputs").show([views["levels"]])
    best = stable(views["levels"]).sort_values("judge").iloc[-1]
    large = of_best(views["levels"], best.to_dict())
    names = [words.partition(":")[0] for _, words in large.faces]
    assert names == ["target", "measurement", "output", "absolute error", "residual of the measurement"]
    assert all(uri for uri, _ in large.faces)
    assert len(large.scales) == 5
    assert large.sides == "RL"
    numbers = f"judge's score {best['judge']:.2f} dB, PSNR {best['psnr']:.2f} dB"
    numbers += f" (the measurement's {best['baseline']:.2f} dB): "
    assert large.caption.startswith(f"Trial {best['number']}, {numbers}k ")
    assert ", sigma 0.05, seed " in large.caption
    (row,) = shown.pictures  # the levels beside each other, without the target, which stands above
    assert [picture.caption.partition(":")[0] for picture in row] == ["sigma 0.05", "sigma 0.1", "sigma 0.2"]
    assert [words.partition(":")[0] for _, words in row[0].faces] == ["measurement", "output", "absolute error"]
    measured = of_best(views["measured"], views["measured"].trials.iloc[0].to_dict())
    assert [words.partition(":")[0] for _, words in measured.faces][::2] == [
        "measurement",
        "residual of the measurement",
    ]
    named = panel("outputs", facets=["noise"]).show([views["levels"]])
    assert [picture.caption.partition(":")[0] for picture in named.pictures[0]] == ["uniform", "blur3"]


def test_levels_without_a_stable_setting_are_named(views):
    view = views["levels"]
    whole = panel("by_level").show([view])
    assert "no setting is stable" not in whole.sentence
    assert whole.sentence.endswith(" Settings are averaged over 2 measurements.")
    assert [line.name for line in whole.figure.data].count("best of another level") == len(SIGMAS)
    names = {
        y: {line.name for line in panel("by_level", y=y).show([view]).figure.data}
        for y in ("psnr", "psnr_foreground", "judge")
    }
    assert [y for y in names if "measurement" in names[y]] == ["psnr"]  # in which it is known
    trials = view.trials.assign(stable=view.trials["stable"] & view.trials["task.sigma"].eq(0.1))
    shown = panel("by_level").show([dataclasses.replace(view, trials=trials)])
    assert shown.sentence.endswith(" At 0.05, 0.2 no setting is stable so far.")
    assert "thin" not in shown.sentence
    assert panel("by_level", x="task.acceleration").show([view]).never


def test_the_marks_on_a_curve_are_answer_and_best_check(views):
    view = views["levels"]
    figure = panel("stopping").show([view]).figure
    assert len(figure.data) == 3 * len(SIGMAS)
    best = tables.best_of_groups(view.trials, "judge", ["task.sigma"])
    for place, row in enumerate(best.to_dict("records")):
        line, answer, oracle = figure.data[3 * place : 3 * place + 3]
        longest = view.trials.query("fit_id == @row['fit_id']")["iterations"].max()
        assert line.x[-1] == longest
        assert list(answer.x) == [row["iterations"]]
        assert oracle.y[0] == max(line.y)
    unknown = views["measured"]  # without levels, a curve for each kind of noise
    line, answer, mark = panel("stopping").show([unknown]).figure.data[3:]
    assert line.name == "blur3"
    best = stable(unknown).query("noise == 'blur3'").sort_values("judge").iloc[-1]
    assert answer.x[0] == best["chosen_iteration"]
    assert mark.y[0] == max(line.y)


def best_of(view: StudyView) -> pd.Series:
    return stable(view).sort_values("judge").iloc[-1]


def test_metrics_of_the_truth_are_not_asked_of_a_study_without(views):
    view = views["measured"]
    drawn = panel("quartiles", x="k", y="psnr").figure([view]).data
    assert drawn == panel("quartiles", x="k", y="judge").figure([view]).data
    with pytest.raises(UserError, match="no figure of 'quartiles'\nThis is about the truth, which is not known"):
        panel("quartiles", x="k", y="ssim").figure([view])
    assert panel("pareto", x="ssim", y="psnr").show([view]).never
    assert panel("best", y="psnr", title="Best {y}").about(view).title == "Best score"
    assert panel("best", y="psnr", title="Best {y}").about(views["copies"]).title == "Best PSNR"


def test_studies_with_and_without_truth_meet_in_the_judges_score(views):
    shown = panel("fronts", x="seconds", y="psnr").show([views["levels"], views["measured"]])
    assert "judge's score (dB)" in shown.sentence
    assert "the repeat, a second measurement or held-out samples" in shown.sentence
    alone = panel("ranks", y="psnr").show([views["levels"], views["copies"]])
    assert "judge" not in alone.sentence


def test_the_dashboard_gets_figures_of_a_task(views):
    texts = [figure.layout.title.text for figure in publish(views["levels"]).values()]
    assert any("Best setting and noise level" in text for text in texts)
    assert len(publish(views["measured"])) > 2


def test_findings_of_the_thesis_are_not_tested_on_a_task(views, store):
    for view in (views["levels"], views["measured"]):
        study = Study(view)
        found = study.findings()
        assert found.empty
        assert list(found.columns) == list(Study(views["copies"]).findings().columns)
        for kind, fields in (("findings", {}), ("published", {"table": "4.1"})):
            shown = panel(kind, **fields).show([view])
            assert shown.missing == published.OF_COPIES
        with pytest.raises(UserError, match="copies of clean slices"):
            study.published("4.3")
        out = io.StringIO()
        print_answers(Console(file=out, width=200), view, [])
        assert out.getvalue() == f"{view.name}: {published.OF_COPIES}\n"
    ran = CliRunner().invoke(app, ["findings", "levels", "--store", store])
    assert ran.output == f"levels: {published.OF_COPIES}\n"


# --- elsewhere


def test_tables_of_a_study_without_truth_have_its_score(views, tmp_path):
    study = Study(views["measured"])
    assert "judge" in study.checks
    assert "psnr" not in study.checks
    assert "psnr" in Study(views["copies"]).checks
    assert study.best.loc["judge", "number"] == best_of(views["measured"])["number"]
    assert "psnr" not in study.best.index
    table = pd.read_csv(study.export(tmp_path / "measured")[0])
    assert not {"psnr", "ssim_1dd", "vif_tiles", "oracle_gap"} & set(table.columns)
    assert table["judge"].notna().all()
    copies = pd.read_csv(Study(views["copies"]).export(tmp_path / "copies")[0])
    assert not {"judge", "baseline", "spread_percent", "chosen_iteration"} & set(copies.columns)
    assert copies["psnr"].notna().all()


def test_the_terminal_names_the_judges_score(views):
    out = io.StringIO()
    console = Console(file=out, width=200)
    print_studies(console, [Study(views["measured"]), Study(views["levels"])])
    assert f"judge 2DD {best_of(views['measured'])['judge']:.4g} at " in out.getvalue()
    print_summary(console, Study(views["measured"]), "a store", "")
    assert "psnr" not in out.getvalue()
    assert "PSNR against held-out samples (20%)" in out.getvalue()


def test_a_search_is_for_the_judges_score(views):
    for name, spec in specs().items():
        wanted = "psnr" if name == "copies" else "judge"
        assert asked(spec, mode="tpe").objectives == {wanted: "maximize"}
        assert list(asked(spec, mode="pareto").objectives) == [wanted, "seconds"]


def test_the_cv_is_not_audited_where_spread_decides(store):
    ran = CliRunner().invoke(app, ["prune-audit", "measured", "--store", store])
    assert isinstance(ran.exception, UserError)
    assert "small spread of the members' outputs" in str(ran.exception)


def test_a_fit_to_a_measured_file_claims_no_quality(tmp_path):
    rows, columns = np.mgrid[0:16, 0:16]
    np.save(tmp_path / "noisy.npy", np.sin(rows / 3) * np.cos(columns / 4))
    common = {"k": 4, "s": 4, "l": 1, "iterations": 20, "engine": "reference", "members": 2, "check_every": 20}
    said = {}
    for source in ("file", "simulated"):
        task = {"kind": "denoise", "sigma": 0.1, "source": source}
        told: list[str] = []
        found = ddstudy.fit(tmp_path / "noisy.npy", task=task, **common, tell=told.append)
        assert told == ["Reconstructing noisy.npy (denoise) by k4-s4-l1-uniform-1x1, 2 members, 20 iterations"]
        print_fit(Console(file=(out := io.StringIO()), width=200), found)
        said[source] = out.getvalue()
    assert "psnr" not in said["file"]
    assert "judge" not in said["file"]
    assert "cv_percent" not in said["file"]
    assert "the measurement and its truth is not known" in said["file"]
    assert "spread_percent" in said["file"]
    assert "judge" not in said["simulated"]
    chosen = dataclasses.replace(found, values=found.values | {"chosen_iteration": 10})
    print_fit(Console(file=(out := io.StringIO()), width=200), chosen)
    assert out.getvalue().endswith("The stopping rule chose the iterate at 10 of 20 iterations.\n")
    lines = dict(line.rsplit(maxsplit=1) for line in said["simulated"].splitlines()[:-1])
    assert lines["psnr measurement"] == f"{found.values['baseline']:.4g}"


def test_the_fit_command_takes_a_rule_and_a_measured_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows, columns = np.mgrid[0:16, 0:16]
    np.save("noisy.npy", np.sin(rows / 3) * np.cos(columns / 4))
    small = "--k 4 --s 4 --l 1 --iterations 20 --members 2 --check-every 10 --engine reference"
    words = f"fit noisy.npy --task denoise --measured --stop emv {small}"
    ran = CliRunner().invoke(app, words.split(), catch_exceptions=False)
    assert ran.exit_code == 0
    assert re.search(r"\[10/20, .*\] \d+\.\d\d dB from the measurement", ran.output)
    assert "1DD" not in ran.output
    assert (tmp_path / "reconstruction.png").is_file()


def test_titles_in_the_overview_name_metrics_that_there_are():
    text = OVERVIEW.read_text()
    assert not [one.title for one in read_panels() if "PSNR" in one.title]
    assert text.count("{y}") > 5
    assert METRICS["judge"].label == "judge's score"
