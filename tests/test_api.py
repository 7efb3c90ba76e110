"""The Python API over a store with known results, and `ddstudy findings`."""

import dataclasses
import io
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

import ddstudy
from ddstudy import cli
from ddstudy.errors import UserError
from ddstudy.images.volumes import load_target
from ddstudy.report import page, panels
from ddstudy.store.database import Store
from ddstudy.study.evaluate import Result
from ddstudy.study.samplers import sampler
from ddstudy.terminal import print_answers
from ddstudy.thesis import findings, published

OF_COPIES = [finding for finding in findings.FINDINGS if finding.about == "copies"]
README = (Path(__file__).parents[1] / "README.md").read_text()
STORE = "sqlite:///ddstudy.db"


@pytest.fixture
def store(make_spec, tmp_path, monkeypatch):
    """`quick`, twelve settings whose PSNR is k + iterations / 10, in the store that commands use by default."""
    monkeypatch.delenv("DDSTUDY_STORE", raising=False)
    spec = make_spec(
        space={"k": [8, 16], "l": [4], "noise": ["uniform", "blur3", "simplex"]}, name="quick", images=False
    )
    target = load_target(spec.target)
    with Store(STORE, tmp_path / "images") as opened:
        driven = opened.drive(spec, target, sampler(spec))
        for setting in spec.search_space:
            psnr = setting["k"] + setting["iterations"] / 10
            values = {
                "psnr": psnr,
                "psnr_1dd": psnr - 1,
                "psnr_foreground": psnr,
                "ssim": 0.9,
                "cv_percent": 2.0,
                "seconds": psnr,
            }
            values |= {"iterations_done": setting["iterations"], "parameters": 10, "device": "a processor"}
            curve = {"iterations": [5], "seconds": [1.0], "psnr_members": [[psnr, psnr]]}
            result = Result(setting["iterations"], values, np.zeros((1, 27, 22), np.float32), curve, False)
            driven.record(setting, result, shared=False, started=datetime.now())
    return STORE


def test_the_table_is_that_of_the_store(store):
    study = ddstudy.open_study("quick", store)
    with Store(store, read_only=True) as opened:
        pd.testing.assert_frame_equal(study.trials, opened.view("quick").trials)
    assert len(study.trials) == 12
    assert study.trials["psnr"].tolist() == (study.trials["k"] + study.trials["iterations"] / 10).tolist()
    assert len(study.checks) == 12
    assert (study.name, study.spec.fit.members) == ("quick", 2)
    assert repr(study) == "<Study quick: 12 trials of picture.npy>"


def test_without_a_name_it_is_the_latest_of_the_default_store(store):
    assert ddstudy.open_study().name == "quick"


FIGURES = {
    "pareto": {"x": "seconds", "y": "psnr"},
    "importance": {"y": "psnr"},
    "quartiles": {"x": "k", "y": "psnr", "filter": {"noise": ["blur3"]}},
    "unstable": {},
    "ensemble": {},
}


@pytest.mark.parametrize("kind", FIGURES)
def test_a_figure_is_that_of_the_report(store, kind):
    study = ddstudy.open_study(store=store)
    panel = panels.parse_panel({"kind": kind, "title": "T", **FIGURES[kind]}, "test")
    drawn = study.figure(kind, **FIGURES[kind]).to_json()
    assert drawn == panel.figure([study.view]).to_json()
    assert drawn.replace("<", "\\u003c") in page.render([study.view], (panel,))


def test_numbers_of_a_figure_are_the_trials(store):
    study = ddstudy.open_study(store=store)
    stable = study.figure("pareto", x="seconds", y="psnr").data[1]
    assert sorted(stable.y) == sorted(study.trials["psnr"])


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("pie", {}, "figure 'pie': kind: unknown, 'pie'\nValid: pareto, parallel, importance"),
        ("pareto", {"x": "seconds"}, "figure 'pareto': y: missing"),
        ("pareto", {"x": "seconds", "y": "psnr", "z": 1}, "z: unknown key"),
        ("best", {"y": "psnr"}, "study quick: no figure of 'best'\nThis kind is a table."),
        ("pareto", {"x": "seconds", "y": "ms_ssim"}, "no figure of 'pareto'\nFilled by measured trials with"),
    ],
)
def test_a_figure_that_is_not_there_is_refused_in_words(store, kind, fields, said):
    with pytest.raises(UserError, match=re.escape(said)):
        ddstudy.open_study(store=store).figure(kind, **fields)


