"""Operators: exact adjoints, and the matrices that Pillow, NumPy and deepinv say they are."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ddstudy.tasks.base import Operator
from ddstudy.tasks.operators import Downsampling, Filter, Mri, resampling

FILTERS = get_args(Filter)
PILLOW = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}


def mri(height: int = 12, width: int = 9, coils: int = 0, seed: int = 0) -> Mri:
    rng = np.random.default_rng(seed)
    maps = rng.standard_normal((coils, height, width, 2)) @ (1, 1j)
    return Mri(rng.random((height, width)) < 0.4, maps.astype(np.complex64) if coils else None)


def batch(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((3, *shape)))


def image_shape(operator: Operator) -> tuple[int, int, int]:
    return operator.image_shape if isinstance(operator, Downsampling) else (2, *operator.mask.shape)


OPERATORS: list[Operator] = [
    *(Downsampling((3, 24, 16), factor, name) for name in FILTERS for factor in (2, 4)),
    *(mri(*sides, coils) for sides in ((12, 10), (12, 9), (9, 13)) for coils in (0, 1, 4)),
]


@pytest.mark.parametrize("operator", OPERATORS)
def test_adjoints_are_exact(operator: Operator) -> None:
    x, y = batch(*image_shape(operator)), batch(*operator.shape, seed=1)
    forward, back = operator.forward(x), operator.adjoint(y)
    assert forward.shape == y.shape
    assert back.shape == x.shape
    assert forward.dtype == back.dtype == torch.float64
    left, right = ((a * b).flatten(1).sum(1) for a, b in ((forward, y), (x, back)))
    assert torch.allclose(left, right, rtol=0, atol=1e-10)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad((operator.forward(x) * y).sum(), x)
    assert torch.allclose(gradient, back, rtol=0, atol=1e-12)
    assert torch.allclose(torch.vmap(lambda one: operator.forward(one[None])[0])(x.detach()), forward, atol=1e-12)


@pytest.mark.parametrize("operator", OPERATORS)
def test_float32_is_float64_but_for_rounding(operator: Operator) -> None:
    x = batch(*image_shape(operator))
    single = operator.forward(x.float())
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), operator.forward(x), atol=1e-5)


@given(st.sampled_from(FILTERS), st.integers(2, 16), st.integers(1, 12))
def test_downsampling_keeps_constants_and_mirrors(name: Filter, factor: int, pixels: int) -> None:
    weights = resampling(factor * pixels, pixels, name)
    assert weights.shape == (pixels, factor * pixels)
    assert np.allclose(weights.sum(axis=1), 1)
    assert np.allclose(weights, weights[::-1, ::-1])


@given(st.sampled_from(sorted(PILLOW)), st.integers(1, 40), st.integers(1, 40))
@settings(deadline=None)
def test_resampling_is_that_of_pillow(name: Filter, old: int, new: int) -> None:
    line = np.random.default_rng(old).random(old).astype(np.float32)
    theirs = Image.fromarray(line[None]).resize((new, 1), PILLOW[name])
    assert np.allclose(resampling(old, new, name) @ line, np.asarray(theirs)[0], atol=1e-5)


def test_downsampling_an_image_is_pillows() -> None:
    image = np.random.default_rng(0).random((24, 32)).astype(np.float32)
    for name, theirs in PILLOW.items():
        ours = Downsampling((1, 24, 32), 4, name).forward(torch.from_numpy(image)[None, None])[0, 0]
        assert np.allclose(ours, np.asarray(Image.fromarray(image).resize((8, 6), theirs)), atol=1e-5)


def test_the_gaussian_has_the_width_that_it_names() -> None:
    weights = resampling(240, 60, "gaussian")[30]
    x = np.arange(240) + 0.5
    mean = weights @ x
    assert mean == pytest.approx(30.5 * 4)
    assert np.sqrt(weights @ (x - mean) ** 2) == pytest.approx(1.6, abs=0.01)


def in_numpy(operator: Mri, images: np.ndarray) -> np.ndarray:
    x = images[:, 0] + 1j * images[:, 1]
    x = x if operator.maps is None else operator.maps * x[:, None]
    k = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(x, axes=(-2, -1)), norm="ortho"), axes=(-2, -1)) * operator.mask
    return np.stack((k.real, k.imag), 1)


@pytest.mark.parametrize("sides", [(12, 10), (12, 9), (9, 13), (6, 6), (7, 8)])
@pytest.mark.parametrize("coils", [0, 1, 3])
def test_mri_is_numpys_centred_fft(sides: tuple[int, int], coils: int) -> None:
    operator, x = mri(*sides, coils), batch(2, *sides)
    assert np.allclose(operator.forward(x), in_numpy(operator, x.numpy()), atol=1e-12)


@pytest.mark.parametrize("coils", [0, 4])
def test_mri_is_deepinvs(coils: int) -> None:
    from deepinv.physics import MRI, MultiCoilMRI

    operator, x = mri(12, 10, coils), batch(2, 12, 10).float()
    mask = torch.from_numpy(operator.mask).float()
    if operator.maps is None:
        physics = MRI(mask=mask, img_size=(2, 12, 10))
    else:
        physics = MultiCoilMRI(mask=mask, coil_maps=torch.from_numpy(operator.maps), img_size=(2, 12, 10))
    y = operator.forward(x)
    assert torch.allclose(y, physics.A(x), atol=1e-5)
    assert torch.allclose(operator.adjoint(y), physics.A_adjoint(y), atol=1e-5)


@pytest.mark.parametrize("sides", [(12, 10), (9, 13)])
def test_without_acceleration_mri_keeps_energy_and_is_undone(sides: tuple[int, int]) -> None:
    x, full = batch(2, *sides), Mri(np.ones(sides, dtype=bool))
    y = full.forward(x)
    assert torch.allclose((y**2).flatten(1).sum(1), (x**2).flatten(1).sum(1))
    assert torch.allclose(full.adjoint(y), x, atol=1e-14)
    single = x.float()
    assert torch.allclose(full.adjoint(full.forward(single)), single, atol=2e-6)
    part = mri(*sides)
    assert torch.equal(part.forward(x), torch.where(torch.from_numpy(part.mask), y, 0))
    of_one = Mri(full.mask, np.ones((1, *sides), dtype=np.complex64))
    assert torch.equal(of_one.forward(x)[:, :, 0], y)


def test_operators_are_values() -> None:
    for kind in (lambda seed: mri(coils=2, seed=seed), lambda seed: Downsampling((1, 16, 16), 2 + 2 * seed, "lanczos")):
        one, same, other = kind(0), kind(0), kind(1)
        x = batch(*image_shape(one))
        y = one.forward(x)
        copy = pickle.loads(pickle.dumps(one))
        assert one == same == copy
        assert hash(one) == hash(same) == hash(copy)
        assert one != other
        assert len({one, same, other, copy}) == 2
        assert torch.equal(copy.forward(x), y)
    assert len(pickle.dumps(one)) < 500  # what the copy can make again does not travel
    bare = mri()
    assert bare != Mri(bare.mask, np.ones((1, *bare.mask.shape), dtype=np.complex64))
    assert bare != Mri(~bare.mask)


@pytest.mark.parametrize("operator", [Downsampling((1, 64, 64), 4, "bicubic"), mri(64, 48, 2)])
def test_threads_and_inference_mode_share_an_operator(operator: Operator) -> None:
    x = batch(*image_shape(operator))
    with torch.inference_mode():
        expected = operator.forward(x).clone()
    free = x.clone().requires_grad_()
    operator.forward(free).square().sum().backward()  # its constants were made in inference mode
    assert free.grad is not None
    with ThreadPoolExecutor(4) as pool:
        fresh = pickle.loads(pickle.dumps(operator))
        assert all(torch.equal(y, expected) for y in pool.map(fresh.forward, [x] * 8))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
@pytest.mark.parametrize("operator", [Downsampling((1, 64, 64), 4, "bicubic"), mri(64, 48, 2)])
def test_operators_are_captured_by_cuda_graphs(operator: Operator) -> None:
    x, later = (batch(*image_shape(operator), seed=seed).float().cuda() for seed in (0, 1))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # constants and plans of FFTs are made before
        operator.adjoint(operator.forward(x))
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = operator.forward(x)
        back = operator.adjoint(y)
    x.copy_(later)
    graph.replay()
    on_cpu = operator.forward(later.cpu())
    assert torch.allclose(y.cpu(), on_cpu, atol=1e-4)
    assert torch.allclose(back.cpu(), operator.adjoint(on_cpu), atol=1e-4)
