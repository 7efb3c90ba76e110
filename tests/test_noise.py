import numpy as np
import pytest
from numpy.typing import NDArray

from ddstudy.images.inputs import gaussian_sigma, noise_volume
from ddstudy.spec.options import NOISES, Noise


def make(kind: Noise, k: int = 6, height: int = 20, width: int = 17, **options: object) -> NDArray[np.float32]:
    return noise_volume(kind, k, height, width, np.random.default_rng(3), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", NOISES)
def test_shape_type_range_and_repetition(kind: Noise) -> None:
    volume = make(kind)
    assert volume.shape == (6, 20, 17)
    assert volume.dtype == np.float32
    assert volume.min() >= 0
    assert volume.max() <= 1
    assert volume.std() > 0.05
    assert np.array_equal(volume, make(kind))
    assert len({channel.tobytes() for channel in volume}) == 6
    wide = make(kind, range=(-1.0, 1.0))
    np.testing.assert_allclose(wide, 2 * volume - 1, atol=1e-6)


def test_sigma_of_the_kernel_is_that_of_eq_3_2() -> None:
    assert gaussian_sigma(3) == pytest.approx(0.8)
    assert gaussian_sigma(5) == pytest.approx(1.1)


def test_blur3_is_uniform_noise_under_the_gaussian_of_eq_3_1() -> None:
    sharp, blurred = make("uniform").astype(float), make("blur3")
    y, x = np.mgrid[-1:2, -1:2]
    kernel = np.exp(-(x**2 + y**2) / (2 * 0.8**2)) / (2 * np.pi * 0.8**2)
    kernel /= kernel.sum()
    padded = np.pad(sharp, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    expected = sum(kernel[i, j] * padded[:, i : i + 20, j : j + 17] for i in range(3) for j in range(3))
    np.testing.assert_allclose(blurred, expected, atol=1e-6)


def test_simplex_channels_are_slices_of_one_smooth_volume() -> None:
    fine = make("simplex", k=8, height=40, width=40)
    coarse = make("simplex", k=8, height=40, width=40, feature_size=8.0)

    def roughness(volume: NDArray[np.float32], axis: int) -> float:
        return float(np.abs(np.diff(volume, axis=axis)).mean() / volume.std())

    for axis in range(3):  # a larger feature size gives larger structures, also across channels (Fig. 3.3)
        assert roughness(coarse, axis) < 0.6 * roughness(fine, axis)


def test_simplex_of_size_1_is_half_at_the_corners_of_its_lattice_and_1_6_is_between_uniform_and_blur() -> None:
    z, y, x = np.mgrid[:32, :30, :36]
    corners = (x + y + z) % 6 == 0
    of_one = make("simplex", k=32, height=30, width=36)
    assert (of_one[corners] == 0.5).all()
    assert (of_one[~corners] == 0.5).mean() < 0.005

    def neighbours(volume: NDArray[np.float32]) -> float:
        return float(np.corrcoef(volume[:, :, 1:].ravel(), volume[:, :, :-1].ravel())[0, 1])

    between = make("simplex", k=32, height=30, width=36, feature_size=1.6)
    assert (between == 0.5).mean() < 0.001
    of_blur = neighbours(make("blur3", k=32, height=30, width=36))
    assert 0.6 < of_blur < 0.75
    assert neighbours(of_one) == pytest.approx(0.05, abs=0.03)
    assert neighbours(between) == pytest.approx(of_blur / 2, abs=0.05)


def test_interpolated_channels_lie_between_two_images() -> None:
    volume = make("uniform", channels="interpolated").reshape(6, -1)
    assert np.linalg.matrix_rank(volume.astype(float), tol=1e-4) == 2
    np.testing.assert_allclose(volume[2] - volume[1], volume[4] - volume[3], atol=1e-6)


def test_noise_of_two_streams_differs() -> None:
    other = noise_volume("uniform", 6, 20, 17, np.random.default_rng(4))
    assert not np.array_equal(other, make("uniform"))
