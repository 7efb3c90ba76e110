"""Options: everything of a study file that decides what is fitted, and how; each can be searched.

The six of the thesis are always searched, as far as the prior has them. Any other number or choice of the tables
`prior`, `target`, `task`, `noise` and `fit` is searched where `[space]` lists values for it by its dotted path, such as
`fit.learning_rate`. What an option is, is said once, where its table declares it: type and limits, how it reads in an
identity, its scale, whether its words have an order, and which value of another option it needs to mean anything.
"""

from __future__ import annotations

import functools
import math
import os
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
    field_validator,
)

Value = int | float | str
Noise = Literal["uniform", "blur3", "simplex"]
Tiling = Literal["1x1", "2x2", "3x3", "4x5"]
NOISES: tuple[Noise, ...] = get_args(Noise)
TILINGS: tuple[Tiling, ...] = get_args(Tiling)

MOST_JOINT = 63  # slices of one network: more are far from each other, and memory grows with them

MODEL = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def rows_and_columns(tiling: str) -> tuple[int, int]:
    """`"4x5"` -> (4, 5): four rows of five tiles."""
    rows, columns = tiling.split("x")
    return int(rows), int(columns)


def tiles(tiling: str) -> int:
    """`"4x5"` -> 20."""
    rows, columns = rows_and_columns(tiling)
    return rows * columns


def option(
    default: Any,
    description: str,
    *,
    label: str,
    short: str = "{}",
    unit: str = "",
    log: bool = False,
    order: Mapping[str, int] | None = None,
    needs: tuple[str, tuple[Value, ...]] | None = None,
) -> Any:
    """A field of a table that can be searched; the arguments are those of `Option`."""
    facts = {"label": label, "short": short, "unit": unit, "log": log, "order": order, "needs": needs}
    return Field(default, description=description, json_schema_extra={"option": facts})  # type: ignore[dict-item]


PriorKind = Literal["deep_decoder", "deep_decoder_2019", "conv_decoder", "dip", "siren", "tv", "wavelet", "nlm"]
HANDCRAFTED: tuple[PriorKind, ...] = ("tv", "wavelet", "nlm")  # those without weights
TRAINED = tuple(kind for kind in get_args(PriorKind) if kind not in HANDCRAFTED)
FUSED: tuple[PriorKind, ...] = ("deep_decoder", "deep_decoder_2019")  # those that the fused engine has


def _of(*kinds: PriorKind) -> tuple[str, tuple[Value, ...]]:
    """What options need that mean something for some priors only."""
    return "prior.kind", kinds


_OF_TRAINED = _of(*TRAINED)


class ThesisOptions(BaseModel):
    """What the thesis searches (Table 3.1), named in `[space]` without a table."""

    model_config = MODEL

    k: Annotated[int, Field(ge=1, le=1024)] = option(
        ..., "channels", label="channels k", short="k{}", log=True, needs=_OF_TRAINED
    )
    s: Annotated[int, Field(ge=1, le=1024)] = option(
        ...,
        "scale factors",
        label="scale factor s",
        short="s{}",
        log=True,
        needs=_of("deep_decoder", "conv_decoder"),
    )
    l: Annotated[int, Field(ge=1, le=16)] = option(..., "blocks", label="blocks l", short="l{}", needs=_OF_TRAINED)
    iterations: Annotated[int, Field(ge=1, le=1_000_000)] = option(
        ..., "budgets of iterations", label="iterations", short="i{}", log=True, needs=_OF_TRAINED
    )
    noise: Noise = option(
        "uniform",
        "input tensors",
        label="noise",
        needs=_of(*(kind for kind in TRAINED if kind != "siren")),
    )
    tiling: Tiling = option(
        "1x1",
        "rows x columns of tiles",
        label="tiling",
        order={tiling: tiles(tiling) for tiling in TILINGS},
        needs=_OF_TRAINED,
    )


