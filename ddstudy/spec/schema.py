"""The study file: what it may say, and its defaults; one strict model per table.

Everything that changes a result is part of the fingerprint; how long a search runs and where it runs are not, so the
same study can be continued with more trials or on other hardware. Two numbers say what changed between versions, and
are raised by whoever changes it.
"""

from __future__ import annotations

import json
import math
import os
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_serializer, field_validator, model_validator

from ddstudy.spec.axes import Noise, SearchSpace, Tiling

Sampler = Literal["grid", "random", "tpe", "nsga2", "nsga3", "gp", "qmc"]
Pruner = Literal["median", "hyperband", "wilcoxon"]
Metric = Literal["psnr", "ssim", "ms_ssim", "vif", "psnr_foreground", "seconds", "parameters", "cv_percent"]
Direction = Literal["maximize", "minimize"]
BETTER: dict[str, Direction] = {
    "psnr": "maximize",
    "ssim": "maximize",
    "ms_ssim": "maximize",
    "vif": "maximize",
    "psnr_foreground": "maximize",
    "seconds": "minimize",
    "parameters": "minimize",
    "cv_percent": "minimize",
}

# Raise it where the same study file gives other numbers, by more than devices differ: 2 since a6b599d, before it 1.
NUMERICS = 2
# Raise it where a key of a study file changes its name, its meaning or its default, with a function in _MIGRATIONS.
SCHEMA = 1

_MODEL = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class TargetSpec(BaseModel):
    """`[target]`: which image is fitted (thesis sec. 3.2). Without `file`, nilearn's packaged MNI152 T1 template."""

    model_config = _MODEL

    file: str | None = Field(None, description="NIfTI, MGH, PNG, JPEG, TIFF or .npy file; empty for MNI152")
    plane: Literal["axial", "coronal", "sagittal"] = Field("axial", description="plane cut from a volume")
    slice: Annotated[int, Field(ge=0)] | Literal["mid"] = Field(
        "mid", description="slice index in RAS+ order along the plane's normal, or 'mid'"
    )
    volume: Annotated[int, Field(ge=0)] | None = Field(None, description="which volume of a 4-D series")
    intensity: Literal["minmax", "percentile"] = Field("minmax", description="what is scaled to [0, 1]")
    percentiles: tuple[float, float] = Field((0.5, 99.5), description="lower and upper, for 'percentile'")
    size: tuple[Annotated[int, Field(ge=8, le=4096)], Annotated[int, Field(ge=8, le=4096)]] | None = Field(
        None, description="rows, columns: aspect kept, then padded; empty keeps the slice's own size"
    )

    @field_serializer("file", when_used="json")
    def _in_utf8(self, value: str | None) -> str | None:
        # a name in Latin-1 is no UTF-8, which is all that a store takes; it is a note there, nothing reads it again
        return value and os.fsencode(value).decode(errors="backslashreplace")

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


class SpaceSpec(BaseModel):
    """`[space]`: the values searched on each axis (thesis Table 3.1)."""

    model_config = _MODEL

    k: list[Annotated[int, Field(ge=1, le=1024)]] = Field(..., min_length=1, description="channels")
    s: list[Annotated[int, Field(ge=1, le=1024)]] = Field(..., min_length=1, description="scale factors")
    l: list[Annotated[int, Field(ge=1, le=16)]] = Field(..., min_length=1, description="blocks")
    iterations: list[Annotated[int, Field(ge=1, le=1_000_000)]] = Field(
        ..., min_length=1, description="budgets of iterations"
    )
    noise: list[Noise] = Field(["uniform"], min_length=1, description="input tensors")
    tiling: list[Tiling] = Field(["1x1"], min_length=1, description="rows x columns of tiles")

    @field_validator("*")
    @classmethod
    def _no_repeats(cls, value: list[Any]) -> list[Any]:
        if len(set(value)) != len(value):
            raise ValueError("must not name a value twice")
        return value

    @property
    def search_space(self) -> SearchSpace:
        """The same values as tuples, ordered axes ascending."""
        return SearchSpace(
            k=tuple(sorted(self.k)),
            s=tuple(sorted(self.s)),
            l=tuple(sorted(self.l)),
            iterations=tuple(sorted(self.iterations)),
            noise=tuple(self.noise),
            tiling=tuple(self.tiling),
        )


class NoiseSpec(BaseModel):
    """`[noise]`: how the input tensors are made (thesis sec. 3.1)."""

    model_config = _MODEL

    blur_kernel: Literal[3, 5, 7] = Field(3, description="Gaussian kernel size of 'blur3'; sigma by Eq. 3.2")
    feature_size: Annotated[float, Field(gt=0)] = Field(
        1.0, description="feature size of 'simplex'; 1 is the thesis', 1.6 lies between 'uniform' and 'blur3'"
    )
    range: tuple[float, float] = Field((0.0, 1.0), description="lowest and highest value of the input tensor")
    channels: Literal["independent", "interpolated"] = Field(
        "independent", description="'interpolated': all channels between two noise images (low rank; sec. 3.2)"
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


class FitSpec(BaseModel):
    """`[fit]`: the optimiser and its ensemble (thesis sec. 2.2 and 3.3)."""

    model_config = _MODEL

    members: Annotated[int, Field(ge=1, le=100)] = Field(5, description="random initialisations per fit (5DD)")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="every random number derives from it")
    learning_rate: Annotated[float, Field(gt=0, le=10)] = Field(0.01, description="of Adam")
    keep: Literal["last", "best", "average"] = Field(
        "best", description="which iterate counts: the last, the best (least loss so far) or a running average"
    )
    check_every: Annotated[int, Field(ge=1)] = Field(100, description="iterations between stability checks")
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, mps, cuda or cuda:N")
    engine: Literal["auto", "fused", "reference"] = Field("auto", description="'reference' is plain torch, slow")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the factors of matrix products; bfloat16 on CUDA GPUs only"
    )


