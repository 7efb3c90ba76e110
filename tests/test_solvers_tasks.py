"""Solvers on measurements that are incomplete, or made by an operator, and averages and jitter, against plain loops.

This file is a program, too, see `interpreter.py`: as `python test_solvers_tasks.py FILE` it does the jobs below with
the Triton kernels in the interpreter and keeps their numbers.
"""

import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import interpreter
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from problems import Case, error
from torch import nn

from ddstudy.images.tiling import join, split, tile_shape
from ddstudy.priors.deep_decoder import deep_decoder
from ddstudy.solvers import Config, Method, Problem, Snapshot, choose, fit, fit_together, fused
from ddstudy.solvers.base import Jitter, snapshots
from ddstudy.solvers.fused import kernels_cpu
from ddstudy.solvers.fused.step import Step

Numbers = dict[str, NDArray[Any]]
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
Head = Literal["sigmoid", "linear"]


@dataclass(frozen=True)
class Dense:
    """Any matrix: samples of normal numbers that derive from a seed; the identity when there is none."""

    image: tuple[int, int, int]
    shape: tuple[int, ...]
    seed: int | None = 0

    @cache  # noqa: B019 - a graph on a GPU cannot hold that it comes there
    def matrix(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        size = (int(np.prod(self.shape)), int(np.prod(self.image)))
        made = (
            np.eye(*size) if self.seed is None else np.random.default_rng(self.seed).normal(size=size) / size[1] ** 0.5
        )
        return torch.tensor(made, dtype=dtype, device=device)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images.flatten(1) @ self.matrix(images.dtype, images.device).T).view(-1, *self.shape)

    def adjoint(self, samples: torch.Tensor) -> torch.Tensor:
        return (samples.flatten(1) @ self.matrix(samples.dtype, samples.device)).view(-1, *self.image)


def make_problem(
    channels: int = 1,
    tiling: str = "1x1",
    missing: float = 0.0,
    samples: tuple[int, ...] | None = None,
    identity: bool = False,
    head: Head = "sigmoid",
    k: int = 6,
    members: int = 2,
    height: int = 13,
    width: int = 11,
    seed: int = 0,
) -> Problem:
    """Of a random image; tiles need padding where the tiling does not divide."""
    shape = (channels, height, width)
    prior = deep_decoder(k, 2, 2, *tile_shape(height, width, tiling), channels, head)
    rng = np.random.default_rng([1, seed])
    image = rng.random(shape, dtype=np.float32)
    tiles = split(image, tiling)
    places = join(np.arange(tiles.size).reshape(tiles.shape), tiling, height, width).ravel()
    operator = None
    measurement = tiles
    if samples is not None or identity:
        operator = Dense(shape, samples or shape, None if identity else 0)
        measurement = operator.forward(torch.from_numpy(image)[None])[0].numpy().copy()
    measurement[rng.random(measurement.shape) < missing] = np.nan
    streams = [np.random.default_rng([100, seed, member]) for member in range(members)]
    inputs = np.stack([stream.random((len(tiles), k, *prior.sizes[0]), dtype=np.float32) for stream in streams])
    weights = np.stack([prior.initial_weights(stream) for stream in streams])
    pixels = None if len(tiles) == 1 else places
    seeds = np.arange(7, 7 + members, dtype=np.uint64) + np.uint64(100 * seed)
    return Problem(prior, measurement, inputs, weights, pixels, operator, shape, seeds, seeds + np.uint64(1000))


