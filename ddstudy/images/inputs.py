"""Input tensors: the fixed random input of the Deep Decoder (thesis sec. 3.1), and coordinates.

Noise is made once for the whole slice, on a grid of (rows * h0, columns * w0), and cut like the slice, so that
neighbouring tiles get neighbouring noise (Fig. 3.5). `uniform` is the thesis' Blur = 0, `blur3` its Blur = 3,
`simplex` its Perlin.

The thesis calls simplex noise a compromise between uniform and blurred noise. At a feature size of 1 it is not:
simplex noise is 0, hence 0.5 here, at every corner of its lattice, and whole numbers meet one in every plane
x + y + z = 0 (mod 6), a sixth of all values; neighbours correlate by 0.05 only, where those of `blur3` do by 0.67. A
feature size of 1.6 meets hardly a corner and has half the correlation of `blur3` (`benchmarks/simplex.py`).
At any feature size, channels correlate like neighbours in the image, since all are slices of one volume. The default
stays the thesis', because seeds and results belong to it.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ddstudy.spec.options import Noise


def gaussian_sigma(kernel: int) -> float:
    """Standard deviation that belongs to a kernel size (Eq. 3.2): 0.8 for 3."""
    return 0.3 * ((kernel - 1) * 0.5 - 1) + 0.8


def coordinates(height: int, width: int) -> NDArray[np.float32]:
    """Where the pixels of a slice are, float32 (2, height, width): row and column, each evenly from -1 to 1."""
    rows, columns = np.linspace(-1, 1, height), np.linspace(-1, 1, width)
    return np.stack(np.meshgrid(rows, columns, indexing="ij")).astype(np.float32)


def noise_volume(
    kind: Noise,
    k: int,
    height: int,
    width: int,
    rng: np.random.Generator,
    *,
    blur_kernel: int = 3,
    feature_size: float = 1.0,
    range: tuple[float, float] = (0.0, 1.0),
    channels: Literal["independent", "interpolated"] = "independent",
) -> NDArray[np.float32]:
    """One noise image per channel.

    Args:
        kind: `uniform` U[0, 1); `blur3` the same after a Gaussian filter (Eqs. 3.1, 3.2); `simplex` slices of one
            3-D OpenSimplex volume (sec. 3.1.2), moved from [-1, 1] to [0, 1].
        k: channels.
        height: rows of the whole slice's input, rows of tiles * h0.
        width: columns, likewise.
        rng: stream that everything random is drawn from.
        blur_kernel: Gaussian kernel size of `blur3`, pixels.
        feature_size: of `simplex`, pixels.
        range: lowest and highest value, which the ends of [0, 1] are moved to.
        channels: `interpolated` makes the channels of `uniform` and `blur3` all between two noise images.

    Returns:
        float32 array (k, height, width) within `range`.
    """
    if kind == "simplex":
        images = _simplex(k, height, width, rng, feature_size)
    elif channels == "interpolated":
        # sec. 3.2, taken literally: every channel lies between two noise images, so the input has rank 2
        first, last = _uniform(kind, 2, height, width, rng, blur_kernel)
        step = np.linspace(0, 1, k, dtype=np.float32)[:, None, None]
        images = (1 - step) * first + step * last
    else:
        images = _uniform(kind, k, height, width, rng, blur_kernel)
    low, high = range
    return np.asarray(low + (high - low) * images, dtype=np.float32)


def _uniform(
    kind: Noise, k: int, height: int, width: int, rng: np.random.Generator, kernel: int
) -> NDArray[np.float32]:
    images = rng.random((k, height, width), dtype=np.float32)
    if kind == "blur3":
        import cv2

        # sigma is given: for sigma = 0 OpenCV would not use Eq. 3.2 at small kernels but a table (1/4, 1/2, 1/4)
        sigma = gaussian_sigma(kernel)
        images = np.stack([cv2.GaussianBlur(image, (kernel, kernel), sigma, sigmaY=sigma) for image in images])
    return images


def _simplex(k: int, height: int, width: int, rng: np.random.Generator, feature_size: float) -> NDArray[np.float32]:
    from opensimplex import OpenSimplex

    volume = OpenSimplex(int(rng.integers(2**63))).noise3array(
        np.arange(width) / feature_size, np.arange(height) / feature_size, np.arange(k) / feature_size
    )
    return np.asarray((volume + 1) / 2, dtype=np.float32)
