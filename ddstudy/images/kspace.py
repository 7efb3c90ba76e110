"""Measured k-space: Cartesian samples of one slice from .npy files, and from .h5 files in fastMRI's layout.

Such a file holds no image. What stands for one, wherever a study needs a picture or a size, is the magnitude of the
zero-filled reconstruction, the root of the coils' sum of squares, of which the brightest pixel is 1.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddstudy.errors import UserError
from ddstudy.images.files import check_file, check_pixels, open_array
from ddstudy.images.volumes import SIDE, Target, reading, slice_index
from ddstudy.spec.files import path_of
from ddstudy.spec.options import TargetSpec

_VALID = (
    "Valid: complex k-space, zero frequency in the middle: .npy (rows, columns) or (coils, rows, columns), "
    "or fastMRI's .h5."
)
_LAYOUT = "Valid: fastMRI's layout, complex `kspace` (slices, rows, columns) or (slices, coils, rows, columns)."


def centred_fft(images: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """Orthonormal FFT over the last two axes, origin and zero frequency at (H // 2, W // 2)."""
    return _centred(np.fft.fft2, images)


def centred_ifft(kspace: NDArray[Any]) -> NDArray[np.complex128]:
    """The inverse of `centred_fft`."""
    return _centred(np.fft.ifft2, kspace)


def _centred(transform: Callable[..., NDArray[Any]], values: NDArray[Any]) -> NDArray[np.complex128]:
    plane = (-2, -1)
    return np.asarray(np.fft.fftshift(transform(np.fft.ifftshift(values, axes=plane), norm="ortho"), axes=plane))


def kspace_target(spec: TargetSpec) -> Target:
    """Reads measured k-space and makes it a target, whose `scale` is what 0 and 1 stand for in the file's units.

    A .npy file is one slice, complex (H, W) or (coils, H, W). An .h5 file has fastMRI's layout: `kspace`, complex
    (slices, H, W) or (slices, coils, H, W), of which `spec.slice` chooses one (`mid` is n // 2), and perhaps `mask`,
    (W,) or (H, W), that says where it was measured. Without a mask it was where any coil is not exactly 0.

    Args:
        spec: the `[target]` table; of its options only `file` and `slice` mean anything for k-space.

    Raises:
        UserError: the file is missing, damaged or of another kind or shape, holds numbers that are real, not finite
            or all 0, has no such slice, or other options of `[target]` are set.
    """
    if spec.file is None:
        raise UserError("target.file: measured k-space needs a file", _VALID)
    where, path = spec.file, path_of(spec.file)
    for key in ("plane", "volume", "intensity", "size"):
        if getattr(spec, key) != TargetSpec.model_fields[key].default:
            raise UserError(f"{where}: is k-space, target.{key} chooses nothing", f"Valid: leave `{key}` out.")
    name, suffix = os.fsencode(path.name).decode(errors="replace"), path.suffix.lower()
    check_file(path, where, _VALID)
    with reading(where, _VALID):
        if suffix == ".npy":
            measured = _array(path, spec, where)
        elif suffix in (".h5", ".hdf5"):
            measured, index = _fastmri(path, spec, where)
            name += f" slice {index}"
        else:
            raise UserError(f"{where}: '{path.suffix}' is no known kind of k-space", _VALID)
    _check_finite(measured, where)
    magnitude = np.sqrt((np.abs(centred_ifft(measured)) ** 2).reshape(-1, *measured.shape[-2:]).sum(axis=0))
    brightest = float(magnitude.max())
    if not 0 < brightest < np.inf:
        raise UserError(f"{where}: all samples are 0, or their squares too large", "Valid: measured k-space.")
    image = (magnitude[None] / brightest).astype(np.float32)
    return Target(image, name, None, (0.0, brightest), kspace=(measured / brightest).astype(np.complex64))


def load_maps(file: str) -> NDArray[np.complex64]:
    """Reads coil sensitivities, a complex .npy file (coils, H, W), and makes their squares' sum 1 where it is not 0.

    So the image that they belong to has the magnitude of the coils' root sum of squares.

    Raises:
        UserError: the file is missing, damaged, or holds no such numbers.
    """
    valid = "Valid: .npy with complex numbers (coils, rows, columns)."
    path = path_of(file)
    check_file(path, file, valid)
    with reading(file, valid):
        stored = open_array(path)
        _check(stored, (3,), file, valid)
        maps = np.asarray(stored, dtype=np.complex128)
    _check_finite(maps, file)
    norm = np.sqrt((np.abs(maps) ** 2).sum(axis=0))
    return (maps / np.where(norm > 0, norm, 1)).astype(np.complex64)


def _array(path: Path, spec: TargetSpec, where: str) -> NDArray[np.complex128]:
    stored = open_array(path)
    _check(stored, (2, 3), where, _VALID)
    if spec.slice != "mid":
        raise UserError(f"{where}: is one slice, target.slice = {spec.slice} chooses nothing", "Valid: leave it out.")
    return np.asarray(stored, dtype=np.complex128)


def _fastmri(path: Path, spec: TargetSpec, where: str) -> tuple[NDArray[np.complex128], int]:
    """A slice of a file in fastMRI's layout, 0 where its mask is, and the index of the slice."""
    try:
        import h5py
    except ModuleNotFoundError:
        raise UserError(f"{where}: h5py is not installed", "Install it: pip install 'ddstudy[inverse]'.") from None
    with h5py.File(path) as file:
        stored = file.get("kspace")
        if not isinstance(stored, h5py.Dataset):
            raise UserError(f"{where}: holds no dataset `kspace`", _LAYOUT)
        _check(stored, (3, 4), where, _LAYOUT)
        index = slice_index(spec.slice, len(stored))
        if not 0 <= index < len(stored):
            raise UserError(f"{where}: has no slice {index}", f"Valid: `slice` from 0 to {len(stored) - 1}, or 'mid'.")
        measured = np.asarray(stored[index], dtype=np.complex128)
        if "mask" in file:
            mask = np.asarray(file["mask"]) != 0
            if mask.shape not in (measured.shape[-1:], measured.shape[-2:]):
                wrong = f"{where}: its mask is {_shape(mask)}, its k-space {_shape(measured)}"
                raise UserError(wrong, "Valid: a mask of the columns, or of rows x columns.")
            measured[~np.broadcast_to(mask, measured.shape)] = 0
    return measured, index


def _check_finite(values: NDArray[np.complex128], where: str) -> None:
    if bad := values.size - np.count_nonzero(np.isfinite(values)):
        wrong = f"{where}: {bad:,} of {values.size:,} values are NaN or infinite"
        raise UserError(wrong, "Valid: finite numbers, exactly 0 where there is nothing.")


def _check(stored: Any, axes: tuple[int, ...], where: str, valid: str) -> None:
    """Refuses what is no k-space by its header, before any of it is read."""
    if stored.dtype.kind != "c":
        raise UserError(f"{where}: holds values of type {stored.dtype}, not complex ones", valid)
    if len(stored.shape) not in axes or 0 in stored.shape:
        raise UserError(f"{where}: its k-space is {_shape(stored)}", valid)
    height, width = stored.shape[-2:]
    if not SIDE[0] <= min(height, width) <= max(height, width) <= SIDE[1]:
        raise UserError(f"{where}: its k-space is {_shape(stored)}", f"Valid: {SIDE[0]} to {SIDE[1]} rows and columns.")
    coils = stored.shape[-3] if len(stored.shape) == max(axes) else 1
    check_pixels(coils * height, width, where)


def _shape(array: Any) -> str:
    return " x ".join(map(str, array.shape))
