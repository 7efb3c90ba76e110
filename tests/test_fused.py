"""The fused engine against autograd in double precision."""

import inspect
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from problems import Case, average_of, error, make_problem

from ddstudy.errors import UserError
from ddstudy.priors.deep_decoder import deep_decoder
from ddstudy.solvers import Config, choose, fit, fused
from ddstudy.solvers.fused import groups, kernels_cpu
from ddstudy.solvers.fused.kernels import Kernels
from ddstudy.solvers.fused.step import Step


def step_of(case: Case, dtype: str) -> Step:
    return Step(case.prior, case.measurement, len(case.weights), kernels_cpu, dtype=dtype)


def fused_step(case: Case, dtype: str) -> tuple[NDArray[Any], NDArray[Any]]:
    step, weights = step_of(case, dtype), case.weights.astype(dtype)
    gradients = np.full_like(weights, np.nan)
    losses = step.mse(step.pad(case.inputs), weights, gradients).copy()
    return losses, gradients


@st.composite
def cases(draw: st.DrawFn) -> Case:
    s = draw(st.integers(1, 8))
    # at least 3 by 3 inputs: the statistics of fewer pixels are degenerate, all but one of which a ReLU may clip
    height, width = (draw(st.integers(3 * s, 3 * s + 23)) for _ in range(2))
    prior = deep_decoder(
        draw(st.integers(1, 40)), s, draw(st.integers(1, 7)), height, width, draw(st.sampled_from([1, 3]))
    )
    return Case(prior, draw(st.integers(1, 6)), draw(st.integers(1, 3)), draw(st.integers(0, 99)))


@settings(max_examples=15, deadline=None)
@given(cases())
@example(Case(deep_decoder(40, 8, 7, 31, 23, 3), tiles=20, members=6))
@example(Case(deep_decoder(5, 3, 2, 13, 11, 9), tiles=2, members=2))  # jointly fitted slices: more than channels
@example(Case(deep_decoder(1, 1, 1, 2, 2), tiles=1, members=1))
@example(Case(deep_decoder(16, 32, 1, 70, 65), tiles=1, members=1))  # 32 pixels to a cell
@example(Case(deep_decoder(3, 8, 7, 33, 24), tiles=18, members=5, seed=38))  # all channels die in some tile
def test_gradients_are_those_of_autograd(case: Case) -> None:
    losses, gradients = case.autograd()
    bound = case.bound(gradients)
    assume(bound < 1)  # else torch in single precision has no digit either: nothing to compare with
    found, exact = fused_step(case, "float64")
    np.testing.assert_allclose(found, losses, rtol=1e-7)  # a thin decoder amplifies rounding errors
    assert error(exact, gradients) < max(1e-9, 100 * case.sensitivity(1e-15, gradients))
    found, single = fused_step(case, "float32")
    np.testing.assert_allclose(found, losses, rtol=1e-4)
    assert error(single, gradients) < bound


@pytest.mark.parametrize("k", [64, 96])
def test_gradients_at_the_thesis_sizes(k: int) -> None:
    case = Case(deep_decoder(k, 16, 5, 128, 96), tiles=1, members=1)
    _, gradients = case.autograd()
    assert error(fused_step(case, "float64")[1], gradients) < 1e-9
    assert error(fused_step(case, "float32")[1], gradients) < 1e-2  # some of a million pixels are near a kink


def test_a_flat_tile_drowns_no_other() -> None:
    """Its gradient is zero but for shifts and head; rounding errors grow by 1 / sqrt(eps) in each of its blocks."""
    case = Case(deep_decoder(8, 4, 4, 24, 21), tiles=3, members=2, flat=1)
    _, gradients = case.autograd()
    assert error(fused_step(case, "float32")[1], gradients) < 1e-3


def test_any_loss_enters_through_its_gradient_at_the_outputs() -> None:
    case = Case(deep_decoder(12, 4, 3, 24, 21, 3), tiles=2, members=3)
    known = torch.tensor(np.random.default_rng(5).random(case.measurement.shape) < 0.5)

    def inpainting(output: torch.Tensor) -> torch.Tensor:  # absolute errors where the image is known
        return (output - torch.tensor(case.measurement)).abs()[known].mean()

    losses, gradients = case.autograd(inpainting)
    step = step_of(case, "float64")
    inputs, found = step.pad(case.inputs), np.full_like(case.weights, np.nan)
    outputs = torch.tensor(step.forward(inputs, case.weights), requires_grad=True)
    values = torch.stack([inpainting(output) for output in outputs])
    np.testing.assert_allclose(values.detach().numpy(), losses, rtol=1e-12)
    (grad_outputs,) = torch.autograd.grad(values.sum(), outputs)
    step.backward(inputs, case.weights, grad_outputs.numpy(), found)
    assert error(found, gradients) < 1e-9


