"""Which panels a report shows, and in which order: a TOML file, a list of `[[panel]]`.

One strict model per kind of panel, in the manner of `ddstudy.spec.schema`. `OVERVIEW` is the list used where nobody
names another, `COMPARE` goes before it where several studies are shown.
"""

from __future__ import annotations

import difflib
import functools
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ddstudy.errors import UserError
from ddstudy.report.thesis import Number
from ddstudy.spec.axes import Noise, Tiling
from ddstudy.spec.files import MOST_MISTAKES, describe, mistakes, read_toml
from ddstudy.spec.schema import Metric

OVERVIEW = Path(__file__).parents[1] / "data" / "overview.toml"
COMPARE = OVERVIEW.with_name("compare.toml")
Axis = Literal["k", "s", "l", "iterations", "noise", "tiling"]
_MODEL = ConfigDict(extra="forbid", strict=True, frozen=True)


class Filter(BaseModel):
    """The trials that a panel shows: those with one of these values on every axis named."""

    model_config = _MODEL

    k: list[int] | None = Field(None, description="channels shown")
    s: list[int] | None = Field(None, description="scale factors shown")
    l: list[int] | None = Field(None, description="blocks shown")
    iterations: list[int] | None = Field(None, description="budgets of iterations shown")
    noise: list[Noise] | None = Field(None, description="input tensors shown")
    tiling: list[Tiling] | None = Field(None, description="tilings shown")

    def __call__(self, trials: pd.DataFrame) -> pd.DataFrame:
        """The trials that pass."""
        for axis, values in self.model_dump(exclude_none=True).items():
            trials = trials[trials[axis].isin(values)]
        return trials

    def __str__(self) -> str:
        named = self.model_dump(exclude_none=True).items()
        return ", ".join(f"{axis} = {' or '.join(map(str, values))}" for axis, values in named)


class _Titled(BaseModel):
    model_config = _MODEL

    title: Annotated[str, Field(min_length=1)] = Field(..., description="heading of the panel")
    data: list[str] | None = Field(None, description="names of the studies that the panel is about [all]")


class Filtered(_Titled):
    """A panel that may show only some of the trials."""

    filter: Filter = Field(Filter(), description="a table of axis = [values]: the trials shown")


class _Plane(Filtered):
    x: Metric = Field(..., description="metric across")
    y: Metric = Field(..., description="metric upwards")

    @model_validator(mode="after")
    def _two_metrics(self) -> Self:
        if self.x == self.y:
            raise ValueError("x and y must differ")
        return self


class Pareto(_Plane):
    """Every trial in the plane of two metrics, and its Pareto front."""

    kind: Literal["pareto"]


class Parallel(Filtered):
    """Every trial as a line through its setting, the best ones in front."""

    kind: Literal["parallel"]
    y: Metric = Field(..., description="metric that ranks the trials")


class Importance(_Titled):
    """Share of the variance of a metric that each axis explains; of the whole study, so without a filter."""

    kind: Literal["importance"]
    y: Metric = Field(..., description="metric whose variance is explained")


class _ByAxis(Filtered):
    x: Axis = Field(..., description="axis of the setting across")
    y: Metric = Field(..., description="metric that is summarised")
    group: Axis | None = Field(None, description="axis of the setting that splits each value of x")

    @model_validator(mode="after")
    def _two_axes(self) -> Self:
        if self.group == self.x:
            raise ValueError("x and group must differ")
        return self


class Quartiles(_ByAxis):
    """How a metric is distributed per value of an axis."""

    kind: Literal["quartiles"]


class Means(_ByAxis):
    """Average of a metric per value of an axis (thesis Figs. 4.2 and 4.3, Tables 4.1 and 4.2)."""

    kind: Literal["means"]


class Heatmap(_ByAxis):
    """Median of a metric for every combination of two axes."""

    kind: Literal["heatmap"]
    group: Axis = Field(..., description="axis of the setting upwards")


class Convergence(Filtered):
    """Curves of the members of two fits, where they disagree most and least (thesis Figs. 2.3 and 4.5)."""

    kind: Literal["convergence"]
    y: Literal["mse", "psnr"] = Field("mse", description="what is drawn over the iterations")


class Unstable(Filtered):
    """Share of settings whose members disagree, per pair (thesis Fig. 4.4)."""

    kind: Literal["unstable"]


class Ensemble(Filtered):
    """PSNR of one decoder and of the ensemble, per pair (thesis Fig. 4.6)."""

    kind: Literal["ensemble"]


class Best(Filtered):
    """The best setting of each pair (thesis Tables 4.3 to 4.5)."""

    kind: Literal["best"]
    y: Metric = Field(..., description="metric that is best")


class Outputs(Filtered):
    """Outputs of one setting and their error maps, per pair (thesis Fig. 4.1)."""

    kind: Literal["outputs"]


class NoisePreview(_Titled):
    """Input tensors as images (thesis Figs. 3.1 and 3.3)."""

    kind: Literal["noise"]
    x: Literal["noise", "feature_size"] = Field(
        "noise", description="what differs: the kind of noise, or the feature size of 'simplex'"
    )


class Tilings(_Titled):
    """The target in one piece and in tiles (thesis Fig. 3.4)."""

    kind: Literal["tilings"]


class Published(_Titled):
    """A table of the thesis beside ours, of the whole study."""

    kind: Literal["published"]
    table: Number = Field(..., description="table of the thesis, or the numbers of its text")


class Findings(_Titled):
    """The thesis' findings, re-tested on the whole study."""

    kind: Literal["findings"]


class Fronts(_Plane):
    """The Pareto fronts of several studies in one plane."""

    kind: Literal["fronts"]


class Ranks(Filtered):
    """Whether settings rank alike in several studies: a metric against itself, and Spearman's correlation."""

    kind: Literal["ranks"]
    y: Metric = Field(..., description="metric by which settings are ranked")


class Transfer(Filtered):
    """What the best setting of each study is worth in the others."""

    kind: Literal["transfer"]
    y: Metric = Field(..., description="metric that is best")


class Slices(Filtered):
    """Results away from the slice for which the setting was chosen (thesis Fig. 5.1)."""

    kind: Literal["slices"]
    y: Metric = Field(..., description="metric upwards")


Comparison = Fronts | Ranks | Transfer | Slices
Panel = (
    Pareto
    | Parallel
    | Importance
    | Quartiles
    | Means
    | Heatmap
    | Convergence
    | Unstable
    | Ensemble
    | Best
    | Outputs
    | NoisePreview
    | Tilings
    | Published
    | Findings
    | Comparison
)
Panels = tuple[Panel, ...]
KINDS: dict[str, type[Panel]] = {get_args(model.model_fields["kind"].annotation)[0]: model for model in get_args(Panel)}


def read_panels(path: Path = OVERVIEW) -> Panels:
    """Reads and checks a list of panels.

    Raises:
        UserError: the file is missing, is no TOML, or says something that is not valid; so for every mistake.
    """
    example = "dashboards/overview.toml is an example."
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
