"""Data fidelity with an operator: how far A x is from the samples y, for every solver, on every torch device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddstudy.solvers.base import Problem


class Fidelity:
    """The mean of (A x - y)^2 over the samples of a problem that were measured.

    Args:
        problem: one with an operator.
        device: of the outputs that it is asked about.

    How a library splits sums and transforms may depend on how many images it gets. So the members of one problem are
    computed without those beside it, and a summary one member at a time.
    """

    def __init__(self, problem: Problem, device: torch.device | str) -> None:
        assert problem.operator is not None
        self._operator, self._shape, self._count = problem.operator, problem.shape, problem.measured
        samples = torch.tensor(problem.measurement, device=device)[None]
        known = ~samples.isnan()
        self._known = None if problem.measured == problem.measurement.size else known
        self._samples = torch.where(known, samples, 0.0)
        self._pixels = None if problem.pixels is None else torch.tensor(problem.pixels, device=device)

    def loss(self, outputs: torch.Tensor) -> torch.Tensor:
        """Of one member's outputs (T, C, h, w); autograd goes through it."""
        return self._residuals(outputs[None]).square().sum() / self._count

    def gradient(self, outputs: torch.Tensor, losses: torch.Tensor, grad_outputs: torch.Tensor) -> None:
        """2 / N A^T (A x - y), and the losses.

        Args:
            outputs: (M, T, C, h, w).
            losses: float64 (M,), written.
            grad_outputs: (M, T, C, h, w), written but for what is no pixel of the slice.
        """
        residuals = self._residuals(outputs)
        losses.copy_(self._mean_squares(residuals))
        grad_images = self._operator.adjoint(residuals.mul_(2 / self._count))
        if self._pixels is None:
            grad_outputs.copy_(grad_images[:, None])
        else:
            grad_outputs.view(len(outputs), -1).index_copy_(1, self._pixels, grad_images.flatten(1))

    def summary(self, outputs: torch.Tensor) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Losses (M,) and ranges (M, T) of outputs (M, T, C, h, w), as `ddstudy.solvers.base.Snapshot` has them."""
        losses = torch.cat([self._mean_squares(self._residuals(one[None])) for one in outputs])
        ranges = outputs.amax((2, 3, 4)) - outputs.amin((2, 3, 4))
        return _numpy(losses), _numpy(ranges)

    def _residuals(self, outputs: torch.Tensor) -> torch.Tensor:
        """A x - y (M, *operator.shape), 0 where nothing was measured."""
        if self._pixels is None:
            images = outputs[:, 0]
        else:
            assert self._shape is not None
            images = outputs.flatten(1).index_select(1, self._pixels).view(-1, *self._shape)
        residuals = self._operator.forward(images) - self._samples
        return residuals if self._known is None else torch.where(self._known, residuals, 0.0)

    def _mean_squares(self, residuals: torch.Tensor) -> torch.Tensor:
        flat = residuals.flatten(1)
        return (flat * flat).sum(dim=1, dtype=torch.float64) / self._count


def _numpy(values: torch.Tensor) -> NDArray[Any]:
    made: NDArray[Any] = values.cpu().numpy()
    return made
