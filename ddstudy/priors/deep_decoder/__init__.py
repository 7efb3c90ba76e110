"""The Deep Decoder (thesis sec. 2.2): its geometry, size, cost and random start; `network` has it in torch.

A decoder is l blocks of 1x1 convolution, bilinear upsampling, ReLU and instance normalisation (Eq. 2.1), then a 1x1
convolution to the image's channels and a sigmoid (Eq. 2.2), or no sigmoid where images are not in [0, 1]. Sizes grow
geometrically from the input's to the tile's, so that any scale factor s and any number of blocks l fit together.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

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
    """

    k: int
    channels: int
    sizes: tuple[tuple[int, int], ...]
    head: Literal["sigmoid", "linear"] = "sigmoid"

    @property
    def blocks(self) -> int:
        """Number of blocks, l."""
        return len(self.sizes) - 1

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(k, h0, w0) of one tile's input tensor."""
        return self.k, *self.sizes[0]

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
    k: int, s: int, l: int, height: int, width: int, channels: int = 1, head: Literal["sigmoid", "linear"] = "sigmoid"
) -> DeepDecoder:
    """The decoder for a tile of (height, width).

    The input is max(1, round(height / s)) rows (halves up), likewise columns; block i of l ends at
    ceil(h0 (height / h0)^(i / l)) rows, the last at the tile's size exactly.
    """
    rows, columns = _progression(height, s, l), _progression(width, s, l)
    return DeepDecoder(k, channels, tuple(zip(rows, columns, strict=True)), head)


def _progression(size: int, s: int, l: int) -> list[int]:
    start = max(1, math.floor(size / s + 0.5))
    # the subtracted 1e-9 keeps exact powers exact: 8 * (256 / 8)^(3 / 5) is 64, not 64.00000000000001
    return [start, *(math.ceil(start * (size / start) ** (i / l) - 1e-9) for i in range(1, l)), size]