def plain_loop(work: Problem, config: Config, iterations: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Outputs and losses of a snapshot, in double precision by autograd and torch's Adam."""
    y = torch.tensor(work.measurement).double()
    shown, losses = [], []
    for member in range(len(work.weights)):
        net = work.prior.build().double()
        nn.utils.vector_to_parameters(torch.tensor(work.weights[member]).double(), net.parameters())
        x = torch.tensor(work.inputs[member]).double()

        def loss_of(outputs: torch.Tensor, pixels: bool = False) -> torch.Tensor:
            found, wanted = outputs.ravel(), y.ravel()
            if work.pixels is not None and (pixels or work.operator is not None):
                found = found[torch.tensor(work.pixels)]
                wanted = wanted if work.operator is not None else wanted[torch.tensor(work.pixels)]
            if work.operator is not None:
                assert work.shape is not None
                found = work.operator.forward(found.view(1, *work.shape)).ravel()
            known = ~wanted.isnan()
            return ((found[known] - wanted[known]) ** 2).mean()

        adam = torch.optim.Adam(net.parameters(), lr=config.learning_rate)
        noise = np.random.default_rng(7 + member)
        mean: torch.Tensor | None = None
        for i in range(iterations):
            scale = config.jitter * config.jitter_decay ** (i // 500)
            draw = noise.standard_normal(x.shape, dtype=np.float32) if config.jitter else np.zeros(x.shape)
            outputs = net(x + scale * torch.tensor(draw))
            adam.zero_grad()
            loss_of(outputs).backward()
            now = outputs.detach()
            mean = now if mean is None else config.average * mean + (1 - config.average) * now
            adam.step()
        with torch.no_grad():
            end = mean if config.average and mean is not None else net(x)
            shown.append(end.numpy())
            losses.append(loss_of(end, pixels=True).item())
    return np.stack(shown), np.array(losses)


def same(one: Snapshot, other: Snapshot) -> bool:
    pairs: list[tuple[NDArray[Any], NDArray[Any]]] = [
        (one.outputs, other.outputs), (one.losses, other.losses), (one.ranges, other.ranges)
    ]  # fmt: skip
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.fixture(params=["reference", "fused"])
def method(request: pytest.FixtureRequest) -> Method:
    return choose("cpu", request.param)


PROBLEMS: dict[str, dict[str, Any]] = {
    "masked": {"channels": 3, "missing": 0.5},
    "masked tiles": {"tiling": "2x3", "missing": 0.3},
    "linear": {"channels": 2, "head": "linear", "missing": 0.2},
    "operator": {"samples": (40,)},
    "operator with holes on padded tiles": {"channels": 2, "tiling": "2x3", "samples": (9, 7), "missing": 0.3},
    "linear operator": {"channels": 2, "samples": (2, 30), "head": "linear"},
}
CONFIGS = {
    "plain": Config(),
    "average": Config(average=0.6),
    "average, best": Config(average=0.6, keep="best"),
    "jitter": Config(jitter=0.1),
    "both": Config(average=0.3, jitter=0.05),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_short_fit_is_that_of_a_plain_loop(name: str, method: Method) -> None:
    work = make_problem(**PROBLEMS[name])
    outputs, losses = plain_loop(work, Config(), 4)
    (snapshot,) = fit(work, Config(), [4], method=method)
    np.testing.assert_allclose(snapshot.outputs, outputs, atol=1e-4)
    np.testing.assert_allclose(snapshot.losses, losses, rtol=1e-3)
    np.testing.assert_allclose(snapshot.ranges, np.ptp(snapshot.outputs, axis=(2, 3, 4)))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("iterations", [1, 4])
def test_averages_and_jitter_are_those_of_a_plain_loop(name: str, iterations: int, method: Method) -> None:
    work, config = make_problem(tiling="2x3", missing=0.3), CONFIGS[name]
    outputs, losses = plain_loop(work, config, iterations)
    (snapshot,) = fit(work, config, [iterations], method=method)
    np.testing.assert_allclose(snapshot.outputs, outputs, atol=1e-4)
    np.testing.assert_allclose(snapshot.losses, losses, rtol=1e-3)


def test_jitter_decays_every_500_iterations() -> None:
    work = make_problem()
    jitter = Jitter(Config(jitter=0.2, jitter_decay=0.5), work, 1)
    drawn = np.random.default_rng(8)
    for i in range(1001):
        noise = 0.2 * 0.5 ** (i // 500) * drawn.standard_normal(work.inputs[1].shape, dtype=np.float32)
        found = jitter.inputs()
        if i in (0, 1, 499, 500, 1000):
            np.testing.assert_allclose(found, work.inputs[1] + noise, rtol=1e-5)


@pytest.mark.parametrize("head", ["sigmoid", "linear"])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_gradients_of_a_masked_measurement_are_those_of_autograd(head: Head, channels: int) -> None:
    case = masked_case(head, channels)
    losses, gradients = masked_autograd(case)
    for dtype, bound in [("float64", 1e-9), ("float32", case.bound(gradients))]:
        step, weights = Step(case.prior, case.measurement, 2, kernels_cpu, dtype=dtype), case.weights.astype(dtype)
        found = np.full_like(weights, np.nan)
        np.testing.assert_allclose(step.mse(step.pad(case.inputs), weights, found), losses, rtol=1e-4)
        assert error(found, gradients) < bound


def masked_case(head: Head, channels: int) -> Case:
    """Two tiles of three have NaN, one nothing else."""
    case = Case(deep_decoder(6, 2, 2, 7, 9, channels, head), tiles=3, members=2)
    case.measurement[0, :, 2:5] = np.nan
    case.measurement[2] = np.nan
    return case


def masked_autograd(case: Case) -> tuple[NDArray[Any], NDArray[Any]]:
    known = torch.tensor(~np.isnan(case.measurement))
    return case.autograd(lambda outputs: ((outputs - torch.tensor(case.measurement))[known] ** 2).mean())


def test_a_complete_measurement_beside_a_masked_one_is_fitted_as_alone(method: Method) -> None:
    complete, masked = make_problem(), make_problem(missing=0.4, seed=1)
    alone = [next(iter(fit(work, Config(), [5], method=method))) for work in (complete, masked)]
    for index, snapshot in fit_together([complete, masked], Config(), [[5], [5]], method=method):
        assert same(snapshot, alone[index])


OPTIONS: list[dict[str, Any]] = [{}, {"channels": 3, "missing": 0.3}]


def test_the_identity_as_operator_changes_nothing_but_rounding(method: Method) -> None:
    for options in OPTIONS:
        work = make_problem(**options)
        operated = make_problem(**options, identity=True)
        assert np.array_equal(work.measurement[0], operated.measurement, equal_nan=True)
        fits = [list(fit(it, Config(), [1, 6], method=method)) for it in (work, operated)]
        for one, other in zip(*fits, strict=True):
            np.testing.assert_allclose(one.outputs, other.outputs, atol=1e-4)
            np.testing.assert_allclose(one.losses, other.losses, rtol=1e-3)


EVERYTHING: dict[str, Any] = {"channels": 2, "tiling": "2x3", "samples": (9, 7), "missing": 0.3, "members": 3}
ALL_OF_IT = Config(average=0.6, jitter=0.1, jitter_decay=0.5)


def test_a_snapshot_on_the_way_equals_a_fit_that_was_asked_for_it(method: Method) -> None:
    work = make_problem(**EVERYTHING)
    first, second = fit(work, ALL_OF_IT, [3, 8], method=method)
    (alone,) = fit(work, ALL_OF_IT, [8], method=method)
    assert same(second, alone)
    assert not same(first, second)


def test_members_neighbours_and_threads_change_no_bit(method: Method) -> None:
    work = make_problem(**EVERYTHING)
    (together,) = fit(work, ALL_OF_IT, [6], method=method, threads=2)
    (one_thread,) = fit(work, ALL_OF_IT, [6], method=method, threads=1)
    assert same(together, one_thread)
    assert work.jitter_seeds is not None
    one = replace(work, inputs=work.inputs[1:2], weights=work.weights[1:2], jitter_seeds=work.jitter_seeds[1:2])
    (alone,) = fit(one, ALL_OF_IT, [6], method=method)
    assert np.array_equal(alone.outputs[0], together.outputs[1])
    assert alone.losses[0] == together.losses[1]


def test_a_member_that_diverges_shows_as_nan_through_operator_and_average(method: Method) -> None:
    work = make_problem(**EVERYTHING)
    work.weights[1, 0] = np.nan
    (snapshot,) = fit(work, ALL_OF_IT, [2], method=method)
    assert np.isnan(snapshot.losses).tolist() == [False, True, False]


def test_what_cannot_be_fitted_is_said() -> None:
    with pytest.raises(ValueError, match="no sample but NaN"):
        make_problem(missing=1.1)
    without = replace(make_problem(), jitter_seeds=None)
    with pytest.raises(ValueError, match="jitter_seeds"):
        next(fit(without, Config(jitter=0.1), [1]))
    one, other = make_problem(samples=(5,)), make_problem(samples=(5,))
    assert one.kind == other.kind  # operators are values
    with pytest.raises(ValueError, match="one operator"):
        fit_together([one, replace(other, operator=Dense((1, 13, 11), (5,), 3))], Config(), [[1], [1]])


def test_memory_counts_what_tasks_add() -> None:
    prior, picture = deep_decoder(8, 4, 2, 32, 32), 4 * 32 * 32
    plain = fused.memory(prior, 1, 5, 1)
    assert fused.memory(prior, 1, 5, 1, config=Config(average=0.9)) == plain + 5 * picture
    assert fused.memory(prior, 1, 5, 1, config=Config(jitter=0.1)) == plain + 5 * 4 * 8 * 8 * 8
    assert fused.memory(prior, 1, 5, 1, config=Config(loss="l1")) == fused.memory(prior, 1, 5, 1, samples=32 * 32)
    assert fused.memory(prior, 1, 5, 1, samples=1000) >= plain + 5 * picture + 4 * 1000


# the Triton kernels, in the interpreter and on a GPU


def masked_job(head: Head, channels: int, dtype: str, kernels: Any) -> Numbers:
    case = masked_case(head, channels)
    step = Step(case.prior, case.measurement, 2, kernels, dtype=dtype)
    weights = kernels.from_numpy(case.weights, dtype)
    gradients = torch.full_like(weights, torch.nan)
    return {
        "losses": kernels.to_numpy(step.mse(step.pad(case.inputs), weights, gradients)),
        "gradients": kernels.to_numpy(gradients),
    }


def fits_job(config: Config, kernels: Any, **options: Any) -> Numbers:
    """Two problems, of which one ends earlier; and the other alone."""
    pack = [make_problem(**options, seed=seed) for seed in range(2)]
    numbers: Numbers = {}
    for name, works, stops in [("pack", pack, [[1], [1, 2]]), ("alone", pack[1:], [[2]])]:
        opened = fused.ensemble(works, config, kernels, threads=1)
        ended = [threading.Event() for _ in works]
        last = {index: snapshot.fetched() for index, snapshot in snapshots(opened, works, stops, ended)}
        snapshot = last[len(works) - 1]
        numbers |= {f"{name} outputs": snapshot.outputs, f"{name} losses": snapshot.losses}
    return numbers


TINY: dict[str, Any] = {"k": 3, "height": 5, "width": 5}
FITS: dict[str, tuple[Config, dict[str, Any]]] = {
    "operator": (
        Config(average=0.5, jitter=0.1),
        {"channels": 2, "tiling": "1x2", "samples": (6, 5), "missing": 0.3, "head": "linear", "members": 1, **TINY},
    ),
    "optimiser and loss": (
        Config(optimiser="sgld", schedule="step", decay_every=1, loss="huber", tv_weight=0.1, keep="best"),
        {"missing": 0.3, "members": 1, **TINY},
    ),
}
JOBS: dict[str, Callable[[Any], Numbers]] = {
    "sigmoid": lambda kernels: masked_job("sigmoid", 2, "float64", kernels),
    "linear": lambda kernels: masked_job("linear", 2, "float64", kernels),
    "operator": lambda kernels: fits_job(FITS["operator"][0], kernels, **FITS["operator"][1]),
    "optimiser and loss": lambda kernels: fits_job(
        FITS["optimiser and loss"][0], kernels, **FITS["optimiser and loss"][1]
    ),
}


def triton_kernels(device: str) -> Any:
    from ddstudy.solvers.fused.kernels_cuda import TritonKernels

    return TritonKernels(device)


def numbers_on(device: str) -> Numbers:
    """Of all jobs."""
    numbers: Numbers = {}
    for name, job in JOBS.items():
        numbers |= {f"{name}/{what}": values for what, values in job(triton_kernels(device)).items()}
    return numbers


@pytest.fixture(scope="module", params=["interpreter", pytest.param("cuda", marks=NEEDS_GPU)])
def of_triton(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Numbers:
    pytest.importorskip("triton", reason="Triton is not available for this platform")
    if request.param == "cuda":
        return numbers_on("cuda")
    return interpreter.numbers_of(__file__, tmp_path_factory.mktemp("interpreted"))


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.parametrize("head", ["sigmoid", "linear"])
def test_gradients_of_the_triton_kernels_are_those_of_autograd(head: Head, of_triton: Numbers) -> None:
    losses, gradients = masked_autograd(masked_case(head, 2))
    np.testing.assert_allclose(of_triton[f"{head}/losses"], losses, rtol=1e-12)
    assert error(of_triton[f"{head}/gradients"], gradients) < 1e-9


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.parametrize("name", FITS)
def test_a_pack_that_shrinks_is_fitted_as_alone_and_as_by_the_reference(name: str, of_triton: Numbers) -> None:
    config, options = FITS[name]
    for what in ("outputs", "losses"):
        assert np.array_equal(of_triton[f"{name}/pack {what}"], of_triton[f"{name}/alone {what}"])
    work = make_problem(**options, seed=1)
    (snapshot,) = fit(work, config, [2], method=choose("cpu", "reference"))
    np.testing.assert_allclose(of_triton[f"{name}/alone outputs"], snapshot.outputs, atol=1e-3)
    np.testing.assert_allclose(of_triton[f"{name}/alone losses"], snapshot.losses, rtol=5e-3)


if __name__ == "__main__":
    warnings.simplefilter("error")
    interpreter.quicken()
    np.savez(sys.argv[1], **numbers_on("cpu"))  # type: ignore[arg-type]
