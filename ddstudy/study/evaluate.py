"""One fit -> the results of every setting that it serves.

`evaluate` is a generator of events and a pure function of its job: no Optuna, no storage, picklable, the same
numbers on every worker. A `Check` tells how the members are doing, a `Result` is what is recorded of one setting.
`evaluate_together` does several jobs of one `kind` as a pack: each has its own events, numbers and end. Jobs of
adjacent slices may share one network, whose output has a channel for each; each is still observed and measured alone.
One job may be of several slices that are fitted with their neighbours (`Job.networks`); its events say which.

Here truth and measurement part ways. A solver is handed what `problem` makes of `Case.measurement`; what outputs are
judged by, `Case.judge`, stays in this module. Where the image itself is measured without noise, checks come from the
solver's losses, and outputs are fetched from the device when a result needs them. In all other tasks each check fetches
them: to be judged, for the spread of the members, and for the stopping rule, which is told nothing of the judge.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddstudy.errors import UserError
from ddstudy.images.inputs import coordinates, noise_volume
from ddstudy.images.metrics import COLUMNS, METRICS, psnr, psnr_of, quality
from ddstudy.images.tiling import join, split, tile_shape
from ddstudy.priors.base import Prior, normal_weights
from ddstudy.priors.conv_decoder import conv_decoder
from ddstudy.priors.deep_decoder import deep_decoder, deep_decoder_2019
from ddstudy.priors.dip import DeepImagePrior
from ddstudy.priors.handcrafted import Handcrafted
from ddstudy.priors.siren import Siren
from ddstudy.solvers import Config, Method, Problem, Snapshot, choose, direct, fit_together
from ddstudy.spec.axes import Fit
from ddstudy.spec.options import FitSpec, NoiseSpec, PriorSpec, rows_and_columns
from ddstudy.spec.schema import fit_of
from ddstudy.study.load import DISTURBED_PERCENT, watched
from ddstudy.study.stability import StopRule, cv_percent, dead_members, spread_percent, spread_stops_at, stops_at
from ddstudy.study.stopping import Rule, Watch
from ddstudy.tasks.base import Measurement
from ddstudy.tasks.cases import Case
from ddstudy.tasks.measurements import consistent, held_out_errors, joint, residual, residual_picture, to_images


@dataclass(frozen=True, eq=False)
class NetworkSlices:
    """What one network of a job of several slices reconstructs.

    Attributes:
        cases: by name.
        after: place of the network among those of the job from whose weights it starts; None: from random ones.
    """

    cases: Mapping[str, Case]
    after: int | None


@dataclass(frozen=True, eq=False)
class Job:
    """Everything that a worker needs for one fit.

    Attributes:
        fit: what is fitted.
        budgets: iterations to measure at, ascending.
        case: the measurement that the solver sees, and what outputs are judged by.
        options: members, seed, learning rate, checks, stopping rule, device.
        noise: how input tensors are made.
        rule: stops the fit early, also when a member is dead; None: nothing does but a member that diverges.
        timed: its seconds are compared with others: nothing else is done meanwhile.
        every_member: results carry the output of every member, too.
        prior: what is fitted.
        start: float32 (M, parameters), weights that members start from instead of random ones, with a new optimiser.
        with_weights: results carry the weights that made their output.
        joint: so many jobs, one after the other in a pack, differ in their case alone and are fitted by one network,
            with one loss over all. Seconds are shared out among them; `start` is that of the first.
        networks: of several slices, fitted one after the other as `options` say, with the same input tensors: those of
            the fit without its case. `case` is the first one's. Empty: there is `case` alone.
    """

    fit: Fit
    budgets: tuple[int, ...]
    case: Case
    options: FitSpec
    noise: NoiseSpec
    rule: StopRule | None = None
    timed: bool = False
    every_member: bool = False
    prior: PriorSpec = field(default_factory=PriorSpec)
    start: NDArray[np.float32] | None = None
    with_weights: bool = False
    joint: int = 1
    networks: tuple[NetworkSlices, ...] = ()

    @property
    def width(self) -> int:
        """Slices that share a network."""
        return len(self.networks[0].cases) if self.networks else self.joint

    @property
    def kind(self) -> tuple[object, ...]:
        """What jobs of one study that are done as a pack have in common."""
        how = self.config, self.options.engine, self.options.precision
        return self.model, rows_and_columns(self.fit.tiling), self.case.measurement.operator, how, self.networks

    @property
    def model(self) -> Prior | Handcrafted:
        """The prior of one tile, of all slices that share it."""
        return prior_of(self.fit, self.case.measurement, self.prior, self.width)

    def method(self, device: str) -> Method:
        """How it is computed on a torch device.

        Raises:
            UserError: the device does not have it.
        """
        of = self.options
        return choose(device, of.engine, of.precision, self.model, of.optimiser)

    @property
    def config(self) -> Config:
        """How its members are optimised."""
        of = self.options
        return Config(**{field.name: getattr(of, field.name) for field in fields(Config)})


@dataclass(frozen=True)
class Check:
    """How the members are doing after some iterations.

    Attributes:
        iteration: updates done.
        seconds: of the fit.
        psnr_members: the judge's score of each, dB: PSNR of the joined slice where the judge is the truth.
        watched: what stopping rules and stability look at and what `stop-audit` needs, in tasks other than `represent`:
            `spread`, `loss`, `held_out`, `score`, `wmv`, `emv`.
        case: which of a job of several it is of.
        of: the last iteration of the fit; 0 where nobody said.
    """

    iteration: int
    seconds: float
    psnr_members: tuple[float, ...]
    watched: Mapping[str, float] = field(default_factory=dict)
    case: str = ""
    of: int = 0


@dataclass(frozen=True, eq=False)
class Result:
    """What is recorded of one setting.

    Attributes:
        budget: iterations of the setting.
        values: everything that was measured under its plain name (psnr, ssim, .., cv_percent, seconds, ..). Without
            `cv_percent` when a member diverged. `seconds` is the wall time of the fit of all members,
            `seconds_per_member` that divided by their number: members run side by side, so one alone takes longer.
        output: float32 (C, H, W), mean of the members' outputs (Eq. 3.3), joined and clipped.
        curve: the checks so far, compact: iterations, seconds, and PSNR of every member.
        stopped: the fit was stopped here, before the budget: diverged or unstable for too long.
        shared: other fits ran on its device, so its seconds are not comparable; the executor says so.
        members: float32 (M, C, H, W), the outputs that `output` is the mean of, where the job asked for them.
        residual: float32 (C, H, W), what of the measurement the answer leaves over, as it is looked at; None of copies.
        weights: float32 (M, parameters), a `Job.start` for a fit that goes on from here, where the job asked for them.
        case: which of a job of several it is of.
    """

    budget: int
    values: dict[str, float | int | str]
    output: NDArray[np.float32]
    curve: dict[str, list[object]]
    stopped: bool
    shared: bool = False
    members: NDArray[np.float32] | None = None
    residual: NDArray[np.float32] | None = None
    weights: NDArray[np.float32] | None = None
    case: str = ""


class Ending(threading.Event):
    """Ends one job; it is set as soon as the event that stops everything is.

    Args:
        everything: set by the caller, perhaps in another thread; None if nothing stops everything.
    """

    def __init__(self, everything: threading.Event | None) -> None:
        super().__init__()
        self._everything = everything

    def is_set(self) -> bool:
        """Whether the job is to end."""
        return super().is_set() or is_stopped(self._everything)


def is_stopped(everything: threading.Event | None) -> bool:
    """Whether the caller wants no more."""
    return everything is not None and everything.is_set()


def prior_of(fit: Fit, measurement: Measurement, table: PriorSpec, slices: int = 1) -> Prior | Handcrafted:
    """What fits one tile of an image.

    Args:
        fit: its k, s and l, as far as the prior has them, and tiling.
        measurement: of the image.
        table: the prior's kind and options, as they are at this fit.
        slices: that share it, each with the image's channels.

    Raises:
        UserError: the prior cannot make an image, or a tile, of this size.
    """
    channels, height, width = measurement.shape
    channels *= slices
    size, head = tile_shape(height, width, fit.tiling), measurement.head
    match table.kind:
        case "deep_decoder":
            return deep_decoder(fit["k"], fit["s"], fit["l"], *size, channels=channels, head=head)
        case "deep_decoder_2019":
            return deep_decoder_2019(fit["k"], fit["l"], *size, channels=channels, head=head)
        case "conv_decoder":
            return conv_decoder(fit["k"], fit["s"], fit["l"], *size, channels=channels, head=head)
        case "dip":
            if min(size) <= 2 ** fit["l"]:
                most = max(0, math.ceil(math.log2(min(size))) - 1)
                raise UserError(
                    f"prior dip: {fit['l']} scales (l) need sides of more than {2 ** fit['l']} pixels, "
                    f"not {size[0]}x{size[1]}",
                    f"Valid: l up to {most}, or fewer tiles, or a larger target.",
                )
            return DeepImagePrior(
                fit["k"], fit["l"], channels, size, table.skip_channels, table.input_channels, table.upsampling, head
            )
        case "siren":
            return Siren(fit["k"], fit["l"], channels, size, table.omega, head)
        case "tv" | "wavelet" | "nlm":
            return Handcrafted(table.kind, table.strength)


def problem(
    fit: Fit,
    measurement: Measurement,
    options: FitSpec,
    noise: NoiseSpec,
    table: PriorSpec | None = None,
    start: NDArray[np.float32] | None = None,
) -> Problem:
    """What a solver sees: the measurement, and input tensors and starting weights of every member.

    Seeds derive from (study seed, identity of the fit, member), separately for noise, weights, jitter and the noise of
    `sgld`, so a member is the same whatever the worker, the order and the number of members.

    Args:
        fit: the decoder's shape, kind of noise and tiling.
        measurement: what is known of the image; without an operator it is cut into tiles.
        options: members and seed.
        noise: how input tensors are made.
        table: the prior, one with weights; the thesis' Deep Decoder when not given.
        start: weights that members start from, see `Job.start`.

    Raises:
        ValueError: `start` is of other members, or of another network.
    """
    prior = prior_of(fit, measurement, table or PriorSpec())
    assert not isinstance(prior, Handcrafted)
    rows, columns = rows_and_columns(fit["tiling"])
    k, h0, w0 = prior.input_shape
    inputs, weights, jitter, langevin = [], [], [], []
    for member in range(options.members):
        seeds = np.random.SeedSequence([options.seed, fit.digest, member]).spawn(4)
        noise_rng, weight_rng = (np.random.default_rng(seed) for seed in seeds[:2])
        if prior.input_kind == "coordinates":
            volume = coordinates(rows * h0, columns * w0)
        else:
            volume = noise_volume(fit["noise"], k, rows * h0, columns * w0, noise_rng, **noise.model_dump())
            if prior.input_scale != 1:
                volume = np.float32(prior.input_scale) * volume
        inputs.append(split(volume, fit["tiling"]))
        fresh = prior.initial_weights(weight_rng)
        if options.initialisation == "normal":
            fresh = normal_weights(prior, fresh, options.initialisation_sd, weight_rng)
        weights.append(fresh)
        jitter.append(seeds[2].generate_state(1, np.uint64)[0])
        langevin.append(seeds[3].generate_state(1, np.uint64)[0])
    _, height, width = measurement.shape
    tiles = rows * columns
    pixels = None
    if tiles > 1:
        numbers = np.arange(tiles * math.prod(prior.output_shape)).reshape(tiles, *prior.output_shape)
        pixels = join(numbers, fit["tiling"], height, width).ravel()
    operator, samples = measurement.operator, measurement.samples
    if start is not None and start.shape != (options.members, prior.parameters):
        raise ValueError(f"weights of shape {start.shape} start {options.members} members of {prior.parameters} each")
    return Problem(
        prior,
        samples if operator is not None else split(samples, fit["tiling"]),
        np.stack(inputs),
        np.stack(weights) if start is None else start,
        pixels,
        operator=operator,
        shape=measurement.shape,
        jitter_seeds=np.array(jitter),
        noise_seeds=np.array(langevin),
    )


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
        jobs: of one `kind`; as many as their `joint` share a network, one after the other. One of several slices is
            a pack of its own.
        device: a torch device.
        threads: of the fit.
        stops: an event for each job, which ends it without a further result while the others go on; set at its end.
    """
    if jobs[0].networks:
        (job,) = jobs
        yield from ((0, event) for event in _neighbours(job, device, threads, stops[0]))
        yield 0, None
        return
    method = jobs[0].method(device)
    trackers = [_Tracker(job, device, method) for job in jobs]
    groups = [range(first, first + jobs[0].joint) for first in range(0, len(jobs), jobs[0].joint)]
    # metrics take a core each: a fit on a GPU goes on meanwhile, one on the processor would only be slowed down
    metrics_beside = device != "cpu" and not any(job.timed for job in jobs)
    pending: deque[tuple[int, Check | Future[list[Result]] | None]] = deque()

    def ready(wait: bool = False) -> Iterator[tuple[int, Check | Result | None]]:
        while pending and (wait or not isinstance(pending[0][1], Future) or pending[0][1].done()):
            index, event = pending.popleft()
            for one in event.result() if isinstance(event, Future) else [event]:
                yield index, one

    if method.engine == "direct":
        fitting = _applied(jobs)
    else:
        problems = []
        for first, group in zip((jobs[group[0]] for group in groups), groups, strict=True):
            measurement = joint([jobs[index].case.measurement for index in group])
            problems.append(problem(first.fit, measurement, first.options, first.noise, first.prior, first.start))
        fitting = fit_together(
            problems,
            jobs[0].config,
            [trackers[group[0]].stops for group in groups],
            device=device,
            threads=threads,
            method=method,
            ended=[_All([stops[index] for index in group]) for group in groups],
        )
    busy = min(threads, sum(jobs[group[0]].options.members for group in groups)) if device == "cpu" else 1
    running = set(range(len(jobs)))
    # closed here: kept by an exception, its garbage collection would wait for threads that are collected, too
    with contextlib.closing(fitting), ThreadPoolExecutor(threads) as metrics:  # type: ignore[type-var]  # it has close()
        try:
            for (number, snapshot), waited in watched(fitting, busy, on_processor=device == "cpu"):
                group = groups[number]
                for index, part in zip(group, _parts(snapshot, [jobs[each] for each in group]), strict=True):
                    if index not in running:  # while others of its network are
                        continue
                    check, measure = trackers[index].observe(part, waited)
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


