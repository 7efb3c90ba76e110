"""The study file: what it may say, and its defaults; one strict model per table.

Everything that changes a result is part of the fingerprint; how long a search runs and where it runs are not, so the
same study can be continued with more trials or on other hardware. Two numbers say what changed between versions, and
are raised by whoever changes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    create_model,
    field_validator,
    model_serializer,
    model_validator,
)

from ddstudy.images.metrics import METRICS, QUALITY, Direction
from ddstudy.spec.axes import Axis, Fit, Setting, Space, may_apply
from ddstudy.spec.cases import CasesSpec, Network, check_neighbours, networks
from ddstudy.spec.options import (
    FUSED,
    HANDCRAFTED,
    MODEL,
    OPTIONS,
    THESIS,
    TRAINED,
    FitSpec,
    JudgeSpec,
    NoiseSpec,
    Option,
    PriorSpec,
    TargetSpec,
    TaskSpec,
    Value,
)

Sampler = Literal["grid", "random", "tpe", "nsga2", "nsga3", "gp", "qmc"]
Pruner = Literal["median", "hyperband", "wilcoxon"]
if TYPE_CHECKING:
    MetricName = str
else:
    MetricName = Literal[tuple(METRICS)]  # a type checker wants to read a Literal's values here

# Raise it where the same study file gives other numbers, by more than devices differ: 2 since a6b599d, before it 1.
NUMERICS = 2
CASE = "cases.case"  # the axis of a study of cases
OF_CASES = ".cases"  # ends the name of the study that holds each setting on each case
# Raise it where a key of a study file changes its name, its meaning or its default, with a function in _MIGRATIONS.
SCHEMA = 1


class _Lists(BaseModel):
    """`[space]`: the values of each option that is searched (thesis Table 3.1)."""

    model_config = MODEL

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, tree: Any) -> Any:
        """TOML reads `fit.learning_rate` as a table `fit`, `"fit.learning_rate"` as a key."""
        return dict(flatten(tree)) if isinstance(tree, dict) else tree

    @field_validator("*")
    @classmethod
    def _no_repeats(cls, value: list[Any] | None) -> list[Any] | None:
        if value and not isinstance(value[0], BaseModel) and len(set(value)) != len(value):
            raise ValueError("must not name a value twice")
        return value

    @model_serializer(mode="wrap")
    def _axes_only(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {axis: values for axis, values in handler(self).items() if values is not None}


class _PartLists(_Lists):
    """One of `[[space.prior]]`: lists that hold for some priors, in place of those of `[space]`."""

    @model_validator(mode="before")
    @classmethod
    def _short_names(cls, tree: Any) -> Any:
        """Options of the prior are named without their table here: `kind`, which may be one word, `strength`."""
        if not isinstance(tree, dict):
            return tree
        named = {f"prior.{key}" if key in PriorSpec.model_fields else key: value for key, value in flatten(tree)}
        if isinstance(kind := named.get("prior.kind"), str):
            named["prior.kind"] = [kind]
        return named


def _field_of_list(option: Option) -> Any:
    annotation: Any = list[option.annotation] | None  # type: ignore[name-defined]
    default: Any = None
    if option.is_of_thesis:
        default = ... if option.default is None else [option.default]
    return annotation, Field(default, min_length=1, description=option.description)


def _field_of_part(option: Option) -> Any:
    annotation, field = _field_of_list(option)
    default = ... if option.path == "prior.kind" else None
    return annotation, Field(default, min_length=1, description=field.description)


if TYPE_CHECKING:
    SpaceSpec = _Lists
else:
    parts = {path: _field_of_part(option) for path, option in OPTIONS.items()}
    PartSpec = create_model("PartSpec", __base__=_PartLists, __doc__=_PartLists.__doc__, **parts)
    lists = {path: _field_of_list(option) for path, option in OPTIONS.items()}
    lists["prior"] = (
        list[PartSpec] | None,
        Field(None, min_length=1, description="lists that hold for some priors only: [[space.prior]] tables with kind"),
    )
    SpaceSpec = create_model("SpaceSpec", __base__=_Lists, __doc__=_Lists.__doc__, **lists)


class StabilitySpec(BaseModel):
    """`[stability]`: the filter of sec. 4.3 and the rule that stops an unstable fit early."""

    model_config = MODEL

    prune: bool = Field(True, description="stop unstable fits early and mark unstable settings PRUNED")
    cv_percent: Annotated[float, Field(gt=0)] = Field(5.0, description="stable means CV of the members' PSNR <= this")
    min_psnr: float = Field(15.0, description="stable means PSNR >= this, in dB")
    max_vif: Annotated[float, Field(gt=0)] = Field(1.0, description="stable means VIF <= this")
    spread_percent: Annotated[float, Field(gt=0)] = Field(
        20.0,
        description="where the judge is not the truth, stable means that the spread of the members' outputs <= this:"
        " the root mean square of their standard deviation relative to that of their mean",
    )
    stop: Annotated[float, Field(ge=1)] = Field(
        1.5, description="unstable checks begin above this multiple of cv_percent, and end at cv_percent"
    )
    warmup: Annotated[int, Field(ge=0)] = Field(300, description="iterations before a fit may be stopped")
    window: Annotated[int, Field(ge=1)] = Field(3, description="checks in the median that hides passing spikes")
    patience: Annotated[int, Field(ge=1)] = Field(5, description="unstable checks in a row that stop a fit")


class SearchSpec(BaseModel):
    """`[search]`: which settings are tried, in which order, for how long."""

    model_config = MODEL

    sampler: Sampler = Field("grid", description="grid, random, tpe, nsga2, nsga3, gp or qmc")
    trials: Annotated[int, Field(ge=1)] | None = Field(
        None, description="settings to try; empty: the whole grid, or 100 for a search"
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="of the sampler")
    pruner: Pruner | None = Field(
        None, description="Optuna's pruner, over the members' mean PSNR at the checks: median, hyperband or wilcoxon"
    )


class ExecutorSpec(BaseModel):
    """`[executor]`: where fits run; no part of what a study is."""

    model_config = MODEL

    kind: Literal["process", "ray"] = Field("process", description="in the process that runs the study, or on Ray")
    address: str | None = Field(
        None, description="of a Ray cluster: local, auto or HOST:PORT; empty: RAY_ADDRESS, else local"
    )
    gpus_per_fit: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="share of a GPU that a fit gets on Ray")
    mix: bool = Field(False, description="on Ray, fit on GPUs and on processors of nodes without any")
    fallback: Literal["none", "processor"] = Field(
        "none", description="where the last try of a fit is that failed on a GPU: there again, or on the processor"
    )


class StudySpec(BaseModel):
    """One study: the whole file."""

    model_config = MODEL

    name: str = Field(
        ...,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="name in the store: letters, digits, '.', '_' and '-'",
    )
    description: str = Field("", description="one sentence for people")
    images: bool = Field(True, description="keep target, output and error map of every trial")
    target: TargetSpec = TargetSpec()
    cases: CasesSpec = CasesSpec()
    task: TaskSpec = TaskSpec()
    judge: JudgeSpec = JudgeSpec()
    prior: PriorSpec = PriorSpec()
    space: SpaceSpec
    noise: NoiseSpec = NoiseSpec()
    fit: FitSpec = FitSpec()
    objectives: dict[MetricName, Direction] = Field(
        {"psnr": "maximize"}, min_length=1, description="metric = direction [judge where the truth is not the judge]"
    )
    stability: StabilitySpec = StabilitySpec()
    search: SearchSpec = SearchSpec()
    executor: ExecutorSpec = ExecutorSpec()

    @model_validator(mode="before")
    @classmethod
    def _objective_of_judge(cls, tree: Any) -> Any:
        """What a study is about where its judge is not the truth and its file does not say."""
        judge = tree.get("judge") if isinstance(tree, dict) else None
        against = judge.get("against") if isinstance(judge, dict) else getattr(judge, "against", None)
        if against in ("repeat", "held_out") and "objectives" not in tree:
            return {**tree, "objectives": {"judge": "maximize"}}
        return tree

    @model_validator(mode="before")
    @classmethod
    def _lists_of_priors(cls, tree: Any) -> Any:
        """Lists of the thesis' options may be left out where no prior has them, or where each prior has its own."""
        space = tree.get("space") if isinstance(tree, dict) else None
        if not isinstance(space, dict):
            return tree
        flat = dict(flatten(space))
        parts = [part for part in _sequence(flat.get("prior")) if isinstance(part, dict)]
        prior = tree.get("prior")
        kinds = _sequence(flat.get("prior.kind", prior.get("kind") if isinstance(prior, dict) else None))
        of_parts = [(_sequence(part.get("kind", part.get("prior.kind"))), part) for part in parts]
        wanting = of_parts or [(kinds or ["deep_decoder"], {})]
        for path in THESIS:
            have = OPTIONS[path].needs[1]  # type: ignore[index]  # each needs some prior
            missing = [part for of, part in wanting if path not in part and any(kind in have for kind in of)]
            if path not in flat and not missing:
                flat[path] = None
        return {**tree, "space": flat}

    @property
    def knows_truth(self) -> bool:
        """Whether the image that is looked for is known, as in simulations."""
        return self.task.source == "simulated"

    @property
    def is_task(self) -> bool:
        """Whether an image is reconstructed from a measurement, and not copied, as in the thesis."""
        return self.values_of("task.kind") != ("represent",)

    @property
    def trains(self) -> bool:
        """Whether any prior here has weights: members, iterations, stability."""
        return any(kind in TRAINED for kind in self.values_of("prior.kind"))

    @property
    def score(self) -> Literal["psnr", "judge"]:
        """The metric that the judge measures: of objectives, of the members at checks, of what pruners compare."""
        return "psnr" if self.judge.against == "truth" else "judge"

    @property
    def quality(self) -> Literal["psnr", "judge"]:
        """The metric by which people compare reconstructions: PSNR, or the judge's score where no truth is known."""
        return "psnr" if self.knows_truth else "judge"

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> Self:
        self._check_task()
        self._check_cases()
        if self.is_linked:
            self._check_neighbours()
        if "cv_percent" in self.objectives and 1 in self.values_of("fit.members"):
            raise ValueError("objectives.cv_percent needs fit.members of at least 2")
        for axis in self.search_space.axes:
            if axis.option.needs and not any(axis.name in setting for setting in self.search_space):
                raise ValueError(f"space.{_for_only(axis.name)}")
        self._check_priors(judged=(info.context or {}).get("judged", True))
        if self.search.pruner and self.search.sampler == "grid":
            raise ValueError("search.pruner needs a search, since a grid measures every setting")
        if self.search.pruner and self.objectives not in ({"psnr": "maximize"}, {"judge": "maximize"}):
            raise ValueError("search.pruner needs psnr or judge = 'maximize' as the only objective, which it compares")
        if self.search.pruner and "psnr" in self.objectives and self.judge.against != "truth":
            raise ValueError("search.pruner compares what the judge says: objectives must be judge = 'maximize'")
        if "seconds" in self.objectives and self.executor.gpus_per_fit < 1:
            raise ValueError("executor.gpus_per_fit must be 1 where seconds are an objective: fits on a GPU share time")
        if "seconds" in self.objectives and self.executor.mix:
            raise ValueError("executor.mix must be false where seconds are an objective, which devices differ in")
        if self.executor.fallback != "none" and "seconds" in self.objectives:
            raise ValueError("executor.fallback must be 'none' where seconds are an objective, which devices differ in")
        if self.executor.fallback != "none" and "bfloat16" in self.values_of("fit.precision"):
            raise ValueError("executor.fallback must be 'none' where fit.precision is bfloat16, which is for CUDA GPUs")
        return self

    def _check_cases(self) -> None:
        cases, listed = self.cases, self.search_space.names
        own = {path for case in cases.by_name.values() for path in case.own}
        if twice := [path for path in sorted(own) if path in listed]:
            raise ValueError(f"space.{twice[0]}: is what cases differ in; name its values in one of the two")
        if unknown := [name for name in self.values_of(CASE) if name and name not in cases.by_name]:
            raise ValueError(f"space.{CASE}: there is no case '{unknown[0]}'")
        of_tasks = own & {"task.seed", "task.sigma"}
        if of_tasks and "represent" in self.values_of("task.kind"):
            raise ValueError("cases: seeds and noise levels need a task other than 'represent', which has no noise")
        if cases.by_name and len(self.name) > 100 - len(OF_CASES):
            raise ValueError(f"name: a study of cases has up to {100 - len(OF_CASES)} letters")
        if cases.by_name and self.search.pruner not in (None, "wilcoxon"):
            raise ValueError("search.pruner over cases is 'wilcoxon', which compares settings case by case")
        if cases.by_name and self.search.pruner and cases.objective != "mean":
            raise ValueError("search.pruner compares means over cases: cases.objective must be 'mean'")

    def _check_neighbours(self) -> None:
        check_neighbours(self.cases, [int(each) for each in self.values_of("fit.joint")])
        if CASE in self.search_space.names and self.search.sampler != "grid":
            raise ValueError(f"fit.start and fit.joint: {CASE} cannot be searched")
        if "neighbour" not in self.values_of("fit.start") and self.fit.start_iterations:
            raise ValueError("fit.start_iterations is for fit.start = 'neighbour' only")

    def _check_priors(self, *, judged: bool) -> None:
        kinds = self.values_of("prior.kind")
        for part, lists in zip(self._parts, self.search_space.parts, strict=False):
            if away := [path for path in part if path not in lists]:
                raise ValueError(f"space.prior: {_for_only(away[0])}")
        if away := [path for path in OPTIONS if self._is_unused(path)]:
            raise ValueError(f"space.{_for_only(away[0])}")
        for option, value in (("engine", "fused"), ("precision", "bfloat16")):
            others = [kind for kind in kinds if kind in TRAINED and kind not in FUSED]
            if others and value in self.values_of(f"fit.{option}"):
                raise ValueError(
                    f"fit.{option} = '{value}' is for prior.kind = {' or '.join(map(repr, FUSED))} only, "
                    f"not {' or '.join(map(repr, others))}"
                )
        faster = {"fused", "bfloat16"} & {*self.values_of("fit.engine"), *self.values_of("fit.precision")}
        if faster and "lbfgs" in self.values_of("fit.optimiser"):
            raise ValueError("fit.optimiser = 'lbfgs' is for fit.engine = 'auto' or 'reference' in float32 only")
        handcrafted = [kind for kind in kinds if kind in HANDCRAFTED]
        if not handcrafted:
            return
        unserved = [kind for kind in self.values_of("task.kind") if kind not in ("represent", "denoise")]
        if unserved:
            raise ValueError(
                f"prior.kind = '{handcrafted[0]}' is for task.kind = 'represent' or 'denoise' only, whose measurements "
                f"are whole images, not '{unserved[0]}'"
            )
        if self.holds_out and judged:
            raise ValueError(
                f"prior.kind = '{handcrafted[0]}' takes whole images: nothing can be held out by judge.against or "
                "fit.stop"
            )
        if self.search.pruner:
            raise ValueError(f"search.pruner compares fits on their way, and prior.kind = '{handcrafted[0]}' has none")

    def _is_unused(self, path: str) -> bool:
        """Whether `[space]` lists values of an option that no part of a union takes."""
        listed = getattr(self.space, path) is not None and OPTIONS[path].default is None
        return listed and path not in self.search_space.names

    @property
    def holds_out(self) -> bool:
        """Whether samples are kept from the loss."""
        return self.judge.against == "held_out" or "held_out" in self.values_of("fit.stop")

    def _check_task(self) -> None:
        task, kinds, against = self.task, set(self.values_of("task.kind")), self.judge.against
        measures = kinds - {"represent"}
        if against != "truth" and "represent" in kinds:
            raise ValueError(f"judge.against = '{against}' needs a task other than 'represent'")
        if task.source == "file":
            if "represent" in kinds:
                raise ValueError("task.source = 'file' needs a task other than 'represent'")
            if against == "truth":
                raise ValueError(
                    "judge.against must be repeat or held_out where task.source is 'file': no truth is known"
                )
            if "inpaint" in kinds and task.mask is None:
                raise ValueError("task.mask must say which pixels of the file were measured")
            if len(kinds) > 1:
                raise ValueError("task.kind can have one value where task.source is 'file'")
        elif kinds == {"denoise"} and 0 in self.values_of("task.sigma"):
            raise ValueError("task.sigma must be above 0 for 'denoise'")
        if task.maps is not None and measures != {"mri"}:
            raise ValueError("task.maps is for task.kind = 'mri' only")
        if task.mask is not None and measures != {"inpaint"}:
            raise ValueError("task.mask is for task.kind = 'inpaint' only")
        named = self.judge.file is not None or self.judge.volume is not None
        if against == "repeat" and named == (task.source == "simulated"):
            raise ValueError(
                "judge.file and judge.volume are of measured files: a simulated one is repeated with new noise"
                if named
                else "judge.against = 'repeat' needs judge.volume or judge.file"
            )
        if against == "repeat" and kinds != {"denoise"}:
            raise ValueError("judge.against = 'repeat' is for task.kind = 'denoise', whose measurements are images")
        unknown = [metric for metric in self.objectives if metric in QUALITY]
        if not self.knows_truth and unknown:
            raise ValueError(f"objectives.{unknown[0]} needs the truth, which is not known here; judge is measured")
        rules = set(self.values_of("fit.stop"))
        if "discrepancy" in rules and 0 in self.values_of("task.sigma"):
            raise ValueError("fit.stop = 'discrepancy' needs task.sigma, the noise level, above 0")
        if "wmv" in rules and any(int(every) > 50 for every in self.values_of("fit.check_every")):
            raise ValueError(
                "fit.stop = 'wmv' compares outputs of the last 100 iterations: fit.check_every must be <= 50"
            )
        if "judge" in self.objectives and "represent" in kinds:
            raise ValueError("objectives.judge needs a task other than 'represent', where psnr is the judge's score")
        if rules - {"budget"} and "represent" in kinds:
            raise ValueError("fit.stop needs a task other than 'represent', where more iterations are never worse")

    @cached_property
    def search_space(self) -> Space:
        """What is searched."""
        base = {path: self._base(path) for path in OPTIONS if "." in path}
        parts = [self._lists_of_part(part, base) for part in self._parts] or [self._own_lists]
        axes = []
        for path, option in OPTIONS.items():
            values = dict.fromkeys(value for part in parts for value in part.get(path, ()))
            if values:
                axes.append(Axis(option, _listed(values)))
        searched = {axis.name for axis in axes}
        left = {path: value for path, value in base.items() if path not in searched}
        return Space(tuple(axes), left, tuple(parts) if self._parts else ())

    @property
    def _own_lists(self) -> dict[str, tuple[Value, ...]]:
        """Those of `[space]` itself."""
        return {path: tuple(values) for path in OPTIONS if (values := getattr(self.space, path)) is not None}

    @property
    def _parts(self) -> list[dict[str, tuple[Value, ...]]]:
        """The lists of each `[[space.prior]]`."""
        tables = getattr(self.space, "prior", None) or ()
        return [
            {path: tuple(values) for path in OPTIONS if (values := getattr(part, path)) is not None} for part in tables
        ]

    def _lists_of_part(
        self, part: Mapping[str, tuple[Value, ...]], base: Mapping[str, Value]
    ) -> dict[str, tuple[Value, ...]]:
        """What a part lists, else what `[space]` lists, else what a table says, of all that any part lists."""
        own = self._own_lists
        listed = own.keys() | {path for each in self._parts for path in each}
        every: dict[str, tuple[Value, ...]] = {path: (value,) for path, value in base.items()}
        every |= own | dict(part)
        return {
            path: _listed(every[path])
            for path, option in OPTIONS.items()
            if path in listed and path in every and may_apply(option, every)
        }

    def _base(self, path: str) -> Value:
        """What the table of an option says of it."""
        table, _, name = path.partition(".")
        value: Value = getattr(getattr(self, table), name)
        return value

    def values_of(self, path: str) -> tuple[Value, ...]:
        """All values that an option has in this study; none of an option of the thesis that no prior here has."""
        space = self.search_space
        if path in space.names:
            return space[path]
        of_cases = tuple(dict.fromkeys(case.own[path] for case in self.cases.by_name.values() if path in case.own))
        return of_cases or ((self._base(path),) if "." in path else ())

    def at(self, point: Mapping[str, Value]) -> Self:
        """This study with its tables as they are at one point of its space.

        Args:
            point: a setting or a fit.
        """
        changes: dict[str, dict[str, Value]] = {}
        for path, value in {**self._of_case(point), **point}.items():
            table, _, name = path.rpartition(".")
            if table:
                changes.setdefault(table, {})[name] = value
        tables = {table: getattr(self, table).model_copy(update=values) for table, values in changes.items()}
        return self.model_copy(update=tables) if tables else self

    def _of_case(self, point: Mapping[str, Value]) -> dict[str, Value]:
        """What the case of a point says in place of the tables."""
        name = point.get(CASE) or self.cases.case
        return self.cases.by_name[str(name)].own if name else {}

    @cached_property
    def is_linked(self) -> bool:
        """Whether slices are fitted with their neighbours, or might be if a list grew: noise then is a slice's own."""
        own = self.fit.start, self.fit.start_iterations, self.fit.joint
        return own != ("random", 0, 1) or bool({"fit.start", "fit.joint"} & {*self.search_space.names})

    def networks(self, fit: Fit) -> tuple[Network, ...]:
        """The networks that are fitted in one go with that of a fit of a case, in their order; mostly its own alone."""
        name = str(fit.get(CASE, ""))
        if not self.is_linked or not name:
            return (Network((name,)),)
        at = self.at(fit)
        if at.prior.kind in HANDCRAFTED:
            return (Network((name,)),)
        how = at.fit.start, at.fit.joint
        if how not in self._networks:
            self._networks[how] = networks(self.cases, *how)
        return self._networks[how][name]

    @cached_property
    def _networks(self) -> dict[tuple[str, int], Mapping[str, tuple[Network, ...]]]:
        return {}

    def root(self, fit: Fit) -> Fit:
        """The fit that stands for all that are done in one go with a fit: of the first case of the first network."""
        return fit_on(fit, self.networks(fit)[0].cases[0]) if self.is_linked and CASE in fit else fit

    def iterations_of(self, setting: Setting) -> int:
        """Iterations that a setting is given: its budget, or what the study says of slices that start elsewhere."""
        case = str(setting.get(CASE, ""))
        is_first = any(case in each.cases for each in self.networks(setting.fit) if each.after is None)
        return setting.budget if is_first else self.at(setting).fit.start_iterations or setting.budget

    def served(self, fit: Fit, budgets: Iterable[int]) -> list[Setting]:
        """The settings that a fit serves at some budgets: of all cases that are done in one go with its own."""
        if not self.is_linked or CASE not in fit:
            return [fit.at(budget) for budget in budgets]
        fits = [fit_on(fit, case) for network in self.networks(fit) for case in network.cases]
        return [each.at(budget) for budget in budgets for each in fits]

    @cached_property
    def by_case(self) -> StudySpec | None:
        """The study whose trials are the settings of this one on each of its cases, held-out ones last; None: no cases.

        It is a grid whose axes are those of this study and the case, and holds all that is fitted.
        """
        if not self.cases.by_name or self.cases.case or CASE in self.search_space.names:
            return None
        tree = self.model_dump(exclude_none=True)
        tree["name"] += OF_CASES
        tree["space"][CASE] = [*self.cases.chosen_by, *self.cases.held_out]
        tree["search"] = {"sampler": "grid"}
        return StudySpec.model_validate(tree)

    @property
    def trials(self) -> int:
        """How many settings the search tries: the grid's size, `search.trials`, or 100; never more than there are."""
        size = len(self.search_space)
        if self.search.sampler == "grid":
            return min(size, self.search.trials or size)
        return min(size, self.search.trials or 100)

    def fingerprint(self) -> dict[str, Any]:
        """Everything that may change a result or what a trial means, as plain JSON values, flat dotted keys.

        Left out: name, description, whether images are kept, the number of trials (a study can be continued), the
        device and the engine (both recorded per trial), the executor.
        Files are left out too, since what is in them is compared by its hash. Added is `numerics`.
        """
        tree = self.model_dump(
            mode="json",
            exclude={
                "description": True,
                "name": True,
                "images": True,
                "executor": True,
                "target": {"file"},
                "task": {"mask", "maps"},
                "judge": {"file"},
                "cases": True,
            },
        )
        del tree["search"]["trials"], tree["fit"]["device"], tree["fit"]["engine"]
        tree["objectives"] = [f"{metric} {direction}" for metric, direction in self.objectives.items()]
        tree["space"] = {axis.name: list(axis.values) for axis in self.search_space.axes}
        if parts := self.search_space.parts:
            tree["space"]["prior"] = [{path: list(values) for path, values in part.items()} for part in parts]
        flat = {key: json.loads(json.dumps(value)) for key, value in flatten(tree)}
        for axis in self.search_space.names:
            flat.pop(axis, None)  # what its table says of an axis is of no account
        return flat | self._fingerprint_of_cases() | {"numerics": NUMERICS}

    def _fingerprint_of_cases(self) -> dict[str, Any]:
        """What each case is, but for its file, and how a setting is judged over them."""
        if not self.cases.by_name:
            return {}
        by_name = {f"cases.{name}": {**case.own, "holdout": case.holdout} for name, case in self.cases.by_name.items()}
        for own in by_name.values():
            own.pop("target.file", None)
        over = {"cases.objective": self.cases.objective}
        return by_name | over | ({"cases.quantile": self.cases.quantile} if "quantile" in over.values() else {})

    def stored(self) -> str:
        """The whole study as JSON, for `stored_spec` of this and all later versions."""
        return json.dumps({"schema": SCHEMA, **self.model_dump(mode="json")})


