"""Inverse tasks from the study file to the store: every task in a grid, a search, on Ray, on PostgreSQL, killed."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import clusters
import drivers
import nibabel
import numpy as np
import pandas as pd
import pytest
from drivers import Driver
from points import fit_of

import ddstudy
from ddstudy import dashboard
from ddstudy.errors import UserError
from ddstudy.images.metrics import psnr
from ddstudy.images.targets import load_targets
from ddstudy.images.volumes import Target, load_target
from ddstudy.spec.files import parse_spec, read_spec
from ddstudy.spec.options import TargetSpec
from ddstudy.spec.schema import StudySpec
from ddstudy.store.database import Store
from ddstudy.study import planner
from ddstudy.study.evaluate import Check, Job, Result, evaluate
from ddstudy.tasks.cases import case_of

MakeSpec = Callable[..., StudySpec]
FIT = fit_of(8, 4, 2, "uniform", "1x1")
TASKS: dict[str, dict[str, Any]] = {
    "denoise": {"kind": "denoise", "sigma": 0.1},
    "inpaint": {"kind": "inpaint", "share": 0.5},
    "super_resolve": {"kind": "super_resolve", "factor": 2},
    "mri": {"kind": "mri", "acceleration": 2.0, "coils": 2, "sigma": 0.01, "consistency": "hard"},
}


@pytest.fixture
def target() -> Target:
    y, x = np.mgrid[0:24, 0:32] / 32
    image = (0.5 + 0.4 * np.sin(9 * x) * np.cos(7 * y)).astype(np.float32)[None]
    return Target(image, "waves", None)


def job_of(spec: StudySpec, target: Target, tiling: Any = "1x1", budgets: tuple[int, ...] = (20, 40)) -> Job:
    return planner.job(spec, target, fit_of(8, 4, 2, "uniform", tiling), budgets)


def run(job: Job) -> tuple[list[Check], list[Result]]:
    events = list(evaluate(job, device="cpu", threads=2))
    return [e for e in events if isinstance(e, Check)], [e for e in events if isinstance(e, Result)]


@pytest.mark.parametrize("engine", ["fused", "reference"])
@pytest.mark.parametrize("task", TASKS)
def test_a_fit_improves_on_what_is_measured_and_solvers_agree(
    make_spec: MakeSpec, target: Target, task: str, engine: str
) -> None:
    table = {key: value for key, value in TASKS[task].items() if key != "consistency"}  # which leaves little to fit
    spec = make_spec(task=table, fit={"members": 2, "check_every": 20, "engine": engine, "keep": "last"})
    checks, results = run(job_of(spec, target, "2x2" if task == "mri" else "1x1", (20, 200)))
    values = results[-1].values
    assert values["psnr"] == psnr(results[-1].output, target.image)
    assert values["judge"] == pytest.approx(values["psnr"])
    assert values["psnr"] > results[0].values["psnr"]
    assert list(checks[-1].psnr_members) == [values[f"psnr_member_{m}"] for m in range(2)]
    assert checks[-1].watched["loss"] < checks[0].watched["loss"]
    assert 0 < values["spread_percent"] < 50
    assert values["chosen_iteration"] == 200
    assert values["oracle_gap"] == pytest.approx(values["oracle_psnr"] - values["psnr"])
    assert values["oracle_gap"] >= 0
    assert results[-1].output.shape == target.image.shape
    if engine == "reference":
        fused = make_spec(task=table, fit={"members": 2, "check_every": 20, "engine": "fused", "keep": "last"})
        _, (early, _) = run(job_of(fused, target, "2x2" if task == "mri" else "1x1", (20, 200)))
        assert early.values["psnr"] == pytest.approx(results[0].values["psnr"], abs=0.05)


@pytest.mark.parametrize("task", TASKS)
def test_all_settings_see_one_measurement_which_seed_and_task_decide(
    make_spec: MakeSpec, target: Target, task: str
) -> None:
    spec = make_spec(task=TASKS[task])
    case = case_of(spec, target, FIT)
    assert case_of(spec, target, fit_of(2, 2, 1, "blur3", "2x2")) is case
    assert case_of(make_spec(task=TASKS[task], fit={"seed": 5}), target, FIT) is case
    again = case_of(spec, replace(target), FIT).measurement
    np.testing.assert_array_equal(again.samples, case.measurement.samples)
    other = case_of(make_spec(task={**TASKS[task], "seed": 1}), target, FIT).measurement
    assert task == "super_resolve" or not np.array_equal(other.samples, again.samples, equal_nan=True)


@pytest.mark.parametrize("against", ["held_out", "repeat"])
@pytest.mark.parametrize("task", TASKS)
def test_no_solver_sees_truth_repeat_or_held_out_samples(
    make_spec: MakeSpec, target: Target, task: str, against: str
) -> None:
    """With others in their place, a fit is the same to the bit; only its scores differ."""
    if against == "repeat" and task != "denoise":
        pytest.skip("a repeat is an image")
    judge = {"against": against}
    objectives = {"objectives": {"judge": "maximize"}}
    spec = make_spec(task=TASKS[task], judge=judge, **objectives)
    job = job_of(spec, target)
    assert job.case.judge.truth is not None
    measurement = job.case.measurement
    other = replace(job.case, judge=replace(job.case.judge, truth=1 - target.image, repeat=1 - target.image))
    if measurement.held_out is not None:
        assert not np.any(np.isfinite(measurement.samples) & np.isfinite(measurement.held_out))
        other = replace(other, measurement=replace(measurement, held_out=measurement.held_out + 1))
    (_, ours), (_, theirs) = (run(one)[1] for one in (job, replace(job, case=other)))
    np.testing.assert_array_equal(ours.output, theirs.output)
    assert ours.values["judge"] != theirs.values["judge"]
    assert ours.curve["loss"] == theirs.curve["loss"]


def test_unknown_truth_is_not_measured(make_spec: MakeSpec, target: Target) -> None:
    spec = make_spec(
        task={"kind": "denoise", "source": "file"},
        judge={"against": "repeat", "volume": 1},
        objectives={"judge": "maximize"},
    )
    job = job_of(spec, replace(target, repeat=target.image[:, ::-1].copy()))
    np.testing.assert_array_equal(job.case.measurement.samples, target.image)
    _, (_, result) = run(job)
    assert not {"psnr", "ssim", "oracle_gap"} & result.values.keys()
    assert result.values["judge"] == pytest.approx(psnr(result.output, target.image[:, ::-1]))


@pytest.mark.parametrize("stop", ["wmv", "emv", "held_out", "discrepancy"])
def test_a_rule_chooses_among_the_checks_whatever_the_budgets(make_spec: MakeSpec, target: Target, stop: str) -> None:
    fit = {"members": 2, "check_every": 20, "stop": stop, "patience": 100, "keep": "last"}
    spec = make_spec(task={"kind": "denoise", "sigma": 0.15}, fit=fit)
    _, results = run(job_of(spec, target, budgets=(130, 800)))
    _, (alone,) = run(job_of(spec, target, budgets=(800,)))
    short, long = results[0], results[-1]
    assert long.values["psnr"] == alone.values["psnr"]
    # samples that are held out for the rule are held out for the judge, too
    judged = {"judge": {"against": "held_out"}, "objectives": {"judge": "maximize"}} if stop == "held_out" else {}
    plain = make_spec(task={"kind": "denoise", "sigma": 0.15}, fit=fit | {"stop": "budget"}, **judged)
    chosen = int(long.values["chosen_iteration"])
    assert chosen % 20 == 0
    assert int(short.values["chosen_iteration"]) <= 130
    assert run(job_of(spec, target, budgets=(15,)))[1][0].values["chosen_iteration"] == 15  # nothing is judged yet
    _, at_chosen = run(job_of(plain, target, budgets=(chosen,)))
    np.testing.assert_array_equal(at_chosen[0].output, long.output)
    assert ("ended_by" in long.values) == (long.values["iterations_done"] < 800)
    assert not long.stopped


def test_unstable_without_truth_is_by_spread(make_spec: MakeSpec, target: Target) -> None:
    judge = {"against": "held_out"}
    stability = {"spread_percent": 0.01, "warmup": 0, "patience": 2, "window": 1}
    spec = make_spec(
        task=TASKS["inpaint"], judge=judge, stability=stability, fit={"members": 3, "check_every": 10},
        objectives={"judge": "maximize"},
    )  # fmt: skip
    _, results = run(job_of(spec, target))
    assert results[0].stopped == (results[0].values["iterations_done"] < 20)
    assert results[-1].stopped
    assert results[-1].values["iterations_done"] == 20


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ({"task": {"kind": "denoise"}}, "task.sigma must be above 0"),
        ({"judge": {"against": "held_out"}}, "judge.against = 'held_out' needs a task"),
        ({"task": {"kind": "denoise", "source": "file"}}, "judge.against must be repeat or held_out"),
        ({"task": {"kind": "mri"}, "judge": {"against": "repeat"}}, "is for task.kind = 'denoise'"),
        ({"task": {"kind": "denoise", "source": "file"}, "judge": {"against": "repeat"}}, "needs judge.volume or"),
        ({"task": {"kind": "denoise", "sigma": 0.1}, "judge": {"against": "repeat", "volume": 1}}, "with new noise"),
        ({"fit": {"stop": "emv"}}, "fit.stop needs a task"),
        ({"task": {"kind": "inpaint"}, "fit": {"stop": "wmv"}}, "fit.check_every must be <= 50"),
        ({"task": {"kind": "inpaint"}, "fit": {"stop": "discrepancy"}}, "needs task.sigma"),
        ({"objectives": {"judge": "maximize"}}, "objectives.judge needs a task"),
        (
            {
                "task": {"kind": "denoise", "source": "file"},
                "judge": {"against": "held_out"},
                "objectives": {"psnr": "maximize"},
            },
            "objectives.psnr needs the truth",
        ),
        ({"task": {"kind": "mri", "mask": "mask.npy"}}, "task.mask is for task.kind = 'inpaint' only"),
        ({"task": {"kind": "mri"}, "space": {"task.factor": [2]}}, "is for task.kind = 'super_resolve' only"),
    ],
)
def test_what_cannot_be_is_refused(tables: dict[str, Any], expected: str) -> None:
    space = {"k": [4], "s": [4], "l": [2], "iterations": [10]} | tables.pop("space", {})
    with pytest.raises(UserError) as caught:
        parse_spec({"name": "x", "space": space, **tables}, "x.toml")
    assert expected in str(caught.value)


def test_a_super_resolved_file_lies_where_the_file_lay(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).random((16, 12, 3), dtype=np.float32)
    affine = np.array([[-2.0, 0.1, 0, 5], [0.1, 2, 0, -7], [0, 0, 3, 1], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(volume, affine), tmp_path / "low.nii")
    task = {"kind": "super_resolve", "factor": 2, "source": "file"}
    made = ddstudy.fit(tmp_path / "low.nii", task=task, k=4, s=4, l=2, iterations=10, members=1)
    paths = {path.name: path for path in made.save(tmp_path / "high")}
    written, target = nibabel.load(paths["high.nii.gz"]), load_target(TargetSpec(file=str(tmp_path / "low.nii")))
    assert target.affine is not None
    rows, columns = target.image.shape[1:]
    assert written.shape == (2 * rows, 2 * columns, 1)
    for row, column in [(-0.5, -0.5), (rows - 0.5, columns - 0.5)]:  # the corners of the slice
        high = [2 * (row + 0.5) - 0.5, 2 * (column + 0.5) - 0.5, 0, 1]
        np.testing.assert_allclose(written.affine @ high, target.affine @ [row, column, 0, 1], atol=1e-4)


def test_task_and_rule_as_axes_change_no_identity_at_their_defaults() -> None:
    lists = {"k": [4], "s": [4], "l": [2], "iterations": [10]}
    (old,) = parse_spec({"name": "x", "space": lists}, "x").search_space
    kinds = lists | {"task.kind": ["represent", "inpaint", "mri"], "task.share": [0.5, 0.2], "task.coils": [1, 4]}
    settings = list(parse_spec({"name": "x", "space": kinds}, "x").search_space)
    ids = [setting.id.removeprefix("k4-s4-l2-uniform-1x1").removesuffix("-i10") for setting in settings]
    assert sorted(ids) == ["", "-inpaint", "-inpaint-share0.2", "-mri", "-mri-coils4"]
    assert settings[ids.index("")].fit.digest == old.fit.digest
    rules = lists | {"fit.stop": ["budget", "emv"], "fit.patience": [1000, 200]}
    space = parse_spec({"name": "x", "task": {"kind": "inpaint"}, "space": rules}, "x").search_space
    ids = [setting.id.removeprefix("k4-s4-l2-uniform-1x1").removesuffix("-i10") for setting in space]
    assert sorted(ids) == ["", "-stop-emv", "-stop-emv-patience200"]


STUDY = """
[target]
file = "picture.npy"

