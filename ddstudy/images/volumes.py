"""Targets: the image that is fitted, cut from a volume or read from a picture (thesis sec. 3.2).

A target looks as radiologists look at it and lies in [0, 1]. It knows where it lies in the scanner: its affine
follows every flip, resampling and padding, so that a reconstruction is a NIfTI volume of one slice in its own right.
"""

from __future__ import annotations

import hashlib
import logging
import os
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddstudy.errors import UserError
from ddstudy.images.files import (
    PICTURES,
    VOLUMES,
    Affine,
    Forms,
    Volume,
    check_file,
    check_pixels,
    open_array,
    open_volume,
    places_voxels,
    read_picture,
    volume_of,
)
from ddstudy.spec.files import path_of
from ddstudy.spec.options import TargetSpec, Value

MNI152 = "MNI152 T1"
_MNI152 = "package:nilearn/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
SIDE = (8, 4096)  # pixels, the same as `target.size` allows

_FORMATS = "NIfTI (.nii, .nii.gz), MGH (.mgh, .mgz), PNG, JPEG, TIFF or .npy"
UNDAMAGED = f"Valid: an undamaged {_FORMATS} file."
_AXES = {"axial": (1, 0, 2), "coronal": (2, 0, 1), "sagittal": (2, 1, 0)}  # rows, columns, normal among R, A, S
NORMALS = {"axial": "inferior to superior", "coronal": "posterior to anterior", "sagittal": "left to right"}
# letters of the directions in which the left and the right of a displayed slice lie: right, left, anterior, posterior
SIDES = {"axial": "RL", "coronal": "RL", "sagittal": "AP"}
_SHAPES = "an array (H, W), (C, H, W) or (H, W, C) with 1 or 3 channels"
_NOT_NUMBERS = {"c": "complex numbers", "V": "structured values such as RGB", "U": "text", "S": "text"}


@dataclass(frozen=True, eq=False)
class Target:
    """The image to fit.

    Attributes:
        image: float32 array (C, H, W) in [0, 1], C-contiguous, rows and columns as displayed; C is 1 (grey) or 3 (RGB).
        name: short text for people, for example `MNI152 T1 axial 94`.
        affine: float64 array (4, 4) that maps (row, column, 0, 1) of `image` to world mm, RAS+, so that
            `nibabel.Nifti1Image(output[:, :, None], affine)` lies where the slice lay; None for pictures.
        scale: intensities in the file that 0 and 1 of `image` stand for.
        forms: the same as `affine` by each way in which the header of a NIfTI file says it, with its code.
        repeat: float32 (C, H, W), another measurement of the same slice on the same scale, not clipped; None: there is
            none, or none was asked for.
        kspace: complex64 (H, W) or (coils, H, W), where the file holds k-space: centred, exactly 0 where it was not
            measured, in units in which `image`, the zero-filled magnitude, is at most 1. None for images.
        beside: what other files hold that its measurement depends on, hashed.
        number: of a slice of a volume that is measured as a whole, its index: its noise is its own. None elsewhere.
    """

    image: NDArray[np.float32]
    name: str
    affine: Affine | None
    scale: tuple[float, float] = (0.0, 1.0)
    forms: Forms = field(default_factory=dict)
    repeat: NDArray[np.float32] | None = None
    kspace: NDArray[np.complex64] | None = None
    beside: bytes = b""
    number: int | None = None

    @property
    def digest(self) -> str:
        """SHA-256 over shape, pixels and what belongs to them, in hexadecimal, the same on every machine."""
        hashed = hashlib.sha256(repr(self.image.shape).encode() + self.image.astype("<f4").tobytes())
        if self.repeat is not None:
            hashed.update(self.repeat.astype("<f4").tobytes())
        if self.kspace is not None:
            hashed.update(repr(self.kspace.shape).encode() + self.kspace.astype("<c8").tobytes())
        hashed.update(self.beside)
        return hashed.hexdigest()

    @property
    def all(self) -> list[NDArray[np.float32]]:
        """The images of a study: this one."""
        return [self.image]

    def of(self, point: Mapping[str, Value]) -> Target:
        """The image of one setting or fit of a study whose every setting has this one."""
        return self


