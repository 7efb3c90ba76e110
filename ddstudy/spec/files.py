"""The study file read: TOML, what is wrong with it in the user's words, and studies that earlier versions stored.

Unknown keys, wrong types and impossible values are refused with the file, the key and what is valid. A stored study is
read as the version that stored it meant it: through migrations, with today's defaults for options that it did not have.
"""

from __future__ import annotations

import difflib
import glob
import importlib.util
import json
import os
import re
import tomllib
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from ddstudy.errors import UserError
from ddstudy.images.metrics import METRICS
from ddstudy.spec.options import OPTIONS, TargetSpec
from ddstudy.spec.schema import SCHEMA, StudySpec

_MOST_BYTES = 2**20  # of a file that a person writes
FILES = (("target", "file"), ("task", "mask"), ("task", "maps"), ("judge", "file"))  # table and key of what is read
PACKAGE = "package:"  # begins the name of a file that an installed package has: "package:nibabel/tests/data/..."
MOST_MISTAKES = 20  # named at a time


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
    """What a study file says, unchecked, with its name, and files that it names relative to itself."""
    packaged = Path(__file__).parents[1] / "data" / "quick.toml"
    tree = read_toml(path, "study file", f"{packaged} is an example.")
    tree.setdefault("name", path.stem)
    for table, key in FILES:
        named = tree.get(table)
        if isinstance(named, dict) and isinstance(named.get(key), str) and not named[key].startswith(PACKAGE):
            try:
                named[key] = os.path.realpath(path.parent / named[key])
            except (OSError, ValueError) as error:  # a NUL
                raise UserError(f"{path}: {table}.{key}: {error}", "Valid: the path of a file.") from None
    cases = tree.get("cases")
    if isinstance(cases, dict):
        if isinstance(named := cases.get("files"), list):
            cases["files"] = [file for each in named for file in _files(each, path)]
        for row in cases["table"] if isinstance(cases.get("table"), list) else ():
            if isinstance(row, dict) and isinstance(row.get("file"), str):
                row["file"] = _beside(row["file"], path)
    return tree


def _beside(file: str, study: Path) -> str:
    """The path of a file that a study file names relative to itself."""
    return file if file.startswith(PACKAGE) else os.path.abspath(study.parent / file)


def _files(named: object, study: Path) -> list[object]:
    """The files that an entry of `cases.files` names: itself, what a pattern matches, the T1 images of a BIDS folder.

    Raises:
        UserError: there are none.
    """
    if not isinstance(named, str) or named.startswith(PACKAGE):
        return [named]
    path = _beside(named, study)
    patterns = [path]
    if os.path.isdir(path):
        patterns = [os.path.join(glob.escape(path), sub, "anat", "*_T1w.nii*") for sub in ("sub-*", "sub-*/ses-*")]
    elif not glob.has_magic(path):
        return [path]
    if found := sorted({file for pattern in patterns for file in glob.glob(pattern, recursive=True)}):
        return [*found]
    what = "there is no sub-*/anat/*_T1w.nii in it" if path not in patterns else "matches no file"
    raise UserError(f"{study}: cases.files: {named}: {what}", "Valid: a file, a folder in BIDS, a pattern with *.")


def path_of(file: str) -> Path:
    """The path of a file that a study names.

    Raises:
        UserError: it is of a package that is not installed.
    """
    if not file.startswith(PACKAGE):
        return Path(file)
    name, _, inside = file.removeprefix(PACKAGE).partition("/")
    found = importlib.util.find_spec(name) if name.isidentifier() else None  # located, not imported
    if found is None or found.origin is None:
        raise UserError(f"{file}: there is no package '{name}' here", "Valid: package:NAME/PATH of an installed one.")
    return Path(found.origin).parent / inside


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
        valid = f"Look at another: {example}"
        if str(error).startswith(("Cannot mutate immutable namespace", "Cannot overwrite a value")):
            valid = "Beside a key 'noise', one that begins with 'noise.' needs quotes: \"noise.feature_size\" = [1, 2]."
        raise UserError(f"{path}: not valid TOML: {_short(str(error))}", valid) from None