def test_findings_and_published_tables(store):
    study = ddstudy.open_study(store=store)
    pd.testing.assert_frame_equal(study.findings(), findings.as_table(findings.retest(study.view)))
    for number in published.NUMBERS:
        table = study.published(number)
        pd.testing.assert_frame_equal(table, published.beside(study.view, number).table)
        assert table.attrs["source"]
        assert "picture.npy" in table.attrs["differences"]["image"]


def test_findings_of_a_study_know_the_other_slices(store):
    study = ddstudy.open_study(store=store)
    target = study.spec.target.model_copy(update={"slice": 3})
    spec = study.spec.model_copy(update={"target": target, "name": "away"})
    view = dataclasses.replace(study.view, name="away", spec=spec, facts={"target": "another slice"})
    assert study.findings().loc["slices", "trials"] == ()
    assert len(study.findings(ddstudy.Study(view)).loc["slices", "trials"]) == 12


def test_unknown_studies_and_names_are_refused(store):
    with pytest.raises(UserError, match="no study 'other'"):
        ddstudy.open_study("other", store)
    with pytest.raises(AttributeError, match="no attribute 'open_studies'"):
        ddstudy.open_studies  # noqa: B018


def test_importing_ddstudy_is_light():
    heavy = ["torch", "ray", "plotly", "optuna", "pandas", "cv2", "sqlalchemy", "pydantic", "numpy", "scipy"]
    code = f"import ddstudy, sys; print([name for name in {heavy} if name in sys.modules], ddstudy.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[] 0.")


def test_the_readmes_lines_run(store):
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    lines = [line for line in code.splitlines() if line and not line.startswith(("import", "study ="))]
    assert len(lines) >= 5
    space = {"ddstudy": ddstudy, "study": ddstudy.open_study(store=store)}
    exec(code, space)
    for line in lines:
        assert eval(line, space) is not None


# --- the command


@pytest.fixture
def call(store, monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["ddstudy", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    return call


def test_the_command_answers_every_finding(call):
    code, out, err = call("findings")
    assert (code, err) == (0, "")
    assert "The thesis' findings on quick, picture.npy" in out
    for finding in OF_COPIES:
        assert f" {finding.name} " in out
    assert "iterations is 5, 10; in the thesis 2000, 5000, 7000." in out
    assert re.search(r"blur .*Blurred noise raises PSNR .*not enough data .*\+0\.00 dB \[\+0\.00, \+0\.00\] .* 8 ", out)


def test_on_a_narrow_terminal_answers_are_paragraphs(store):
    view, out = ddstudy.open_study(store=store).view, io.StringIO()
    print_answers(Console(file=out, width=60), view, findings.retest(view))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 60
    text = " ".join(out.getvalue().split())
    for finding in OF_COPIES:
        assert f"{finding.name}: {finding.statement}" in text
    assert "not enough data: +0.00 dB [+0.00, +0.00]" in text


def test_the_command_lists_the_trials_behind_a_finding(call, store):
    code, out, _ = call("findings", "quick", "--trials", "blur")
    assert code == 0
    assert "Rule: Mean PSNR of blur3 less uniform" in out
    rows = [line.split() for line in out.splitlines() if line.startswith("quick ")]
    view = ddstudy.open_study(store=store).view
    found = findings.ask(findings.FINDINGS[0], view).rows
    assert [int(row[1]) for row in rows] == found["number"].tolist()
    assert len(rows) == 8


def test_the_command_takes_several_studies_and_refuses_what_is_not_there(call):
    assert call("findings", "quick", "quick")[1].count("The thesis' findings on quick") == 2
    assert call("findings", "other")[0] == 2
    code, _, err = call("findings", "--trials", "blurr")
    assert (code, err.splitlines()[0]) == (2, "ddstudy: no finding 'blurr'")
    assert "Valid: blur, time-l" in err
