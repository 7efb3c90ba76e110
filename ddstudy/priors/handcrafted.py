"""Priors without weights: an image is denoised in one go, the same way each time, by scikit-image.

`tv` is total-variation denoising (Chambolle, 2004) of a weight. `wavelet` shrinks the coefficients of a Haar wavelet
soft by BayesShrink (Chang, Yu and Vetterli, 2000), averaged over 6 x 6 shifts (cycle spinning, Coifman and Donoho,
1995), for noise of a standard deviation. `nlm` averages similar patches (non-local means, Buades, Coll and Morel, 2005;
patches of 5x5 within 13x13 pixels, h = 0.8 sigma), for noise of a standard deviation.

There is nothing to train, so they have no iterations, no members and no question of stability: one result each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

_SHIFTS = (6, 6)  # of cycle spinning, along rows and columns
PATCH, DISTANCE = 5, 6  # of non-local means: pixels of a patch, and how far others may be away


@dataclass(frozen=True)
class Handcrafted:
    """One of them with its strength.

    Attributes:
        kind: which.
        strength: of `tv` the weight, of the others the standard deviation of the noise, relative to the range [0, 1].
    """

    kind: Literal["tv", "wavelet", "nlm"]
    strength: float

    parameters = 0
    cost = 0

    def prepare(self) -> None:
        """Imports what `apply` needs, which takes longer than it does."""
        from skimage import restoration

        # loaded when they are first named
        _ = restoration.denoise_tv_chambolle, restoration.denoise_wavelet, restoration.denoise_nl_means

    def apply(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """The denoised image.

        Args:
            image: float32 (C, H, W), range about 1; channels are denoised together, but for `wavelet`.
        """
        from skimage import restoration

        match self.kind:
            case "tv":
                denoised = restoration.denoise_tv_chambolle(image, weight=self.strength, channel_axis=0)
            case "wavelet":
                denoised = np.mean([self._without_noise(image, shift) for shift in np.ndindex(_SHIFTS)], axis=0)
            case "nlm":
                last = np.moveaxis(image, 0, -1)  # of one channel that is the first axis, it mixes up the others
                averaged = restoration.denoise_nl_means(
                    last,
                    patch_size=PATCH,
                    patch_distance=DISTANCE,
                    h=0.8 * self.strength,  # with a known sigma, as scikit-image recommends for its fast mode
                    sigma=self.strength,
                    fast_mode=True,
                    channel_axis=-1,
                )
                denoised = np.moveaxis(np.reshape(averaged, last.shape), -1, 0)
        return np.asarray(denoised, dtype=np.float32)

    def _without_noise(self, image: NDArray[np.float32], shift: tuple[int, ...]) -> NDArray[np.floating[Any]]:
        from skimage import restoration

        denoised = restoration.denoise_wavelet(
            np.roll(image, shift, axis=(1, 2)), sigma=self.strength, wavelet="haar", channel_axis=0
        )
        return np.roll(denoised, [-by for by in shift], axis=(1, 2))
