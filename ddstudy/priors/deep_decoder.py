"""The Deep Decoder: its geometry, its size and its random start (thesis sec. 2.2); `fit.reference` has the network.

A decoder is l blocks of 1x1 convolution, bilinear upsampling, ReLU and instance normalisation (Eq. 2.1), then a 1x1
convolution to the image's channels and a sigmoid (Eq. 2.2). Sizes grow geometrically from the input's to the
tile's, so that any scale factor s and any number of blocks l fit together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EPS = 1e-5  # of the normalisation


@dataclass(frozen=True)
class Geometry:
    """Shapes of one decoder.

    Attributes:
        k: channels of every block.
        channels: channels of the output, 1 grey or 3 RGB.
        sizes: (rows, columns) of the input and after each block, l + 1 entries; the last is the tile's.
    """

    k: int
    channels: int
    sizes: tuple[tuple[int, int], ...]

    @property
    def blocks(self) -> int:
        """L."""
        return len(self.sizes) - 1

    @property
    def parameters(self) -> int:
        """Number of weights, l (k^2 + 2k) + channels k (Eq. 2.4): 21,184 for k = 64, l = 5, grey."""
        return self.blocks * (self.k**2 + 2 * self.k) + self.channels * self.k


def geometry(k: int, s: int, l: int, height: int, width: int, channels: int = 1) -> Geometry:
    """Shapes for a tile of (height, width).

    The input is max(1, round(height / s)) rows (halves up), likewise columns; block i of l ends at
    ceil(h0 (height / h0)^(i / l)) rows, the last at the tile's size exactly.
    """
    rows, columns = _progression(height, s, l), _progression(width, s, l)
    return Geometry(k, channels, tuple(zip(rows, columns, strict=True)))


def _progression(size: int, s: int, l: int) -> list[int]:
    start = max(1, math.floor(size / s + 0.5))
    # the subtracted 1e-9 keeps exact powers exact: 8 * (256 / 8)^(3 / 5) is 64, not 64.00000000000001
    return [start, *(math.ceil(start * (size / start) ** (i / l) - 1e-9) for i in range(1, l)), size]


def initial_weights(shape: Geometry, rng: np.random.Generator) -> NDArray[np.float32]:
    """One member's random start, a flat vector in the order of `reference.DeepDecoder.parameters()`.

    Convolutions are U(-1/sqrt(k), 1/sqrt(k)), torch's default for a 1x1 convolution; normalisation starts as the
    identity. Drawn with numpy, so that every engine and device starts from the same numbers.

    Returns:
        float32 array (shape.parameters,).
    """
    k, bound = shape.k, 1 / math.sqrt(shape.k)
    parts = []
    for _ in range(shape.blocks):
        parts += [rng.uniform(-bound, bound, k * k), np.ones(k), np.zeros(k)]
    parts.append(rng.uniform(-bound, bound, shape.channels * k))
    return np.concatenate(parts).astype(np.float32)
