"""Files that are no targets: damaged, hostile, too large, or not what was meant; each is refused in two lines."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image
from targets import NIBABEL, array, displayed, grey, load, phantom, picture, png, save, written

from ddstudy.errors import UserError

# Too large


def promising(shape: tuple[int, ...], suffix: str, **fields: float) -> Callable[[Path], str]:
    """A NIfTI file of some bytes whose header promises more."""

    def make(folder: Path) -> str:
        header = nibabel.Nifti1Header()
        header["dim"][: len(shape) + 1] = len(shape), *shape
        header["magic"], header["vox_offset"] = b"n+1", 352
        for name, value in fields.items():
            header[name] = value
        content = header.binaryblock + bytes(1000)
        return written(folder / f"x.{suffix}", gzip.compress(content) if suffix.endswith("gz") else content)

    return make


def scans(folder: Path) -> str:
    """A progressive JPEG, its last scan three thousand times."""
    content = io.BytesIO()
    Image.fromarray(grey(64, 64)).save(content, "JPEG", progressive=True)
    jpeg = content.getvalue()
    return written(folder / "x.jpg", jpeg[:-2] + jpeg[jpeg.rfind(b"\xff\xda") : -2] * 3000 + b"\xff\xd9")


def huge_jpeg(folder: Path) -> str:
    content = bytearray(imagecodecs.jpeg8_encode(grey(16, 16)))
    frame = content.find(b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">HH", 60000, 60000)
    return written(folder / "x.jpg", bytes(content))


def huge_tiff(folder: Path) -> str:
    tifffile.imwrite(folder / "x.tif", grey(16, 16), compression="zlib")
    content = bytearray((folder / "x.tif").read_bytes())
    with tifffile.TiffFile(folder / "x.tif") as file:
        for name in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            tag = file.pages[0].tags[name]
            content[tag.offset + 2 : tag.offset + 12] = struct.pack("<HII", 4, 1, 60000)
    return written(folder / "x.tif", bytes(content))


def huge_mgz(folder: Path) -> str:
    header = struct.pack(">7i", 1, 30000, 30000, 30000, 1, 3, 0)
    return written(folder / "x.mgz", gzip.compress(header + bytes(1000)))


def sparse(path: Path, start: bytes, size: int) -> str:
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)
    return str(path)


def huge_npy(folder: Path) -> str:
    start = io.BytesIO()
    np.lib.format.write_array_header_1_0(start, {"descr": "|u1", "fortran_order": False, "shape": (10**5, 10**5)})
    return sparse(folder / "x.npy", start.getvalue(), len(start.getvalue()) + 10**10)


def wide_slice(folder: Path) -> str:
    header = promising((20000, 20000, 2), "nii")(folder)
    return sparse(folder / "y.nii", Path(header).read_bytes(), 4 * 10**9)


def pipe(folder: Path) -> str:
    os.mkfifo(folder / "x.nii")
    return str(folder / "x.nii")


HOSTILE = [
    (promising((30000, 30000, 9), "nii.gz"), "unpacks to 32,400,000,352 bytes"),
    (promising((9, 9, 9), "nii", vox_offset=2.0**31), "begin at byte 2,147,483,648"),
    (wide_slice, "20000 x 20000 pixels"),
    (huge_mgz, "unpacks to"),
    (huge_npy, "100000 x 100000 pixels"),
    (lambda folder: written(folder / "x.png", png(20000, 20000, 8, 0, bytes(20001))), "20000 x 20000 pixels"),
    (huge_jpeg, "60000 x 60000 pixels"),
    (huge_tiff, "60000 x 60000 pixels"),
    (scans, "JPEG of 3,0"),
    (lambda folder: sparse(folder / "x.png", b"\x89PNG\r\n\x1a\n", 10**10), "10,000,000,000 bytes"),
    (pipe, "no regular file"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "said"), HOSTILE, ids=[said for _, said in HOSTILE])
def test_what_is_too_large_is_refused_by_its_header(make, said, tmp_path):
    file = make(tmp_path)
    tracemalloc.start()
    with pytest.raises(UserError) as refused:
        load(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert said in str(refused.value)
    assert str(refused.value).count("\n") == 1
    assert peak < 2**24


# What a user may get wrong


def cut_off(path: Path, fraction: float) -> str:
    content = path.read_bytes()
    return written(path, content[: int(len(content) * fraction)])


def with_value(value: float) -> np.ndarray:
    volume = phantom()
    volume[3:5, 4, 8] = value
    return volume


def nifti_of(dtype: Any) -> Callable[[Path], str]:
    return lambda folder: save(folder / "x.nii", np.zeros((9, 9, 9), dtype))


def pages(folder: Path) -> str:
    assert cv2.imwritemulti(str(folder / "x.tiff"), [grey(20, 30), grey(20, 30)])
    return str(folder / "x.tiff")


def flat_affine(folder: Path) -> str:
    """An sform that maps all slices to one plane."""
    image = nibabel.Nifti1Image(phantom(), np.eye(4))
    image.header.set_sform(np.diag([1, 1, 0, 1]), 1)
    image.header.set_qform(None, 0)
    path = folder / "x.nii"
    image.to_filename(path)
    header = bytearray(path.read_bytes())
    header[280:328] = struct.pack("<12f", 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0)
    return written(path, bytes(header))


def damaged_header(folder: Path) -> str:
    """A data type that does not exist: nibabel logs that before it raises."""
    path = Path(save(folder / "x.nii", phantom()))
    header = bytearray(path.read_bytes())
    header[70:72] = struct.pack("<h", 9999)
    return written(path, bytes(header))


def longest_nifti(folder: Path) -> str:
    """A header that promises more than any memory holds."""
    path = Path(save(folder / "x.nii", phantom()))
    header = bytearray(path.read_bytes())
    header[40:56] = struct.pack("<8h", 3, 32767, 32767, 32767, 1, 1, 1, 1)
    return written(path, bytes(header))


MISTAKES: list[tuple[str, Callable[[Path], str], dict[str, Any], str, str]] = [
    ("missing", lambda folder: str(folder / "x.nii"), {}, "no such file", "NIfTI"),
    ("directory", lambda folder: str(folder), {}, "is a directory", "NIfTI"),
    ("unreadable", lambda folder: str(folder / ("x" * 300 + ".nii")), {}, "cannot be read", "NIfTI"),
    ("suffix", lambda folder: written(folder / "x.dcm", b"abc"), {}, "'.dcm' is no known kind", ".nii.gz"),
    *(
        (f"empty {suffix}", lambda folder, suffix=suffix: written(folder / f"x{suffix}", b""), {}, "is empty", "NIfTI")
        for suffix in (".nii", ".nii.gz", ".mgz", ".png", ".npy")
    ),
    *(
        (
            f"junk {suffix}",
            lambda folder, suffix=suffix: written(folder / f"x{suffix}", b"not an image" * 99),
            {},
            "cannot be read",
            "undamaged",
        )
        for suffix in (".nii", ".nii.gz", ".mgh", ".mgz", ".png", ".jpg", ".tiff", ".npy")
    ),
    ("CIFTI", lambda folder: str(NIBABEL / "row_major.dconn.nii"), {}, "CIFTI", "3 or 4 axes"),
    ("data type", damaged_header, {}, "cannot be read", "undamaged"),
    ("memory", longest_nifti, {}, "cannot be read", "undamaged"),
    ("flat", flat_affine, {}, "affine", "inverted"),
    ("no voxels", lambda folder: save(folder / "x.nii", np.zeros((9, 0, 9))), {}, "9 x 0 x 9", "at least one"),
    ("no pixels", lambda folder: array(folder / "x.npy", np.zeros((0, 9))), {}, "0 x 9", "at least one"),
    ("1-D NIfTI", lambda folder: save(folder / "x.nii", np.zeros(9)), {}, "1 axis", "3 axes"),
    ("1-D npy", lambda folder: array(folder / "x.npy", np.zeros(9)), {}, "1 axis", "3 axes"),
    ("5-D", lambda folder: save(folder / "x.nii", np.zeros((9, 9, 9, 2, 2))), {}, "5 axes", "4 axes"),
    ("series", lambda folder: str(NIBABEL / "example4d.nii.gz"), {}, "2 volumes", "0 to 1"),
    ("volume 2 of 2", lambda folder: str(NIBABEL / "example4d.nii.gz"), {"volume": 2}, "no volume 2", "0 to 1"),
    (
        "volume of 3-D",
        lambda folder: save(folder / "x.nii", phantom()),
        {"volume": 0},
        "volume 0",
        "leave `volume` out",
    ),
    (
        "volume of picture",
        lambda folder: picture(folder / "x.png", grey(9, 9)),
        {"volume": 0},
        "volume = 0",
        "`volume`",
    ),
    ("slice of picture", lambda folder: picture(folder / "x.png", grey(9, 9)), {"slice": 0}, "slice = 0", "`slice`"),
    (
        "plane of picture",
        lambda folder: array(folder / "x.npy", grey(9, 9)),
        {"plane": "coronal"},
        "coronal",
        "`plane`",
    ),
    ("slice", lambda folder: save(folder / "x.nii", phantom()), {"slice": 17}, "axial slice 17", "0 to 16 (inferior"),
    (
        "slice of another plane",
        lambda folder: save(folder / "x.nii", phantom()),
        {"slice": 21, "plane": "sagittal"},
        "sagittal slice 21",
        "0 to 20 (left",
    ),
    ("NaN", lambda folder: save(folder / "x.nii", with_value(np.nan)), {}, "2 of 525 values", "finite"),
    ("infinite", lambda folder: save(folder / "x.nii", with_value(-np.inf)), {}, "2 of 525 values", "finite"),
    ("constant", lambda folder: picture(folder / "x.png", grey(9, 9) * 0 + 7), {}, "constant", "differ"),
    (
        "constant between percentiles",
        lambda folder: array(folder / "x.npy", np.eye(100)),
        {"intensity": "percentile", "percentiles": (5.0, 95.0)},
        "percentile range is 0 to 0",
        "percentiles",
    ),
    ("overflow", lambda folder: array(folder / "x.npy", np.diag([-1e308, 1e308] * 5)), {}, "-1e+308", "differ"),
    ("complex NIfTI", nifti_of(np.complex64), {}, "complex", "real"),
    ("RGB NIfTI", nifti_of([("R", "u1"), ("G", "u1"), ("B", "u1")]), {}, "RGB", "real"),
    ("complex npy", lambda folder: array(folder / "x.npy", np.eye(9) * 1j), {}, "complex", "real"),
    ("text npy", lambda folder: array(folder / "x.npy", np.full((9, 9), "a")), {}, "text", "real"),
    ("dates", lambda folder: array(folder / "x.npy", np.zeros((9, 9), "M8[s]")), {}, "datetime64", "real"),
    ("objects", lambda folder: array(folder / "x.npy", np.full((9, 9), None)), {}, "cannot be read", "undamaged"),
    ("pages", pages, {}, "several pages", "one image"),
    ("small picture", lambda folder: picture(folder / "x.png", grey(7, 90)), {}, "7 x 90", "8 to 4096"),
    ("small slice", lambda folder: str(NIBABEL / "standard.nii.gz"), {}, "x 4 pixels", "8 to 4096"),
    ("large", lambda folder: save(folder / "x.nii", phantom(), np.diag([1, 500, 1, 1])), {}, "12500 x 21", "8 to 4096"),
]


@pytest.mark.parametrize(("make", "options", "wrong", "valid"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_mistakes_are_named_with_the_file_and_with_what_is_valid(make, options, wrong, valid, tmp_path, capfd, caplog):
    file = make(tmp_path)
    capfd.readouterr()
    with pytest.raises(UserError) as raised:
        load(file, **options)
    first, second = str(raised.value).split("\n")
    assert first.startswith(f"{file}: ")
    assert wrong in first
    assert second.startswith("Valid: ")
    assert valid in second
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_mistakes_with_the_default_target_name_it():
    with pytest.raises(UserError) as raised:
        load(None, slice=189)
    assert str(raised.value).startswith("MNI152 T1: has no axial slice 189\nValid: `slice` from 0 to 188")


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("suffix", ["nii", "nii.gz", "mgh", "mgz", "png", "jpg", "tiff", "npy"])
def test_truncated_files_are_refused(suffix, fraction, tmp_path, capfd):
    """OpenCV shows a truncated picture as far as it goes; a study must not fit it."""
    path = tmp_path / f"x.{suffix}"
    if suffix in ("png", "jpg", "tiff"):
        picture(path, grey(60, 80))
    elif suffix == "npy":
        array(path, grey(60, 80))
    else:
        save(path, phantom().astype(np.float32), None, nibabel.MGHImage if suffix[0] == "m" else nibabel.Nifti1Image)
    load(path)
    cut_off(path, fraction)
    capfd.readouterr()
    with pytest.raises(UserError) as raised:
        load(path)
    first, second = str(raised.value).split("\n")
    assert first.startswith(f"{path}: cannot be read (")
    assert second.startswith("Valid: an undamaged ")
    assert capfd.readouterr() == ("", "")


def test_a_flipped_bit_in_a_png_is_found(tmp_path, capfd):
    path = Path(picture(tmp_path / "x.png", grey(60, 80)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError):
        load(path)
    assert capfd.readouterr() == ("", "")


def test_a_wrong_checksum_of_a_compressed_volume_is_found(tmp_path):
    path = Path(save(tmp_path / "x.nii.gz", phantom()))
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="CRC"):
        load(path)


def test_of_a_compressed_series_no_more_is_unpacked_than_the_volume(tmp_path):
    """Series of many gigabytes are common; the first volume of one is there at once."""
    first = phantom().astype(np.float32)
    path = Path(save(tmp_path / "x.nii", np.stack([first, first], -1)))
    content = bytearray(path.read_bytes())[: 352 + first.nbytes]  # the second volume is gone
    content[48:50] = struct.pack("<h", 32000)  # and so is the last of thousands
    (tmp_path / "y.nii.gz").write_bytes(gzip.compress(content))
    np.testing.assert_array_equal(load(tmp_path / "y.nii.gz", volume=0).image[0], displayed(first, "axial", 8))
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path / "y.nii.gz", volume=1)


def test_a_jpeg_cut_off_after_its_thumbnail_is_refused(tmp_path, capfd):
    """The thumbnail in the header has an end-of-image marker of its own."""
    path = Path(picture(tmp_path / "x.jpg", grey(60, 80)))
    content = path.read_bytes()
    thumbnail = b"Exif\0\0" + content
    header = b"\xff\xd8\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    path.write_bytes(header + content[2:])
    load(path)
    path.write_bytes(header + content[2:-200])
    capfd.readouterr()
    with pytest.raises(UserError, match="cannot be read"):
        load(path)
    assert capfd.readouterr() == ("", "")


def test_reading_leaves_the_loggers_of_others_as_they_were(tmp_path):
    import cv2.utils.logging as log
    from nibabel import imageglobals

    before = log.getLogLevel(), imageglobals.logger.disabled
    for file in (picture(tmp_path / "good.png", grey(9, 9)), written(tmp_path / "bad.png", b"abc")):
        try:
            load(file)
        except UserError:
            assert file.endswith("bad.png")
        assert (log.getLogLevel(), imageglobals.logger.disabled) == before
