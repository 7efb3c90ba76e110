"""Samplers by name, and the rule that nothing is measured twice.

`Unseen` stands between a study and any of Optuna's samplers: what the inner sampler proposes is moved to the nearest
listed values, and a setting that has a result or is being fitted is drawn again, then replaced by its nearest
unseen neighbour. Where the inner sampler has nothing to say (random search, start-up phases), the draw is uniform
over the unseen settings. A fit measures every budget of iterations that it passes, so a search that does not count
time asks for the largest budget of a fit.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from ddstudy.spec.axes import Axis, Setting, Space
from ddstudy.spec.options import OPTIONS
from ddstudy.spec.schema import StudySpec
from ddstudy.store.optuna_rows import ListedGP, distributions, latest_generation

if TYPE_CHECKING:
    from ddstudy.store.writer import StudyWriter

REDRAWS = 10  # of samplers that draw at random; more help little, the neighbour is as good
GP_START = 3  # fits before the GP decides; Optuna's 10 trials spend more on chance than the GP gains by them
LOOKS = 2000  # settings that a GP looks at, at most: more would take longer than they help
POPULATION = 20  # NSGA's; Optuna's 50 would make small studies all random


class SpaceExhaustedError(Exception):
    """Every setting has a result or is being fitted.

    Attributes:
        trial: that was asked for and is still RUNNING.
    """

    def __init__(self, trial: FrozenTrial) -> None:
        super().__init__("every setting has a result or is being fitted")
        self.trial = trial


def unseen(space: Space, seen: Container[Setting | None], busy: Container[str]) -> Iterator[Setting]:
    """The settings that have no result and whose fit is not among `busy`, in the order of the grid."""
    return (setting for setting in space if setting not in seen and setting.fit.id not in busy)


def running_fits(space: Space, trials: Iterable[FrozenTrial]) -> set[str]:
    """Identities of the fits that RUNNING trials have asked for."""
    settings = (space.setting(trial.params) for trial in trials if trial.state == TrialState.RUNNING)
    return {setting.fit.id for setting in settings if setting is not None}


def sampler(spec: StudySpec, trials_so_far: int = 0) -> BaseSampler:
    """The sampler that a study names.

    Args:
        spec: the study.
        trials_so_far: a continued study must not repeat its random numbers.
    """
    seed = int(np.random.SeedSequence([spec.search.seed, trials_so_far]).generate_state(1)[0])
    return Unseen(_inner(spec, seed), spec.search_space, seed, whole="seconds" not in spec.objectives)


def marks(study: StudyWriter) -> dict[str, Any]:
    """System attributes that a study's sampler wants on a result that it did not ask for, to take it as its own.

    Only genetic samplers want any, and to read all trials for them takes long.
    """
    own = study.study.sampler
    return own.marks(study.trials()) if study.spec.search.sampler.startswith("nsga") and isinstance(own, Unseen) else {}


class _AnyPruner(optuna.pruners.BasePruner):
    """Hides the class of a pruner: samplers that recognise Hyperband see the trials of one bracket only."""

    def __init__(self, inner: optuna.pruners.BasePruner) -> None:
        self._inner = inner

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        return self._inner.prune(study, trial)


def pruner(spec: StudySpec) -> optuna.pruners.BasePruner:
    """The pruner that a study names, in a class that no sampler treats apart."""
    return _AnyPruner(_named_pruner(spec))


def _named_pruner(spec: StudySpec) -> optuna.pruners.BasePruner:
    match spec.search.pruner:
        case "median":
            return optuna.pruners.MedianPruner()
        case "hyperband":
            steps = (spec.fit.check_every, spec.search_space["iterations"][-1])
            return optuna.pruners.HyperbandPruner(min_resource=steps[0], max_resource=max(steps))
        case "wilcoxon":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return optuna.pruners.WilcoxonPruner()
        case None:
            return optuna.pruners.NopPruner()


def _inner(spec: StudySpec, seed: int) -> BaseSampler:
    samplers = optuna.samplers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match spec.search.sampler:
            case "grid" | "random":  # a grid is enumerated by the runner and asks for nothing
                return samplers.RandomSampler(seed=seed)
            case "tpe":
                return samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=10)
            case "nsga2":
                return samplers.NSGAIISampler(seed=seed, population_size=POPULATION)
            case "nsga3":
                return samplers.NSGAIIISampler(seed=seed, population_size=POPULATION)
            case "gp":
                budgets = len(spec.values_of("iterations")) or 1
                return _KnowingGP(seed=seed, n_startup_trials=(GP_START - 1) * budgets + 1)
            case "qmc":
                return samplers.QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)


class _KnowingGP(ListedGP):
    """Optuna's GP over all that a study knows, deciding between the settings that may be proposed.

    It is asked about a copy of the study in memory, since of itself it would not see that tilings are ordered by their
    number of tiles, that unstable trials have values although they are PRUNED, and that a CV of 40 % is hardly worse
    than one of 20 %: its one constraint is the logarithm of CV over limit.
    """

    looks = LOOKS

    def propose(self, study: Study, trials: Iterable[FrozenTrial], space: Mapping[str, BaseDistribution]) -> Any:
        """Values of the most promising of the allowed settings; none while too few results are there."""
        counted: dict[str, BaseDistribution] = {**space}
        orders = {name: order for name in space if (order := OPTIONS[name].order)}
        for name, order in orders.items():
            counted[name] = IntDistribution(min(order.values()), max(order.values()), log=True)
        storage = optuna.storages.InMemoryStorage()
        copy = storage.create_new_study(study.directions, study.study_name)
        for trial in trials:
            values = _values(trial, study.metric_names)
            if values is None and trial.state != TrialState.RUNNING:
                continue
            state = TrialState.COMPLETE if values else TrialState.RUNNING
            params = {name: value for name, value in _numbers(trial.params).items() if name in counted}
            known = create_trial(
                state=state,
                values=values,
                params=params,
                distributions={name: counted[name] for name in params},
                constraints=_instability(trial) if values else None,
            )
            storage.create_new_trial(copy, known)
        twin = optuna.load_study(study_name=study.study_name, storage=storage)
        drawn = self.sample_relative(twin, storage.get_trial(storage.create_new_trial(copy)), counted)
        words = {name: {number: word for word, number in order.items()} for name, order in orders.items()}
        return {name: words[name][value] if name in words else value for name, value in drawn.items()}


def _numbers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters, words that have an order as numbers."""
    orders = {name: order for name in params if name in OPTIONS and (order := OPTIONS[name].order)}
    return {name: orders[name][value] if name in orders else value for name, value in params.items()}


