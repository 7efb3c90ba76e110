"""Targets: the same anatomy on the same side of the image, in the same place of the scanner, however it was stored."""

from __future__ import annotations

import gzip
import io
import itertools
import os
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import nibabel
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from nibabel.testing import data_path
from PIL import Image, ImageOps

from ddstudy.errors import UserError
from ddstudy.images.tiling import join, split, tile_shape
from ddstudy.images.volumes import Target, load_target, nifti_bytes
from ddstudy.spec.options import TILINGS, TargetSpec, rows_and_columns

PLANES = ("axial", "coronal", "sagittal")
ORIENTATIONS = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))
NIBABEL = Path(data_path)

SHAPE = (21, 25, 17)
# voxels near both ends of each axis of a RAS+ volume, from the brightest to the dimmest
MARKS = {"R": (18, 12, 8), "L": (2, 12, 8), "A": (10, 22, 8), "P": (10, 2, 8), "S": (10, 12, 15), "I": (10, 12, 1)}
TOP_BOTTOM_LEFT_RIGHT = {"axial": "APRL", "coronal": "SIRL", "sagittal": "SIAP"}


def phantom() -> np.ndarray:
    """RAS+ volume: dim noise, so that no two flips of it look alike, and the six marks."""
    volume = np.random.default_rng(7).uniform(0, 0.4, SHAPE)
    for voxel, value in zip(MARKS.values(), (1.0, 0.9, 0.8, 0.7, 0.6, 0.5), strict=True):
        volume[voxel] = value
    return volume


def marks(image: np.ndarray, plane: str) -> dict[str, tuple[int, int]]:
    """Where the display shows the four marks of a middle slice: they are its brightest pixels, in known order."""
    brightest = np.argsort(image.ravel())[::-1][:4]
    names = [name for name in MARKS if name in TOP_BOTTOM_LEFT_RIGHT[plane]]
    return {name: divmod(int(place), image.shape[1]) for name, place in zip(names, brightest, strict=True)}


def oblique(*zooms: float) -> np.ndarray:
    """RAS+ affine of a head that is turned and nods a little."""
    a, b = np.deg2rad((12, -9))
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    nod = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ nod @ np.diag(zooms or (1, 1, 1))
    affine[:3, 3] = -7.5, 11.25, 30
    return affine


def reordered(volume: np.ndarray, affine: np.ndarray, axes: tuple, signs: tuple) -> tuple[np.ndarray, np.ndarray]:
    """A RAS+ volume in the same place, stored in another order and direction of its axes."""
    to_ras = np.zeros((4, 4))
    to_ras[3, 3] = 1
    for axis, (ras, sign) in enumerate(zip(axes, signs, strict=True)):
        to_ras[ras, axis] = sign
        to_ras[ras, 3] = 0 if sign == 1 else volume.shape[ras] - 1
    return volume.transpose(axes)[tuple(slice(None, None, sign) for sign in signs)], affine @ to_ras


def displayed(ras: np.ndarray, plane: str, index: int) -> np.ndarray:
    """What a slice of a RAS+ volume must look like, scaled to [0, 1]."""
    return unit(turned(ras, plane, index).astype(float)).astype(np.float32)


def turned(ras: np.ndarray, plane: str, index: int) -> np.ndarray:
    """A slice of a RAS+ volume, turned by hand."""
    return {
        "axial": lambda: np.rot90(ras[::-1, :, index]),
        "coronal": lambda: np.rot90(ras[::-1, index, :]),
        "sagittal": lambda: np.rot90(ras[index, ::-1, :]),
    }[plane]()


def unit(pixels: np.ndarray) -> np.ndarray:
    return (pixels - pixels.min()) / (pixels.max() - pixels.min())


def save(path: Path, volume: np.ndarray, affine: np.ndarray | None = None, kind: Any = nibabel.Nifti1Image) -> str:
    kind(volume, np.eye(4) if affine is None else affine).to_filename(path)
    return str(path)


def picture(path: Path, pixels: np.ndarray) -> str:
    assert cv2.imwrite(str(path), pixels)
    return str(path)


def array(path: Path, values: np.ndarray) -> str:
    np.save(path, values)
    return str(path)


def load(file: str | Path | None, **options: Any) -> Target:
    return load_target(TargetSpec(file=None if file is None else str(file), **options))


def grey(*shape: int, dtype: Any = np.uint8, seed: int = 1) -> np.ndarray:
    """Random pixels that use the whole range of an integer type."""
    top = np.iinfo(dtype).max
    pixels = np.random.default_rng(seed).integers(0, top, shape, dtype=dtype, endpoint=True)
    pixels.flat[:2] = 0, top
    return pixels


# Sides and places


@pytest.mark.parametrize("plane", PLANES)
def test_marks_are_on_the_sides_where_radiologists_look_for_them(plane, tmp_path):
    image = load(save(tmp_path / "head.nii", phantom()), plane=plane).image[0]
    found = marks(image, plane)
    top, bottom, left, right = (np.divide(found[name], image.shape) for name in TOP_BOTTOM_LEFT_RIGHT[plane])
    assert top[0] < 0.2 < 0.8 < bottom[0]
    assert left[1] < 0.2 < 0.8 < right[1]


