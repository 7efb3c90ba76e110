"""Studies over options that the thesis did not search: any option of a study file, with no code that names it."""

import json
import random
from pathlib import Path

import drivers
import numpy as np
import pandas as pd
import pytest
from drivers import here

from ddstudy.images.volumes import load_target
from ddstudy.spec.axes import Setting
from ddstudy.spec.files import read_spec
from ddstudy.store.database import Store
from ddstudy.study.evaluate import Job, Result, evaluate
from ddstudy.tasks.cases import Case

STUDY = """
{objectives}

[target]
file = "volume.npy"

[space]
k = [2, 4]
s = [4]
l = [2]
iterations = [20, 40]
noise = ["uniform", "simplex"]
"noise.feature_size" = [1, 2.5]
fit.learning_rate = [0.003, 0.01]
fit.keep = ["last", "best"]
target.slice = [2, 3]

[fit]
members = 2
check_every = 20
{engine}

[stability]
min_psnr = 0
cv_percent = 50
max_vif = 100
"""
GRID = 2 * 2 * (1 + 2) * 2 * 2 * 2
SEARCHES = {
    "grid": ("", []),
    "tpe": ('search = {sampler = "tpe"}', []),
    "gp": ('search = {sampler = "gp"}', []),
    "pareto": ('objectives = {psnr = "maximize", parameters = "minimize"}\nsearch = {sampler = "nsga2"}', []),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    x, y, z = np.mgrid[0:16, 0:16, 0:6]
    np.save(tmp_path / "volume.npy", np.sin(x / 3 + z) * np.cos(y / 4 + z / 2))
    return tmp_path


def write_study(folder: Path, search: str, engine: str = "") -> list[str]:
    objectives, options = SEARCHES[search]
    (folder / "study.toml").write_text(STUDY.format(objectives=objectives, engine=engine))
    return ["run", "study.toml", *options]


def setting_of(row: "pd.Series[object]", axes: tuple[str, ...]) -> Setting:
    return Setting({axis: row[axis] for axis in axes if not pd.isna(row[axis])})


def oracle(folder: Path, setting: Setting) -> float:
    """PSNR of a setting by a job that is put together by hand."""
    spec = read_spec(folder / "study.toml")
    options = spec.fit.model_copy(
        update={"learning_rate": setting["fit.learning_rate"], "keep": setting["fit.keep"], "device": "cpu"}
    )
    noise = spec.noise.model_copy(update={"feature_size": setting.get("noise.feature_size", 1.0)})
    target = load_target(spec.target.model_copy(update={"slice": setting["target.slice"]}))
    job = Job(setting.fit, (setting["iterations"],), Case.of(target), options, noise)
    (result,) = [event for event in evaluate(job, device="cpu", threads=1) if isinstance(event, Result)]
    return float(result.values["psnr"])


@pytest.mark.parametrize("search", SEARCHES)
def test_a_study_over_any_options_runs_and_is_shown(folder: Path, search: str) -> None:
    url = f"sqlite:///{folder}/store.db"
    trials = 30
    command = [*write_study(folder, search), "--trials", str(trials), "--store", url]
    code, printed = here(*command)
    assert code == 0, printed
    with Store(url, read_only=True) as store:
        view = store.view("study")
    assert view.axes[-4:] == ("target.slice", "noise.feature_size", "fit.learning_rate", "fit.keep")
    assert not view.left_out
    settings = [setting_of(row, view.axes) for _, row in view.trials.iterrows()]
    assert len(set(settings)) == len(settings) >= trials
    assert all(setting in view.spec.search_space for setting in settings)
    assert [setting.fit.id for setting in settings] == list(view.trials["fit_id"])
    for at in (0, len(settings) // 2, -1):
        assert view.trials["psnr"].iloc[at] == pytest.approx(oracle(folder, settings[at]), rel=1e-12)
    code, printed = here(*command)
    assert code == 0
    assert "Nothing left to do" in printed

    if search in ("grid", "pareto"):  # others' trials are shown as those of a grid
        for shown in (
            *(("report", "study", "--out", "report.html"), ("export", "study", "--out", "out"), ("status",)),
            *(("findings", "study"), ("prune-audit", "study")),
        ):
            code, printed = here(*shown, "--store", url)
            assert code == 0, printed
        page, table = (folder / "report.html").read_text(), pd.read_csv(folder / "out.csv")
        for axis in view.axes:
            assert axis in table
            assert axis in page


def test_a_killed_driver_of_a_study_over_any_options_loses_nothing(folder: Path) -> None:
    command = [*write_study(folder, "grid", 'engine = "reference"'), "--trials", "16"]
    code, printed = here(*command, "--store", f"sqlite:///{folder}/whole.db")
    assert code == 0, printed
    truth = drivers.findings(f"sqlite:///{folder}/whole.db", "study").results
    url = f"sqlite:///{folder}/killed.db"
    assert list(drivers.kill_and_restart(folder, [*command, "--store", url], 2, random.Random(5)))
    found = drivers.findings(url, "study")
    assert (found.duplicates, found.running) == (0, 0)
    assert found.results.items() >= truth.items()


def test_lists_of_any_options_grow(folder: Path) -> None:
    """A slice more, a learning rate between two others; the results of the shorter lists are kept."""
    url = f"sqlite:///{folder}/store.db"
    command = [*write_study(folder, "grid"), "--store", url]
    code, printed = here(*command, "--trials", "8")
    assert code == 0, printed
    before = drivers.findings(url, "study").results
    text = (folder / "study.toml").read_text()
    (folder / "study.toml").write_text(
        text.replace("[0.003, 0.01]", "[0.003, 0.005, 0.01]").replace("[2, 3]", "[1, 2, 3]")
    )
    code, printed = here(*command, "--trials", "16")
    assert code == 0, printed
    after = drivers.findings(url, "study").results
    assert before.items() <= after.items()
    with Store(url, read_only=True) as store:
        assert json.loads(store.view("study").spec.model_dump_json())["space"]["target.slice"] == [1, 2, 3]
    (folder / "study.toml").write_text(text.replace('["last", "best"]', '["best", "last"]'))
    code, printed = here(*command)
    assert code == 2
    assert "lists may grow, those of words at their end" in printed.replace("\n", " ")


def test_results_of_a_study_with_fewer_axes_are_reused(folder: Path) -> None:
    """The settings at the defaults of the new axes are the same; others are measured."""
    url = f"sqlite:///{folder}/store.db"
    write_study(folder, "grid")
    text = (folder / "study.toml").read_text()
    few = text.replace('fit.keep = ["last", "best"]\n', "").replace("fit.learning_rate = [0.003, 0.01]\n", "")
    (folder / "few.toml").write_text(few)
    code, printed = here("run", "few.toml", "--store", url)
    assert code == 0, printed
    code, printed = here("run", "study.toml", "--reuse", "few", "--store", url)
    assert code == 0, printed
    with Store(url, read_only=True) as store:
        few_view, view = store.view("few"), store.view("study")
    assert len(few_view.trials) == GRID / 4
    assert len(view.trials) == GRID
    reused = view.trials[view.trials["reused_from"].notna()]
    assert len(reused) == GRID / 4
    assert (reused["fit.learning_rate"] == 0.01).all()
    assert (reused["fit.keep"] == "best").all()
    assert set(reused["psnr"]) == set(few_view.trials["psnr"])
