"""The ConvDecoder (Zalbagi Darestani and Heckel, IEEE TCI 7:724-733, 2021): a decoder with 3x3 convolutions.

Each of l - 1 blocks upsamples to the nearest neighbour, then convolves 3x3 (zero-padded, without bias), ReLU, and
normalises; one more block does so at full size, and a 1x1 convolution leads to the image's channels. Images in [0, 1]
get a sigmoid after it as from the Deep Decoder, where the authors, whose images are complex, have none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ddstudy.priors.base import Head, Weights, convolution, count, draw, growing, normalisation

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ConvDecoder:
    """Shapes of one decoder; a `ddstudy.priors.base.Prior`.

    Attributes:
        k: channels of every layer, and of the input.
        channels: of the output.
        sizes: (rows, columns) of the input and after each upsampling, l entries; the last is the tile's.
        head: what follows the last convolution.
    """

    k: int
    channels: int
    sizes: tuple[tuple[int, int], ...]
    head: Head = "sigmoid"

    input_scale = 1.0

    @property
    def input_kind(self) -> Literal["noise"]:
        """Fixed noise."""
        return "noise"

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(k, h0, w0) of one tile's input tensor."""
        return self.k, *self.sizes[0]

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """(channels, h, w) of one tile."""
        return self.channels, *self.sizes[-1]

    @property
    def _layers(self) -> list[Weights]:
        block = [*convolution(self.k, self.k, 3), *normalisation(self.k)]
        return [*block * len(self.sizes), *convolution(self.k, self.channels)]

    @property
    def parameters(self) -> int:
        """Number of weights, l (9 k^2 + 2k) + channels k: 185,024 for k = 64, l = 5, grey."""
        return count(self._layers)

    @property
    def cost(self) -> int:
        """Floating-point operations of one iteration of one member on one tile, roughly.

        Three products with the 3x3 kernels, and about 60 operations per channel and pixel for the rest.
        """
        pixels = [height * width for height, width in (*self.sizes[1:], self.sizes[-1])]
        return sum((54 * self.k**2 + 60 * self.k) * each for each in pixels)

    def initial_weights(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """One member's random start, torch's defaults; see `ddstudy.priors.base.Prior`."""
        return draw(self._layers, rng)

    def build(self) -> nn.Module:
        """The network in torch, (tiles, k, h0, w0) -> (tiles, channels, h, w)."""
        from ddstudy.priors import networks  # torch is heavy, and most callers want shapes only

        return networks.conv_decoder(self.k, self.channels, self.sizes, self.head)


def conv_decoder(
    k: int, s: int, l: int, height: int, width: int, channels: int = 1, head: Head = "sigmoid"
) -> ConvDecoder:
    """The decoder of l layers for a tile of (height, width), whose input has 1 / s of its rows and columns.

    With l = 1 nothing is upsampled: the input has the tile's size.
    """
    rows, columns = (growing(side, s, l - 1) if l > 1 else [side] for side in (height, width))
    return ConvDecoder(k, channels, tuple(zip(rows, columns, strict=True)), head)