[task]
{task}

[space]
k = [4, 8]
s = [4]
l = [1, 2]
iterations = [20, 40]
{axis}

[fit]
engine = "reference"
members = 2
check_every = 20

[stability]
min_psnr = 0
cv_percent = 90
spread_percent = 500
"""
AXES = {
    "denoise": "task.sigma = [0.05, 0.1]",
    "inpaint": "task.share = [0.3, 0.6]",
    "super_resolve": "task.factor = [2, 4]",
    "mri": "task.acceleration = [2, 4]",
}


def write_study(folder: Path, task: str) -> None:
    y, x = np.mgrid[0:16, 0:16]
    np.save(folder / "picture.npy", np.sin(x / 3) * np.cos(y / 4))
    axis = AXES[task].split(" ")[0].removeprefix("task.")
    table = "\n".join(f"{key} = {json.dumps(value)}" for key, value in TASKS[task].items() if key != axis)
    (folder / "study.toml").write_text(STUDY.format(task=table, axis=AXES[task]))


def write_study_of_all(folder: Path) -> None:
    """Every task in one study."""
    write_study(folder, "mri")
    text = (folder / "study.toml").read_text().replace("k = [4, 8]", "k = [4]").replace("l = [1, 2]", "l = [1]")
    kinds = f"task.kind = {json.dumps([*TASKS])}\ntask.coils = [2]\ntask.consistency = ['hard']"
    text = text.replace(AXES["mri"], "\n".join([kinds, *AXES.values()]))
    (folder / "study.toml").write_text(re.sub(r"\[task\].*?\n\n", "", text, flags=re.DOTALL))


def test_a_killed_study_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    write_study_of_all(tmp_path)
    url, whole = f"sqlite:///{tmp_path}/store.db", f"sqlite:///{tmp_path}/whole.db"
    assert list(drivers.kill_and_restart(tmp_path, ["run", "study.toml", "--store", url], 3, random.Random(3)))
    run_once = Driver(tmp_path, "run", "study.toml", "--store", whole)
    assert run_once.wait() == 0, run_once.output
    found, expected = (drivers.findings(each, "study") for each in (url, whole))
    assert (found.duplicates, found.running, len(found.results)) == (0, 0, 28)
    assert found.results == expected.results
    with Store(url, read_only=True) as store:
        view = store.view("study")
    assert not view.left_out
    spec = read_spec(tmp_path / "study.toml")
    image = load_targets(spec)
    settings = {record.number: record.setting for record in view.records}
    assert {setting["task.kind"] for setting in settings.values()} == TASKS.keys()
    for number, setting in settings.items():
        images = view.images[number]
        assert {"target.png", "measurement.png", "measurement.npz", "output.png", "error.png"} <= images.keys()
        stored = np.load(images["measurement.npz"])
        np.testing.assert_array_equal(stored["samples"], case_of(spec, image, setting).measurement.samples)


def numbers(study: ddstudy.Study) -> pd.DataFrame:
    """What was measured of each setting, but for time and place; axes that are not a task's have no value."""
    measured = ["psnr", "judge", "judge_1dd", "spread_percent", "cv_percent", "ssim", "chosen_iteration"]
    axes = [*study.view.axes]
    named = study.trials[[*axes, *measured]]
    return named.assign(**named[axes].astype(str)).set_index(axes)[measured].sort_index()


