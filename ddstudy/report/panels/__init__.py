"""Which panels a report shows, and in which order: a TOML file, a list of `[[panel]]`.

A kind of panel is one class, its options and its content together. `KINDS` has those of the modules here and those that
others `register`.
`OVERVIEW` is the list used where nobody names another, `COMPARE` goes before it where several studies are shown.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from ddstudy.errors import UserError
from ddstudy.report.panels.base import KINDS, Filter, Filtered, Panel, Picture, Shown, Table, register
from ddstudy.report.panels.best import Best
from ddstudy.report.panels.by_axis import Heatmap, Means, Quartiles
from ddstudy.report.panels.by_level import ByLevel
from ddstudy.report.panels.cases import Cases, CasesByAxis, CasesNeeded, CasesTransfer, HeldOut
from ddstudy.report.panels.history import History
from ddstudy.report.panels.importance import Importance
from ddstudy.report.panels.inputs import NoisePreview, Tilings
from ddstudy.report.panels.judges import Judges
from ddstudy.report.panels.members import Convergence, Ensemble, Unstable
from ddstudy.report.panels.outputs import Outputs
from ddstudy.report.panels.parallel import Parallel
from ddstudy.report.panels.plane import Fronts, Pareto
from ddstudy.report.panels.priors import Priors
from ddstudy.report.panels.ranks import Ranks
from ddstudy.report.panels.slices import CasesSlices, Slices
from ddstudy.report.panels.stopping import Stopping
from ddstudy.report.panels.transfer import Transfer
from ddstudy.spec.files import MOST_MISTAKES, describe, mistakes, read_toml

if TYPE_CHECKING:
    from ddstudy.store.study import StudyView

__all__ = [
    "COMPARE",
    "KINDS",
    "OVERVIEW",
    "Filtered",
    "Panel",
    "Picture",
    "Shown",
    "Table",
    "panels_of",
    "parse_panel",
    "read_panels",
    "register",
]

OVERVIEW = Path(__file__).parents[2] / "data" / "overview.toml"
COMPARE = OVERVIEW.with_name("compare.toml")
register(
    Pareto,
    Parallel,
    Importance,
    Quartiles,
    Means,
    Heatmap,
    Convergence,
    Unstable,
    Ensemble,
    Best,
    Outputs,
    NoisePreview,
    Tilings,
    Fronts,
    Ranks,
    Transfer,
    Slices,
    ByLevel,
    Stopping,
    Judges,
    Priors,
    Cases,
    CasesByAxis,
    CasesTransfer,
    CasesNeeded,
    HeldOut,
    CasesSlices,
    History,
)


def read_panels(path: Path = OVERVIEW) -> tuple[Panel, ...]:
    """Reads and checks a list of panels.

    Raises:
        UserError: the file is missing, is no TOML, or says something that is not valid; so for every mistake.
    """
    example = f"{OVERVIEW} is an example."
    tree = read_toml(path, "list of panels", example)
    unknown = [f"{path}: {key}: unknown key" for key in tree if key != "panel"]
    wrong = ["\n".join([*unknown[:MOST_MISTAKES], "Valid: [[panel]] tables only."])] if unknown else []
    listed = tree.get("panel")
    if not isinstance(listed, list) or not listed or not all(isinstance(panel, dict) for panel in listed):
        raise UserError(*wrong or (f"{path}: names no panel", f"Valid: one [[panel]] table or more; {example}"))
    panels = []
    for number, panel in enumerate(listed, 1):
        try:
            panels.append(parse_panel(panel, f"{path}: panel {number}"))
        except UserError as error:
            wrong.append(str(error))
    if wrong:
        more = len(wrong) - MOST_MISTAKES
        raise UserError("\n".join(wrong[:MOST_MISTAKES] + [f"And {more:,} more panels."] * (more > 0)))
    return tuple(panels)


def panels_of(view: StudyView, panels: Sequence[Panel]) -> list[Panel]:
    """The panels that stand on a page about a study.

    Args:
        view: the study.
        panels: all that are listed.
    """
    ours = [panel for panel in panels if not panel.compares and (panel.data is None or view.name in panel.data)]
    known = [about for panel in ours if (about := panel.about(view)) is not None]
    return [each for panel in known for each in panel.of(view, known)]


def parse_panel(tree: dict[str, Any], where: str) -> Panel:
    """Checks one panel. `where` names it in errors.

    Raises:
        UserError: it says something that is not valid.
    """
    kind = tree.get("kind")
    if kind == "claims":  # as files of earlier versions say
        tree = tree | {"kind": (kind := "findings")}
    if not isinstance(kind, str) or kind not in KINDS:
        wrong = "missing" if kind is None else f"unknown, {kind!r}"
        raise UserError(f"{where}: kind: {wrong}", f"Valid: {', '.join(KINDS)}.")
    model = KINDS[kind]
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        # what concerns the panel as a whole concerns its x
        raise UserError(mistakes(error, where, "x", functools.partial(_valid, model))) from None


def _valid(model: type[BaseModel], location: list[Any]) -> str:
    """What a key may say; or, where there is no such key, which ones there are."""
    names = [part for part in location if isinstance(part, str)] or ["x"]
    owner = model if names[0] != "filter" or len(names) == 1 else Filter
    key = names[-1]
    if key in owner.model_fields:
        field = owner.model_fields[key]
        words = "" if key == "filter" else f"{describe(field.annotation, field.metadata)} - "
        return f"Valid: {words}{field.description}."
    near = difflib.get_close_matches(key, list(owner.model_fields), 1)
    hint = f"Did you mean '{near[0]}'? " if near else ""
    return f"{hint}Valid here: {', '.join(owner.model_fields)}."
