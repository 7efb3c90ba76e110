"""Studies over several cases, from the study file to the report: on both databases, on Ray, killed, pruned, judged."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clusters
import drivers
import nibabel
import numpy as np
import pandas as pd
import pytest
from drivers import Driver
from scipy import stats

import ddstudy
from ddstudy.errors import UserError
from ddstudy.images.targets import load_targets
from ddstudy.report import cases
from ddstudy.report.panels import read_panels
from ddstudy.spec.axes import budgets_by_fit
from ddstudy.spec.cases import CasesSpec
from ddstudy.spec.files import parse_spec, read_spec
from ddstudy.spec.schema import CASE, StudySpec, on
from ddstudy.store.database import Store
from ddstudy.study import planner

SPACE = {"k": [2, 4, 8], "s": [4], "l": [1, 2], "iterations": [10, 20]}
STUDY = """
[target]
file = "volume.nii"
[task]
kind = "denoise"
sigma = 0.1
[cases]
slices = ["mid+-2"]
seeds = [0, 1]
[space]
k = [2]
s = [4]
l = [1]
iterations = [10, 20]
"fit.start" = ["random", "neighbour"]
[fit]
engine = "reference"
members = 2
check_every = 10
[stability]
prune = false
min_psnr = 0
cv_percent = 1000
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small volume, `volume.nii`, 16 x 14 x 9, and `study.toml`: two fits on six cases, one from neighbours."""
    folder = tmp_path_factory.mktemp("cases")
    x, y, z = np.mgrid[0:16, 0:14, 0:9]
    volume = np.sin(x / 3 + z / 5) * np.cos(y / 4) + ((x - 8) ** 2 + (y - 7) ** 2 < 4 * z)
    nibabel.Nifti1Image(volume.astype(np.float32), np.eye(4)).to_filename(folder / "volume.nii")
    (folder / "study.toml").write_text(STUDY)
    return folder


@pytest.fixture
def tables(folder: Path) -> Callable[..., dict[str, Any]]:
    """The study as a dictionary, with tables that replace its own or are added."""

    def make(**changed: Any) -> dict[str, Any]:
        tree: dict[str, Any] = {
            "name": "study",
            "target": {"file": str(folder / "volume.nii")},
            "task": {"kind": "denoise", "sigma": 0.1},
            "cases": {"slices": ["mid+-3:1"], "holdout": ["slicemid+*"]},
            "space": SPACE,
            "fit": {"members": 2, "check_every": 10},
            "stability": {"prune": False, "min_psnr": 0, "cv_percent": 1000},
        }
        return tree | changed

    return make


def test_lists_make_cases_by_name_and_tables_give_them_names() -> None:
    spec = CasesSpec.model_validate({"slices": ["40:47:3", "mid+-4:2", 9], "seeds": [0, 1], "sigmas": [0.05]})
    slices = ["40", "43", "46", "mid-4", "mid-2", "mid", "mid+2", "mid+4", "9"]
    assert [*spec.by_name] == [f"slice{each}-sigma0.05-y{seed}" for each in slices for seed in (0, 1)]
    assert spec.by_name["slicemid-2-sigma0.05-y1"].own == {"target.slice": "mid-2", "task.sigma": 0.05, "task.seed": 1}
    files = ["/a/sub-1/anat/T1.nii", "/a/sub-2/anat/T1.nii", "/b/other.png"]
    named = CasesSpec.model_validate({"files": files, "holdout": ["*sub-2*"]})
    assert ([*named.by_name], named.held_out) == (["sub-1-anat-T1", "sub-2-anat-T1", "b-other"], ("sub-2-anat-T1",))
    table = [{"name": "early", "slice": 3}, {"name": "late", "seed": 2, "holdout": True}]
    told = CasesSpec.model_validate({"table": table})
    assert (told.chosen_by, told.held_out) == (("early",), ("late",))


def test_folders_in_bids_and_patterns_are_read_out_beside_the_study(folder: Path, tmp_path: Path) -> None:
    for subject in ("01", "02"):
        (tmp_path / f"sub-{subject}" / "anat").mkdir(parents=True)
        image = tmp_path / f"sub-{subject}" / "anat" / f"sub-{subject}_T1w.nii"
        image.write_bytes((folder / "volume.nii").read_bytes())
        (image.parent / f"sub-{subject}_T2w.nii").write_bytes(b"")
    for files in ('["."]', '["sub-*/anat/*_T1w.nii"]', '["sub-01/anat/sub-01_T1w.nii", "sub-02/anat/sub-02_T1w.nii"]'):
        text = STUDY.replace('slices = ["mid+-2"]', f"files = {files}").replace("seeds = [0, 1]", "")
        text = text.replace('"fit.start" = ["random", "neighbour"]', "")  # files have no neighbours
        (tmp_path / "study.toml").write_text(text.replace('file = "volume.nii"', ""))
        spec = read_spec(tmp_path / "study.toml")
        assert [*spec.cases.by_name] == ["sub-01_T1w", "sub-02_T1w"]
        assert spec.by_case is not None
        assert len(load_targets(spec.by_case).all) == 2
    (tmp_path / "study.toml").write_text(text.replace(files, '["none-*.nii"]'))
    with pytest.raises(UserError, match=r"cases.files: none-\*.nii: matches no file"):
        read_spec(tmp_path / "study.toml")


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"cases": {"slices": [3, 3]}}, "must not name a case twice"),
        ({"cases": {"slices": ["mid+-x"]}}, r"cases.slices\[0\]: input should be a valid integer, not 'mid\+-x'"),
        ({"cases": {"slices": ["40:30"]}}, "'40:30' names no slice"),
        ({"cases": {"slices": [3], "table": [{"name": "a"}]}}, "exclude each other"),
        ({"cases": {"table": [{"name": "a"}, {"name": "a"}]}}, "two cases are named 'a'"),
        ({"cases": {"slices": [3], "holdout": ["slice4"]}}, "holdout names no case: 'slice4'; cases are slice3"),
        ({"cases": {"slices": [3], "holdout": ["*"]}}, "leaves no case to choose by"),
        ({"cases": {"slices": [3, 4]}, "space": SPACE | {"target.slice": [3, 4]}}, "is what cases differ in"),
        ({"cases": {"seeds": [1, 2]}, "task": {}}, "need a task other than 'represent'"),
        ({"search": {"sampler": "tpe", "pruner": "median"}}, "over cases is 'wilcoxon'"),
        (
            {"cases": {"slices": [3, 4], "objective": "worst"}, "search": {"sampler": "tpe", "pruner": "wilcoxon"}},
            "cases.objective must be 'mean'",
        ),
        ({"name": "n" * 97}, "a study of cases has up to 94 letters"),
    ],
)
def test_what_cannot_be_is_refused(tables: Callable[..., Any], changed: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        parse_spec(tables(**changed), "study.toml")


def test_a_slice_outside_is_refused_before_anything_is_stored(tables: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no axial slice -1\nValid: `slice` from 0 to 8"):
        ddstudy.run(tables(cases={"slices": ["mid+-5"]}), store=f"sqlite:///{tmp_path}/store.db")
    assert not (tmp_path / "store.db").exists()


@pytest.mark.parametrize("objective", ["mean", "worst", "quantile"])
def test_a_setting_is_what_its_cases_say(tables: Callable[..., Any], tmp_path: Path, objective: str) -> None:
    """And held-out cases are fitted by nobody; what is judged is what numpy and scipy say of the same trials."""
    url, held_out = f"sqlite:///{tmp_path}/store.db", ["slicemid+1", "slicemid+2", "slicemid+3"]
    tree = tables(cases={"slices": ["mid+-3:1"], "holdout": ["slicemid+*"], "objective": objective})
    study = ddstudy.run(tree, store=url)
    assert study.cases is not None
    each = study.cases.trials
    assert (len(study.trials), len(each), set(each[CASE]) & set(held_out)) == (12, 48, set())
    how: Callable[[Any], Any] = {"mean": np.mean, "worst": np.min, "quantile": lambda v: np.quantile(v, 0.25)}[
        objective
    ]
    up = {"mean": np.mean, "worst": np.max, "quantile": lambda v: np.quantile(v, 0.75)}[objective]
    axes = list(study.view.axes)
    for _, row in study.trials.iterrows():
        own = each[(each[axes] == row[axes]).all(axis=1)]
        assert len(own) == 4
        assert row["psnr"] == pytest.approx(how(own["psnr"]), rel=1e-12)
        assert row["nmse"] == pytest.approx(up(own["nmse"]), rel=1e-12)
        assert row["cv_percent"] == pytest.approx(up(own["cv_percent"]), rel=1e-12)
        assert row["seconds"] == pytest.approx(own["seconds"].mean(), rel=1e-12)
    # what is chosen on some cases is judged on the others, once
    for _ in range(2):
        judged = ddstudy.judge("study", store=url).judged
    assert judged.loc[0, axes].tolist() == study.best.loc["psnr", axes].tolist()
    again = ddstudy.open_study("study", store=url)
    assert again.cases is not None
    there = again.cases.trials[again.cases.trials[CASE].isin(held_out)]
    assert (len(there), len(again.trials)) == (3, 12)
    interval = stats.t.interval(0.95, 2, there["psnr"].mean(), stats.sem(there["psnr"]))
    assert judged["held_out"].item() == pytest.approx(there["psnr"].mean())
    assert judged["low"].item() <= interval[0] < interval[1] <= judged["high"].item()
    panels = {panel.kind: panel for panel in read_panels()}
    for kind in ("cases", "cases_by_axis", "cases_transfer", "cases_needed", "held_out"):
        shown = panels[kind].show([again.view])
        assert shown.table is not None or not shown.missing, kind
    files = again.export(tmp_path / "out")
    assert len(pd.read_csv(next(file for file in files if file.name == "out-cases.csv"))) == 51
    with pytest.raises(UserError, match=r"several cases\nValid: study.cases.reconstruct"):
        again.reconstruct(0)
    best = again.cases.trials.iloc[0]
    assert again.cases.reconstruct(best).shape == (14, 16)


def results(url: str) -> dict[str, drivers.Findings]:
    """What the study and its study of cases hold."""
    return {name: drivers.findings(url, name) for name in ("study", "study.cases")}


def run_here(folder: Path, url: str, **options: Any) -> ddstudy.Study:
    return ddstudy.run(folder / "study.toml", store=url, artifacts=folder / "images", **options)


def test_a_killed_study_over_six_cases_goes_on_to_the_same_results(
    folder: Path, store_url: str, tmp_path: Path
) -> None:
    for name in ("study.toml", "volume.nii"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    arguments = ["run", "study.toml", "--store", store_url, "--artifacts", "images"]
    assert len(list(drivers.kill_and_restart(tmp_path, arguments, 3, random.Random(5)))) == 3
    whole = f"sqlite:///{tmp_path}/whole.db"
    run_here(folder, whole)
    found, expected = results(store_url), results(whole)
    for name, count in (("study", 4), ("study.cases", 24)):
        assert (found[name].duplicates, found[name].running, len(found[name].results)) == (0, 0, count)
        assert found[name].results == expected[name].results


def test_ray_and_postgresql_with_a_lost_worker_give_the_numbers_of_here(
    folder: Path, postgres_url: str, cluster: clusters.Cluster, tmp_path: Path
) -> None:
    lost, spec = [], read_spec(folder / "study.toml").by_case
    assert spec is not None
    roots = {fit.id: spec.root(fit).id for fit in budgets_by_fit(spec.search_space)}

    def lose(progress: ddstudy.Progress) -> None:
        if progress.done >= 4 and not any(lost):
            lost.append(clusters.kill_worker(cluster.address, roots[progress.current.partition(" ")[0]]))

    run_here(folder, postgres_url, ray=cluster.address, progress=lose)
    assert any(lost)
    whole = f"sqlite:///{tmp_path}/whole.db"
    run_here(folder, whole, threads=1)
    found, expected = results(postgres_url), results(whole)
    for name in ("study", "study.cases"):
        assert (found[name].duplicates, found[name].results) == (0, expected[name].results)


def test_a_search_ends_settings_that_are_surely_worse(tables: Callable[..., Any], tmp_path: Path) -> None:
    """It needs fewer fits than without; what it ended is worse on every case seen, which scipy's test confirms."""
    url = f"sqlite:///{tmp_path}/store.db"
    tree = tables(
        cases={"slices": ["mid+-4:1"], "holdout": ["slicemid+4"]},
        space={"k": [1, 2, 16], "s": [4], "l": [1, 2], "iterations": [10, 40]},
        search={"sampler": "random", "trials": 12, "pruner": "wilcoxon"},
    )
    study = ddstudy.run(tree, store=url)
    assert study.cases is not None
    assert (len(study.trials), study.cases.trials[CASE].nunique()) == (12, 8)
    ended = study.trials[study.trials["state"] == "PRUNED"]
    assert 0 < len(ended) < 12
    assert len(study.cases.trials) < 12 * 8
    assert ended["reason"].str.match(r"stopped after \d cases by the wilcoxon pruner").all()
    axes, each = list(study.view.axes), study.cases.trials
    best = study.trials[study.trials["number"] < ended["number"].max()].sort_values("psnr").iloc[-1]
    for _, row in ended.iterrows():
        one, other = (each[(each[axes] == of[axes]).all(axis=1)].set_index(CASE)["psnr"] for of in (row, best))
        assert len(one) < 8
        assert stats.wilcoxon(one - other.reindex(one.index), alternative="less").pvalue < 0.1
    assert "slicemid+4" not in set(each[CASE])


