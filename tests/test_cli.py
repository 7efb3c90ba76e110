import contextlib
import io
import os
import re
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import clusters
import cv2
import nibabel
import numpy as np
import pandas as pd
import postgres
import pytest
import torch
from drivers import Driver
from points import setting_of
from rich.console import Console

from ddstudy import cli
from ddstudy.report.facts import facts
from ddstudy.store.database import Store
from ddstudy.study.forecasting import Forecast, outlook
from ddstudy.study.runner import Progress
from ddstudy.terminal import live

STUDIES = Path(__file__).parent.parent / "studies"
STUDY = """
[target]
file = "{target}"

[space]
k = [2, 4]
s = [4]
l = [2]
iterations = [5, 10]

[fit]
members = 2
check_every = 5

[stability]
min_psnr = 0
cv_percent = 50
"""
# a page whose content is not what is asked about
ONE_PANEL = "[[panel]]\nkind = 'quartiles'\ntitle = 'One'\nx = 'iterations'\ny = 'psnr'\n"
Result = tuple[int, str, str]
Cli = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picture: Path) -> Path:
    """A working folder with a study of tiny fits, `tiny.toml`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DDSTUDY_STORE", raising=False)
    monkeypatch.delenv("DDSTUDY_ARTIFACTS", raising=False)
    (tmp_path / "tiny.toml").write_text(STUDY.format(target=picture))
    return tmp_path


@pytest.fixture
def ddstudy(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command in this process: exit code, output, errors."""

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["ddstudy", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, err

    return call


def start(*arguments: str, store: str, folder: Path) -> subprocess.Popen[str]:
    """The real command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "ddstudy.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "DDSTUDY_STORE": store, "PYTHONUNBUFFERED": "1"},
    )


def test_prune_audit_replays_the_rule(ddstudy: Cli, folder: Path) -> None:
    assert ddstudy("run", "tiny.toml")[0] == 0
    code, out, _ = ddstudy("prune-audit", "--cv", "0.01", "--cv", "90", "--stop", 1, "--warmup", 0, "--patience", 1)
    assert code == 0
    assert "2 fits of tiny" in out
    rows = [line.split("│")[1:-1] for line in out.splitlines() if line.startswith("│")]
    # the study calls all fits stable: to stop them at the first of two checks is wrong, and saves half
    assert [[row[0].strip(), *(cell.strip() for cell in row[6:9])] for row in rows] == [
        ["own", "0 %", "0 of 0", "0 of 2"],
        ["", "50 %", "0 of 0", "2 of 2"],
    ]
    assert "Left out: 1 other rule that would save nothing." in out
    assert "0 of 2 fits ended unstable. tiny's own rule, the first row, ends 0 of them early and saves 0 %" in out
    (folder / "one.toml").write_text((folder / "tiny.toml").read_text() + "prune = true\nwarmup = 0\npatience = 1\n")
    assert ddstudy("run", "one.toml", "--name", "other")[0] == 0
    code, out, _ = ddstudy("prune-audit", "tiny", "other", "--cv", 90)
    assert "4 fits of tiny, other" in out
    assert ddstudy("prune-audit", "nothing")[0] == 2


def test_prune_audit_where_nothing_is_stable_or_all_is_stopped(ddstudy: Cli, folder: Path) -> None:
    """It said "nan dB"."""
    text = (folder / "tiny.toml").read_text()
    (folder / "none.toml").write_text(text.replace("min_psnr = 0", "min_psnr = 99") + "prune = false\n")
    assert ddstudy("run", "none.toml")[0] == 0
    code, out, _ = ddstudy("prune-audit", "--cv", 90, "--warmup", 0, "--patience", 1, "--stop", 1)
    assert (code, "nan" in out, "0.00 dB" in out) == (0, False, True)
    assert ddstudy("run", "tiny.toml")[0] == 0
    code, out, _ = ddstudy("prune-audit", "tiny", "--cv", 0.01, "--warmup", 0, "--patience", 1, "--stop", 1)
    assert (code, "inf" in out) == (0, False)


def test_help_tells_what_is_meant_without_a_value(ddstudy: Cli) -> None:
    """[...] in a help text was taken for markup and left out."""
    for command in ("run", "fit", "report", "export", "prune-audit", "stop-audit"):
        _, out, _ = ddstudy(command, "--help")
        assert " ." not in out
    assert "Study file (TOML) [a small packaged study]." in ddstudy("run", "--help")[1]


def test_progress_keeps_its_count_and_time_on_a_narrow_terminal() -> None:
    """The setting took their place at 80 columns."""
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    best = setting_of(192, 16, 5, 7000, "simplex", "4x5")
    with live(console) as show:
        current = f"{best.fit.id} at 4200: 1DD 30.91 dB, CV 2.1 %"
        show(Progress(12, 48, 3, 1, (best, 31.17), current, 5025.0, objective="psnr 5DD"))
    assert isinstance(console.file, io.StringIO)
    *_, last = (line for line in re.split(r"[\r\n]", console.file.getvalue()) if "12/48" in line)
    assert "0:00:00" in last
    assert "left | best psnr 5DD 31.17" in last
    assert "\u2026" in last
    assert len(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", last)) <= 80


def test_a_shell_completes_commands_options_and_values(folder: Path) -> None:
    (folder / "ddstudy").write_text(
        f'#!/bin/sh\nexec {sys.executable} -c \'import sys; sys.argv[0] = "ddstudy"; '
        'from ddstudy.cli import main; main()\' "$@"\n'
    )
    (folder / "ddstudy").chmod(0o755)
    script = 'eval "$(ddstudy completion bash)"\n'
    for words in ("ddstudy re", "ddstudy run --ta", "ddstudy completion "):
        script += f'COMP_WORDS=({words} ""); COMP_CWORD={words.count(" ")}; _ddstudy_completion ddstudy; '
        script += 'echo "${COMPREPLY[*]}"\n'
    environ = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environ, check=True)
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["report", "rename"], ["--target"], ["bash", "zsh", "fish"],
    ]  # fmt: skip


def test_the_version_is_told(ddstudy: Cli) -> None:
    assert ddstudy("--version") == (0, f"ddstudy {version('ddstudy')}\n", "")


def test_help_imports_no_heavy_library() -> None:
    code = """
import sys
sys.argv = ["ddstudy", "--help"]
from ddstudy.cli import main
try:
    main()
except SystemExit:
    pass
heavy = "torch ray plotly numba piq nilearn optuna pandas cv2 nibabel sqlalchemy pydantic numpy".split()
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().split("\n")[-1] == "[]"
    assert "dashboard" in done.stdout


def test_from_run_to_report_and_export(ddstudy: Cli, folder: Path) -> None:
    code, out, err = ddstudy("run", "tiny.toml")
    assert (code, err) == (0, "")
    assert "4 trials, 2 fits of 2 members" in out
    assert re.search(r"Forecast: about .* of fitting", out)
    assert len(re.findall(r"COMPLETE 2DD \d+\.\d+ dB, CV \d", out)) == 4
    assert "Best settings of tiny" in out
    assert "4 settings measured, 0 unstable (0 %)" in out
    assert "Next: ddstudy report tiny" in out

    code, out, _ = ddstudy("status")
    assert code == 0
    assert re.search(r"tiny .* picture\.npy .* 4 .* 4 .* 0 .* 0", out)

    assert ddstudy("export")[0] == 0
    table, parquet = pd.read_csv("export-tiny.csv"), pd.read_parquet("export-tiny.parquet")
    pd.testing.assert_frame_equal(
        table[["k", "psnr", "seconds"]], parquet[["k", "psnr", "seconds"]], check_exact=False, rtol=1e-12
    )
    assert len(table) == 4
    checks = pd.read_csv("export-tiny-checks.csv")
    assert checks.groupby("fit_id").size().tolist() == [4, 4]  # two checks of two members
    at_the_end = checks[checks["iteration"] == 10].groupby("fit_id")["psnr"].mean()
    expected = table[table["iterations"] == 10].set_index("fit_id")["psnr_1dd"]
    np.testing.assert_allclose(at_the_end.sort_index(), expected.sort_index(), atol=1e-3)

    assert ddstudy("report", "--out", "page.html")[0] == 0
    page = (folder / "page.html").read_text()
    best = table.loc[table["psnr"].idxmax()]
    assert f"{best['psnr']:.2f}" in page
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", markup)  # nothing to load

    code, out, _ = ddstudy("run", "tiny.toml")
    assert code == 0
    assert "4 done" in out
    assert "Nothing left to do." in out


def test_modes_have_names_of_their_own(ddstudy: Cli) -> None:
    assert ddstudy("run", "tiny.toml", "--grid", "--trials", 2)[0] == 0
    assert ddstudy("run", "tiny.toml", "--tpe", "--trials", 4)[0] == 0
    assert ddstudy("run", "tiny.toml", "--pareto", "--trials", 4)[0] == 0
    with Store("sqlite:///ddstudy.db", read_only=True) as store:
        views = {name: store.view(name) for name in store.names()}
    assert set(views) == {"tiny", "tiny-tpe", "tiny-pareto"}
    assert views["tiny-pareto"].spec.objectives == {"psnr": "maximize", "seconds": "minimize"}
    assert [len(views[name].trials) for name in ("tiny", "tiny-tpe", "tiny-pareto")] == [2, 4, 4]
    for view in views.values():
        assert not view.trials.duplicated(["k", "s", "l", "iterations", "noise", "tiling"]).any()


def test_dry_run_writes_nothing(ddstudy: Cli, folder: Path) -> None:
    before = set(folder.iterdir())
    code, out, _ = ddstudy("run", "tiny.toml", "--dry-run")
    assert code == 0
    assert "4 trials, 2 fits of 2 members" in out
    assert set(folder.iterdir()) == before
    assert ddstudy("run", "tiny.toml", "--trials", 2)[0] == 0
    assert "2 done" in ddstudy("run", "tiny.toml", "--dry-run")[1]


def test_dry_run_of_the_thesis(ddstudy: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddstudy.study.forecasting.calibrate", lambda *_: Forecast())  # five seconds of fits
    code, out, _ = ddstudy("run", STUDIES / "thesis.toml", "--dry-run")
    assert code == 0
    assert "2,268 trials, 756 fits of 5 members" in out
    assert "MNI152 T1 axial 94, 256x320" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "none.toml"], "none.toml: no such study file"),
        (["run", "tiny.toml", "--target", "none.nii.gz"], "none.nii.gz"),
        (["run", "tiny.toml", "--target", "nan.npy"], "nan.npy"),
        (["run", "tiny.toml", "--target", "constant.npy"], "constant.npy"),
        (["run", "tiny.toml", "--target", "empty.nii"], "empty.nii"),
        (["run", "tiny.toml", "--target", "cut.nii.gz"], "cut.nii.gz"),
        (["run", "tiny.toml", "--target", "text.png"], "text.png"),
        (["run", "tiny.toml", "--target", "line.npy"], "line.npy"),
        (["run", "tiny.toml", "--tpe", "--pareto"], "Give one of them"),
        (["run", "tiny.toml", "--name", "a b"], "name: cannot be 'a b'"),
        (["run", "tiny.toml", "--store", "mysql://me:hidden@localhost/db"], "sqlite:///FILE.db"),
        (["run", "postgresql://me:hidden@h/db"], "A store goes behind --store"),  # all of these repeated the password
        (["status", "postgresql://me:hidden@h/db"], "a URL among the arguments is not valid"),
        (["postgresql://me:hidden@h/db", "status"], "a URL among the arguments is not valid"),
        (["run", "tiny.toml", "--reuse", "postgresql://me:hidden@h/db"], "a URL behind --reuse is not valid"),
        (["run", "tiny.toml", "--target=postgresql://me:hidden@h/db"], "a URL behind --target is not valid"),
        (["run", "broken.toml"], "broken.toml: space.k: missing"),
        (["validate", "tiny.toml", "broken.toml"], "broken.toml: space.k: missing"),
        (["fit", "--noise", "white"], "noise"),
        (["fit", "--slice", "middle"], "target.slice"),
        (["fit", "--slice", "9" * 5000], "target.slice"),
        (["fit", "--out", "a" * 300], "cannot be written (File name too long)"),
        (["fit", "nan.npy"], "nan.npy"),
        (["run", "/dev/full"], "/dev/full: cannot be read (no regular file)"),
        (["report", "--dashboard", "/dev/zero"], "/dev/zero: cannot be read (no regular file)"),
        (["run", "tiny.toml", "--target", "/dev/zero"], "/dev/zero: is no regular file"),
        (["fit", "--out", "none/a"], "in a folder that exists"),
        (["fit", "--out", "."], "in a folder that exists"),
        (["report"], "no such database"),
        (["status"], "no such database"),
        (["export", "--store", "sqlite:///text.png"], "cannot be opened"),
        (["dashboard"], "no such database"),
    ],
)
def test_mistakes_end_with_two_lines_and_code_2(ddstudy: Cli, folder: Path, arguments: list[str], said: str) -> None:
    np.save("nan.npy", np.full((20, 20), np.nan))
    np.save("constant.npy", np.ones((20, 20)))
    np.save("line.npy", np.arange(20.0))
    volume = np.random.default_rng(0).random((20, 20, 20)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), "cut.nii.gz")
    Path("cut.nii.gz").write_bytes(Path("cut.nii.gz").read_bytes()[:9000])
    Path("empty.nii").write_bytes(b"")
    Path("text.png").write_text("no image " * 100)
    Path("broken.toml").write_text("[space]\ns = [4]\nl = [2]\niterations = [5]\n")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    code, _, err = ddstudy(*arguments)
    assert code == 2
    lines = err.strip().split("\n")
    assert len(lines) == 2, err
    assert lines[0].startswith("ddstudy: ")
    assert said in err
    assert "hidden" not in err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before  # nothing half-made is left


