"""One fit -> the results of every setting that it serves.

`evaluate` is a generator of events and a pure function of its job: no Optuna, no storage, picklable, the same
numbers on every worker. Checks tell how the members are doing; a measurement is the result of one setting.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddstudy.decoder import Geometry, geometry, initial_weights
from ddstudy.fit import Method, Problem, choose
from ddstudy.fit import fit as run_fit
from ddstudy.load import DISTURBED_PERCENT, watched
from ddstudy.metrics import foreground, measurable, psnr, quality
from ddstudy.noise import noise_volume
from ddstudy.settings import Fit, rows_and_columns
from ddstudy.spec import FitSpec, NoiseSpec, StabilitySpec
from ddstudy.stability import cv_percent, dead_members, stops_at
from ddstudy.target import Target, join, split, tile_shape


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
    """

    fit: Fit
    budgets: tuple[int, ...]
    target: Target
    options: FitSpec
    noise: NoiseSpec
    stability: StabilitySpec


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
        values: every measurement under its plain name (design: psnr, ssim, .., cv_percent, seconds, ..). Without
            `psnr` when a member diverged.
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
    return Problem(shape, tiles, np.stack(inputs), np.stack(weights), job.options.learning_rate, job.options.keep)


def evaluate(
    job: Job, *, device: str, threads: int, stop: threading.Event | None = None
) -> Iterator[Check | Measurement]:
    """Runs the fit; yields a check every `check_every` iterations and a measurement at each budget.

    With pruning on, a fit that the rule stops, or that has a dead member, ends with a measurement of where it stands,
    `stopped` set. A fit in which a member diverges ends so in any case: it cannot recover. Setting `stop` ends it
    without a result.
    """
    _, height, width = job.target.image.shape
    work = problem(job)
    method = choose(device, job.options.engine, job.options.precision)
    budgets = set(job.budgets)
    last = max(budgets)
    stops = sorted(budgets | set(range(job.options.check_every, last, job.options.check_every)))
    checks: list[Check] = []
    coming: deque[Future[list[Measurement]]] = deque()
    with ThreadPoolExecutor(1) as aside:
        fitting = run_fit(work, stops, device=device, threads=threads, method=method, stop=stop)
        busy = min(threads, job.options.members)
        for snapshot, waited in watched(fitting, busy, on_processor=device == "cpu"):
            members = np.clip(join(snapshot.outputs, job.fit.tiling, height, width), 0, 1)
            finite = bool(np.isfinite(members).all())
            scores = tuple(psnr(member, job.target.image) for member in members) if finite else ()
            check = Check(snapshot.iteration, snapshot.seconds, scores)
            yield from _come(coming)
            if finite:
                checks.append(check)
                yield check
            dead = int(dead_members(snapshot.outputs).sum())
            hopeless = job.stability.prune and snapshot.iteration < last and (dead > 0 or _unstable(checks, job))
            stopped = not finite or hopeless
            if stopped or snapshot.iteration in budgets:
                served = sorted(b for b in budgets if b == check.iteration or (stopped and b > check.iteration))
                # a budget that was reached on time is a result of its own, even where the fit stops at it
                late = {budget: stopped and (budget > check.iteration or not finite) for budget in served}
                now = (check, members, snapshot.outputs, dead, waited, late, _curve(checks))
                coming.append(aside.submit(_measure, job, work, device, method, *now))
            # metrics need the processor: only a fit elsewhere goes on meanwhile, with the seconds that it has alone
            yield from _come(coming, wait=device == "cpu")
            if stopped:
                break
        yield from _come(coming, wait=True)


def _come(coming: deque[Future[list[Measurement]]], *, wait: bool = False) -> Iterator[Measurement]:
    """The measurements that are there, in their order; all of them if it is waited for."""
    while coming and (wait or coming[0].done()):
        yield from coming.popleft().result()


def _measure(
    job: Job,
    work: Problem,
    device: str,
    method: Method,
    check: Check,
    members: NDArray[np.float32],
    outputs: NDArray[np.float32],
    dead: int,
    waited: float | None,
    late: dict[int, bool],
    curve: dict[str, list[object]],
) -> list[Measurement]:
    """What a fit gives where it is: the result of every budget, which it was stopped before or not."""
    values = _values(job, work.shape, check, members, outputs, work.tiles, device, method)
    values["dead_members"] = dead
    if waited is not None:
        values |= {"waited_percent": waited, "disturbed": waited > DISTURBED_PERCENT}
    output = members.mean(axis=0)
    return [Measurement(budget, values, output, curve, stopped) for budget, stopped in late.items()]


def _unstable(checks: list[Check], job: Job) -> bool:
    """Whether to stop: judged at regular checks only, so that it does not depend on the budgets asked for."""
    regular = [check for check in checks if check.iteration % job.options.check_every == 0]
    if not regular or regular[-1] is not checks[-1]:
        return False
    return stops_at([c.iteration for c in regular], [c.psnr_members for c in regular], job.stability) is not None


def _values(
    job: Job,
    shape: Geometry,
    check: Check,
    members: NDArray[np.float32],
    outputs: NDArray[np.float32],
    tiles: NDArray[np.float32],
    device: str,
    method: Method,
) -> dict[str, float | int | str]:
    values: dict[str, float | int | str] = {
        "seconds": check.seconds,
        "seconds_per_member": check.seconds / len(members),
        "parameters": shape.parameters,
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
    values |= {f"{name}_tiles": score for name, score in _over_tiles(outputs.mean(axis=0), tiles, whole).items()}
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
