"""Slices that are fitted with their neighbours: from where the neighbour ended, or by one network for several.

`fit.joint` adjacent slices share a network, which has a channel for each. With `fit.start = "neighbour"` the middle one
of these networks comes first, from random weights, and the others follow outwards, each from the weights with which the
one before it ended. Either way several cases of a study are one unit of work.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from ddstudy.spec.options import CasesSpec

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
        cases: that `check` accepts.
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


def check(cases: CasesSpec, joint: Sequence[int]) -> None:
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
