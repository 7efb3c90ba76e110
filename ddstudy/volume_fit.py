"""One setting fitted to every slice of a volume: a volume in, a volume out, and what was measured of each slice.

Slices are fitted one by one, or some adjacent ones together by one network (`fit.joint`). Each starts from random
weights, or where its neighbour ended (`fit.start`): then the middle one comes first, and the others follow outwards.
In any case all slices have the same input tensors, without which weights of another slice would mean nothing.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ddstudy.api import executor_for
from ddstudy.errors import UserError, WorkError, counted
from ddstudy.execution.executors import Executor, Failed, resolve_device
from ddstudy.image_fit import announced, asked, check_converged, job_of, values_of
from ddstudy.images.files import Affine
from ddstudy.images.slices import Chosen, Slices, load_slices
from ddstudy.images.targets import digest_beside
from ddstudy.report.slice_folder import Finished, SliceFolder, Values, slice_folder
from ddstudy.report.writing import write_files
from ddstudy.spec.axes import Setting
from ddstudy.spec.cases import inner_neighbours, units_of
from ddstudy.spec.options import HANDCRAFTED, MOST_JOINT, FitSpec
from ddstudy.spec.schema import StudySpec
from ddstudy.study.evaluate import Check, Job, Result

Unit = tuple[int, ...]  # slices that one fit reconstructs


@dataclass(frozen=True)
class SliceProgress:
    """How far the slices of a volume are.

    Attributes:
        done: slices that are finished, of `total`.
        total: slices that are to be fitted.
        current: what is being fitted, for people.
        eta_seconds: time that is left, None while nothing is known.
        message: a line worth keeping in a log, empty between such lines.
    """

    done: int
    total: int
    current: str
    eta_seconds: float | None
    message: str = ""


@dataclass(frozen=True, eq=False)
class VolumeFit:
    """What a setting made of a volume.

    Attributes:
        output: float32 (X, Y, Z), voxels as the volume stores them, in its units: means of the members' outputs; 0 in
            slices that were not chosen.
        affine: from these voxels to world mm, RAS+.
        slices: a row for each slice that was fitted, by its index: what `ImageFit.values` has. Seconds of slices that
            were fitted jointly are a share of their fit's.
        constant: indices of chosen slices that hold one value only; they are as they were, and nothing was fitted.
        setting: what was fitted.
        members: of each fit.
        files: that were written.
    """

    output: NDArray[np.float32]
    affine: Affine
    slices: pd.DataFrame
    constant: tuple[int, ...]
    setting: Setting
    members: int
    files: tuple[Path, ...] = ()
    _nifti: bytes = field(repr=False, default=b"")

    def __repr__(self) -> str:
        return f"<VolumeFit {self.setting.id} of {counted(len(self.slices), 'slice')}: {self.psnr:.2f} dB>"

    @property
    def psnr(self) -> float:
        """Mean over slices of the PSNR, dB, relative to the volume's range; NaN where the truth is not known."""
        return float(self.slices["psnr"].mean()) if "psnr" in self.slices else math.nan

    def save(self, stem: str | Path) -> list[Path]:
        """Writes the volume as NIfTI, on the grid of the one that was given, and the numbers of its slices as CSV.

        Args:
            stem: folder and name of the files, without suffix.

        Returns:
            The files.

        Raises:
            UserError: they cannot be written.
        """
        table = self.slices.to_csv(lineterminator="\n").encode()
        return write_files(Path(stem), {".nii.gz": self._nifti, ".csv": table})


