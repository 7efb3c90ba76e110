"""The plan: which fits a study takes, what each is, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ddstudy.errors import UserError
from ddstudy.images.metrics import METRICS
from ddstudy.images.volumes import Target, Targets
from ddstudy.priors.base import Prior
from ddstudy.priors.deep_decoder import DeepDecoder
from ddstudy.priors.handcrafted import Handcrafted
from ddstudy.solvers.fused import kernels_for, memory
from ddstudy.spec.axes import Fit, Setting, budgets_by_fit
from ddstudy.spec.options import PriorSpec, tiles
from ddstudy.spec.schema import CASE, StudySpec, fit_on, setting_of
from ddstudy.study.evaluate import Job, NetworkSlices, prior_of
from ddstudy.study.stability import StopRule
from ddstudy.tasks.cases import Case, case_of


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        settings: all settings of the study, or how many a search will try.
        fits: fits that serve them, of slices that are fitted with their neighbours as one; for a search the most it can
            need.
        done: settings that have a result already.
        todo: fits of a grid that are still to do, with their budgets; the longest first. Empty for a search.
        is_search: settings are chosen on the way.
    """

    settings: int
    fits: int
    done: int
    todo: dict[Fit, tuple[int, ...]]
    is_search: bool = False


def plan(
    spec: StudySpec,
    target: Target | Targets,
    done: set[Setting],
    reused: int = 0,
    *,
    over: StudySpec | None = None,
    wanted: Collection[Setting] | None = None,
) -> Plan:
    """Plans a study.

    Args:
        spec: the study; of one with cases, its study of cases.
        target: its image.
        done: settings that have a result.
        reused: of these, imported from other studies; a search tries its own number beside them.
        over: the study whose cases these are.
        wanted: what is to be measured, as if it were a grid; by default all but what is on held-out cases.

    Raises:
        UserError: an objective cannot be measured on a target of this size, a target not as the task says, or a prior
            cannot make an image of its size.
    """
    for fit in budgets_by_fit(spec.search_space):
        model_of(spec, fit, target)
    for height, width in {image.shape[-2:] for image in target.all}:
        for metric in (METRICS[name] for name in spec.objectives):
            if not metric.measurable(height, width):
                raise UserError(
                    f"objective {metric.name}: cannot be measured on a target of {height}x{width}",
                    f"Use a larger target ({metric.label} needs {metric.side} pixels), or another objective.",
                )
    asked, cases = over or spec, len(spec.cases.chosen_by) if over else 1
    space = asked.search_space
    settings = list(space)
    if asked.search.sampler != "grid" and wanted is None:
        trials = min(asked.trials + reused // cases, len(settings))
        fits = min(trials - reused // cases, len(budgets_by_fit(settings)))
        return Plan(trials * cases, fits * cases, len(done), {}, is_search=True)
    settings = settings[: asked.trials]
    if wanted is not None:
        settings = [setting for setting in spec.search_space if setting in wanted]
    elif over:
        chosen, listed = set(settings), set(spec.cases.chosen_by)
        settings = [each for each in spec.search_space if each[CASE] in listed and setting_of(each) in chosen]
    done = done & set(settings)
    missing = budgets_by_fit(spec.root(each.fit).at(each.budget) for each in settings if each not in done)
    order = sorted(missing, key=lambda fit: -cost(spec, fit, target) * iterations_of(spec, fit, missing[fit]))
    count = len({spec.root(fit) for fit in budgets_by_fit(settings)})
    return Plan(len(settings), count, len(done), {fit: missing[fit] for fit in order})


def model_of(spec: StudySpec, fit: Fit, target: Target | Targets) -> Prior | Handcrafted:
    """The prior of one tile of a fit of a study.

    Raises:
        UserError: the target cannot be measured as the study's task says, or the prior cannot make a tile of its size.
    """
    return prior_of(fit, case_of(spec, target, fit).measurement, spec.at(fit).prior, _width(spec, fit))


def _width(spec: StudySpec, fit: Fit) -> int:
    """Slices that share the network of a fit."""
    return len(spec.networks(fit)[0].cases)


def operations(fit: Fit, case: Case, table: PriorSpec | None = None, slices: int = 1) -> float:
    """Cost of one iteration of one member in floating-point operations, roughly; forecasts scale with it.

    Args:
        fit: which.
        case: it is of.
        table: the prior at this fit; the thesis' Deep Decoder when not given.
        slices: that share the network; the cost is of one.
    """
    return float(tiles(fit.tiling) * prior_of(fit, case.measurement, table or PriorSpec(), slices).cost) / slices


def iterations_of(spec: StudySpec, fit: Fit, budgets: Sequence[int]) -> int:
    """Iterations of a fit up to some budgets; of slices that are fitted with their neighbours, of all of them."""
    onwards = spec.at(fit).fit.start_iterations
    # from random weights a fit passes the smaller budgets on its way, from a neighbour's it begins anew for each
    firsts, others = max(budgets, default=0), sum(onwards or budget for budget in budgets)
    return sum(len(each.cases) * (firsts if each.after is None else others) for each in spec.networks(fit))


def cost(spec: StudySpec, fit: Fit, target: Target | Targets) -> float:
    """Cost of one iteration of all members of a fit of a study, in `operations` of as many as its file names."""
    at = spec.at(fit)
    one = operations(fit, case_of(spec, target, fit), at.prior, _width(spec, fit))
    return one * at.fit.members / spec.fit.members


def speed_of(spec: StudySpec, fit: Fit) -> str:
    """What fits of a study have in common that compute as many operations a second, about: prior, engine, line search.

    Compiled kernels, torch's convolutions and its sines are different matters.
    """
    at = spec.at(fit)
    return " ".join([at.prior.kind, at.fit.engine, *["lbfgs"] * (at.fit.optimiser == "lbfgs")])


def bytes_of_largest_fit(spec: StudySpec, target: Target | Targets, device: str = "cpu") -> float:
    """Memory of the largest fit of a study: on the processor, all members in threads of their own, or on a GPU.

    Infinite where a prior is not a Deep Decoder: the memory of their fits was never measured.
    """
    models = {fit: model_of(spec, fit, target) for fit in budgets_by_fit(spec.search_space)}
    decoders = {fit: model for fit, model in models.items() if isinstance(model, DeepDecoder)}
    if len(decoders) < sum(not isinstance(model, Handcrafted) for model in models.values()):
        return math.inf

    def size(fit: Fit) -> int:
        prior = decoders[fit]
        return prior.k * sum(h * w for h, w in prior.sizes) * tiles(fit.tiling) * spec.at(fit).fit.members

    if not decoders:
        return 0
    largest = max(decoders, key=size)
    work = job(spec, target, largest, ())
    members, samples = work.options.members, work.width * work.case.measurement.operated
    kernels = kernels_for(device)
    prior, count = decoders[largest], tiles(largest.tiling)
    return memory(prior, count, members, members, kernels, config=work.config, samples=samples)


def job(
    spec: StudySpec,
    target: Target | Targets,
    fit: Fit,
    budgets: tuple[int, ...],
    done: Collection[Setting] = (),
) -> Job:
    """The job of one fit, and of those that are done in one go with it.

    Args:
        spec: the study.
        target: its image, or images.
        fit: which.
        budgets: iterations to measure at, ascending.
        done: settings that have a result: slices that are fitted with their neighbours are left out where all settings
            are done, unless others start from their weights.

    Raises:
        UserError: the target cannot be measured as the study's task says.
    """
    at, table = spec.at(fit), spec.stability
    percent = table.cv_percent if spec.score == "psnr" else table.spread_percent
    rule = StopRule(percent, table.stop, table.warmup, table.window, table.patience) if table.prune else None
    timed = "seconds" in spec.objectives
    networks = _slices(spec, target, fit, budgets, done)
    case = next(iter(networks[0].cases.values())) if networks else case_of(spec, target, fit)
    return Job(fit, budgets, case, at.fit, at.noise, rule, timed, prior=at.prior, networks=networks)


def _slices(
    spec: StudySpec, target: Target | Targets, fit: Fit, budgets: tuple[int, ...], done: Collection[Setting]
) -> tuple[NetworkSlices, ...]:
    """The networks of a job of several slices; none where a fit is done alone."""
    networks = spec.networks(fit)
    if len(networks) == len(networks[0].cases) == 1:
        return ()
    needed = set[int | None]()
    for place in reversed(range(len(networks))):  # those from whose weights others start come first
        missing = (fit_on(fit, case).at(b) not in done for case in networks[place].cases for b in budgets)
        if place in needed or not budgets or any(missing):
            needed |= {place, networks[place].after}
    kept = [place for place in range(len(networks)) if place in needed]
    return tuple(
        NetworkSlices(
            {case: case_of(spec, target, fit_on(fit, case)) for case in networks[place].cases},
            None if (after := networks[place].after) is None else kept.index(after),
        )
        for place in kept
    )