def _neighbours(job: Job, device: str, threads: int, stop: threading.Event) -> Iterator[Check | Result]:
    """The events of a job of several slices, one network after the other.

    A network that starts from another's weights does so at each budget: those that the other had there. Where these are
    not finite, it starts as the other did.
    """
    onwards = job.options.start_iterations
    ended: dict[tuple[int | None, int], NDArray[np.float32] | None] = {}
    alone = replace(job, fit=fit_of(job.fit), networks=(), with_weights=job.options.start == "neighbour")
    for place, network in enumerate(job.networks):
        is_first = network.after is None
        for budgets in [job.budgets] if is_first else [(budget,) for budget in job.budgets]:
            start = ended.get((network.after, budgets[0]))
            ended |= {(place, budget): start for budget in budgets}
            one = replace(alone, budgets=budgets, start=start, joint=len(network.cases))
            if onwards and not is_first:
                one = replace(one, budgets=(onwards,))
            names, jobs = list(network.cases), [replace(one, case=case) for case in network.cases.values()]
            stops = [Ending(stop) for _ in jobs]
            for index, event in evaluate_together(jobs, device=device, threads=threads, stops=stops):
                if isinstance(event, Check):
                    yield replace(event, case=names[index])
                elif isinstance(event, Result):
                    budget = event.budget if is_first else budgets[0]
                    if index == 0 and event.weights is not None and np.isfinite(event.weights).all():
                        ended[place, budget] = event.weights
                    yield replace(event, budget=budget, case=names[index], weights=None)
            if stop.is_set():
                return