@pytest.mark.parametrize("plane", PLANES)
def test_display_and_place_do_not_depend_on_the_stored_orientation(plane, tmp_path):
    volume, affine = phantom(), oblique(1, 1.2, 1.5)
    expected = load(save(tmp_path / "ras.nii", volume, affine), plane=plane)
    for number, (axes, signs) in enumerate(ORIENTATIONS):
        stored = load(save(tmp_path / f"{number}.nii", *reordered(volume, affine, axes, signs)), plane=plane)
        np.testing.assert_array_equal(stored.image, expected.image)
        np.testing.assert_allclose(stored.affine, expected.affine, atol=1e-5)


@pytest.mark.parametrize("plane", PLANES)
def test_affine_leads_from_marks_of_the_display_to_their_place_in_the_scanner(plane, tmp_path):
    affine = oblique()
    target = load(save(tmp_path / "head.nii", *reordered(phantom(), affine, (2, 0, 1), (-1, 1, -1))), plane=plane)
    for name, (row, column) in marks(target.image[0], plane).items():
        np.testing.assert_allclose(target.affine @ (row, column, 0, 1), affine @ (*MARKS[name], 1), atol=1e-4)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("size", [None, (96, 80), (40, 64), (13, 12), (34, 50)])
@pytest.mark.parametrize("zooms", [(1, 1, 1), (1, 1.5, 2.75), (3, 0.9, 1)])
def test_affine_follows_resampling_and_padding(plane, size, zooms, tmp_path):
    """Volumes whose intensity is a world coordinate: what a pixel shows must be what the affine says of it."""
    affine = oblique(*zooms)
    voxels = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"))
    normal = {"axial": 2, "coronal": 1, "sagittal": 0}[plane]
    for axis, coordinate in enumerate("xyz"):
        ramp = np.tensordot(affine[axis, :3], voxels, 1) + affine[axis, 3]
        target = load(save(tmp_path / f"{coordinate}.nii", ramp, affine), plane=plane, size=size)
        in_slice = np.take(ramp, SHAPE[normal] // 2, axis=normal)
        shown = target.image[0] * np.ptp(in_slice) + in_slice.min()

        rows, columns = np.indices(shown.shape)
        places = np.tensordot(target.affine[:3, [0, 1, 3]], np.stack([rows, columns, np.ones(shown.shape)]), 1)
        from_voxel = np.tensordot(np.linalg.inv(affine), np.concatenate([places, np.ones((1, *shown.shape))]), 1)[:3]
        np.testing.assert_allclose(from_voxel[normal], SHAPE[normal] // 2, atol=1e-4)
        last = np.array(SHAPE)[:, None, None] - 1
        # at the border linear interpolation repeats the edge, so it is left out
        inside = np.delete((from_voxel > 1) & (from_voxel < last - 1), normal, axis=0).all(axis=0)
        assert inside.sum() >= 20
        # area averages of a ramp are off by up to an eighth of an old pixel
        np.testing.assert_allclose(shown[inside], places[axis][inside], atol=0.13 * max(zooms))
        assert abs(np.mean(shown[inside] - places[axis][inside])) < 0.01 * max(zooms)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("zooms", [(1, 1, 1), (1, 2, 4)])
@pytest.mark.parametrize("size", [None, (150, 84)])
def test_reconstruction_saved_with_the_affine_is_the_same_target_again(plane, zooms, size, tmp_path):
    affine = oblique(*zooms)
    first = load(
        save(tmp_path / "head.nii", *reordered(phantom(), affine, (1, 2, 0), (-1, -1, 1))), plane=plane, size=size
    )
    again = load(save(tmp_path / "slice.nii.gz", first.image[0][:, :, None], first.affine), plane=plane)
    np.testing.assert_allclose(again.image, unit(first.image), atol=1e-6)  # interpolation lost the extremes
    np.testing.assert_allclose(again.affine, first.affine, atol=1e-4)


def test_sform_goes_before_qform(tmp_path):
    """Guards left and right where the two disagree, as they do after some registrations."""
    image = nibabel.Nifti1Image(phantom(), np.eye(4))
    image.set_sform(np.eye(4), 1)
    image.set_qform(np.diag([-1, 1, 1, 1]), 1)
    image.to_filename(tmp_path / "both.nii")
    np.testing.assert_array_equal(load(tmp_path / "both.nii").image[0], displayed(phantom(), "axial", 8))


@pytest.mark.parametrize("plane", PLANES)
def test_slices_count_in_ras_order(plane, tmp_path):
    file = save(tmp_path / "head.nii", *reordered(phantom(), np.eye(4), (0, 1, 2), (-1, -1, -1)))
    target = load(file, plane=plane, slice=3)
    np.testing.assert_array_equal(target.image[0], displayed(phantom(), plane, 3))
    assert target.name == f"head.nii {plane} 3"


def test_pixels_become_squares_of_the_smaller_side(tmp_path):
    volume = phantom()
    file = save(tmp_path / "thick.nii", volume, np.diag([1, 1, 3, 1]))
    target = load(file, plane="coronal")
    assert target.image.shape == (1, 3 * SHAPE[2], SHAPE[0])
    np.testing.assert_allclose(np.linalg.norm(target.affine[:3, :2], axis=0), 1, atol=1e-6)
    # the middle row of each triple is the stored row
    np.testing.assert_allclose(target.image[0, 1::3], displayed(volume, "coronal", 12), atol=1e-6)


def test_nearly_square_pixels_are_left_alone(tmp_path):
    target = load(save(tmp_path / "head.nii", phantom(), np.diag([1, 1, 1.009, 1])), plane="coronal")
    np.testing.assert_array_equal(target.image[0], displayed(phantom(), "coronal", 12))


# Kinds of volumes


@pytest.mark.parametrize(
    ("file", "plane", "volume"),
    [
        ("example4d.nii.gz", "axial", 1),
        ("example_nifti2.nii.gz", "axial", 0),  # NIfTI-2
        ("functional.nii", "axial", 19),
        *(("anatomical.nii", plane, None) for plane in PLANES),  # big-endian with negative values
    ],
)
def test_volumes_that_nibabel_ships(file, plane, volume):
    image = nibabel.load(NIBABEL / file)
    assert nibabel.aff2axcodes(image.affine) == ("L", "A", "S")
    ras = np.asarray(image.dataobj if volume is None else image.dataobj[..., volume])[::-1]
    middle = ras.shape[("sagittal", "coronal", "axial").index(plane)] // 2
    target = load(NIBABEL / file, plane=plane, volume=volume)
    np.testing.assert_array_equal(target.image[0], displayed(ras, plane, middle))
    assert target.name == f"{file} {plane} {middle}" + ("" if volume is None else f" volume {volume}")


def test_mgh_and_mgz_are_read(tmp_path):
    volume = phantom().astype(np.float32)
    stored, affine = reordered(volume, oblique(), (0, 2, 1), (-1, -1, 1))
    expected = displayed(volume, "sagittal", 10)
    for name in ("head.mgh", "head.mgz"):
        file = save(tmp_path / name, stored, affine, nibabel.MGHImage)
        np.testing.assert_array_equal(load(file, plane="sagittal").image[0], expected)
    shipped = load(NIBABEL / "test.mgz", volume=1, size=(16, 16))
    assert shipped.name == "test.mgz axial 1 volume 1"


def test_scale_and_intercept_of_the_header_are_applied(tmp_path):
    """A negative slope turns contrast round, which scaling to [0, 1] cannot hide."""
    stored = grey(12, 14, 10, dtype=np.int16)
    image = nibabel.Nifti1Image(stored, np.eye(4))
    image.header.set_slope_inter(-2, 5)
    image.to_filename(tmp_path / "scaled.nii")
    np.testing.assert_allclose(load(tmp_path / "scaled.nii").image[0], displayed(-2.0 * stored + 5, "axial", 5))


def test_a_series_of_one_volume_needs_no_choice(tmp_path):
    file = save(tmp_path / "series.nii", phantom()[..., None])
    np.testing.assert_array_equal(load(file).image[0], displayed(phantom(), "axial", 8))
    np.testing.assert_array_equal(load(file, volume=0).image, load(file).image)


def test_nan_outside_the_slice_does_no_harm(tmp_path):
    volume = phantom()
    volume[:, :, 0] = np.nan
    np.testing.assert_array_equal(load(save(tmp_path / "x.nii", volume)).image[0], displayed(phantom(), "axial", 8))


# Kinds of pictures


@pytest.mark.parametrize("suffix", ["png", "tif", "tiff"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_lossless_grey_pictures_keep_their_pixels(suffix, dtype, tmp_path):
    pixels = grey(20, 30, dtype=dtype)
    target = load(picture(tmp_path / f"slice.{suffix}", pixels))
    np.testing.assert_array_equal(target.image, unit(pixels.astype(float))[None].astype(np.float32))
    assert (target.name, target.affine) == (f"slice.{suffix}", None)


def test_float_tiff_keeps_its_values(tmp_path):
    pixels = np.random.default_rng(0).normal(size=(20, 30)).astype(np.float32)
    target = load(picture(tmp_path / "slice.tiff", pixels))
    np.testing.assert_allclose(target.image[0], unit(pixels), atol=1e-6)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_colours_come_as_red_green_blue_with_one_common_range(suffix, tmp_path):
    rgb = np.stack([grey(20, 30, seed=seed) // divisor for seed, divisor in ((1, 1), (2, 2), (3, 4))])
    target = load(picture(tmp_path / f"colours.{suffix}", np.moveaxis(rgb[::-1], 0, -1)))
    np.testing.assert_array_equal(target.image, (rgb / 255).astype(np.float32))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_alpha_is_dropped_and_equal_channels_are_grey(suffix, tmp_path, capfd):
    pixels = grey(20, 30)
    alpha = grey(20, 30, seed=5)
    expected = load(picture(tmp_path / "plain.png", pixels)).image
    for name, channels in (("rgb", [pixels] * 3), ("rgba", [pixels] * 3 + [alpha])):
        file = picture(tmp_path / f"{name}.{suffix}", np.dstack(channels))
        np.testing.assert_array_equal(load(file).image, expected)
    assert capfd.readouterr().err == ""


def test_jpeg_is_read_and_turned_as_viewers_turn_it(tmp_path):
    """Guards against EXIF orientation, which OpenCV heeds or not depending on a flag."""
    pixels = cv2.GaussianBlur(grey(32, 48), (9, 9), 3)
    file = Path(picture(tmp_path / "slice.jpg", pixels))
    upright = load(file).image[0]
    np.testing.assert_allclose(upright, unit(pixels.astype(float)), atol=0.1)

    quarter_turn = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x112, 3, 1, 6, 0, 0)
    tagged = tmp_path / "turned.jpg"
    tagged.write_bytes(
        b"\xff\xd8\xff\xe1" + struct.pack(">H", len(quarter_turn) + 2) + quarter_turn + file.read_bytes()[2:]
    )
    np.testing.assert_array_equal(load(tagged).image[0], np.rot90(upright, -1))


def test_npy_is_a_picture_or_a_ras_volume_by_its_shape(tmp_path):
    flat, colours, volume = grey(20, 30), grey(20, 30, 3), phantom()
    np.testing.assert_array_equal(load(array(tmp_path / "a.npy", flat)).image[0], (flat / 255).astype(np.float32))
    rgb = load(array(tmp_path / "b.npy", colours))
    np.testing.assert_array_equal(rgb.image, np.moveaxis(colours / 255, -1, 0).astype(np.float32))
    assert rgb.affine is None
    for plane, index in zip(PLANES, (8, 12, 10), strict=True):
        target = load(array(tmp_path / "c.npy", volume), plane=plane)
        np.testing.assert_array_equal(target.image[0], displayed(volume, plane, index))
        np.testing.assert_array_equal(target.affine, load(save(tmp_path / "c.nii", volume), plane=plane).affine)


def test_booleans_and_any_order_in_memory_are_fine(tmp_path):
    mask = grey(20, 30) > 99
    image = load(array(tmp_path / "mask.npy", np.asfortranarray(mask))).image
    np.testing.assert_array_equal(image[0], mask)
    assert image.flags.c_contiguous


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("layout", [{}, {"planarconfig": "separate"}, {"planarconfig": "separate", "tile": (16, 16)}])
def test_tiffs_of_every_layout_and_depth_hold_the_colours_that_were_written(layout, dtype, tmp_path):
    """OpenCV 5.0 mixes memory that nobody wrote into separate planes of more than 8 bits, other in every process."""
    pixels = grey(40, 50, 3)
    planes = (np.moveaxis(pixels, -1, 0) if layout else pixels).astype(dtype)
    tifffile.imwrite(tmp_path / "x.tif", planes, photometric="rgb", **layout)
    np.testing.assert_array_equal(load(tmp_path / "x.tif").image, np.moveaxis(pixels / 255.0, -1, 0).astype(np.float32))


@pytest.mark.parametrize("compression", ["zstd", "lzw", "zlib", "packbits", "lzma", "deflate"])
def test_tiffs_of_lossless_compressions_keep_their_pixels(compression, tmp_path):
    pixels = grey(40, 50, dtype=np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", pixels, compression=compression, rowsperstrip=16)
    np.testing.assert_array_equal(load(tmp_path / "x.tif").image[0], (pixels / 65535).astype(np.float32))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16, 32])
@pytest.mark.parametrize("kind", ["minisblack", "miniswhite"])
def test_tiffs_of_every_depth_are_no_negatives(kind, bits, tmp_path):
    pixels = grey(40, 51, dtype=np.uint16) >> (16 - min(bits, 16))
    shown = pixels / pixels.max()
    dtype = {1: bool, 32: np.float32}.get(bits, np.uint8 if bits <= 8 else np.uint16)
    options = {} if bits in (8, 16, 32) else {"bitspersample": bits}
    tifffile.imwrite(tmp_path / "x.tif", pixels.astype(dtype), photometric=kind, **options)
    expected = 1 - shown if kind == "miniswhite" else shown
    np.testing.assert_allclose(load(tmp_path / "x.tif").image[0], expected, atol=1e-7)


def test_alpha_of_a_tiff_leaves_its_colours_alone(tmp_path):
    """libtiff multiplies them with alpha that is not associated."""
    for dtype in (np.uint8, np.uint16):
        pixels = grey(20, 30, 4, dtype=dtype)
        tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="rgb", extrasamples=["unassalpha"])
        colours = np.moveaxis(pixels[..., :3].astype(float), -1, 0)
        np.testing.assert_array_equal(load(tmp_path / "x.tif").image, unit(colours).astype(np.float32))
    tifffile.imwrite(tmp_path / "x.tif", pixels[..., :2], photometric="minisblack", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(load(tmp_path / "x.tif").image[0], unit(pixels[..., 0] * 1.0).astype(np.float32))


def test_a_palette_is_looked_up(tmp_path):
    index, palette = grey(20, 30), grey(3, 256, dtype=np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", index, photometric="palette", colormap=palette)
    expected = unit(palette[:, index].astype(float)).astype(np.float32)
    np.testing.assert_array_equal(load(tmp_path / "x.tif").image, expected)
    colours = Image.fromarray(grey(20, 30, 3)).quantize(16)
    colours.save(tmp_path / "x.png")
    expected = unit(np.moveaxis(np.asarray(colours.convert("RGB"), dtype=float), -1, 0)).astype(np.float32)
    np.testing.assert_array_equal(load(tmp_path / "x.png").image, expected)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, colour: int, lines: bytes, *others: bytes) -> bytes:
    """A PNG written by hand; the other chunks stand before the pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(others) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pngs_of_every_colour_type_keep_their_pixels(channels, dtype, tmp_path):
    pixels = grey(20, 30, channels, dtype=dtype)
    lines = b"".join(b"\0" + line.astype(pixels.dtype.newbyteorder(">")).tobytes() for line in pixels)
    path = tmp_path / "x.png"
    path.write_bytes(png(30, 20, 8 * pixels.itemsize, {1: 0, 2: 4, 3: 2, 4: 6}[channels], lines))
    colours = np.moveaxis(pixels[..., : 1 if channels < 3 else 3].astype(float), -1, 0)
    np.testing.assert_array_equal(load(path).image, unit(colours).astype(np.float32))


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_pngs_of_few_bits_and_interlaced_ones_are_read_as_pillow_reads_them(depth, tmp_path):
    values = (grey(16, 16) >> (8 - depth)).astype(np.uint8)
    bits = np.unpackbits(values[..., None], axis=-1)[..., 8 - depth :].reshape(16, -1)
    lines = b"".join(b"\0" + line.tobytes() for line in np.packbits(bits, axis=-1))
    (tmp_path / "x.png").write_bytes(png(16, 16, depth, 0, lines))
    np.testing.assert_array_equal(load(tmp_path / "x.png").image[0], (values / (2**depth - 1)).astype(np.float32))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "x.png").convert("L")) >> (8 - depth), values)


def interlaced(pixels: np.ndarray) -> bytes:
    """Seven passes, the first of every eighth pixel."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    parts = [pixels[y::down, x::across] for x, y, across, down in passes]
    lines = b"".join(b"\0" + line.tobytes() for part in parts if part.size for line in part)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 0, 0, 0, 1))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def test_interlaced_pngs_are_read_to_the_last_pass(tmp_path):
    for shape in ((8, 9), (9, 8), (21, 34)):
        pixels = grey(*shape)
        (tmp_path / "x.png").write_bytes(interlaced(pixels))
        np.testing.assert_array_equal(load(tmp_path / "x.png").image[0], (pixels / 255).astype(np.float32))


def exif(orientation: int) -> bytes:
    return b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x112, 3, 1, orientation, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_viewers_turn_them(orientation, tmp_path):
    """OpenCV ignores a PNG's orientation."""
    pixels = grey(20, 30)
    marked = Image.fromarray(pixels)
    notes = Image.Exif()
    notes[0x112] = orientation
    marked.save(tmp_path / "x.png", exif=notes)
    marked.save(tmp_path / "x.jpg", exif=notes, quality=100)
    tifffile.imwrite(tmp_path / "x.tif", pixels, extratags=[(0x112, "H", 1, orientation, True)])
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "x.png")), dtype=float)
    np.testing.assert_array_equal(load(tmp_path / "x.png").image[0], unit(expected).astype(np.float32))
    np.testing.assert_array_equal(load(tmp_path / "x.tif").image[0], unit(expected).astype(np.float32))
    np.testing.assert_allclose(load(tmp_path / "x.jpg").image[0], unit(expected), atol=0.03)


