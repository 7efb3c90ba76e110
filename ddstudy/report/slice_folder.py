"""Finished slices of a volume, kept in a folder beside its files until it is whole, so that nothing loses them."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from ddstudy.errors import UserError
from ddstudy.report.writing import write_file

SUFFIX = ".slices"  # of the folder, after the name of the files
_SETTING = "setting.json"

Values = Mapping[str, float | int | str]


@dataclass(frozen=True, eq=False)
class Finished:
    """Slices that were fitted, by their index: what one fit made.

    Attributes:
        outputs: float32 (1, H, W) in [0, 1].
        values: what was measured.
    """

    outputs: Mapping[int, NDArray[np.float32]]
    values: Mapping[int, Values]


class SliceFolder:
    """What is finished of one volume; files appear whole or not at all.

    Args:
        path: an existing folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, slices: Sequence[int]) -> Finished | None:
        """Slices that were finished together; None where they are not.

        Raises:
            UserError: the file is damaged.
        """
        file = self._file(slices, ".npz")
        if not file.exists():
            return None
        try:
            with file.open("rb") as opened, np.load(opened) as content:
                outputs, values = content["outputs"], json.loads(str(content["values"]))
        except Exception as error:  # whatever a damaged archive makes readers raise
            raise UserError(
                f"{file}: cannot be read ({error})", "Delete it: its slices are then fitted again."
            ) from None
        return Finished(dict(zip(slices, outputs, strict=True)), dict(zip(slices, values, strict=True)))

    def write(self, slices: Sequence[int], done: Finished, weights: NDArray[np.float32] | None) -> None:
        """Keeps slices that were finished together, and the weights that others will start from."""
        if weights is not None:
            write_file(self._file(slices, "-weights.npy"), _bytes(lambda file: np.save(file, weights)))
        outputs = np.stack([done.outputs[index] for index in slices])
        values = json.dumps([done.values[index] for index in slices])
        content = _bytes(lambda file: np.savez_compressed(file, outputs=outputs, values=np.array(values)))
        write_file(self._file(slices, ".npz"), content)

    def weights(self, slices: Sequence[int]) -> NDArray[np.float32]:
        """That were kept with slices."""
        weights: NDArray[np.float32] = np.load(self._file(slices, "-weights.npy"))
        return weights

    def forget_weights(self, needed: Collection[Sequence[int]]) -> None:
        """Deletes all but those of some slices."""
        kept = {self._file(slices, "-weights.npy") for slices in needed}
        for file in set(self.path.glob("*-weights.npy")) - kept:
            file.unlink()

    def _file(self, slices: Sequence[int], suffix: str) -> Path:
        return self.path / f"{slices[0]:05d}{suffix}"


@contextmanager
def slice_folder(stem: Path, setting: Mapping[str, Any]) -> Iterator[SliceFolder]:
    """The folder of finished slices beside files of a name; it goes when the block is left without an error.

    So it does where nothing was finished, which leaves nothing to keep.

    Args:
        stem: folder and name of the files, without suffix.
        setting: all that the slices depend on, as JSON has it.

    Raises:
        UserError: the folder is of another setting, somebody is at work in it, or it cannot be made.
    """
    path = stem.with_name(stem.name + SUFFIX)
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be made ({error.strerror})", "Name files in a writable folder.") from None
    try:
        with FileLock(path / ".lock", timeout=0):
            _check(path, json.loads(json.dumps(setting)))
            done = False
            try:
                yield SliceFolder(path)
                done = True
            finally:
                if done or not any(path.glob("*.npz")):
                    shutil.rmtree(path)
    except Timeout:
        raise UserError(f"{path}: another run is at work there", "Wait for it, or choose another --out.") from None


def _check(path: Path, setting: dict[str, Any]) -> None:
    """Notes in a folder without slices what they will depend on, or compares."""
    file = path / _SETTING
    if not any(path.glob("*.npz")):
        write_file(file, json.dumps(setting, indent=1).encode())
        return
    try:
        there = json.loads(file.read_bytes())
        differing = [key for key in {**there, **setting} if there.get(key) != setting.get(key)]
    except (OSError, ValueError, TypeError, AttributeError):
        differing = [f"{_SETTING} cannot be read"]
    if differing:
        shown = ", ".join(differing[:5]) + ", ..." * (len(differing) > 5)
        raise UserError(
            f"{path}: holds slices of another fit; what differs: {shown}",
            "Valid: the command that began it, which goes on; another --out; or delete the folder.",
        )


def _bytes(write: Callable[[io.BytesIO], object]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()