@dataclass(frozen=True, eq=False)
class Targets:
    """The images of a study that searches options of `[target]`.

    Attributes:
        axes: those options.
        images: their values -> the image.
    """

    axes: tuple[str, ...]
    images: Mapping[tuple[Value | None, ...], Target]

    @property
    def image(self) -> NDArray[np.float32]:
        """The first one, which stands for all where sizes are asked for."""
        return next(iter(self.images.values())).image

    @property
    def all(self) -> list[NDArray[np.float32]]:
        """The images."""
        return [target.image for target in self.images.values()]

    @property
    def name(self) -> str:
        """For people."""
        first, *others = dict.fromkeys(target.name for target in self.images.values())
        return f"{first} and {len(others)} more" if others else first

    @property
    def digest(self) -> dict[str, str]:
        """Of each, by its values."""
        return {", ".join(map(str, values)): target.digest for values, target in self.images.items()}

    def of(self, point: Mapping[str, Value]) -> Target:
        """The image of one setting or fit."""
        return self.images[tuple(point.get(axis) for axis in self.axes)]


def short_digest(target: Target | Targets) -> str:
    """The beginning of a digest, or of that of several, for people."""
    digest = target.digest
    text = digest if isinstance(digest, str) else hashlib.sha256(repr(sorted(digest.items())).encode()).hexdigest()
    return text[:16]


def load_target(spec: TargetSpec, scale: tuple[float, float] | None = None, *, own_noise: bool = False) -> Target:
    """Reads a volume or picture and makes it a target (thesis sec. 3.2).

    Volumes (NIfTI, MGH, .npy of shape (X, Y, Z)) are brought to the closest RAS+ order and cut at `spec.slice`, which
    counts along the plane's normal: left to right, posterior to anterior, inferior to superior; `mid` is n // 2.
    NIfTI's sform goes before its qform where it places voxels at all; metres and microns become mm. The slice is
    shown as radiologists look at it:

    * axial: anterior at the top, the patient's right on the image's left;
    * coronal: superior at the top, the patient's right on the image's left;
    * sagittal: superior at the top, anterior on the image's left.

    Pixels whose sides differ by more than 1 % are resampled to squares of the smaller side. A .npy volume has no
    header and is taken as RAS+ with voxels of 1 mm; (H, W), (H, W, 1) and (H, W, 3) in a .npy are pictures, as
    displayed. Of a volume only the slice is read.
    Pictures lose their alpha channel, and three equal channels become one.

    Intensities are scaled before any resampling, over all channels together: the slice's minimum and maximum, or
    `spec.percentiles` of it (clipped), become 0 and 1.

    Args:
        spec: the `[target]` table. Without a file, the MNI152 T1 template packaged in nilearn (1 mm, 197 x 233 x 189).
        scale: intensities that become 0 and 1, nothing being clipped; by default what `spec` says.
        own_noise: a slice has noise of its own when it is measured (`Target.number`), not that of all other slices.

    Raises:
        UserError: the file is missing, damaged or of another kind; volume or slice do not exist; the slice holds
            values that are not finite, or is constant; the target would be smaller than 8 or larger than 4096 pixels.
    """
    path, where, name = source_of(spec)
    affine, forms, number = None, Forms(), None
    with reading(where, UNDAMAGED), ExitStack() as files:
        source = open_source(path, spec.volume or 0, where, files)
        if isinstance(source, Volume):
            pixels, to_stored, index = _cut(source, spec, where)
            affine, forms, number = source.affine, source.forms, index if own_noise else None
            name += f" {spec.plane} {index}" + ("" if spec.volume is None else f" volume {spec.volume}")
        else:
            pixels, to_stored = source, np.eye(4)
            _refuse_options_of_volumes(spec, where)
    clipped = scale is None
    image, scale = unit_range(_channels(pixels), spec, where, scale)
    sides = np.ones(2) if affine is None else sides_of(affine @ to_stored)
    image, to_old = resample(image, sides, spec.size, where)
    image = np.clip(image, 0, 1) if clipped else image
    to_stored = to_stored @ to_old
    forms = {form: (placed @ to_stored, code) for form, (placed, code) in forms.items()}
    return Target(image, name, None if affine is None else affine @ to_stored, scale, forms, number=number)


