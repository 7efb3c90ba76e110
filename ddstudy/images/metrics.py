"""Image quality: PSNR, SSIM, MS-SSIM and VIF with pinned settings (thesis sec. 3.4), and PSNR in the foreground.

All are taken on the joined slice, clipped to [0, 1], data range 1, reconstruction first and target second. A metric
that a slice is too small for is left out of the result rather than computed with other settings.

They are computed in threads that have one of torch's threads each: torch would spread every small operation over all
cores and wait for the slowest, which beside anything else takes many times longer than one core does.
"""

from __future__ import annotations

import functools
import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

P = ParamSpec("P")
T = TypeVar("T")

Image = NDArray[np.float32]

QUALITY = ("psnr", "ssim", "ms_ssim", "vif", "psnr_foreground")  # of a reconstruction, beside its target
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


def quality(outputs: Image, target: Image, *, scales: bool = True) -> list[dict[str, float]]:
    """`psnr`, `ssim`, `ms_ssim` and `vif` of several reconstructions of one target.

    SSIM (Eqs. 3.7 to 3.14): Gaussian window of 11, sigma 1.5, K1 0.01, K2 0.03, without piq's pooling of large
    images, so that it means the same at every size. MS-SSIM (Eq. 3.15): the usual weights over as many scales as fit,
    renormalised; five from 161 pixels on. VIF (Eqs. 3.16 to 3.19): pixel domain, four scales, noise variance 2.

    Args:
        outputs: (N, C, H, W), values are clipped to [0, 1].
        target: (C, H, W) in [0, 1].
        scales: whether `ms_ssim` is wanted.

    Returns:
        One dictionary per reconstruction; `ssim`, `ms_ssim` are missing below 11 pixels, `vif` below 41.
    """
    clipped = np.clip(outputs, 0, 1)
    results = [{"psnr": psnr(output, target)} for output in clipped]
    side = min(target.shape[-2:])
    parts = []
    if side >= WINDOW:
        fit = 1 + int(math.log2((side - 1) / (WINDOW - 1)))
        parts.append(_later(_similarity, clipped, target, min(len(SCALE_WEIGHTS), fit) if scales else 0))
    if side >= VIF_SIDE:
        parts.append(_later(_fidelity, clipped, target))
    for part in parts:
        for name, values in part.result().items():
            for result, value in zip(results, values, strict=True):
                result[name] = value
    return results


def _similarity(outputs: Image, target: Image, scales: int) -> dict[str, list[float]]:
    """SSIM, and MS-SSIM over so many scales, of which the first has SSIM, too: piq's own would compute that again."""
    import piq
    import torch

    def halved(images: torch.Tensor) -> torch.Tensor:
        odd = max(side % 2 for side in images.shape[2:])
        return torch.nn.functional.avg_pool2d(torch.nn.functional.pad(images, [odd, 0, odd, 0], mode="replicate"), 2)

    # every channel is an image of its own, since MS-SSIM multiplies scales before it averages channels
    shape = outputs.shape[:2]
    x, y = (images.flatten(0, 1)[:, None] for images in _pair(outputs, target))
    ssim, contrasts = [], []
    for scale in range(max(1, scales)):
        if scale:
            x, y = halved(x), halved(y)
        values = piq.ssim(x, y, kernel_size=WINDOW, kernel_sigma=1.5, downsample=False, reduction="none", full=True)
        ssim.append(values[0])
        contrasts.append(values[1])
    found = {"ssim": ssim[0].view(shape).mean(1).tolist()}
    if scales:
        weights = torch.tensor(SCALE_WEIGHTS[:scales])
        factors = torch.relu(torch.stack([*contrasts[:-1], ssim[-1]])) ** (weights / weights.sum()).view(-1, 1)
        found["ms_ssim"] = factors.prod(dim=0).view(shape).mean(1).tolist()
    return found


def _fidelity(outputs: Image, target: Image) -> dict[str, list[float]]:
    import piq

    return {"vif": piq.vif_p(*_pair(outputs, target), sigma_n_sq=2.0, reduction="none").tolist()}


def _pair(outputs: Image, target: Image) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    x = torch.from_numpy(outputs)
    return x, torch.from_numpy(target).expand_as(x)


def _later(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    return _threads(os.getpid()).submit(function, *args, **kwargs)


@functools.cache
def _threads(process: int) -> ThreadPoolExecutor:
    """The threads of a process: a fork has none of its parent's."""
    return ThreadPoolExecutor(thread_name_prefix="ddstudy-metrics", initializer=_take_one_core)


_taking = threading.Lock()


def _take_one_core() -> None:
    """Leaves this thread one of torch's threads.

    torch keeps that number for each of our threads, but also lets threads begin with the last one that was set
    anywhere: others of this process, fits or a user's own, shall begin with what they would have had.
    """
    import torch

    with _taking:
        others = torch.get_num_threads()
        torch.set_num_threads(1)
        other = threading.Thread(target=torch.set_num_threads, args=(others,))
        other.start()
        other.join()


def measurable(metric: str, height: int, width: int) -> bool:
    """Whether a slice of this size is large enough for a metric."""
    sides = {"ssim": WINDOW, "ms_ssim": WINDOW, "vif": VIF_SIDE}
    return min(height, width) >= sides.get(metric, 1)


def foreground(target: Image) -> NDArray[np.bool_]:
    """Where the target is brighter than Otsu's threshold of its grey values (256 bins); (H, W).

    A black background flatters PSNR: it is easy to fit and often half of an MR slice. By hand, since libraries sum in
    another order and so take another of two thresholds that are equally good (OpenCV for 9 % of images with a symmetric
    histogram, scikit-image for one slice in 60 of the template), which would change the numbers of stored studies.
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
