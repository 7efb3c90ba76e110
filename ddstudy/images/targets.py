"""The image of a study, or its images: read from volumes, pictures or k-space, with the repeat that judges them."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from ddstudy.errors import UserError
from ddstudy.images.kspace import kspace_target
from ddstudy.images.volumes import MNI152, Target, Targets, load_target
from ddstudy.spec.axes import budgets_by_fit
from ddstudy.spec.files import path_of
from ddstudy.spec.options import TaskSpec
from ddstudy.spec.schema import CASE, StudySpec


def load_targets(spec: StudySpec) -> Target | Targets:
    """The image of a study, or its images where it searches options of `[target]` or has cases.

    Raises:
        UserError: one of its files is missing, damaged or of another kind; see `load_target` and `kspace_target`.
    """
    axes = tuple(axis for axis in spec.search_space.names if axis.startswith("target.") or axis == CASE)
    if not axes:
        return _load(spec.at({}))
    tables = {tuple(fit.get(axis) for axis in axes): spec.at(fit) for fit in budgets_by_fit(spec.search_space)}
    images = {at.target: at for at in tables.values()}  # cases may differ in their noise alone
    loaded = {table: _load(at) for table, at in images.items()}
    return Targets(axes, {values: loaded[at.target] for values, at in tables.items()})


def digest_beside(task: TaskSpec) -> bytes:
    """What the files beside the target hold that a measurement depends on, hashed; empty where there are none.

    Raises:
        UserError: one of them cannot be read.
    """
    named = [file for file in (task.mask, task.maps) if file is not None]
    try:
        return b"".join(hashlib.sha256(path_of(file).read_bytes()).digest() for file in named)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{error.filename}: cannot be read ({reason})", "Valid: the path of a file.") from None


def _load(spec: StudySpec) -> Target:
    table, task, judge = spec.target, spec.task, spec.judge
    is_kspace = task.kind == "mri" and task.source == "file"
    target = kspace_target(table) if is_kspace else load_target(table, own_noise=spec.is_linked)
    target = replace(target, beside=digest_beside(task))
    if judge.file is None and judge.volume is None:
        return target
    other = {"file": judge.file or table.file, "volume": judge.volume}
    where = f"judge: {other['file'] or MNI152}"
    if other == {"file": table.file, "volume": table.volume}:
        raise UserError(f"{where}: is the measurement itself", "Valid: another volume of the series, or another file.")
    repeat = load_target(table.model_copy(update=other), target.scale).image
    if repeat.shape != target.image.shape:
        shapes = [" x ".join(map(str, image.shape)) for image in (repeat, target.image)]
        raise UserError(f"{where}: its slice is {shapes[0]}, that of the target {shapes[1]}", "Valid: the same slice.")
    return replace(target, repeat=repeat)
