"""Tiles of an image, and the image of tiles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddstudy.images.tiling import join, split, tile_shape
from ddstudy.spec.options import TILINGS, rows_and_columns


@given(
    channels=st.integers(1, 4),
    height=st.integers(1, 41),
    width=st.integers(1, 41),
    tiling=st.sampled_from(TILINGS),
    dtype=st.sampled_from([np.float32, np.float64, np.uint8, np.bool_, np.complex64]),
)
def test_join_undoes_split_bit_for_bit(channels, height, width, tiling, dtype):
    image = np.random.default_rng(0).normal(size=(channels, height, width)).astype(dtype)
    before = image.copy()
    tiles = split(image, tiling)
    rows, columns = rows_and_columns(tiling)
    assert tiles.shape == (rows * columns, channels, *tile_shape(height, width, tiling))
    assert tiles.dtype == image.dtype
    assert tiles.flags.c_contiguous
    joined = join(tiles, tiling, height, width)
    assert joined.flags.c_contiguous
    np.testing.assert_array_equal(joined, image)
    tiles[:] = 0
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(joined, before)


@pytest.mark.parametrize("tiling", TILINGS)
def test_tiles_go_row_by_row(tiling):
    """Also how noise of (k, rows * h0, columns * w0) is cut."""
    rows, columns = rows_and_columns(tiling)
    noise = np.random.default_rng(0).random((6, rows * 3, columns * 2))
    tiles = split(noise, tiling)
    assert len(tiles) == rows * columns
    for row, column in np.ndindex(rows, columns):
        expected = noise[:, 3 * row : 3 * row + 3, 2 * column : 2 * column + 2]
        np.testing.assert_array_equal(tiles[row * columns + column], expected)


@pytest.mark.parametrize(("height", "width"), [(233, 197), (21, 23), (9, 11)])
@pytest.mark.parametrize("tiling", TILINGS)
def test_what_does_not_divide_is_mirrored_at_the_bottom_and_right(height, width, tiling):
    image = np.random.default_rng(0).random((1, height, width), dtype=np.float32)
    rows, columns = rows_and_columns(tiling)
    h, w = tile_shape(height, width, tiling)
    whole = join(split(image, tiling), tiling, rows * h, columns * w)
    assert 0 <= rows * h - height < rows
    assert 0 <= columns * w - width < columns
    down = [i if i < height else 2 * (height - 1) - i for i in range(rows * h)]
    across = [j if j < width else 2 * (width - 1) - j for j in range(columns * w)]
    np.testing.assert_array_equal(whole, image[:, down][:, :, across])


@pytest.mark.parametrize("tiling", TILINGS)
def test_join_takes_members_and_snapshots_as_leading_axes(tiling):
    images = np.random.default_rng(0).random((2, 5, 3, 13, 17), dtype=np.float32)
    tiles = np.stack([np.stack([split(image, tiling) for image in members]) for members in images])
    np.testing.assert_array_equal(join(tiles, tiling, 13, 17), images)
