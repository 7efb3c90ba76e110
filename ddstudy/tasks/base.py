"""What solvers know of a measurement: its samples, and the operator that leads from an image to them.

An image is what a network makes, (C, H, W): grey, RGB, or the real and the imaginary part of a complex image. What was
not measured, or is held out of the loss, is NaN among the samples; so a mask needs no operator, and no solver can use
what it must not see.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


class Operator(Protocol):
    """A linear operator A on images, computed by torch on whichever device its argument is on.

    Operators are values: those of equal numbers are equal and hash so, and they can be pickled.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Of y = A x, real numbers: complex ones have an axis of two."""

    def forward(self, images: torch.Tensor, /) -> torch.Tensor:
        """A x of images (B, C, H, W): (B, *shape); autograd goes through it."""

    def adjoint(self, samples: torch.Tensor, /) -> torch.Tensor:
        """A^T y of samples (B, *shape): (B, C, H, W), the gradient of <A x, y> by x."""


@dataclass(frozen=True, eq=False)
class Measurement:
    """All that a solver may see of an image.

    Attributes:
        samples: float32 y, of the operator's shape, or (C, H, W) without one; NaN where nothing was measured, and where
            samples are held out.
        operator: A; None: A = 1.
        shape: (C, H, W) of the image that a network makes.
        held_out: float32, of the samples' shape, those that no loss sees; NaN elsewhere. None: nothing is held out.
        head: of the network: `sigmoid` for images in [0, 1], `linear` for complex ones.
    """

    samples: NDArray[np.float32]
    operator: Operator | None
    shape: tuple[int, int, int]
    held_out: NDArray[np.float32] | None = None
    head: Literal["sigmoid", "linear"] = "sigmoid"

    @property
    def operated(self) -> int:
        """Samples that an operator makes of an image; 0 without one, where images are compared as they are."""
        return 0 if self.operator is None else self.samples.size

    @classmethod
    def of(cls, image: NDArray[np.float32]) -> Measurement:
        """An image (C, H, W) in [0, 1], or a noisy one, that is measured as it is."""
        channels, height, width = image.shape
        return cls(image, None, (channels, height, width))
