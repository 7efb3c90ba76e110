"""SIREN (Sitzmann et al., NeurIPS 2020): a coordinate network with sines, of which an image is a continuous function.

A pixel's place in the slice, rows and columns in [-1, 1], goes through l + 1 layers x -> sin(omega (W x + b)) of width
k, then a linear one. Weights start as in the paper: those of the first layer U(-1/2, 1/2), others
U(-sqrt(6 / k) / omega, sqrt(6 / k) / omega). Images in [0, 1] are its output moved from [-1, 1], the range of the
images in the paper. The authors' settings are k = 256, l = 3, omega = 30, learning rate 1e-4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ddstudy.priors.base import Head, Weights, count, draw

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Siren:
    """Shapes of one network; a `ddstudy.priors.base.Prior`.

    Attributes:
        k: width of every layer.
        hidden: layers between the first and the last, l.
        channels: of the output.
        size: (rows, columns) of the tile.
        omega: frequency of the sines.
        head: `sigmoid` where images are in [0, 1], which the output is moved to without one; `linear` as it is.
    """

    k: int
    hidden: int
    channels: int
    size: tuple[int, int]
    omega: float = 30.0
    head: Head = "sigmoid"

    input_scale = 1.0

    @property
    def input_kind(self) -> Literal["coordinates"]:
        """The place of each pixel."""
        return "coordinates"

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(2, h, w) of one tile's input tensor."""
        return 2, *self.size

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """(channels, h, w) of one tile."""
        return self.channels, *self.size

    @property
    def _layers(self) -> list[Weights]:
        k, bound = self.k, math.sqrt(6 / self.k) / self.omega
        first = [Weights((k, 2), -1 / 2, 1 / 2), Weights((k,), -math.sqrt(1 / 2), math.sqrt(1 / 2))]
        biases = 1 / math.sqrt(k)  # torch's default, which the authors leave
        hidden = [Weights((k, k), -bound, bound), Weights((k,), -biases, biases)]
        last = [Weights((self.channels, k), -bound, bound), Weights((self.channels,), -biases, biases)]
        return [*first, *hidden * self.hidden, *last]

    @property
    def parameters(self) -> int:
        """Number of weights, 3k + l (k^2 + k) + channels (k + 1): 198,401 for k = 256, l = 3, grey."""
        return count(self._layers)

    @property
    def cost(self) -> int:
        """Floating-point operations of one iteration of one member on one tile, roughly."""
        products = 2 * self.k + self.hidden * self.k**2 + self.channels * self.k
        return math.prod(self.size) * (6 * products + 60 * self.k * (self.hidden + 1))

    def initial_weights(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """One member's random start; see `ddstudy.priors.base.Prior`."""
        return draw(self._layers, rng)

    def build(self) -> nn.Module:
        """The network in torch, (tiles, 2, h, w) -> (tiles, channels, h, w)."""
        from ddstudy.priors import networks  # torch is heavy, and most callers want shapes only

        return networks.SirenNetwork(self.k, self.hidden, self.channels, self.omega, self.head)
