"""Pictures and volumes as files: the header first, then no more than what is asked for.

What a header promises is compared with limits before anything is decoded, so that neither a damaged one nor one made to
do harm takes the machine's memory or minutes. Where one slice is wanted a volume is not read as a whole: of a plain
file only the slice is, a compressed one streams past. What cannot be read right is refused in words that say what it
is.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddstudy.errors import UserError

Affine = NDArray[np.float64]
Forms = dict[str, tuple[Affine, int]]

VOLUMES = (".nii", ".nii.gz", ".mgh", ".mgz")
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")

_MOST_PIXELS = 2**26  # of a slice or picture, 8192 x 8192; in float64 that is half a gigabyte
_MOST_VOXELS = 2**28  # of a volume that is read as a whole, 645 on each side; in float64 two gigabytes
_MOST_PICTURE = 2**29  # bytes of a picture's file: the largest, raw, with 8 bytes a pixel
_MOST_UNPACKED = 2**33  # bytes of a compressed volume, half a minute of unpacking
_MOST_HEADER = 2**24  # bytes before the voxels of a NIfTI file: extensions are notes
_MOST_SCANS = 100  # of a progressive JPEG, each of which touches every pixel; encoders make about ten
_BLOCK = 2**22  # voxels read at a time

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")  # no stuffed byte and no restart: those are within a scan
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_TIFFS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume or a series of them, in its file.

    Attributes:
        data: what slices like an array (X, Y, Z, volumes), in stored order.
        affine: from voxels to world mm, RAS+.
        forms: NIfTI's ways to place voxels in the scanner that can be used, `sform` and `qform`: affine in mm and code.
        is_series: whether there is a fourth axis to choose from, be it of length 1.
        header: nibabel's, of a NIfTI file.
    """

    data: Any
    affine: Affine
    forms: Forms
    is_series: bool
    header: Any = None

    def whole(self, number: int, where: str) -> NDArray[Any]:
        """All voxels of a volume, (X, Y, Z).

        Raises:
            UserError: they would take too much memory.
        """
        *shape, _ = self.data.shape
        if math.prod(shape) > _MOST_VOXELS:
            wrong = f"{where}: has {math.prod(shape):,} voxels"
            raise UserError(wrong, f"Valid: up to {_MOST_VOXELS:,} where all slices are wanted.")
        return np.asarray(self.data[..., number])

    def slice(self, axis: int, index: int, number: int) -> NDArray[np.float64]:
        """One slice of a volume, with an axis of length 1 where it was cut; the rest is not read."""
        if axis or isinstance(self.data, np.ndarray):
            where: list[Any] = [slice(None)] * 3 + [number]
            where[axis] = index
            return np.expand_dims(np.asarray(self.data[tuple(where)], dtype=np.float64), axis)
        # voxels of the first axis lie side by side: a slice across it is all over the file
        length, rows, columns, _ = self.data.shape
        cut = np.empty((1, rows, columns))
        height = max(1, min(rows, _BLOCK // length))
        width = max(1, _BLOCK // (length * rows)) if height == rows else 1
        for left in range(0, columns, width):
            for top in range(0, rows, height):
                block = slice(top, top + height), slice(left, left + width)
                cut[0, *block] = self.data[slice(None), *block, number][index]
        return cut


@contextlib.contextmanager
def open_volume(path: Path, number: int, where: str) -> Iterator[Volume]:
    """A NIfTI or MGH file; on leaving, a compressed one is read to the volume's end, to find one that was cut short.

    Args:
        path: of the file.
        number: of the volume that will be read, of a series.
        where: names the file in errors.

    Raises:
        UserError: the file is no volume, or larger than the limits.
    """
    from nibabel.arrayproxy import ArrayProxy

    packed = path.name.lower().endswith("gz")
    with gzip.open(path) if packed else path.open("rb") as stream:
        header = _header_of_volume(stream, where)
        stored, forms = ArrayProxy(stream, header, mmap=False), _forms(header)
        data = _of_four_axes(stored, where)
        count = min(number + 1, data.shape[3]) if packed else data.shape[3]
        end = int(stored.offset) + math.prod(data.shape[:3]) * count * data.dtype.itemsize
        if packed and end > _MOST_UNPACKED:
            raise _too_long_to_unpack(end, where)
        if not packed and end > path.stat().st_size:
            raise ValueError(f"truncated: {path.stat().st_size:,} of {end:,} bytes")
        affine, _ = next(iter(forms.values()), (_in_mm(header.get_best_affine(), header), 0))
        nifti = header if hasattr(header, "get_sform") else None
        yield Volume(data, affine, forms, len(stored.shape) > 3, nifti)
        while packed and stream.tell() <= end and stream.read(_BLOCK):
            pass


def open_array(path: Path) -> NDArray[Any]:
    """The array of a .npy file, left in the file until it is used."""
    return np.lib.format.open_memmap(path, mode="r")


def volume_of(array: NDArray[Any], where: str) -> Volume:
    """An array without a header as a volume: RAS+, voxels of 1 mm."""
    return Volume(_of_four_axes(array, where), np.eye(4), {}, array.ndim > 3)


def read_picture(path: Path, where: str) -> NDArray[Any]:
    """A PNG, JPEG or TIFF image, (H, W) or (H, W, 3) as viewers show it, its alpha left out.

    Raises:
        UserError: the picture is of a kind that is not read, or larger than the limits.
        ValueError: it is damaged.
    """
    if path.stat().st_size > _MOST_PICTURE:
        raise UserError(f"{where}: is a file of {path.stat().st_size:,} bytes", f"Valid: up to {_MOST_PICTURE:,}.")
    with path.open("rb") as file:
        start = file.read(8)
    if start == _PNG:
        return _png(path.read_bytes(), where)
    if start.startswith(b"\xff\xd8"):
        return _jpeg(path.read_bytes(), where)
    if start.startswith(_TIFFS):
        return _tiff(path, where)
    raise ValueError("not a PNG, JPEG or TIFF image")


def check_file(path: Path, where: str, valid: str) -> None:
    """Refuses what is no file with something in it, in words that say what would be valid."""
    if not path.exists():
        raise UserError(f"{where}: no such file", valid)
    if not path.is_file():
        raise UserError(f"{where}: is {'a directory' if path.is_dir() else 'no regular file'}", valid)
    if path.stat().st_size == 0:
        raise UserError(f"{where}: is empty", valid)


def check_pixels(height: int, width: int, where: str) -> None:
    """Refuses an image that would take too much memory."""
    if height * width > _MOST_PIXELS:
        raise UserError(f"{where}: is {height} x {width} pixels", f"Valid: up to {_MOST_PIXELS:,} pixels altogether.")


def _header_of_volume(stream: io.BufferedIOBase, where: str) -> Any:
    """Nibabel's header, for which no more is read of a file than a header may have."""
    from nibabel import Nifti1Header, Nifti2Header
    from nibabel.freesurfer.mghformat import MGHHeader, header_dtype, hf_dtype

    head = stream.read(540)
    for kind in (Nifti1Header, Nifti2Header):
        if kind.may_contain_header(head):
            header = kind(head[: kind.sizeof_hdr], check=False)
            if 3000 <= header["intent_code"] < 3100:
                raise UserError(f"{where}: is a CIFTI file, not a volume", "Valid: an image with 3 or 4 axes.")
            if header["vox_offset"] > _MOST_HEADER:
                wrong = f"{where}: its voxels begin at byte {float(header['vox_offset']):,.0f}"
                raise UserError(wrong, f"Valid: up to {_MOST_HEADER:,} bytes of header.")
            stream.seek(0)
            return kind.from_fileobj(stream)
    # the rest of MGH's header stands behind the voxels, says nothing of them, and would have to be unpacked to
    return MGHHeader(head[: header_dtype.itemsize].ljust(hf_dtype.itemsize, b"\0"))


def _too_long_to_unpack(size: int, where: str) -> UserError:
    return UserError(
        f"{where}: unpacks to {size:,} bytes",
        f"Valid: up to {_MOST_UNPACKED:,}; of an uncompressed file only the slice is read.",
    )


def _of_four_axes(data: Any, where: str) -> Any:
    """(X, Y, Z, volumes); axes of length 1 between or behind those of a series mean nothing."""
    shape = tuple(map(int, data.shape))  # MGH's are 32 bits long, and so would be their product
    axes, others = len(shape), [length for length in shape[3:] if length != 1]
    if axes < 2 or len(others) > 1:
        valid = "Valid: a slice, a volume (3 axes) or a series of them (4 axes)."
        raise UserError(f"{where}: has {'1 axis' if axes == 1 else f'{axes} axes'}", valid)
    return data.reshape((*shape[:3], *(1,) * (3 - axes), *(others or [1])))


def _forms(header: Any) -> Forms:
    from nibabel.spatialimages import HeaderDataError

    forms = {}
    for name in ("sform", "qform") if hasattr(header, "get_sform") else ():
        with contextlib.suppress(HeaderDataError):
            affine, code = getattr(header, f"get_{name}")(coded=True)
            if affine is not None and places_voxels(affine):
                forms[name] = _in_mm(affine, header), code
    return forms


def places_voxels(affine: Affine) -> bool:
    """Whether an affine sends different voxels to different places."""
    return bool(np.isfinite(affine).all() and np.linalg.cond(affine[:3, :3]) < 1e6)


def _in_mm(affine: Any, header: Any) -> Affine:
    unit = int(header["xyzt_units"]) & 7 if "xyzt_units" in header else 0
    scaled = np.array(affine, dtype=np.float64)
    scaled[:3] *= {1: 1000.0, 3: 0.001}.get(unit, 1.0)  # metres and microns; all else, unknown too, is mm
    return scaled


def _png(data: bytes, where: str) -> NDArray[Any]:
    """Decodes only the chunks that pixels need, after a check of all: about others libpng prints warnings."""
    from imagecodecs import png_decode

    kept, exif, frames = [_PNG], b"", 1
    kind, at = b"", len(_PNG)
    while kind != b"IEND":
        size, kind = struct.unpack_from(">I4s", data, at)
        content, stop = data[at + 8 : at + 8 + size], at + 12 + size
        if stop > len(data) or zlib.crc32(content, zlib.crc32(kind)) != int.from_bytes(data[stop - 4 : stop], "big"):
            raise ValueError("PNG is truncated or damaged")
        if len(kept) == 1:
            width, height, depth, colour, *methods = struct.unpack(">IIBBBBB", content)
            if kind != b"IHDR" or depth not in _PNG_DEPTHS.get(colour, ()) or methods not in ([0, 0, 0], [0, 0, 1]):
                raise ValueError("PNG has a damaged header")
            check_pixels(height, width, where)
        if kind in (b"IHDR", b"IDAT", b"IEND") or (kind == b"PLTE" and colour == 3):
            kept.append(data[at:stop])
        elif kind == b"eXIf":
            exif = content
        elif kind == b"acTL":
            frames = int.from_bytes(content[:4], "big")
        at = stop
    if frames > 1:
        raise UserError(f"{where}: is an animation of {frames} images", "Valid: one image per file.")
    lines = [(height, width)]
    if methods[2]:
        lines = [(-(-(height - y) // down), -(-(width - x) // across)) for x, y, across, down in _ADAM7]
    bits = depth * _PNG_CHANNELS[colour]
    expected = sum(rows * (1 + -(-columns * bits // 8)) for rows, columns in lines if columns > 0)
    if not _inflates_to(expected, (chunk[8:-4] for chunk in kept if chunk[4:8] == b"IDAT")):
        raise ValueError("PNG holds more or fewer pixels than its header says")
    return _turned(_colours(png_decode(b"".join(kept))), _orientation(exif))


def _inflates_to(expected: int, parts: Iterator[bytes]) -> bool:
    inflate, length = zlib.decompressobj(), 0
    for part in parts:
        while part and length <= expected:
            length += len(inflate.decompress(part, _BLOCK))
            part = inflate.unconsumed_tail
    return inflate.eof and not inflate.unused_data and length == expected


def _jpeg(data: bytes, where: str) -> NDArray[Any]:
    from imagecodecs import jpeg8_decode

    exif, scans, channels, at = b"", 0, 0, 2
    while (found := _JPEG_MARKER.search(data, at)) and found[1] != b"\xd9":
        marker, at = found[1][0], found.end()
        if marker in (0x01, 0xD8):
            continue
        (size,) = struct.unpack_from(">H", data, at)
        content, at = data[at + 2 : at + size], at + size
        if marker in _JPEG_FRAMES:
            _, height, width, channels = struct.unpack(">BHHB", content[:6])
            check_pixels(height, width, where)
        elif marker == 0xE1 and content.startswith(b"Exif\0\0"):
            exif = content
        scans += marker == 0xDA
    if found is None or not scans:  # OpenCV and Pillow would show what there is, grey below
        raise ValueError("JPEG is truncated")
    if channels not in (1, 3):
        kind = "CMYK" if channels == 4 else f"of {channels} channels"
        raise UserError(f"{where}: is a JPEG that is {kind}", "Valid: grey or RGB.")
    if scans > _MOST_SCANS:
        raise UserError(f"{where}: is a JPEG of {scans:,} scans", f"Valid: up to {_MOST_SCANS}.")
    return _turned(_colours(jpeg8_decode(data)), _orientation(exif))


def _tiff(path: Path, where: str) -> NDArray[Any]:
    from tifffile import COMPRESSION, PHOTOMETRIC, TiffFile

    with TiffFile(path) as file:
        if not file.pages:
            raise ValueError("TIFF is truncated or damaged")
        page: Any = file.pages.first
        if file.pages.is_multipage or page.imagedepth > 1 or (file.imagej_metadata or {}).get("images", 1) > 1:
            raise UserError(f"{where}: holds several pages", "Valid: one image per file; a stack belongs in NIfTI.")
        colours = {PHOTOMETRIC.RGB: 3, PHOTOMETRIC.MINISBLACK: 1, PHOTOMETRIC.MINISWHITE: 1, PHOTOMETRIC.PALETTE: 1}
        if page.compression == COMPRESSION.JPEG:
            colours[PHOTOMETRIC.YCBCR] = 3  # its decoder makes RGB of them
        kind, channels, bits = page.photometric, page.samplesperpixel, page.tags.valueof("BitsPerSample", 1)
        if channels - colours.get(kind, -1) not in (0, 1) or len(set(np.atleast_1d(bits))) > 1:  # 1: alpha
            name = getattr(kind, "name", kind)
            wrong = f"{where}: is a TIFF of kind {name} with {channels} samples of {bits} bits"
            raise UserError(wrong, "Valid: grey, palette or RGB, alike in all samples.")
        check_pixels(page.imagelength, page.imagewidth, where)
        check_pixels(max(1, math.prod(page.chunks) // 4), 1, where)  # what is decoded at a time
        segments = list(zip(page.dataoffsets, page.databytecounts, strict=True))
        whole = len(segments) == math.prod(page.chunked)
        if not whole or any(offset + count > file.filehandle.size for offset, count in segments):
            raise ValueError("TIFF is truncated or damaged")
        if page.compression == COMPRESSION.JPEG:
            scans = path.read_bytes().count(b"\xff\xda")
            if scans > _MOST_SCANS * len(segments):
                raise UserError(f"{where}: holds JPEG of {scans:,} scans", f"Valid: up to {_MOST_SCANS} each.")
        pixels = page.asarray(maxworkers=1)
        orientation = int(page.tags.valueof("Orientation", 1))
    if page.axes == "SYX":
        pixels = np.moveaxis(pixels, 0, -1)
    pixels = _colours(pixels)
    if kind == PHOTOMETRIC.PALETTE:
        pixels = np.moveaxis(page.colormap[:, pixels.astype(np.uint16)], 0, -1)  # an index of type bool would be a mask
    if kind == PHOTOMETRIC.MINISWHITE:
        pixels = -pixels if pixels.dtype.kind in "fc" else ~pixels
    return _turned(pixels, orientation)


def _colours(pixels: NDArray[Any]) -> NDArray[Any]:
    """(H, W) or (H, W, 3) of grey, grey and alpha, RGB, or RGB and alpha."""
    if pixels.ndim == 2:
        return pixels
    return pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., 0]


def _orientation(exif: bytes) -> int:
    """The orientation by which viewers turn a picture; 1, which is not at all, also where EXIF is damaged."""
    from PIL.Image import Exif

    notes = Exif()
    with contextlib.suppress(Exception):
        notes.load(exif)
        return int(notes.get(0x112, 1))
    return 1


def _turned(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """A picture as viewers show it, by the orientation of EXIF and TIFF."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
