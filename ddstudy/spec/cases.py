"""Cases: what every setting of a study is measured on, and slices among them that are fitted with their neighbours.

`fit.joint` adjacent slices share a network, which has a channel for each. With `fit.start = "neighbour"` the middle one
of these networks comes first, from random weights, and the others follow outwards, each from the weights with which the
one before it ended. Either way several cases of a study are one unit of work.
"""

from __future__ import annotations

import fnmatch
import functools
import itertools
import math
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import PurePath
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar

from pydantic import BaseModel, Field, field_validator, model_validator

from ddstudy.spec.options import MODEL, CaseOption, File, SliceOf, Value

_RANGE = re.compile(r"(?P<first>[0-9]{1,6}):(?P<end>[0-9]{1,6})(:(?P<step>[1-9][0-9]{0,5}))?")
_AROUND = re.compile(r"mid\+-(?P<reach>[1-9][0-9]{0,4})(:(?P<step>[1-9][0-9]{0,4}))?")
MOST_CASES = 10_000


class CaseSpec(BaseModel):
    """One of `[[cases.table]]`: a case by its name, with what it has of its own."""

    model_config = MODEL

    name: str = Field(..., pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,99}$", description="of the case")
    file: File = Field(None, description="volume or picture; empty: the target's")
    slice: SliceOf | None = Field(None, description="slice; empty: the target's")
    volume: Annotated[int, Field(ge=0)] | None = Field(None, description="of a 4-D series; empty: the target's")
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = Field(
        None, description="of the measurement; empty: the task's"
    )
    sigma: Annotated[float, Field(ge=0, le=10)] | None = Field(None, description="noise level; empty: the task's")
    holdout: bool = Field(False, description="only `ddstudy judge` fits it: it takes no part in any choice")

    @property
    def own(self) -> dict[str, Value]:
        """What it says in place of the study's tables, by path."""
        paths = {"file": "target.file", "slice": "target.slice", "volume": "target.volume"}
        paths |= {"seed": "task.seed", "sigma": "task.sigma"}
        return {path: value for key, path in paths.items() if (value := getattr(self, key)) is not None}


