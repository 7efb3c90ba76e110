import pickle
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from points import fit_of

from ddstudy.images.inputs import noise_volume
from ddstudy.images.metrics import psnr, quality
from ddstudy.images.tiling import join, split
from ddstudy.images.volumes import Target
from ddstudy.priors.deep_decoder import DeepDecoder
from ddstudy.solvers import Problem, Snapshot, fit_together
from ddstudy.solvers.base import summary
from ddstudy.spec.axes import Fit
from ddstudy.spec.options import NOISES, TILINGS
from ddstudy.spec.schema import StudySpec
from ddstudy.study import evaluate as module
from ddstudy.study import planner
from ddstudy.study.evaluate import Check, Job, Result, evaluate, problem
from ddstudy.study.stability import cv_percent
from ddstudy.tasks.base import Measurement
from ddstudy.tasks.judges import Judge

MakeSpec = Callable[..., StudySpec]
FIT = fit_of(4, 4, 2, "uniform", "1x1")


@pytest.fixture
def make_job(make_spec: MakeSpec, tiny_target: Target) -> Callable[..., Job]:
    def make(fit: Fit = FIT, budgets: tuple[int, ...] = (5, 10), **tables: Any) -> Job:
        spec = make_spec(**tables)
        return planner.job(spec, tiny_target, fit, budgets)

    return make


def run(job: Job) -> tuple[list[Check], list[Result]]:
    events = list(evaluate(job, device="cpu", threads=2))
    return [e for e in events if isinstance(e, Check)], [e for e in events if isinstance(e, Result)]


def problem_of(job: Job) -> Problem:
    return problem(job.fit, job.case.measurement, job.options, job.noise)


def comparable(measurement: Result) -> dict[str, Any]:
    rough = ("seconds", "waited", "disturbed")
    return {key: value for key, value in measurement.values.items() if not key.startswith(rough)}


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("tiling", TILINGS)
def test_one_fit_serves_every_budget_with_the_numbers_of_its_own_fit(
    make_job: Callable[..., Job], noise: Any, tiling: Any
) -> None:
    fit = fit_of(4, 4, 2, noise, tiling)
    checks, (short, long) = run(make_job(fit))
    _, (alone,) = run(make_job(fit, (5,)))
    assert [check.iteration for check in checks] == [2, 4, 5, 6, 8, 10]
    assert (short.budget, long.budget) == (5, 10)
    assert comparable(short) == comparable(alone)
    assert np.array_equal(short.output, alone.output)
    assert long.output.shape == (1, 27, 22)
    assert not short.stopped
    assert not long.stopped


def test_numbers_describe_the_output_and_the_members(make_job: Callable[..., Job]) -> None:
    job = make_job(fit=fit_of(4, 4, 2, "uniform", "2x2"))
    checks, (_, result) = run(job)
    values = result.values
    members = [values[f"psnr_member_{index}"] for index in range(2)]
    assert values["psnr"] == psnr(result.output, job.case.judge.truth)
    assert values["psnr_1dd"] == pytest.approx(np.mean(members))
    assert values["cv_percent"] == cv_percent(members)
    assert values["sd_db"] == pytest.approx(np.std(members))
    assert list(checks[-1].psnr_members) == members
    assert values["seconds_per_member"] == values["seconds"] / 2
    assert values["parameters"] == 2 * (4**2 + 2 * 4) + 4
    assert values["iterations_done"] == 10
    assert "vif" not in values  # 27 x 22 pixels are too few
    assert "psnr_tiles" in values
    assert result.curve["iterations"] == [2, 4, 5, 6, 8, 10]


def test_ensemble_of_one_is_its_member(make_job: Callable[..., Job]) -> None:
    _, (_, result) = run(make_job())
    job = make_job()
    _, (_, single) = run(replace(job, options=job.options.model_copy(update={"members": 1})))
    assert single.values["psnr"] == single.values["psnr_1dd"] == result.values["psnr_member_0"]
    assert single.values["cv_percent"] == 0


