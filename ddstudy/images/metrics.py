"""Metrics: each is one entry of `METRICS`, from which everything else takes what it needs.

An entry says what a metric is called, which direction is better, how its numbers are written, what it is measured on,
and how. Study files, results, tables, figures, panels and the command line read it there, so this module imports
nothing of ours and heavy libraries only where they are used.

Image quality (thesis sec. 3.4) is taken on the joined slice, clipped to [0, 1], data range 1, reconstruction first and
target second. A metric that a slice is too small for is left out of the result rather than computed with other
settings. Functions run in threads that have one of torch's threads each: torch would spread every small operation over
all cores and wait for the slowest, which beside anything else takes many times longer than one core does.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

P = ParamSpec("P")
T = TypeVar("T")

Image = NDArray[np.float32]
Direction = Literal["maximize", "minimize"]
Input = Literal["ensemble", "members", "tiles", "fit"]

WINDOW = 11  # SSIM's Gaussian window, sigma 1.5
VIF_SIDE = 41  # the smallest side that four scales of VIF allow
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of MS-SSIM, Wang et al. 2003
PSNR_CAP = 100.0  # of a reconstruction without error, where Eq. 3.6 is infinite
# under which name a result has a metric of each input
_SUFFIXES: dict[Input, str] = {"ensemble": "", "members": "_1dd", "tiles": "_tiles", "fit": ""}


class Compared:
    """Reconstructions beside their target, with what several metrics need of them, computed once.

    Attributes:
        outputs: (N, C, H, W), clipped to [0, 1].
        target: (C, H, W) in [0, 1].
    """

    def __init__(self, outputs: Image, target: Image) -> None:
        self.outputs = np.clip(outputs, 0, 1)
        self.target = target
        self._computing = threading.Lock()
        self._full_scale: tuple[torch.Tensor, torch.Tensor] | None = None

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Reconstructions and target, both (N, C, H, W)."""
        import torch

        x = torch.from_numpy(self.outputs)
        return x, torch.from_numpy(self.target).expand_as(x)

    def channels(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The same as (N C, 1, H, W): MS-SSIM multiplies scales before it averages channels."""
        x, y = (images.flatten(0, 1)[:, None] for images in self.tensors())
        return x, y

    def full_scale(self) -> tuple[torch.Tensor, torch.Tensor]:
        """SSIM and contrast of every channel at full size, the first scale of MS-SSIM."""
        with self._computing:
            if self._full_scale is None:
                self._full_scale = _ssim_of(*self.channels())
            return self._full_scale


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: in study files, panels and results.
        better: the direction of an objective unless a study file says otherwise.
        label: for people, without the unit.
        unit: empty where there is none.
        digits: after the point.
        inputs: what it is measured on: the whole slice as the `ensemble` has it, each of the `members` (recorded is
            their mean, `NAME_1dd`), each of the `tiles` (the thesis' patch-wise reading, the mean over them,
            `NAME_tiles`), or the `fit` itself.
        function: one value for each reconstruction; None where it is told by the fit (`ddstudy.study.evaluate`).
        side: pixels of the shorter side from which on it is measurable.
        logarithmic: spans orders of magnitude, and its axis is drawn so.
    """

    name: str
    better: Direction
    label: str
    unit: str = ""
    digits: int = 2
    inputs: tuple[Input, ...] = ("ensemble", "members")
    function: Callable[[Compared], Sequence[float]] | None = None
    side: int = 1
    logarithmic: bool = False

    @property
    def title(self) -> str:
        """Label and unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    @property
    def format(self) -> str:
        """How its numbers are written, as Python and plotly have it: `.2f`."""
        return f".{self.digits}f"

    @property
    def minimized(self) -> bool:
        """Whether less is better."""
        return self.better == "minimize"

    @property
    def is_of_output(self) -> bool:
        """Whether it says how good a reconstruction is."""
        return "ensemble" in self.inputs

    def measurable(self, height: int, width: int) -> bool:
        """Whether an image of this size is large enough."""
        return min(height, width) >= self.side


def quality(outputs: Image, target: Image, names: Iterable[str] | None = None) -> list[dict[str, float]]:
    """The quality of several reconstructions of one target.

    Args:
        outputs: (N, C, H, W), values are clipped to [0, 1].
        target: (C, H, W) in [0, 1].
        names: of the metrics that are wanted [all of images].

    Returns:
        One dictionary per reconstruction, without the metrics that the target is too small for.
    """
    compared = Compared(outputs, target)
    wanted = [METRICS[name] for name in (QUALITY if names is None else names)]
    futures = {
        metric.name: _later(metric.function, compared)
        for metric in wanted
        if metric.function is not None and metric.measurable(*target.shape[-2:])
    }
    found = {name: future.result() for name, future in futures.items()}
    return [{name: values[index] for name, values in found.items()} for index in range(len(outputs))]


def psnr(output: NDArray[np.floating], target: NDArray[np.floating]) -> float:
    """Peak signal-to-noise ratio in dB for data range 1: -10 log10(MSE) (Eqs. 3.4 to 3.6), at most 100.

    Eq. 3.6 of the thesis lacks the minus sign; this has it.
    """
    return psnr_of(float(np.mean((output.astype(np.float64) - target) ** 2)))


def psnr_of(mse: float) -> float:
    """The PSNR of a mean squared error."""
    return -10 * math.log10(mse) if mse > 10 ** (-PSNR_CAP / 10) else PSNR_CAP


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


def _psnr(images: Compared) -> list[float]:
    return [psnr(output, images.target) for output in images.outputs]


def _psnr_foreground(images: Compared) -> list[float]:
    """PSNR where the target is no background."""
    inside = foreground(images.target)
    return [psnr(output[:, inside], images.target[:, inside]) for output in images.outputs]


def _nmse(images: Compared) -> list[float]:
    """Normalised mean squared error: |output - target|^2 / |target|^2, as fastMRI has it; 0 without error."""
    target = images.target.astype(np.float64)
    return [float(np.sum((output - target) ** 2) / np.sum(target**2)) for output in images.outputs]


def _ssim(images: Compared) -> list[float]:
    """SSIM (Eqs. 3.7 to 3.14), the mean over channels, without piq's pooling of large images.

    Gaussian window of 11, sigma 1.5, K1 0.01, K2 0.03, so that it means the same at every size.
    """
    return _over_channels(images.full_scale()[0], images)


def _ms_ssim(images: Compared) -> list[float]:
    """MS-SSIM (Eq. 3.15): the usual weights over as many scales as fit, renormalised; five from 161 pixels on.

    Its first scale has SSIM, too: piq's own would compute that again.
    """
    import torch

    def halved(images: torch.Tensor) -> torch.Tensor:
        odd = max(side % 2 for side in images.shape[2:])
        return torch.nn.functional.avg_pool2d(torch.nn.functional.pad(images, [odd, 0, odd, 0], mode="replicate"), 2)

    scales = min(len(SCALE_WEIGHTS), 1 + int(math.log2((min(images.target.shape[-2:]) - 1) / (WINDOW - 1))))
    x, y = images.channels()
    ssim, contrast = images.full_scale()
    contrasts = [contrast]
    for _ in range(1, scales):
        x, y = halved(x), halved(y)
        ssim, contrast = _ssim_of(x, y)
        contrasts.append(contrast)
    weights = torch.tensor(SCALE_WEIGHTS[:scales])
    factors = torch.relu(torch.stack([*contrasts[:-1], ssim])) ** (weights / weights.sum()).view(-1, 1)
    return _over_channels(factors.prod(dim=0), images)


def _ssim_of(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    ssim, _ = _piq()
    found = ssim(x, y, kernel_size=WINDOW, kernel_sigma=1.5, downsample=False, reduction="none", full=True)
    return found[0], found[1]


def _over_channels(values: torch.Tensor, images: Compared) -> list[float]:
    return list(values.view(images.outputs.shape[:2]).mean(1).tolist())


def _vif(images: Compared) -> list[float]:
    """VIF (Eqs. 3.16 to 3.19): pixel domain, four scales, noise variance 2."""
    _, vif_p = _piq()
    return list(vif_p(*images.tensors(), sigma_n_sq=2.0, reduction="none").tolist())


@functools.cache
def _piq() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """piq's SSIM and VIF, without the package: its networks import torchvision and torch's compiler, which takes 3 s.

    Whoever imports piq beside us gets all of it.
    """
    with _importing:
        whole, spec = sys.modules.get("piq"), importlib.util.find_spec("piq")
        assert spec is not None
        if whole is None:
            sys.modules["piq"] = importlib.util.module_from_spec(spec)
        try:
            from piq.ssim import ssim
            from piq.vif import vif_p
        finally:
            if whole is None:
                del sys.modules["piq"]
    return ssim, vif_p


_importing = threading.Lock()


def _later(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    return _threads(os.getpid()).submit(function, *args, **kwargs)


@functools.cache
def _threads(process: int) -> ThreadPoolExecutor:
    """The threads of a process: a fork has none of its parent's."""
    return ThreadPoolExecutor(thread_name_prefix="ddstudy-metrics", initializer=take_one_core)


_taking = threading.Lock()


def take_one_core() -> None:
    """Leaves this thread one of torch's threads.

    torch keeps that number for each of our threads, but also lets threads begin with the last one that was set
    anywhere: other threads of this process, of fits or of a user, shall begin with the number that they would have had.
    """
    import torch

    with _taking:
        others = torch.get_num_threads()
        torch.set_num_threads(1)
        other = threading.Thread(target=torch.set_num_threads, args=(others,))
        other.start()
        other.join()


_EVERY: tuple[Input, ...] = ("ensemble", "members", "tiles")
# in the order in which reports list them
METRICS = {
    metric.name: metric
    for metric in (
        Metric("psnr", "maximize", "PSNR", "dB", 2, _EVERY, _psnr),
        Metric("ssim", "maximize", "SSIM", "", 3, _EVERY, _ssim, side=WINDOW),
        Metric("ms_ssim", "maximize", "MS-SSIM", "", 3, function=_ms_ssim, side=WINDOW),
        Metric("vif", "maximize", "VIF", "", 3, _EVERY, _vif, side=VIF_SIDE),
        Metric("psnr_foreground", "maximize", "PSNR in the foreground", "dB", 2, function=_psnr_foreground),
        Metric("nmse", "minimize", "NMSE", "", 4, function=_nmse, logarithmic=True),
        Metric("judge", "maximize", "judge's score", "dB", 2, ("ensemble", "members")),
        Metric("seconds", "minimize", "seconds", "", 2, ("fit",), logarithmic=True),
        Metric("parameters", "minimize", "parameters", "", 0, ("fit",), logarithmic=True),
        Metric("cv_percent", "minimize", "CV", "%", 2, ("fit",)),
        Metric("spread_percent", "minimize", "spread of members", "%", 2, ("fit",)),
    )
}
QUALITY = tuple(name for name, metric in METRICS.items() if metric.function is not None)
# input -> metric -> the name under which a result has it
COLUMNS: dict[str, dict[str, str]] = {
    kind: {name: name + suffix for name, metric in METRICS.items() if kind in metric.inputs}
    for kind, suffix in _SUFFIXES.items()
}
