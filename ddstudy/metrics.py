"""Image quality: PSNR, SSIM, MS-SSIM and VIF with pinned settings (thesis sec. 3.4), and PSNR in the foreground.

All are taken on the joined slice, clipped to [0, 1], data range 1, reconstruction first and target second. A metric
that a slice is too small for is left out of the result rather than computed with other settings.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]

WINDOW = 11  # SSIM's Gaussian window, sigma 1.5
VIF_SIDE = 41  # the smallest side that four scales of VIF allow
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of MS-SSIM, Wang et al. 2003
PSNR_CAP = 100.0  # of a reconstruction without error, where Eq. 3.6 is infinite


def psnr(output: NDArray[np.floating], target: NDArray[np.floating]) -> float:
    """Peak signal-to-noise ratio in dB for data range 1: -10 log10(MSE) (Eqs. 3.4 to 3.6), at most 100.

    Eq. 3.6 of the thesis lacks the minus sign; this has it.
    """
    return psnr_of(float(np.mean((output.astype(np.float64) - target) ** 2)))


def psnr_of(mse: float) -> float:
    """The PSNR of a mean squared error."""
    return -10 * math.log10(mse) if mse > 10 ** (-PSNR_CAP / 10) else PSNR_CAP


def quality(outputs: Image, target: Image) -> list[dict[str, float]]:
    """`psnr`, `ssim`, `ms_ssim` and `vif` of several reconstructions of one target.

    SSIM (Eqs. 3.7 to 3.14): Gaussian window of 11, sigma 1.5, K1 0.01, K2 0.03, without piq's pooling of large
    images, so that it means the same at every size. MS-SSIM (Eq. 3.15): the usual weights over as many scales as fit,
    renormalised; five from 161 pixels on. VIF (Eqs. 3.16 to 3.19): pixel domain, four scales, noise variance 2.

    Args:
        outputs: (N, C, H, W), values are clipped to [0, 1].
        target: (C, H, W) in [0, 1].

    Returns:
        One dictionary per reconstruction; `ssim`, `ms_ssim` are missing below 11 pixels, `vif` below 41.
    """
    import piq
    import torch

    clipped = np.clip(outputs, 0, 1)
    results = [{"psnr": psnr(output, target)} for output in clipped]
    x = torch.from_numpy(clipped)
    y = torch.from_numpy(target).expand_as(x)
    side = min(target.shape[-2:])
    columns: dict[str, torch.Tensor] = {}
    if side >= WINDOW:
        columns["ssim"] = piq.ssim(x, y, kernel_size=WINDOW, kernel_sigma=1.5, downsample=False, reduction="none")
        scales = min(len(SCALE_WEIGHTS), 1 + int(math.log2((side - 1) / (WINDOW - 1))))
        weights = torch.tensor(SCALE_WEIGHTS[:scales])
        columns["ms_ssim"] = piq.multi_scale_ssim(
            x, y, kernel_size=WINDOW, kernel_sigma=1.5, scale_weights=weights, reduction="none"
        )
    if side >= VIF_SIDE:
        columns["vif"] = piq.vif_p(x, y, sigma_n_sq=2.0, reduction="none")
    for name, values in columns.items():
        for result, value in zip(results, values.tolist(), strict=True):
            result[name] = value
    return results


def measurable(metric: str, height: int, width: int) -> bool:
    """Whether a slice of this size is large enough for a metric."""
    sides = {"ssim": WINDOW, "ms_ssim": WINDOW, "vif": VIF_SIDE}
    return min(height, width) >= sides.get(metric, 1)


def foreground(target: Image) -> NDArray[np.bool_]:
    """Where the target is brighter than Otsu's threshold of its grey values (256 bins); (H, W).

    A black background flatters PSNR: it is easy to fit and often half of an MR slice.
    """
    grey = target.mean(axis=0)
    if np.ptp(grey) < 1e-6:  # a colour picture of one brightness has no background
        return np.ones(grey.shape, dtype=bool)
    counts, edges = np.histogram(grey, bins=256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    moment = np.cumsum(counts * centres)
    with np.errstate(invalid="ignore", divide="ignore"):
        between = below * above * (moment[:-1] / below - (moment[-1] - moment[:-1]) / above) ** 2
    return np.asarray(grey > centres[np.nanargmax(between)])