def test_command_line_mistakes_are_code_2_without_traceback(ddstudy: Cli) -> None:
    for arguments in (["run", "--nonsense"], ["nonsense"], ["fit", "--k", "many"], ["dashboard", "--port", "99999"]):
        code, _, err = ddstudy(*arguments)
        assert code == 2
        assert "Traceback" not in err


def test_changed_study_is_refused(ddstudy: Cli, folder: Path) -> None:
    assert ddstudy("run", "tiny.toml", "--trials", 1)[0] == 0
    text = (folder / "tiny.toml").read_text()
    (folder / "tiny.toml").write_text(text.replace("members = 2", "members = 3"))
    code, _, err = ddstudy("run", "tiny.toml")
    assert code == 2
    assert "fit.members: stored 2, now 3" in err
    assert "--name" in err


def test_refused_first_run_leaves_the_study_free_to_change(ddstudy: Cli, folder: Path) -> None:
    text = (folder / "tiny.toml").read_text()
    (folder / "tiny.toml").write_text(text + '[objectives]\nvif = "maximize"\n')
    code, _, err = ddstudy("run", "tiny.toml")
    assert code == 2
    assert "vif: cannot be measured on a target of 27x22" in err
    (folder / "tiny.toml").write_text(text)
    assert ddstudy("run", "tiny.toml")[0] == 0