class PriorSpec(BaseModel):
    """`[prior]`: what is fitted; `ddstudy.priors` says what each is, and what k, s and l are of it."""

    model_config = MODEL

    kind: PriorKind = option(
        "deep_decoder", f"{', '.join(TRAINED)}; without weights {', '.join(HANDCRAFTED)}", label="prior"
    )
    skip_channels: Annotated[int, Field(ge=0, le=1024)] = option(
        4, "of each skip connection of 'dip'; 0: none", label="skip channels", short="skip{}", needs=_of("dip")
    )
    input_channels: Annotated[int, Field(ge=1, le=1024)] = option(
        32, "of the input of 'dip'", label="input channels", short="in{}", log=True, needs=_of("dip")
    )
    upsampling: Literal["bilinear", "nearest"] = option("bilinear", "of 'dip'", label="upsampling", needs=_of("dip"))
    omega: Annotated[float, Field(gt=0, le=1000)] = option(
        30.0, "frequency of the sines of 'siren'", label="frequency", short="omega{}", log=True, needs=_of("siren")
    )
    strength: Annotated[float, Field(gt=0, le=100)] = option(
        0.1,
        "of 'tv' the weight of the total variation, of 'wavelet' and 'nlm' the noise that they are to remove: its "
        "standard deviation relative to the target's range",
        label="strength",
        short="strength{}",
        log=True,
        needs=_of(*HANDCRAFTED),
    )


def _in_utf8(name: str | None) -> str | None:
    # a name in Latin-1 is no UTF-8, which is all that a store takes; it is a note there, nothing reads it again
    return name and os.fsencode(name).decode(errors="backslashreplace")


File = Annotated[str | None, PlainSerializer(_in_utf8, when_used="json")]
Against = Literal["truth", "repeat", "held_out"]


SliceOf = Annotated[int, Field(ge=0)] | Literal["mid"] | Annotated[str, Field(pattern=r"^mid[+-][0-9]{1,5}$")]


class TargetSpec(BaseModel):
    """`[target]`: which image is fitted (thesis sec. 3.2). Without `file`, nilearn's packaged MNI152 T1 template."""

    model_config = MODEL

    file: File = Field(None, description="NIfTI, MGH, PNG, JPEG, TIFF or .npy file; empty for MNI152")
    plane: Literal["axial", "coronal", "sagittal"] = option("axial", "plane cut from a volume", label="plane")
    slice: SliceOf = option(
        "mid",
        "slice index in RAS+ order along the plane's normal, or 'mid', or so many from it: 'mid-30'",
        label="slice",
        short="slice{}",
    )
    volume: Annotated[int, Field(ge=0)] | None = option(
        None, "which volume of a 4-D series", label="volume", short="volume{}"
    )
    intensity: Literal["minmax", "percentile"] = option("minmax", "what is scaled to [0, 1]", label="intensity")
    percentiles: tuple[float, float] = Field((0.5, 99.5), description="lower and upper, for 'percentile'")
    size: tuple[Annotated[int, Field(ge=8, le=4096)], Annotated[int, Field(ge=8, le=4096)]] | None = Field(
        None, description="rows, columns: aspect kept, then padded; empty keeps the slice's own size"
    )

    @field_validator("percentiles", "size", mode="before")
    @classmethod
    def _list_to_tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("percentiles")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] < value[1] <= 100:
            raise ValueError("must be [lower, upper] with 0 <= lower < upper <= 100")
        return value


def _where(*kinds: str) -> tuple[str, tuple[Value, ...]]:
    """What options need that mean something for some kinds of task only."""
    return "task.kind", kinds


