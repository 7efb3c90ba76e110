"""What a kind of panel is: its options, as a strict model, and what it shows of studies.

A panel shows a sentence, a figure, a table, pictures, or what would fill it. Numbers are made by `tables`, `comparison`
and `images`, drawings by `figures`; in the kinds they meet, in words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, get_args

import pandas as pd
from pydantic import BaseModel, Field, create_model, field_validator, model_validator

from ddstudy.errors import UserError
from ddstudy.images.metrics import METRICS, QUALITY
from ddstudy.report import tables
from ddstudy.report.inverse import levels_of
from ddstudy.report.words import FACETS, about_judge, axes_of, text_of, title_of
from ddstudy.spec.options import MODEL, OPTIONS
from ddstudy.spec.schema import MetricName, flatten

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ddstudy.store.study import StudyView

if TYPE_CHECKING:
    Axis = str
else:
    Axis = Literal[tuple(OPTIONS)]  # a type checker wants to read a Literal's values here


@dataclass(frozen=True)
class Table:
    """Rows for people.

    Attributes:
        frame: the numbers.
        columns: heading -> column of the frame.
        digits: after the point, of fractions in columns that are not named after a metric.
        folded: heading of a column of long words. Where the page is narrow, each row is a block of its own, and these
            words are folded away.
    """

    frame: pd.DataFrame
    columns: dict[str, str]
    digits: int = 2
    folded: str = ""


@dataclass(frozen=True)
class Picture:
    """An image with its words.

    Attributes:
        faces: images beside or below each other, each with what it shows, for those who do not see it. The address is
            empty where there is no image.
        caption: one line below them.
        sides: letters of the directions in which the left and the right of every image lie; empty where nobody knows.
        scales: below each image what its colours stand for: the address of a strip, and the values at its two ends;
            none, or as many as there are images.
    """

    faces: tuple[tuple[str, str], ...]
    caption: str
    sides: str = ""
    scales: tuple[tuple[str, str, str] | None, ...] = ()


@dataclass(frozen=True)
class Shown:
    """What a panel shows.

    Attributes:
        sentence: what it says, and which trials it is about.
        figure: drawn from the numbers of `table`.
        table: numbers.
        large: a picture before all others, as wide as the panel.
        pictures: rows of images, as they stand beside each other.
        missing: what would fill the panel, or why nothing will; then it holds nothing else.
        never: no further trial of the study would fill it.
        differences: where image, device or budgets are not the thesis', topic -> sentence.
        thumbnails: the figure's points carry the numbers of trials whose outputs can be shown.
    """

    sentence: str
    figure: go.Figure | None = None
    table: Table | None = None
    large: Picture | None = None
    pictures: list[list[Picture]] = field(default_factory=list)
    missing: str = ""
    never: bool = False
    differences: dict[str, str] = field(default_factory=dict)
    thumbnails: bool = False


class _Filter(BaseModel):
    """The trials that a panel shows: those with one of these values on every axis named."""

    model_config = MODEL

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, tree: Any) -> Any:
        """TOML reads `fit.keep` as a table `fit`, `"fit.keep"` as a key."""
        return dict(flatten(tree)) if isinstance(tree, dict) else tree

    def __call__(self, trials: pd.DataFrame) -> pd.DataFrame:
        """The trials that pass: none of a study that does not search an axis which is named."""
        for axis, values in self.model_dump(exclude_none=True).items():
            trials = trials[trials[axis].isin(values)] if axis in trials else trials.iloc[:0]
        return trials

    def why_empty(self, view: StudyView) -> Shown | None:
        """What a panel shows where no trial passes: why, which is not that too few were measured."""
        if view.trials.empty or len(self(view.trials)):
            return None
        space = view.spec.search_space
        for axis, values in self.model_dump(exclude_none=True).items():
            if axis not in space.names:
                return Shown("", missing=f"The filter names {axis}, which the study does not search.", never=True)
            if not set(values) & set(space[axis]):
                has = ", ".join(map(text_of, space[axis]))
                missing = f"No trial passes the filter: {axis} is {has} in this study."
                return Shown("", missing=missing, never=True)
        return Shown("", missing=f"None of the {len(view.trials):,} trials so far passes the filter.")

    def __str__(self) -> str:
        named = self.model_dump(exclude_none=True).items()
        return ", ".join(f"{axis} = {' or '.join(map(str, values))}" for axis, values in named)


if TYPE_CHECKING:
    Filter = _Filter
else:
    lists = {
        path: (list[option.annotation] | None, Field(None, description=f"{option.description}: those shown"))
        for path, option in OPTIONS.items()
    }
    Filter = create_model("Filter", __base__=_Filter, __doc__=_Filter.__doc__, **lists)


class Panel(BaseModel):
    """A panel; each kind is a class of its own.

    Attributes:
        wide: it takes the whole width of a page.
        compares: it is about several studies at once.
    """

    model_config = MODEL
    wide: ClassVar[bool] = False
    compares: ClassVar[bool] = False

    kind: str
    title: Annotated[str, Field(min_length=1)] = Field(
        ..., description="heading of the panel; {y} in it is the name of the metric y"
    )
    data: list[str] | None = Field(None, description="names of the studies that the panel is about [all]")

    def about(self, *views: StudyView) -> Self | None:
        """The panel as studies can fill it: the only place that decides what stands in for PSNR.

        Where the truth is not known, the judge's score does; None where another metric of the truth is asked for.
        """
        metrics = {name: getattr(self, name) for name in ("x", "y") if getattr(self, name, None) in METRICS}
        changes: dict[str, str] = {}
        if not all(view.spec.knows_truth for view in views):
            changes = {name: "judge" for name, metric in metrics.items() if metric == "psnr"}
            metrics |= changes
            if len(set(metrics.values())) < len(metrics) or set(metrics.values()) & set(QUALITY):
                return None
        if "{y}" in self.title and "y" in metrics:
            title = self.title.replace("{y}", METRICS[metrics["y"]].label.removeprefix("judge's "))
            changes["title"] = title[:1].upper() + title[1:]
        return self.model_copy(update=changes) if changes else self

    def of(self, view: StudyView, panels: Sequence[Panel]) -> list[Self]:
        """The panels that it is on a page about a study: itself, none where it has nothing to say, or several.

        Args:
            view: the study.
            panels: all that are listed.
        """
        return [self]

    def show(self, views: Sequence[StudyView]) -> Shown:
        """What it shows of studies: of the first one, unless it compares several."""
        views = views if self.compares else views[:1]
        if (known := self.about(*views)) is None:
            return Shown("", missing="This is about the truth, which is not known.", never=True)
        if known is not self:
            return known.show(views)
        shown = self._of_studies(views)
        if "judge" in (getattr(self, "x", ""), getattr(self, "y", "")):
            return replace(shown, sentence=f"{shown.sentence} {about_judge(*(view.spec for view in views))}")
        return shown

    def _of_studies(self, views: Sequence[StudyView]) -> Shown:
        return self._of_study(views[0])

    def _of_study(self, view: StudyView) -> Shown:
        raise NotImplementedError  # a kind has this, or `_of_studies` where it compares

    def figure(self, views: Sequence[StudyView]) -> go.Figure:
        """Its figure.

        Raises:
            UserError: it has none, or the studies have no data for it.
        """
        shown = self.show(views)
        if shown.figure is None:
            names = ", ".join(view.name for view in views)
            what = "images" if shown.pictures or shown.large else "a table"
            raise UserError(f"study {names}: no figure of '{self.kind}'", shown.missing or f"This kind is {what}.")
        return shown.figure


KINDS: dict[str, type[Panel]] = {}  # the registered ones, by name


def register(*kinds: type[Panel]) -> None:
    """Makes kinds of panels known, so that files of panels and `Study.figure` can name them.

    Args:
        *kinds: each with `kind: Literal[NAME]`.
    """
    KINDS.update({get_args(kind.model_fields["kind"].annotation)[0]: kind for kind in kinds})


class Comparison(Panel):
    """A panel about several studies at once."""

    compares: ClassVar[bool] = True


class Filtered(Panel):
    """A panel that may show only some of the trials."""

    filter: Filter = Field(Filter(), description="a table of axis = [values]: the trials shown")

    def show(self, views: Sequence[StudyView]) -> Shown:
        """What it shows of studies."""
        reasons = [self.filter.why_empty(view) for view in (views if self.compares else views[:1])]
        empty = [shown for shown in reasons if shown is not None]
        return empty[0] if empty and len(empty) == len(reasons) else super().show(views)


class Faceted(Filtered):
    """A panel that groups trials by some axes, the facets; all others are a setting's within its group."""

    facets: list[Axis] = Field(
        ["noise", "tiling"],
        min_length=1,
        description="axes by which trials are grouped, those that the study has; by default priors and task levels",
    )

    @field_validator("facets")
    @classmethod
    def _no_repeats(cls, value: list[Axis]) -> list[Axis]:
        if len(set(value)) != len(value):
            raise ValueError("must not name an axis twice")
        return value

    def split(self, view: StudyView) -> tuple[list[str], list[str]]:
        """The study's axes that are facets, as they are listed, and the others: of one value is a facet only alone."""
        axes, space = axes_of(view), view.spec.search_space
        listed: list[str] = [axis for axis in self._facets_of(view) if axis in axes]
        facets = [axis for axis in listed if len(space[axis]) > 1] or listed[:1]
        return facets, [axis for axis in axes if axis not in facets]

    def has_groups(self, view: StudyView) -> bool:
        """Whether there is more than one group in a study."""
        space = view.spec.search_space
        return any(axis in space.names and len(space[axis]) > 1 for axis in self._facets_of(view))

    def _facets_of(self, view: StudyView) -> Sequence[str]:
        """Those named; else priors, and the levels of a task: what is best over several is that of the easiest."""
        if "facets" in self.model_fields_set:
            return self.facets
        priors = ["prior.kind"] if len(view.spec.values_of("prior.kind")) > 1 else []
        return [*priors, *levels_of(view)] or self.facets

    def group(self, facets: Sequence[str]) -> str:
        """What each of the groups by some facets is called."""
        return "pair" if tuple(facets) == FACETS else " and ".join(map(_called, facets))