def fit_volume(
    volume: str | Path | None = None,
    slices: Chosen = "all",
    *,
    start: str = "random",
    start_iterations: int = 0,
    joint: int = 1,
    out: str | Path | None = None,
    workers: int | None = None,
    threads: int | None = None,
    progress: Callable[[SliceProgress], object] | None = None,
    tell: Callable[[str], object] | None = None,
    stop: threading.Event | None = None,
    **options: Any,
) -> VolumeFit:
    """Fits one setting to every slice of a volume, as `ddstudy fit --all-slices` does.

    All slices are on one scale, that of the volume: its minimum and maximum become 0 and 1, and noise levels and PSNR
    are relative to that range. A slice fitted by `fit` alone is on its own scale, and so are its numbers. Simulated
    noise differs between slices; masks are the same.

    Args:
        volume: path of a volume; None for the packaged MNI152 template.
        slices: "all"; an index or several; ranges as "40:140:10", without the end, or "mid+-30:10" around the middle.
        start: "random", or "neighbour": slices are fitted from the middle outwards, each from the weights of the one
            before it, with a new optimiser.
        start_iterations: of slices that start from their neighbour; 0: as many as of the first.
        joint: so many slices, adjacent among the chosen ones, share one network, with a channel for each and one loss.
            Where it does not divide their number, the last network has some slices again that another had, and only
            the others are taken from it.
        out: files to write, without suffix. What is finished is kept in a folder beside them until all is: the same
            call goes on after whatever ended it. Without it nothing is written or kept.
        workers: fits at a time; by default as the cores allow.
        threads: of a fit; by default one per member.
        progress: is called with where the work stands, after every check and slice.
        tell: is called with lines about what is done, for example `print`.
        stop: ends the work when another thread sets it.
        **options: everything else that `fit` takes.

    Raises:
        UserError: an option or the volume is not valid, or `out` is of another fit.
        StoppedError: `stop` was set before the end.
        WorkError: a fit diverged, or there is too little memory for it.
    """
    file = os.fspath(volume) if volume is not None else None
    spec = asked(file, **options)
    spec = spec.model_copy(update={"fit": _with(spec.fit, start, start_iterations, joint)})
    _check(spec)
    (setting,) = spec.search_space
    found = load_slices(spec.target, slices)
    indices = tuple(found.targets)
    tell = tell or (lambda _: None)
    tell(announced(spec, setting, f"{found.name}, {counted(len(indices), spec.target.plane + ' slice')}"))
    with contextlib.ExitStack() as stack:
        if out is None:
            folder = SliceFolder(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        else:
            folder = stack.enter_context(slice_folder(Path(out), _fingerprint(spec, found, setting)))
        any_slice = found.targets[indices[0]]
        executor = stack.enter_context(
            executor_for(spec, any_slice, workers=workers, threads=threads, tell=tell, stop=stop)
        )
        work = _Work(spec, setting, found, folder, executor)
        if work.before:
            tell(f"{work.before} of {counted(len(indices), 'slice')} were finished before.")
        for step in work.run():
            if progress is not None:
                progress(step)
        made = work.volume()
        if out is not None:
            made = replace(made, files=tuple(made.save(out)))
    return made


def _with(fit: FitSpec, start: str, iterations: int, joint: int) -> FitSpec:
    if start not in ("random", "neighbour"):
        raise UserError(f"fit.start: cannot be {start!r}", "Valid: 'random', 'neighbour'.")
    if type(iterations) is not int or not 0 <= iterations <= 1_000_000:
        raise UserError(f"fit.start_iterations: cannot be {iterations!r}", "Valid: a whole number from 0 to 1,000,000.")
    if iterations and start == "random":
        raise UserError(
            "fit.start_iterations: is of slices that start from their neighbour", "Give start = 'neighbour'."
        )
    if type(joint) is not int or not 1 <= joint <= MOST_JOINT:
        raise UserError(f"fit.joint: cannot be {joint!r}", f"Valid: a whole number from 1 to {MOST_JOINT}.")
    return fit.model_copy(update={"start": start, "start_iterations": iterations, "joint": joint})


def _check(spec: StudySpec) -> None:
    """Refuses what cannot be done with the slices of a volume."""
    if spec.prior.kind in HANDCRAFTED and (spec.fit.start != "random" or spec.fit.joint > 1):
        raise UserError(f"prior {spec.prior.kind}: has no weights", "Valid: fit.start = 'random', fit.joint = 1.")
    if not spec.knows_truth and spec.task.kind in ("super_resolve", "mri"):
        what = "has another grid than the file" if spec.task.kind == "super_resolve" else "is no volume of images"
        raise UserError(
            f"task.kind = '{spec.task.kind}' of a measured file: the result {what}", "Valid: one slice at a time."
        )


def _fingerprint(spec: StudySpec, slices: Slices, setting: Setting) -> dict[str, Any]:
    """All that the finished slices depend on, to the last bit."""
    target = next(iter(slices.targets.values()))
    device = resolve_device(spec.fit.device)
    method = job_of(spec, target, setting).method(device)
    return {
        **spec.fingerprint(),
        "slices": list(slices.targets),
        "volume": slices.digest,
        "beside": digest_beside(spec.task).hex(),
        "engine": f"{method} on {device.partition(':')[0]}",
    }


class _Work:
    """The fits of a volume under way.

    Attributes:
        finished: what is, by unit.
    """

    def __init__(
        self, spec: StudySpec, setting: Setting, slices: Slices, folder: SliceFolder, executor: Executor
    ) -> None:
        self.spec, self.setting, self.slices, self.folder, self.executor = spec, setting, slices, folder, executor
        self.units = units_of(tuple(slices.targets), spec.fit.joint)
        self.inner: Mapping[Unit, Unit | None] = dict.fromkeys(self.units)
        if spec.fit.start == "neighbour":
            self.inner = inner_neighbours(self.units)
        kept = {unit: folder.read(unit) for unit in self.units}
        self.finished = {unit: found for unit, found in kept.items() if found is not None}
        self.reached: dict[Unit, int] = {}  # iterations, of fits under way
        self.begun, self.before = time.monotonic(), self.done
        self.found = self._iterations()

    @property
    def done(self) -> int:
        """Slices that are finished."""
        return len({index for unit in self.finished for index in unit})

    def run(self) -> Iterator[SliceProgress]:
        """Fits what is not finished; yields where it stands."""
        while todo := [unit for unit in self.units if unit not in self.finished]:
            yield from self._fit([unit for unit in todo if (of := self.inner[unit]) is None or of in self.finished])
            waiting = (self.inner[unit] for unit in self.units if unit not in self.finished)
            self.folder.forget_weights({unit for unit in waiting if unit is not None})

    def budget(self, unit: Unit) -> int:
        """Iterations of its fit."""
        onwards = self.spec.fit.start_iterations if self.inner[unit] is not None else 0
        return onwards or self.setting.budget

    def volume(self) -> VolumeFit:
        """What was made, once all is finished."""
        outputs: dict[int, NDArray[np.float32]] = {}
        values: dict[int, Values] = {}
        for unit in self.units:
            # a unit that begins within another gives what the other has not
            outputs = {**self.finished[unit].outputs, **outputs}
            values = {**self.finished[unit].values, **values}
        voxels = self.slices.volume(outputs)
        table = pd.DataFrame.from_dict(values, orient="index").sort_index().rename_axis("slice")
        nifti = self.slices.nifti_bytes(voxels)
        return VolumeFit(
            voxels,
            self.slices.affine,
            table,
            tuple(self.slices.constant),
            self.setting,
            self.spec.fit.members,
            _nifti=nifti,
        )

    def _fit(self, units: Sequence[Unit]) -> Iterator[SliceProgress]:
        """Fits units that wait for no other, as many together as fill the device."""
        jobs = {unit: self._jobs(unit) for unit in units}
        tickets: dict[str, tuple[Unit, int]] = {}
        for pack in self._packs(jobs):
            named = {f"{unit[0]}-{place}": (unit, place) for unit in pack for place in range(len(unit))}
            self.executor.submit_together({ticket: jobs[unit][place] for ticket, (unit, place) in named.items()})
            tickets |= named
        results: dict[tuple[Unit, int], Result] = {}
        for ticket, event in self.executor.events():
            unit, place = tickets[ticket]
            if isinstance(event, Failed):
                raise WorkError(f"slice {unit[place]}: {event.why}")
            if isinstance(event, Check):
                self.reached[unit] = event.iteration
                yield self._progress(f"slice {unit[place]} at {event.iteration} of {self.budget(unit)}")
            if isinstance(event, Result):
                results[unit, place] = event
                if all((unit, each) in results for each in range(len(unit))):
                    self._keep(unit, [results[unit, each] for each in range(len(unit))])
                    yield self._progress("", _line(self.finished[unit]))

    def _jobs(self, unit: Unit) -> list[Job]:
        inner, warm = self.inner[unit], self.spec.fit.start == "neighbour"
        start = None if inner is None else self.folder.weights(inner)
        jobs = (job_of(self.spec, self.slices.targets[index], self.setting) for index in unit)
        budgets = (self.budget(unit),)
        return [replace(job, budgets=budgets, start=start, with_weights=warm, joint=len(unit)) for job in jobs]

    def _packs(self, jobs: Mapping[Unit, list[Job]]) -> list[list[Unit]]:
        units = list(jobs)
        alike = len({job.kind for each in jobs.values() for job in each}) == 1
        size = self.executor.room(jobs[units[0]][0]) // len(units[0]) if alike else 1
        return [units[first : first + size] for first in range(0, len(units), size)]

    def _keep(self, unit: Unit, results: Sequence[Result]) -> None:
        for index, result in zip(unit, results, strict=True):
            try:
                check_converged(result)
            except WorkError as error:
                raise WorkError(f"slice {index}: {error}") from None
        outputs = {index: result.output for index, result in zip(unit, results, strict=True)}
        values = {index: values_of(result, self.spec) for index, result in zip(unit, results, strict=True)}
        self.finished[unit] = Finished(outputs, values)
        self.folder.write(unit, self.finished[unit], results[0].weights)
        self.reached.pop(unit, None)

    def _progress(self, current: str, message: str = "") -> SliceProgress:
        iterations = self._iterations()
        here, left = iterations - self.found, sum(map(self.budget, self.units)) - iterations
        eta = (time.monotonic() - self.begun) * left / here if here else None
        return SliceProgress(self.done, len(self.slices.targets), current, eta, message)

    def _iterations(self) -> int:
        return sum(map(self.budget, self.finished)) + sum(self.reached.values())


def _line(done: Finished) -> str:
    """About slices that one fit has finished."""
    first, *others = done.values
    told = f"slice {first}" if not others else f"slices {first} to {others[-1]}"
    values = list(done.values.values())
    if "psnr" in values[0]:
        told += f": {np.mean([float(each['psnr']) for each in values]):.2f} dB"
    return f"{told}, {sum(float(each['seconds']) for each in values):.1f} s"