def test_first_look_at_an_empty_database(ddstudy: Cli, postgres_url: str) -> None:
    code, out, _ = ddstudy("run", "tiny.toml", "--dry-run", "--store", postgres_url)
    assert code == 0
    assert "4 trials, 2 fits" in out
    code, _, err = ddstudy("status", "--store", postgres_url)
    assert code == 2
    assert "no studies yet" in err


def test_one_member_and_colours(ddstudy: Cli, folder: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (24, 20, 3)).astype(np.uint8)
    cv2.imwrite("colour.png", picture)
    text = (folder / "tiny.toml").read_text().replace("members = 2", "members = 1")
    (folder / "tiny.toml").write_text(text)
    code, out, _ = ddstudy("run", "tiny.toml", "--target", "colour.png")
    assert code == 0
    assert "24x20 RGB" in out
    assert "4 settings measured" in out


def test_unknown_study_and_read_only_folder(ddstudy: Cli, folder: Path) -> None:
    assert ddstudy("run", "tiny.toml", "--trials", 1)[0] == 0
    code, _, err = ddstudy("report", "other")
    assert code == 2
    assert "Valid: tiny." in err
    assert ddstudy("report", "--dashboard", "tiny.toml")[0] == 2
    assert ddstudy("report", "--out", "none/page.html")[0] == 2
    (folder / "a-folder").mkdir()
    code, _, err = ddstudy("report", "--out", "a-folder")
    assert code == 2
    assert "cannot be written" in err
    assert not list(folder.glob("tmp*"))