class Plane(Filtered):
    """A panel in the plane of two metrics."""

    x: MetricName = Field(..., description="metric across")
    y: MetricName = Field(..., description="metric upwards")

    @model_validator(mode="after")
    def _two_metrics(self) -> Self:
        if self.x == self.y:
            raise ValueError("x and y must differ")
        return self


def _called(axis: str) -> str:
    return OPTIONS[axis].label if axis.startswith(("task.", "prior.")) else axis


def chosen_by(view: StudyView) -> str:
    """The metric of reconstructions by which a study chooses its best setting: its first objective that is one."""
    return next((name for name in view.spec.objectives if METRICS[name].is_of_output), view.spec.quality)


def roughness(views: Sequence[StudyView], panel: Filtered, *metrics: str) -> str:
    """Says where seconds that are shown are not those of the fits alone."""
    shown = [panel.filter(view.trials) for view in views if "seconds" in metrics]
    count = sum(map(tables.disturbed, shown))
    return f" The seconds of {count:,} were disturbed by other programs on their machine." if count else ""


def whose(metric: str) -> tuple[str, str]:
    """Whose `metric` is compared, in words, and who would fill a panel that has none."""
    if metric == "seconds":
        who = "trials, stable or not, that ran all their iterations on a device of their own"
        return who, who
    who = "stable trials" if METRICS[metric].is_of_output else "measured trials"
    return who, f"{who} with {title_of(metric)}"


def settings_of(rows: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """The same rows for a `Table`, fractions of axes with all digits and a dash where an option does not apply."""
    fractions = [axis for axis in axes if rows[axis].dtype.kind == "f"]
    return rows.assign(**{axis: rows[axis].map(text_of) for axis in fractions})
