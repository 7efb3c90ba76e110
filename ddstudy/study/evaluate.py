"""One fit -> the results of every setting that it serves.

`evaluate` is a generator of events and a pure function of its job: no Optuna, no storage, picklable, the same
numbers on every worker. Checks tell how the members are doing; a measurement is the result of one setting.
`evaluate_together` does several jobs of one `kind` as a pack: each has its own events, numbers and end.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ddstudy.fit import Method, Problem, Snapshot, choose, fit_together
from ddstudy.images.inputs import noise_volume
from ddstudy.images.metrics import foreground, measurable, psnr, psnr_of, quality
from ddstudy.images.tiling import join, split, tile_shape
from ddstudy.images.volumes import Target
from ddstudy.priors.deep_decoder import Geometry, geometry, initial_weights
from ddstudy.spec.axes import Fit, rows_and_columns
from ddstudy.spec.schema import FitSpec, NoiseSpec, StabilitySpec
from ddstudy.study.load import DISTURBED_PERCENT, watched
from ddstudy.study.stability import cv_percent, dead_members, stops_at


@dataclass(frozen=True, eq=False)
class Job:
    """Everything that a worker needs for one fit.

    Attributes:
        fit: what is fitted.
        budgets: iterations to measure at, ascending.
        target: the image.
        options: members, seed, learning rate, checks, device.
        noise: how input tensors are made.
        stability: limits, and whether they stop the fit.
        timed: its seconds are compared with others: nothing else is done meanwhile.
    """

    fit: Fit
    budgets: tuple[int, ...]
    target: Target
    options: FitSpec
    noise: NoiseSpec
    stability: StabilitySpec
    timed: bool = False

    @property
    def kind(self) -> tuple[object, ...]:
        """What jobs of one study that are done as a pack have in common."""
        return job_geometry(self.fit, self.target), rows_and_columns(self.fit.tiling)


@dataclass(frozen=True)
class Check:
    """How the members are doing: PSNR (dB) of each after some iterations, joined slice."""

    iteration: int
    seconds: float
    psnr_members: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Measurement:
    """The result of one setting.

    Attributes:
        budget: iterations of the setting.
        values: every measurement under its plain name (psnr, ssim, .., cv_percent, seconds, ..). Without `psnr` when
            a member diverged. `seconds` is the wall time of the fit of all members, `seconds_per_member` that divided
            by their number: members run side by side, so one alone takes longer.
        output: float32 (C, H, W), mean of the members' outputs (Eq. 3.3), joined and clipped.
        curve: the checks so far, compact: iterations, seconds, and PSNR of every member.
        stopped: the fit was stopped here, before the budget: diverged or unstable for too long.
        shared: other fits ran on its device, so its seconds are not comparable; told by who ran it.
    """

    budget: int
    values: dict[str, float | int | str]
    output: NDArray[np.float32]
    curve: dict[str, list[object]]
    stopped: bool
    shared: bool = False


def job_geometry(fit: Fit, target: Target) -> Geometry:
    """Shapes of the decoder that fits one tile of the target."""
    channels, height, width = target.image.shape
    return geometry(fit.k, fit.s, fit.l, *tile_shape(height, width, fit.tiling), channels=channels)


def problem(job: Job) -> Problem:
    """Tiles, input tensors and starting weights of every member.

    Seeds derive from (study seed, identity of the fit, member), separately for noise and weights, so a member is
    the same whatever the worker, the order and the number of members.
    """
    shape = job_geometry(job.fit, job.target)
    rows, columns = rows_and_columns(job.fit.tiling)
    (h0, w0), k = shape.sizes[0], shape.k
    inputs, weights = [], []
    for member in range(job.options.members):
        seeds = np.random.SeedSequence([job.options.seed, job.fit.digest, member]).spawn(2)
        noise_rng, weight_rng = (np.random.default_rng(seed) for seed in seeds)
        volume = noise_volume(job.fit.noise, k, rows * h0, columns * w0, noise_rng, job.noise)
        inputs.append(split(volume, job.fit.tiling))
        weights.append(initial_weights(shape, weight_rng))
    tiles = split(job.target.image, job.fit.tiling)
    pixels = None
    if len(tiles) > 1:
        _, height, width = job.target.image.shape
        pixels = join(np.arange(tiles.size).reshape(tiles.shape), job.fit.tiling, height, width).ravel()
    options = job.options
    return Problem(shape, tiles, np.stack(inputs), np.stack(weights), options.learning_rate, options.keep, pixels)


def evaluate(
    job: Job, *, device: str, threads: int, stop: threading.Event | None = None
) -> Iterator[Check | Measurement]:
    """Runs the fit; yields a check every `check_every` iterations and a measurement at each budget.

    With pruning on, a fit that the rule stops, or that has a dead member, ends with a measurement of where it stands,
    `stopped` set. A fit in which a member diverges ends so in any case: it cannot recover. Setting `stop` ends it
    without a result.
    """
    events = evaluate_together([job], device=device, threads=threads, stops=[stop or threading.Event()])
    return (event for _, event in events if event is not None)


def evaluate_together(
    jobs: Sequence[Job], *, device: str, threads: int, stops: Sequence[threading.Event]
) -> Iterator[tuple[int, Check | Measurement | None]]:
    """Runs the fits of a pack; yields the index of a job and what `evaluate` would yield for it, None at its end.

    Args:
        jobs: of one `kind`.
        device: a torch device.
        threads: of the fit.
        stops: an event for each job, which ends it without a further result while the others go on; set at its end.
    """
    method = choose(device, jobs[0].options.engine, jobs[0].options.precision)
    courses = [_Course(job, device, method) for job in jobs]
    # metrics take a processor: a fit on a GPU goes on meanwhile, one on the processor would only be slowed down
    aside = device != "cpu" and not any(job.timed for job in jobs)
    coming: deque[tuple[int, Check | Future[list[Measurement]] | None]] = deque()

    def arrived(wait: bool = False) -> Iterator[tuple[int, Check | Measurement | None]]:
        while coming and (wait or not isinstance(coming[0][1], Future) or coming[0][1].done()):
            index, event = coming.popleft()
            for one in event.result() if isinstance(event, Future) else [event]:
                yield index, one

    works, looks = [course.work for course in courses], [course.stops for course in courses]
    fitting = fit_together(works, looks, device=device, threads=threads, method=method, ended=stops)
    busy = min(threads, sum(job.options.members for job in jobs)) if device == "cpu" else 1
    going = set(range(len(jobs)))
    with ThreadPoolExecutor(1) as metrics:
        try:
            for (index, snapshot), waited in watched(fitting, busy, on_processor=device == "cpu"):
                check, measure = courses[index].see(snapshot, waited)
                if check is not None:
                    coming.append((index, check))
                if measure is not None and aside:
                    coming.append((index, metrics.submit(measure)))
                elif measure is not None:
                    yield from arrived(wait=True)
                    for measurement in measure():
                        yield index, measurement
                if courses[index].over:
                    stops[index].set()
                over = {one for one in going if stops[one].is_set()}
                going -= over
                coming.extend((one, None) for one in over)
                yield from arrived()
        except Exception:
            yield from arrived(wait=True)  # what the fit had reached is none the worse for it
            raise
        coming.extend((one, None) for one in going)
        yield from arrived(wait=True)


class _Course:
    """A fit on its way: what was seen of it so far.

    Attributes:
        work: what is fitted.
        stops: iterations at which it is looked at.
        over: nothing more is to be seen.
    """

    def __init__(self, job: Job, device: str, method: Method) -> None:
        self.job, self.device, self.method = job, device, method
        self.work = problem(job)
        self.budgets = set(job.budgets)
        self.last = max(self.budgets)
        self.stops = sorted(self.budgets | set(range(job.options.check_every, self.last, job.options.check_every)))
        self.checks: list[Check] = []
        self.over = False

    def see(
        self, snapshot: Snapshot, waited: float | None
    ) -> tuple[Check | None, Callable[[], list[Measurement]] | None]:
        """The check that a snapshot is, if no member diverged, and what makes measurements of it, if any are due.

        A check is made of losses and ranges, that no outputs need leave their device for.

        Args:
            snapshot: of the fit.
            waited: percent of its time that it waited for others on its machine; None where nobody can tell.
        """
        finite = bool(np.isfinite(snapshot.losses).all())
        scores = tuple(psnr_of(float(loss)) for loss in snapshot.losses) if finite else ()
        check = Check(snapshot.iteration, snapshot.seconds, scores)
        if finite:
            self.checks.append(check)
        dead = int(dead_members(snapshot.ranges).sum())
        hopeless = self.job.stability.prune and check.iteration < self.last and (dead > 0 or self._unstable())
        stopped = not finite or hopeless
        self.over = stopped or check.iteration == self.last
        measure = None
        if stopped or check.iteration in self.budgets:
            measure = partial(self._measure, check, dead, stopped, waited, snapshot.outputs, _curve(self.checks))
        return check if finite else None, measure

    def _unstable(self) -> bool:
        """Whether to stop: judged at regular checks only, so that it does not depend on the budgets asked for."""
        regular = [check for check in self.checks if check.iteration % self.job.options.check_every == 0]
        if not regular or regular[-1] is not self.checks[-1]:
            return False
        iterations, scores = [c.iteration for c in regular], [c.psnr_members for c in regular]
        return stops_at(iterations, scores, self.job.stability) is not None

    def _measure(
        self,
        check: Check,
        dead: int,
        stopped: bool,
        waited: float | None,
        outputs: NDArray[np.float32],
        curve: dict[str, list[object]],
    ) -> list[Measurement]:
        _, height, width = self.job.target.image.shape
        members = np.clip(join(outputs, self.job.fit.tiling, height, width), 0, 1)
        values = _values(self.job, self.work, check, members, outputs, self.device, self.method)
        values["dead_members"] = dead
        if waited is not None:
            values |= {"waited_percent": waited, "disturbed": waited > DISTURBED_PERCENT}
        ensemble, made = members.mean(axis=0), []
        for budget in sorted(self.budgets):
            if budget == check.iteration or (stopped and budget > check.iteration):
                # a budget that was reached on time is a result of its own, even where the fit stops at it
                late = stopped and (budget > check.iteration or not check.psnr_members)
                made.append(Measurement(budget, values, ensemble, curve, late))
        return made


def _values(
    job: Job,
    work: Problem,
    check: Check,
    members: NDArray[np.float32],
    outputs: NDArray[np.float32],
    device: str,
    method: Method,
) -> dict[str, float | int | str]:
    values: dict[str, float | int | str] = {
        "seconds": check.seconds,
        "seconds_per_member": check.seconds / len(members),
        "parameters": work.shape.parameters,
        "iterations_done": check.iteration,
        "device": device_name(device),
        "engine": str(method),
    }
    if not check.psnr_members:
        return values
    target = job.target.image
    ensemble = members.mean(axis=0)
    inside = foreground(target)
    whole, *single = [
        {**scores, "psnr_foreground": psnr(image[:, inside], target[:, inside])}
        for image, scores in zip([ensemble, *members], quality(np.stack([ensemble, *members]), target), strict=True)
    ]
    values |= whole
    values |= {f"{name}_1dd": float(np.mean([scores[name] for scores in single])) for name in whole}
    values |= {f"{name}_tiles": score for name, score in _over_tiles(outputs.mean(axis=0), work.tiles, whole).items()}
    values |= {f"psnr_member_{index}": score for index, score in enumerate(check.psnr_members)}
    values["cv_percent"] = cv_percent(check.psnr_members)
    values["sd_db"] = float(np.std(check.psnr_members))
    return values


def _over_tiles(outputs: NDArray[np.float32], tiles: NDArray[np.float32], whole: dict[str, float]) -> dict[str, float]:
    """The thesis' patch-wise reading of the metrics: mean over tiles of each; of one tile it is the whole slice's."""
    names = [name for name in ("psnr", "ssim", "vif") if measurable(name, *tiles.shape[-2:])]
    if len(tiles) == 1:
        return {name: whole[name] for name in names}
    scores = [quality(output[None], tile, scales=False)[0] for output, tile in zip(outputs, tiles, strict=True)]
    return {name: float(np.mean([score[name] for score in scores])) for name in names}


def _curve(checks: list[Check]) -> dict[str, list[object]]:
    return {
        "iterations": [check.iteration for check in checks],
        "seconds": [round(check.seconds, 3) for check in checks],
        "psnr_members": [[round(score, 3) for score in check.psnr_members] for check in checks],
    }


def device_name(device: str) -> str:
    """What a device is called, for people: the GPU's or the processor's name."""
    import platform

    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    if device == "mps":
        return "Apple GPU"
    try:
        with open("/proc/cpuinfo") as cpuinfo:
            return next(line.split(":")[1].strip() for line in cpuinfo if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
