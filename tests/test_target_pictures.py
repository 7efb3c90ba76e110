"""Targets that are pictures: the pixels that were written, in every format, depth, layout and direction."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import cv2
import imagecodecs
import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps
from targets import PLANES, array, chunk, displayed, grey, load, phantom, picture, png, save, unit, written

from ddstudy.errors import UserError
from ddstudy.images.volumes import Target


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


def test_a_npy_of_one_channel_is_a_picture(tmp_path):
    pixels = grey(20, 30, 1)
    target = load(array(tmp_path / "x.npy", pixels))
    assert target.affine is None
    np.testing.assert_array_equal(target.image[0], (pixels[..., 0] / 255).astype(np.float32))


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
