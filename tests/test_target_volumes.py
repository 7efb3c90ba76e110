"""Targets cut from volumes: the same anatomy on the same side of the image, in the same place of the scanner, however
it was stored.
"""

from __future__ import annotations

import gzip
import itertools
import os
import struct
import subprocess
import sys
import tracemalloc

import nibabel
import numpy as np
import pytest
from targets import MARKS, NIBABEL, PLANES, SHAPE, array, displayed, grey, load, phantom, save, turned, unit

from ddstudy.images.volumes import nifti_bytes

# Sides and places


ORIENTATIONS = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))


TOP_BOTTOM_LEFT_RIGHT = {"axial": "APRL", "coronal": "SIRL", "sagittal": "SIAP"}


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


# Memory


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