def test_jpegs_of_12_bits_and_in_a_tiff_are_read(tmp_path):
    smooth = cv2.GaussianBlur(grey(64, 48, dtype=np.uint16) >> 4, (9, 9), 3)
    (tmp_path / "x.jpg").write_bytes(imagecodecs.jpeg8_encode(smooth, bitspersample=12, level=98))
    np.testing.assert_allclose(load(tmp_path / "x.jpg").image[0], unit(smooth * 1.0), atol=0.01)
    colours = np.moveaxis(np.stack([smooth, smooth[::-1], smooth[:, ::-1]]) >> 4, 0, -1).astype(np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", colours, photometric="rgb", compression="jpeg")
    np.testing.assert_allclose(load(tmp_path / "x.tif").image, unit(np.moveaxis(colours * 1.0, -1, 0)), atol=0.15)


def test_codecs_do_not_print(tmp_path, capfd):
    """libpng warns on stderr of notes that it cannot read, libjpeg of bytes that it skips."""
    lines = b"".join(b"\0" + bytes(grey(1, 9, seed=y)) for y in range(9))
    pixels = load(written(tmp_path / "a.png", png(9, 9, 8, 0, lines))).image
    notes = (chunk(b"iCCP", b"x\0\0junk"), chunk(b"sBIT", b"\x09"), chunk(b"PLTE", bytes(6)), chunk(b"eXIf", b"junk"))
    np.testing.assert_array_equal(load(written(tmp_path / "b.png", png(9, 9, 8, 0, lines, *notes))).image, pixels)
    for damaged in (lines[:-1], lines + lines):
        with pytest.raises(UserError, match="more or fewer pixels"):
            load(written(tmp_path / "c.png", png(9, 9, 8, 0, damaged)))
    jpeg = io.BytesIO()
    Image.fromarray(grey(20, 30)).save(jpeg, "JPEG")
    load(written(tmp_path / "d.jpg", jpeg.getvalue()[:-2] + b"\x12\x34" * 9 + b"\xff\xd9"))
    assert capfd.readouterr() == ("", "")


def test_suffixes_are_known_in_any_case(tmp_path):
    for name, pixels in (("A.PNG", grey(20, 30)), ("B.Tiff", grey(20, 30))):
        plain = tmp_path / name.lower()
        (tmp_path / name).write_bytes(Path(picture(plain, pixels)).read_bytes())
        np.testing.assert_array_equal(load(tmp_path / name).image, load(plain).image)
    for name, kind in (("C.NII.GZ", nibabel.Nifti1Image), ("D.MGZ", nibabel.MGHImage)):
        plain = tmp_path / name.lower()
        save(plain, phantom().astype(np.float32), None, kind)
        (tmp_path / name).write_bytes(plain.read_bytes())
        np.testing.assert_array_equal(load(tmp_path / name).image, load(plain).image)


# Kinds of volumes that other programs write


@pytest.mark.parametrize(("unit_name", "factor"), [("meter", 1000), ("mm", 1), ("micron", 0.001), ("unknown", 1)])
def test_units_of_the_header_become_mm(unit_name, factor, tmp_path):
    """A file of 50 micron once came out a thousand times larger."""
    image = nibabel.Nifti1Image(phantom(), np.diag([50, 50, 50, 1]))
    image.header.set_xyzt_units(unit_name)
    image.to_filename(tmp_path / "x.nii")
    target = load(tmp_path / "x.nii")
    np.testing.assert_allclose(np.linalg.norm(target.affine[:3, :3], axis=0), 50 * factor, rtol=1e-6)


@pytest.mark.parametrize("ending", [(1, 1), (1, 1, 1), (1,)])
def test_axes_of_length_one_mean_nothing(ending, tmp_path):
    file = save(tmp_path / "x.nii", phantom().reshape(*SHAPE, *ending))
    np.testing.assert_array_equal(load(file).image[0], displayed(phantom(), "axial", 8))
    np.testing.assert_array_equal(
        load(array(tmp_path / "x.npy", phantom().reshape(*SHAPE, *ending))).image, load(file).image
    )
    pair = save(tmp_path / "y.nii", np.stack([phantom(), phantom()[::-1]], -1).reshape(*SHAPE, *ending, 2))
    np.testing.assert_array_equal(load(pair, volume=1).image[0], displayed(phantom()[::-1], "axial", 8))


def test_an_sform_of_zeros_leaves_the_place_to_the_qform(tmp_path):
    image = nibabel.Nifti1Image(phantom(), None)
    image.set_qform(oblique(), 1)
    image.to_filename(tmp_path / "x.nii")
    content = bytearray((tmp_path / "x.nii").read_bytes())
    content[254:256] = struct.pack("<h", 1)  # the code says that there is an sform, and its rows are zeros
    content[280:328] = bytes(48)
    (tmp_path / "x.nii").write_bytes(content)
    expected = load(save(tmp_path / "y.nii", phantom(), oblique()))
    target = load(tmp_path / "x.nii")
    np.testing.assert_array_equal(target.image, expected.image)
    np.testing.assert_allclose(target.affine, expected.affine, atol=1e-4)


def test_a_npy_of_one_channel_is_a_picture(tmp_path):
    pixels = grey(20, 30, 1)
    target = load(array(tmp_path / "x.npy", pixels))
    assert target.affine is None
    np.testing.assert_array_equal(target.image[0], (pixels[..., 0] / 255).astype(np.float32))


@pytest.mark.parametrize("plane", PLANES)
def test_a_reconstruction_keeps_units_places_and_codes_of_its_volume(plane, tmp_path):
    """sform 4 (MNI) once became 2, and intensities of 0 to 254 became 0 to 1."""
    volume = 254 * phantom() - 20
    image = nibabel.Nifti1Image(volume, None)
    image.set_sform(oblique(), 4)
    scanner = oblique()
    scanner[:3, 3] += (40, -7, 3)
    image.set_qform(scanner, 1)
    image.to_filename(tmp_path / "x.nii")
    target = load(tmp_path / "x.nii", plane=plane)
    written = nibabel.Nifti1Image.from_bytes(gzip.decompress(nifti_bytes(target.image, target)))
    (sform, s), (qform, q) = written.get_sform(coded=True), written.get_qform(coded=True)
    assert (s, q, written.header.get_xyzt_units()[0]) == (4, 1, "mm")
    np.testing.assert_allclose(sform, target.affine, atol=1e-4)
    np.testing.assert_allclose(qform[:3, 3] - sform[:3, 3], (40, -7, 3), atol=1e-3)
    np.testing.assert_allclose(qform[:3, :2], sform[:3, :2], atol=1e-4)
    middle = SHAPE[{"axial": 2, "coronal": 1, "sagittal": 0}[plane]] // 2
    np.testing.assert_allclose(written.get_fdata()[:, :, 0], turned(volume, plane, middle), atol=1e-4)


def test_a_reconstruction_of_a_volume_without_codes_lies_in_its_place(tmp_path):
    """A .npy has no codes to keep; a header with a qform alone gets no sform."""
    target = load(array(tmp_path / "x.npy", phantom()))
    written = nibabel.Nifti1Image.from_bytes(gzip.decompress(nifti_bytes(target.image, target)))
    np.testing.assert_allclose(written.affine, target.affine, atol=1e-4)
    image = nibabel.Nifti1Image(phantom(), None)
    image.set_qform(oblique(), 2)
    image.to_filename(tmp_path / "x.nii")
    target = load(tmp_path / "x.nii")
    written = nibabel.Nifti1Image.from_bytes(gzip.decompress(nifti_bytes(target.image, target)))
    assert (int(written.header["sform_code"]), int(written.header["qform_code"])) == (0, 2)
    np.testing.assert_allclose(written.affine, target.affine, atol=1e-4)


# Sizes


@pytest.mark.parametrize("suffix", ["nii", "nii.gz", "mgz", "npy"])
def test_of_a_volume_only_the_slice_is_in_memory(suffix, tmp_path):
    """A volume of 600 million voxels once took 5 GB for a slice."""
    volume = np.random.default_rng(0).integers(0, 9, (320, 1, 1), dtype=np.uint8) + np.zeros((320, 300, 280), np.uint8)
    volume[::7, 100:200:3, ::5] = 99
    path = tmp_path / f"x.{suffix}"
    if suffix == "npy":
        np.save(path, volume)
    else:
        save(path, volume, None, nibabel.MGHImage if suffix == "mgz" else nibabel.Nifti1Image)
    for plane, index in (("axial", 140), ("coronal", 151), ("sagittal", 161)):
        tracemalloc.start()
        image = load(path, plane=plane, slice=index).image[0]
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < volume.nbytes / 2
        np.testing.assert_array_equal(image, displayed(volume, plane, index))


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


@pytest.mark.parametrize("kind", ["CMYK", "LAB"])
def test_colours_that_are_not_rgb_are_refused_by_name(kind, tmp_path):
    pixels = grey(20, 30, 4 if kind == "CMYK" else 3)
    if kind == "CMYK":
        Image.fromarray(pixels, "CMYK").save(tmp_path / "x.jpg")
        with pytest.raises(UserError, match="CMYK"):
            load(tmp_path / "x.jpg")
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric={"CMYK": "separated", "LAB": "cielab"}[kind])
    with pytest.raises(UserError, match={"CMYK": "SEPARATED", "LAB": "CIELAB"}[kind]):
        load(tmp_path / "x.tif")


