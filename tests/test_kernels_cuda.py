"""The Triton kernels against autograd in double precision: in Triton's interpreter, and on a GPU where there is one.

This file is a program, too, see `interpreter.py`: as `python test_kernels_cuda.py FILE` it does the jobs below in the
interpreter and keeps their numbers.
"""

import math
import os
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import interpreter
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from problems import Case, average_of, error, make_problem

from ddstudy.priors.deep_decoder import deep_decoder
from ddstudy.solvers import Config, Problem, Snapshot, choose, fit, fused
from ddstudy.solvers.base import snapshots
from ddstudy.solvers.fused.step import Step

pytest.importorskip("triton", reason="Triton is not available for this platform")
pytestmark = [pytest.mark.slow, pytest.mark.triton]

Numbers = dict[str, NDArray[Any]]
Job = Callable[[str], Numbers]
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")

# k, s, l, height, width, colours; tiles; members; seed; flat tiles: each as small as what it is there for allows
CASES: dict[str, tuple[Any, ...]] = {
    "one channel": ((1, 3, 2, 7, 8), 1, 1),
    "odd sizes": ((5, 2, 2, 9, 7), 1, 2),
    "colours": ((8, 3, 2, 7, 6, 3), 2, 1),
    "more colours than channels": ((4, 3, 2, 7, 6, 9), 2, 1),
    "many tiles": ((3, 2, 1, 4, 5), 4, 2),
    "deep": ((16, 4, 4, 10, 11), 1, 1),
    "padded channels": ((24, 2, 2, 7, 9), 1, 1),
    "three blocks of channels": ((40, 4, 2, 6, 11), 1, 1),
    "a wide product": ((80, 2, 2, 4, 5), 1, 1),
    "a scale of 8 at once": ((8, 8, 1, 16, 19, 3), 1, 1),
    "no upsampling": ((6, 1, 2, 5, 4), 1, 1),
    "wider than a block": ((4, 2, 2, 3, 270), 1, 1),
    "a flat tile": ((4, 2, 2, 9, 8), 2, 1, 0, 1),
}
# whose numbers of single precision are the interpreter's, too: there it is another type in the same lines
SINGLE = ("odd sizes", "colours", "many tiles", "a flat tile")
LEARNING_RATE = 0.02


def case_of(name: str) -> Case:
    prior, *rest = CASES[name]
    return Case(deep_decoder(*prior), *rest)


def gradients_of(name: str, dtype: str, precision: str, device: str, first: int = 0) -> Numbers:
    case, kernels = case_of(name), kernels_on(device)
    case.inputs, case.weights = case.inputs[first:], case.weights[first:]
    step = Step(case.prior, case.measurement, len(case.weights), kernels, precision, dtype)
    weights = kernels.from_numpy(case.weights, dtype)
    gradients = torch.full_like(weights, torch.nan)
    losses = step.mse(step.pad(case.inputs), weights, gradients)
    return {
        "losses": kernels.to_numpy(losses),
        "gradients": kernels.to_numpy(gradients),
        "outputs": kernels.to_numpy(step.outputs),
    }


def grad_outputs_of(case: Case) -> NDArray[Any]:
    return np.random.default_rng(7).normal(size=(len(case.weights), *case.measurement.shape))


def seam_of(name: str, device: str) -> Numbers:
    case, kernels = case_of(name), kernels_on(device)
    step = Step(case.prior, case.measurement, len(case.weights), kernels, dtype="float64")
    weights, inputs = kernels.from_numpy(case.weights, "float64"), step.pad(case.inputs)
    gradients = torch.full_like(weights, torch.nan)
    outputs = kernels.to_numpy(step.forward(inputs, weights))
    step.backward(inputs, weights, kernels.from_numpy(grad_outputs_of(case), "float64"), gradients)
    return {"outputs": outputs, "gradients": kernels.to_numpy(gradients)}


def repeated(device: str) -> Numbers:
    case, kernels = case_of("no upsampling"), kernels_on(device)
    step = Step(case.prior, case.measurement, len(case.weights), kernels)
    weights, inputs = kernels.from_numpy(case.weights, "float32"), step.pad(case.inputs)
    gradients = [torch.full_like(weights, torch.nan) for _ in range(2)]
    for some in gradients:
        step.mse(inputs, weights, some)
    return {"gradients": np.stack([kernels.to_numpy(some) for some in gradients])}


