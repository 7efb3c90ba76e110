"""Fits that start where others ended, and whole volumes, slice by slice."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from problems import make_problem

from ddstudy.solvers import Config, Method, Problem, choose, fit
from ddstudy.study.evaluate import Job, Result, evaluate


@pytest.fixture(params=["reference", "fused"])
def method(request: pytest.FixtureRequest) -> Method:
    return choose("cpu", request.param)


def end_of(work: Problem, config: Config, method: Method) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Outputs and weights after 30 iterations."""
    ((outputs, weights),) = [(each.outputs, each.weights) for each in fit(work, config, [30], method=method)]
    return outputs, weights


@pytest.mark.parametrize("keep", ["last", "best", "average"])
@pytest.mark.parametrize("tiles", [1, 2])
def test_weights_that_were_handed_out_make_the_same_output(
    keep: Literal["last", "best", "average"], tiles: int, method: Method
) -> None:
    work = make_problem(members=3, tiles=tiles)
    outputs, weights = end_of(work, Config(keep=keep), method)
    # the best of one iteration are the weights before the first update
    before, after = fit(replace(work, weights=weights), Config(keep="best"), [1, 20], method=method)
    assert np.array_equal(before.outputs, outputs)
    assert (after.losses < before.losses).all()


def test_weights_of_one_engine_start_the_other(method: Method) -> None:
    work = make_problem()
    outputs, weights = end_of(work, Config(), choose("cpu", "fused"))
    (before,) = fit(replace(work, weights=weights), Config(keep="best"), [1], method=method)
    np.testing.assert_allclose(before.outputs, outputs, atol=1e-5)


def test_weights_are_refused_once_the_fit_has_gone_on(method: Method) -> None:
    snapshots = fit(make_problem(), Config(), [1, 2], method=method)
    first, _ = next(snapshots), next(snapshots)
    with pytest.raises(RuntimeError, match="gone on since"):
        _ = first.weights


def test_a_job_goes_on_from_the_weights_of_another(make_job: Callable[..., Job]) -> None:
    job = replace(make_job(8, 40), budgets=(40,), with_weights=True)
    first = result(job)
    assert first.weights is not None
    assert result(replace(job, with_weights=False)).weights is None
    assert np.array_equal(result(replace(job, start=first.weights, budgets=(1,))).output, first.output)
    assert result(replace(job, start=first.weights)).values["psnr"] > first.values["psnr"]
    with pytest.raises(ValueError, match=r"weights of shape \(1,"):
        result(replace(job, start=first.weights[:1]))


def result(job: Job) -> Result:
    (found,) = (event for event in evaluate(job, device="cpu", threads=1) if isinstance(event, Result))
    return found