# Intensities and size


def test_percentiles_are_clipped_and_an_outlier_does_not_darken_the_rest(tmp_path):
    pixels = grey(40, 50, dtype=np.uint16).astype(float) % 1000
    pixels[3, 4] = 1e6
    file = array(tmp_path / "spike.npy", pixels)
    lower, upper = np.percentile(pixels, (2, 97))
    target = load(file, intensity="percentile", percentiles=(2.0, 97.0))
    np.testing.assert_allclose(target.image[0], np.clip((pixels - lower) / (upper - lower), 0, 1), atol=1e-6)
    assert np.median(target.image) > 0.4 > 0.001 > np.median(load(file).image)
    all_of_it = load(file, intensity="percentile", percentiles=(0.0, 100.0))
    np.testing.assert_array_equal(all_of_it.image, load(file).image)


def test_size_keeps_the_aspect_and_centres_on_zeros(tmp_path):
    pixels = 255 - grey(20, 30) // 2
    file = picture(tmp_path / "slice.png", pixels)
    image = load(file, size=(80, 60)).image[0]
    assert image.shape == (80, 60)
    assert not image[:20].any()
    assert not image[60:].any()
    content = cv2.resize(unit(pixels.astype(float)).astype(np.float32), (60, 40), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(image[20:60], content, atol=1e-6)
    np.testing.assert_array_equal(load(file, size=(20, 30)).image, load(file).image)


def test_smaller_sizes_are_averages_of_blocks(tmp_path):
    pixels = grey(40, 60, 3)
    blocks = (pixels / 255).reshape(10, 4, 15, 4, 3).mean(axis=(1, 3))
    image = load(array(tmp_path / "slice.npy", pixels), size=(10, 15)).image
    np.testing.assert_allclose(image, np.moveaxis(blocks, -1, 0), atol=1e-6)


@pytest.mark.parametrize("size", [None, (97, 131), (9, 200), (30, 11)])
def test_targets_are_contiguous_float32_in_the_unit_range(size, tmp_path):
    target = load(array(tmp_path / "slice.npy", grey(33, 47, 3)), size=size)
    assert target.image.dtype == np.float32
    assert target.image.flags.c_contiguous
    assert target.image.min() >= 0
    assert target.image.max() <= 1


def test_digest_is_that_of_shape_and_pixels():
    image = np.random.default_rng(0).random((1, 8, 12), dtype=np.float32)
    digest = Target(image, "one", None).digest
    assert digest == Target(image.copy(), "another", np.eye(4)).digest
    assert digest != Target(image.reshape(1, 12, 8), "one", None).digest
    image[0, 3, 3] += 1e-6
    assert digest != Target(image, "one", None).digest


# The packaged template


def test_default_target_is_a_brain_with_its_forehead_up():
    target = load(None)
    image = target.image[0]
    assert target.name == "MNI152 T1 axial 94"
    assert target.image.shape == (1, 233, 197)
    assert (image.min(), image.max()) == (0, 1)
    assert np.corrcoef(image.ravel(), image[:, ::-1].ravel())[0, 1] > 0.95
    # an axial brain is an egg with its narrow end at the forehead
    widths = (image > 0.1).sum(axis=1)
    brain = widths[widths > 0]
    third = len(brain) // 3
    assert brain[:third].mean() < 0.95 * brain[-third:].mean()
    # x = 0 is the middle column, and the slice lies 22 mm above the template's origin
    np.testing.assert_allclose(target.affine @ (98, 98, 0, 1), (0, 0, 22, 1))


def test_default_target_needs_neither_network_nor_home_nor_patience(tmp_path):
    """Importing nilearn takes seconds and its loaders may make a folder at home."""
    code = """
import sys
from ddstudy.spec.options import TargetSpec
from ddstudy.images.volumes import load_target
assert not {"nibabel", "nilearn", "cv2"} & set(sys.modules)
load_target(TargetSpec())
assert "nilearn" not in sys.modules
"""
    environment = {**os.environ, "HOME": str(tmp_path), "NILEARN_DATA": str(tmp_path / "data")}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


# What a user may get wrong


def written(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


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


# Tiles


@given(
    channels=st.integers(1, 4),
    height=st.integers(1, 41),
    width=st.integers(1, 41),
    tiling=st.sampled_from(TILINGS),
    dtype=st.sampled_from([np.float32, np.float64, np.uint8, np.bool_, np.complex64]),
)
def test_join_undoes_split_bit_for_bit(channels, height, width, tiling, dtype):
    image = np.random.default_rng(0).normal(size=(channels, height, width)).astype(dtype)
    before = image.copy()
    tiles = split(image, tiling)
    rows, columns = rows_and_columns(tiling)
    assert tiles.shape == (rows * columns, channels, *tile_shape(height, width, tiling))
    assert tiles.dtype == image.dtype
    assert tiles.flags.c_contiguous
    joined = join(tiles, tiling, height, width)
    assert joined.flags.c_contiguous
    np.testing.assert_array_equal(joined, image)
    tiles[:] = 0
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(joined, before)


@pytest.mark.parametrize("tiling", TILINGS)
def test_tiles_go_row_by_row(tiling):
    """Also how noise of (k, rows * h0, columns * w0) is cut."""
    rows, columns = rows_and_columns(tiling)
    noise = np.random.default_rng(0).random((6, rows * 3, columns * 2))
    tiles = split(noise, tiling)
    assert len(tiles) == rows * columns
    for row, column in np.ndindex(rows, columns):
        expected = noise[:, 3 * row : 3 * row + 3, 2 * column : 2 * column + 2]
        np.testing.assert_array_equal(tiles[row * columns + column], expected)


@pytest.mark.parametrize(("height", "width"), [(233, 197), (21, 23), (9, 11)])
@pytest.mark.parametrize("tiling", TILINGS)
def test_what_does_not_divide_is_mirrored_at_the_bottom_and_right(height, width, tiling):
    image = np.random.default_rng(0).random((1, height, width), dtype=np.float32)
    rows, columns = rows_and_columns(tiling)
    h, w = tile_shape(height, width, tiling)
    whole = join(split(image, tiling), tiling, rows * h, columns * w)
    assert 0 <= rows * h - height < rows
    assert 0 <= columns * w - width < columns
    down = [i if i < height else 2 * (height - 1) - i for i in range(rows * h)]
    across = [j if j < width else 2 * (width - 1) - j for j in range(columns * w)]
    np.testing.assert_array_equal(whole, image[:, down][:, :, across])


@pytest.mark.parametrize("tiling", TILINGS)
def test_join_takes_members_and_snapshots_as_leading_axes(tiling):
    images = np.random.default_rng(0).random((2, 5, 3, 13, 17), dtype=np.float32)
    tiles = np.stack([np.stack([split(image, tiling) for image in members]) for members in images])
    np.testing.assert_array_equal(join(tiles, tiling, 13, 17), images)
