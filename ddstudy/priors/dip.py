"""The Deep Image Prior (Ulyanov, Vedaldi and Lempitsky, CVPR 2018; IJCV 2020): an hourglass with skip connections.

Each of l scales halves the size (3x3 convolution with stride 2, then another), hands it to the next scale, upsamples
what comes back, concatenates it with a 1x1 convolution of what it was given (the skip), and convolves 3x3 and 1x1.
Every convolution has a bias and reflection padding, and is followed by normalisation and LeakyReLU(0.2); a 1x1
convolution and a sigmoid lead to the image. The authors' settings for denoising are k = 128, l = 5, 4 skip channels,
32 input channels, U[0, 0.1) noise at the image's size as input, jitter 1/30 and an average of outputs of 0.99.

They normalise by batch, which for their one image is what is done here, each tile by itself. Where a size is odd, we
upsample to the exact size of the skip, for them sides are multiples of 2^l.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ddstudy.priors.base import Head, Weights, convolution, count, draw, normalisation

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class DeepImagePrior:
    """Shapes of one skip network; a `ddstudy.priors.base.Prior`.

    Attributes:
        k: channels of every scale, down and up.
        scales: number of them, l.
        channels: of the output.
        size: (rows, columns) of the tile, and of the input; both above 2^l, since the innermost padding mirrors pixels.
        skip_channels: of every skip connection; 0: there are none.
        input_channels: of the input.
        upsampling: how.
        head: what follows the last convolution.
    """

    k: int
    scales: int
    channels: int
    size: tuple[int, int]
    skip_channels: int = 4
    input_channels: int = 32
    upsampling: Literal["bilinear", "nearest"] = "bilinear"
    head: Head = "sigmoid"

    input_scale = 0.1

    def __post_init__(self) -> None:
        if min(self.size) <= 2**self.scales:
            raise ValueError(f"{self.scales} scales need sides of more than {2**self.scales} pixels, not {self.size}")

    @property
    def input_kind(self) -> Literal["noise"]:
        """Fixed noise."""
        return "noise"

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(input channels, h, w) of one tile's input tensor."""
        return self.input_channels, *self.size

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """(channels, h, w) of one tile."""
        return self.channels, *self.size

    def _down(self, index: int) -> list[Weights]:
        """The weights on the way down of a scale, 0 being the image's, and of its skip connection."""
        k, skip, inputs = self.k, self.skip_channels, self.k if index else self.input_channels
        skipping = [*convolution(inputs, skip, bias=True), *normalisation(skip)] if skip else []
        down = [
            *(*convolution(inputs, k, 3, bias=True), *normalisation(k)),
            *(*convolution(k, k, 3, bias=True), *normalisation(k)),
        ]
        return [*skipping, *down]

    @property
    def _up(self) -> list[Weights]:
        k, both = self.k, self.k + self.skip_channels
        return [
            *normalisation(both),
            *(*convolution(both, k, 3, bias=True), *normalisation(k)),
            *(*convolution(k, k, bias=True), *normalisation(k)),
        ]

    @property
    def _layers(self) -> list[Weights]:
        """In the order in which the network registers them: all scales downwards, then upwards from the innermost."""
        downwards = [weights for index in range(self.scales) for weights in self._down(index)]
        return [*downwards, *self._up * self.scales, *convolution(self.k, self.channels, bias=True)]

    @property
    def parameters(self) -> int:
        """Number of weights: 2,217,573 for the authors' settings, grey."""
        return count(self._layers)

    @property
    def cost(self) -> int:
        """Floating-point operations of one iteration of one member on one tile, roughly, as those of `ConvDecoder`."""
        total, (height, width) = 0.0, self.size
        for index in range(self.scales):
            pixels = height * width / 4**index
            inputs, both = (self.k if index else self.input_channels), self.k + self.skip_channels
            products = 9 * self.k * (inputs + self.k) / 4 + self.k * (9 * both + self.k) + inputs * self.skip_channels
            total += pixels * (6 * products + 60 * (both + 2.5 * self.k))
        return int(total)

    def initial_weights(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """One member's random start, torch's defaults; see `ddstudy.priors.base.Prior`."""
        return draw(self._layers, rng)

    def build(self) -> nn.Module:
        """The network in torch, (tiles, input channels, h, w) -> (tiles, channels, h, w)."""
        from ddstudy.priors import networks  # torch is heavy, and most callers want shapes only

        return networks.SkipNetwork(
            self.k, self.scales, self.channels, self.skip_channels, self.input_channels, self.upsampling, self.head
        )