class CasesSpec(CaseOption):
    """`[cases]`: what every setting is measured on; without it, on the one image that `[target]` and `[task]` say.

    Cases are the product of the lists, or the rows of `[[cases.table]]`. What is to be chosen, the objective, is taken
    over all of them but those held out.
    """

    files: list[str] = Field([], description="volumes or pictures; folders in BIDS and patterns with * are read out")
    slices: list[SliceOf] = Field(
        [], description="slices, also ranges: '40:140:10' as in Python, 'mid+-30' and 'mid+-30:10' around the middle"
    )
    volumes: list[Annotated[int, Field(ge=0)]] = Field([], description="volumes of a 4-D series")
    seeds: list[Annotated[int, Field(ge=0, lt=2**63)]] = Field([], description="of the measurement: its noise and mask")
    sigmas: list[Annotated[float, Field(ge=0, le=10)]] = Field([], description="noise levels of the measurement")
    table: list[CaseSpec] = Field([], description="cases by name, in place of lists")
    holdout: list[str] = Field([], description="names of cases, or patterns with *, that only `ddstudy judge` fits")
    objective: Literal["mean", "worst", "quantile"] = Field(
        "mean", description="of every number of a setting over its cases: mean, worst or quantile"
    )
    quantile: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.25, description="for objective 'quantile': counted from the worst case"
    )

    @field_validator("slices", mode="before")
    @classmethod
    def _ranges(cls, value: Any) -> Any:
        return [each for item in value for each in slices_of(item)] if isinstance(value, list) else value

    @field_validator("files", "slices", "volumes", "seeds", "sigmas")
    @classmethod
    def _no_repeats(cls, value: list[Any]) -> list[Any]:
        if len(set(value)) != len(value):
            raise ValueError("must not name a case twice")
        return value

    @model_validator(mode="after")
    def _named(self) -> Self:
        lists: list[list[Any]] = [self.files, self.slices, self.volumes, self.seeds, self.sigmas]
        if self.table and any(lists):
            raise ValueError("cases.table and lists of cases exclude each other")
        if math.prod(len(each) for each in lists if each) > MOST_CASES or len(self.table) > MOST_CASES:
            raise ValueError(f"there can be {MOST_CASES:,} cases")
        names = [case.name for case in self._listed]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two cases are named '{twice[0]}'; give them names in [[cases.table]]")
        for pattern in self.holdout:
            if not fnmatch.filter(names, pattern):
                raise ValueError(f"holdout names no case: '{pattern}'; cases are {', '.join(names[:10]) or 'none'}")
        if names and not self.chosen_by:
            raise ValueError("holdout leaves no case to choose by")
        if self.case and self.case not in names:
            raise ValueError(f"case: there is no '{self.case}'; cases are {', '.join(names[:10]) or 'none'}")
        return self

    @functools.cached_property
    def _listed(self) -> list[CaseSpec]:
        """All cases, before `holdout` is looked at."""
        if self.table:
            return self.table
        if not any([self.files, self.slices, self.volumes, self.seeds, self.sigmas]):
            return []
        stems = _stems(self.files)
        lists: list[list[Any]] = [self.files, self.slices, self.volumes, self.seeds, self.sigmas]
        found = []
        for file, where, volume, seed, sigma in itertools.product(*(each or [None] for each in lists)):
            parts = [stems[file] if file is not None else "", "" if where is None else f"slice{where}"]
            parts += [f"volume{volume}" if volume is not None else "", f"sigma{sigma:g}" if sigma is not None else ""]
            parts += [f"y{seed}" if seed is not None else ""]
            name = "-".join(filter(None, parts))
            found.append(CaseSpec(name=name, file=file, slice=where, volume=volume, seed=seed, sigma=sigma))
        return found

    @functools.cached_property
    def by_name(self) -> dict[str, CaseSpec]:
        """All cases, in the order of the file; none where the study has none."""
        held = {name for pattern in self.holdout for name in fnmatch.filter([c.name for c in self._listed], pattern)}
        return {
            case.name: case.model_copy(update={"holdout": case.holdout or case.name in held}) for case in self._listed
        }

    @property
    def chosen_by(self) -> tuple[str, ...]:
        """Names of the cases that take part in the choice."""
        return tuple(name for name, case in self.by_name.items() if not case.holdout)

    @property
    def held_out(self) -> tuple[str, ...]:
        """Names of those that do not."""
        return tuple(name for name, case in self.by_name.items() if case.holdout)

    @functools.cached_property
    def stacks(self) -> list[dict[str, tuple[str, int]]]:
        """Cases that differ in their slice alone, in the order of slices, held-out ones by themselves.

        By name, with how the slice is counted, by index or from the middle, and its number.
        """
        found: dict[tuple[object, ...], dict[str, tuple[str, int]]] = {}
        for name, case in self.by_name.items():
            others = {path: value for path, value in case.own.items() if path != "target.slice"}
            where = "mid" if case.slice is None else case.slice
            place = ("index", where) if isinstance(where, int) else ("mid", int(where.removeprefix("mid") or 0))
            found.setdefault((case.holdout, *others.items()), {})[name] = place
        return [dict(sorted(stack.items(), key=lambda item: item[1])) for stack in found.values()]