def parse_spec(tree: dict[str, Any], source: str, *, judged: bool = True) -> StudySpec:
    """Checks a parsed study file. `source` names it in errors.

    Args:
        tree: what the file says.
        source: names it in errors.
        judged: its results are compared; what one fit makes of a measurement is not.

    Raises:
        UserError: the key and what is wrong with it, then what is valid; so for every mistake, unknown keys first,
            since what such a key was meant to be is often missing, too.
    """
    try:
        return StudySpec.model_validate(tree, context={"judged": judged})
    except ValidationError as error:
        raise UserError(mistakes(error, source, "study", _valid)) from None


def target_of(tree: dict[str, Any]) -> TargetSpec | None:
    """The target that a study file names, if it says that much, whatever else is wrong with it."""
    try:
        return TargetSpec.model_validate(tree.get("target", {}))
    except ValidationError:
        return None


def mistakes(error: ValidationError, source: str, whole: str, valid: Callable[[list[Any]], str]) -> str:
    """All that pydantic found wrong, in the user's words.

    Args:
        error: of a model of ours.
        source: names in each line what was read.
        whole: names what is wrong of it as a whole.
        valid: says of the keys and positions that lead to a place what may stand there.
    """
    found: dict[str, list[str]] = {}  # by what is valid
    seen = set()
    for each in sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden"):
        unknown = each["type"] == "extra_forbidden"
        # pydantic adds the branch of a union to the location; a user knows keys and positions in lists only
        location = [part for part in each["loc"] if unknown or isinstance(part, int) or _is_key(part)]
        key = ".".join(f"[{part}]" if isinstance(part, int) else _short(part) for part in location).replace(".[", "[")
        if key not in seen:  # each branch of a union has its complaint
            seen.add(key)
            found.setdefault(valid(location), []).append(f"{source}: {key or whole}: {_reason_of(each)}")
    left = MOST_MISTAKES
    lines = []
    for allowed, complaints in found.items():
        if left <= 0:
            break
        lines += [*complaints[:left], allowed]
        left -= len(complaints)
    more = sum(map(len, found.values())) - MOST_MISTAKES
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


def _table_in(annotation: Any) -> type[BaseModel] | None:
    """The table that a type is, or is a list of."""
    if _is_table(annotation):
        return annotation
    return next((table for arg in get_args(annotation) if (table := _table_in(arg)) is not None), None)


def known_keys() -> list[tuple[str, str, str]]:
    """(dotted key, default as TOML or 'required', description) of everything that a study file may say."""
    return list(_keys(StudySpec, ""))


def _keys(model: type[BaseModel], prefix: str) -> Any:
    for name, field in model.model_fields.items():
        if "." in name:
            continue  # of a table that is listed itself; see `OPTIONS`
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


def toml_of(spec: StudySpec) -> str:
    """A study as a file that means the same: what is not at its default."""
    tree = spec.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    plain = {key: value for key, value in tree.items() if not isinstance(value, dict)}
    blocks = [_lines(plain)]
    blocks += [f"[{key}]\n{_lines(value)}" for key, value in tree.items() if isinstance(value, dict) and value]
    return "\n\n".join(filter(None, blocks)) + "\n"


def _lines(table: Mapping[str, Any]) -> str:
    return "\n".join(f"{_toml(key, is_key=True)} = {_toml(value)}" for key, value in table.items())


def _toml(value: Any, *, is_key: bool = False) -> str:
    """A key or a value as TOML has it: JSON, but for bare keys, tables and their lists."""
    if is_key:
        return str(value) if re.fullmatch("[A-Za-z0-9_-]+", value) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        inside = ", ".join(f"{_toml(key, is_key=True)} = {_toml(each)}" for key, each in value.items())
        return f"{{ {inside} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)


def _is_key(part: str) -> bool:
    return part.isidentifier() or part in METRICS or part in OPTIONS


def _reason_of(error: Any) -> str:
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
            where = ".".join(names[:depth]) or "a study file"
            elsewhere = (key for key, *_ in known_keys() if key.lower().endswith(f".{name.lower()}"))
            near = _near(name, keys) or next(elsewhere, None)
            hint = f"Did you mean '{near}'? " if near else ""
            return f"{hint}Valid in {where}: {', '.join(keys)}."
        field = model.model_fields[name]
        if (table := _table_in(field.annotation)) is not None:
            model = table
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
        limits = [limit for extra in args[1:] for limit in getattr(extra, "metadata", (extra,))]
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