def source_of(spec: TargetSpec) -> tuple[Path, str, str]:
    """Which file is read, how errors name it, and its name for people."""
    path = path_of(spec.file or _MNI152)
    return path, spec.file or MNI152, os.fsencode(path.name).decode(errors="replace") if spec.file else MNI152


def target_of(image: ArrayLike, spec: TargetSpec, where: str = "image") -> Target:
    """Makes an array a target, exactly as `load_target` does with the same array in a .npy file.

    Args:
        image: real numbers of any range, (H, W), (H, W, 1), (H, W, 3), (1, H, W) or (3, H, W). Which of the axes the
            channels are on is never in doubt, since a side has at least 8 pixels.
        spec: intensities and size; the options that cut a volume choose nothing.
        where: names the image in errors.

    Raises:
        UserError: it is no such array, or holds what `load_target` refuses.
    """
    try:
        pixels = np.asarray(image)
    except (TypeError, ValueError):  # rows of different lengths, a tensor on a GPU
        raise UserError(f"{where}: is no array of numbers", f"Valid: {_SHAPES}.") from None
    _check_values(pixels, where)
    if pixels.ndim == 3 and pixels.shape[2] not in (1, 3) and pixels.shape[0] in (1, 3):
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
        raise UserError(f"{where}: its shape is {' x '.join(map(str, pixels.shape))}", f"Valid: {_SHAPES}.")
    check_pixels(pixels.shape[0], pixels.shape[1], where)
    _refuse_options_of_volumes(spec, where)
    unit, scale = unit_range(_channels(pixels), spec, where)
    return Target(np.clip(resample(unit, np.ones(2), spec.size, where)[0], 0, 1), where, None, scale)


def load_mask(file: str) -> NDArray[np.bool_]:
    """Reads a mask, (H, W): true where any channel of a picture, or a two-dimensional .npy file, is not 0.

    Raises:
        UserError: the file is missing, damaged, or no such image.
    """
    with reading(file, UNDAMAGED), ExitStack() as files:
        pixels = open_source(path_of(file), 0, file, files)
        if isinstance(pixels, Volume):
            raise UserError(f"{file}: is a volume, no mask", "Valid: PNG, JPEG, TIFF or .npy (rows, columns).")
        return np.asarray((_channels(pixels) != 0).any(axis=0))


def _channels(pixels: NDArray[Any]) -> NDArray[Any]:
    """A picture (H, W) or (H, W, C) as (C, H, W); equal channels are grey."""
    channels = np.moveaxis(np.atleast_3d(pixels), -1, 0)
    return channels[:1] if np.array_equal(channels, np.broadcast_to(channels[:1], channels.shape)) else channels


@contextmanager
def reading(where: str, valid: str) -> Iterator[None]:
    """Whatever a reader says about a damaged file, in words for the user and without noise on the terminal."""
    loggers = [logging.getLogger(name) for name in ("nibabel.global", "tifffile")]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # a damaged header makes readers raise almost anything, MemoryError included
            traceback.clear_frames(error.__traceback__)  # nibabel leaves a damaged file open
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{where}: cannot be read ({reason})", valid) from None
        finally:
            for logger, disabled in zip(loggers, before, strict=True):
                logger.disabled = disabled


def open_source(path: Path, number: int, where: str, files: ExitStack) -> Volume | NDArray[Any]:
    """A volume, in its file, or the pixels of a picture, (H, W) or (H, W, 3)."""
    valid = f"Valid: a {_FORMATS} file."
    check_file(path, where, valid)
    name = path.name.lower()
    source: Volume | NDArray[Any]
    if name.endswith(VOLUMES):
        source = files.enter_context(open_volume(path, number, where))
    elif name.endswith(PICTURES):
        source = read_picture(path, where)
    elif name.endswith(".npy"):
        source = open_array(path)
    else:
        raise UserError(f"{where}: '{path.suffix}' is no known kind of image", valid)

    values = source.data if isinstance(source, Volume) else source
    _check_values(values, where)
    if isinstance(source, Volume) or not name.endswith(".npy"):
        return source
    if source.ndim == 2 or (source.ndim == 3 and source.shape[2] in (1, 3)):
        check_pixels(source.shape[0], source.shape[1], where)
        return source
    return volume_of(source, where)


