"""Targets: the image that is fitted, cut from a volume or read from a picture, and its tiles (thesis sec. 3.2).

A target looks as radiologists look at it and lies in [0, 1]. It knows where it lies in the scanner: its affine
follows every flip, resampling and padding, so that a reconstruction is a NIfTI volume of one slice in its own right.
Tiles are a batch; what does not divide is mirrored at the bottom and right, and cropped again when tiles are joined.
"""

from __future__ import annotations

import hashlib
import importlib.util
import traceback
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ddstudy.errors import UserError
from ddstudy.settings import rows_and_columns
from ddstudy.spec import TargetSpec

Number = TypeVar("Number", bound=np.generic)
Affine = NDArray[np.float64]

MNI152 = "MNI152 T1"
SIDE = (8, 4096)  # pixels, the same as `target.size` allows

_VOLUMES = (".nii", ".nii.gz", ".mgh", ".mgz")
_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_FORMATS = "NIfTI (.nii, .nii.gz), MGH (.mgh, .mgz), PNG, JPEG, TIFF or .npy"
_AXES = {"axial": (1, 0, 2), "coronal": (2, 0, 1), "sagittal": (2, 1, 0)}  # rows, columns, normal among R, A, S
_NORMALS = {"axial": "inferior to superior", "coronal": "posterior to anterior", "sagittal": "left to right"}
_NOT_NUMBERS = {"c": "complex numbers", "V": "structured values such as RGB", "U": "text", "S": "text"}


@dataclass(frozen=True, eq=False)
class Target:
    """The image to fit.

    Attributes:
        image: float32 array (C, H, W) in [0, 1], C-contiguous, rows and columns as displayed; C is 1 (grey) or 3 (RGB).
        name: short text for people, for example `MNI152 T1 axial 94`.
        affine: float64 array (4, 4) that maps (row, column, 0, 1) of `image` to world mm, RAS+, so that
            `nibabel.Nifti1Image(output[:, :, None], affine)` lies where the slice lay; None for pictures.
    """

    image: NDArray[np.float32]
    name: str
    affine: Affine | None

    @property
    def digest(self) -> str:
        """SHA-256 over shape and pixels, in hexadecimal, the same on every machine."""
        return hashlib.sha256(repr(self.image.shape).encode() + self.image.astype("<f4").tobytes()).hexdigest()


def load_target(spec: TargetSpec) -> Target:
    """Reads a volume or picture and makes it a target (thesis sec. 3.2).

    Volumes (NIfTI, MGH, .npy of shape (X, Y, Z)) are brought to the closest RAS+ order and cut at `spec.slice`, which
    counts along the plane's normal: left to right, posterior to anterior, inferior to superior; `mid` is n // 2.
    NIfTI's sform goes before its qform. The slice is shown as radiologists look at it:

    * axial: anterior at the top, the patient's right on the image's left;
    * coronal: superior at the top, the patient's right on the image's left;
    * sagittal: superior at the top, anterior on the image's left.

    Pixels whose sides differ by more than 1 % are resampled to squares of the smaller side. A .npy volume has no
    header and is taken as RAS+ with voxels of 1 mm; (H, W) and (H, W, 3) in a .npy are pictures, as displayed.
    Pictures lose their alpha channel, and three equal channels become one.

    Intensities are scaled before any resampling, over all channels together: the slice's minimum and maximum, or
    `spec.percentiles` of it (clipped), become 0 and 1.

    Args:
        spec: the `[target]` table. Without a file, the MNI152 T1 template packaged in nilearn (1 mm, 197 x 233 x 189).

    Raises:
        UserError: the file is missing, damaged or of another kind; volume or slice do not exist; the slice holds
            values that are not finite, or is constant; the target would be smaller than 8 or larger than 4096 pixels.
    """
    path = Path(spec.file) if spec.file else _mni152()
    where = spec.file or MNI152
    name = path.name if spec.file else MNI152
    with _reading(where):
        data, affine = _read(path, where)
        if affine is None:
            pixels = np.asarray(data, dtype=np.float64)
        else:
            volume, affine = _canonical(_one_volume(data, spec.volume, where), affine, where)
    if affine is None:
        _refuse_options_of_volumes(spec, where)
    else:
        index = _slice_index(spec, volume.shape[_AXES[spec.plane][2]], where)
        pixels, affine = _cut(volume, affine, spec.plane, index)
        name += f" {spec.plane} {index}" + ("" if spec.volume is None else f" volume {spec.volume}")
    channels = np.moveaxis(np.atleast_3d(pixels), -1, 0)
    if np.array_equal(channels, np.broadcast_to(channels[:1], channels.shape)):
        channels = channels[:1]
    image, affine = _resample(_unit_range(channels, spec, where), affine, spec.size, where)
    return Target(image, name, affine)