def test_a_fit_whose_metrics_fail_leaves_no_threads_behind(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its solver was kept by the exception, and hung when that was collected together with the solver's threads."""

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    before = set(threading.enumerate())
    monkeypatch.setattr(module, "quality", fail)
    with pytest.raises(ZeroDivisionError) as kept:
        run(make_job())
    assert kept.traceback
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize(("tiling", "calls"), [("1x1", 1), ("2x2", 5)])
def test_no_quality_is_computed_twice(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, tiling: Any, calls: int
) -> None:
    asked: list[int] = []

    def counted(outputs: NDArray[np.float32], target: NDArray[np.float32], *names: Any) -> list[dict[str, float]]:
        asked.append(len(outputs))
        return quality(outputs, target, *names)

    monkeypatch.setattr(module, "quality", counted)
    _, (result,) = run(make_job(fit=fit_of(4, 4, 2, "uniform", tiling), budgets=(5,)))
    assert asked == [3, *[1] * (calls - 1)]  # the ensemble and its members at once, then tile by tile
    assert (result.values["ssim_tiles"] == result.values["ssim"]) == (tiling == "1x1")
    assert "vif_tiles" not in result.values  # the slice is too small


def test_seeds_depend_on_study_seed_fit_and_member_only(make_job: Callable[..., Job]) -> None:
    work = problem_of(make_job())
    again = problem_of(make_job(budgets=(7,)))
    more = make_job()
    more = problem_of(replace(more, options=more.options.model_copy(update={"members": 4})))
    assert np.array_equal(work.weights, again.weights)
    assert np.array_equal(work.inputs, more.inputs[:2])
    assert np.array_equal(work.weights, more.weights[:2])
    assert not np.array_equal(work.inputs[0], work.inputs[1])
    assert not np.array_equal(work.inputs, problem_of(make_job(fit_of(4, 4, 2, "uniform", "2x2"))).inputs[:, :1])
    reseeded = replace(make_job(), options=make_job().options.model_copy(update={"seed": 1}))
    assert not np.array_equal(problem_of(reseeded).inputs, work.inputs)


def test_noise_is_made_once_for_the_slice_and_cut_like_it(make_job: Callable[..., Job]) -> None:
    job = make_job(fit_of(4, 4, 2, "blur3", "2x2"))
    work = problem_of(job)
    assert work.inputs.shape == (2, 4, 4, 4, 3)
    for member, inputs in enumerate(work.inputs):
        stream = np.random.SeedSequence([job.options.seed, job.fit.digest, member]).spawn(2)[0]
        whole = noise_volume("blur3", 4, 8, 6, np.random.default_rng(stream), **job.noise.model_dump())
        assert np.array_equal(join(inputs, "2x2", 8, 6), whole)


def test_unstable_fit_is_stopped_with_everything_measured(make_job: Callable[..., Job]) -> None:
    rule = {"cv_percent": 1e-6, "warmup": 4, "window": 1, "patience": 2}
    checks, results = run(make_job(budgets=(5, 10, 20), stability=rule))
    assert [check.iteration for check in checks] == [2, 4, 5, 6]
    assert [(result.budget, result.stopped) for result in results] == [(5, False), (10, True), (20, True)]
    assert [result.values["iterations_done"] for result in results] == [5, 6, 6]
    _, (resumed,) = run(make_job(budgets=(20,), stability=rule))  # the stop does not depend on the budgets asked for
    assert comparable(resumed) == comparable(results[2])
    _, unpruned = run(make_job(budgets=(5, 10, 20), stability={**rule, "prune": False}))
    assert [result.stopped for result in unpruned] == [False] * 3


def test_diverged_member_ends_the_fit(make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    def diverging(
        problems: list[Problem], _config: object, stops: list[list[int]], *, ended: list[threading.Event], **_: object
    ) -> Iterator[tuple[int, Snapshot]]:
        outputs = np.full((2, *problems[0].measurement.shape), 0.5, dtype=np.float32)
        for stop in stops[0]:
            if ended[0].is_set():
                return
            if stop >= 6:
                outputs[1] = np.nan
            losses, ranges = summary(outputs, problems[0].measurement, None)
            yield 0, Snapshot(stop, stop / 10, losses, ranges, outputs.copy)

    monkeypatch.setattr(module, "fit_together", diverging)
    checks, results = run(make_job(budgets=(5, 10), stability={"prune": False}))
    assert [check.iteration for check in checks] == [2, 4, 5]
    assert [(result.budget, result.stopped) for result in results] == [(5, False), (10, True)]
    assert "psnr" in results[0].values
    assert "psnr" not in results[1].values


@pytest.mark.parametrize("prune", [True, False])
def test_dead_member_ends_the_fit_where_pruning_is_on(
    prune: bool, make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = DeepDecoder.initial_weights

    def second_is_dead(prior: DeepDecoder, rng: np.random.Generator) -> NDArray[np.float32]:
        made.append(starts(prior, rng))
        return made[-1] * (len(made) % 2)  # no weights, no gradient

    made: list[NDArray[np.float32]] = []
    monkeypatch.setattr(DeepDecoder, "initial_weights", second_is_dead)
    _, results = run(make_job(budgets=(5, 10), stability={"prune": prune}))
    assert [(result.stopped, result.values["dead_members"]) for result in results] == [(prune, 1)] * 2
    assert [result.values["iterations_done"] for result in results] == ([2, 2] if prune else [5, 10])


@pytest.mark.parametrize("engine", ["fused", "reference"])
@pytest.mark.parametrize("tiling", ["1x1", "2x2"])
def test_no_solver_is_handed_the_reference(
    engine: str, tiling: Any, make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Judged against another image, or one of NaN, a fit is the same to the bit."""
    job = make_job(fit_of(4, 4, 2, "uniform", tiling))
    job = replace(job, options=job.options.model_copy(update={"engine": engine, "keep": "best"}))
    truth = job.case.judge.truth
    assert truth is not None
    y = truth[:, ::-1].copy()
    job = replace(job, case=replace(job.case, measurement=Measurement.of(y)))
    monkeypatch.setattr(module._Tracker, "_quality", lambda *_: {})  # metrics of NaN raise

    def numbers(reference: NDArray[np.float32]) -> list[bytes]:
        """All that a solver was handed, all that it yielded, and all that was made of it."""
        found: list[Any] = []

        def recorded(problems: list[Problem], *rest: Any, **how: Any) -> Iterator[tuple[int, Snapshot]]:
            (one,) = problems
            found.extend([one.measurement, one.inputs, one.weights])
            for index, snapshot in fit_together(problems, *rest, **how):
                losses, _ = summary(snapshot.outputs, one.measurement, one.pixels)
                np.testing.assert_allclose(snapshot.losses, losses, rtol=1e-12)
                found.extend([snapshot.losses, snapshot.ranges, snapshot.outputs])
                yield index, snapshot

        monkeypatch.setattr(module, "fit_together", recorded)
        checks, results = run(replace(job, case=replace(job.case, judge=Judge("truth", reference))))
        found += [np.array(check.psnr_members) for check in checks] + [result.output for result in results]
        return [array.tobytes() for array in found]

    assert numbers(truth) == numbers(np.zeros_like(y)) == numbers(np.full_like(y, np.nan))


def test_quality_is_that_against_the_reference_and_checks_are_against_the_measurement(
    make_job: Callable[..., Job],
) -> None:
    job = make_job(fit_of(4, 4, 2, "uniform", "2x2"))
    truth = job.case.judge.truth
    assert truth is not None
    job = replace(job, case=replace(job.case, measurement=Measurement.of(np.zeros_like(truth))))
    checks, (_, result) = run(job)
    assert result.values["psnr"] == psnr(result.output, truth)
    assert [result.values[f"psnr_member_{m}"] for m in range(2)] == list(checks[-1].psnr_members)
    assert checks[-1].psnr_members[0] == pytest.approx(psnr(result.output, np.zeros_like(result.output)), abs=3)
    tiles, outputs = split(truth, "2x2"), split(result.output, "2x2")
    of_tiles = np.mean([psnr(*pair) for pair in zip(outputs, tiles, strict=True)])
    assert result.values["psnr_tiles"] == pytest.approx(of_tiles, abs=0.5)  # but for what is padding


def test_jobs_and_events_travel(make_job: Callable[..., Job]) -> None:
    job = pickle.loads(pickle.dumps(make_job()))
    _, (_, result) = run(job)
    assert comparable(pickle.loads(pickle.dumps(result))) == comparable(run(make_job())[1][1])
