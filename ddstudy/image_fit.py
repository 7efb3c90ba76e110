"""One setting fitted to one image, without a study and without a store: arrays in, arrays out.

`fit` is what `ddstudy fit` calls; `fit_setting` is the same for a setting of a study, with its options.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ddstudy.errors import StoppedError, UserError, WorkError
from ddstudy.execution.executors import careful, layout, resolve_device
from ddstudy.images.targets import load_targets
from ddstudy.images.volumes import Target, Targets, finer, nifti_bytes, png_bytes, target_of
from ddstudy.report.writing import write_files
from ddstudy.spec.axes import Setting
from ddstudy.spec.files import parse_spec
from ddstudy.spec.options import OPTIONS, THESIS
from ddstudy.spec.schema import CASE, StudySpec
from ddstudy.study import planner
from ddstudy.study.evaluate import Check, Ending, Job, Result, is_stopped
from ddstudy.tasks.cases import Case
from ddstudy.tasks.judges import Judge
from ddstudy.tasks.measurements import measure, picture

_DEFAULTS = {"k": 64, "s": 16, "l": 5, "iterations": 2000}
MOST_CORES = 1024  # that workers or threads could fill


@dataclass(frozen=True, eq=False)
class ImageFit:
    """What one fit made of an image.

    Attributes:
        output: float32, the mean of the members' outputs (thesis Eq. 3.3), in the shape and the units of the image that
            was given; of an image that was read from a file (H, W) or (H, W, 3), as displayed.
        members: float32 (M, ...), the output of each member, likewise.
        values: every measurement under the name that it has in tables: `psnr`, `ssim`, `ms_ssim`, `vif`,
            `psnr_foreground`, the mean of single members as `psnr_1dd` and so on, `cv_percent`, `seconds`,
            `parameters`. They are taken of images in [0, 1], as in a study: PSNR is relative to the image's range.
        checks: one row per member and check: `iteration`, `seconds`, `member`, `psnr` (dB).
        setting: what was fitted.
        target: the image as it was fitted, in [0, 1]; its affine is that of `output`.
    """

    output: NDArray[np.float32]
    members: NDArray[np.float32]
    values: dict[str, float | int | str]
    checks: pd.DataFrame
    setting: Setting
    target: Target
    _unit: NDArray[np.float32] = field(repr=False)

    def __repr__(self) -> str:
        known = "" if math.isnan(self.psnr) else f"{self.psnr:.2f} dB, "
        return f"<ImageFit {self.setting.id} of {self.target.name}: {known}{self.seconds:.1f} s>"

    def _repr_html_(self) -> str:
        """What a notebook shows of it."""
        from ddstudy.report import notebook

        return notebook.of_fit(f"{self.setting.id} of {self.target.name}", self.values, self.target.image, self._unit)

    @property
    def psnr(self) -> float:
        """PSNR of `output`, dB; NaN where the truth is not known."""
        return float(self.values.get("psnr", math.nan))

    @property
    def cv_percent(self) -> float:
        """Coefficient of variation of the members' PSNR, percent (thesis Eq. 4.1)."""
        return float(self.values["cv_percent"])

    @property
    def seconds(self) -> float:
        """Time of the fit, without compilation and metrics."""
        return float(self.values["seconds"])

    def save(self, stem: str | Path) -> list[Path]:
        """Writes the output as PNG and, of a volume's slice, as NIfTI in the place and the units of that slice.

        Args:
            stem: folder and name of the files, without suffix.

        Returns:
            The files.

        Raises:
            UserError: they cannot be written.
        """
        files = {".png": png_bytes(self._unit)}
        if self.target.affine is not None:
            files[".nii.gz"] = nifti_bytes(self._unit, self.target)
        return write_files(Path(stem), files)


