"""Tiles: a slice cut into rows x columns of equal patches, and joined again (thesis sec. 3.2).

Tiles are a batch; what does not divide is mirrored at the bottom and right, and cropped again when tiles are joined.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ddstudy.spec.options import rows_and_columns

Number = TypeVar("Number", bound=np.generic)


def tile_shape(height: int, width: int, tiling: str) -> tuple[int, int]:
    """Rows and columns of one tile: those of the slice divided by those of the tiling, rounded up."""
    rows, columns = rows_and_columns(tiling)
    return -(-height // rows), -(-width // columns)


def split(image: NDArray[Number], tiling: str) -> NDArray[Number]:
    """Cuts an image into tiles, row by row (thesis Fig. 3.5).

    Args:
        image: array (C, H, W) of any type; a target, or noise of (k, rows * h0, columns * w0).
        tiling: rows x columns, for example `4x5`.

    Returns:
        New array (rows * columns, C, h, w) with (h, w) from `tile_shape`. Where the tiling does not divide the image,
        the image is mirrored at its bottom and right edge (without repeating the edge).
    """
    rows, columns = rows_and_columns(tiling)
    channels, height, width = image.shape
    h, w = tile_shape(height, width, tiling)
    padded = np.pad(image, ((0, 0), (0, rows * h - height), (0, columns * w - width)), mode="reflect")
    grid = padded.reshape(channels, rows, h, columns, w).transpose(1, 3, 0, 2, 4)
    return np.ascontiguousarray(grid).reshape(rows * columns, channels, h, w)


def join(tiles: NDArray[Number], tiling: str, height: int, width: int) -> NDArray[Number]:
    """Puts tiles together again, the inverse of `split`.

    Args:
        tiles: array (..., rows * columns, C, h, w), the leading axes a batch of any shape.
        tiling: the tiling that cut them.
        height: rows of the image before it was split.
        width: columns, likewise.

    Returns:
        New array (..., C, height, width), without the padding.
    """
    rows, columns = rows_and_columns(tiling)
    *batch, _, channels, h, w = tiles.shape
    grid = tiles.reshape(*batch, rows, columns, channels, h, w)
    lines = np.moveaxis(grid, (-3, -5, -2, -4, -1), (-5, -4, -3, -2, -1))  # channels, rows, h, columns, w
    return lines.reshape(*batch, channels, rows * h, columns * w)[..., :height, :width].copy()
