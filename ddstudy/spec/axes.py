"""Settings: the six values that a study searches, and the space they come from.

A setting is (k, s, l, iterations, noise, tiling). All settings that differ only in `iterations` are served by one
fit, which passes the smaller budgets on its way to the largest; a `Fit` is therefore a setting without iterations.
Both have a readable identity (`k64-s16-l5-blur3-4x5` and `k64-s16-l5-blur3-4x5-i2000`) from which seeds, claims and
file names derive, so that the same setting is the same everywhere.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Literal, get_args

Noise = Literal["uniform", "blur3", "simplex"]
Tiling = Literal["1x1", "2x2", "3x3", "4x5"]
NOISES: tuple[Noise, ...] = get_args(Noise)
TILINGS: tuple[Tiling, ...] = get_args(Tiling)
AXES = ("k", "s", "l", "iterations", "noise", "tiling")


def rows_and_columns(tiling: str) -> tuple[int, int]:
    """`"4x5"` -> (4, 5): four rows of five tiles."""
    rows, columns = tiling.split("x")
    return int(rows), int(columns)


@dataclass(frozen=True, order=True)
class Fit:
    """What one run of the optimiser needs to know: a setting without its iterations.

    Attributes:
        k: channels of every block, >= 1.
        s: scale factor, tile size / input size, >= 1.
        l: number of blocks, >= 1.
        noise: kind of the fixed input tensor.
        tiling: rows x columns of tiles.
    """

    k: int
    s: int
    l: int
    noise: Noise
    tiling: Tiling

    @property
    def id(self) -> str:
        """Readable identity, for example `k64-s16-l5-blur3-4x5`."""
        return f"k{self.k}-s{self.s}-l{self.l}-{self.noise}-{self.tiling}"

    @property
    def digest(self) -> int:
        """128-bit hash of the identity, the same on every machine; seeds derive from it."""
        return int.from_bytes(hashlib.sha256(self.id.encode()).digest()[:16], "big")


@dataclass(frozen=True, order=True)
class Setting:
    """One point of a study: the six searched values (thesis sec. 3.3)."""

    k: int
    s: int
    l: int
    iterations: int
    noise: Noise
    tiling: Tiling

    @property
    def fit(self) -> Fit:
        """The fit that serves this setting."""
        return Fit(self.k, self.s, self.l, self.noise, self.tiling)

    @property
    def id(self) -> str:
        """Readable identity, for example `k64-s16-l5-blur3-4x5-i2000`."""
        return f"{self.fit.id}-i{self.iterations}"


@dataclass(frozen=True)
class SearchSpace:
    """The values allowed on each axis; the grid is their product (thesis Table 3.1)."""

    k: tuple[int, ...]
    s: tuple[int, ...]
    l: tuple[int, ...]
    iterations: tuple[int, ...]
    noise: tuple[Noise, ...]
    tiling: tuple[Tiling, ...]

    def __len__(self) -> int:
        size = 1
        for field in fields(self):
            size *= len(getattr(self, field.name))
        return size

    def __iter__(self) -> Iterator[Setting]:
        return itertools.starmap(Setting, itertools.product(*(getattr(self, axis) for axis in AXES)))

    def __contains__(self, setting: object) -> bool:
        return isinstance(setting, Setting) and all(getattr(setting, axis) in getattr(self, axis) for axis in AXES)


def budgets_by_fit(settings: Iterable[Setting]) -> dict[Fit, tuple[int, ...]]:
    """Groups settings by the fit that serves them: fit -> its budgets of iterations, ascending."""
    groups: dict[Fit, set[int]] = {}
    for setting in settings:
        groups.setdefault(setting.fit, set()).add(setting.iterations)
    return {fit: tuple(sorted(budgets)) for fit, budgets in groups.items()}
