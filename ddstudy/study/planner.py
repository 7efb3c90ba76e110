"""The plan: which fits a study takes, what each is, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass

from ddstudy.errors import UserError
from ddstudy.images.metrics import METRICS
from ddstudy.images.volumes import Target, Targets
from ddstudy.solvers.fused import kernels_for, memory
from ddstudy.spec.axes import Fit, Setting, budgets_by_fit
from ddstudy.spec.options import tiles
from ddstudy.spec.schema import StudySpec
from ddstudy.study.evaluate import Job, prior_of
from ddstudy.study.stability import StopRule
from ddstudy.tasks.cases import Case, case_of


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        settings: all settings of the study, or how many a search will try.
        fits: fits that serve them; for a search the most it can need.
        done: settings that have a result already.
        todo: fits of a grid that are still to do, with their budgets; the longest first. Empty for a search.
    """

    settings: int
    fits: int
    done: int
    todo: dict[Fit, tuple[int, ...]]


def plan(spec: StudySpec, target: Target | Targets, done: set[Setting], reused: int = 0) -> Plan:
    """Plans a study.

    Args:
        spec: the study.
        target: its image.
        done: settings that have a result.
        reused: of these, imported from other studies; a search tries its own number beside them.

    Raises:
        UserError: an objective cannot be measured on a target of this size, or a target not as the task says.
    """
    for fit in budgets_by_fit(spec.search_space):
        case_of(spec, target, fit)
    for height, width in {image.shape[-2:] for image in target.all}:
        for metric in (METRICS[name] for name in spec.objectives):
            if not metric.measurable(height, width):
                raise UserError(
                    f"objective {metric.name}: cannot be measured on a target of {height}x{width}",
                    f"Use a larger target ({metric.label} needs {metric.side} pixels), or another objective.",
                )
    space = spec.search_space
    settings = list(space)
    if spec.search.sampler != "grid":
        trials = min(spec.trials + reused, len(settings))
        return Plan(trials, min(trials - reused, len(budgets_by_fit(settings))), len(done), {})
    settings = settings[: spec.trials]
    done = done & set(settings)
    wanted = budgets_by_fit(settings)
    missing = budgets_by_fit(setting for setting in settings if setting not in done)
    order = sorted(missing, key=lambda fit: -cost(spec, fit, target) * max(missing[fit]))
    return Plan(spec.trials, len(wanted), len(done), {fit: missing[fit] for fit in order})


def operations(fit: Fit, case: Case) -> float:
    """Cost of one iteration of one member in floating-point operations, roughly; forecasts scale with it."""
    return float(tiles(fit["tiling"]) * prior_of(fit, case.measurement).cost)


def cost(spec: StudySpec, fit: Fit, target: Target | Targets) -> float:
    """Cost of one iteration of all members of a fit of a study, in `operations` of as many as its file names."""
    return operations(fit, case_of(spec, target, fit)) * spec.at(fit).fit.members / spec.fit.members


def bytes_of_largest_fit(spec: StudySpec, target: Target | Targets, device: str = "cpu") -> int:
    """Memory of the largest fit of a study: on the processor, all members in threads of their own, or on a GPU."""

    def size(fit: Fit) -> int:
        prior = prior_of(fit, case_of(spec, target, fit).measurement)
        return prior.k * sum(h * w for h, w in prior.sizes) * tiles(fit["tiling"]) * spec.at(fit).fit.members

    largest = max(budgets_by_fit(spec.search_space), key=size)
    work = job(spec, target, largest, ())
    members, measurement = work.options.members, work.case.measurement
    prior, kernels, samples = prior_of(largest, measurement), kernels_for(device), measurement.operated
    return memory(prior, tiles(largest["tiling"]), members, members, kernels, config=work.config, samples=samples)


def job(spec: StudySpec, target: Target | Targets, fit: Fit, budgets: tuple[int, ...]) -> Job:
    """The job of one fit.

    Raises:
        UserError: the target cannot be measured as the study's task says.
    """
    at, table = spec.at(fit), spec.stability
    percent = table.cv_percent if spec.score == "psnr" else table.spread_percent
    rule = StopRule(percent, table.stop, table.warmup, table.window, table.patience) if table.prune else None
    timed = "seconds" in spec.objectives
    return Job(fit, budgets, case_of(spec, target, fit), at.fit, at.noise, rule, timed)
