"""What is done to whole studies of a store: delete them, give them another name, copy them to another store.

A study with cases is two in the store and goes as one. Nothing is done to a study that a driver is at work on, and what
is stopped in the middle leaves the study as it was, at most with files that nobody needs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import optuna

from ddstudy.errors import UserError
from ddstudy.results import images_folder, store_url
from ddstudy.spec.files import parse_spec
from ddstudy.spec.schema import OF_CASES
from ddstudy.store.database import SPEC, NoStudiesError, Store
from ddstudy.store.optuna_rows import FrozenStudy, forget_study, id_of, image_files, rename_studies

_HALF = ".half"  # ends the name of a copy that is not whole yet


def delete(name: str, *, store: str | None = None, artifacts: str | Path | None = None) -> None:
    """Deletes a study with its trials and images.

    Args:
        name: of the study.
        store: see `run`.
        artifacts: see `run`.

    Raises:
        UserError: there is no such study, or a driver is at work on it.
    """
    with _alone(store, artifacts, name) as (opened, studies):
        for study in studies.values():
            _delete(opened, study)


def rename(name: str, new: str, *, store: str | None = None, artifacts: str | Path | None = None) -> None:
    """Gives a study another name; a study file goes on with it under that name, as with `--name`.

    Args:
        name: of the study.
        new: name, of letters, digits, '.', '_' and '-'.
        store: see `run`.
        artifacts: see `run`.

    Raises:
        UserError: there is no such study, the new name is taken or no name, or a driver is at work on it.
    """
    with _alone(store, artifacts, name) as (opened, studies):
        names = _names(studies, name, new)
        _check_free(opened, names.values())
        rename_studies(opened.storage.engine, {id_of(study): names[old] for old, study in studies.items()}, SPEC)


def copy(
    name: str,
    *,
    to: str | None = None,
    new: str | None = None,
    store: str | None = None,
    artifacts: str | Path | None = None,
    to_artifacts: str | Path | None = None,
) -> None:
    """Copies a study with its images to another store, or within one under another name.

    Args:
        name: of the study.
        to: the other store, as a URL; by default the same.
        new: name of the copy; by default the same.
        store: see `run`.
        artifacts: see `run`.
        to_artifacts: folder for the images of the copy; by default that beside the other store.

    Raises:
        UserError: there is no such study, or the other store has one of this name.
    """
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(Store(store_url(store), images_folder(artifacts), read_only=True))
        studies = _parts(source, name)
        names = _names(studies, name, new or name)
        target = stack.enter_context(Store(to or store_url(store), images_folder(to_artifacts)))
        if to is None and artifacts is not None and to_artifacts is None:
            target.artifacts = source.artifacts
        _check_free(target, names.values())
        half = {study.study_name: study for study in target.storage.get_all_studies()}
        copied = {}
        for old, study in studies.items():
            if left := half.get(names[old] + _HALF):  # of a copy that was stopped
                _delete(target, left)
            _copy_images(source, target, study)
            optuna.copy_study(
                from_study_name=old,
                from_storage=source.storage,
                to_storage=target.storage,
                to_study_name=names[old] + _HALF,
            )
            copied[target.storage.get_study_id_from_name(names[old] + _HALF)] = names[old]
        rename_studies(target.storage.engine, copied, SPEC)


@contextlib.contextmanager
def _alone(
    store: str | None, artifacts: str | Path | None, name: str
) -> Iterator[tuple[Store, dict[str, FrozenStudy]]]:
    """The store, open for writing, and the parts of a study that nobody is at work on."""
    with Store(store_url(store), images_folder(artifacts), read_only=True) as looked:
        _parts(looked, name)  # or refuses, before a database is made
    with Store(store_url(store), images_folder(artifacts)) as opened, opened.locked():
        studies = _parts(opened, name)
        if not opened.is_sqlite and any(opened.at_work(each) for each in studies):
            raise UserError(f"study '{name}' in {opened.shown_url}: a driver is at work on it", "Stop it first.")
        yield opened, studies


def _parts(store: Store, name: str) -> dict[str, FrozenStudy]:
    """A study, and its study of cases."""
    studies = {study.study_name: study for study in store.storage.get_all_studies()}
    if name not in studies:
        if not studies:
            raise NoStudiesError(f"{store.shown_url}: no studies yet", "Make one with `ddstudy run`.")
        raise UserError(f"{store.shown_url}: no study '{name}'", f"Valid: {', '.join(store.names())}.")
    return {each: studies[each] for each in (name, name + OF_CASES) if each in studies}


def _names(studies: dict[str, FrozenStudy], old: str, new: str) -> dict[str, str]:
    """What each part of a study is called under a new name.

    Raises:
        UserError: it is no name.
    """
    space = {"k": [1], "s": [1], "l": [1], "iterations": [1]}
    parse_spec({"name": new, "space": space}, "new name")
    return {each: new + each.removeprefix(old) for each in studies}


def _check_free(store: Store, names: Iterable[str]) -> None:
    taken = {study.study_name for study in store.storage.get_all_studies()}
    for name in names:
        if name in taken:
            raise UserError(f"{store.shown_url}: there is a study '{name}' already", "Give another name.")


def _delete(store: Store, study: FrozenStudy) -> None:
    """Deletes a study, then those of its images that no other study has."""
    engine = store.storage.engine
    theirs = image_files(engine, id_of(study))
    store.storage.delete_study(id_of(study))
    forget_study(engine, id_of(study))
    for other in store.storage.get_all_studies():
        theirs -= image_files(engine, id_of(other))
    for artifact in theirs:
        (store.artifacts / artifact).unlink(missing_ok=True)


def _copy_images(source: Store, target: Store, study: FrozenStudy) -> None:
    if os.path.realpath(source.artifacts) == os.path.realpath(target.artifacts):
        return
    for artifact in sorted(image_files(source.storage.engine, id_of(study))):
        if (source.artifacts / artifact).is_file():
            target.artifacts.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.artifacts / artifact, target.artifacts / artifact)
