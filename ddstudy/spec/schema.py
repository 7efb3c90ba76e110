"""The study file: what a TOML file may say, its defaults, and what is wrong with it in the user's words.

One strict model per table. Unknown keys, wrong types and impossible values are refused with the file, the key and
what is valid. Everything that changes a result is part of the fingerprint; how long a search runs and where it
runs are not, so the same study can be continued with more trials or on other hardware.

A stored study is read as the version that stored it meant it: through migrations, with today's defaults for options
that it did not have. Two numbers say what changed between versions, and are raised by whoever changes it.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeGuard, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer, field_validator, model_validator

from ddstudy.errors import UserError
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

_MOST_BYTES = 2**20  # of a file that a person writes
_MOST_MISTAKES = 20  # named at a time

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
    feature_size: Annotated[float, Field(gt=0)] = Field(1.0, description="feature size of 'simplex'")
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


def read_spec(path: Path, name: str | None = None) -> StudySpec:
    """Reads and checks a study file.

    Args:
        path: a TOML file. `name` defaults to the file's stem.
        name: of the study, instead of the file's.

    Raises:
        UserError: the file is missing, is no TOML, or says something that is not valid.
    """
    return parse_spec(read_study(path) | ({"name": name} if name else {}), str(path))


def read_study(path: Path) -> dict[str, Any]:
    """What a study file says, unchecked, with its name, and the target's file relative to the study that names it."""
    tree = read_toml(path, "study file", "studies/quick.toml is an example.")
    tree.setdefault("name", path.stem)
    target = tree.get("target")
    if isinstance(target, dict) and isinstance(target.get("file"), str):
        try:
            target["file"] = str((path.parent / target["file"]).resolve())
        except (OSError, ValueError, RuntimeError) as error:  # a NUL, a circle of links
            raise UserError(f"{path}: target.file: {error}", "Valid: the path of an image or volume.") from None
    return tree


def read_toml(path: Path, what: str, example: str) -> dict[str, Any]:
    """The tables of a TOML file, which may be large or no file at all: no more is read than a person would write.

    Args:
        path: of the file.
        what: the user calls it.
        example: says where to look.

    Raises:
        UserError: the file is missing, too large, no regular file or no TOML.
    """
    try:
        if not path.is_file() and path.exists():
            kind = "a directory" if path.is_dir() else "no regular file"
            raise UserError(f"{path}: cannot be read ({kind})", f"Give a TOML file; {example}")
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise UserError(f"{path}: cannot be read (too large)", f"A {what} has up to {_MOST_BYTES:,} bytes.")
        return tomllib.loads(content.decode("utf-8-sig"))  # editors of Windows put a mark in front
    except FileNotFoundError:
        raise UserError(f"{path}: no such {what}", f"Give a TOML file; {example}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason})", f"A {what} is UTF-8 TOML.") from None
    except RecursionError:
        raise UserError(f"{path}: not valid TOML: nested too deeply", f"Look at another: {example}") from None
    except ValueError as error:  # TOMLDecodeError, and numbers of thousands of digits
        raise UserError(f"{path}: not valid TOML: {_short(str(error))}", f"Look at another: {example}") from None


def parse_spec(tree: dict[str, Any], source: str) -> StudySpec:
    """Checks a parsed study file. `source` names it in errors.

    Raises:
        UserError: the key and what is wrong with it, then what is valid; so for every mistake, unknown keys first,
            since what such a key was meant to be is often missing, too.
    """
    try:
        return StudySpec.model_validate(tree)
    except ValidationError as error:
        raise UserError(_mistakes(error, source)) from None


def target_of(tree: dict[str, Any]) -> TargetSpec | None:
    """The target that a study file names, if it says that much, whatever else is wrong with it."""
    try:
        return TargetSpec.model_validate(tree.get("target", {}))
    except ValidationError:
        return None


def _mistakes(error: ValidationError, source: str) -> str:
    found: dict[str, list[str]] = {}  # by what is valid
    seen = set()
    for each in sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden"):
        unknown = each["type"] == "extra_forbidden"
        # pydantic adds the branch of a union to the location; a user knows keys and positions in lists only
        location = [part for part in each["loc"] if unknown or isinstance(part, int) or _is_key(part)]
        key = ".".join(f"[{part}]" if isinstance(part, int) else _short(part) for part in location).replace(".[", "[")
        if key not in seen:  # each branch of a union has its complaint
            seen.add(key)
            found.setdefault(_valid(location), []).append(f"{source}: {key or 'study'}: {reason_of(each)}")
    left = _MOST_MISTAKES
    lines = []
    for valid, complaints in found.items():
        if left <= 0:
            break
        lines += [*complaints[:left], valid]
        left -= len(complaints)
    more = sum(map(len, found.values())) - _MOST_MISTAKES
    return "\n".join(lines + ([f"And {more:,} more mistakes."] if more > 0 else []))