def _applied(jobs: Sequence[Job]) -> Iterator[tuple[int, Snapshot]]:
    """What priors without weights make of the measurements."""
    for index, job in enumerate(jobs):
        prior = job.model
        assert isinstance(prior, Handcrafted)
        yield index, direct.solve(prior, job.case.measurement.samples)


def _parts(snapshot: Snapshot, jobs: Sequence[Job]) -> Iterator[Snapshot]:
    """The snapshot of each of the jobs that share a network, of its own channels."""
    if len(jobs) == 1:
        yield snapshot
        return
    for job, outputs in zip(jobs, np.split(snapshot.outputs, len(jobs), axis=2), strict=True):
        measurement = job.case.measurement
        joined = join(outputs, job.fit.tiling, *measurement.shape[1:])
        errors = residual(joined.astype(np.float64), measurement)[:, ~np.isnan(measurement.samples)]
        yield replace(
            snapshot,
            seconds=snapshot.seconds / len(jobs),
            losses=(errors**2).mean(axis=1),
            ranges=np.ptp(outputs, axis=(2, 3, 4)),
            fetch=partial(np.copy, outputs),
        )


class _All(threading.Event):
    """Set as soon as all of some events are."""

    def __init__(self, events: Sequence[threading.Event]) -> None:
        super().__init__()
        self._events = events

    def is_set(self) -> bool:
        """Whether all are."""
        return all(event.is_set() for event in self._events)


