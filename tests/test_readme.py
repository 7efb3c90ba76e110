import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import typer
from points import fit_of

from ddstudy.cli import app
from ddstudy.execution.executors import usable_cores
from ddstudy.images.volumes import load_target
from ddstudy.spec.axes import budgets_by_fit
from ddstudy.spec.files import known_keys, read_spec
from ddstudy.study.evaluate import Result, evaluate
from ddstudy.study.planner import job

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = {  # that are shown
    name: command
    for name, command in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]
    if not command.hidden
}


def shell_lines() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", README, flags=re.S)
    return [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]


def test_commands_in_the_readme_are_commands() -> None:
    lines = [line for line in shell_lines() if "ddstudy " in line]
    assert len(lines) >= 9
    for line in lines:
        command = line.partition(" -- ")[2] or line  # what is submitted to Ray
        name, *arguments = shlex.split(command.removeprefix(".venv/bin/"))[1:]
        COMMANDS[name].make_context(name, arguments)  # refuses what it does not know
        for argument in arguments:
            if "/" in argument and "://" not in argument:
                assert (ROOT / argument).exists(), argument


def test_make_targets_in_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = [line.split()[1] for line in shell_lines() if line.startswith("make ")]
    assert targets == ["run", "test"]
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


def test_every_key_is_in_the_table() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| (.*?) \| (.*) \|$", README, flags=re.M)
    described = [(key, default.strip("`"), meaning) for key, default, meaning in rows]
    assert described == [(key, default, meaning) for key, default, meaning in known_keys()]


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert links
    for link in links:
        if link.startswith("https://"):
            assert re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{5}", link)
        else:
            assert (ROOT / link).exists(), link


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
