"""Small fits for tests, and one step of a fit by autograd in double precision."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddstudy.priors.deep_decoder import DeepDecoder, deep_decoder
from ddstudy.solvers import Problem

Loss = Callable[[torch.Tensor], torch.Tensor]

torch.set_num_threads(1)  # threads of two tests side by side would wait for each other


def make_problem(
    k: int = 16, members: int = 2, tiles: int = 1, channels: int = 1, size: int = 24, blocks: int = 3
) -> Problem:
    prior = deep_decoder(k, 4, blocks, size, size - 3, channels)
    measurement = np.random.default_rng(1).random((tiles, channels, size, size - 3), dtype=np.float32)
    streams = [np.random.default_rng(100 + member) for member in range(members)]
    inputs = np.stack([rng.random((tiles, k, *prior.sizes[0]), dtype=np.float32) for rng in streams])
    weights = np.stack([prior.initial_weights(rng) for rng in streams])
    return Problem(prior, measurement, inputs, weights)


class Case:
    """A decoder with weights far from the start's identity normalisations, and data to fit.

    The inputs of the first `flat` tiles are constant, so all their channels are.
    """

    def __init__(self, prior: DeepDecoder, tiles: int, members: int, seed: int = 0, flat: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.seed = seed
        k = prior.k
        self.prior = prior
        self.measurement = rng.random((tiles, prior.channels, *prior.sizes[-1]))
        self.inputs = rng.random((members, tiles, k, *prior.sizes[0]))
        self.inputs[:, :flat] = 0.7
        self.weights = np.stack([prior.initial_weights(rng).astype(float) for _ in range(members)])
        for block in range(prior.blocks):
            start = block * (k * k + 2 * k) + k * k
            self.weights[:, start : start + 2 * k] += rng.normal(scale=0.2, size=(members, 2 * k))

    def __repr__(self) -> str:
        return f"Case({self.prior}, tiles={len(self.measurement)}, members={len(self.weights)}, seed={self.seed})"

    def autograd(
        self, loss: Loss | None = None, dtype: torch.dtype = torch.float64
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        loss = loss or (lambda output: ((output - torch.tensor(self.measurement, dtype=dtype)) ** 2).mean())
        net = self.prior.build().to(dtype)
        losses, gradients = [], []
        for inputs, weights in zip(self.inputs, self.weights, strict=True):
            torch.nn.utils.vector_to_parameters(torch.tensor(weights, dtype=dtype), net.parameters())
            value = loss(net(torch.tensor(inputs, dtype=dtype)))
            gradient = torch.autograd.grad(value, list(net.parameters()))
            losses.append(value.item())
            gradients.append(torch.cat([part.ravel() for part in gradient]).numpy())
        return np.array(losses), np.array(gradients)

    def sensitivity(self, size: float, exact: NDArray[Any]) -> float:
        """How much the gradient answers to rounding errors of a size in the weights: a thin channel amplifies them."""
        near = copy.copy(self)
        near.weights = self.weights * (1 + size * np.random.default_rng(1).choice([-1, 1], self.weights.shape))
        return error(near.autograd()[1], exact)

    def bound(self, exact: NDArray[Any]) -> float:
        """How far single precision may be off the exact gradient.

        A pixel near a ReLU's kink may fall on its other side, and with a few channels only the normalisations make the
        loss all but independent of the weights: their gradients are small differences of large numbers, which torch in
        single precision has no better.
        """
        net = self.prior.build().double()
        nearest = np.inf
        for inputs, weights in zip(self.inputs, self.weights, strict=True):
            torch.nn.utils.vector_to_parameters(torch.tensor(weights), net.parameters())
            x = torch.tensor(inputs)
            for block in net.blocks:
                up = torch.nn.functional.interpolate(block.conv(x), block.size, mode="bilinear", align_corners=False)
                nearest = min(nearest, up.abs().min().item())
                x = block.norm(torch.relu(up))
        smooth = nearest > 1e-4 and self.prior.k >= 4
        torchs_own = error(self.autograd(dtype=torch.float32)[1], exact)
        return max(1e-3 if smooth else 2e-2, 10 * self.sensitivity(1e-6, exact), 10 * torchs_own)


def error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest relative error of a member's whole gradient."""
    return float(np.max(np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)))


def average_of(walk: NDArray[Any]) -> NDArray[Any]:
    """The mean of the first hundred weights, which then gives way to later ones by a hundredth each."""
    later = range(100, len(walk))
    return 0.99 ** len(later) * walk[:100].mean(axis=0) + sum(
        0.01 * 0.99 ** (len(walk) - 1 - i) * walk[i] for i in later
    )