class _Tracker:
    """A job under way: its checks so far, and what is to be measured at a snapshot.

    Attributes:
        stops: iterations at which a snapshot is wanted.
        over: no further snapshot is wanted.
    """

    def __init__(self, job: Job, device: str, method: Method) -> None:
        self.job, self.device, self.method = job, "cpu" if method.engine == "direct" else device, method
        self.budgets = set(job.budgets)
        self.last = max(self.budgets)
        self.stops = sorted(self.budgets | set(range(job.options.check_every, self.last, job.options.check_every)))
        self.checks: list[Check] = []
        self.over = False
        self.is_copy = job.case.task.kind == "represent"
        self.watch = Watch()
        self.rule = Rule(job.options.stop, job.options.patience, job.case.task.sigma)
        self.chosen: _Answer | None = None

    def observe(
        self, snapshot: Snapshot, waited: float | None
    ) -> tuple[Check | None, Callable[[], list[Result]] | None]:
        """The check that a snapshot is, if no member diverged, and what makes results of it, if any are due.

        Args:
            snapshot: of the fit.
            waited: percent of its time that it waited for others on its machine; None where it is not known.
        """
        finite = bool(np.isfinite(snapshot.losses).all())
        check = self._check(snapshot) if finite else Check(snapshot.iteration, snapshot.seconds, (), of=self.last)
        if finite:
            self.checks.append(check)
        dead, rule = int(dead_members(snapshot.ranges).sum()), self.job.rule
        before = check.iteration < self.last
        hopeless = rule is not None and before and (dead > 0 or self._is_unstable(rule))
        stopped = not finite or hopeless
        answered = not stopped and before and self.rule.over
        self.over = stopped or answered or not before
        measure = None
        if self.over or check.iteration in self.budgets:
            answer = self.chosen or self._answer(snapshot)
            state = _State(check, answer, dead, stopped, answered, waited, _curve(self.checks))
            measure = partial(self._measure, state)
        return check if finite else None, measure

    def _check(self, snapshot: Snapshot) -> Check:
        iteration, seconds, job = snapshot.iteration, snapshot.seconds, self.job
        if self.is_copy:
            # of losses alone, so that no outputs need leave their device
            return Check(iteration, seconds, tuple(psnr_of(float(loss)) for loss in snapshot.losses), of=self.last)
        joined = self._joined(snapshot.outputs)
        mean = joined.mean(axis=0)
        told = {"spread": spread_percent(joined), "loss": float(snapshot.losses.mean())}
        if job.case.measurement.held_out is not None:
            told["held_out"] = float(held_out_errors(mean[None], job.case.measurement)[0])
        if iteration % job.options.check_every == 0:  # the rule sees these only, so that budgets do not change it
            told |= self.watch.observe(iteration, mean)
            if self.rule.observe(iteration, told):
                self.chosen = None if self.rule.is_undecided else self._answer(snapshot)
        image, *images = to_images(np.stack([mean, *joined]), job.case.measurement)
        truth = job.case.judge.truth
        told["score"] = self._scores(mean[None], image[None])[0] if truth is None else psnr(image, truth)
        return Check(iteration, seconds, self._scores(joined, np.stack(images)), told, of=self.last)

    def _answer(self, snapshot: Snapshot) -> _Answer:
        weights = snapshot.weights if self.job.with_weights else None
        return _Answer(snapshot.iteration, snapshot.outputs, weights)

    def _joined(self, outputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Outputs (M, T, C, h, w) as whole images (M, C, H, W), measured k-space put back where that is asked for."""
        joined = join(outputs, self.job.fit.tiling, *self.job.case.measurement.shape[1:])
        return consistent(joined, self.job.case.measurement) if self.job.case.task.consistency == "hard" else joined

    def _residual(self, mean: NDArray[np.float32]) -> NDArray[np.float32]:
        measurement = self.job.case.measurement
        return residual_picture(residual(mean[None], measurement)[0], measurement)

    def _scores(self, outputs: NDArray[np.float32], images: NDArray[np.float32]) -> tuple[float, ...]:
        return self.job.case.judge.scores(outputs, images, self.job.case.measurement)

    def _is_unstable(self, rule: StopRule) -> bool:
        """Whether to stop: judged at regular checks only, so that it does not depend on the budgets asked for."""
        regular = [check for check in self.checks if check.iteration % self.job.options.check_every == 0]
        if not regular or regular[-1] is not self.checks[-1]:
            return False
        iterations = [check.iteration for check in regular]
        if self.job.case.judge.against != "truth":
            return spread_stops_at(iterations, [check.watched["spread"] for check in regular], rule) is not None
        return stops_at(iterations, [check.psnr_members for check in regular], rule) is not None

    def _measure(self, state: _State) -> list[Result]:
        check, answer = state.check, state.answer
        joined = self._joined(answer.outputs)
        members = to_images(joined, self.job.case.measurement)
        mean = joined.mean(axis=0)
        ensemble = members.mean(axis=0) if self.is_copy else to_images(mean[None], self.job.case.measurement)[0]
        values: dict[str, float | int | str] = {
            "seconds": check.seconds,
            "seconds_per_member": check.seconds / len(members),
            "parameters": self.job.model.parameters,
            "iterations_done": check.iteration,
            "device": device_name(self.device),
            "engine": str(self.method),
        }
        if check.psnr_members:
            scores = check.psnr_members if self.is_copy else self._scores(joined, members)
            values |= self._quality(state, ensemble, members) | self._stability(scores)
            if not self.is_copy:
                values |= self._of_task(state, mean, ensemble, scores)
                values["spread_percent"] = spread_percent(joined)
        values["dead_members"] = state.dead
        if state.waited is not None:
            values |= {"waited_percent": state.waited, "disturbed": state.waited > DISTURBED_PERCENT}
        ended = state.stopped or state.answered
        made, left = [], None if self.is_copy else self._residual(mean)
        for budget in sorted(self.budgets):
            if budget == check.iteration or (ended and budget > check.iteration):
                # a budget that was reached on time is a result of its own, even where the fit stops at it
                late = state.stopped and (budget > check.iteration or not check.psnr_members)
                each = members if self.job.every_member else None
                made.append(
                    Result(
                        budget, values, ensemble, state.curve, late, members=each, residual=left, weights=answer.weights
                    )
                )
        return made

    def _quality(
        self, state: _State, ensemble: NDArray[np.float32], members: NDArray[np.float32]
    ) -> dict[str, float | int | str]:
        """Quality against the truth, where it is known; members (M, C, H, W)."""
        reference, tiling = self.job.case.judge.truth, self.job.fit.tiling
        values: dict[str, float | int | str] = {}
        if reference is not None:
            of_ensemble, *of_members = quality(np.stack([ensemble, *members]), reference)
            in_tiles = state.answer.outputs.mean(axis=0) if self.is_copy else split(ensemble, tiling)
            found = {
                "ensemble": of_ensemble,
                "members": {name: float(np.mean([scores[name] for scores in of_members])) for name in of_ensemble},
                "tiles": _over_tiles(in_tiles, split(reference, tiling), of_ensemble),
            }
            for kind, scores in found.items():
                values |= {column: scores[name] for name, column in COLUMNS[kind].items() if name in scores}
        return values

    def _stability(self, scores: tuple[float, ...]) -> dict[str, float | int | str]:
        """Of the members' scores by the judge, dB."""
        name = "psnr" if self.job.case.judge.against == "truth" else "judge"
        values: dict[str, float | int | str] = {f"{name}_member_{i}": score for i, score in enumerate(scores)}
        return values | {"cv_percent": cv_percent(scores), "sd_db": float(np.std(scores))}

    def _of_task(
        self, state: _State, mean: NDArray[np.float32], ensemble: NDArray[np.float32], scores: tuple[float, ...]
    ) -> dict[str, float | int | str]:
        """What tasks other than `represent` are judged by: the scores, and where rule and oracle stop."""
        values: dict[str, float | int | str] = {
            "judge": self._scores(mean[None], ensemble[None])[0],
            "judge_1dd": float(np.mean(scores)),
            "chosen_iteration": state.answer.iteration,
        }
        if state.answered:
            values["ended_by"] = self.job.options.stop
        if (baseline := self.job.case.baseline) is not None:
            values["baseline"] = baseline
        if self.job.case.judge.truth is not None:
            best = max(self.checks[: self.checks.index(state.check) + 1], key=lambda check: check.watched["score"])
            values |= {"oracle_iteration": best.iteration, "oracle_psnr": best.watched["score"]}
            values["oracle_gap"] = best.watched["score"] - psnr(ensemble, self.job.case.judge.truth)
        return values


class _Answer(NamedTuple):
    """The iterate that a result is of: that of a snapshot, or an earlier one that the rule chose.

    Attributes:
        iteration: its.
        outputs: (M, T, C, h, w).
        weights: (M, parameters), where the job asks for them.
    """

    iteration: int
    outputs: NDArray[np.float32]
    weights: NDArray[np.float32] | None


@dataclass(frozen=True, eq=False)
class _State:
    """Where a fit stands at a snapshot that results are made of.

    Attributes:
        check: at the snapshot.
        answer: the iterate that the results are of.
        dead: members.
        stopped: diverged, or unstable for too long.
        answered: the stopping rule has its answer, before the last budget.
        waited: percent.
        curve: the checks so far.
    """

    check: Check
    answer: _Answer
    dead: int
    stopped: bool
    answered: bool
    waited: float | None
    curve: dict[str, list[object]]


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
    curve: dict[str, list[object]] = {
        "iterations": [check.iteration for check in checks],
        "seconds": [round(check.seconds, 3) for check in checks],
        "psnr_members": [[round(score, 3) for score in check.psnr_members] for check in checks],
    }
    names = dict.fromkeys(name for check in checks for name in check.watched)
    for name in names:
        numbers = (check.watched.get(name, math.nan) for check in checks)
        curve[name] = [float(f"{number:.5g}") if math.isfinite(number) else None for number in numbers]
    return curve


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