def _values(trial: FrozenTrial, metrics: Sequence[str] | None) -> list[float] | None:
    """What a trial measured of the objectives, whether it was stable or not."""
    if trial.state == TrialState.COMPLETE:
        return list(trial.values)
    measured = [trial.user_attrs.get(metric) for metric in metrics or ()]
    return [float(value) for value in measured if value is not None] if measured and None not in measured else None


def _instability(trial: FrozenTrial) -> dict[str, float] | None:
    """The logarithm of the CV, or of the spread, over its limit; above 0 also where another limit is broken."""
    beyond = trial.constraints
    if not beyond:
        return None
    name = "spread_percent" if "spread_percent" in beyond else "cv_percent"
    percent = trial.user_attrs.get(name, math.nan)
    limit = percent - beyond.get(name, math.nan)
    ratio = math.log(percent / limit) if percent > 0 and limit > 0 else max(beyond.values())
    return {"instability": max(ratio, 1e-3) if max(beyond.values()) > 0 else ratio}


class Unseen(BaseSampler):
    """Proposes only settings that are neither measured nor being fitted.

    Args:
        inner: the sampler that proposes.
        space: the listed values.
        seed: of the uniform draws and ties.
        whole: propose the largest budget of a fit only.

    Attributes:
        busy: identities of fits that must not be proposed now, beside those of RUNNING trials.
    """

    def __init__(self, inner: BaseSampler, space: Space, seed: int, *, whole: bool = False) -> None:
        self.busy: Collection[str] = ()
        self._inner = inner
        self._space = space
        self._whole = whole
        self._rng = np.random.default_rng(seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The whole space, always."""
        return {name: axis for name, axis in distributions(self._space).items() if not axis.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """An unseen setting.

        Raises:
            SpaceExhaustedError: there is none.
        """
        trials = study.get_trials(deepcopy=False)
        seen = {self._space.setting(trial.params) for trial in trials if trial.state != TrialState.FAIL}
        free = list(unseen(self._space, seen, {*self.busy, *running_fits(self._space, trials)}))
        if not free:
            raise SpaceExhaustedError(trial)
        # of the settings of a fit the last has the most iterations
        largest = {setting.fit: setting for setting in sorted(free, key=lambda setting: setting.budget)}
        if isinstance(self._inner, _KnowingGP):
            # of whole fits, too, it judges every budget: the best one is seldom the largest
            self._inner.candidates = [_numbers(self._space.params(setting)) for setting in free]
        if self._whole:
            free = list(largest.values())
        allowed = set(free)
        proposal = None
        for _ in range(REDRAWS):
            proposal = self._propose(study, trial, search_space)
            if proposal is not None and self._whole:
                proposal = largest.get(proposal.fit, proposal)
            if proposal is None or proposal in allowed:
                break
        if proposal is None:
            chosen = free[self._rng.integers(len(free))]
        else:
            chosen = proposal if proposal in allowed else self._nearest(proposal, free)
        params = self._space.params(chosen)
        return {name: params[name] for name in search_space}

    def marks(self, trials: Sequence[FrozenTrial]) -> dict[str, Any]:
        """System attributes for a result that was not asked for, so that the inner sampler takes it as its own."""
        return latest_generation(self._inner, trials)

    def _propose(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> Setting | None:
        """What the inner sampler wants, on listed values; None where it has no opinion."""
        if isinstance(self._inner, optuna.samplers.QMCSampler):
            # a sequence that fills the space evenly must fill the list evenly, whatever the values' spacing
            indices: dict[str, BaseDistribution] = {
                name: IntDistribution(0, len(self._space[name]) - 1) for name in search_space
            }
            drawn = self._inner.sample_relative(study, trial, indices)
            values = {name: self._space[name][int(index)] for name, index in drawn.items()}
        else:
            if isinstance(self._inner, _KnowingGP):
                drawn = self._inner.propose(study, study.get_trials(deepcopy=False), search_space)
            else:
                drawn = self._inner.sample_relative(study, trial, search_space)
            axes = {axis.name: axis for axis in self._space.axes}
            values = {name: self._snap(axes[name], value) for name, value in drawn.items()}
        if not values:
            return None
        for axis in self._space.axes:  # with one value, and those that a genetic sampler mutates
            values.setdefault(axis.name, axis.values[self._rng.integers(len(axis.values))])
        return self._space.setting(values)

    def _snap(self, axis: Axis, value: Any) -> Any:
        if not axis.is_ordered:
            return value
        numbers = [float(listed) for listed in axis.values]
        if numbers[0] > 0:
            steps = [abs(math.log(listed / value)) for listed in numbers]
        else:
            steps = [abs(listed - value) for listed in numbers]
        return axis.values[steps.index(min(steps))]

    def _nearest(self, wanted: Setting, free: list[Setting]) -> Setting:
        """The unseen setting with the fewest steps along the listed values, of the same prior if one is left.

        Another word counts one.
        """

        def steps(setting: Setting) -> tuple[bool, float]:
            # of a union most combinations of its axes are no setting: those of few lists must not draw all proposals
            return setting.get("prior.kind") != wanted.get("prior.kind"), sum(
                abs(axis.values.index(setting[axis.name]) - axis.values.index(wanted[axis.name]))
                if axis.is_ordered and axis.name in setting and axis.name in wanted
                else float(setting.get(axis.name) != wanted.get(axis.name))
                for axis in self._space.axes
            )

        shuffled: list[Setting] = [free[int(index)] for index in self._rng.permutation(len(free))]
        return min(shuffled, key=steps)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Only for axes with a single value, which need no choice."""
        return self._space[param_name][0]

    def reseed_rng(self) -> None:
        """Passed on."""
        self._inner.reseed_rng()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Passed on."""
        self._inner.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Passed on."""
        self._inner.after_trial(study, trial, state, values)