class StabilitySpec(BaseModel):
    """`[stability]`: the filter of sec. 4.3 and the rule that stops an unstable fit early."""

    model_config = _MODEL

    prune: bool = Field(True, description="stop unstable fits early and mark unstable settings PRUNED")
    cv_percent: Annotated[float, Field(gt=0)] = Field(5.0, description="stable means CV of the members' PSNR <= this")
    min_psnr: float = Field(15.0, description="stable means PSNR >= this, in dB")
    max_vif: Annotated[float, Field(gt=0)] = Field(1.0, description="stable means VIF <= this")
    stop: Annotated[float, Field(ge=1)] = Field(
        1.5, description="unstable checks begin above this multiple of cv_percent, and end at cv_percent"
    )
    warmup: Annotated[int, Field(ge=0)] = Field(300, description="iterations before a fit may be stopped")
    window: Annotated[int, Field(ge=1)] = Field(3, description="checks in the median that hides passing spikes")
    patience: Annotated[int, Field(ge=1)] = Field(5, description="unstable checks in a row that stop a fit")


class SearchSpec(BaseModel):
    """`[search]`: which settings are tried, in which order, for how long."""

    model_config = _MODEL

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

    model_config = _MODEL

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

    model_config = _MODEL

    name: str = Field(
        ...,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="name in the store: letters, digits, '.', '_' and '-'",
    )
    description: str = Field("", description="one sentence for people")
    images: bool = Field(True, description="keep target, output and error map of every trial")
    target: TargetSpec = TargetSpec()
    space: SpaceSpec
    noise: NoiseSpec = NoiseSpec()
    fit: FitSpec = FitSpec()
    objectives: dict[Metric, Direction] = Field({"psnr": "maximize"}, min_length=1, description="metric = direction")
    stability: StabilitySpec = StabilitySpec()
    search: SearchSpec = SearchSpec()
    executor: ExecutorSpec = ExecutorSpec()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.fit.members == 1 and ("cv_percent" in self.objectives):
            raise ValueError("objectives.cv_percent needs fit.members of at least 2")
        if self.search.pruner and self.search.sampler == "grid":
            raise ValueError("search.pruner needs a search, since a grid measures every setting")
        if self.search.pruner and self.objectives != {"psnr": "maximize"}:
            raise ValueError("search.pruner needs psnr = 'maximize' as the only objective, since it compares PSNR")
        if "seconds" in self.objectives and self.executor.gpus_per_fit < 1:
            raise ValueError("executor.gpus_per_fit must be 1 where seconds are an objective: fits on a GPU share time")
        if "seconds" in self.objectives and self.executor.mix:
            raise ValueError("executor.mix must be false where seconds are an objective, which devices differ in")
        if self.executor.fallback != "none" and "seconds" in self.objectives:
            raise ValueError("executor.fallback must be 'none' where seconds are an objective, which devices differ in")
        if self.executor.fallback != "none" and self.fit.precision == "bfloat16":
            raise ValueError("executor.fallback must be 'none' where fit.precision is bfloat16, which is for CUDA GPUs")
        return self

    @property
    def trials(self) -> int:
        """How many settings the search tries: the grid's size, `search.trials`, or 100; never more than there are."""
        size = len(self.space.search_space)
        if self.search.sampler == "grid":
            return min(size, self.search.trials or size)
        return min(size, self.search.trials or 100)

    def fingerprint(self) -> dict[str, Any]:
        """Everything that may change a result or what a trial means, as plain JSON values, flat dotted keys.

        Left out: name, description, whether images are kept, the number of trials (a study can be continued), the
        device and the engine (both recorded per trial), the executor.
        `target.file` is left out too, since the target's pixels are compared by their hash. Added is `numerics`.
        """
        tree = self.model_dump(
            mode="json",
            exclude={"description": True, "name": True, "images": True, "executor": True, "target": {"file"}},
        )
        del tree["search"]["trials"], tree["fit"]["device"], tree["fit"]["engine"]
        tree["objectives"] = [f"{metric} {direction}" for metric, direction in self.objectives.items()]
        tree["space"] = {axis: list(values) for axis, values in vars(self.space.search_space).items()}
        return {key: json.loads(json.dumps(value)) for key, value in _flatten(tree)} | {"numerics": NUMERICS}

    def stored(self) -> str:
        """The whole study as JSON, for `stored_spec` of this and all later versions."""
        return json.dumps({"schema": SCHEMA, **self.model_dump(mode="json")})


def _flatten(tree: dict[str, Any], prefix: str = "") -> Any:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