def tile_shape(height: int, width: int, tiling: str) -> tuple[int, int]:
    """Rows and columns of one tile: those of the slice divided by those of the tiling, rounded up."""
    rows, columns = rows_and_columns(tiling)
    return -(-height // rows), -(-width // columns)


def split(image: NDArray[Number], tiling: str) -> NDArray[Number]:
    """Cuts an image into tiles, row by row (thesis Fig. 3.5).

    Args:
        image: array (C, H, W) of any type; a target, or noise of (k, rows * h0, columns * w0).
        tiling: rows x columns, for example `4x5`.

    Returns:
        New array (rows * columns, C, h, w) with (h, w) from `tile_shape`. Where the tiling does not divide the image,
        the image is mirrored at its bottom and right edge (without repeating the edge).
    """
    rows, columns = rows_and_columns(tiling)
    channels, height, width = image.shape
    h, w = tile_shape(height, width, tiling)
    padded = np.pad(image, ((0, 0), (0, rows * h - height), (0, columns * w - width)), mode="reflect")
    grid = padded.reshape(channels, rows, h, columns, w).transpose(1, 3, 0, 2, 4)
    return np.ascontiguousarray(grid).reshape(rows * columns, channels, h, w)


def join(tiles: NDArray[Number], tiling: str, height: int, width: int) -> NDArray[Number]:
    """Puts tiles together again, the inverse of `split`.

    Args:
        tiles: array (..., rows * columns, C, h, w), the leading axes a batch of any shape.
        tiling: the tiling that cut them.
        height: rows of the image before it was split.
        width: columns, likewise.

    Returns:
        New array (..., C, height, width), without the padding.
    """
    rows, columns = rows_and_columns(tiling)
    *batch, _, channels, h, w = tiles.shape
    grid = tiles.reshape(*batch, rows, columns, channels, h, w)
    lines = np.moveaxis(grid, (-3, -5, -2, -4, -1), (-5, -4, -3, -2, -1))  # channels, rows, h, columns, w
    return lines.reshape(*batch, channels, rows * h, columns * w)[..., :height, :width].copy()


def _mni152() -> Path:
    # nilearn is located, not imported: that takes seconds, and the file is all we want
    package = importlib.util.find_spec("nilearn")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("nilearn, which packages the MNI152 template, is not installed")
    return Path(package.origin).parent / "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """Whatever a reader says about a damaged file, in words for the user and without noise on the terminal."""
    from nibabel import imageglobals

    disabled, imageglobals.logger.disabled = imageglobals.logger.disabled, True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # a damaged header makes readers raise almost anything, MemoryError included
            traceback.clear_frames(error.__traceback__)  # nibabel leaves a damaged file open
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{where}: cannot be read ({reason})", f"Valid: an undamaged {_FORMATS} file.") from None
        finally:
            imageglobals.logger.disabled = disabled


def _read(path: Path, where: str) -> tuple[Any, Affine | None]:
    """A picture (H, W) or (H, W, 3) and None, or a volume, perhaps not yet in memory, and its affine."""
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except FileNotFoundError:
        raise UserError(f"{where}: no such file", f"Valid: a {_FORMATS} file.") from None
    except IsADirectoryError:
        raise UserError(f"{where}: is a directory", f"Valid: a {_FORMATS} file.") from None
    if empty:
        raise UserError(f"{where}: is empty", f"Valid: a {_FORMATS} file.")

    name = path.name.lower()
    if name.endswith(_VOLUMES):
        data, affine = _read_volume(path, where)
    elif name.endswith(_PICTURES):
        data, affine = _read_picture(path, where), None
    elif name.endswith(".npy"):
        with path.open("rb") as file:
            data = np.lib.format.read_array(file, allow_pickle=False)
        affine = None if data.ndim == 2 or (data.ndim == 3 and data.shape[2] == 3) else np.eye(4)
    else:
        raise UserError(f"{where}: '{path.suffix}' is no known kind of image", f"Valid: a {_FORMATS} file.")

    if data.dtype.kind not in "biuf":
        kind = _NOT_NUMBERS.get(data.dtype.kind, f"values of type {data.dtype}")
        valid = "Valid: real numbers; save the magnitude of complex data, one channel of a colour volume."
        raise UserError(f"{where}: holds {kind}", valid)
    if 0 in data.shape:
        shape = " x ".join(map(str, data.shape))
        raise UserError(f"{where}: holds no values, its shape is {shape}", "Valid: at least one value on each axis.")
    return data, affine


def _read_volume(path: Path, where: str) -> tuple[Any, Affine]:
    import nibabel

    image = nibabel.load(path)
    if not isinstance(image, nibabel.spatialimages.SpatialImage):  # CIFTI, for one, is a .nii too
        raise UserError(f"{where}: is a {type(image).__name__}, not a volume", "Valid: an image with 3 or 4 axes.")
    return image.dataobj, np.asarray(image.affine, dtype=np.float64)


def _read_picture(path: Path, where: str) -> NDArray[Any]:
    import cv2
    import cv2.utils.logging as log

    data = path.read_bytes()
    jpeg = data.startswith(b"\xff\xd8")
    # OpenCV may return what it could decode, grey below, and say so on the terminal only
    if data.startswith(b"\x89PNG") and not _is_whole_png(data):
        raise ValueError("PNG is truncated or damaged")
    if jpeg and data.rfind(b"\xff\xd9") <= data.rfind(b"\xff\xda"):  # no end of image after the last start of scan
        raise ValueError("JPEG is truncated")
    # EXIF turns JPEGs, and OpenCV heeds it without IMREAD_UNCHANGED only; that in turn would blend alpha in TIFFs
    flags = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH if jpeg else cv2.IMREAD_UNCHANGED
    level = log.setLogLevel(log.LOG_LEVEL_SILENT)
    try:
        pages = cv2.imcount(str(path))
        pixels = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags) if pages == 1 else None
    finally:
        log.setLogLevel(level)
    if pages > 1:
        raise UserError(f"{where}: holds {pages} pages", "Valid: one image per file; a stack belongs in a NIfTI file.")
    if pixels is None:
        raise ValueError("not a PNG, JPEG or TIFF image, or damaged")
    return pixels if pixels.ndim == 2 else pixels[..., 2::-1]  # BGR or BGRA


def _is_whole_png(data: bytes) -> bool:
    start = 8
    while start + 12 <= len(data):
        kind = data[start + 4 : start + 8]
        stop = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if zlib.crc32(data[start + 4 : stop - 4]) != int.from_bytes(data[stop - 4 : stop], "big"):
            return False
        if kind == b"IEND":
            return True
        start = stop
    return False


def _one_volume(data: Any, number: int | None, where: str) -> NDArray[np.float64]:
    """The chosen volume (X, Y, Z); of a 4-D file only that volume is read."""
    axes = len(data.shape)
    if axes not in (2, 3, 4):
        raise UserError(f"{where}: has {axes} axes", "Valid: a slice, a volume (3 axes) or a series of them (4 axes).")
    if axes < 4 and number is not None:
        raise UserError(f"{where}: has no volume {number}, it is a single one", "Valid: leave `volume` out.")
    if axes == 4:
        count = int(data.shape[3])
        if number is None and count > 1:
            raise UserError(f"{where}: holds {count} volumes", f"Valid: choose one by `volume`, 0 to {count - 1}.")
        number = number or 0
        if number >= count:
            raise UserError(f"{where}: has no volume {number}", f"Valid: `volume` from 0 to {count - 1}.")
        data = data[..., number]
    volume = np.asarray(data, dtype=np.float64)
    return volume[:, :, None] if axes == 2 else volume


def _canonical(
    volume: NDArray[np.float64], affine: Affine, where: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    import nibabel

    if not (np.isfinite(affine).all() and np.linalg.cond(affine[:3, :3]) < 1e6):
        raise UserError(f"{where}: its affine does not place voxels in space", "Valid: an affine that can be inverted.")
    image = nibabel.Nifti2Image(volume, affine)
    image = nibabel.as_closest_canonical(image)
    return np.asarray(image.dataobj), np.asarray(image.affine)


def _refuse_options_of_volumes(spec: TargetSpec, where: str) -> None:
    for key in ("volume", "slice", "plane"):
        value = getattr(spec, key)
        if value != TargetSpec.model_fields[key].default:
            raise UserError(f"{where}: is a picture, {key} = {value} chooses nothing", f"Valid: leave `{key}` out.")


def _slice_index(spec: TargetSpec, count: int, where: str) -> int:
    index = count // 2 if spec.slice == "mid" else spec.slice
    if index >= count:
        valid = f"Valid: `slice` from 0 to {count - 1} ({_NORMALS[spec.plane]}), or 'mid'."
        raise UserError(f"{where}: has no {spec.plane} slice {index}", valid)
    return index


def _cut(
    volume: NDArray[np.float64], affine: Affine, plane: str, index: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One slice of a RAS+ volume as displayed, and the affine of its (row, column, normal)."""
    rows, columns, normal = axes = _AXES[plane]
    # in every plane, down and right on the display are both against RAS+: inferior or posterior, left or posterior
    pixels = volume.transpose(axes)[::-1, ::-1, index]
    to_voxel = np.zeros((4, 4))
    to_voxel[rows, 0] = to_voxel[columns, 1] = -1
    to_voxel[normal, 2] = to_voxel[3, 3] = 1
    to_voxel[axes, 3] = pixels.shape[0] - 1, pixels.shape[1] - 1, index
    return pixels, affine @ to_voxel


def _unit_range(channels: NDArray[np.float64], spec: TargetSpec, where: str) -> NDArray[np.float32]:
    bad = channels.size - np.count_nonzero(np.isfinite(channels))
    if bad:
        raise UserError(f"{where}: {bad} of {channels.size} values in the slice are NaN or infinite", "Valid: finite.")
    with np.errstate(over="ignore", invalid="ignore"):
        percentiles = (0, 100) if spec.intensity == "minmax" else spec.percentiles
        lower, upper = np.percentile(channels, percentiles)
        if not 0 < upper - lower < np.inf:
            wrong = f"{where}: the slice is constant, its {spec.intensity} range is {lower:g} to {upper:g}"
            raise UserError(wrong, "Valid: intensities that differ, within the chosen percentiles too.")
        return np.asarray(np.clip((channels - lower) / (upper - lower), 0, 1), dtype=np.float32)


def _resample(
    image: NDArray[np.float32], affine: Affine | None, size: tuple[int, int] | None, where: str
) -> tuple[NDArray[np.float32], Affine | None]:
    """Square pixels, then the wanted size: the largest scale that fits, centred on zeros."""
    old = np.array(image.shape[1:])
    sides = np.ones(2) if affine is None else np.linalg.norm(affine[:3, :2], axis=0)
    square = old * sides / sides.min() if sides.max() > 1.01 * sides.min() else old
    new = np.maximum(1, np.round(square * min(size / square) if size else square)).astype(int)
    rows, columns = size or (int(new[0]), int(new[1]))
    if not SIDE[0] <= min(rows, columns) <= max(rows, columns) <= SIDE[1]:
        valid = f"Valid: {SIDE[0]} to {SIDE[1]} pixels on each side; `size` resizes."
        raise UserError(f"{where}: the slice is {rows} x {columns} pixels", valid)

    offset = (np.array([rows, columns]) - new) // 2
    canvas = np.zeros((len(image), rows, columns), dtype=np.float32)
    inside = canvas[:, offset[0] : offset[0] + new[0], offset[1] : offset[1] + new[1]]
    for channel, resized in zip(image, inside, strict=True):
        resized[:] = _resize(channel, int(new[0]), int(new[1]))
    if affine is not None:
        # pixels are squares about their index, so a pixel i of the resized slice came from (i + 0.5) / f - 0.5
        to_old = np.diag([*(old / new), 1, 1])
        to_old[:2, 3] = (0.5 - offset) * old / new - 0.5
        affine = affine @ to_old
    return np.clip(canvas, 0, 1), affine


def _resize(image: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Area averages where an axis shrinks, linear interpolation where it grows; one axis at a time, as both may be."""
    import cv2

    down, across = (
        cv2.INTER_AREA if new < old else cv2.INTER_LINEAR for new, old in zip((height, width), image.shape, strict=True)
    )
    wide = cv2.resize(np.ascontiguousarray(image), (width, image.shape[0]), interpolation=across)
    return np.asarray(cv2.resize(wide, (width, height), interpolation=down), dtype=np.float32)


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
    """A grey reconstruction (1, H, W) of a volume's slice as a gzipped NIfTI-1 in the place of that slice."""
    import gzip

    import nibabel

    return gzip.compress(nibabel.Nifti1Image(image[0][:, :, None], target.affine).to_bytes(), mtime=0)