def test_mse_is_the_general_way_with_the_gradient_of_mse() -> None:
    case = Case(deep_decoder(20, 4, 2, 17, 24), tiles=3, members=2)
    step = step_of(case, "float64")
    inputs, through = step.pad(case.inputs), np.empty_like(case.weights)
    outputs = step.forward(inputs, case.weights)
    step.backward(inputs, case.weights, 2 / case.measurement.size * (outputs - case.measurement), through)
    assert error(fused_step(case, "float64")[1], through) < 1e-12


def test_torch_optimisers_work_on_the_flat_weights() -> None:
    case = Case(deep_decoder(8, 4, 2, 16, 20), tiles=1, members=2)
    step = step_of(case, "float64")
    inputs, weights, gradients = step.pad(case.inputs), case.weights.copy(), np.empty_like(case.weights)
    flat = torch.nn.Parameter(torch.from_numpy(weights))
    flat.grad = torch.from_numpy(gradients)
    optimiser = torch.optim.RMSprop([flat], lr=1e-3)
    losses = []
    for _ in range(30):
        losses.append(step.mse(inputs, weights, gradients).copy())
        optimiser.step()
    assert (losses[-1] < losses[0]).all()
    case.weights = weights
    np.testing.assert_allclose(step.mse(inputs, weights, gradients), case.autograd()[0], rtol=1e-12)


def test_adam_is_torchs() -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(2, 50))
    theirs = torch.nn.Parameter(torch.tensor(weights))
    reference = torch.optim.Adam([theirs], lr=0.01)
    ours = kernels_cpu.Adam(weights, 0.01)
    for _ in range(20):
        gradients = rng.normal(size=weights.shape) * 10.0 ** rng.integers(-9, 3, weights.shape)
        theirs.grad = torch.tensor(gradients)
        reference.step()
        ours.update(gradients)
    np.testing.assert_allclose(weights, theirs.detach().numpy(), rtol=1e-12)


def test_the_first_iterations_are_those_of_the_reference() -> None:
    work = make_problem(k=16, members=3, tiles=2, channels=3)
    stops = [1, 5, 10]
    for ours, theirs in zip(
        fit(work, Config(), stops, method=choose("cpu", "fused")),
        fit(work, Config(), stops, method=choose("cpu", "reference")),
        strict=True,
    ):
        np.testing.assert_allclose(ours.losses, theirs.losses, rtol=1e-3)


def test_a_step_allocates_nothing() -> None:
    case = Case(deep_decoder(32, 4, 3, 64, 48), tiles=2, members=1)
    step, weights = step_of(case, "float32"), case.weights.astype(np.float32)
    inputs, gradients = step.pad(case.inputs), np.empty_like(weights)
    adam = kernels_cpu.Adam(weights, 0.01)

    def iterate() -> None:
        step.mse(inputs, weights, gradients)
        adam.update(gradients)

    iterate()
    tracemalloc.start()
    iterate()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4096  # Python's own small objects; the smallest activation has 24,576 bytes


def test_the_largest_case_of_the_thesis_needs_less_than_1500_megabytes() -> None:
    prior = deep_decoder(192, 8, 6, 256, 320)
    assert fused.memory(prior, tiles=1, members=5, threads=5) < 1.5e9
    step = Step(prior, np.zeros((1, 1, 256, 320)), 1, kernels_cpu)
    # once each: outputs of all blocks but the last, products of the last (later its gradients), and gradients of two
    # neighbouring blocks before it
    pixels = [h * w for h, w in prior.sizes]
    activations = 4 * 192 * (sum(pixels[1:-1]) + pixels[-2] + pixels[-3] + pixels[-4])
    assert activations < step.nbytes < 1.05 * activations


def test_kernels_of_both_kinds_have_every_member_of_their_protocol() -> None:
    members = {name for name in vars(Kernels) if not name.startswith("_")}
    assert len(members) > 15
    kinds: list[Any] = [kernels_cpu]
    if find_spec("triton"):
        from ddstudy.solvers.fused.kernels_cuda import TritonKernels

        kinds.append(TritonKernels)
    for kernels in kinds:
        for name in members:
            asked, offered = vars(Kernels)[name], getattr(kernels, name)
            if isinstance(asked, property):
                continue  # there it is, and mypy knows its type
            wanted = len(inspect.signature(asked).parameters)  # with self, as has a class, but not a module
            assert len(inspect.signature(offered).parameters) == wanted - (kernels is kernels_cpu), name