def test_ray_and_postgresql_give_the_numbers_of_here_and_lists_grow(
    tmp_path: Path, postgres_url: str, cluster: clusters.Cluster
) -> None:
    write_study_of_all(tmp_path)
    path, images = tmp_path / "study.toml", tmp_path / "images"
    here = ddstudy.run(path, store=f"sqlite:///{tmp_path}/store.db", workers=1, threads=1)
    there = ddstudy.run(path, store=postgres_url, artifacts=images, ray=cluster.address)
    assert set(here.trials["task.kind"]) == TASKS.keys()
    pd.testing.assert_frame_equal(numbers(here), numbers(there), check_exact=True)
    path.write_text(path.read_text().replace("k = [4]", "k = [2, 4]"))
    more = ddstudy.run(path, name="more", reuse="study", store=postgres_url, artifacts=images)
    reused = more.trials["reused_from"].notna()
    assert (len(more.trials), int(reused.sum())) == (len(there.trials) * 2, len(there.trials))
    pd.testing.assert_frame_equal(numbers(more).loc[numbers(there).index], numbers(there), check_exact=True)


@pytest.mark.parametrize("task", ["denoise", "mri"])  # of an image, and of k-space
def test_a_search_prunes_by_the_judge_and_the_dashboard_shows_it(tmp_path: Path, task: str) -> None:
    write_study(tmp_path, task)
    text = (
        (tmp_path / "study.toml").read_text().replace("[20, 40]", "[40]").replace("check_every = 20", "check_every = 5")
    )
    search = '[search]\nsampler = "tpe"\npruner = "median"\n\n[judge]\nagainst = "held_out"\n'
    (tmp_path / "study.toml").write_text(f"{search}{text}")
    store = f"sqlite:///{tmp_path}/store.db"
    study = ddstudy.run(tmp_path / "study.toml", store=store, trials=8, workers=1, threads=1)
    assert study.spec.objectives == {"judge": "maximize"}
    trials = study.trials
    assert len(trials) == 8
    whole = trials[trials["iterations_done"] == 40]
    assert whole["judge"].notna().all()
    assert trials.loc[trials["reason"].str.contains("pruner", na=False), "judge_1dd"].notna().all()
    assert (study.best.loc["judge", "judge"] == whole.loc[whole["stable"].eq(True), "judge"]).any()
    with closing(Store(store, read_only=True)) as opened:
        shown = dashboard.app(opened.storage, opened.artifacts)
        environ: dict[str, Any] = {}
        setup_testing_defaults(environ)
        environ["PATH_INFO"] = "/api/studies/1"
        told: list[str] = []
        body = b"".join(shown(environ, lambda status, *_: told.append(status) or (lambda _: None)))
    assert told[0].startswith("200")
    assert b"judge" in body
