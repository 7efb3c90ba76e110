"""Files that a user names: written whole or not at all, and refused before hours are spent on what fills them."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from pathlib import Path

from ddstudy.errors import UserError


def write_file(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all; a link is followed, and a device or a pipe is written into.

    Raises:
        UserError: it cannot be written.
    """
    part = None
    try:
        if path.exists() and not path.is_file():  # /dev/stdout may lead to a pipe, which has no path of its own
            with path.open("wb") as special:
                special.write(content)
            return
        path_itself = Path(os.path.realpath(path))
        if path_itself.is_symlink():  # a circle of links
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        with tempfile.NamedTemporaryFile(dir=_folder_of(path_itself), delete=False) as file:
            part = Path(file.name)
            file.write(content)
        part.chmod(0o666 & ~_umask())
        part.replace(path_itself)
    except OSError as error:
        if part is not None:
            part.unlink(missing_ok=True)
        raise _unwritable(path, error) from None


def write_files(stem: Path, contents: dict[str, bytes]) -> list[Path]:
    """Writes files that share a name.

    Args:
        stem: folder and name, without suffix.
        contents: suffix -> content.

    Returns:
        The files, in the order of their suffixes.

    Raises:
        UserError: they cannot be written.
    """
    check_stem(stem)
    paths = [stem.with_name(stem.name + suffix) for suffix in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        write_file(path, content)
    return paths


def check_new(path: Path) -> None:
    """Refuses a file that is there already, or could not be written.

    Raises:
        UserError: it is there, its folder does not exist or is not writable.
    """
    if os.path.lexists(path):
        raise UserError(f"{path}: is there already", "Name another file with --out.")
    _check_folder(_folder_of(path), path.name, path)


def check_stem(stem: Path) -> None:
    """Refuses a name for files that could not be written.

    Raises:
        UserError: it is no name, its folder does not exist or is not writable.
    """
    folder = stem.absolute().parent
    if not stem.name or not folder.is_dir():
        raise UserError(
            f"--out {stem}: no name of files in a folder that exists", "Valid: FOLDER/NAME, without suffix."
        )
    _check_folder(folder, stem.name + "-checks.csv", f"--out {stem}")


def _folder_of(path: Path) -> Path:
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder", "Name a file in a folder that exists.")
    return folder


def _check_folder(folder: Path, name: str, told: object) -> None:
    """Refuses a folder where no file can be made, or none of such a name."""
    try:
        with contextlib.suppress(FileNotFoundError):
            os.lstat(folder / name)  # which may be too long
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(told, error) from None


def _unwritable(name: object, error: OSError) -> UserError:
    return UserError(f"{name}: cannot be written ({error.strerror or error})", "Name a file in a writable folder.")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
