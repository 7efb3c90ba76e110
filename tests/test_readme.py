import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
import typer
from drivers import here
from points import fit_of

from ddstudy.cli import app
from ddstudy.execution.executors import usable_cores
from ddstudy.images.metrics import COLUMNS as OF_METRICS
from ddstudy.images.metrics import METRICS
from ddstudy.images.volumes import load_target
from ddstudy.report.panels import KINDS, parse_panel
from ddstudy.spec.axes import budgets_by_fit
from ddstudy.spec.files import known_keys, parse_spec, read_spec
from ddstudy.spec.options import OPTIONS, PriorKind, TaskSpec
from ddstudy.store.database import Store
from ddstudy.study.evaluate import Result, evaluate
from ddstudy.study.planner import job

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
COMMANDS = {  # that are shown
    name: command
    for name, command in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]
    if not command.hidden
}


def loaded(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(kind: str, page: Path) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", page.read_text(), flags=re.S)


def shell_lines(page: Path) -> list[str]:
    return [line.partition("#")[0].strip() for block in blocks("sh", page) for line in block.splitlines()]


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_that_are_shown_are_commands(page: Path) -> None:
    lines = [line for line in shell_lines(page) if "ddstudy " in line and not line.startswith("export ")]
    assert len(lines) >= 8 or page.name != "README.md"
    for line in lines:
        command = line.partition(" -- ")[2] or line  # what is submitted to Ray
        name, *arguments = shlex.split(command.removeprefix(".venv/bin/"))[1:]
        COMMANDS[name].make_context(name, arguments)  # refuses what it does not know
        for argument in arguments:
            if argument.startswith(("studies/", "dashboards/", "ddstudy/")):
                assert (ROOT / argument).exists(), argument


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_make_targets_that_are_shown_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = [line.split()[1] for line in shell_lines(page) if line.startswith("make ")]
    assert targets == ["run", "test"] or page.name != "README.md"
    assert all(re.search(rf"^{target}:", makefile, flags=re.M) for target in targets)


def test_every_command_is_in_the_table_with_options_that_exist() -> None:
    rows = dict(re.findall(r"^\| `ddstudy ([\w-]+)` \| (.*) \|$", README, flags=re.M))
    assert set(rows) == set(COMMANDS)
    for name, text in rows.items():
        options = {option for parameter in COMMANDS[name].params for option in parameter.opts}
        assert set(re.findall(r"`(--[\w-]+)`", text)) <= options


def test_every_command_has_an_example_and_every_option_a_help_text() -> None:
    for name, command in COMMANDS.items():
        assert command.epilog
        assert command.epilog.startswith(f"Example: ddstudy {name}")
        line = shlex.split(command.epilog.removeprefix("Example: "))
        command.make_context(name, line[2:])
        assert all(getattr(parameter, "help", "text") for parameter in command.params)


@pytest.mark.parametrize("name", ["study-file", "command-line", "metrics", "panels", "columns", "findings"])
def test_references_are_what_the_code_says(name: str) -> None:
    """`python docs/reference.py` makes them anew."""
    reference = loaded("reference")
    assert set(reference.PAGES) == {page.stem for page in (ROOT / "docs/reference").glob("*.md")}
    assert (ROOT / f"docs/reference/{name}.md").read_text() == reference.PAGES[name]()


def test_nothing_is_missing_in_the_references() -> None:
    text = {page.stem: page.read_text() for page in (ROOT / "docs/reference").glob("*.md")}
    assert all(f"| `{key}`" in text["study-file"] for key, _, _ in known_keys())
    assert all(f"`{option}`" in text["command-line"] for c in COMMANDS.values() for p in c.params for option in p.opts
               if p.param_type_name == "option")  # fmt: skip
    assert all(f"\n## {kind}\n" in text["panels"] for kind in KINDS)
    assert all(f"| `{metric}` |" in text["metrics"] for metric in METRICS)
    priors, tasks = ((ROOT / f"docs/{page}.md").read_text() for page in ("priors", "tasks"))
    assert all(f"| `{kind}` |" in priors for kind in get_args(PriorKind))
    assert all(f"| `{kind}` |" in tasks for kind in get_args(TaskSpec.model_fields["kind"].annotation))


def test_every_column_is_described(tmp_path: Path) -> None:
    """Of a real study of a task with a rule that stops fits, and of the table that any study has."""
    described = set(loaded("reference").COLUMNS)
    rows, columns = np.mgrid[0:24, 0:24] / 24
    np.save(tmp_path / "image.npy", rows * columns)
    (tmp_path / "small.toml").write_text("""
[target]
file = "image.npy"
[task]
kind = "denoise"
sigma = 0.1
[space]
k = [4]
s = [4]
l = [2]
iterations = [200, 400]
[fit]
members = 2
stop = "emv"
patience = 1
check_every = 10
[stability]
prune = false
""")
    url = f"sqlite:///{tmp_path}/store.db"
    code, printed = here("run", "small.toml", "--store", url)
    assert code == 0, printed
    with Store(url, read_only=True) as store:
        table: pd.DataFrame = store.view("small").trials
    known = {*described, *METRICS, *OPTIONS, *OF_METRICS["members"].values(), *OF_METRICS["tiles"].values()}
    assert {re.sub(r"_member_\d+$", "", column) for column in table} - known == set()
    assert "ended_by" in table


def slugs(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if link.startswith("https://"):
            assert re.match(r"https://(arxiv\.org/abs/\d{4}\.\d{5}$|github\.com/)", link), link
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in slugs(target), link


def test_studies_that_are_shown_are_valid() -> None:
    """Whole ones as they are, lists of a space with the rest of the thesis' axes."""
    import tomllib

    rest = {"k": [4], "s": [4], "l": [2], "iterations": [10]}
    shown = [block for page in (ROOT / "README.md", ROOT / "docs/studies.md") for block in blocks("toml", page)]
    assert len(shown) >= 2
    for block in shown:
        tree = tomllib.loads(block)
        parse_spec({"name": "shown", **tree, "space": rest | tree.get("space", {})}, "shown")


def test_the_panel_of_ones_own_is_one(tmp_path: Path) -> None:
    (code,) = blocks("python", ROOT / "docs/own.md")
    known = dict(KINDS)
    try:
        exec(compile(code, "docs/own.md", "exec"), {"__name__": "own"})
        assert parse_panel({"kind": "slowest", "title": "Slow"}, "here").kind == "slowest"
    finally:
        KINDS.clear()
        KINDS.update(known)


def test_numbers_of_the_readme() -> None:
    quick = read_spec(ROOT / "ddstudy" / "data" / "quick.toml")
    space = quick.search_space
    assert (len(space), len(budgets_by_fit(space)), quick.fit.members) == (48, 24, 5)
    assert f"It fits {len(space)} settings, {len(budgets_by_fit(space))} fits of 5 members each" in README
    image = load_target(quick.target)
    assert image.image.shape == (1, 96, 80)


@pytest.mark.slow
def test_expected_result_of_the_readme() -> None:
    quick = read_spec(ROOT / "ddstudy" / "data" / "quick.toml")
    work = job(quick, load_target(quick.target), fit_of(32, 8, 4, "uniform", "1x1"), (200,))
    (result,) = [e for e in evaluate(work, device="cpu", threads=usable_cores()) if isinstance(e, Result)]
    assert result.values["psnr"] == pytest.approx(31, abs=1)
    assert float(np.max([result.values["cv_percent"]])) <= 5
