"""Axes: the options that a study searches, and the points of its space.

A setting has one value for each axis of its study that means something there. All settings that differ only in
`iterations` are served by one fit, which passes the smaller budgets on its way to the largest; a `Fit` is therefore a
setting without iterations. Both have a readable identity (`k64-s16-l5-blur3-4x5` and `k64-s16-l5-blur3-4x5-i2000`) from
which seeds, leases and file names derive, so that the same setting is the same everywhere. It names those of the six
options of the thesis that the prior has, and any other only where it differs from the default
(`k64-s16-l5-blur3-4x5-lr0.003`), so that an option which becomes an axis changes no identity.

A space is the product of its axes, or, over several priors, a union of such products, each with its own lists.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ddstudy.spec.options import OPTIONS, THESIS, Option, Value

SERVED = "iterations"  # the axis whose values one fit passes on its way


class _Point(Mapping[str, Value]):
    """One value for each of some axes: a mapping that can be a key of others."""

    __slots__ = ("_hash", "_values")

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._values = dict(values)
        self._hash = hash(tuple(self._values.items()))

    def __getitem__(self, axis: str) -> Any:
        return self._values[axis]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._hash == hash(other) and self._values == dict(other)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._values,)  # the hash of a text is another in each process

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._values})"


class Fit(_Point):
    """What one run of the optimiser needs to know: a setting without its iterations."""

    __slots__ = ()

    @property
    def id(self) -> str:
        """Readable identity, for example `k64-s16-l5-blur3-4x5`."""
        shown = (
            OPTIONS[axis].in_identity(value)
            for axis, value in self._values.items()
            if axis in THESIS or value != OPTIONS[axis].default
        )
        return "-".join(shown) or "default"  # of a prior without weights, whose only axes have their defaults

    @property
    def digest(self) -> int:
        """128-bit hash of the identity, the same on every machine; seeds derive from it."""
        return int.from_bytes(hashlib.sha256(self.id.encode()).digest()[:16], "big")

    @property
    def tiling(self) -> str:
        """Rows x columns of tiles; a prior without weights takes the slice as a whole."""
        return str(self.get("tiling", "1x1"))

    def at(self, budget: int) -> Setting:
        """The setting that this fit serves at a budget of iterations; 0 is that of a prior without weights."""
        return Setting(_in_order({**self._values, SERVED: budget}) if budget else self._values)


class Setting(_Point):
    """One point of a study."""

    __slots__ = ()

    @property
    def fit(self) -> Fit:
        """The fit that serves this setting."""
        return Fit({axis: value for axis, value in self._values.items() if axis != SERVED})

    @property
    def budget(self) -> int:
        """Iterations; 0 where the prior has no weights that are trained."""
        return int(self.get(SERVED, 0))

    @property
    def id(self) -> str:
        """Readable identity, for example `k64-s16-l5-blur3-4x5-i2000`."""
        return setting_id(self.fit.id, self.budget)


def setting_id(fit: str, budget: int) -> str:
    """The identity of the setting that a fit of an identity serves at a budget of iterations; 0: it has none."""
    return f"{fit}-{OPTIONS[SERVED].in_identity(budget)}" if budget else fit


def _in_order(values: Mapping[str, Value]) -> dict[str, Value]:
    return {axis: values[axis] for axis in THESIS if axis in values} | dict(values)


@dataclass(frozen=True)
class Axis:
    """An option and the values of it that a study lists: ascending, words as they are listed."""

    option: Option
    values: tuple[Value, ...]

    @property
    def name(self) -> str:
        """The option's path."""
        return self.option.path

    @property
    def is_ordered(self) -> bool:
        """Whether its values are numbers."""
        return all(not isinstance(value, str) for value in self.values)