def _check_values(values: Any, where: str) -> None:
    if values.dtype.kind not in "biuf":
        kind = _NOT_NUMBERS.get(values.dtype.kind, f"values of type {values.dtype}")
        valid = "Valid: real numbers; save the magnitude of complex data, one channel of a colour volume."
        raise UserError(f"{where}: holds {kind}", valid)
    if 0 in values.shape:
        shape = " x ".join(map(str, values.shape))
        raise UserError(f"{where}: holds no values, its shape is {shape}", "Valid: at least one value on each axis.")


def slice_index(wanted: int | str, depth: int) -> int:
    """Which of so many slices `target.slice` means; it may be outside."""
    return depth // 2 + int(wanted.removeprefix("mid") or 0) if isinstance(wanted, str) else wanted


@dataclass(frozen=True, eq=False)
class Plane:
    """How the slices of a volume along a plane, as they are displayed, lie among its stored voxels.

    Attributes:
        order: of each stored axis, which of R, A, S it follows, and whether with or against it.
        axes: of R, A, S those of the rows, the columns and the normal.
        stored: shape of the stored voxels.
    """

    order: NDArray[np.float64]
    axes: tuple[int, int, int]
    stored: tuple[int, int, int]

    @property
    def stored_axes(self) -> list[int]:
        """Those of the rows, the columns and the normal."""
        return [int(np.flatnonzero(self.order[:, 0] == axis)[0]) for axis in self.axes]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, columns and slices, which count along the normal."""
        rows, columns, normal = (self.stored[axis] for axis in self.stored_axes)
        return rows, columns, normal

    @property
    def forwards(self) -> bool:
        """Whether slices are stored in their order."""
        return bool(self.order[self.stored_axes[2], 1] == 1)

    def displayed(self, voxels: NDArray[Any]) -> NDArray[Any]:
        """Stored voxels as (rows, columns, slices)."""
        from nibabel.orientations import apply_orientation

        # in every plane, down and right on the display are both against RAS+: inferior or posterior, left or posterior
        shown: NDArray[Any] = apply_orientation(voxels, self.order).transpose(self.axes)[::-1, ::-1]
        return shown

    def voxels(self, displayed: NDArray[Any]) -> NDArray[Any]:
        """What `displayed` makes of these is (rows, columns, slices)."""
        from nibabel.orientations import apply_orientation, ornt_transform

        in_ras = displayed[::-1, ::-1].transpose(np.argsort(self.axes))
        stored: NDArray[Any] = apply_orientation(in_ras, ornt_transform([[0, 1], [1, 1], [2, 1]], self.order))
        return stored

    def to_stored(self, index: int) -> Affine:
        """What leads from (row, column, normal) of a slice to stored voxels."""
        from nibabel.orientations import inv_ornt_aff

        (rows, columns, normal), (height, width, _) = self.axes, self.shape
        to_ras = np.zeros((4, 4))
        to_ras[rows, 0] = to_ras[columns, 1] = -1
        to_ras[normal, 2] = to_ras[3, 3] = 1
        to_ras[self.axes, 3] = height - 1, width - 1, index
        return np.asarray(inv_ornt_aff(self.order, self.stored) @ to_ras)


def plane_of(volume: Volume, spec: TargetSpec, where: str) -> Plane:
    """How a volume is cut.

    Raises:
        UserError: its affine places no voxels, or its slices are too large.
    """
    from nibabel.orientations import io_orientation

    if not places_voxels(volume.affine):
        raise UserError(f"{where}: its affine does not place voxels in space", "Valid: an affine that can be inverted.")
    x, y, z, _ = volume.data.shape
    plane = Plane(io_orientation(volume.affine), _AXES[spec.plane], (x, y, z))
    check_pixels(*plane.shape[:2], where)
    return plane


def _cut(volume: Volume, spec: TargetSpec, where: str) -> tuple[NDArray[np.float64], Affine, int]:
    """The slice as displayed, what leads from its (row, column, normal) to stored voxels, and its index in RAS+."""
    plane = plane_of(volume, spec, where)
    number = number_of(spec.volume, volume, where)
    depth = plane.shape[2]
    index = slice_index(spec.slice, depth)
    if not 0 <= index < depth:
        valid = f"Valid: `slice` from 0 to {depth - 1} ({NORMALS[spec.plane]}), or 'mid' = {depth // 2}."
        raise UserError(f"{where}: has no {spec.plane} slice {index}", valid)
    at = index if plane.forwards else depth - 1 - index
    return plane.displayed(volume.slice(plane.stored_axes[2], at, number))[..., 0], plane.to_stored(index), index


def number_of(number: int | None, volume: Volume, where: str) -> int:
    """Which volume of a file is meant.

    Raises:
        UserError: there is none of this number, or several.
    """
    count = volume.data.shape[3]
    if number is not None and not volume.is_series:
        raise UserError(f"{where}: has no volume {number}, it is a single one", "Valid: leave `volume` out.")
    if number is None and count > 1:
        raise UserError(f"{where}: holds {count} volumes", f"Valid: choose one by `volume`, 0 to {count - 1}.")
    if number is not None and number >= count:
        raise UserError(f"{where}: has no volume {number}", f"Valid: `volume` from 0 to {count - 1}.")
    return number or 0


def _refuse_options_of_volumes(spec: TargetSpec, where: str) -> None:
    for key in ("volume", "slice", "plane"):
        value = getattr(spec, key)
        if value != TargetSpec.model_fields[key].default:
            raise UserError(f"{where}: is a picture, {key} = {value} chooses nothing", f"Valid: leave `{key}` out.")


def unit_range(
    channels: NDArray[Any], spec: TargetSpec, where: str, scale: tuple[float, float] | None = None, what: str = "slice"
) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """The channels of a slice, or the slices of a volume, scaled to [0, 1], and the intensities that became 0 and 1.

    One of them at a time is in float64.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        finite = sum(int(np.count_nonzero(np.isfinite(channel.astype(np.float64)))) for channel in channels)
        if bad := channels.size - finite:
            wrong = f"{where}: {bad} of {channels.size} values in the {what} are NaN or infinite"
            raise UserError(wrong, "Valid: finite.")
        if scale is not None:
            lower, upper = scale
        elif spec.intensity == "minmax":
            lower, upper = float(channels.min()), float(channels.max())
        else:
            lower, upper = map(float, np.percentile(channels.astype(np.float64), spec.percentiles))
        if not 0 < upper - lower < np.inf:
            wrong = f"{where}: the {what} is constant, its {spec.intensity} range is {lower:g} to {upper:g}"
            raise UserError(wrong, "Valid: intensities that differ, within the chosen percentiles too.")
        image = np.empty(channels.shape, dtype=np.float32)
        for channel, scaled in zip(channels, image, strict=True):
            unit = (channel.astype(np.float64) - lower) / (upper - lower)
            scaled[:] = np.clip(unit, 0, 1) if scale is None else unit
    return image, (lower, upper)


