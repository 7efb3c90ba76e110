"""Volumes and pictures for tests of targets, written as files, and what a slice of them must look like."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import nibabel
import numpy as np
from nibabel.testing import data_path

from ddstudy.images.volumes import Target, load_target
from ddstudy.spec.options import TargetSpec

PLANES = ("axial", "coronal", "sagittal")
NIBABEL = Path(data_path)
SHAPE = (21, 25, 17)
# voxels near both ends of each axis of a RAS+ volume, from the brightest to the dimmest
MARKS = {"R": (18, 12, 8), "L": (2, 12, 8), "A": (10, 22, 8), "P": (10, 2, 8), "S": (10, 12, 15), "I": (10, 12, 1)}


def phantom() -> np.ndarray:
    """RAS+ volume: dim noise, so that no two flips of it look alike, and the six marks."""
    volume = np.random.default_rng(7).uniform(0, 0.4, SHAPE)
    for voxel, value in zip(MARKS.values(), (1.0, 0.9, 0.8, 0.7, 0.6, 0.5), strict=True):
        volume[voxel] = value
    return volume


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


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, colour: int, lines: bytes, *others: bytes) -> bytes:
    """A PNG written by hand; the other chunks stand before the pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(others) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def written(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)
