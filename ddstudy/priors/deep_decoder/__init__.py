"""The Deep Decoder (thesis sec. 2.2): its geometry, size, cost and random start; `network` has it in torch.

A decoder is l blocks of 1x1 convolution, bilinear upsampling, ReLU and instance normalisation (Eq. 2.1), then a 1x1
convolution to the image's channels and a sigmoid (Eq. 2.2), or no sigmoid where images are not in [0, 1]. Sizes grow
geometrically from the input's to the tile's, so that any scale factor s and any number of blocks l fit together.

The decoder of the original paper (Heckel and Hand, ICLR 2019, `decodernw` of its code) is the same with another
geometry: l blocks each double the size, one more block follows at full size, and the input is scaled by 0.1.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ddstudy.priors.base import Head, growing

if TYPE_CHECKING:
    from ddstudy.priors.deep_decoder.network import Network

EPS = 1e-5  # of the normalisation


@dataclass(frozen=True)
class DeepDecoder:
    """Shapes of one decoder; a `ddstudy.priors.base.Prior`.

    Attributes:
        k: channels of every block.
        channels: channels of the output: 1 grey, 2 complex (real and imaginary part), 3 RGB.
        sizes: (rows, columns) of the input and after each block, l + 1 entries; the last is the tile's.
        head: what follows the last convolution: `sigmoid`, or nothing, `linear`.
        input_scale: what the noise in [0, 1] is multiplied with.
    """

    k: int
    channels: int
    sizes: tuple[tuple[int, int], ...]
    head: Head = "sigmoid"
    input_scale: float = 1.0

    @property
    def blocks(self) -> int:
        """Number of blocks, l."""
        return len(self.sizes) - 1

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(k, h0, w0) of one tile's input tensor."""
        return self.k, *self.sizes[0]

    @property
    def input_kind(self) -> Literal["noise"]:
        """Fixed noise."""
        return "noise"

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """(channels, h, w) of one tile."""
        return self.channels, *self.sizes[-1]

    @property
    def parameters(self) -> int:
        """Number of weights, l (k^2 + 2k) + channels k (Eq. 2.4): 21,184 for k = 64, l = 5, grey."""
        return self.blocks * (self.k**2 + 2 * self.k) + self.channels * self.k

    @property
    def cost(self) -> int:
        """Floating-point operations of one iteration of one member on one tile, roughly.

        Three products of k x k per low-resolution pixel, and about 60 operations per channel and high-resolution pixel
        for upsampling, ReLU, normalisation and their gradients.
        """
        pixels = [height * width for height, width in self.sizes]
        return sum(6 * self.k**2 * low + 60 * self.k * high for low, high in itertools.pairwise(pixels))

    def initial_weights(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """One member's random start, a flat vector in the order of `build().parameters()`.

        Convolutions are U(-1/sqrt(k), 1/sqrt(k)), torch's default for a 1x1 convolution; normalisation starts as the
        identity. Drawn with numpy, so that every solver and device starts from the same numbers.

        Returns:
            float32 array (parameters,).
        """
        k, bound = self.k, 1 / math.sqrt(self.k)
        parts = []
        for _ in range(self.blocks):
            parts += [rng.uniform(-bound, bound, k * k), np.ones(k), np.zeros(k)]
        parts.append(rng.uniform(-bound, bound, self.channels * k))
        return np.concatenate(parts).astype(np.float32)

    def build(self) -> Network:
        """The network in torch, (tiles, k, h0, w0) -> (tiles, channels, h, w), with torch's own weights."""
        from ddstudy.priors.deep_decoder.network import Network  # torch is heavy, and most callers want shapes only

        return Network(self)


def deep_decoder(
    k: int, s: int, l: int, height: int, width: int, channels: int = 1, head: Head = "sigmoid"
) -> DeepDecoder:
    """The thesis' decoder for a tile of (height, width).

    The input is max(1, round(height / s)) rows (halves up), likewise columns; block i of l ends at
    ceil(h0 (height / h0)^(i / l)) rows, the last at the tile's size exactly.
    """
    rows, columns = growing(height, s, l), growing(width, s, l)
    return DeepDecoder(k, channels, tuple(zip(rows, columns, strict=True)), head)


def deep_decoder_2019(
    k: int, l: int, height: int, width: int, channels: int = 1, head: Head = "sigmoid"
) -> DeepDecoder:
    """The decoder of Heckel and Hand (2019) for a tile of (height, width): l blocks that double the size, and one more.

    The input has 1 / 2^l of the tile's rows and columns; where 2^l does not divide them, sizes grow geometrically, by
    nearly 2. Parameters (l + 1) (k^2 + 2k) + channels k: 25,408 for k = 64, l = 5, grey.
    """
    sizes = deep_decoder(k, 2**l, l, height, width).sizes
    return DeepDecoder(k, channels, (*sizes, sizes[-1]), head, input_scale=0.1)