class TaskSpec(BaseModel):
    """`[task]`: how a measurement y = A x + e comes from the image x; solvers see y only.

    `represent` is A = 1 without noise, as in the thesis. A measurement is the same for all settings of a study that
    say the same of the task: noise and masks derive from `seed` alone.
    """

    model_config = MODEL

    kind: Literal["represent", "denoise", "inpaint", "super_resolve", "mri"] = option(
        "represent", "represent, denoise, inpaint, super_resolve or mri", label="task"
    )
    source: Literal["simulated", "file"] = Field(
        "simulated",
        description="of the measurement: simulated from the target, or the target's file is the measurement",
    )
    noise: Literal["gaussian", "clipped", "rician", "poisson"] = option(
        "gaussian",
        "of images: gaussian; clipped to [0, 1] as in the literature; rician as in magnitude images; poisson",
        label="measurement noise",
        needs=_where("denoise", "inpaint", "super_resolve"),
    )
    sigma: Annotated[float, Field(ge=0, le=10)] = option(
        0.0,
        "noise relative to the target's range: its standard deviation, of 'poisson' at the brightest, of 'mri' of the "
        "real and of the imaginary part in k-space; of a measured file what is known of it, 0 where nothing is",
        label="noise level",
        short="sigma{}",
        needs=_where("denoise", "inpaint", "super_resolve", "mri"),
    )
    share: Annotated[float, Field(gt=0, le=1)] = option(
        0.5, "of pixels that are measured, at random", label="measured share", short="share{}", needs=_where("inpaint")
    )
    mask: File = Field(
        None, description="image or .npy file of the target's size for 'inpaint': measured where it is not 0"
    )
    factor: Annotated[int, Field(ge=2, le=16)] = option(
        4, "downsampling", label="factor", short="x{}", needs=_where("super_resolve")
    )
    filter: Literal["bicubic", "bilinear", "gaussian", "lanczos"] = option(
        "bicubic", "antialiasing filter of the measurement", label="filter", needs=_where("super_resolve")
    )
    loss_filter: Literal["same", "bicubic", "bilinear", "gaussian", "lanczos"] = option(
        "same",
        "that of the loss, where the literature takes another",
        label="filter of the loss",
        short="loss-{}",
        needs=_where("super_resolve"),
    )
    sampling: Literal["random", "equispaced", "gaussian"] = option(
        "random", "columns of k-space beside the centre", label="sampling", needs=_where("mri")
    )
    acceleration: Annotated[float, Field(ge=1, le=64)] = option(
        4.0, "columns of k-space / measured ones", label="acceleration", short="{}fold", needs=_where("mri")
    )
    center_fraction: Annotated[float, Field(ge=0, le=1)] = option(
        0.08,
        "of columns, in the middle of k-space, that are all measured",
        label="centre fraction",
        short="centre{}",
        needs=_where("mri"),
    )
    coils: Annotated[int, Field(ge=1, le=64)] = option(
        1, "that a simulation measures with", label="coils", short="coils{}", needs=_where("mri")
    )
    sensitivities: Literal["birdcage", "estimated"] = option(
        "birdcage",
        "of several coils, as the solver knows them: as they were simulated, or estimated from the centre (ESPIRiT)",
        label="sensitivities",
        needs=_where("mri"),
    )
    maps: File = Field(None, description=".npy file of coil sensitivities, complex (coils, rows, columns)")
    phase: Annotated[float, Field(ge=0, le=4)] = option(
        1.0,
        "largest angle of a simulated image's smooth phase, radians",
        label="phase",
        short="phase{}",
        needs=_where("mri"),
    )
    consistency: Literal["none", "hard"] = option(
        "none",
        "after the fit: hard puts measured k-space in place of the fitted",
        label="data consistency",
        short="consistency-{}",
        needs=_where("mri"),
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = option(
        0,
        "of the measurement's noise and mask",
        label="measurement seed",
        short="y{}",
        needs=_where("denoise", "inpaint", "super_resolve", "mri"),
    )


class JudgeSpec(BaseModel):
    """`[judge]`: what reconstructions are judged against; no solver sees it.

    `truth` is the target of a simulated task. `repeat` is a second measurement of the same slice, whose noise is
    independent: errors against it rank settings without bias. Of a simulated measurement it is simulated, too.
    `held_out` are samples of the measurement that no loss sees, and that a good reconstruction predicts.
    """

    model_config = MODEL

    against: Against = Field(
        "truth", description="truth, repeat (another measurement) or held_out (samples that the loss does not see)"
    )
    file: File = Field(None, description="of the repeat; empty: the target's")
    volume: Annotated[int, Field(ge=0)] | None = Field(None, description="of the repeat, in its 4-D series")
    share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="of the samples, for judge 'held_out' and fit.stop 'held_out'"
    )