def stored_spec(text: str, source: str) -> tuple[StudySpec, list[str]]:
    """Reads a study that any version has stored; an option that it did not have yet has its default.

    Args:
        text: what `StudySpec.stored` gave.
        source: names it in errors.

    Returns:
        The study, and the keys in it that this version does not know, as those of a later one.

    Raises:
        UserError: it is not what any version stores.
    """
    try:
        tree = json.loads(text)
        schema = tree.pop("schema", 0)
        while schema in _MIGRATIONS:
            _MIGRATIONS[schema](tree)
            schema += 1
    except (AttributeError, TypeError, ValueError, RecursionError):
        raise UserError(
            f"{source}: its study file cannot be read", "It was damaged or not stored by ddstudy."
        ) from None
    if schema != SCHEMA:
        raise UserError(f"{source}: its study file is of a later version", "Look at it with the ddstudy that made it.")
    unknown = list(_take_unknown(tree, StudySpec, ""))
    return parse_spec(tree, source), unknown


def _from_before_schemas(tree: dict[str, Any]) -> None:
    """What had no number: at first the last iterate counted, and checks were unstable above the limit itself."""
    stability = tree.setdefault("stability", {})
    if "stop" not in stability:
        stability["stop"] = 1.0
        stability.pop("release", None)
        tree.setdefault("fit", {}).setdefault("keep", "last")


_MIGRATIONS = {0: _from_before_schemas}


def _take_unknown(tree: dict[str, Any], model: type[BaseModel], prefix: str) -> Iterator[str]:
    """Takes out what a model has no field for, and names it."""
    for key in list(tree):
        field = model.model_fields.get(key)
        if field is None:
            del tree[key]
            yield prefix + key
        elif isinstance(tree[key], dict) and _is_table(field.annotation):
            yield from _take_unknown(tree[key], field.annotation, f"{prefix}{key}.")


def _is_table(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def known_keys() -> list[tuple[str, str, str]]:
    """(dotted key, default as TOML or 'required', description) of everything that a study file may say."""
    return list(_keys(StudySpec, ""))


def _keys(model: type[BaseModel], prefix: str) -> Any:
    for name, field in model.model_fields.items():
        if _is_table(field.annotation):
            yield from _keys(field.annotation, f"{prefix}{name}.")
            continue
        if name == "name" and not prefix:
            default = "the file's name"
        elif field.is_required():
            default = "required"
        else:
            default = "" if field.default is None else json.dumps(field.default)
        yield prefix + name, default, field.description or ""


def _flatten(tree: dict[str, Any], prefix: str = "") -> Any:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _is_key(part: str) -> bool:
    return part.isidentifier() or part in get_args(Metric)


def reason_of(error: Any) -> str:
    """What pydantic found wrong, as a clause in the user's words."""
    given = error.get("input")
    if error["type"] == "extra_forbidden":
        return "unknown key"
    if error["type"] == "missing":
        return "missing"
    if error["type"] == "string_pattern_mismatch":
        return f"cannot be {_short(repr(given))}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{message[0].lower()}{message[1:]}" + (
        f", not {_short(repr(given))}" if isinstance(given, str | int | float | bool) else ""
    )


def _short(text: str) -> str:
    """A text of a file, as long as a line and without what would move the cursor."""
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= 80 else text[:77] + "..."


def _valid(location: list[Any]) -> str:
    names = [part for part in location if isinstance(part, str)]
    model: Any = StudySpec
    for depth, name in enumerate(names):
        if name not in model.model_fields:
            keys = list(model.model_fields)
            table = ".".join(names[:depth]) or "a study file"
            near = _near(name, keys) or next((key for key, *_ in known_keys() if key.endswith(f".{name}")), None)
            hint = f"Did you mean '{near}'? " if near else ""
            return f"{hint}Valid in {table}: {', '.join(keys)}."
        field = model.model_fields[name]
        if _is_table(field.annotation):
            model = field.annotation
            continue
        return f"Valid: {describe(field.annotation, field.metadata)} - {field.description}."
    return f"Valid tables and keys: {', '.join(StudySpec.model_fields)}."


def _near(name: str, names: list[str]) -> str | None:
    """The name that one was meant to be, in whichever case."""
    small = {known.lower(): known for known in names}
    near = difflib.get_close_matches(name[:80].lower(), small, 1)
    return small[near[0]] if near else None


def describe(annotation: Any, metadata: Any = ()) -> str:
    """The values that a type allows, in words."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        limits = [limit for extra in args[1:] for limit in getattr(extra, "metadata", ())]
        return describe(args[0], limits)
    if origin is Literal:
        return ", ".join(json.dumps(value) for value in args)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(arg) for arg in args if arg is not type(None))
    if origin is list:
        return f"a list of {describe(args[0])}"
    if origin is tuple:
        return f"[{', '.join(describe(arg) for arg in args)}]"
    if origin is dict:
        return f"{describe(args[0])}, each = {describe(args[1])}"
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}[annotation]
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    limits = [
        f"{sign} {getattr(limit, name)}" for limit in metadata for name, sign in signs.items() if hasattr(limit, name)
    ]
    return " ".join([words, " and ".join(limits)]).strip()
