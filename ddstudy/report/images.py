"""Study -> images, and images -> what a page can hold: data URIs.

Of most trials the image is seen only when a pointer rests on them, so they are shrunk to thumbnails that share one
picture: a browser decodes it once, and 2,268 of them weigh less than plotly.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from ddstudy.images.inputs import noise_volume
from ddstudy.images.tiling import split
from ddstudy.images.volumes import SIDES, error_png_bytes, png_bytes
from ddstudy.spec.options import Noise, rows_and_columns
from ddstudy.store.study import StudyView, is_whole

_THUMBNAIL = 80  # pixels of the longer side
_PICTURE = 512
_LARGE = 1024
_LOSSLESS = 101  # of WebP's qualities, as OpenCV has it


@dataclass(frozen=True)
class Sheet:
    """Thumbnails of trials in one picture, row by row.

    Attributes:
        uri: the picture.
        numbers: of the trials, in the order of their thumbnails.
        columns: thumbnails per row.
        width: of a thumbnail, in pixels.
        height: likewise.
    """

    uri: str
    numbers: tuple[int, ...]
    columns: int
    width: int
    height: int


def sheet(files: dict[int, Path]) -> Sheet | None:
    """Thumbnails of the trials' images; None where no image is left. Missing and damaged files are left out.

    Args:
        files: number of a trial -> its image. All have the same shape.
    """
    thumbnails = {number: image for number, file in files.items() if (image := _thumbnail(file)) is not None}
    if not thumbnails:
        return None
    height, width = next(iter(thumbnails.values())).shape[:2]
    columns = math.ceil(math.sqrt(len(thumbnails)))
    canvas = np.zeros((math.ceil(len(thumbnails) / columns) * height, columns * width, 3), np.uint8)
    for place, image in enumerate(thumbnails.values()):
        row, column = divmod(place, columns)
        canvas[row * height : (row + 1) * height, column * width : (column + 1) * width] = image
    return Sheet(_webp(canvas, 50), tuple(thumbnails), columns, width, height)


def picture(file: Path, *, large: bool = False) -> str | None:
    """An image of a trial as a data URI; None where the file is gone or damaged.

    Args:
        file: its path.
        large: at most 1024 pixels wide and high and without loss, instead of 512 with a little.
    """
    image = _read(file)
    if image is None:
        return None
    return _webp(_shrunk(image, _LARGE), _LOSSLESS) if large else _webp(_shrunk(image, _PICTURE), 80)


def scale(kind: Literal["grey", "error"]) -> str:
    """What the grey of targets and outputs, or the colours of error maps, stand for: a strip from low to high."""
    ramp = np.linspace(0, 1, 256, dtype=np.float32)[None, None]
    if kind == "grey":
        return drawn(ramp)
    return _uri("png", error_png_bytes(0.2 * ramp, np.zeros_like(ramp)))


def sides(view: StudyView, setting: Mapping[Any, Any]) -> str:
    """Letters of the directions in which the left and the right of a study's images lie, `RL`; empty for pictures.

    Args:
        view: the study.
        setting: of the image.
    """
    if not re.search(r" (axial|coronal|sagittal) \d+( volume \d+)?( and \d+ more)?$", view.facts.get("target", "")):
        return ""
    return SIDES[setting.get("target.plane", view.spec.target.plane)]


def read_grey(file: Path) -> NDArray[np.float32] | None:
    """An image of a trial as an array (1, H, W) in [0, 1]; None where the file is gone or damaged."""
    image = _read(file)
    return None if image is None else np.asarray(image.mean(axis=2, dtype=np.float32)[None] / 255, dtype=np.float32)


def read(file: Path) -> NDArray[np.float32] | None:
    """An image of a trial as an array (C, H, W) in [0, 1], grey with one channel; None where it is gone or damaged."""
    image = _read(file)
    if image is None:
        return None
    channels = np.divide(image[..., ::-1].transpose(2, 0, 1), 255, dtype=np.float32)
    return channels[:1] if (channels == channels[:1]).all() else channels


def drawn(image: NDArray[np.float32]) -> str:
    """An array (C, H, W) in [0, 1] as a data URI, without loss."""
    return _uri("png", png_bytes(image))


def noise_previews(view: StudyView) -> dict[str, NDArray[np.float32]]:
    """One channel of each kind of input tensor, as large as the study's largest (thesis Fig. 3.1).

    All are drawn from the same stream, so that `blur3` is the filtered `uniform`.

    Returns:
        Kind -> array (1, rows, columns) within the study's range of noise.
    """
    (rows, columns), options = _input_shape(view), view.spec.noise.model_dump()
    return {
        kind: noise_volume(kind, 1, rows, columns, np.random.default_rng(view.spec.fit.seed), **options)
        for kind in cast("tuple[Noise, ...]", view.spec.values_of("noise"))
    }


def feature_sizes(view: StudyView) -> dict[float, NDArray[np.float32]]:
    """Simplex noise of growing feature size, at the size of the study's inputs (thesis Fig. 3.3); as above."""
    rows, columns = _input_shape(view)
    options = view.spec.noise.model_dump()
    smallest = options.pop("feature_size")
    return {
        size: noise_volume(
            "simplex", 1, rows, columns, np.random.default_rng(view.spec.fit.seed), feature_size=size, **options
        )
        for size in (smallest * 2**n for n in range(4))
    }


def _input_shape(view: StudyView) -> tuple[int, int]:
    height, width = (int(side) for side in view.facts["target shape"].split("x")[1:])
    s = min(view.spec.values_of("s"), default=1)  # a prior without scale factors may take the image's size
    assert isinstance(s, int)
    return max(1, round(height / s)), max(1, round(width / s))


def tilings(view: StudyView, image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """The target in tiles with white lines between them (thesis Fig. 3.4).

    Args:
        view: the study whose tilings are shown.
        image: its target, (1, H, W) in [0, 1].

    Returns:
        Tiling -> array (1, height, width): the tiles, padded as they are fitted.
    """
    gap = max(1, max(image.shape) // 60)
    shown: dict[str, NDArray[np.float32]] = {}
    for tiling in map(str, view.spec.values_of("tiling")):
        rows, columns = rows_and_columns(tiling)
        padded = np.pad(split(image, tiling), ((0, 0), (0, 0), (0, gap), (0, gap)), constant_values=1)
        tiles = padded.reshape(rows, columns, *padded.shape[2:])
        joined = tiles.transpose(0, 2, 1, 3).reshape(1, rows * padded.shape[2], columns * padded.shape[3])
        shown[tiling] = joined[:, :-gap, :-gap]
    return shown


@lru_cache(maxsize=16384)  # a file never changes, and a page that follows a running study needs each again and again
def _thumbnail(file: Path) -> NDArray[np.uint8] | None:
    image = _read(file)
    return None if image is None else _shrunk(image, _THUMBNAIL)


def _read(file: Path) -> NDArray[np.uint8] | None:
    if not is_whole(file):
        return None
    image: Any = cv2.imdecode(np.frombuffer(file.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    return None if image is None else np.asarray(image)


def _shrunk(image: NDArray[np.uint8], longest: int) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _webp(image: NDArray[np.uint8], quality: int) -> str:
    return _uri("webp", cv2.imencode(".webp", image, [cv2.IMWRITE_WEBP_QUALITY, quality])[1].tobytes())


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