def _listed(values: Iterable[Any]) -> tuple[Value, ...]:
    """The values of an axis: numbers ascending, words as they are listed."""
    values = tuple(values)
    return tuple(sorted(values)) if all(not isinstance(value, str) for value in values) else values


def _sequence(value: Any) -> list[Any]:
    """What may be one or a list, as a list."""
    return [] if value is None else value if isinstance(value, list) else [value]


def _for_only(path: str) -> str:
    """What an option is for, as a clause."""
    parent, wanted = OPTIONS[path].needs or ("", ())
    return f"{path} is for {parent} = {' or '.join(map(repr, wanted))} only"


def flatten(tree: dict[str, Any], prefix: str = "") -> Any:
    """(dotted key, value) of everything in nested tables."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def setting_of(of_case: Setting) -> Setting:
    """The setting that was measured on a case."""
    return Setting({axis: value for axis, value in of_case.items() if axis != CASE})


def fit_of(of_case: Fit) -> Fit:
    """The fit that was done of a case."""
    return Fit({axis: value for axis, value in of_case.items() if axis != CASE})


def fit_on(fit: Fit, case: str) -> Fit:
    """A fit of a setting as it is of one case."""
    return Fit({**fit, CASE: case})


def on(setting: Setting, case: str) -> Setting:
    """A setting on one case."""
    return fit_on(setting.fit, case).at(setting.budget)
