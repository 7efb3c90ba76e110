"""One fit -> the results of every setting that it serves.

`evaluate` is a generator of events and a pure function of its job: no Optuna, no storage, picklable, the same
numbers on every worker. A `Check` tells how the members are doing, a `Result` is what is recorded of one setting.
`evaluate_together` does several jobs of one `kind` as a pack: each has its own events, numbers and end.

Here truth and measurement part ways. A solver is handed what `problem` makes of the measurement, `measured(job)`; the
reference that outputs are judged against, `Job.target`, stays in this module. Checks come from the solver's losses, so
they are PSNR against the measurement; outputs are fetched from the device when a result needs them.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ddstudy.images.inputs import noise_volume
from ddstudy.images.metrics import COLUMNS, METRICS, psnr_of, quality
from ddstudy.images.tiling import join, split, tile_shape
from ddstudy.images.volumes import Target
from ddstudy.priors.deep_decoder import DeepDecoder, deep_decoder
from ddstudy.solvers import Config, Method, Problem, Snapshot, choose, fit_together
from ddstudy.spec.axes import Fit
from ddstudy.spec.options import FitSpec, NoiseSpec, rows_and_columns
from ddstudy.study.load import DISTURBED_PERCENT, watched
from ddstudy.study.stability import StopRule, cv_percent, dead_members, stops_at


@dataclass(frozen=True, eq=False)
class Job:
    """Everything that a worker needs for one fit.

    Attributes:
        fit: what is fitted.
        budgets: iterations to measure at, ascending.
        target: the image that quality is measured against, and of which the measurement is made.
        options: members, seed, learning rate, checks, device.
        noise: how input tensors are made.
        rule: stops the fit early, also when a member is dead; None: nothing does but a member that diverges.
        timed: its seconds are compared with others: nothing else is done meanwhile.
        every_member: results carry the output of every member, too.
    """

    fit: Fit
    budgets: tuple[int, ...]
    target: Target
    options: FitSpec
    noise: NoiseSpec
    rule: StopRule | None = None
    timed: bool = False
    every_member: bool = False

    @property
    def kind(self) -> tuple[object, ...]:
        """What jobs of one study that are done as a pack have in common."""
        how = self.config, self.options.engine, self.options.precision
        return job_prior(self.fit, self.target), rows_and_columns(self.fit["tiling"]), how

    @property
    def config(self) -> Config:
        """How its members are optimised."""
        return Config(self.options.learning_rate, self.options.keep)


@dataclass(frozen=True)
class Check:
    """How the members are doing: PSNR (dB) of each after some iterations, joined slice."""

    iteration: int
    seconds: float
    psnr_members: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Result:
    """What is recorded of one setting.

    Attributes:
        budget: iterations of the setting.
        values: everything that was measured under its plain name (psnr, ssim, .., cv_percent, seconds, ..). Without
            `psnr` when a member diverged. `seconds` is the wall time of the fit of all members, `seconds_per_member`
            that divided by their number: members run side by side, so one alone takes longer.
        output: float32 (C, H, W), mean of the members' outputs (Eq. 3.3), joined and clipped.
        curve: the checks so far, compact: iterations, seconds, and PSNR of every member.
        stopped: the fit was stopped here, before the budget: diverged or unstable for too long.
        shared: other fits ran on its device, so its seconds are not comparable; the executor says so.
        members: float32 (M, C, H, W), the outputs that `output` is the mean of, where the job asked for them.
    """

    budget: int
    values: dict[str, float | int | str]
    output: NDArray[np.float32]
    curve: dict[str, list[object]]
    stopped: bool
    shared: bool = False
    members: NDArray[np.float32] | None = None


def job_prior(fit: Fit, target: Target) -> DeepDecoder:
    """The decoder that fits one tile of the target."""
    return _prior(fit, target.image.shape)


def _prior(fit: Fit, shape: tuple[int, ...]) -> DeepDecoder:
    channels, height, width = shape
    return deep_decoder(fit["k"], fit["s"], fit["l"], *tile_shape(height, width, fit["tiling"]), channels=channels)


def measured(job: Job) -> NDArray[np.float32]:
    """The measurement y = A x + e of the target x that a solver may see, (C, H, W): A = 1, and there is no noise e."""
    return job.target.image


def problem(fit: Fit, measurement: NDArray[np.float32], options: FitSpec, noise: NoiseSpec) -> Problem:
    """What a solver sees: the measurement in tiles, and input tensors and starting weights of every member.

    Seeds derive from (study seed, identity of the fit, member), separately for noise and weights, so a member is
    the same whatever the worker, the order and the number of members.

    Args:
        fit: the decoder's shape, kind of noise and tiling.
        measurement: float32 (C, H, W) in [0, 1].
        options: members and seed.
        noise: how input tensors are made.
    """
    prior = _prior(fit, measurement.shape)
    rows, columns = rows_and_columns(fit["tiling"])
    k, h0, w0 = prior.input_shape
    inputs, weights = [], []
    for member in range(options.members):
        seeds = np.random.SeedSequence([options.seed, fit.digest, member]).spawn(2)
        noise_rng, weight_rng = (np.random.default_rng(seed) for seed in seeds)
        volume = noise_volume(fit["noise"], k, rows * h0, columns * w0, noise_rng, **noise.model_dump())
        inputs.append(split(volume, fit["tiling"]))
        weights.append(prior.initial_weights(weight_rng))
    tiles = split(measurement, fit["tiling"])
    pixels = None
    if len(tiles) > 1:
        _, height, width = measurement.shape
        pixels = join(np.arange(tiles.size).reshape(tiles.shape), fit["tiling"], height, width).ravel()
    return Problem(prior, tiles, np.stack(inputs), np.stack(weights), pixels)


def evaluate(job: Job, *, device: str, threads: int, stop: threading.Event | None = None) -> Iterator[Check | Result]:
    """Runs the fit; yields a check every `check_every` iterations and a result at each budget.

    Where the job has a rule, a fit that it stops or in which a member is dead ends with a result of where it stands,
    `stopped` set. A fit in which a member diverges ends so in any case: it cannot recover. Setting `stop` ends it
    without a result.
    """
    events = evaluate_together([job], device=device, threads=threads, stops=[stop or threading.Event()])
    return (event for _, event in events if event is not None)


def evaluate_together(
    jobs: Sequence[Job], *, device: str, threads: int, stops: Sequence[threading.Event]
) -> Iterator[tuple[int, Check | Result | None]]:
    """Runs the fits of a pack; yields the index of a job and what `evaluate` would yield for it, None at its end.

    Args:
        jobs: of one `kind`.
        device: a torch device.
        threads: of the fit.
        stops: an event for each job, which ends it without a further result while the others go on; set at its end.
    """
    method = choose(device, jobs[0].options.engine, jobs[0].options.precision)
    trackers = [_Tracker(job, device, method) for job in jobs]
    # metrics take a processor: a fit on a GPU goes on meanwhile, one on the processor would only be slowed down
    metrics_beside = device != "cpu" and not any(job.timed for job in jobs)
    pending: deque[tuple[int, Check | Future[list[Result]] | None]] = deque()

    def ready(wait: bool = False) -> Iterator[tuple[int, Check | Result | None]]:
        while pending and (wait or not isinstance(pending[0][1], Future) or pending[0][1].done()):
            index, event = pending.popleft()
            for one in event.result() if isinstance(event, Future) else [event]:
                yield index, one

    problems, iterations = [tracker.problem for tracker in trackers], [tracker.stops for tracker in trackers]
    fitting = fit_together(
        problems, jobs[0].config, iterations, device=device, threads=threads, method=method, ended=stops
    )
    busy = min(threads, sum(job.options.members for job in jobs)) if device == "cpu" else 1
    running = set(range(len(jobs)))
    # closed here: kept by an exception, its garbage collection would wait for threads that are collected, too
    with contextlib.closing(fitting), ThreadPoolExecutor(1) as metrics:  # type: ignore[type-var]  # it has close()
        try:
            for (index, snapshot), waited in watched(fitting, busy, on_processor=device == "cpu"):
                check, measure = trackers[index].observe(snapshot, waited)
                if check is not None:
                    pending.append((index, check))
                if measure is not None and metrics_beside:
                    pending.append((index, metrics.submit(measure)))
                elif measure is not None:
                    yield from ready(wait=True)
                    for result in measure():
                        yield index, result
                if trackers[index].over:
                    stops[index].set()
                ended = {one for one in running if stops[one].is_set()}
                running -= ended
                pending.extend((one, None) for one in ended)
                yield from ready()
        except Exception:
            yield from ready(wait=True)  # results that the fit had reached are still good
            raise
        pending.extend((one, None) for one in running)
        yield from ready(wait=True)


class _Tracker:
    """A job under way: its checks so far, and what is to be measured at a snapshot.

    Attributes:
        problem: what the solver is handed.
        stops: iterations at which a snapshot is wanted.
        over: no further snapshot is wanted.
    """

    def __init__(self, job: Job, device: str, method: Method) -> None:
        self.job, self.device, self.method = job, device, method
        self.problem = problem(job.fit, measured(job), job.options, job.noise)
        self.budgets = set(job.budgets)
        self.last = max(self.budgets)
        self.stops = sorted(self.budgets | set(range(job.options.check_every, self.last, job.options.check_every)))
        self.checks: list[Check] = []
        self.over = False

    def observe(
        self, snapshot: Snapshot, waited: float | None
    ) -> tuple[Check | None, Callable[[], list[Result]] | None]:
        """The check that a snapshot is, if no member diverged, and what makes results of it, if any are due.

        A check is made of losses and ranges, so that no outputs need leave their device for it.

        Args:
            snapshot: of the fit.
            waited: percent of its time that it waited for others on its machine; None where it is not known.
        """
        finite = bool(np.isfinite(snapshot.losses).all())
        scores = tuple(psnr_of(float(loss)) for loss in snapshot.losses) if finite else ()
        check = Check(snapshot.iteration, snapshot.seconds, scores)
        if finite:
            self.checks.append(check)
        dead, rule = int(dead_members(snapshot.ranges).sum()), self.job.rule
        hopeless = rule is not None and check.iteration < self.last and (dead > 0 or self._is_unstable(rule))
        stopped = not finite or hopeless
        self.over = stopped or check.iteration == self.last
        measure = None
        if stopped or check.iteration in self.budgets:
            measure = partial(self._measure, check, dead, stopped, waited, snapshot.outputs, _curve(self.checks))
        return check if finite else None, measure

    def _is_unstable(self, rule: StopRule) -> bool:
        """Whether to stop: judged at regular checks only, so that it does not depend on the budgets asked for."""
        regular = [check for check in self.checks if check.iteration % self.job.options.check_every == 0]
        if not regular or regular[-1] is not self.checks[-1]:
            return False
        iterations, scores = [c.iteration for c in regular], [c.psnr_members for c in regular]
        return stops_at(iterations, scores, rule) is not None

    def _measure(
        self,
        check: Check,
        dead: int,
        stopped: bool,
        waited: float | None,
        outputs: NDArray[np.float32],
        curve: dict[str, list[object]],
    ) -> list[Result]:
        _, height, width = self.job.target.image.shape
        members = np.clip(join(outputs, self.job.fit["tiling"], height, width), 0, 1)
        values: dict[str, float | int | str] = {
            "seconds": check.seconds,
            "seconds_per_member": check.seconds / len(members),
            "parameters": self.problem.prior.parameters,
            "iterations_done": check.iteration,
            "device": device_name(self.device),
            "engine": str(self.method),
        }
        if check.psnr_members:
            values |= _values(self.job, check, members, outputs)
        values["dead_members"] = dead
        if waited is not None:
            values |= {"waited_percent": waited, "disturbed": waited > DISTURBED_PERCENT}
        ensemble, made = members.mean(axis=0), []
        for budget in sorted(self.budgets):
            if budget == check.iteration or (stopped and budget > check.iteration):
                # a budget that was reached on time is a result of its own, even where the fit stops at it
                late = stopped and (budget > check.iteration or not check.psnr_members)
                each = members if self.job.every_member else None
                made.append(Result(budget, values, ensemble, curve, late, members=each))
        return made


def _values(
    job: Job, check: Check, members: NDArray[np.float32], outputs: NDArray[np.float32]
) -> dict[str, float | int | str]:
    """Quality and stability of a fit: members (M, C, H, W), and their outputs in tiles, against the reference."""
    reference = job.target.image
    ensemble = members.mean(axis=0)
    of_ensemble, *of_members = quality(np.stack([ensemble, *members]), reference)
    found = {
        "ensemble": of_ensemble,
        "members": {name: float(np.mean([scores[name] for scores in of_members])) for name in of_ensemble},
        "tiles": _over_tiles(outputs.mean(axis=0), split(reference, job.fit["tiling"]), of_ensemble),
    }
    values: dict[str, float | int | str] = {}
    for kind, scores in found.items():
        values |= {column: scores[name] for name, column in COLUMNS[kind].items() if name in scores}
    values |= {f"psnr_member_{index}": score for index, score in enumerate(check.psnr_members)}
    values["cv_percent"] = cv_percent(check.psnr_members)
    values["sd_db"] = float(np.std(check.psnr_members))
    return values


def _over_tiles(
    outputs: NDArray[np.float32], tiles: NDArray[np.float32], of_slice: dict[str, float]
) -> dict[str, float]:
    """The thesis' patch-wise reading of the metrics: mean over tiles of each; of one tile it is the whole slice's."""
    names = [name for name in COLUMNS["tiles"] if METRICS[name].measurable(*tiles.shape[-2:])]
    if len(tiles) == 1:
        return {name: of_slice[name] for name in names}
    scores = [quality(output[None], tile, names)[0] for output, tile in zip(outputs, tiles, strict=True)]
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