def sides_of(placed: Affine) -> NDArray[np.float64]:
    """Of a pixel along rows and columns, by the affine of its slice."""
    return np.asarray(np.linalg.norm(placed[:3, :2], axis=0))


def _sizes(
    old: tuple[int, ...], sides: NDArray[np.float64], size: tuple[int, int] | None
) -> tuple[tuple[int, int], NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of a resampled slice, of the part of it that is no padding, and where that begins."""
    square = np.array(old) * sides / sides.min() if sides.max() > 1.01 * sides.min() else np.array(old)
    new = np.maximum(1, np.round(square * min(size / square) if size else square)).astype(int)
    canvas = size or (int(new[0]), int(new[1]))
    return canvas, new, (np.array(canvas) - new) // 2


def resample(
    image: NDArray[np.float32], sides: NDArray[np.float64], size: tuple[int, int] | None, where: str
) -> tuple[NDArray[np.float32], Affine]:
    """Square pixels, then the wanted size: the largest scale that fits, centred on zeros; and where pixels came from.

    Args:
        image: (C, H, W).
        sides: of a pixel, along rows and columns.
        size: rows and columns wanted, or None.
        where: names the file in errors.
    """
    old = np.array(image.shape[1:])
    (rows, columns), new, offset = _sizes(image.shape[1:], sides, size)
    if not SIDE[0] <= min(rows, columns) <= max(rows, columns) <= SIDE[1]:
        valid = f"Valid: {SIDE[0]} to {SIDE[1]} pixels on each side; `size` resizes."
        raise UserError(f"{where}: the slice is {rows} x {columns} pixels", valid)

    canvas = np.zeros((len(image), rows, columns), dtype=np.float32)
    inside = canvas[:, offset[0] : offset[0] + new[0], offset[1] : offset[1] + new[1]]
    for channel, resized in zip(image, inside, strict=True):
        resized[:] = _resize(channel, int(new[0]), int(new[1]))
    # pixels are squares about their index, so a pixel i of the resized slice came from (i + 0.5) / f - 0.5
    to_old = np.diag([*(old / new), 1, 1])
    to_old[:2, 3] = (0.5 - offset) * old / new - 0.5
    return canvas, to_old


def unresample(
    image: NDArray[np.float32], old: tuple[int, int], sides: NDArray[np.float64], size: tuple[int, int] | None
) -> NDArray[np.float32]:
    """A resampled slice (rows, columns) on the pixels that it came from, `old` rows and columns, without its padding.

    Other arguments are those of `resample`.
    """
    _, (height, width), (top, left) = _sizes(old, sides, size)
    return _resize(image[top : top + height, left : left + width], *old)


def _resize(image: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Area averages where an axis shrinks, linear interpolation where it grows; one axis at a time, as both may be."""
    import cv2

    down, across = (
        cv2.INTER_AREA if new < old else cv2.INTER_LINEAR for new, old in zip((height, width), image.shape, strict=True)
    )
    wide = cv2.resize(np.ascontiguousarray(image), (width, image.shape[0]), interpolation=across)
    return np.asarray(cv2.resize(wide, (width, height), interpolation=down), dtype=np.float32)


def finer(target: Target, factor: int) -> Target:
    """A target whose pixels are `factor` times smaller, in the same place: where a super-resolved output lies."""
    if target.affine is None:
        return target
    to_old = np.diag([1 / factor, 1 / factor, 1, 1])
    to_old[:2, 3] = 0.5 / factor - 0.5  # pixels are squares about their index
    forms = {form: (placed @ to_old, code) for form, (placed, code) in target.forms.items()}
    return replace(target, affine=target.affine @ to_old, forms=forms)


def png_bytes(image: NDArray[np.float32]) -> bytes:
    """An image (C, H, W) in [0, 1] as an 8-bit PNG, grey or RGB."""
    import cv2

    pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    return cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()


def error_png_bytes(output: NDArray[np.float32], image: NDArray[np.float32]) -> bytes:
    """Absolute error of a reconstruction (C, H, W), mean over channels, as a colour PNG.

    The scale is fixed, black 0 to bright 0.2, so that maps of different settings can be compared by eye.
    """
    import cv2

    error = np.abs(output - image).mean(axis=0)
    pixels = np.rint(np.clip(error / 0.2, 0, 1) * 255).astype(np.uint8)
    return cv2.imencode(".png", cv2.applyColorMap(pixels, cv2.COLORMAP_INFERNO))[1].tobytes()


def nifti_bytes(image: NDArray[np.float32], target: Target) -> bytes:
    """A grey reconstruction (1, H, W) of a volume's slice as a gzipped NIfTI-1, where the slice lies, in its units.

    Intensities are those of the file that the target came from, and its sform and qform keep their codes.
    """
    import gzip

    import nibabel

    lower, upper = target.scale
    written = nibabel.Nifti1Image((lower + (upper - lower) * image[0].astype(np.float64))[:, :, None], target.affine)
    if target.forms:
        written.set_sform(*target.forms.get("sform", (None, 0)))
        written.set_qform(*target.forms.get("qform", (None, 0)))
    written.header.set_xyzt_units("mm")
    return gzip.compress(written.to_bytes(), mtime=0)
