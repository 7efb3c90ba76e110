"""What every trained prior offers: its random start, its network, its size and what an iteration of it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn

Head = Literal["sigmoid", "linear"]


class Prior(Protocol):
    """What is fitted to a measurement: a network, without its weights, that turns a fixed input into an image.

    Priors are values: they are hashable, and members of equal priors can be computed together.
    """

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of the input tensor of one tile."""

    @property
    def input_kind(self) -> Literal["noise", "coordinates"]:
        """What the input tensor is: noise, of as many channels as it has, or the place of each pixel in the slice."""

    @property
    def input_scale(self) -> float:
        """What noise in [0, 1] is multiplied with."""

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of one tile of the image."""

    @property
    def parameters(self) -> int:
        """Number of weights."""

    @property
    def cost(self) -> int:
        """Floating-point operations of one iteration of one member on one tile, roughly; forecasts scale with it."""

    def initial_weights(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """One member's random start, float32 (parameters,), in the order of `build().parameters()`.

        Drawn with numpy, so that every solver and device starts from the same numbers.
        """

    def build(self) -> nn.Module:
        """The network in torch: inputs (tiles, *input_shape) -> outputs (tiles, *output_shape)."""


class Weights(NamedTuple):
    """One tensor of weights and the range that it starts in, uniformly; of equal ends, as a constant."""

    shape: tuple[int, ...]
    lowest: float
    highest: float


def convolution(inputs: int, outputs: int, kernel: int = 1, *, bias: bool = False) -> list[Weights]:
    """A convolution with torch's default start, U(-b, b) with b = 1 / sqrt(inputs kernel^2), biases likewise."""
    bound = 1 / math.sqrt(inputs * kernel**2)
    weights = [Weights((outputs, inputs, kernel, kernel), -bound, bound)]
    return weights + [Weights((outputs,), -bound, bound)] * bias


def normalisation(channels: int) -> list[Weights]:
    """Scale and shift of a normalisation, which starts as the identity."""
    return [Weights((channels,), 1.0, 1.0), Weights((channels,), 0.0, 0.0)]


def count(layers: Sequence[Weights]) -> int:
    """Number of weights."""
    return sum(math.prod(layer.shape) for layer in layers)


def draw(layers: Sequence[Weights], rng: np.random.Generator) -> NDArray[np.float32]:
    """A random start of all weights, one after another."""
    parts = [
        rng.uniform(low, high, math.prod(shape)) if low < high else np.full(math.prod(shape), low)
        for shape, low, high in layers
    ]
    return np.concatenate(parts).astype(np.float32)


def of_products(prior: Prior) -> NDArray[np.bool_]:
    """Which weights of a network (parameters,) are factors of products: those of convolutions and linear layers.

    The others, biases and the scales and shifts of normalisations, are tensors of one dimension.
    """
    import torch  # heavy, and most callers want shapes only

    with torch.device("meta"):
        shapes = [parameter.shape for parameter in prior.build().parameters()]
    return np.concatenate([np.full(shape.numel(), len(shape) > 1) for shape in shapes])


def normal_weights(
    prior: Prior, start: NDArray[np.float32], sd: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """A random start (parameters,) whose factors of products are N(0, sd^2) instead; the others stay as they are."""
    drawn = np.float32(sd) * rng.standard_normal(len(start), dtype=np.float32)
    made: NDArray[np.float32] = np.where(of_products(prior), drawn, start)
    return made


def growing(size: int, s: float, steps: int) -> list[int]:
    """Sizes that grow geometrically from max(1, round(size / s)) (halves up) to `size` in so many steps.

    Step i ends at ceil(start (size / start)^(i / steps)), the last at `size` exactly.
    """
    start = max(1, math.floor(size / s + 0.5))
    # the subtracted 1e-9 keeps exact powers exact: 8 * (256 / 8)^(3 / 5) is 64, not 64.00000000000001
    return [start, *(math.ceil(start * (size / start) ** (i / steps) - 1e-9) for i in range(1, steps)), size]
