"""Running studies and fitting images from Python: what the command line does, stopped from everywhere, and in words."""

import ast
import json
import os
import re
import subprocess
import sys
import threading
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from hatchling.builders.wheel import WheelBuilder

import ddstudy
from ddstudy import cli
from ddstudy.images.metrics import psnr
from ddstudy.images.volumes import png_bytes
from ddstudy.spec.schema import StudySpec
from ddstudy.store.database import Store

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "python.md").read_text()
MakeSpec = Callable[..., StudySpec]
Command = Callable[..., str]
SPACE = {"k": [2], "s": [4], "l": [2], "iterations": [5]}
ALONE = ["fit_id", "iterations", "psnr", "ssim", "cv_percent", "psnr_1dd", "state"]  # does not depend on time or place


@pytest.fixture(autouse=True)
def _no_store_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DDSTUDY_STORE", raising=False)
    monkeypatch.delenv("DDSTUDY_ARTIFACTS", raising=False)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command prints, which must succeed."""

    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["ddstudy", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        return capsys.readouterr().out

    return call


def tree_of(spec: StudySpec) -> dict[str, Any]:
    return spec.model_dump(exclude_none=True)


def write_study(spec: StudySpec) -> None:
    """`tiny.toml`, as a person would write it."""
    tree = tree_of(spec)
    lines = ["images = true"]
    for table in ("target", "space", "fit", "stability"):
        lines += [f"[{table}]", *(f"{key} = {value!r}" for key, value in tree[table].items() if value is not None)]
    text = "\n".join(lines).replace("True", "true").replace("False", "false").replace("(", "[").replace(")", "]")
    Path("tiny.toml").write_text(text)


def test_every_way_to_say_a_study_gives_what_the_command_gives(make_spec: MakeSpec, command: Command) -> None:
    spec = make_spec()
    write_study(spec)
    command("run", "tiny.toml", "--store", "sqlite:///command.db")
    wanted = ddstudy.open_study("tiny.toml", "sqlite:///command.db").trials[ALONE]
    assert len(wanted) == 4
    tree = tree_of(spec)
    tree["space"] |= {"k": np.arange(2, 5, 2), "iterations": range(5, 11, 5), "s": (4,)}
    tree["target"]["file"] = Path(os.path.relpath(tree["target"]["file"]))
    for index, asked in enumerate(("tiny.toml", Path("tiny.toml"), tree, spec)):
        study = ddstudy.run(asked, store=f"sqlite:///{index}.db")
        pd.testing.assert_frame_equal(study.trials[ALONE], wanted)
        assert study.spec.fingerprint() == spec.fingerprint()
        assert (study.name, study.troubles, len(study.failed)) == ("tiny", [], 0)
        assert [setting.id for setting in study.settings] == [s.id for s in spec.search_space]


def test_the_same_call_goes_on_and_the_options_are_the_commands(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec, told, seen = make_spec(), list[str](), list[ddstudy.Progress]()
    some = ddstudy.run(spec, trials=2, workers=1, threads=1, progress=seen.append, tell=told.append)
    assert (len(some.trials), seen[-1].done) == (2, 2)
    assert seen[-1].best is not None
    assert told[0] == "Study tiny: grid, psnr (maximize)"
    assert "2 trials, 1 fit of 2 members" in told
    rest = ddstudy.run(spec)
    assert len(rest.trials) == 4
    seen.clear()
    assert len(ddstudy.run(spec, progress=seen.append).trials) == 4
    assert seen == []
    np.save("other.npy", np.random.default_rng(0).random((20, 20)))
    other = ddstudy.run(spec, mode="tpe", target="other.npy", trials=4, engine="reference", artifacts=tmp_path / "a")
    assert (other.name, other.spec.search.sampler, other.facts["target"]) == ("tiny-tpe", "tpe", "other.npy")
    assert set(other.trials["engine"]) == {"reference float32"}
    assert all(path.parent == tmp_path / "a" for images in other.view.images.values() for path in images.values())
    more = ddstudy.run(make_spec(space={"k": [2, 3, 4]}), name="more", reuse="tiny", tell=told.append)
    assert "4 results of tiny imported" in told
    assert len(more.trials) == 6
    assert [study.name for study in ddstudy.studies()] == ["more", "tiny-tpe", "tiny"]


def test_a_dry_run_plans_forecasts_and_writes_nothing(make_spec: MakeSpec, tmp_path: Path) -> None:
    before, told = set(tmp_path.iterdir()), list[str]()
    plan = ddstudy.dry_run(make_spec(), tell=told.append)
    assert (plan.settings, plan.fits, plan.done) == (4, 2, 0)
    assert plan.seconds is not None
    assert plan.seconds > 0
    assert told[-1].startswith("Forecast: about ")
    assert set(tmp_path.iterdir()) == before
    ddstudy.run(make_spec())
    plan = ddstudy.dry_run(make_spec(), name="tiny")
    assert (plan.done, plan.seconds) == (4, 0.0)


def long(make_spec: MakeSpec) -> StudySpec:
    """Two results come at once, and then none for hours."""
    return make_spec(space={"iterations": [2, 1_000_000]}, fit={"engine": "reference", "check_every": 20})


def running(url: str) -> int:
    with Store(url, read_only=True) as store:
        (name,) = store.names()
        states = [t.state.name for t in store.storage.get_all_trials(store.storage.get_study_id_from_name(name))]
        assert store.at_work(name) == []  # no lease is left
    return states.count("RUNNING")


@pytest.mark.parametrize("mode", ["grid", "tpe"])
@pytest.mark.parametrize("workers", [1, 2])
def test_an_event_set_by_another_thread_stops_a_run(make_spec: MakeSpec, mode: Any, workers: int) -> None:
    stop, first = threading.Event(), threading.Event()

    def watch() -> None:
        assert first.wait(100)
        stop.set()

    def progress(at: ddstudy.Progress) -> None:
        if "at " in at.current and at.done:
            first.set()  # a result is there, and the fit goes on

    watcher = threading.Thread(target=watch)
    watcher.start()
    options = {"mode": mode, "trials": 4, "name": "long", "workers": workers, "threads": 1}
    study = ddstudy.run(long(make_spec), **options, progress=progress, stop=stop)
    watcher.join()
    assert 1 <= len(study.trials.query("state != 'FAIL'")) <= 2
    assert set(study.trials.query("state == 'FAIL'")["reason"]) <= {"its run was stopped"}
    assert running(ddstudy.DEFAULT_STORE) == 0
    before = study.trials.query("state != 'FAIL'")[ALONE]
    again = ddstudy.run(long(make_spec), **options, stop=stop)  # which is set already
    pd.testing.assert_frame_equal(again.trials.query("state != 'FAIL'")[ALONE], before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
@pytest.mark.parametrize("mode", ["grid", "tpe"])
def test_what_progress_raises_ends_a_run_and_nothing_is_lost(
    make_spec: MakeSpec, error: type[BaseException], mode: Any
) -> None:
    def progress(at: ddstudy.Progress) -> None:
        if at.done:
            raise error

    with pytest.raises(error):
        ddstudy.run(make_spec(), mode=mode, trials=4, name="ended", progress=progress)
    assert running(ddstudy.DEFAULT_STORE) == 0
    some = ddstudy.open_study().trials.query("state != 'FAIL'")[ALONE]
    assert len(some) == 1
    whole = ddstudy.run(make_spec(), mode=mode, trials=4, name="ended").trials.query("state != 'FAIL'")
    pd.testing.assert_frame_equal(whole[ALONE].iloc[:1], some)
    assert len(whole) == 4


@pytest.mark.parametrize(
    ("study", "options", "said"),
    [
        ("none.toml", {}, "none.toml: no such study file"),
        ({"space": SPACE}, {}, "study: name: missing"),
        ({"name": "a", "space": SPACE, "spaces": {}}, {}, "study: spaces: unknown key\nDid you mean 'space'?"),
        (None, {"mode": "bayes"}, "mode: cannot be 'bayes'\nValid: 'grid', 'tpe', 'pareto'."),
        (None, {"target": "none.nii"}, "none.nii: no such file"),
        (None, {"engine": "magic"}, "ddstudy run: fit.engine: "),
        (None, {"trials": 0}, "ddstudy run: search.trials: "),
        (None, {"workers": 0}, "--workers: cannot be 0\nValid: a whole number from 1 to 1024."),
        (None, {"threads": 2.5}, "--threads: cannot be 2.5"),
        (None, {"mode": "pareto", "workers": 2}, "cannot be timed"),
        (None, {"ray": True, "workers": 2}, "--workers and --threads are for this machine"),
        (None, {"store": "mysql://me:hidden@h/db"}, "the store is a mysql URL"),
        (None, {"reuse": "nothing"}, "no studies yet"),
    ],
)
def test_mistakes_are_told_as_on_the_command_line(study: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ddstudy.UserError, match=re.escape(said)) as told:
        ddstudy.run(study, **options)
    assert "hidden" not in str(told.value)
    assert len(str(told.value).splitlines()) <= 2


def test_a_url_in_the_place_of_a_name_is_refused_and_not_repeated() -> None:
    with pytest.raises(ddstudy.UserError, match="a URL is no name of a study") as told:
        ddstudy.open_study("postgresql://me:hidden@h/db")
    assert "hidden" not in str(told.value)


def test_settings_that_fail_are_a_warning(make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    ddstudy.run(make_spec(), trials=1)
    with monkeypatch.context() as patch:
        patch.setattr("ddstudy.study.evaluate.problem", lambda *_, **__: 1 / 0)
        patch.setattr("ddstudy.study.forecasting.calibrate", lambda *_: ddstudy.api.runner.Forecast())
        with pytest.warns(ddstudy.StudyWarning, match="3 settings failed"):
            study = ddstudy.run(make_spec())
    assert study.troubles[0].startswith("3 settings failed")
    assert len(study.failed) == 3
    assert len(ddstudy.run(make_spec()).failed) == 0


# --- the image of a setting


def test_reconstruct_gives_the_very_image_that_a_trial_measured(make_spec: MakeSpec) -> None:
    study = ddstudy.run(make_spec(stability={"prune": True, "patience": 1, "warmup": 0, "cv_percent": 0.5}))
    image = study.target()
    assert image.shape == (27, 22)
    assert (study.trials["iterations_done"] < study.trials["iterations"]).any()  # stopped early, where it stood
    for _, trial in study.trials.iterrows():
        output = study.reconstruct(trial["number"], device="cpu")
        assert output.dtype == np.float32
        assert psnr(output[None], image[None]) == trial["psnr"]
        assert png_bytes(output[None]) == study.view.images[trial["number"]]["output.png"].read_bytes()
        np.testing.assert_array_equal(study.reconstruct(trial, threads=1), output)
        given = {"k": np.int64(trial["k"]), "iterations": int(trial["iterations"])}  # the rest has one value each
        np.testing.assert_array_equal(study.reconstruct(given), output)
        (setting,) = [each for each in study.settings if each.id == f"{trial['fit_id']}-i{trial['iterations']}"]
        np.testing.assert_array_equal(study.reconstruct(setting), output)
        assert not np.array_equal(study.reconstruct({"k": 3, "iterations": 5}), output)  # not in its lists
    for given, said in (
        (17, "study tiny: no finished trial 17\nValid: 0 to 3."),
        ({"k": 2}, "setting: iterations: missing\nIn the study: 5, 10."),
        ({"k": 2, "iterations": 5, "blocks": 2}, "setting: blocks: unknown axis\nValid: k, s, l"),
        ({"k": 0, "iterations": 5}, "setting: space.k[0]: "),
        ({"k": 2, "iterations": 5, "noise": "white"}, "setting: space.noise[0]: "),
    ):
        with pytest.raises(ddstudy.UserError, match=re.escape(said)):
            study.reconstruct(given)


def test_an_image_that_has_changed_is_none_of_the_study(make_spec: MakeSpec) -> None:
    rng = np.random.default_rng(0)
    np.save("image.npy", rng.random((20, 20)))
    study = ddstudy.run(make_spec(), target="image.npy", trials=1)
    np.save("image.npy", rng.random((20, 20)))
    with pytest.raises(ddstudy.UserError, match=r"image\.npy: is not the image that study 'tiny' was run on"):
        study.reconstruct(0)
    Path("image.npy").unlink()
    with pytest.raises(ddstudy.UserError, match="no such file"):
        study.target()


# --- one fit

SMALL: dict[str, Any] = {"k": 4, "s": 4, "l": 2, "iterations": 20, "members": 2, "check_every": 10}


def test_fit_has_the_numbers_of_the_command(command: Command) -> None:
    image = np.random.default_rng(1).integers(3, 200, (24, 20)).astype(np.uint8)
    np.save("image.npy", image)
    options = ["--k", 4, "--s", 4, "--l", 2, "--iterations", 20, "--members", 2, "--tiling", "2x2", "--noise", "blur3"]
    out = command("fit", "image.npy", *options, "--out", "command")
    fit = ddstudy.fit(image, **SMALL, tiling="2x2", noise="blur3")
    assert [path.name for path in fit.save("python")] == ["python.png"]
    assert Path("python.png").read_bytes() == Path("command.png").read_bytes()
    numbers = dict(re.findall(r"^([a-z]\w+)(?: 2DD)? +(\S+)$", out, flags=re.M))
    del numbers["seconds"]
    assert len(numbers) >= 6
    assert {name: f"{fit.values[name]:.4g}" for name in numbers} == numbers
    assert f"[20/20, 0 s left] 1DD {fit.checks.query('iteration == 20')['psnr'].mean():.2f} dB" in out
    assert fit.checks["iteration"].tolist() == [10, 10, 20, 20]
    assert fit.values["psnr_1dd"] == pytest.approx(fit.checks.query("iteration == 20")["psnr"].mean(), abs=1e-3)
    # in the units of the image, its range is that of PSNR
    error = np.mean((fit.output.astype(float) - image) ** 2)
    assert fit.psnr == pytest.approx(10 * np.log10(float(np.ptp(image)) ** 2 / error), abs=1e-3)
    assert (fit.output.shape, fit.members.shape) == ((24, 20), (2, 24, 20))
    np.testing.assert_allclose(fit.members.mean(axis=0), fit.output, rtol=1e-5)
    assert fit.cv_percent == fit.values["cv_percent"]
    assert repr(fit).startswith("<ImageFit k4-s4-l2-blur3-2x2-i20 of image: ")


def test_images_of_every_layout_come_back_as_they_were() -> None:
    colour = np.random.default_rng(2).random((24, 20, 3)).astype(np.float32)
    colour[0, 0], colour[1, 1] = 0, 1
    last = ddstudy.fit(colour, **SMALL)
    first = ddstudy.fit(np.moveaxis(colour, -1, 0), **SMALL)
    assert (last.output.shape, first.output.shape, first.members.shape) == ((24, 20, 3), (3, 24, 20), (2, 3, 24, 20))
    np.testing.assert_array_equal(np.moveaxis(first.output, 0, -1), last.output)
    cv2.imwrite("colour.png", np.rint(255 * colour[..., ::-1]))
    file = ddstudy.fit("colour.png", **SMALL, target={"size": (24, 20)})
    assert file.output.shape == (24, 20, 3)
    assert 100 < file.output.max() <= 255
    grey = colour[..., 0]
    flat = ddstudy.fit(grey.tolist(), **SMALL)
    for image in (grey[None], grey[..., None], np.stack([grey] * 3)):
        same = ddstudy.fit(image, **SMALL)
        assert same.output.shape == image.shape
        assert same.psnr == flat.psnr


@pytest.mark.parametrize(
    ("image", "options", "said"),
    [
        (np.ones((20, 20)), {}, "image: the slice is constant"),
        (np.full((20, 20), np.nan), {}, "image: 400 of 400 values in the slice are NaN or infinite\nValid: finite."),
        (np.eye(20) * 1j, {}, "image: holds complex numbers"),
        ([[1, 2], [3]], {}, "image: is no array of numbers\nValid: an array (H, W), (C, H, W) or (H, W, C)"),
        (np.eye(4), {}, "image: the slice is 4 x 4 pixels\nValid: 8 to 4096 pixels"),
        (np.arange(20.0), {}, "image: its shape is 20\nValid: an array (H, W)"),
        (np.zeros((20, 20, 20)), {}, "image: its shape is 20 x 20 x 20"),
        (np.zeros((0, 20)), {}, "image: holds no values"),
        ("none.png", {}, "none.png: no such file"),
        (np.eye(20), {"k": 0}, "ddstudy fit: space.k[0]: "),
        (np.eye(20), {"tiling": "7x7"}, "ddstudy fit: space.tiling[0]: "),
        (np.eye(20), {"membres": 2}, "ddstudy fit: fit.membres: unknown key\nDid you mean 'members'?"),
        (np.eye(20), {"keep": "first"}, "ddstudy fit: fit.keep: "),
        (np.eye(20), {"threads": 0}, "--threads: cannot be 0"),
        (np.eye(20), {"device": "cuda:77"}, "fit.device: there is no cuda:77 on this machine"),
        (np.eye(20), {"target": {"plane": "coronal"}}, "image: is a picture, plane = coronal chooses nothing"),
    ],
)
def test_fit_says_in_words_what_is_wrong(image: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ddstudy.UserError, match=re.escape(said)):
        ddstudy.fit(image, **options)


def test_a_single_fit_is_stopped_by_an_event() -> None:
    stop = threading.Event()
    endless = {**SMALL, "iterations": 1_000_000, "engine": "reference"}
    with pytest.raises(ddstudy.StoppedError, match="stopped before its end"):
        ddstudy.fit(np.eye(20), **endless, progress=lambda check: stop.set(), stop=stop)
    with pytest.raises(ddstudy.StoppedError):
        ddstudy.fit(np.eye(20), **endless, stop=stop)


# --- the package


@pytest.mark.parametrize("first", ["import ddstudy.solvers", "import ddstudy; ddstudy.fit; import ddstudy.solvers"])
def test_the_engine_and_the_function_that_fits_have_names_of_their_own(first: str) -> None:
    code = f"{first}; from ddstudy import fit; print(callable(fit), ddstudy.fit is fit, ddstudy.solvers.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True True ddstudy.solvers\n"


def test_everything_exported_is_there_and_completed() -> None:
    for name in ddstudy.__all__:
        assert getattr(ddstudy, name) is not None
        assert name in dir(ddstudy)
    assert ddstudy.UserError.__module__ == "ddstudy.errors"
    assert issubclass(ddstudy.StoppedError, ddstudy.WorkError)


def test_the_wheel_says_that_the_package_is_typed(tmp_path: Path) -> None:
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path))
    names = zipfile.ZipFile(wheel).namelist()
    assert "ddstudy/py.typed" in names
    assert "ddstudy/data/quick.toml" in names


def test_the_options_of_run_are_those_of_the_command() -> None:
    import inspect

    import typer

    parameters = typer.main.get_command(cli.app).commands["run"].params  # type: ignore[attr-defined]
    modes = {"grid", "tpe", "pareto"}
    ours = set(inspect.signature(ddstudy.run).parameters) - {"mode", "progress", "tell", "stop"}
    assert {parameter.name for parameter in parameters} - modes - {"dry_run", "open_", "help"} == ours


def test_the_notebook_runs_and_shows_what_it_has_kept() -> None:
    """Each cell ends with what it shows: the same kind of thing, of this version, as the page has of one run."""
    space: dict[str, Any] = {}
    cells = json.loads((ROOT / "docs" / "notebook.ipynb").read_text())["cells"]
    shown = 0
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        *lines, last = ast.parse("".join(cell["source"])).body
        assert isinstance(last, ast.Expr)
        exec(compile(ast.Module(lines, []), "docs/notebook.ipynb", "exec"), space)
        value = eval(compile(ast.Expression(last.value), "docs/notebook.ipynb", "eval"), space)
        (output,) = cell["outputs"]
        html = "".join(output["data"].get("text/html", ""))
        assert (value._repr_html_() if hasattr(value, "_repr_html_") else "").count("<img") == html.count("<img")
        shown += html.count("<img")
    assert shown == 4 + 8 + 2
    study, best = space["study"], space["best"]
    assert f"<td>{best['psnr']:.2f}</td><td>{best['number']}</td>" in study._repr_html_()
    table = space["study"].compare().table
    assert set(table.columns) == set(study.best["number"])
    assert table.loc["psnr", best["number"]] == best["psnr"]
    # what a study keeps is rounded to 256 grey levels
    assert np.abs(study.image(best) - study.reconstruct(best)).max() <= 0.5 / 255 + 1e-6
    assert np.abs(study.image(0, "target") - study.target()).max() <= 0.5 / 255 + 1e-6
    for wrong, said in (((99,), "no finished trial 99\nValid: 0 to 17."), ((0, "error"), "'output', 'target'")):
        with pytest.raises(ddstudy.UserError, match=re.escape(said)):
            study.image(*wrong)
    with pytest.raises(ddstudy.UserError, match="no finished trial 99"):
        study.compare(0, 99)


def test_the_page_about_python_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
    space: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), space)
    assert len(blocks) >= 6
    out = capsys.readouterr().out
    assert "6 trials, 3 fits of 5 members" in out
    assert "ddstudy fit: fit.membres: unknown key\nDid you mean 'members'?" in out
    assert {path.name for path in Path().iterdir()} >= {"report-small.html", "small.csv", "small.parquet", "one.png"}
    keys = tomllib.loads((ROOT / "ddstudy" / "data" / "quick.toml").read_text())
    assert set(space["asked"]) - {"name"} <= set(keys)  # tables that files have, too
