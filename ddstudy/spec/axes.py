"""Axes: the options that a study searches, and the points of its space.

A setting has one value for each axis of its study. All settings that differ only in `iterations` are served by one
fit, which passes the smaller budgets on its way to the largest; a `Fit` is therefore a setting without iterations.
Both have a readable identity (`k64-s16-l5-blur3-4x5` and `k64-s16-l5-blur3-4x5-i2000`) from which seeds, leases and
file names derive, so that the same setting is the same everywhere. It names the six options of the thesis always and
any other only where it differs from the default (`k64-s16-l5-blur3-4x5-lr0.003`), so that an option which becomes an
axis changes no identity.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
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
        return "-".join(shown)

    @property
    def digest(self) -> int:
        """128-bit hash of the identity, the same on every machine; seeds derive from it."""
        return int.from_bytes(hashlib.sha256(self.id.encode()).digest()[:16], "big")

    def at(self, iterations: int) -> Setting:
        """The setting that this fit serves at a budget."""
        return Setting(_in_order({**self._values, SERVED: iterations}))


class Setting(_Point):
    """One point of a study."""

    __slots__ = ()

    @property
    def fit(self) -> Fit:
        """The fit that serves this setting."""
        return Fit({axis: value for axis, value in self._values.items() if axis != SERVED})

    @property
    def id(self) -> str:
        """Readable identity, for example `k64-s16-l5-blur3-4x5-i2000`."""
        return f"{self.fit.id}-{OPTIONS[SERVED].in_identity(self[SERVED])}"


def _in_order(values: Mapping[str, Value]) -> dict[str, Value]:
    return {axis: values[axis] for axis in THESIS} | dict(values)


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
    """The axes of a study; the grid is their product (thesis Table 3.1).

    Attributes:
        axes: those of the thesis first, then in the order of the study file's options.
        base: what the study file says of options that are no axis, by path; for options that need a value of these.
    """

    axes: tuple[Axis, ...]
    base: Mapping[str, Value] = field(default_factory=dict, compare=False)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the axes."""
        return tuple(self._values)

    @cached_property
    def _values(self) -> dict[str, tuple[Value, ...]]:
        return {axis.name: axis.values for axis in self.axes}

    @cached_property
    def _conditional(self) -> list[Option]:
        return [axis.option for axis in self.axes if axis.option.needs]

    def __getitem__(self, axis: str) -> tuple[Any, ...]:
        return self._values[axis]

    @cached_property
    def _size(self) -> int:
        return sum(1 for _ in self) if self._conditional else math.prod(len(axis.values) for axis in self.axes)

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Setting]:
        seen = set[Setting]()
        for values in itertools.product(*self._values.values()):
            setting = self._setting(dict(zip(self._values, values, strict=True)))
            if self._conditional:  # where an option means nothing, all its values are one setting
                if setting in seen:
                    continue
                seen.add(setting)
            yield setting

    def __contains__(self, setting: object) -> bool:
        if not isinstance(setting, Setting) or self._applying(setting) != setting.keys():
            return False
        return all(value in self._values[axis] for axis, value in setting.items())

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
        return values.get(parent, self.base.get(parent)) in wanted

    def _applying(self, values: Mapping[str, Value]) -> set[str]:
        return {axis.name for axis in self.axes if self.applies(axis.option, values)}

    def _setting(self, values: dict[str, Value]) -> Setting:
        for option in self._conditional:
            if not self.applies(option, values):
                del values[option.path]
        return Setting(values)


def budgets_by_fit(settings: Iterable[Setting]) -> dict[Fit, tuple[int, ...]]:
    """Groups settings by the fit that serves them: fit -> its budgets of iterations, ascending."""
    groups: dict[Fit, set[int]] = {}
    for setting in settings:
        groups.setdefault(setting.fit, set()).add(setting[SERVED])
    return {fit: tuple(sorted(budgets)) for fit, budgets in groups.items()}