@dataclass(frozen=True)
class Space:
    """The axes of a study; the grid is their product (thesis Table 3.1), or the union of the products of its parts.

    Attributes:
        axes: those of the thesis first, then in the order of the study file's options; of a union, the values of all
            parts.
        base: what the study file says of options that are no axis, by path; for options that need a value of these.
        parts: of a union, the lists of each part, for all axes that may mean something there.
    """

    axes: tuple[Axis, ...]
    base: Mapping[str, Value] = field(default_factory=dict, compare=False)
    parts: tuple[Mapping[str, tuple[Value, ...]], ...] = ()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the axes."""
        return tuple(self._values)

    @cached_property
    def _values(self) -> dict[str, tuple[Value, ...]]:
        return {axis.name: axis.values for axis in self.axes}

    @cached_property
    def _conditional(self) -> list[Option]:
        """The options of axes that mean nothing somewhere in this space."""
        return [axis.option for axis in self.axes if not self._always(axis.option)]

    def __getitem__(self, axis: str) -> tuple[Any, ...]:
        return self._values[axis]

    @cached_property
    def _size(self) -> int:
        is_product = not self._conditional and not self.parts
        return math.prod(len(axis.values) for axis in self.axes) if is_product else sum(1 for _ in self)

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Setting]:
        seen = set[Setting]()
        for part in self.parts or ({},):
            lists = {**self._values, **part}
            # an axis that nowhere applies here would only multiply what is one setting
            known = {**{path: (value,) for path, value in self.base.items()}, **lists}
            lists = {axis: each if may_apply(OPTIONS[axis], known) else each[:1] for axis, each in lists.items()}
            for values in itertools.product(*lists.values()):
                setting = self._setting(dict(zip(lists, values, strict=True)))
                if self._conditional or self.parts:  # where an option means nothing, all its values are one setting
                    if setting in seen:
                        continue
                    seen.add(setting)
                yield setting

    def __contains__(self, setting: object) -> bool:
        if not isinstance(setting, Setting) or self._applying(setting) != setting.keys():
            return False
        return all(value in self._values[axis] for axis, value in setting.items()) and (
            not self.parts
            or any(all(value in part.get(axis, (value,)) for axis, value in setting.items()) for part in self.parts)
        )

    def budgets(self, fit: Fit) -> tuple[int, ...]:
        """The budgets of iterations that a fit has here, ascending; 0 alone for a prior without weights."""
        return tuple(budget for budget in (0, *map(int, self._values.get(SERVED, ()))) if fit.at(budget) in self)

    def setting(self, values: Mapping[str, Any]) -> Setting | None:
        """The setting that parameters of a trial say, listed or not; None where they are not those of a setting."""
        if not all(axis in values and OPTIONS[axis].accepts(values[axis]) for axis in self._values):
            return None
        return self._setting({axis: values[axis] for axis in self._values})

    def params(self, setting: Setting) -> dict[str, Value]:
        """A setting as parameters of a trial: one for each axis, whether it applies or not."""
        return {axis: setting.get(axis, values[0]) for axis, values in self._values.items()}

    def applies(self, option: Option, values: Mapping[str, Value]) -> bool:
        """Whether an option means anything where others have some values."""
        if option.needs is None:
            return True
        parent, wanted = option.needs
        return values.get(parent, self.base.get(parent)) in wanted and self.applies(OPTIONS[parent], values)

    def _always(self, option: Option) -> bool:
        """Whether an option means something wherever in this space."""
        if option.needs is None:
            return True
        parent, wanted = option.needs
        values = self._values.get(parent) or (self.base.get(parent),)
        return all(value in wanted for value in values) and self._always(OPTIONS[parent])

    def _applying(self, values: Mapping[str, Value]) -> set[str]:
        return {axis.name for axis in self.axes if self.applies(axis.option, values)}

    def _setting(self, values: dict[str, Value]) -> Setting:
        away = [option.path for option in self._conditional if not self.applies(option, values)]
        for path in away:  # when all are known: an option may need one that goes, too
            del values[path]
        return Setting(values)


def may_apply(option: Option, lists: Mapping[str, Sequence[Value]]) -> bool:
    """Whether an option may mean something where others have values of these lists."""
    if option.needs is None:
        return True
    parent, wanted = option.needs
    return any(value in wanted for value in lists.get(parent, ())) and may_apply(OPTIONS[parent], lists)


def budgets_by_fit(settings: Iterable[Setting]) -> dict[Fit, tuple[int, ...]]:
    """Groups settings by the fit that serves them: fit -> its budgets of iterations, ascending."""
    groups: dict[Fit, set[int]] = {}
    for setting in settings:
        groups.setdefault(setting.fit, set()).add(setting.budget)
    return {fit: tuple(sorted(budgets)) for fit, budgets in groups.items()}
