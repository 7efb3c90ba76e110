"""The reference pages of the documentation, made of what the code itself says.

python docs/reference.py    # writes docs/reference/*.md; a test fails where they are not what this makes
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

import ddstudy.thesis.panels  # noqa: F401 - adds its kinds
from ddstudy.cli import app
from ddstudy.images.metrics import METRICS
from ddstudy.report.panels.base import KINDS
from ddstudy.spec.files import describe, known_keys
from ddstudy.spec.options import OPTIONS
from ddstudy.spec.schema import MetricName
from ddstudy.thesis.findings import FINDINGS

FOLDER = Path(__file__).parent / "reference"
MADE = "<!-- made by docs/reference.py -->"

# of the table of trials; metrics have a page of their own, axes are options of the study file
COLUMNS = {
    "number": "of the trial, in Optuna too",
    "state": "COMPLETE; PRUNED where it is unstable or was stopped early; FAIL where the machine failed",
    "fit_id": "name of the fit that served it: the setting without iterations",
    "NAME_1dd": "a metric as the mean over single members",
    "NAME_tiles": "a metric as the mean over tiles; of one tile that of the slice",
    "psnr_member_N": "PSNR of member N, dB; `judge_member_N` where the judge is not the truth",
    "sd_db": "standard deviation of the members' PSNR, dB",
    "seconds_per_member": "seconds / members, which run side by side",
    "iterations_done": "fewer than `iterations` where the fit was stopped, or started from a neighbour's weights",
    "dead_members": "members far below the others at the end",
    "waited_percent": "share of the fit's time in which its threads waited for a core that others had",
    "baseline": "PSNR of the measurement itself, dB, which a fit has to beat",
    "chosen_iteration": "the iterate that is the answer, as `fit.stop` chose it",
    "oracle_iteration": "the check with the best PSNR, known by the truth only",
    "oracle_psnr": "its PSNR, dB",
    "oracle_gap": "what the answer is below it, dB",
    "ended_by": "the stopping rule that ended the fit before its budget",
    "stable": "whether it passed the limits of `[stability]`",
    "reason": "why it is unstable or failed",
    "device": "that computed it",
    "engine": "`fused`, `reference` or `direct`, and the precision",
    "shared": "whether other fits ran on the device, so that its seconds are not comparable",
    "disturbed": "whether other programs took more than 10 % of its time",
    "reused_from": "the study and trial whose result it is",
    "version": "of ddstudy",
    "commit": "of ddstudy, where it is a checkout",
    "started": "when",
    "finished": "when",
}


def study_file() -> str:
    """Every key of a study file."""
    rows = [
        (f"`{key}`" + " *" * _is_axis(key), f"`{default}`" * bool(default), meaning)
        for key, default, meaning in known_keys()
    ]
    lines = [
        "# Study file",
        "Every key, its default and what it means. Those marked * can be an axis of `[space]` by their dotted path; "
        "[Studies](../studies.md) says how. Unknown keys and impossible values are refused, with what is valid.",
        _table(("key", "default", "meaning"), rows),
    ]
    return _page(lines)


def _is_axis(key: str) -> bool:
    return key in OPTIONS or key.removeprefix("space.") in OPTIONS


def command_line() -> str:
    """Every command with its options."""
    lines = [
        "# Command line",
        "Exit codes: 0 done, 1 something failed, 2 a mistake in what was given, 130 stopped with Ctrl-C.",
        "A shell completes commands, options and files once it has read what `ddstudy completion` prints: in bash and "
        'zsh `eval "$(ddstudy completion bash)"` in `~/.bashrc`, or `zsh` in `~/.zshrc` behind `compinit`; in fish '
        "`ddstudy completion fish > ~/.config/fish/completions/ddstudy.fish`.",
    ]
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, command in commands.items():
        if command.hidden:
            continue
        rows = []
        for parameter in command.params:
            shown = getattr(parameter, "help", None) or ""
            named = ", ".join(f"`{one}`" for one in (*parameter.opts, *parameter.secondary_opts))
            rows.append((named if parameter.param_type_name == "option" else f"`{parameter.name.upper()}`", shown))
        lines += [
            f"## ddstudy {name}",
            inspect.cleandoc(command.help or ""),
            _code(command.epilog.removeprefix("Example: ")),
        ]
        lines.append(_table(("", "what it says"), rows))
    return _page(lines)


def metrics() -> str:
    """Every metric."""
    on = {"ensemble": "ensemble", "members": "members", "tiles": "tiles", "fit": "fit"}
    rows = [
        (f"`{metric.name}`", metric.title, metric.better, ", ".join(on[one] for one in metric.inputs))
        for metric in METRICS.values()
    ]
    lines = [
        "# Metrics",
        "What can be an objective, and what every trial records. Image quality is taken on the joined slice, clipped "
        "to [0, 1]; of an ensemble the mean of its members' outputs is judged. A metric that a slice is too small for "
        "is left out.",
        _table(("metric", "name", "better", "measured on"), rows),
    ]
    return _page(lines)


def panels() -> str:
    """Every kind of panel with its fields."""
    lines = [
        "# Panels",
        "What a report can show: a `[[panel]]` table of a dashboard file names its `kind` and these fields. "
        "In Python, `study.figure(KIND, FIELD=...)`.",
    ]
    for kind, model in KINDS.items():
        fields = {name: field for name, field in model.model_fields.items() if name != "kind"}
        rows = [(f"`{name}`", _default(field), _meaning(name, field)) for name, field in fields.items()]
        lines += [f"## {kind}", inspect.getdoc(model) or "", _table(("field", "default", "what it may be"), rows)]
    return _page(lines)


def columns() -> str:
    """Every column of the tables of trials and checks."""
    rows = [(f"`{name}`", text) for name, text in COLUMNS.items()]
    lines = [
        "# Columns",
        "`ddstudy export` writes them, `study.trials` has them: one row a trial. Beside these stand the axes of the "
        "study under their paths, missing where an option means nothing, and the [metrics](metrics.md) under their "
        "names. The second table, of curves, has `fit_id`, `iteration`, `seconds`, `member` and `psnr`.",
        _table(("column", "what it is"), rows),
    ]
    return _page(lines)


def findings() -> str:
    """Every finding with its rule."""
    lines = ["# Findings", "What `ddstudy findings` tests, and how; [The thesis](../thesis.md) says what that means."]
    for finding in FINDINGS:
        of = "several priors" if finding.about == "priors" else "copies by the thesis' decoder"
        lines += [
            f"## {finding.name}",
            f"{finding.statement} ({finding.source}; asked of studies of {of})",
            finding.rule,
        ]
    return _page(lines)


PAGES = {
    "study-file": study_file,
    "command-line": command_line,
    "metrics": metrics,
    "panels": panels,
    "columns": columns,
    "findings": findings,
}


def _meaning(name: str, field: Any) -> str:
    about = field.description or ""
    if name == "filter":
        return about
    allowed = describe(field.annotation, field.metadata).replace(describe(MetricName), "a metric")
    return f"{allowed}; {about}".rstrip("; ")


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "" if value is None or isinstance(value, BaseModel) else f"`{value}`"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (head, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|" + " --- |" * len(head), *lines[1:]])


def _code(line: str) -> str:
    return f"```sh\n{line}\n```"


def _page(blocks: list[str]) -> str:
    return "\n\n".join([MADE, *blocks]) + "\n"


def main() -> None:
    """Writes the pages."""
    FOLDER.mkdir(exist_ok=True)
    for name, make in PAGES.items():
        (FOLDER / f"{name}.md").write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    main()