def slices_of(item: object) -> list[object]:
    """The slices that a range names."""
    if isinstance(item, str) and (found := _RANGE.fullmatch(item)):
        slices = range(int(found["first"]), int(found["end"]), int(found["step"] or 1))
        if not slices:
            raise ValueError(f"'{item}' names no slice")
        return list(slices)
    if isinstance(item, str) and (found := _AROUND.fullmatch(item)):
        reach = int(found["reach"])
        step = int(found["step"] or reach)
        if step > reach:
            raise ValueError(f"'{item}' names no slice but the middle")
        steps = [number * step for number in range(-(reach // step), reach // step + 1)]
        return [f"mid{number:+d}" if number else "mid" for number in steps]
    return [item]


def _stems(files: Sequence[str]) -> dict[str, str]:
    """Short names of files: the last parts of their paths that tell them apart."""
    parts = {file: [re.sub(r"[^A-Za-z0-9._+-]+", "_", part) for part in PurePath(file).parts] for file in files}
    for file, path in parts.items():
        path[-1] = path[-1].split(".")[0].strip("_-") or "file"
        parts[file] = [part for part in path if part.strip("._")]
    for length in itertools.count(1):
        names = {file: "-".join(path[-length:])[-80:].lstrip("-._+") for file, path in parts.items()}
        if len(set(names.values())) == len(names) or all(length >= len(path) for path in parts.values()):
            return names
    raise AssertionError


Slice = TypeVar("Slice", bound=Hashable)


class Network(NamedTuple):
    """What one network reconstructs.

    Attributes:
        cases: by name.
        after: place of the network, among those of its unit, from whose weights it starts; None: from random ones.
    """

    cases: tuple[str, ...]
    after: int | None = None


def units_of(slices: Sequence[Slice], joint: int) -> list[tuple[Slice, ...]]:
    """Slices in groups that one network reconstructs, all of one size: the last may begin within the one before it."""
    size = min(joint, len(slices))
    firsts = [*range(0, len(slices) - size, size), len(slices) - size]
    return [tuple(slices[first : first + size]) for first in firsts]


def inner_neighbours(units: Sequence[Slice]) -> dict[Slice, Slice | None]:
    """Of each unit the one beside it that is nearer to the middle one, which has none; from the middle outwards."""
    middle = len(units) // 2
    order = sorted(range(len(units)), key=lambda place: abs(place - middle))
    return {
        units[place]: None if place == middle else units[place + 1 if place < middle else place - 1] for place in order
    }


def networks(cases: CasesSpec, start: str, joint: int) -> Mapping[str, tuple[Network, ...]]:
    """The networks of the unit of work of each case, in the order in which they are fitted.

    Args:
        cases: that `check_neighbours` accepts.
        start: of slices, "random" or "neighbour".
        joint: slices of a network.
    """
    found: dict[str, tuple[Network, ...]] = {}
    for stack in cases.stacks:
        units = units_of(list(stack), joint)
        if start == "random":
            found |= {case: (Network(unit),) for unit in units for case in unit}
            continue
        inner = inner_neighbours(units)
        places = {unit: place for place, unit in enumerate(inner)}
        chain = tuple(Network(unit, None if of is None else places[of]) for unit, of in inner.items())
        found |= dict.fromkeys(stack, chain)
    return found


def check_neighbours(cases: CasesSpec, joint: Sequence[int]) -> None:
    """Refuses cases that have no neighbours.

    Args:
        cases: of a study.
        joint: the numbers of slices that share a network there.

    Raises:
        ValueError: the cases are not slices of volumes, two are the same slice, or a network would be left incomplete.
    """
    if not cases.by_name:
        raise ValueError(
            "fit.start and fit.joint are of slices: name them in [cases], or take `ddstudy fit --all-slices`"
        )
    for stack in cases.stacks:
        of = f"{'held out ' * cases.by_name[next(iter(stack))].holdout}beside '{next(iter(stack))}'"
        if len(set(stack.values())) < len(stack):
            raise ValueError(f"fit.start and fit.joint: two of the cases {of} are one slice")
        if len({counted for counted, _ in stack.values()}) > 1:
            raise ValueError(f"fit.start and fit.joint: count the slices {of} all by index, or all from the middle")
        if len(stack) < 2:
            raise ValueError(f"fit.start and fit.joint: there is no other slice {of}")
        if wrong := [each for each in joint if len(stack) % each]:
            raise ValueError(f"fit.joint = {wrong[0]}: slices must be a multiple, {of} there are {len(stack)}")