def factors(dtype: str) -> tuple[NDArray[Any], ...]:
    """Pixels (1, size, K) of two kinds, and a matrix (1, K, K): numbers of all sizes and signs."""
    rng, shape = np.random.default_rng(5), case_of("odd sizes").prior.sizes[0]
    sizes = (1, math.prod(shape), 8), (1, math.prod(shape), 8), (1, 8, 8)
    made = [rng.normal(size=size) * 10.0 ** rng.uniform(-4, 4, size) for size in sizes]
    return tuple(factor.astype(dtype) for factor in made)


def products(dtype: str, device: str) -> Numbers:
    """Those of the convolution and of its gradient, alone."""
    case, kernels = case_of("odd sizes"), kernels_on(device)
    step = Step(case.prior, case.measurement, 1, kernels, dtype=dtype)
    work, precision = step.scratch, kernels.precision(step)
    a, b, matrix = (kernels.from_numpy(factor, dtype) for factor in factors(dtype))
    work.correlate(a, b, work.chunk[0], precision)
    chunks = work.chunks[0]
    first = (matrix.view(torch.int32) & -8192).view(torch.float32) if dtype == "float32" else matrix
    out = torch.zeros_like(a)
    work.times(a, torch.cat([first, matrix - first]), out, precision)
    return {
        "correlation": kernels.to_numpy(work.correlation[: chunks * 64].view(chunks, 8, 8).double().sum(0)),
        "sums": kernels.to_numpy(work.correlation_sums[: chunks * 8].view(chunks, 8).double().sum(0)),
        "product": kernels.to_numpy(out[0]),
    }


def diverged(device: str) -> Numbers:
    case, kernels = case_of("odd sizes"), kernels_on(device)
    case.weights[1, 3] = np.nan
    step = Step(case.prior, case.measurement, len(case.weights), kernels)
    weights = kernels.from_numpy(case.weights, "float32")
    losses = step.mse(step.pad(case.inputs), weights, torch.zeros_like(weights))
    return {"losses": kernels.to_numpy(losses), "outputs": kernels.to_numpy(step.outputs)}


def gradients_of_adam() -> NDArray[Any]:
    return np.random.default_rng(8).normal(size=(4, 3, 500))


def adam(dtype: str, device: str) -> Numbers:
    kernels = kernels_on(device)
    weights = kernels.from_numpy(np.ones((3, 500)), dtype)
    optimiser = kernels.Adam(weights, LEARNING_RATE)
    for grad in gradients_of_adam():
        optimiser.update(kernels.from_numpy(grad, dtype))
    return {"weights": kernels.to_numpy(weights)}


def walk_of_weights() -> NDArray[Any]:
    return np.random.default_rng(9).normal(size=(130, 3, 50)).cumsum(axis=0)


def kept(keep: str, device: str) -> Numbers:
    """With the squared norm as loss; the last member diverges."""
    kernels, walk = kernels_on(device), walk_of_weights()
    walk[70:, 2] = np.nan
    found = kernels.Iterate(kernels.from_numpy(walk[0], "float64"), keep)
    for weights in walk:
        found.update(kernels.from_numpy((weights**2).sum(axis=1), "float64"), kernels.from_numpy(weights, "float64"))
    return {"weights": kernels.to_numpy(found.weights)}


def fused_fit(work: Problem, stops: list[int], kernels: Any) -> list[Snapshot]:
    opened = fused.ensemble([work], Config(), kernels, threads=1)
    return [snapshot.fetched() for _, snapshot in snapshots(opened, [work], [stops], [threading.Event()])]


def fit_problem() -> Problem:
    return make_problem(k=8, members=1, size=8, blocks=2)


def short_fit(device: str) -> Numbers:
    work = fit_problem()
    opened = fused.ensemble([work], Config(), kernels_on(device), threads=1)
    (found,) = (
        {"losses": end.losses, "outputs": end.outputs, "weights": end.weights}
        for _, end in snapshots(opened, [work], [[3]], [threading.Event()])
    )
    return found


JOBS: dict[str, Job] = {
    **{
        f"gradients {name} {dtype}": partial(gradients_of, name, dtype, "float32")
        for name in CASES
        for dtype in ("float64", "float32")
    },
    **{f"seam {name}": partial(seam_of, name) for name in ("odd sizes", "colours")},
    **{f"adam {dtype}": partial(adam, dtype) for dtype in ("float64", "float32")},
    **{f"kept {keep}": partial(kept, keep) for keep in ("best", "average")},
    **{f"products {dtype}": partial(products, dtype) for dtype in ("float64", "float32")},
    "alone": partial(gradients_of, "many tiles", "float32", "float32", first=1),
    "bfloat16": partial(gradients_of, "odd sizes", "float32", "bfloat16"),
    "repeated": repeated,
    "diverged": diverged,
    "fit": short_fit,
}