def test_validate(ddstudy: Cli) -> None:
    code, out, _ = ddstudy("validate", "tiny.toml", STUDIES / "thesis.toml")
    assert code == 0
    assert "thesis.toml: valid, 2,268 settings, 756 fits" in out
    assert "tiny.toml: valid, 4 settings, 2 fits" in out


def test_validate_reads_the_target_and_says_all_that_is_wrong(ddstudy: Cli, folder: Path) -> None:
    """A study was valid whose target was missing, or had no such slice."""
    text = (folder / "tiny.toml").read_text()
    np.save("volume.npy", np.random.default_rng(0).random((20, 20, 20)))
    Path("missing.toml").write_text(re.sub('file = ".*"', 'file = "none.nii"', text).replace("k = [2, 4]", "K = [2]"))
    Path("slice.toml").write_text(re.sub('file = ".*"', 'file = "volume.npy"\nslice = 20', text))
    Path("small.toml").write_text(text + '[objectives]\nvif = "maximize"\n')
    code, out, err = ddstudy("validate", "missing.toml", "tiny.toml", "slice.toml", "small.toml", "none.toml")
    assert code == 2
    assert out == "tiny.toml: valid, 4 settings, 2 fits\n"
    wrong = [line for line in err.splitlines() if re.match(r"(ddstudy: )?\w+\.toml: ", line)]
    assert [line.removeprefix("ddstudy: ") for line in wrong] == [
        "missing.toml: space.K: unknown key",
        "missing.toml: space.k: missing",
        f"missing.toml: target: {folder}/none.nii: no such file",
        f"slice.toml: target: {folder}/volume.npy: has no axial slice 20",
        "small.toml: objective vif: cannot be measured on a target of 27x22",
        "none.toml: no such study file",
    ]