class NoiseSpec(BaseModel):
    """`[noise]`: how the input tensors are made (thesis sec. 3.1)."""

    model_config = MODEL

    blur_kernel: Literal[3, 5, 7] = option(
        3,
        "Gaussian kernel size of 'blur3'; sigma by Eq. 3.2",
        label="blur kernel",
        short="kernel{}",
        unit="pixels",
        needs=("noise", ("blur3",)),
    )
    feature_size: Annotated[float, Field(gt=0)] = option(
        1.0,
        "feature size of 'simplex'; 1 is the thesis', 1.6 lies between 'uniform' and 'blur3'",
        label="feature size",
        short="feature{}",
        unit="pixels",
        log=True,
        needs=("noise", ("simplex",)),
    )
    range: tuple[float, float] = Field((0.0, 1.0), description="lowest and highest value of the input tensor")
    channels: Literal["independent", "interpolated"] = option(
        "independent",
        "'interpolated': all channels between two noise images (low rank; sec. 3.2)",
        label="noise channels",
        needs=("noise", ("uniform", "blur3")),
    )

    @field_validator("range", mode="before")
    @classmethod
    def _list_to_tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("range")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not (math.isfinite(value[0]) and math.isfinite(value[1]) and value[0] < value[1]):
            raise ValueError("must be [lowest, highest], both finite, lowest < highest")
        return value


class CaseOption(BaseModel):
    """What can be searched of `[cases]`, all of which `ddstudy.spec.cases` has."""

    model_config = MODEL

    case: str = option("", "the only one that counts; of each trial of the study of cases, its own", label="case")


def _optimisers(*names: str) -> tuple[str, tuple[Value, ...]]:
    """What options need that mean something for some optimisers only."""
    return "fit.optimiser", names


