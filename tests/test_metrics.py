import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.filters import threshold_otsu
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ddstudy.images import metrics
from ddstudy.images.metrics import METRICS, PSNR_CAP, QUALITY, foreground, psnr, quality


def images(height: int, width: int, channels: int = 1, noise: float = 0.05) -> tuple[NDArray[np.float32], ...]:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width]
    target = np.stack([(np.sin(x / (7 + c)) * np.cos(y / 9) + 1) / 2 for c in range(channels)]).astype(np.float32)
    output = np.clip(target + noise * rng.normal(size=target.shape), 0, 1).astype(np.float32)
    return output, target


@pytest.mark.parametrize("size", [(64, 80), (256, 320), (400, 480)])
@pytest.mark.parametrize("channels", [1, 3])
def test_psnr_and_ssim_are_those_of_scikit_image(size: tuple[int, int], channels: int) -> None:
    output, target = images(*size, channels)
    (scores,) = quality(output[None], target)
    assert scores["psnr"] == pytest.approx(peak_signal_noise_ratio(target, output, data_range=1), abs=1e-4)
    per_channel = []
    for one, other in zip(output, target, strict=True):
        _, field = structural_similarity(
            other.astype(float),
            one.astype(float),
            data_range=1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )
        per_channel.append(field[5:-5, 5:-5].mean())  # where the whole window lies in the image
    assert scores["ssim"] == pytest.approx(np.mean(per_channel), abs=1e-4)


def test_ms_ssim_has_as_many_scales_as_fit() -> None:
    for side, scales in [(11, 1), (20, 1), (21, 2), (160, 4), (161, 5), (256, 5)]:
        output, target = images(side, side + 3)
        (scores,) = quality(output[None], target)
        assert 0 < scores["ms_ssim"] < 1
        if scales == 1:  # the weight of a single scale is 1
            assert scores["ms_ssim"] == pytest.approx(scores["ssim"], abs=1e-5)


def _vif(output: NDArray[np.float64], target: NDArray[np.float64]) -> float:
    """Eqs. 3.16 to 3.19 in numpy: Sheikh and Bovik's pixel-domain version."""
    from scipy.ndimage import correlate

    def blur(image: NDArray[np.float64], size: int) -> NDArray[np.float64]:
        grid = np.arange(size) - size // 2
        line = np.exp(-(grid**2) / (2 * (size / 5) ** 2))
        kernel = np.outer(line, line) / line.sum() ** 2
        edge = size // 2
        return np.asarray(correlate(image, kernel))[edge:-edge, edge:-edge]

    x, y, above, below = output * 255, target * 255, 0.0, 0.0
    for scale in range(4):
        size = 2 ** (4 - scale) + 1
        if scale:
            x, y = blur(x, size)[::2, ::2], blur(y, size)[::2, ::2]
        var_x = np.maximum(blur(x * x, size) - blur(x, size) ** 2, 0)
        var_y = np.maximum(blur(y * y, size) - blur(y, size) ** 2, 0)
        covariance = blur(x * y, size) - blur(x, size) * blur(y, size)
        gain = covariance / (var_y + 1e-8)
        rest = var_x - gain * covariance
        gain, rest = np.where(var_y < 1e-8, 0, gain), np.where(var_y < 1e-8, var_x, rest)
        rest = np.where(gain < 0, var_x, rest)
        gain = np.maximum(gain, 0)
        above += np.log10(1 + gain**2 * np.where(var_y < 1e-8, 0, var_y) / (np.maximum(rest, 1e-8) + 2)).sum()
        below += np.log10(1 + np.where(var_y < 1e-8, 0, var_y) / 2).sum()
    return above / below


def test_vif_is_eq_3_19_with_the_reconstruction_first() -> None:
    output, target = images(72, 64, noise=0.1)
    (scores,) = quality(output[None], target)
    assert scores["vif"] == pytest.approx(_vif(output[0].astype(float), target[0].astype(float)), rel=2e-3)
    (turned,) = quality(target[None], output[0][None])
    assert abs(turned["vif"] - scores["vif"]) > 0.01  # not symmetric, so the order matters


