"""A first study of one's own image: a commented study file, as large as this machine finishes in some minutes.

`write` tries some iterations on the image and takes the largest of a few grids that by forecast fit into the time;
where even the smallest does not, the image is made smaller. What the file says is meant to be changed by hand.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddstudy.api import executor_for
from ddstudy.errors import UserError, duration
from ddstudy.images.targets import load_targets
from ddstudy.report.writing import check_new, write_file
from ddstudy.spec.axes import budgets_by_fit
from ddstudy.spec.files import parse_spec
from ddstudy.spec.schema import StudySpec
from ddstudy.study import forecasting, planner

# from the largest on; sizes of the image come after the smallest: a smaller grid tells more of the same image
GRIDS: tuple[dict[str, list[int]], ...] = (
    {"k": [16, 32, 64, 128], "s": [4, 8, 16], "l": [3, 5], "iterations": [250, 500, 1000, 2000]},
    {"k": [16, 32, 64, 128], "s": [4, 8, 16], "l": [4], "iterations": [250, 500, 1000, 2000]},
    {"k": [16, 32, 64], "s": [4, 8, 16], "l": [4], "iterations": [250, 500, 1000]},
    {"k": [16, 32, 64], "s": [8, 16], "l": [4], "iterations": [200, 400, 800]},
    {"k": [8, 16, 32], "s": [4, 8], "l": [3], "iterations": [100, 200, 400]},
    {"k": [8, 16], "s": [4, 8], "l": [3], "iterations": [100, 300]},
)
_SMALLEST = 48  # pixels of the longer side
_NOISY = """[task]                           # the file is a measurement with noise; nobody knows the image without
kind = "denoise"
source = "file"

[judge]                          # some pixels are kept from the fit, and say which setting predicts them best
against = "held_out"

"""
_CLEAN = """# The file is taken for the clean image: PSNR (dB) tells how well a setting copies it. For a measurement
# with noise, run `ddstudy init --measured`; for a simulated one, see docs/tasks.md.

"""
_TEXT = """# Which settings of the Deep Decoder serve {name}? Written by `ddstudy init`; change it as you like.
#
#     ddstudy run {file}     {seconds} here, by forecast; Ctrl-C stops it, the same command goes on
#     ddstudy report     one HTML page: the best settings, their images, what matters

[target]
file = {target}
{of_target}
{task}[space]                          # every combination is tried: {settings} settings by {fits} fits
{k:<32} # channels: more draw finer detail, and take longer
{s:<32} # the input is smaller than the image by this factor; larger is smoother
{l:<32} # blocks
{iterations:<32} # a fit passes the smaller numbers on its way to the largest

[fit]
members = {members}                      # random starts of each fit; the result is their mean, and stable if they agree
"""


@dataclass(frozen=True)
class FirstStudy:
    """What was written.

    Attributes:
        path: of the study file.
        spec: the study.
        seconds: that it takes, by forecast.
    """

    path: Path
    spec: StudySpec
    seconds: float


def write(
    image: str | Path,
    out: str | Path | None = None,
    *,
    minutes: float = 10.0,
    measured: bool = False,
    plane: str | None = None,
    volume: int | None = None,
    tell: Callable[[str], object] | None = None,
    stop: threading.Event | None = None,
) -> FirstStudy:
    """Writes a study of an image or volume.

    Args:
        image: picture or volume.
        out: the study file; by default the image's name with `.toml` in the current folder. It must not be there.
        minutes: that the study may take on this machine.
        measured: the image is a measurement with noise, not the truth.
        plane: of a volume, axial by default.
        volume: which one of a series.
        tell: takes lines about what is done.
        stop: ends it when another thread sets it.

    Raises:
        UserError: the image cannot be read, the study file is there already or cannot be written, or not even the
            smallest study is that short.
        WorkError: no fit works here.
    """
    image = Path(os.path.abspath(image))
    path = Path(out) if out is not None else Path(f"{image.name.split('.')[0]}.toml")
    check_new(path)
    if tell:
        tell("Trying some iterations of fits of different size")
    target: dict[str, Any] = {"file": str(image), "plane": plane or "axial"}
    target |= {} if volume is None else {"volume": volume}
    for spec in _candidates(target, path.stem, measured=measured):
        seconds = _seconds(spec, stop)
        if seconds <= 60 * minutes:
            write_file(path, _text(spec, path, image, seconds).encode())
            return FirstStudy(path, spec, seconds)
    raise UserError(
        f"{image.name}: not even the smallest study takes less than {minutes:g} minutes here", "Give more --minutes."
    )


def _candidates(target: dict[str, Any], name: str, *, measured: bool) -> Iterator[StudySpec]:
    """Studies from the largest to the smallest: all grids, then the smallest ones with fewer pixels."""
    tree: dict[str, Any] = {"name": name, "target": target}
    if measured:
        tree |= {"task": {"kind": "denoise", "source": "file"}, "judge": {"against": "held_out"}}
    for grid in GRIDS:
        yield parse_spec(tree | {"space": grid, "fit": {"members": 3}}, "ddstudy init")
    height, width = load_targets(parse_spec(tree | {"space": GRIDS[-1]}, "ddstudy init")).image.shape[-2:]
    while max(height, width) > _SMALLEST and min(height, width) >= 16:
        height, width = height // 2, width // 2
        smaller = target | {"size": [height, width]}
        for grid in GRIDS[-3:]:
            yield parse_spec(tree | {"target": smaller, "space": grid, "fit": {"members": 3}}, "ddstudy init")


def _seconds(spec: StudySpec, stop: threading.Event | None) -> float:
    """What a study takes by forecast."""
    image = load_targets(spec)
    the_plan = planner.plan(spec, image, set())
    with executor_for(spec, image, tell=lambda line: None, stop=stop) as executor:
        forecast = forecasting.calibrate(spec, image, list(budgets_by_fit(spec.search_space)), executor)
        if not forecast.known:
            return float("inf")
        return forecasting.forecast_seconds(spec, image, the_plan, forecast, executor.slots)


def _text(spec: StudySpec, path: Path, image: Path, seconds: float) -> str:
    of_target = f'plane = "{spec.target.plane}"\n' * (spec.target.plane != "axial")
    of_target += f"volume = {spec.target.volume}\n" * (spec.target.volume is not None)
    if spec.target.size:
        of_target += f"{f'size = {list(spec.target.size)}':<32} # rows, columns: fewer, so that it takes less time\n"
    return _TEXT.format(
        name=image.name,
        file=path,
        seconds=f"about {duration(seconds)}",
        target=json.dumps(os.path.relpath(image, os.path.realpath(path.parent))),
        of_target=of_target,
        task=_NOISY if spec.task.source == "file" else _CLEAN,
        settings=len(spec.search_space),
        fits=len(budgets_by_fit(spec.search_space)),
        members=spec.fit.members,
        **{axis: f"{axis} = {list(spec.search_space[axis])}" for axis in ("k", "s", "l", "iterations")},
    )
