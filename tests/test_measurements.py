"""Measurements: what the tables say is what is measured, the same for every setting, and nothing that is held out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddstudy.errors import UserError
from ddstudy.images.kspace import centred_fft, centred_ifft, kspace_target, load_maps
from ddstudy.images.volumes import Target, load_target
from ddstudy.spec.options import TargetSpec, TaskSpec
from ddstudy.tasks import measurements
from ddstudy.tasks.base import Measurement
from ddstudy.tasks.measurements import consistent, held_out_errors, measure, picture, residual, to_images
from ddstudy.tasks.operators import Downsampling, Mri

SIDES = (48, 64)
TASKS: dict[str, dict[str, Any]] = {
    "represent": {},
    "denoise": {"kind": "denoise", "sigma": 0.1},
    "inpaint": {"kind": "inpaint", "share": 0.4, "sigma": 0.05},
    "super_resolve": {"kind": "super_resolve", "sigma": 0.02},
    "mri": {"kind": "mri", "sigma": 0.02},
    "coils": {"kind": "mri", "coils": 4, "acceleration": 3.0},
}


@pytest.fixture(scope="module")
def brain() -> Target:
    return load_target(TargetSpec(size=SIDES))


def flat(value: float, *shape: int) -> Target:
    return Target(np.full(shape or (1, 200, 200), value, dtype=np.float32), "flat", None)


def colour() -> Target:
    return Target(np.random.default_rng(0).random((3, 16, 24), dtype=np.float32), "colour", None)


def task(kind: str, **options: Any) -> TaskSpec:
    return TaskSpec(**{"kind": kind, **options})


def kept(measurement: Measurement) -> np.ndarray:
    return np.isfinite(measurement.samples)


def refused(call: Callable[[], object], *words: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert len(message.splitlines()) == 2, message
    assert all(word in message for word in words), message


def test_represent_is_the_target_itself(brain: Target) -> None:
    measurement = measure(brain, TaskSpec())
    assert measurement.samples is brain.image
    assert measurement.operator is None
    assert measurement.held_out is None
    assert measure(brain, task("denoise", source="file", sigma=0.1)).samples is brain.image


# --- noise ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_gaussian_noise(value: float) -> None:
    y = measure(flat(value), task("denoise", sigma=0.2)).samples.astype(np.float64)
    assert y.dtype == np.float64
    assert abs(y.mean() - value) < 4 * 0.2 / 200
    assert y.std() == pytest.approx(0.2, rel=0.02)
    clipped = measure(flat(value), task("denoise", sigma=0.2, noise="clipped")).samples
    assert np.array_equal(clipped, np.clip(y, 0, 1).astype(np.float32))


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_rician_noise(value: float) -> None:
    y = measure(flat(value), task("denoise", sigma=0.2, noise="rician")).samples.astype(np.float64)
    law = scipy.stats.rice(value / 0.2, scale=0.2)
    assert abs(y.mean() - law.mean()) < 4 * law.std() / 200
    assert y.std() == pytest.approx(law.std(), rel=0.02)
    assert scipy.stats.kstest(y.ravel()[:2000], law.cdf).pvalue > 1e-3


@pytest.mark.parametrize("value", [0.1, 1.0])
def test_poisson_noise(value: float) -> None:
    y = measure(flat(value), task("denoise", sigma=0.2, noise="poisson")).samples.astype(np.float64)
    deviation = 0.2 * np.sqrt(value)
    assert abs(y.mean() - value) < 4 * deviation / 200
    assert y.std() == pytest.approx(deviation, rel=0.03)
    counts = y / 0.2**2
    assert np.allclose(counts, counts.round(), atol=1e-4)


@pytest.mark.parametrize("noise", ["gaussian", "clipped", "rician", "poisson"])
def test_no_noise_is_the_image(noise: str, brain: Target) -> None:
    assert np.array_equal(measure(brain, task("denoise", noise=noise)).samples, brain.image)


def test_noise_too_little_to_count_photons_is_refused(brain: Target) -> None:
    refused(lambda: measure(brain, task("denoise", noise="poisson", sigma=1e-9)), "task.sigma", "1e-08")
    measure(brain, task("denoise", noise="poisson", sigma=1e-8))


def test_a_filters_overshoot_below_0_counts_no_photon() -> None:
    edge = np.repeat(np.float32([0, 1]), 16)[None].repeat(16, axis=0)[None]
    spec = task("super_resolve", filter="lanczos")
    assert measure(Target(edge, "edge", None), spec).samples.min() < 0
    counted = measure(Target(edge, "edge", None), spec.model_copy(update={"noise": "poisson", "sigma": 0.1})).samples
    assert counted.min() == 0


def test_streams_of_random_numbers_are_separate() -> None:
    streams = measurements._STREAMS
    assert len(set(streams.values())) == len(streams)


def test_noise_of_channels_differs() -> None:
    noise = measure(flat(0.0, 3, 64, 64), task("denoise", sigma=1.0)).samples.reshape(3, -1)
    assert np.abs(np.corrcoef(noise) - np.eye(3)).max() < 0.07


# --- the same measurement ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_a_measurement_is_the_same_every_time(name: str, brain: Target) -> None:
    spec = TaskSpec(**TASKS[name])
    one, same = measure(brain, spec, 0.1), measure(brain, spec, 0.1)
    assert np.array_equal(one.samples, same.samples, equal_nan=True)
    assert one.operator == same.operator
    assert one.held_out is not None
    assert same.held_out is not None
    assert np.array_equal(one.held_out, same.held_out, equal_nan=True)
    other = measure(brain, spec.model_copy(update={"seed": 1}), 0.1)
    assert not np.array_equal(one.samples, other.samples, equal_nan=True)
    shape = one.samples.shape
    assert one.samples.dtype == one.held_out.dtype == np.float32
    assert shape == (one.shape if one.operator is None else one.operator.shape)


@pytest.mark.parametrize("name", ["denoise", "super_resolve", "mri", "coils"])
def test_noise_of_another_level_is_the_same_scaled(name: str, brain: Target) -> None:
    clean, one, two = (measure(brain, TaskSpec(**TASKS[name] | {"sigma": sigma})).samples for sigma in (0.0, 0.1, 0.2))
    assert np.allclose(two - clean, 2 * (one - clean), atol=2e-6, equal_nan=True)
    assert np.nanstd(one - clean) == pytest.approx(0.1, rel=0.1)


def test_of_a_larger_share_the_pixels_are_among_those_of_all(brain: Target) -> None:
    masks = [
        kept(measure(brain, task("inpaint", share=share, sigma=sigma)))[0] for share, sigma in ((0.2, 0), (0.5, 1))
    ]
    assert not (masks[0] & ~masks[1]).any()


def test_columns_do_not_depend_on_noise_or_phase(brain: Target) -> None:
    one, two = (measure(brain, task("mri", sigma=sigma, phase=phase)) for sigma, phase in ((0.0, 0.0), (0.1, 2.0)))
    assert np.array_equal(kept(one), kept(two))
    fewer = measure(brain, task("mri", acceleration=6.0))
    assert not (kept(fewer) & ~kept(one)).any()


# --- inpainting and super-resolution ----------------------------------------------------------------------------------


@given(share=st.floats(0.01, 1), seed=st.integers(0, 2**62))
@settings(max_examples=20, deadline=None)
def test_the_share_of_pixels_is_exact(share: float, seed: int) -> None:
    target = colour()
    mask = kept(measure(target, task("inpaint", share=share, seed=seed)))
    assert (mask == mask[0]).all()
    assert mask[0].sum() == round(share * 16 * 24)
    assert np.array_equal(measure(target, task("inpaint", share=1.0)).samples, target.image)


def test_masks_from_files(tmp_path: Path) -> None:
    target, mask = colour(), np.random.default_rng(1).random((16, 24)) < 0.5
    np.save("mask.npy", mask)
    cv2.imwrite("mask.png", mask.astype(np.uint8) * 255)
    cv2.imwrite("colours.png", np.stack((mask, mask & False, mask & False), axis=-1).astype(np.uint8))
    for name in ("mask.npy", "mask.png", "colours.png"):
        for source in ("simulated", "file"):
            measurement = measure(target, task("inpaint", mask=name, source=source))
            assert (kept(measurement) == mask).all()
            assert np.array_equal(measurement.samples[:, mask], target.image[:, mask])
            assert np.array_equal(picture(measurement), target.image * mask)

    np.save("small.npy", mask[1:])
    np.save("nothing.npy", mask & False)
    np.save("complex.npy", mask * 1j)
    np.save("volume.npy", np.ones((16, 24, 5)))
    Path("damaged.png").write_bytes(Path("mask.png").read_bytes()[:60])
    Path("mask.txt").write_text("0 1")
    for name, *words in (
        ("small.npy", "15 x 24", "16 x 24"), ("nothing.npy", "0 everywhere"), ("complex.npy", "complex"),
        ("volume.npy", "volume"), ("damaged.png", "damaged.png"), ("mask.txt", "'.txt'"), ("none.npy", "no such file"),
        (".", "directory"),
    ):  # fmt: skip
        refused(lambda name=name: measure(target, task("inpaint", mask=name)), name, *words)
    refused(lambda: measure(target, task("inpaint", source="file")), "task.mask")


def test_super_resolution_may_lose_by_another_filter(brain: Target) -> None:
    measurement = measure(brain, task("super_resolve", factor=4, filter="lanczos", loss_filter="bicubic"))
    assert measurement.operator == Downsampling((1, *SIDES), 4, "bicubic")
    by_lanczos = Downsampling((1, *SIDES), 4, "lanczos").forward(torch.from_numpy(brain.image)[None])[0]
    assert np.allclose(measurement.samples, by_lanczos, atol=1e-6)
    same = measure(brain, task("super_resolve", factor=4, filter="lanczos"))
    assert np.abs(residual(brain.image[None], same)).max() < 1e-6
    assert np.abs(residual(brain.image[None], measurement)).max() > 1e-3


def test_a_measured_image_of_low_resolution_is_enlarged() -> None:
    target = colour()
    measurement = measure(target, task("super_resolve", factor=3, source="file"))
    assert measurement.samples is target.image
    assert measurement.shape == (3, 48, 72)
    enlarged = picture(measurement)
    theirs = cv2.resize(target.image.transpose(1, 2, 0), (72, 48), interpolation=cv2.INTER_LINEAR).transpose(2, 0, 1)
    assert enlarged.shape == measurement.shape
    assert np.abs(enlarged - theirs).mean() < 0.05
    refused(lambda: measure(flat(0.5, 1, 8, 300), task("super_resolve", factor=16, source="file")), "4800", "4096")


def test_a_factor_divides_the_sides() -> None:
    refused(lambda: measure(colour(), task("super_resolve", factor=3)), "task.factor = 3", "16 x 24")


# --- MRI --------------------------------------------------------------------------------------------------------------


@given(
    sampling=st.sampled_from(["random", "equispaced", "gaussian"]),
    width=st.integers(8, 400),
    acceleration=st.floats(1, 12),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_columns_are_as_many_as_asked_for_about_the_centre(
    sampling: str, width: int, acceleration: float, share: float, seed: int
) -> None:
    count = max(1, round(width / acceleration))
    fraction = share * count / width
    if round(fraction * width) > count:
        fraction = 0.0
    spec = task("mri", sampling=sampling, acceleration=acceleration, center_fraction=fraction, seed=seed)
    mask = kept(measure(flat(0.5, 1, 8, width), spec))
    assert (mask == mask[0, 0]).all()
    columns = mask[0, 0]
    assert columns.sum() == count
    centre = round(fraction * width)
    first = (width - centre + 1) // 2
    assert columns[first : first + centre].all()
    assert not centre or first <= width // 2 < first + centre


def test_equispaced_columns_are_equally_far_apart() -> None:
    spec = task("mri", sampling="equispaced", center_fraction=0.0, acceleration=4.0)
    steps = np.diff(np.flatnonzero(kept(measure(flat(0.5, 1, 8, 320), spec))[0, 0]))
    assert set(steps) == {4}


def test_equispaced_columns_begin_anywhere() -> None:
    specs = [task("mri", sampling="equispaced", center_fraction=0.0, seed=seed) for seed in range(30)]
    assert {int(np.flatnonzero(kept(measure(flat(0.5, 1, 8, 320), spec))[0, 0])[0]) for spec in specs} == {0, 1, 2, 3}


def test_gaussian_columns_are_denser_in_the_middle() -> None:
    def distances(sampling: str) -> np.ndarray:
        masks = [
            kept(measure(flat(0.5, 1, 8, 320), task("mri", sampling=sampling, center_fraction=0.0, seed=seed)))[0, 0]
            for seed in range(20)
        ]
        return np.concatenate([np.abs(np.flatnonzero(mask) - 160) for mask in masks])

    assert distances("random").mean() == pytest.approx(80, abs=5)
    gaussian = distances("gaussian")
    assert gaussian.mean() < 65
    assert (gaussian > 3.2 * 32).mean() > 0.1  # the floor: beyond three deviations there would be next to none


def test_a_centre_beyond_the_acceleration_is_refused(brain: Target) -> None:
    refused(lambda: measure(brain, task("mri", center_fraction=0.3)), "task.center_fraction", "0.25")


@pytest.mark.parametrize("coils", [1, 4])
def test_without_acceleration_or_noise_mri_is_the_image(coils: int, brain: Target) -> None:
    measurement = measure(brain, task("mri", acceleration=1.0, coils=coils))
    assert kept(measurement).all()
    assert measurement.shape == (2, *SIDES)
    assert measurement.head == "linear"
    assert np.allclose(picture(measurement), brain.image, atol=2e-6)
    energy = (measurement.samples.astype(np.float64) ** 2).sum()
    assert energy == pytest.approx((brain.image.astype(np.float64) ** 2).sum(), rel=1e-5)


def test_the_phase_is_smooth_and_as_large_as_asked_for() -> None:
    target = flat(1.0, 1, *SIDES)
    angles = []
    for phase in (0.0, 1.0, 2.0):
        y = measure(target, task("mri", acceleration=1.0, phase=phase)).samples
        angles.append(np.angle(centred_ifft(y[0] + 1j * y[1])))
        assert np.abs(angles[-1]).max() == pytest.approx(phase, abs=1e-5)
    assert np.allclose(angles[2], 2 * angles[1], atol=1e-5)
    assert np.abs(np.diff(angles[1], axis=0)).max() < 0.1
    assert np.abs(np.diff(angles[1], n=3, axis=1)).max() < 1e-5  # degree 2


@pytest.mark.parametrize("coils", [1, 3])
def test_noise_in_k_space_has_its_deviation_in_each_component(coils: int, brain: Target) -> None:
    clean, noisy = (
        measure(brain, task("mri", acceleration=1.0, coils=coils, sigma=sigma)).samples for sigma in (0, 0.1)
    )
    noise = (noisy - clean).reshape(2 * coils, -1).astype(np.float64)
    assert np.allclose(noise.std(axis=1), 0.1, rtol=0.06)
    assert np.abs(np.corrcoef(noise) - np.eye(2 * coils)).max() < 0.08


def test_coils_see_the_image_through_maps_of_unit_power(brain: Target) -> None:
    measurement = measure(brain, task("mri", coils=4, acceleration=1.0, phase=0.0))
    operator = measurement.operator
    assert isinstance(operator, Mri)
    assert operator.maps is not None
    assert measurement.samples.shape == (2, 4, *SIDES)
    assert np.allclose((np.abs(operator.maps) ** 2).sum(axis=0), 1, atol=1e-5)
    coils = centred_ifft(measurement.samples[0] + 1j * measurement.samples[1])
    assert np.allclose(coils, operator.maps * brain.image[0], atol=1e-5)


def test_estimated_sensitivities_explain_the_coils(brain: Target) -> None:
    spec = task("mri", coils=4, center_fraction=0.25, acceleration=3.0, sensitivities="estimated", sigma=0.01)
    measurement = measure(brain, spec, 0.1)
    operator = measurement.operator
    assert isinstance(operator, Mri)
    assert operator.maps is not None
    assert np.allclose((np.abs(operator.maps) ** 2).sum(axis=0), 1, atol=1e-5)
    truth = measure(brain, task("mri", coils=4, acceleration=1.0)).samples
    coils = centred_ifft(truth[0] + 1j * truth[1])
    explained = operator.maps * (operator.maps.conj() * coils).sum(axis=0)
    assert np.linalg.norm(explained - coils) < 0.02 * np.linalg.norm(coils)
    little = measure(brain, spec.model_copy(update={"center_fraction": 0.125, "sigma": 0.0})).operator
    assert isinstance(little, Mri)
    assert little.maps is not None
    explained = little.maps * (little.maps.conj() * coils).sum(axis=0)
    assert np.linalg.norm(explained - coils) < 0.03 * np.linalg.norm(coils)
    few = spec.model_copy(update={"center_fraction": 0.08})
    refused(lambda: measure(brain, few), "task.sensitivities", "task.center_fraction", "0.125")


def test_maps_from_a_file(brain: Target) -> None:
    maps = np.random.default_rng(0).standard_normal((3, *SIDES, 2)) @ (1, 1j)
    maps[:, :4] = 0
    np.save("maps.npy", maps)
    power = (np.abs(load_maps("maps.npy")) ** 2).sum(axis=0)
    assert np.allclose(power[4:], 1, atol=1e-6)
    assert not power[:4].any()
    measurement = measure(brain, task("mri", maps="maps.npy", acceleration=1.0))
    assert np.allclose(picture(measurement)[0, 4:], brain.image[0, 4:], atol=1e-5)

    np.save("small.npy", maps[:, 1:])
    np.save("real.npy", maps.real)
    np.save("flat.npy", maps[0])
    np.save("nan.npy", np.where(maps == maps[1, 7, 7], np.nan, maps))
    for name, *words in (
        ("small.npy", "47 x 64"), ("real.npy", "float64"), ("flat.npy", "48 x 64"), ("nan.npy", "NaN"),
        ("none.npy", "no such file"),
    ):  # fmt: skip
        refused(lambda name=name: measure(brain, task("mri", maps=name)), name, *words)
    refused(lambda: measure(brain, task("mri", maps="maps.npy", coils=4)), "3 coils, not 4")


def test_colour_has_no_k_space() -> None:
    refused(lambda: measure(colour(), task("mri")), "3 channels", "grey")


@pytest.mark.parametrize(("name", "options"), [("sigpy.mri", {"coils": 4}), ("h5py", {})])
def test_what_is_not_installed_is_named(
    name: str, options: dict[str, Any], brain: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    with h5py.File("k.h5", "w") as file:
        file["kspace"] = np.ones((2, 16, 16), dtype=np.complex64)
    monkeypatch.setitem(sys.modules, name, None)

    def use() -> object:
        return measure(brain, task("mri", **options)) if options else kspace_target(TargetSpec(file="k.h5"))

    refused(use, "not installed", "pip install 'ddstudy[inverse]'")


# --- held-out samples, consistency, pictures --------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("share", [0.05, 0.5])
def test_held_out_and_kept_samples_are_all_and_share_none(name: str, share: float, brain: Target) -> None:
    spec = TaskSpec(**TASKS[name])
    whole, split = measure(brain, spec), measure(brain, spec, share)
    assert split.held_out is not None
    held = np.isfinite(split.held_out)
    assert not (held & kept(split)).any()
    assert np.array_equal(np.where(held, split.held_out, split.samples), whole.samples, equal_nan=True)
    places = held.reshape(-1, *held.shape[-2:])
    assert (places == places[0]).all()
    candidates = kept(whole).reshape(places.shape)[0]
    if spec.kind == "mri":
        middle = slice((64 - 5 + 1) // 2, (64 - 5 + 1) // 2 + 5)  # 8 % of 64
        assert candidates[:, middle].all()
        assert not places[0][:, middle].any()
        candidates[:, middle] = False
    assert places[0].sum() == round(share * candidates.sum())
    assert split.operator == whole.operator
    assert brain.image.min() >= 0  # nothing was written into the target
    assert np.isfinite(brain.image).all()


def test_nothing_is_left_to_hold_out(brain: Target) -> None:
    refused(lambda: measure(brain, task("mri", center_fraction=0.25), 0.1), "judge.share", "0 samples")


@pytest.mark.parametrize("name", TASKS)
def test_the_judge_is_the_error_on_held_out_samples(name: str, brain: Target) -> None:
    measurement = measure(brain, TaskSpec(**TASKS[name]), 0.2)
    outputs = np.random.default_rng(0).random((3, *measurement.shape), dtype=np.float32)
    scores = held_out_errors(outputs, measurement)
    assert scores.shape == (3,)
    assert scores.dtype == np.float64
    operator = measurement.operator
    x = torch.from_numpy(outputs).double()
    predicted = (x if operator is None else operator.forward(x)).numpy()
    assert measurement.held_out is not None
    errors = (predicted - measurement.held_out).reshape(3, -1)
    assert np.allclose(scores, np.nanmean(errors**2, axis=1), rtol=1e-12)
    left = residual(outputs, measurement)
    assert left.shape == (3, *measurement.samples.shape)
    assert np.array_equal(np.isfinite(left[1]), kept(measurement))
    assert np.allclose(left, predicted - measurement.samples, atol=1e-5, equal_nan=True)


def test_without_held_out_samples_there_is_no_judge(brain: Target) -> None:
    with pytest.raises(ValueError, match="held out"):
        held_out_errors(brain.image[None], measure(brain, TaskSpec()))
    with pytest.raises(ValueError, match="k-space"):
        consistent(brain.image[None], measure(brain, TaskSpec()))


@pytest.mark.parametrize("options", [TASKS["mri"], TASKS["coils"], {"kind": "mri", "maps": "maps.npy"}])
def test_measured_k_space_replaces_the_fitted(options: dict[str, Any], brain: Target) -> None:
    seen_by_none = np.ones((2, *SIDES), dtype=complex)
    seen_by_none[:, :9] = 0
    np.save("maps.npy", seen_by_none)
    measurement = measure(brain, TaskSpec(**options), 0.2)
    outputs = np.random.default_rng(0).standard_normal((2, 3, *measurement.shape)).astype(np.float32)
    changed = consistent(outputs, measurement)
    assert changed.shape == outputs.shape
    assert changed.dtype == np.float32
    operator = measurement.operator
    assert isinstance(operator, Mri)
    maps = np.ones((1, *SIDES)) if operator.maps is None else operator.maps
    y = measurement.samples.reshape(2, -1, *SIDES)
    x = outputs[1, 2, 0] + 1j * outputs[1, 2, 1]
    k = centred_fft(maps * x)
    k = np.where(np.isfinite(y[0]), y[0] + 1j * y[1], k)  # held-out samples are NaN here
    expected = (maps.conj() * centred_ifft(k)).sum(axis=0)
    assert np.allclose(changed[1, 2, 0] + 1j * changed[1, 2, 1], expected, atol=2e-5)
    if operator.maps is None:
        assert np.nanmax(np.abs(residual(changed.reshape(6, *measurement.shape), measurement))) < 1e-5


@pytest.mark.parametrize("name", TASKS)
def test_pictures_are_images(name: str, brain: Target) -> None:
    measurement = measure(brain, TaskSpec(**TASKS[name]), 0.1)
    seen = picture(measurement)
    assert seen.shape == (1, *SIDES)
    assert seen.dtype == np.float32
    assert 0 <= seen.min() < seen.max() <= 1
    assert np.corrcoef(seen.ravel(), brain.image.ravel())[0, 1] > 0.5


def test_outputs_become_images(brain: Target) -> None:
    real, complex_ = measure(brain, TaskSpec()), measure(brain, task("mri"))
    outputs = np.array([[-0.5, 0.25], [0.5, 3.0]], dtype=np.float32).reshape(1, 1, 2, 2)
    assert np.array_equal(to_images(outputs, real).ravel(), np.float32([0, 0.25, 0.5, 1]))
    pair = np.stack((0.6 * outputs, 0.8 * outputs), axis=-3)[:, 0]
    assert pair.shape == (1, 2, 2, 2)
    assert np.allclose(to_images(pair, complex_).ravel(), [0.5, 0.25, 0.5, 1])
    assert to_images(pair, complex_).shape == (1, 1, 2, 2)


# --- measured k-space -------------------------------------------------------------------------------------------------


def raw(coils: int = 3, seed: int = 0) -> np.ndarray:
    """K-space in units of its own, every second column measured."""
    kspace = 1e-5 * np.random.default_rng(seed).standard_normal((coils, 24, 32, 2)) @ (1, 1j)
    kspace[..., ::2] = 0
    return kspace.astype(np.complex64)


def test_k_space_of_a_file_is_measured_in_its_own_units() -> None:
    kspace = raw()
    np.save("k.npy", kspace)
    target = kspace_target(TargetSpec(file="k.npy"))
    magnitude = np.sqrt((np.abs(centred_ifft(kspace)) ** 2).sum(axis=0))
    assert target.affine is None
    assert target.scale == (0.0, pytest.approx(magnitude.max()))
    assert target.image.max() == 1
    assert np.allclose(target.image[0] * target.scale[1], magnitude, rtol=1e-4, atol=1e-10)
    np.save("maps.npy", np.ones((3, 24, 32), dtype=complex))
    measurement = measure(target, task("mri", source="file", maps="maps.npy"), 0.1)
    assert measurement.held_out is not None
    y = np.nan_to_num(measurement.samples) + np.nan_to_num(measurement.held_out)
    assert np.allclose((y[0] + 1j * y[1]) * target.scale[1], kspace, rtol=1e-5)
    assert isinstance(measurement.operator, Mri)
    assert np.array_equal(measurement.operator.mask, np.abs(kspace).sum(axis=0) > 0)
    refused(lambda: measure(target, task("mri", source="file")), "3 coils", "estimated")
    estimated = {"maps": "maps.npy", "sensitivities": "estimated"}
    refused(lambda: measure(target, task("mri", source="file", **estimated)), "task.maps")
    np.save("two.npy", np.ones((2, 24, 32), dtype=complex))
    refused(lambda: measure(target, task("mri", source="file", maps="two.npy")), "2 coils", "3")


def test_k_space_of_one_coil() -> None:
    (kspace,) = raw(1)
    for array in (kspace, kspace[None]):
        np.save("k.npy", array)
        measurement = measure(kspace_target(TargetSpec(file="k.npy")), task("mri", source="file"))
        assert measurement.samples.shape == (2, 24, 32)
        assert np.array_equal(kept(measurement)[0], kspace != 0)
        assert picture(measurement).max() == pytest.approx(1, abs=1e-5)


def test_k_space_belongs_to_a_targets_digest() -> None:
    np.save("k.npy", raw())
    np.save("turned.npy", raw() * np.complex64(1j))  # the magnitude is the same
    one, turned = (kspace_target(TargetSpec(file=name)) for name in ("k.npy", "turned.npy"))
    assert np.allclose(one.image, turned.image, atol=1e-6)
    assert one.digest == kspace_target(TargetSpec(file="k.npy")).digest
    assert one.digest != turned.digest
    assert Target(one.image, "", None).digest not in (one.digest, turned.digest)


@pytest.mark.parametrize("coils", [0, 3])
@pytest.mark.parametrize("mask", [None, "columns", "places"])
def test_fastmris_layout(coils: int, mask: str | None) -> None:
    slices = np.stack([raw(max(coils, 1), seed) for seed in range(5)])
    measured = np.zeros((24, 32), dtype=bool)
    measured[:, 8:20] = True
    if mask == "places":
        measured[3] = False
    with h5py.File("k.h5", "w") as file:
        file["kspace"] = slices if coils else slices[:, 0]
        if mask:
            file["mask"] = (measured if mask == "places" else measured[0]).astype(np.float32)
    for index, spec in ((2, TargetSpec(file="k.h5")), (4, TargetSpec(file="k.h5", slice=4))):
        target = kspace_target(spec)
        expected = slices[index] * (measured if mask else 1)
        assert target.kspace is not None
        assert target.kspace.dtype == np.complex64
        assert target.kspace.shape == ((3, 24, 32) if coils else (24, 32))
        assert np.allclose(target.kspace * target.scale[1], expected if coils else expected[0], rtol=1e-5)
        assert target.name == f"k.h5 slice {index}"
    refused(lambda: kspace_target(TargetSpec(file="k.h5", slice=5)), "no slice 5", "0 to 4")


def test_bad_k_space_is_refused() -> None:
    kspace = raw()
    np.save("real.npy", kspace.real)
    np.save("line.npy", kspace[0, 0])
    np.save("many.npy", kspace[None])
    np.save("tiny.npy", kspace[:, :4])
    np.save("zeros.npy", kspace * 0)
    np.save("nan.npy", np.where(kspace == kspace[0, 1, 1], np.nan, kspace))
    np.save("good.npy", kspace)
    Path("cut.npy").write_bytes(Path("good.npy").read_bytes()[:-100])
    Path("text.npy").write_text("not an array")
    Path("empty.npy").touch()
    np.save("objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    Path("text.h5").write_text("not HDF5")
    Path("k.dat").write_text("raw")
    with h5py.File("other.h5", "w") as file:
        file["image"] = kspace
    with h5py.File("group.h5", "w") as file:
        file.create_group("kspace")
    with h5py.File("flat.h5", "w") as file:
        file["kspace"] = kspace[0]
    with h5py.File("real.h5", "w") as file:
        file["kspace"] = kspace.real
    with h5py.File("mask.h5", "w") as file:
        file["kspace"], file["mask"] = kspace, np.ones(31)
    with h5py.File("whole.h5", "w") as file:
        file["kspace"] = kspace
    Path("cut.h5").write_bytes(Path("whole.h5").read_bytes()[:-5000])
    for name, *words in (
        ("real.npy", "float32", "complex"), ("line.npy", "32"), ("many.npy", "1 x 3 x 24 x 32"), ("tiny.npy", "4 x 32"),
        ("zeros.npy", "0"), ("nan.npy", "NaN"), ("cut.npy", "cannot be read"), ("text.npy", "cannot be read"),
        ("empty.npy", "empty"), ("objects.npy", "cannot be read"), ("text.h5", "cannot be read"), ("k.dat", "'.dat'"),
        ("other.h5", "kspace"), ("group.h5", "kspace"), ("flat.h5", "24 x 32"), ("real.h5", "float32"),
        ("mask.h5", "31"), ("cut.h5", "cannot be read"), ("none.h5", "no such file"), (".", "directory"),
    ):  # fmt: skip
        refused(lambda name=name: kspace_target(TargetSpec(file=name)), name, *words)
    refused(lambda: kspace_target(TargetSpec()), "target.file")
    for options in ({"plane": "coronal"}, {"volume": 0}, {"intensity": "percentile"}, {"size": (24, 24)}, {"slice": 0}):
        refused(lambda options=options: kspace_target(TargetSpec(file="good.npy", **options)), "good.npy", *options)


def test_an_image_is_no_measured_k_space(brain: Target) -> None:
    refused(lambda: measure(brain, task("mri", source="file")), brain.name, "task.source")