def test_metrics_a_slice_is_too_small_for_are_left_out() -> None:
    for side in (10, 11, 40, 41):
        output, target = images(side, 50)
        (scores,) = quality(output[None], target)
        assert list(scores) == [metric for metric in QUALITY if METRICS[metric].measurable(side, 50)]


def test_perfect_reconstruction_and_clipping() -> None:
    _, target = images(64, 64)
    (scores,) = quality(target[None], target)
    assert scores["psnr"] == PSNR_CAP
    assert scores["ssim"] == pytest.approx(1)
    assert scores["vif"] == pytest.approx(1)
    bright = np.ones_like(target)
    assert quality(bright[None] + 3, target) == quality(bright[None], target)


def test_a_batch_scores_like_its_images() -> None:
    output, target = images(64, 64)
    many = np.stack([output, target, 1 - output])
    for one, scores in zip(many, quality(many, target), strict=True):
        (alone,) = quality(one[None], target)
        assert alone == pytest.approx(scores, rel=1e-5)


@pytest.fixture
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_two_threads")
def test_metrics_take_one_of_torchs_threads_and_leave_others_theirs() -> None:
    """Beside a busy core, two of torch's threads took up to twenty times longer than one, and most of a run."""
    output, target = images(27, 22)
    quality(output[None], target)
    assert {metrics._later(torch.get_num_threads).result() for _ in range(8)} == {1}
    assert torch.get_num_threads() == 2
    with ThreadPoolExecutor(1) as new:
        assert new.submit(torch.get_num_threads).result() == 2


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(27, 22), (96, 81), (161, 170)])
def test_values_are_piqs_own(size: tuple[int, int], channels: int) -> None:
    import piq

    output, target = images(*size, channels)
    many = np.stack([output, target, 1 - output])
    x, y = torch.from_numpy(many), torch.from_numpy(target).expand(3, -1, -1, -1)
    weights = torch.tensor(metrics.SCALE_WEIGHTS[: {22: 2, 81: 4, 161: 5}[min(size)]])
    expected = {
        "ssim": piq.ssim(x, y, downsample=False, reduction="none"),
        "ms_ssim": piq.multi_scale_ssim(x, y, scale_weights=weights, reduction="none"),
    }
    if min(size) >= metrics.VIF_SIDE:
        expected["vif"] = piq.vif_p(x, y, sigma_n_sq=2.0, reduction="none")
    found = quality(many, target)
    for name, values in expected.items():
        # to the last bit, where piq does not add up channels in another order
        assert [scores[name] for scores in found] == pytest.approx(values.tolist(), abs=0 if channels == 1 else 2e-6)
    assert quality(many, target, ["psnr", "ssim"]) == [{"psnr": one["psnr"], "ssim": one["ssim"]} for one in found]


def test_nmse_is_the_error_against_the_target() -> None:
    output, target = images(27, 22, channels=3)
    (scores,) = quality(output[None], target)
    expected = np.linalg.norm((output - target).astype(float)) ** 2 / np.linalg.norm(target.astype(float)) ** 2
    assert scores["nmse"] == pytest.approx(expected, rel=1e-5)
    assert quality(np.zeros_like(target)[None], target, ["nmse"]) == [{"nmse": 1.0}]


def test_a_metric_is_added_as_one_entry(tmp_path: Path) -> None:
    """The mean absolute error: in a study file, results, tables, a figure, the report, the export and messages."""
    program = Path(__file__).with_name("added_metric.py")
    done = subprocess.run([sys.executable, program], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr + done.stdout


def test_foreground_is_otsus() -> None:
    target = images(60, 70)[1]
    target[:, :, :30] = 0
    expected = target[0] > threshold_otsu(target[0])
    assert np.mean(foreground(target) == expected) > 0.999
    assert psnr(target, target) == PSNR_CAP