def test_a_stopped_search_goes_on_with_the_settings_that_it_began(tables: Callable[..., Any], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    tree = tables(search={"sampler": "tpe", "trials": 8})

    def stop_amid(progress: ddstudy.Progress) -> None:
        if progress.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ddstudy.run(tree, store=url, workers=1, progress=stop_amid)
    begun = ddstudy.open_study("study", store=url)
    assert begun.cases is not None
    fits = set(begun.cases.trials["k"].astype(str) + "," + begun.cases.trials["l"].astype(str))
    assert begun.view.measured == 0
    done = ddstudy.run(tree, store=url, workers=1)
    assert done.cases is not None
    first = done.trials[done.trials["state"] != "FAIL"].iloc[0]
    assert f"{first['k']},{first['l']}" in fits
    assert (done.view.measured, len(done.cases.trials)) == (8, 8 * 4)


def test_results_of_cases_are_reused_when_a_list_grows_or_a_case_is_added(
    tables: Callable[..., Any], tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    ddstudy.run(tables(), store=url)
    longer = ddstudy.run(tables(space=SPACE | {"k": [2, 4, 8, 16]}), store=url)
    assert len(longer.trials) == 16
    with pytest.raises(UserError, match="differs: cases"):
        ddstudy.run(tables(cases={"slices": ["mid+-3:1"]}), store=url)
    more = ddstudy.run(tables(name="more", cases={"slices": ["mid+-3:1"]}), reuse="study", store=url)
    assert more.cases is not None
    assert more.cases.trials["reused_from"].notna().sum() == 12 * 4
    assert (len(more.trials), len(more.cases.trials)) == (12, 12 * 7)
    for other, said in (
        ({"task": {"kind": "denoise", "sigma": 0.2}}, r"task.sigma: 0.1 there, 0.2 here"),
        ({"task": {"kind": "denoise", "sigma": 0.1, "seed": 1}}, "task.seed: 0 there, 1 here"),
        ({"judge": {"against": "held_out"}}, "judge.against: 'truth' there, 'held_out' here"),
        (
            {"cases": {"table": [{"name": "slicemid", "slice": "mid", "sigma": 0.3}]}},
            r"case slicemid: \{'target.slice': 'mid'\} there, \{.*'task.sigma': 0.3\} here",
        ),
    ):
        with pytest.raises(UserError, match=said):
            ddstudy.run(tables(name="other", **other), reuse="study", store=url)


def test_a_damaged_case_is_measured_again_and_a_missing_setting_is_made_from_its_cases(
    tables: Callable[..., Any], tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    before = ddstudy.run(tables(), store=url)
    with Store(url) as store:
        study = next(s for s in store.storage.get_all_studies() if s.study_name == "study")
        trials = store.storage.get_all_trials(study._study_id)
        with store.storage.engine.begin() as connection:
            for table in ("trial_params", "trial_values", "trial_user_attributes", "trials"):
                connection.exec_driver_sql(f"DELETE FROM {table} WHERE trial_id = {trials[3]._trial_id}")
    after = ddstudy.run(tables(), store=url)
    axes = list(before.view.axes)
    one, other = (each.trials.set_index(axes)["psnr"].sort_index() for each in (before, after))
    pd.testing.assert_series_equal(one, other)


@pytest.fixture
def table(tables: Callable[..., Any], tmp_path: Path) -> Callable[[np.ndarray[Any, Any]], ddstudy.Study]:
    """Makes a study with given scores, (settings, cases), in place of what was measured."""
    spec = parse_spec(tables(), "study")
    url = f"sqlite:///{tmp_path}/store.db"
    study = ddstudy.run(spec, store=url)

    def make(scores: np.ndarray[Any, Any]) -> ddstudy.Study:
        assert study.cases is not None
        settings = list(spec.search_space)
        ids = {setting.id: place for place, setting in enumerate(settings)}
        each = study.cases.trials
        rows = [ids[record.setting.fit.at(record.setting.budget).id.replace(f"-{record.setting[CASE]}", "")]
                for record in study.cases.view.records]  # fmt: skip
        columns = [spec.cases.chosen_by.index(case) for case in each[CASE]]
        each["psnr"] = scores[rows, columns]
        return study

    return make


def test_regrets_ranks_and_needed_cases_are_those_of_the_scores(
    table: Callable[[np.ndarray[Any, Any]], ddstudy.Study],
) -> None:
    rng = np.random.default_rng(1)
    scores = rng.normal(25, 1, (12, 4)) + rng.normal(0, 2, (12, 1))
    study = table(scores)
    found = cases.scores(study.view, "psnr")
    assert found is not None
    common = scores.mean(axis=1).argmax()
    shown = cases.by_case(found)
    np.testing.assert_allclose(shown["regret"], scores.max(axis=0) - scores[common])
    for place in range(4):
        rest = np.delete(scores, place, axis=1).mean(axis=1)
        assert shown["correlation"][place] == pytest.approx(stats.spearmanr(scores[:, place], rest).statistic)
    transfer = cases.transfer(study.view, found)
    own = scores.argmax(axis=0)
    expected = [np.mean([scores[own[i], i] - scores[own[j], i] for j in range(4) if j != i]) for i in range(4)]
    assert transfer["regret"].item() == pytest.approx(np.mean(expected))
    needed = cases.needed(study.view, found)
    assert needed["same"].iloc[-1] == needed["settled"].iloc[-1] == 1
    single = np.mean([scores[:, case].argmax() == common for case in range(4)])
    assert needed["same"].iloc[0] == pytest.approx(single, abs=0.08)
    agree = cases.by_axis(found).set_index("axis")
    ks = np.array([setting["k"] for setting in study.settings])
    assert agree.loc["k", "agree"] == pytest.approx(np.mean(ks[own] == ks[common]))


def test_a_study_of_one_case_is_as_it_was(make_spec: Callable[..., StudySpec]) -> None:
    """No key of it changed, so that stored studies are the same."""
    spec = make_spec()
    assert spec.by_case is None
    assert not [key for key in spec.fingerprint() if key.startswith("cases")]
    assert "cases" not in json.loads(spec.stored()) or not json.loads(spec.stored())["cases"]["slices"]


def test_plans_of_cases_count_them(tables: Callable[..., Any]) -> None:
    spec = parse_spec(tables(), "study")
    assert spec.by_case is not None
    image = load_targets(spec.by_case)
    plan = planner.plan(spec.by_case, image, set(), over=spec)
    assert (plan.settings, plan.fits) == (12 * 4, 6 * 4)
    wanted = {on(next(iter(spec.search_space)), case) for case in spec.cases.held_out}
    assert planner.plan(spec.by_case, image, set(), wanted=wanted).settings == 3


def test_the_command_line_judges(folder: Path, tmp_path: Path) -> None:
    study = tmp_path / "one.toml"
    text = STUDY.replace("volume.nii", str(folder / "volume.nii")).replace("[space]", 'holdout = ["*-y1"]\n[space]')
    study.write_text(text)
    assert drivers.here("validate", str(study)) == (0, f"{study}: valid, 4 settings on 3 cases, 6 fits\n")
    store = ["--store", f"sqlite:///{tmp_path}/store.db"]
    for arguments in (["run", str(study), *store], ["judge", "one", *store], ["report", "one", *store]):
        driver = Driver(tmp_path, *arguments)
        assert driver.wait() == 0, driver.output
        if arguments[0] == "judge":
            assert "Judging 1 setting on 3 held-out cases" in driver.output
    page = (tmp_path / "report-one.html").read_text()
    assert "took no part in the choice" in page


def test_cases_that_are_slices_show_what_is_lost_away_from_the_middle(
    tables: Callable[..., Any], tmp_path: Path
) -> None:
    """Fig. 5.1 and its finding, of one study."""
    tree = tables(task={}, cases={"slices": ["mid+-2:1"]})
    study = ddstudy.run(tree, store=f"sqlite:///{tmp_path}/store.db")
    assert study.cases is not None
    (panel,) = [each for each in read_panels() if each.kind == "cases_slices"]
    shown = panel.show([study.view]).table
    assert shown is not None
    each = study.cases.trials.assign(fit=study.cases.trials["k"] * 10 + study.cases.trials["l"])
    of_fits = each.groupby([CASE, "fit"])["psnr"].mean().unstack(CASE)
    change = of_fits.sub(of_fits["slicemid"], axis=0).mean()
    assert shown.frame["distance"].tolist() == [-2, -1, 0, 1, 2]
    np.testing.assert_allclose(shown.frame["change"].astype(float), change[list(tree_names(tree))])
    found = study.findings().loc["slices"]
    foreground = each.groupby([CASE, "fit"])["psnr_foreground"].mean().unstack(CASE)
    away = foreground.drop(columns="slicemid").mean(axis=1)
    assert found["effect"] == pytest.approx((foreground["slicemid"] - away).mean())


def tree_names(tree: dict[str, Any]) -> list[str]:
    """Names of the cases of a study, in their order."""
    return [*parse_spec(tree, "study").cases.by_name]