def fit(
    image: ArrayLike | Path | None = None,
    *,
    k: int | None = None,
    s: int | None = None,
    l: int | None = None,
    iterations: int | None = None,
    noise: str | Mapping[str, Any] | None = None,
    tiling: str | None = None,
    prior: str | Mapping[str, Any] = "deep_decoder",
    target: Mapping[str, Any] | None = None,
    task: Mapping[str, Any] | None = None,
    rule: str = "budget",
    threads: int | None = None,
    progress: Callable[[Check], object] | None = None,
    tell: Callable[[str], object] | None = None,
    stop: threading.Event | None = None,
    **options: Any,
) -> ImageFit:
    """Fits an ensemble of untrained networks to one image, as `ddstudy fit` does, with the same numbers.

    What is fitted is a Deep Decoder unless `prior` says otherwise. A prior without weights (tv, wavelet, nlm) denoises
    the image in one go.

    Args:
        image: real numbers of any range, (H, W), (C, H, W) or (H, W, C) with 1 or 3 channels and sides of 8 to 4096
            pixels; or the path of an image or volume; or None for the packaged MNI152 slice. An array is taken as the
            same array in a .npy file would be: its minimum and maximum become 0 and 1, equal channels are grey.
        k: channels of every block, 64 by default.
        s: scale factor, image size / input size, 16 by default, where the prior has one.
        l: number of blocks, 5 by default.
        iterations: of the optimiser, 2,000 by default.
        noise: kind of the input tensor, "uniform" by default, "blur3" or "simplex"; or what the `[noise]` table of a
            study file may say, with `kind`.
        tiling: "1x1" by default, "2x2", "3x3" or "4x5".
        prior: its kind, "deep_decoder", "deep_decoder_2019", "conv_decoder", "dip", "siren", "tv", "wavelet" or "nlm";
            or what the `[prior]` table of a study file may say: kind, skip_channels, omega, strength, ...
        target: what the `[target]` table of a study file may say besides `file`: plane, slice, size, ...
        task: what the `[task]` table of a study file may say: kind, sigma, acceleration, ... With source = "file" the
            image is the measurement itself, and what is written is its reconstruction.
        rule: which iterate is the answer: that of the whole budget, or of a stopping rule, what `fit.stop` may be.
        threads: of the fit; by default one per member, as cores allow.
        progress: is called with a `Check` every `check_every` iterations and at the end.
        tell: is called with a line about what is done, for example `print`.
        stop: ends the fit when another thread sets it.
        **options: what the `[fit]` table of a study file may say: members (5), seed (0), learning_rate, optimiser,
            loss, keep, device, engine, check_every, ...

    Raises:
        UserError: an option or the image is not valid.
        StoppedError: `stop` was set before the fit ended.
        WorkError: the fit diverged, or there is too little memory for it.
    """
    file = None
    if isinstance(image, str | os.PathLike):
        file, image = os.fspath(image), None
    spec = asked(
        file, k=k, s=s, l=l, iterations=iterations, noise=noise, tiling=tiling, prior=prior, target=target, task=task,
        rule=rule, **options,
    )  # fmt: skip
    of = load_targets(spec) if image is None else target_of(image, spec.target)
    assert isinstance(of, Target)  # since there is no axis
    (setting,) = spec.search_space
    if tell:
        tell(announced(spec, setting, of.name))
    job = job_of(spec, of, setting)
    found, checks = _fitted(job, threads=threads, progress=progress, stop=stop)
    assert found.members is not None
    lower, upper = of.scale
    shape = None if image is None else np.shape(image)
    output, members = (
        (lower + (upper - lower) * arranged(each, shape).astype(np.float64)).astype(np.float32)
        for each in (found.output, found.members)
    )
    enlarged = not spec.knows_truth and spec.task.kind == "super_resolve"
    placed = finer(of, spec.task.factor) if enlarged else of
    return ImageFit(output, members, values_of(found, spec), checks, setting, placed, found.output)


def asked(
    file: str | None = None,
    *,
    prior: str | Mapping[str, Any] = "deep_decoder",
    target: Mapping[str, Any] | None = None,
    task: Mapping[str, Any] | None = None,
    rule: str = "budget",
    k: int | None = None,
    s: int | None = None,
    l: int | None = None,
    iterations: int | None = None,
    noise: str | Mapping[str, Any] | None = None,
    tiling: str | None = None,
    **options: Any,
) -> StudySpec:
    """What `fit` is asked for, as a study of one setting, by its arguments; `file` is that of the image."""
    model = plain({"kind": prior} if isinstance(prior, str) else prior)
    table = dict(noise) if isinstance(noise, Mapping) else {"kind": noise}
    given = {"k": k, "s": s, "l": l, "iterations": iterations, "noise": table.pop("kind", None), "tiling": tiling}
    space = {axis: value for axis, value in given.items() if value is not None}
    for axis, value in _DEFAULTS.items():
        if model.get("kind", "deep_decoder") in (OPTIONS[axis].needs or ("", ()))[1]:
            space.setdefault(axis, value)
    measured = plain(task or {})
    from_file = measured.get("source") == "file"
    return parse_spec(
        {
            "name": "fit",
            "target": plain(target or {}) | ({"file": file} if file is not None else {}),
            "task": measured,
            "prior": model,
            "noise": plain(table),
            # one fit needs no judge; nothing is held out below
            "judge": {"against": "held_out"} if from_file else {},
            "space": {axis: [plain(value)] for axis, value in space.items()},
            "fit": {**plain(options), "stop": rule},
            "stability": {"prune": False},
        },
        "ddstudy fit",
        judged=not from_file,
    )


def options_of(spec: StudySpec, setting: Setting) -> dict[str, Any]:
    """What `fit` is to be told so that it does with an image what a study does at a setting; see `Study.options`."""
    at = spec.at(setting)
    own = {axis: setting[axis] for axis in THESIS if axis in setting}
    if "noise" in own:
        own["noise"] = {"kind": own["noise"], **at.noise.model_dump()}
    return {
        **own,
        "prior": at.prior.model_dump(exclude_defaults=True),
        "target": at.target.model_dump(exclude_defaults=True, exclude={"file", "slice", "volume"}),
        "task": at.task.model_dump(exclude_defaults=True),
        "rule": at.fit.stop,
        **at.fit.model_dump(exclude_defaults=True, exclude={"stop"}),
    }


