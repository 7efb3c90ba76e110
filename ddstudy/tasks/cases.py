"""Cases: an image, what was measured of it, and what reconstructions of it are judged by."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ddstudy.images.metrics import psnr
from ddstudy.images.volumes import Target, Targets
from ddstudy.spec.options import Against, TaskSpec, Value
from ddstudy.spec.schema import StudySpec
from ddstudy.tasks.base import Measurement
from ddstudy.tasks.judges import Judge
from ddstudy.tasks.measurements import measure, picture

_REPEAT = 7  # of the streams that derive from a measurement's seed, that of its repeat


@dataclass(frozen=True, eq=False)
class Case:
    """What every setting of a study that says the same of target and task is measured on.

    Attributes:
        task: how the measurement came about.
        measurement: all that a solver may see.
        judge: what it must not see.
    """

    task: TaskSpec
    measurement: Measurement
    judge: Judge

    @functools.cached_property
    def baseline(self) -> float | None:
        """What a fit has to beat: PSNR of the measurement as it is looked at, of the truth or else a repeat, dB."""
        reference = self.judge.repeat if self.judge.truth is None else self.judge.truth
        return None if reference is None else psnr(picture(self.measurement), reference)

    @classmethod
    def of(cls, target: Target) -> Case:
        """The thesis': an image that is measured as it is."""
        return cls(TaskSpec(), Measurement.of(target.image), Judge("truth", target.image))


def case_of(spec: StudySpec, target: Target | Targets, point: Mapping[str, Value]) -> Case:
    """The case of one setting or fit of a study: the same object for all of which the same is measured.

    Args:
        spec: the study.
        target: its image, or images.
        point: a setting or a fit.

    Raises:
        UserError: the target cannot be measured so.
    """
    task, judge = spec.at(point).task, spec.judge
    return _case(target.of(point), task, judge.against, spec.knows_truth, judge.share if spec.holds_out else 0.0)


@functools.lru_cache(maxsize=256)  # a study has few, and asks for each with every fit
def _case(target: Target, task: TaskSpec, against: Against, knows_truth: bool, held_out: float) -> Case:
    repeat = target.repeat
    if against == "repeat" and knows_truth:
        seed = int(np.random.SeedSequence([task.seed, _REPEAT]).generate_state(1, np.uint64)[0] >> 1)
        repeat = measure(target, task.model_copy(update={"seed": seed}), 0.0).samples
    judge = Judge(against, target.image if knows_truth else None, repeat)
    return Case(task, measure(target, task, held_out), judge)
