"""Judges: what reconstructions are held against, which no solver sees.

`truth` is the image that a simulated measurement was made of. `repeat` is a second measurement of the same slice: its
noise is independent of the first one's, so that a mean squared error against it is that against the truth and a
constant, the variance of its noise. `held_out` are samples of the measurement itself that the loss leaves out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddstudy.images.metrics import psnr_of
from ddstudy.spec.options import Against
from ddstudy.tasks.base import Measurement
from ddstudy.tasks.measurements import held_out_errors


@dataclass(frozen=True, eq=False)
class Judge:
    """What the reconstructions of one measurement are judged by.

    Attributes:
        against: `truth`, `repeat` or `held_out`.
        truth: float32 (C, H, W) in [0, 1]; None where it is not known. It is measured, too, where it is not the judge.
        repeat: float32 (C, H, W), not clipped; None unless it is the judge.
    """

    against: Against
    truth: NDArray[np.float32] | None
    repeat: NDArray[np.float32] | None = None

    def scores(
        self, outputs: NDArray[np.float32], images: NDArray[np.float32], measurement: Measurement
    ) -> tuple[float, ...]:
        """The score of each of some reconstructions: -10 log10 of a mean squared error, dB, for the range [0, 1].

        Args:
            outputs: (N, C, H, W), as networks make them.
            images: (N, C, H, W) in [0, 1], what is looked at, as magnitudes.
            measurement: that they are reconstructed from.
        """
        if self.against == "held_out":
            return tuple(psnr_of(float(error)) for error in held_out_errors(outputs, measurement))
        reference = self.truth if self.against == "truth" else self.repeat
        assert reference is not None
        errors = (np.mean((image.astype(np.float64) - reference) ** 2) for image in images)
        return tuple(psnr_of(float(error)) for error in errors)