def announced(spec: StudySpec, setting: Setting, name: str) -> str:
    """A line about what is going to be done with an image of this name."""
    done = f"Reconstructing {name} ({spec.task.kind}) by" if spec.is_task else "Fitting"
    to = "" if spec.is_task else f" to {name}"
    kind = f"{spec.prior.kind} " if spec.prior.kind != "deep_decoder" else ""
    what = f"{setting.fit.id}{to}, {spec.fit.members} members, {setting.budget} iterations"
    return f"{done} {kind}{what if setting.budget else f'of strength {spec.prior.strength:g}{to}'}"


def job_of(spec: StudySpec, target: Target, setting: Setting) -> Job:
    """The job of what `asked` made, for an image.

    Raises:
        UserError: the image cannot be measured as the task says.
    """
    job = planner.job(spec, target, setting.fit, (setting.budget,))
    return replace(job, case=_unjudged(target, spec)) if spec.task.source == "file" else job


def values_of(found: Result, spec: StudySpec) -> dict[str, float | int | str]:
    """What was measured, without the score of a judge where there is none."""
    return {name: value for name, value in found.values.items() if name != "judge" or spec.knows_truth}


def fit_setting(
    spec: StudySpec,
    target: Target | Targets,
    setting: Setting,
    *,
    threads: int | None = None,
    progress: Callable[[Check], object] | None = None,
    stop: threading.Event | None = None,
) -> tuple[Result, pd.DataFrame]:
    """Fits one setting with the options of a study: what a run of the study measures of it, to the last bit.

    Args:
        spec: the study.
        target: its image.
        setting: any that its axes could take.
        threads: see `fit`.
        progress: see `fit`.
        stop: see `fit`.

    Returns:
        The result with every member's output, and its checks as in `ImageFit.checks`.

    Raises:
        UserError: the device is not here, or `threads` is not valid.
        StoppedError: `stop` was set before the fit ended.
        WorkError: the fit diverged, or there is too little memory for it.
    """
    others = [each for each in spec.served(setting.fit, (setting.budget,)) if each != setting]
    job = planner.job(spec, target, setting.fit, (setting.budget,), others)
    return _fitted(job, str(setting.get(CASE, "")), threads=threads, progress=progress, stop=stop)


def _fitted(
    job: Job,
    case: str = "",
    *,
    threads: int | None,
    progress: Callable[[Check], object] | None,
    stop: threading.Event | None,
) -> tuple[Result, pd.DataFrame]:
    """The last result of a job and its checks, those of one case where it has several."""
    check_cores("--threads", threads)
    job = replace(job, every_member=True)
    device = resolve_device(job.options.device)
    cores = layout(job.options, device, exclusive=True, bytes_per_fit=lambda: 0, threads=threads)
    result, rows = None, list[tuple[int, float, int, float]]()
    for event in careful(job, device=device, threads=cores.threads, stop=Ending(stop)):
        if event.case not in ("", case):
            continue
        if isinstance(event, Result):
            result = event
            continue
        rows += [(event.iteration, event.seconds, member, score) for member, score in enumerate(event.psnr_members)]
        if progress:
            progress(event)
    if result is None:
        assert is_stopped(stop)
        raise StoppedError("the fit was stopped before its end")
    check_converged(result)
    return result, pd.DataFrame(rows, columns=["iteration", "seconds", "member", "psnr"])


def check_converged(result: Result) -> None:
    """Refuses what a diverging fit made.

    Raises:
        WorkError: a member diverged.
    """
    if "cv_percent" not in result.values:
        raise WorkError("the fit diverged; try fewer channels or another seed")


def _unjudged(target: Target, spec: StudySpec) -> Case:
    """A measured image, all of which is fitted: scores say how close outputs are to it, not how good they are."""
    measurement = measure(target, spec.task, 0.0)
    return Case(spec.task, measurement, Judge("repeat", None, picture(measurement)))


def arranged(image: NDArray[np.float32], shape: tuple[int, ...] | None = None) -> NDArray[np.float32]:
    """Images (..., C, H, W) with their axes in the order of another image.

    Args:
        image: of 1 or 3 channels; grey ones become three equal channels where the other has three.
        shape: of the other image, (H, W), (C, H, W) or (H, W, C); by default (H, W) for grey and (H, W, 3) for colour.
    """
    channels = image.shape[-3]
    if (shape is None and channels == 1) or (shape is not None and len(shape) == 2):
        return image[..., 0, :, :]
    first = shape is not None and shape[-1] not in (1, 3)
    wanted = 3 if shape is None else shape[0 if first else -1]
    image = np.repeat(image, wanted, axis=-3) if channels < wanted else image
    return image if first else np.moveaxis(image, -3, -1)


def check_cores(option: str, count: int | None) -> None:
    """Refuses a number of workers or threads that no machine has.

    Raises:
        UserError: it is no whole number, or out of range.
    """
    if count is not None and (type(count) is not int or not 1 <= count <= MOST_CORES):
        raise UserError(f"{option}: cannot be {count!r}", f"Valid: a whole number from 1 to {MOST_CORES}.")


def plain(value: Any) -> Any:
    """A value of a study in Python as a study file could have it: arrays, ranges and tuples are lists, paths texts."""
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, list | tuple | range):
        return [plain(each) for each in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