def kernels_on(device: str) -> Any:
    from ddstudy.solvers.fused.kernels_cuda import TritonKernels  # not above: the program below sets up Triton first

    return TritonKernels(device)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Numbers]:
    """Numbers of the jobs."""
    found: dict[str, Numbers] = {}
    for key, values in interpreter.numbers_of(__file__, tmp_path_factory.mktemp("interpreted")).items():
        job, _, what = key.partition("/")
        found.setdefault(job, {})[what] = values
    return found


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=NEEDS_GPU)])
def does(request: pytest.FixtureRequest) -> Callable[[str], Numbers]:
    """The numbers of a job."""
    if request.param == "cuda":
        return lambda job: JOBS[job]("cuda")

    def look_up(job: str) -> Numbers:
        numbers: Numbers = request.getfixturevalue("interpreted")[job]
        if "failure" in numbers:
            pytest.fail(str(numbers["failure"]), pytrace=False)
        return numbers

    return look_up


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_autograd(
    name: str, does: Callable[[str], Numbers], request: pytest.FixtureRequest
) -> None:
    case = case_of(name)
    losses, gradients = case.autograd()
    exact = does(f"gradients {name} float64")
    np.testing.assert_allclose(exact["losses"], losses, rtol=1e-12)
    np.testing.assert_allclose(((exact["outputs"] - case.measurement) ** 2).mean((1, 2, 3, 4)), losses, rtol=1e-12)
    assert error(exact["gradients"], gradients) < 1e-9
    if request.node.callspec.params["does"] == "interpreter" and name not in SINGLE:
        return
    single = does(f"gradients {name} float32")
    np.testing.assert_allclose(single["losses"], losses, rtol=1e-4)
    np.testing.assert_allclose(single["outputs"], exact["outputs"], atol=1e-4)
    assert error(single["gradients"], gradients) < 1e-3


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-14), ("float32", 2e-6)])
def test_products_are_those_of_their_precision(dtype: str, tolerance: float, does: Callable[[str], Numbers]) -> None:
    found, ((a,), (b,), (matrix,)) = does(f"products {dtype}"), factors(dtype)
    a, b, matrix = (factor.astype("float64") for factor in (a, b, matrix))
    for key, expected, size in [
        ("correlation", a.T @ b, abs(a).T @ abs(b)),
        ("sums", b.sum(0), abs(b).sum(0)),
        ("product", a @ matrix.T, abs(a) @ abs(matrix).T),
    ]:
        assert (abs(found[key] - expected) <= tolerance * size).all(), key


@pytest.mark.parametrize("name", ["odd sizes", "colours"])
def test_any_loss_enters_through_its_gradient_at_the_outputs(name: str, does: Callable[[str], Numbers]) -> None:
    case, found = case_of(name), does(f"seam {name}")
    grad_outputs = iter(torch.tensor(grad_outputs_of(case)))
    losses, gradients = case.autograd(lambda output: (output * next(grad_outputs)).sum())
    np.testing.assert_allclose((found["outputs"] * grad_outputs_of(case)).sum((1, 2, 3, 4)), losses, rtol=1e-10)
    assert error(found["gradients"], gradients) < 1e-9


def test_factors_in_bfloat16_give_about_the_same(does: Callable[[str], Numbers]) -> None:
    losses, gradients = case_of("odd sizes").autograd()
    found = does("bfloat16")
    np.testing.assert_allclose(found["losses"], losses, rtol=2e-2)
    assert 1e-4 < error(found["gradients"], gradients) < 0.3  # other numbers, in the same direction


def test_a_member_does_not_depend_on_those_beside_it(does: Callable[[str], Numbers]) -> None:
    together, alone = does("gradients many tiles float32"), does("alone")
    for what in ("losses", "gradients", "outputs"):
        assert np.array_equal(together[what][1:], alone[what])


def test_a_step_repeats_exactly(does: Callable[[str], Numbers]) -> None:
    one, other = does("repeated")["gradients"]
    assert np.array_equal(one, other)


