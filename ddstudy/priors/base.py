"""What every prior offers: its random start, its network, its size and what an iteration of it costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn


class Prior(Protocol):
    """What is fitted to a measurement: a network, without its weights, that turns fixed noise into an image.

    Priors are values: they are hashable, and members of equal priors can be computed together.
    """

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of the input tensor of one tile."""

    @property
    def parameters(self) -> int:
        """Number of weights."""

    @property
    def cost(self) -> int:
        """Floating-point operations of one iteration of one member on one tile, roughly; forecasts scale with it."""

    def initial_weights(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """One member's random start, float32 (parameters,), in the order of `build().parameters()`.

        Drawn with numpy, so that every solver and device starts from the same numbers.
        """

    def build(self) -> nn.Module:
        """The network in torch: inputs (tiles, *input_shape) -> outputs (tiles, channels, rows, columns)."""