class FitSpec(BaseModel):
    """`[fit]`: the optimiser and its ensemble (thesis sec. 2.2 and 3.3)."""

    model_config = MODEL

    members: Annotated[int, Field(ge=1, le=100)] = option(
        5, "random initialisations per fit (5DD)", label="members", short="{}dd", log=True, needs=_OF_TRAINED
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = option(
        0, "every random number derives from it", label="seed", short="seed{}", needs=_OF_TRAINED
    )
    learning_rate: Annotated[float, Field(gt=0, le=10)] = option(
        0.01,
        "of the optimiser; of 'lbfgs' the first step of its line searches, for which 1 is usual",
        label="learning rate",
        short="lr{}",
        log=True,
        needs=_OF_TRAINED,
    )
    keep: Literal["last", "best", "average"] = option(
        "best",
        "which iterate counts: the last, the best (least loss so far) or a running average",
        label="iterate",
        needs=_OF_TRAINED,
    )
    average: Annotated[float, Field(ge=0, lt=1)] = option(
        0.0,
        "weight of the past in an exponential average of outputs over iterations, as 0.99; 0: none",
        label="average of outputs",
        short="average{}",
        needs=_OF_TRAINED,
    )
    jitter: Annotated[float, Field(ge=0, le=10)] = option(
        0.0,
        "standard deviation of noise that is added to the input tensor anew in each iteration",
        label="jitter",
        short="jitter{}",
        needs=_OF_TRAINED,
    )
    jitter_decay: Annotated[float, Field(gt=0, le=1)] = option(
        1.0,
        "what jitter is multiplied with every 500 iterations",
        label="decay of jitter",
        short="decay{}",
        needs=_OF_TRAINED,
    )
    optimiser: Literal["adam", "adamw", "radam", "sgd", "rmsprop", "lbfgs", "sgld"] = option(
        "adam",
        "adam, adamw, radam, sgd, rmsprop; lbfgs (in the reference engine); sgld: Adam with noise on the weights",
        label="optimiser",
        needs=_OF_TRAINED,
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = option(
        0.9, "of 'sgd'", label="momentum", short="momentum{}", needs=_optimisers("sgd")
    )
    weight_decay: Annotated[float, Field(ge=0, le=1)] = option(
        0.0,
        "times the weights is added to their gradient; 'adamw' takes it off the weights instead, times learning rate",
        label="weight decay",
        short="wd{}",
        needs=_optimisers("adam", "adamw", "radam", "sgd", "rmsprop", "sgld"),
    )
    sgld_noise: Annotated[float, Field(ge=0, le=1000)] = option(
        2.0,
        "standard deviation of the noise that 'sgld' adds to weights after each update, in learning rates",
        label="noise of SGLD",
        short="langevin{}",
        needs=_optimisers("sgld"),
    )
    schedule: Literal["constant", "step"] = option(
        "constant",
        "of the learning rate: constant, or 'step', multiplied with fit.decay every fit.decay_every iterations",
        label="schedule",
        short="schedule-{}",
        needs=_OF_TRAINED,
    )
    decay: Annotated[float, Field(gt=0, le=1)] = option(
        0.5,
        "what schedule 'step' multiplies the learning rate with",
        label="decay of the learning rate",
        short="lrdecay{}",
        needs=("fit.schedule", ("step",)),
    )
    decay_every: Annotated[int, Field(ge=1)] = option(
        1000,
        "iterations after each of which schedule 'step' does so",
        label="decay every",
        short="every{}",
        unit="iterations",
        log=True,
        needs=("fit.schedule", ("step",)),
    )
    loss: Literal["mse", "l1", "huber", "log_mse"] = option(
        "mse",
        "mean over measured samples of squared errors, absolute errors or Huber's function; log_mse is log(mse)",
        label="loss",
        needs=_OF_TRAINED,
    )
    huber_delta: Annotated[float, Field(gt=0, le=100)] = option(
        0.05,
        "error at which loss 'huber' turns from squared to absolute, relative to the target's range",
        label="Huber's delta",
        short="delta{}",
        log=True,
        needs=("fit.loss", ("huber",)),
    )
    tv_weight: Annotated[float, Field(ge=0, le=1000)] = option(
        0.0,
        "times the isotropic total variation of the output, its mean over pixels, is added to the loss",
        label="weight of total variation",
        short="tv{}",
        needs=_OF_TRAINED,
    )
    initialisation: Literal["default", "normal"] = option(
        "default",
        "of the weights: torch's, or 'normal' for those of convolutions, with mean 0",
        label="initialisation",
        short="init-{}",
        needs=_of(*(kind for kind in TRAINED if kind != "siren")),
    )
    initialisation_sd: Annotated[float, Field(gt=0, le=100)] = option(
        0.02,
        "standard deviation of initialisation 'normal'",
        label="sd of the initialisation",
        short="sd{}",
        log=True,
        needs=("fit.initialisation", ("normal",)),
    )
    stop: Literal["budget", "wmv", "emv", "discrepancy", "held_out"] = option(
        "budget",
        "which iterate of those up to the budget is the answer: the last, or that of a rule which sees no truth",
        label="stopping rule",
        short="stop-{}",
        needs=_OF_TRAINED,
    )
    patience: Annotated[int, Field(ge=1)] = option(
        1000,
        "iterations without a new minimum after which a stopping rule ends the fit",
        label="patience",
        short="patience{}",
        unit="iterations",
        log=True,
        needs=("fit.stop", ("wmv", "emv", "held_out")),
    )
    check_every: Annotated[int, Field(ge=1)] = option(
        100,
        "iterations between stability checks",
        label="check every",
        short="check{}",
        unit="iterations",
        log=True,
        needs=_OF_TRAINED,
    )
    start: Literal["random", "neighbour"] = option(
        "random",
        "where a slice starts: random weights, or those of its neighbour, from the middle of the slices outwards",
        label="start",
        short="start-{}",
        needs=_OF_TRAINED,
    )
    start_iterations: Annotated[int, Field(ge=0, le=1_000_000)] = option(
        0,
        "of a slice that starts from its neighbour; 0: as many as of the first",
        label="iterations from the neighbour",
        short="onwards{}",
        needs=("fit.start", ("neighbour",)),
    )
    joint: Annotated[int, Field(ge=1, le=MOST_JOINT)] = option(
        1, "adjacent slices that share one network", label="joint slices", short="joint{}", needs=_OF_TRAINED
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, mps, cuda or cuda:N")
    engine: Literal["auto", "fused", "reference"] = option(
        "auto",
        "'fused' is for the Deep Decoders, without lbfgs; 'reference' is plain torch, slow",
        label="engine",
        needs=_OF_TRAINED,
    )
    precision: Literal["auto", "float32", "bfloat16"] = option(
        "auto",
        "of the factors of matrix products; bfloat16 on CUDA GPUs only",
        label="precision",
        needs=_OF_TRAINED,
    )


@dataclass(frozen=True)
class Option:
    """An option that can be searched.

    Attributes:
        path: its name in `[space]`, as a parameter in Optuna and as a column of tables: `k`, `fit.learning_rate`.
        annotation: type and limits of one value.
        default: of schema 1, None where there is none. An option that has it is left out of identities; those of the
            thesis never are.
        description: for people.
        label: short name for people.
        short: how a value reads in an identity, as `lr{}`.
        unit: of numbers, empty where there is none.
        log: samplers and figures take its logarithm.
        order: of words that have one: word -> number.
        needs: another option and the values of it with which this one means anything; None: it always does.
    """

    path: str
    annotation: Any
    default: Any
    description: str
    label: str
    short: str
    unit: str
    log: bool
    order: Mapping[str, int] | None
    needs: tuple[str, tuple[Value, ...]] | None

    @property
    def is_of_thesis(self) -> bool:
        """Whether it is part of every setting whose prior has it, and of its identity."""
        return "." not in self.path

    @property
    def kind(self) -> type:
        """int, float, or str for a choice between words."""
        kinds = {type(value) if origin else value for value, origin in _scalars(self.annotation)}
        return int if int in kinds else float if float in kinds else str

    @property
    def words(self) -> tuple[str, ...]:
        """The words that it may be, as they are declared."""
        return tuple(value for value, is_word in _scalars(self.annotation) if is_word and isinstance(value, str))

    def accepts(self, value: object) -> bool:
        """Whether a value is one of this option."""
        return isinstance(value, int | float | str) and _is_valid(self.path, type(value).__name__, value)

    def in_identity(self, value: Value) -> str:
        """A value as a part of an identity: `k64`, `blur3`, `lr0.003`."""
        short = f"{value:g}" if isinstance(value, float) else str(value)
        return self.short.format(short if not isinstance(value, float) or float(short) == value else value)


def _scalars(annotation: Any) -> list[tuple[Any, bool]]:
    """(type, False) or (allowed word or number, True) of everything that a value of a type may be."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _scalars(args[0])
    if origin in (Union, types.UnionType):
        return [each for arg in args for each in _scalars(arg)]
    return [(arg, True) for arg in args] if origin is Literal else [(annotation, False)]


def _options() -> dict[str, Option]:
    found = {}
    tables: tuple[tuple[str, type[BaseModel]], ...] = (
        ("", ThesisOptions),
        ("prior.", PriorSpec),
        ("target.", TargetSpec),
        ("task.", TaskSpec),
        ("noise.", NoiseSpec),
        ("fit.", FitSpec),
        ("cases.", CaseOption),
    )
    for prefix, table in tables:
        for name, field in table.model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and "option" in extra:
                annotation = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
                facts: Any = extra["option"]
                path, about = prefix + name, field.description or ""
                default = None if field.is_required() else field.default
                found[path] = Option(path, annotation, default, about, **facts)
    return found


OPTIONS: Mapping[str, Option] = _options()
THESIS = tuple(path for path, option in OPTIONS.items() if option.is_of_thesis)


@functools.lru_cache(4096)  # stores hold the same few values many times
def _is_valid(path: str, kind: str, value: Value) -> bool:  # 1, 1.0 and True are one key
    try:
        _adapter(path).validate_python(value)
    except ValidationError:
        return False
    return True


@functools.cache
def _adapter(path: str) -> TypeAdapter[Any]:
    return TypeAdapter(OPTIONS[path].annotation, config=ConfigDict(strict=True, allow_inf_nan=False))
