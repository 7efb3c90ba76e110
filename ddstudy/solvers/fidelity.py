"""What is minimised: how far A x is from the samples y, and how rough x is, for every solver, on every torch device.

Without operator A = 1, and the samples are those of all tiles with their padding, as for the mean squared error that
kernels have of their own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ddstudy.solvers.base import Config, Problem

LEAST_MSE = 1e-12  # that is added to what `log_mse` takes the logarithm of, so that a perfect fit has one
SMOOTHING = 1e-3  # of total variation, relative to a range of 1: a quarter of a step of 8-bit images


class Fidelity:
    """The loss of a problem by `Config.loss`, over the samples that were measured, and its total variation.

    Args:
        problem: with or without operator.
        config: of the fit.
        device: of the outputs that it is asked about.

    How a library splits sums and transforms may depend on how many images it gets. So the members of one problem are
    computed without those beside it, and a summary one member at a time.
    """

    def __init__(self, problem: Problem, config: Config, device: torch.device | str) -> None:
        self._operator, self._shape, self._count = problem.operator, problem.shape, problem.measured
        self._config = config
        samples = torch.tensor(problem.measurement, device=device)[None]
        known = ~samples.isnan()
        self._known = None if problem.measured == problem.measurement.size else known
        self._samples = torch.where(known, samples, 0.0)
        self._pixels = None if problem.pixels is None else torch.tensor(problem.pixels, device=device)

    def loss(self, outputs: torch.Tensor) -> torch.Tensor:
        """Of one member's outputs (T, C, h, w); autograd goes through it."""
        residuals, config = self._residuals(outputs[None]), self._config
        match config.loss:
            case "mse":
                loss = residuals.square().sum() / self._count
            case "l1":
                loss = residuals.abs().sum() / self._count
            case "huber":
                clipped = residuals.clamp(-config.huber_delta, config.huber_delta)
                loss = (clipped * (residuals - clipped / 2)).sum() / self._count
            case "log_mse":
                loss = (residuals.square().sum() / self._count + LEAST_MSE).log()
        if config.tv_weight:
            loss = loss + config.tv_weight * total_variation(self._images(outputs[None]))[0]
        return loss

    def gradient(self, outputs: torch.Tensor, losses: torch.Tensor, grad_outputs: torch.Tensor) -> None:
        """The losses, and their gradient by the outputs: of the mean squared error, 2 / N A^T (A x - y).

        Args:
            outputs: (M, T, C, h, w).
            losses: float64 (M,), written.
            grad_outputs: (M, T, C, h, w), written but for what is no pixel of the slice, where there is an operator.
        """
        values, grad_samples = self._penalty(self._residuals(outputs))
        losses.copy_(values)
        if self._operator is None:
            grad_outputs.copy_(grad_samples)
        elif self._pixels is None:
            grad_outputs.copy_(self._operator.adjoint(grad_samples)[:, None])
        else:
            grad_images = self._operator.adjoint(grad_samples)
            grad_outputs.view(len(outputs), -1).index_copy_(1, self._pixels, grad_images.flatten(1))
        if self._config.tv_weight:
            self._add_variation(outputs, losses, grad_outputs)

    def summary(self, outputs: torch.Tensor) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Mean squared errors (M,) and ranges (M, T) of outputs (M, T, C, h, w), as `Snapshot` has them."""
        losses = torch.cat([self._mean_squares(self._residuals(one[None])) for one in outputs])
        ranges = outputs.amax((2, 3, 4)) - outputs.amin((2, 3, 4))
        return _numpy(losses), _numpy(ranges)

    def _images(self, outputs: torch.Tensor) -> torch.Tensor:
        """(M, C, H, W) of outputs (M, T, C, h, w): tiles joined, without their padding."""
        if self._pixels is None:
            return outputs[:, 0]
        assert self._shape is not None
        return outputs.flatten(1).index_select(1, self._pixels).view(-1, *self._shape)

    def _residuals(self, outputs: torch.Tensor) -> torch.Tensor:
        """A x - y (M, *samples), 0 where nothing was measured."""
        predicted = outputs if self._operator is None else self._operator.forward(self._images(outputs))
        residuals = predicted - self._samples
        return residuals if self._known is None else torch.where(self._known, residuals, 0.0)

    def _penalty(self, residuals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss (M,) of residuals and its gradient by them, which takes their place."""
        config = self._config
        match config.loss:
            case "mse":
                return self._mean_squares(residuals), residuals.mul_(2 / self._count)
            case "l1":
                return self._mean(residuals.abs()), residuals.sign_().div_(self._count)
            case "huber":
                clipped = residuals.clamp(-config.huber_delta, config.huber_delta)
                return self._mean(clipped * (residuals - clipped / 2)), clipped.div_(self._count)
            case "log_mse":
                mse = self._mean_squares(residuals) + LEAST_MSE
                scale = (2 / self._count / mse).to(residuals.dtype)
                return mse.log(), residuals.mul_(scale.view(-1, *[1] * (residuals.dim() - 1)))

    def _add_variation(self, outputs: torch.Tensor, losses: torch.Tensor, grad_outputs: torch.Tensor) -> None:
        images, weight = self._images(outputs), self._config.tv_weight
        losses.add_(total_variation(images), alpha=weight)
        gradient = variation_gradient(images)
        if self._pixels is None:
            grad_outputs[:, 0].add_(gradient, alpha=weight)
        else:
            flat = grad_outputs.view(len(outputs), -1)
            flat.index_add_(1, self._pixels, gradient.flatten(1), alpha=weight)

    def _mean(self, values: torch.Tensor) -> torch.Tensor:
        return values.flatten(1).sum(dim=1, dtype=torch.float64) / self._count

    def _mean_squares(self, residuals: torch.Tensor) -> torch.Tensor:
        return self._mean(residuals * residuals)


def total_variation(images: torch.Tensor) -> torch.Tensor:
    """Isotropic total variation (M,) of images (M, C, H, W): the mean over pixels and channels of |grad x|.

    |grad x| = sqrt(down^2 + right^2 + eps^2) for the differences to the pixels below and to the right, which are 0 at
    the edge (Rudin, Osher and Fatemi, 1992; eps as in Vogel and Oman, 1996). A mean, so that a weight means the same
    for images of every size.
    """
    down, right = _differences(images)
    return (down.square() + right.square() + SMOOTHING**2).sqrt().flatten(1).mean(dim=1, dtype=torch.float64)


def variation_gradient(images: torch.Tensor) -> torch.Tensor:
    """The gradient of `total_variation` by the images: minus the divergence of grad x / |grad x|, over their number."""
    down, right = _differences(images)
    length = (down.square() + right.square() + SMOOTHING**2).sqrt_().mul_(images[0].numel())
    down, right = down.div_(length), right.div_(length)
    gradient = -down - right
    gradient[..., 1:, :] += down[..., :-1, :]
    gradient[..., 1:] += right[..., :-1]
    return gradient


def _differences(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return nn.functional.pad(images.diff(dim=-2), (0, 0, 0, 1)), nn.functional.pad(images.diff(dim=-1), (0, 1))


def _numpy(values: torch.Tensor) -> NDArray[Any]:
    made: NDArray[Any] = values.cpu().numpy()
    return made