def test_the_best_and_the_average_are_kept(does: Callable[[str], Numbers]) -> None:
    walk = walk_of_weights()
    best, average = does("kept best")["weights"], does("kept average")["weights"]
    for m in range(2):
        np.testing.assert_array_equal(best[m], walk[np.argmin((walk[:, m] ** 2).sum(axis=1)), m])
    np.testing.assert_allclose(average[:2], average_of(walk)[:2], rtol=1e-12)
    assert np.isnan(best[2]).all()
    assert np.isnan(average[2]).all()


def test_divergence_shows_as_nan_in_its_member_alone(does: Callable[[str], Numbers]) -> None:
    found = does("diverged")
    assert np.isnan(found["losses"]).tolist() == [False, True]
    assert np.isnan(found["outputs"]).any((1, 2, 3, 4)).tolist() == [False, True]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
def test_adam_is_that_of_torch(dtype: str, tolerance: float, does: Callable[[str], Numbers]) -> None:
    weights = torch.ones((3, 500), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([weights], lr=LEARNING_RATE)
    for grad in gradients_of_adam():
        weights.grad = torch.tensor(grad)
        optimiser.step()
    np.testing.assert_allclose(does(f"adam {dtype}")["weights"], weights.detach().numpy(), rtol=tolerance)


def test_a_fit_follows_the_reference(does: Callable[[str], Numbers]) -> None:
    work = fit_problem()
    ((end, weights),) = ((end, end.weights) for end in fit(work, Config(), [3], method=choose("cpu", "reference")))
    found = does("fit")
    np.testing.assert_allclose(found["weights"], weights, atol=5e-3)
    np.testing.assert_allclose(found["losses"], end.losses, rtol=1e-3)
    np.testing.assert_allclose(found["outputs"], end.outputs, atol=5e-3)


@NEEDS_GPU
@pytest.mark.parametrize(("k", "tiles", "channels"), [(8, 1, 1), (40, 4, 3)])
def test_a_captured_fit_repeats_exactly_and_follows_the_reference(k: int, tiles: int, channels: int) -> None:
    work = make_problem(k=k, members=3, tiles=tiles, channels=channels, size=40)

    def ends() -> list[Any]:
        return fused_fit(work, [7, 20], kernels_on("cuda"))

    once, again = ends(), ends()
    (expected,) = fit(work, Config(), [20], method=choose("cpu", "reference"))
    for one, other in zip(once, again, strict=True):
        assert np.array_equal(one.outputs, other.outputs)
        assert np.array_equal(one.losses, other.losses)
    np.testing.assert_allclose(once[-1].losses, expected.losses, rtol=1e-2)


def test_a_processor_needs_the_interpreter() -> None:
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"):
        kernels_on("cpu")


def test_the_compiler_makes_products_without_spills_or_bank_conflicts(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    script = Path(__file__).parents[1] / "benchmarks/gpu_kernels.py"
    command = [sys.executable, script, "24", "64", "96"]  # products of one warp, of four together, and wide
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert not done.returncode, done.stdout + done.stderr
    lines = done.stdout.replace("at a time", "together").splitlines()
    assert all(line.endswith(" 0 when they were launched") for line in lines if line.startswith("#"))
    columns, *rows = (line.split() for line in lines if not line.startswith("#"))
    found = [dict(zip(columns, row, strict=True)) for row in rows]
    kernels = (
        "adam add_tiles blend block_gradient correlation fold gather head head_gradient keep pixel_product wide_product"
    )
    assert {row["kernel"] for row in found} == {f"_{name}" for name in kernels.split()}
    products = [row for row in found if row["kernel"] in ("_pixel_product", "_wide_product", "_correlation")]
    assert {(row["spilled"], row["conflicts"]) for row in products} == {("0", "0")}


def interpret(file: str) -> None:
    interpreter.quicken()
    numbers: Numbers = {}
    for name in JOBS.keys() - {f"gradients {name} float32" for name in CASES.keys() - set(SINGLE)}:
        try:
            numbers |= {f"{name}/{what}": values for what, values in JOBS[name]("cpu").items()}
        except Exception:  # the test of this job shows it; the other jobs go on
            numbers[f"{name}/failure"] = np.array(traceback.format_exc())
    np.savez(file, **numbers)  # type: ignore[arg-type]


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "AnnAssign", DeprecationWarning)  # of Triton's own code, on Python 3.13
    interpret(sys.argv[1])
