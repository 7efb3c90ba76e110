"""The slices of a volume along a plane, on one scale of intensities, and what was made of them, put back in place."""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddstudy.errors import UserError
from ddstudy.images.files import Affine, Forms, Volume
from ddstudy.images.volumes import (
    NORMALS,
    UNDAMAGED,
    Plane,
    Target,
    number_of,
    open_source,
    plane_of,
    reading,
    resample,
    sides_of,
    slice_index,
    source_of,
    unit_range,
    unresample,
)
from ddstudy.spec.cases import slices_of
from ddstudy.spec.options import TargetSpec

Chosen = str | int | Iterable[int]
_VALID = "Valid: 'all', indices, ranges as '40:140:10', without the end, or 'mid+-30:10' around the middle"


@dataclass(frozen=True, eq=False)
class Slices:
    """Slices of a volume, to be fitted one by one or some together.

    All are on one scale, that of the whole volume, so that their reconstructions join without steps, and that a slice
    does not depend on which others were chosen.

    Attributes:
        name: of the volume, short, for people.
        targets: index along the plane's normal -> slice.
        constant: likewise, of slices whose pixels are all equal, that number in [0, 1]: there is nothing to fit.
        scale: intensities in the file that 0 and 1 stand for.
        affine: from voxels as they are stored to world mm, RAS+.
        digest: SHA-256 over the volume and where it lies, in hexadecimal.
    """

    name: str
    targets: Mapping[int, Target]
    constant: Mapping[int, float]
    scale: tuple[float, float]
    affine: Affine
    digest: str
    _plane: Plane
    _size: tuple[int, int] | None
    _header: Any

    def volume(self, outputs: Mapping[int, NDArray[np.float32]]) -> NDArray[np.float32]:
        """Reconstructions (1, H, W) in [0, 1], by slice, as the stored voxels (X, Y, Z) of the volume, in its units.

        Slices of which there is none are 0, constant ones as they were.
        """
        lower, upper = self.scale
        rows, columns, _ = self._plane.shape
        sides = sides_of(self.affine @ self._plane.to_stored(0))
        shown = np.zeros(self._plane.shape, dtype=np.float32)
        for index, value in self.constant.items():
            shown[..., index] = lower + (upper - lower) * value
        for index, output in outputs.items():
            unit = unresample(output[0], (rows, columns), sides, self._size)
            shown[..., index] = lower + (upper - lower) * unit.astype(np.float64)
        return np.ascontiguousarray(self._plane.voxels(shown))

    def nifti_bytes(self, voxels: NDArray[np.float32]) -> bytes:
        """A volume as `volume` makes it as a gzipped NIfTI: grid, affine, codes and units are those of the file."""
        import nibabel

        if self._header is None:
            image = nibabel.Nifti1Image(voxels, self.affine)
            image.header.set_xyzt_units("mm")
        else:
            header = self._header.copy()
            header.extensions.clear()  # notes about other voxels
            header.set_data_dtype(np.float32)
            header["cal_min"] = header["cal_max"] = 0  # the range that viewers would show
            kind = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
            image = kind(voxels, None, header)  # without an affine, those of the header stay
        return gzip.compress(image.to_bytes(), mtime=0)


def load_slices(spec: TargetSpec, chosen: Chosen = "all") -> Slices:
    """Reads a volume and cuts slices, each oriented and resampled as `load_target` does with one.

    Intensities are scaled to [0, 1] over the volume as a whole: its minimum and maximum, or its `spec.percentiles`
    (clipped), become 0 and 1.

    Args:
        spec: the `[target]` table; its `slice` chooses nothing.
        chosen: "all"; an index or several; ranges as "40:140:10", without the end, or "mid+-30:10", around the middle;
            a text may have several of these, separated by commas.

    Raises:
        UserError: the file is no volume, is damaged, or has values that are not finite; slices do not exist.
    """
    path, where, name = source_of(spec)
    with reading(where, UNDAMAGED), ExitStack() as files:
        source = open_source(path, spec.volume or 0, where, files)
        if not isinstance(source, Volume):
            raise UserError(f"{where}: is a picture, it has no slices", "Valid: a volume.")
        plane = plane_of(source, spec, where)
        voxels = source.whole(number_of(spec.volume, source, where), where)
        affine, header = source.affine, source.header
    indices = _indices(chosen, plane.shape[2], f"{where}: slices", spec.plane)
    images, scale = unit_range(np.moveaxis(plane.displayed(voxels), 2, 0), spec, where, what="volume")
    hashed = hashlib.sha256(images.tobytes() + repr((images.shape, scale, affine.tolist())).encode())
    hashed.update(b"" if header is None else header.binaryblock)
    targets, constant = {}, {}
    for index in indices:
        image = images[index][None]
        if np.ptp(image) == 0:
            constant[index] = float(image.flat[0])
            continue
        to_stored = plane.to_stored(index)
        image, to_old = resample(image, sides_of(affine @ to_stored), spec.size, where)
        placed = affine @ to_stored @ to_old
        targets[index] = Target(
            np.clip(image, 0, 1), f"{name} {spec.plane} {index}", placed, scale, Forms(), number=index
        )
    if not targets:
        raise UserError(f"{where}: every chosen slice is constant", "Valid: slices whose intensities differ.")
    return Slices(name, targets, constant, scale, affine, hashed.hexdigest(), plane, spec.size, header)


def _indices(chosen: Chosen, depth: int, where: str, plane: str) -> list[int]:
    """Indices of slices, ascending.

    Raises:
        UserError: the words are not understood, or such slices do not exist.
    """
    found: set[int] = set()
    items = chosen.split(",") if isinstance(chosen, str) else [chosen] if isinstance(chosen, int) else list(chosen)
    for item in items:
        text = str(item).strip()
        try:
            named = range(depth) if text == "all" else slices_of(text)
        except ValueError as error:
            raise UserError(f"{where}: {error}", f"{_VALID}.") from None
        for each in map(str, named):
            if not re.fullmatch("mid([+-][0-9]{1,5})?|[0-9]{1,6}", each):
                raise UserError(f"{where}: cannot be {item!r}", f"{_VALID}.")
            found.add(slice_index(int(each) if each.isdecimal() else each, depth))
    if not found:
        raise UserError(f"{where}: none are chosen", f"{_VALID}.")
    if away := [index for index in sorted(found) if not 0 <= index < depth]:
        raise UserError(f"{where}: there is no {plane} slice {away[0]}", f"Valid: 0 to {depth - 1} ({NORMALS[plane]}).")
    return sorted(found)