def test_out_follows_links_and_writes_into_what_is_no_file(ddstudy: Cli, folder: Path) -> None:
    """A device, a pipe or a link was replaced by a file, as root even /dev/null."""
    assert ddstudy("run", "tiny.toml", "--trials", 1)[0] == 0
    (folder / "far").mkdir()
    (folder / "page.html").symlink_to("far/page.html")
    for _ in range(2):  # a link that leads nowhere yet, and one to a file
        assert ddstudy("report", "--out", "page.html")[0] == 0
        assert (folder / "page.html").is_symlink()
        assert (folder / "far/page.html").read_bytes().endswith(b"</html>\n")
    assert [path.name for path in (folder / "far").iterdir()] == ["page.html"]
    (folder / "circle").symlink_to("circle")
    code, _, err = ddstudy("report", "--out", "circle")
    assert (code, err.count("\n")) == (2, 2)
    assert "circle: cannot be written (Too many levels of symbolic links)" in err

    os.mkfifo("pipe")
    with open("read", "wb") as read, subprocess.Popen(["cat", "pipe"], stdout=read) as reader:
        assert ddstudy("report", "--out", "pipe")[0] == 0
        assert reader.wait(timeout=60) == 0
    assert (folder / "read").read_bytes() == (folder / "far/page.html").read_bytes()
    assert stat.S_ISFIFO(os.stat("pipe").st_mode)
    twice = """
import sys
from ddstudy.cli import app
for out in sys.argv[1:]:
    app(["report", "--out", out], standalone_mode=False)
"""
    # the pipes that these lead to have no path of their own
    shell = ["bash", "-c", '"$0" -c "$1" /dev/stdout >(cat)', sys.executable, twice]
    done = subprocess.run(shell, capture_output=True, check=True, timeout=100)
    assert done.stdout == 2 * (folder / "far/page.html").read_bytes()
    code, _, err = ddstudy("report", "--out", "/dev/full")
    assert code == 2
    assert "No space left" in err
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_numbers_without_bounds_are_refused_or_cut(ddstudy: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many workers hung, and rich filled lines of COLUMNS characters: gigabytes."""
    for option in ("--workers", "--threads"):
        code, _, err = ddstudy("run", "tiny.toml", option, "9" * 20)
        assert code == 2
        assert option in err
    monkeypatch.setenv("COLUMNS", "99999999")
    code, out, _ = ddstudy("--help")
    assert code == 0
    assert max(map(len, out.splitlines())) < 1000


def test_names_and_terminals_of_other_alphabets(ddstudy: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file name in Latin-1 is no UTF-8, and a terminal may lack its letters."""
    np.save(folder / "caf\udce9.npy", np.random.default_rng(0).random((20, 20)))
    (folder / "a b.toml").write_bytes(b"\xef\xbb\xbf" + (folder / "tiny.toml").read_bytes())
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        for command in (["run", "a b.toml", "--name", "named", "--target", "caf\udce9.npy"], ["status"], ["report"]):
            code, _, err = ddstudy(*command)
            assert (code, err) == (0, "")
    for said in (b"Target caf?.npy", b"| named | caf?.npy |", b"Wrote"):
        assert said in terminal.buffer.getvalue()
    assert "caf\N{REPLACEMENT CHARACTER}.npy" in (folder / "report-named.html").read_text()


def test_fit_writes_png_and_nifti_in_place(ddstudy: Cli) -> None:
    rng = np.random.default_rng(0)
    coarse = rng.random((4, 5, 6)).astype(np.float32)
    volume = np.kron(coarse, np.ones((8, 8, 8), dtype=np.float32))
    affine = np.array([[0, 2.0, 0, 5], [-2.0, 0, 0, 7], [0, 0, 2.0, -3], [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(254 * volume, affine)
    image.set_sform(affine, 4)
    nibabel.save(image, "volume.nii.gz")
    code, out, err = ddstudy(
        "fit", "volume.nii.gz", "--plane", "coronal", "--k", 16, "--s", 4, "--l", 3, "--iterations", 150,
        "--members", 2, "--out", "result",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert re.search(r"psnr +\d", out)
    written = nibabel.load("result.nii.gz")
    png = cv2.imread("result.png", cv2.IMREAD_UNCHANGED)
    assert written.shape == (*png.shape, 1)
    assert written.header["sform_code"] == 4
    cut = 254 * volume[15]  # the coronal one in the middle of its axis, which is stored from anterior to posterior
    brightness = (written.get_fdata()[:, :, 0] - cut.min()) / np.ptp(cut)
    np.testing.assert_allclose(brightness * 255, png, atol=0.51)  # the units of the volume, and its range
    # where the file says a pixel is, the volume has that value
    index = np.stack(np.meshgrid(*map(np.arange, png.shape), [0], indexing="ij"), -1).reshape(-1, 3)
    world = nibabel.affines.apply_affine(written.affine, index)
    voxel = np.rint(nibabel.affines.apply_affine(np.linalg.inv(affine), world)).astype(int)
    truth = volume[tuple(voxel.T)]
    truth = (truth - truth.min()) / (truth.max() - truth.min())
    assert np.corrcoef(truth, written.get_fdata().ravel())[0, 1] > 0.95


def test_fit_of_a_colour_picture(ddstudy: Cli, folder: Path) -> None:
    y, x = np.mgrid[0:40, 0:30]
    picture = np.stack([x * 8, y * 6, 255 - x * 8], -1).astype(np.uint8)
    cv2.imwrite("colour.png", picture)
    code, _, _ = ddstudy("fit", "colour.png", "--k", 16, "--s", 4, "--l", 3, "--iterations", 200, "--members", 1)
    assert code == 0
    written = cv2.imread("reconstruction.png", cv2.IMREAD_UNCHANGED)
    assert written.shape == (40, 30, 3)
    assert np.abs(written.astype(float) - picture).mean() < 20  # the channels are in their places
    assert not (folder / "reconstruction.nii.gz").exists()


@pytest.mark.parametrize("options", [[], ["--engine", "reference"], ["--engine", "fused", "--threads", "1"]])
def test_the_engine_is_recorded(ddstudy: Cli, options: list[str]) -> None:
    code, _, err = ddstudy("run", "tiny.toml", *options)
    assert code == 0, err
    with Store(cli.DEFAULT_STORE, read_only=True) as store:
        engines = set(store.view("tiny").trials["engine"])
    assert engines == {"reference float32" if "reference" in options else "fused float32"}


def test_workers_side_by_side_measure_the_same_and_say_that_they_shared(ddstudy: Cli) -> None:
    assert ddstudy("run", "tiny.toml", "--name", "alone", "--workers", 1)[0] == 0
    assert ddstudy("run", "tiny.toml", "--name", "beside", "--workers", 2, "--threads", 1)[0] == 0
    with Store(cli.DEFAULT_STORE, read_only=True) as store:
        trials = [store.view(name).trials.set_index(["fit_id", "iterations"]) for name in ("alone", "beside")]
    alone, beside = (each["psnr"].sort_index() for each in trials)
    assert alone.equals(beside)
    assert [set(each["shared"]) for each in trials] == [{False}, {True}]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--pareto", "--workers", 2], "cannot be timed"),
        (["--ray", "local", "--threads", 2], "are for this machine"),
        (["--engine", "magic"], "fit.engine"),
    ],
)
def test_impossible_ways_to_run_are_refused(ddstudy: Cli, arguments: list[object], complaint: str) -> None:
    code, _, err = ddstudy("run", "tiny.toml", *arguments)
    assert code == 2
    assert complaint in err
    assert len(err.splitlines()) <= 2


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished(folder: Path, store_url: str) -> None:
    # a first result soon, nothing to compile, and no end before the signal comes
    text = (folder / "tiny.toml").read_text().replace("[5, 10]", "[100, 1000000]").replace("every = 5", "every = 50")
    (folder / "slow.toml").write_text(text.replace("[fit]\n", '[fit]\nengine = "reference"\n'))
    for arguments in (["run", "slow.toml"], ["run", "slow.toml", "--tpe", "--trials", "6"]):
        if store_url.startswith("sqlite") and "--tpe" not in arguments:
            process = start(*arguments, store=store_url, folder=folder)
            assert process.stdout is not None
            assert any(" dB" in line for line in process.stdout)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=20)  # within seconds
            code = process.returncode
            assert said.startswith("ddstudy: Stopped.")
        else:  # which starts sooner
            driver = Driver(folder, *arguments, "--store", store_url)
            driver.wait_for_results()
            os.kill(driver.pid, signal.SIGINT)
            code, said = driver.wait(20), driver.output
        assert code == 130
        assert "ddstudy: Stopped." in said
        assert "Traceback" not in said
    with Store(store_url, read_only=True) as store:
        for name in store.names():
            assert len(store.view(name).trials) >= 1
        assert not any(
            trial.state.name == "RUNNING"
            for study in store.storage.get_all_studies()
            for trial in store.storage.get_all_trials(study._study_id)
        )


def test_passwords_are_not_printed(ddstudy: Cli, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = ddstudy("run", "tiny.toml", "--trials", 1, "--store", postgres_url)
    assert code == 0
    assert "***" in out
    assert postgres.PASSWORD not in out + err
    monkeypatch.setenv("DDSTUDY_STORE", postgres_url)
    code, out, err = ddstudy("status")
    assert code == 0
    assert "tiny" in out
    assert postgres.PASSWORD not in out + err
    for arguments in (["--help"], ["run", "--help"], ["run", "--nonsense"]):
        out, err = ddstudy(*arguments)[1:]
        assert postgres.PASSWORD not in out + err


def test_a_study_starts_from_the_results_of_another(ddstudy: Cli, folder: Path) -> None:
    assert ddstudy("run", "tiny.toml")[0] == 0
    (folder / "more.toml").write_text((folder / "tiny.toml").read_text().replace("k = [2, 4]", "k = [2, 3, 4]"))
    code, out, err = ddstudy("run", "more.toml", "--reuse", "tiny")
    assert (code, err) == (0, "")
    assert "4 results of tiny imported" in out
    assert "6 trials, 3 fits of 2 members, 4 done" in out
    assert len(re.findall(r"\] k3-.*COMPLETE", out)) == 2
    assert len(re.findall(r"COMPLETE \d", out)) == 2
    code, _, err = ddstudy("run", "more.toml", "--name", "none", "--reuse", "quick")
    assert (code, err.count("\n")) == (2, 2)
    assert "no study 'quick'" in err
    assert "none" not in ddstudy("status")[1]  # a refused run leaves no study behind
    assert ddstudy("run", "more.toml", "--reuse", "tiny", "--dry-run")[0] == 2


def test_whoever_looks_sees_who_is_fitting_what_and_when_it_ends(ddstudy: Cli, folder: Path) -> None:
    url = f"sqlite:///{folder}/ddstudy.db"
    (folder / "long.toml").write_text(
        (folder / "tiny.toml").read_text().replace("iterations = [5, 10]", "iterations = [5, 50_000]")
    )
    driver = Driver(folder, "run", "long.toml", "--store", url)
    try:
        clusters.until(lambda: "\nForecast" in driver.output)
        with Store(url, read_only=True) as store:
            clusters.until(lambda: any(each.worker for each in store.at_work("long")))
            (at_work,) = store.at_work("long")
            assert (at_work.fit, at_work.of) == ("k4-s4-l2-uniform-1x1", 50_000)
            assert at_work.driver == f"{socket.gethostname()}/{driver.pid}"
            assert at_work.worker == socket.gethostname()
            clusters.until(lambda: not store.view("long").trials.empty)
            ahead = outlook(store.view("long"), store.at_work("long"), datetime.now())
            assert ahead.per_minute > 0
            assert ahead.eta_seconds is not None
            # all but a thousandth of the work is left, so it takes longer than what is done took
            assert ahead.eta_seconds > 60 / ahead.per_minute
    finally:
        driver.kill()

    assert ddstudy("run", "tiny.toml")[0] == 0
    code, out, err = ddstudy("status", "--watch", "tiny")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "tiny: 4 of 4 settings measured, 0 failed"
    code, out, _ = ddstudy("logs", "tiny")
    assert (code, out) == (0, "tiny: no fit failed\n")


def test_logs_tell_all_that_is_known_of_a_failure(ddstudy: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> object:
        raise MemoryError("no memory is left")

    ddstudy("run", "tiny.toml", "--trials", "2")
    monkeypatch.setattr("ddstudy.study.evaluate.problem", broken)
    monkeypatch.setattr("ddstudy.study.forecasting.calibrate", lambda *_: Forecast())
    assert ddstudy("run", "tiny.toml")[0] == 1
    _, out, _ = ddstudy("status", "tiny")
    assert "`ddstudy logs tiny` tells all" in out
    code, out, _ = ddstudy("logs")
    assert code == 0
    assert "k4-s4-l2-uniform-1x1-i10: MemoryError: no memory is left" in out
    assert out.count("Traceback") == 2
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("nothing is to come, and it waits"))
    assert ddstudy("status", "--watch")[1].endswith("tiny: 2 of 4 settings measured, 2 failed\n")


def test_damage_is_named_and_awaited_by_nobody(ddstudy: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking at a study until it is over never ended where a trial of it was damaged."""
    assert ddstudy("run", "tiny.toml")[0] == 0
    with contextlib.closing(sqlite3.connect("ddstudy.db")) as database, database:
        database.execute("DELETE FROM trial_user_attributes WHERE key = 'stable' AND trial_id = 2")
    with monkeypatch.context() as patch:
        patch.setattr("time.sleep", lambda _: pytest.fail("nothing is to come, and it waits"))
        code, out, err = ddstudy("status", "--watch")
    assert (code, out.splitlines()[-1]) == (1, "tiny: 3 of 4 settings measured, 0 failed")
    assert "tiny: trial 1 is left out" in err
    for command in (["logs"], ["run", "tiny.toml", "--dry-run"]):
        code, _, err = ddstudy(*command)
        assert (code, "tiny: trial 1 is left out" in err) == (1, True)
    monkeypatch.setattr("ddstudy.study.evaluate.problem", lambda *_, **__: 1 / 0)
    monkeypatch.setattr("ddstudy.study.forecasting.calibrate", lambda *_: Forecast())
    code, _, err = ddstudy("run", "tiny.toml")
    assert (code, "1 setting failed" in err, "tiny: trial 1 is left out" in err) == (1, True, True)


def test_too_little_memory_is_told_in_words(ddstudy: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ddstudy fit` began whatever it was asked for, until the system ended it; what could not be had was a fault."""
    monkeypatch.setattr("ddstudy.execution.executors.usable_memory", lambda **_: 1e6)
    code, _, err = ddstudy("fit", "--k", 512, "--iterations", 1)
    assert (code, err.count("\n")) == (1, 1)
    assert "GB of memory" in err
    for made, size, said in ((np.empty, 2**50, "Unable to allocate"), (torch.empty, 2**60, "allocate")):
        monkeypatch.setattr("ddstudy.study.planner.plan", lambda *_, made=made, size=size, **__: made(size))
        code, _, err = ddstudy("run", "tiny.toml", "--dry-run")
        assert (code, err.count("\n")) == (1, 1)
        assert err.startswith("ddstudy: there is too little memory: ")
        assert said in err


def test_a_report_names_its_study_and_says_how_to_choose(ddstudy: Cli, folder: Path) -> None:
    """Of several studies the latest was taken without a word, and all pages had one name."""
    (folder / "one.toml").write_text(ONE_PANEL)
    report = partial(ddstudy, "report", "--dashboard", "one.toml")
    assert ddstudy("run", "tiny.toml", "--trials", 1)[0] == 0
    code, out, err = report()
    assert (code, err) == (0, "")
    assert re.fullmatch(r"Wrote report-tiny\.html \(\d\.\d MB, 1 trial\); open it in a browser\n", out)
    for name in ("second", "third"):
        assert ddstudy("run", "tiny.toml", "--trials", 1, "--name", name)[0] == 0
    code, out, err = report()
    choice, wrote = out.splitlines()
    assert (code, err, wrote.partition(" (")[0]) == (0, "", "Wrote report-third.html")
    assert choice == "third is the latest of 3 studies; `ddstudy report NAME...` shows others: second, tiny"
    for names, page in (
        (["tiny"], "report-tiny.html"),
        (["tiny", "second"], "report-tiny-second.html"),
        (["third", "tiny", "second"], "report-third-and-2-more.html"),
        (["third", "--out", "page.html"], "page.html"),
    ):
        code, out, err = report(*names)
        assert (code, err, out.partition(" (")[0], out.count("\n")) == (0, "", f"Wrote {page}", 1)
        assert (folder / page).is_file()


def test_a_summary_says_what_was_run_and_lists_the_front(ddstudy: Cli) -> None:
    code, out, _ = ddstudy("run", "tiny.toml", "--pareto", "--trials", 4)
    assert code == 0
    with Store("sqlite:///ddstudy.db", read_only=True) as store:
        view = store.view("tiny-pareto")
    told = facts(view)
    for name in ("members", "seed", "learning rate", "iterate that counts", "stable means", "device", "engine"):
        assert re.search(rf"^{name} +{re.escape(told[name])}$", re.sub(" +$", "", out, flags=re.M), flags=re.M), name
    names = [name for line in out.splitlines() if (name := line.split("  ")[0]) in told]
    assert {"duration", "load"} < set(names)
    assert names[-1] == "versions"
    table = out.partition("Pareto front of tiny-pareto")[2].partition("\u2514")[0]
    rows = [[cell.strip() for cell in line.split("\u2502")[1:-1]] for line in table.splitlines() if "\u2502" in line]
    scores = view.trials.set_index("number")[["psnr", "seconds"]]
    front = [
        number
        for number, (psnr, seconds) in scores.iterrows()
        if not any(
            (other.psnr >= psnr and other.seconds <= seconds) and (other.psnr > psnr or other.seconds < seconds)
            for other in scores.itertuples()
        )
    ]
    ranked = scores.loc[front].sort_values("psnr", ascending=False)
    assert [row[:3] for row in rows] == [
        [str(number), f"{row.psnr:.4g}", f"{row.seconds:.4g}"]
        for number, row in zip(ranked.index, ranked.itertuples(), strict=True)
    ]
    assert re.search(r"trial +\S+ psnr 2DD +\S+ seconds", table)


def test_no_psnr_is_printed_without_whose_it_is(ddstudy: Cli) -> None:
    """The mean of single members, on the way, and the ensemble's at the end were both called PSNR."""
    code, out, _ = ddstudy("run", "tiny.toml")
    assert code == 0
    assert len(re.findall(r"\d+\.\d+ dB, CV", out)) == len(re.findall(r"COMPLETE 2DD \d+\.\d+ dB, CV", out)) == 4
    assert "2DD: PSNR of the mean of 2 outputs; 1DD: mean PSNR of single members" in out
    assert re.search(r"psnr 2DD +\S +\d", out)
    assert re.search(r"psnr 2DD \d+\.\d+ at k", ddstudy("status")[1])
    fit = ddstudy("fit", "--size", 24, 20, "--k", 4, "--s", 4, "--l", 2, "--iterations", 100, "--members", 3)[1]
    assert re.search(r"\[100/100, 0 s left\] 1DD \d+\.\d+ dB, ", fit)
    values = dict(re.findall(r"^(psnr \dDD) +(\S+)$", fit, flags=re.M))
    assert set(values) == {"psnr 3DD", "psnr 1DD"}
    assert float(values["psnr 3DD"]) > float(values["psnr 1DD"])  # of a convex error
    assert re.search(r"\[100/100.* 1DD (\d+\.\d+)", fit)[1][:4] == values["psnr 1DD"][:4]  # type: ignore[index]