def test_the_fused_solver_is_for_deep_decoders_only() -> None:
    class Other:
        input_shape, parameters, cost = (1, 1, 1), 1, 1

    work = replace(make_problem(), prior=Other())
    with pytest.raises(UserError, match="fused kernels are for the Deep Decoders only"):
        next(fit(work, Config(), [1], method=choose("cpu", "fused")))
    with pytest.raises(TypeError, match="Deep Decoders"):
        next(fused.solve([work], Config(), [[1]], device="cpu", threads=1, ended=[threading.Event()]))


def test_what_a_device_cannot_do_is_refused() -> None:
    assert str(choose("cpu")) == "fused float32"
    assert str(choose("mps")) == "reference float32"
    with pytest.raises(UserError) as no_kernels:
        choose("mps", "fused")
    assert "no fused kernels for mps" in str(no_kernels.value)


def test_bfloat16_is_for_cuda_gpus_and_never_silently_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    for device, engine, here in [
        ("cpu", "auto", "fused engine on cpu"),
        ("cpu", "fused", "fused engine on cpu"),
        ("cpu", "reference", "reference engine on cpu"),
        ("mps", "auto", "reference engine on mps"),
        ("cuda", "reference", "reference engine on cuda"),
    ]:
        with pytest.raises(UserError) as refused:
            choose(device, engine, "bfloat16")
        assert str(refused.value).splitlines() == [
            f"fit.precision: bfloat16 needs the fused engine on a CUDA GPU, this is the {here}",
            "Valid there: auto, float32.",
        ]
    monkeypatch.setattr("ddstudy.solvers._has_triton", lambda: True)
    assert str(choose("cuda:1", "auto", "bfloat16")) == "fused bfloat16"
    with pytest.raises(UserError, match="fused engine on cpu"):  # found for another device
        fit(make_problem(), Config(), [1], device="cpu", method=choose("cuda", "fused", "bfloat16"))


def test_the_average_forgets() -> None:
    walk = np.random.default_rng(0).normal(size=(250, 2, 40)).cumsum(axis=0)
    kept = kernels_cpu.Iterate(walk[0], "average")
    for weights in walk:
        kept.update(np.zeros(2), weights)
    np.testing.assert_allclose(kept.weights, average_of(walk), rtol=1e-12)


def test_without_a_folder_for_compiled_kernels_they_work_and_it_is_said(tmp_path: Path) -> None:
    """A copy of the package whose cache folders are files: not even root can write there."""
    package = tmp_path / "copy" / "ddstudy"
    shutil.copytree(Path(fused.__file__).parents[2], package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "solvers" / "fused" / "__pycache__").write_text("")
    (tmp_path / "file").write_text("")
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    environment |= {"PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"HOME": str(tmp_path / "file"), "XDG_CACHE_HOME": str(tmp_path / "file")}
    code = """
import numpy as np
from ddstudy.solvers.fused import kernels_cpu
average = kernels_cpu.Average(np.zeros((1, 2), np.float32), 0.75)
for value in (4, 8):
    average.update(np.full((1, 2), value, np.float32))
print(*average.mean.ravel())
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout) == (0, "5.0 5.0\n"), done.stderr
    assert done.stderr.count("No writable folder for compiled kernels") == 1
    assert done.stderr.count("\n") == 1


def test_a_program_may_end_amid_a_fit() -> None:
    """Pools take no work by then: a traceback was printed as Python left."""
    code = """
from problems import make_problem
from ddstudy.solvers import Config, choose, fit
fits = [fit(make_problem(8), Config(), [1, 5], method=choose("cpu", engine)) for engine in ("fused", "reference")]
print(*(next(one).iteration for one in fits))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=200
    )
    assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (0, "1 1\n", False), done.stderr


def test_whoever_waits_for_the_compiler_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    groups._tell_of_compilation.cache_clear()
    with caplog.at_level(logging.WARNING, "ddstudy"):
        for seconds in (0.0, 2.3, 2.3):
            with groups._telling_of_compilation():
                time.sleep(seconds)
    assert [record.message.partition(",")[0] for record in caplog.records] == ["Compiling the kernels of the fit"]
