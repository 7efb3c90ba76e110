"""The kernel protocol: what the fused step asks of a device.

`kernels_cpu` offers it as a module (numba), `kernels_cuda.TritonKernels` as an object for one GPU. The members fall
into three groups: what the device is like, arrays and threads on it, and the arithmetic of a `Step`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ddstudy.solvers.base import Config, Problem

if TYPE_CHECKING:
    import torch

    from ddstudy.solvers.fused.step import Step

Array: TypeAlias = Any  # where the kernels compute: a numpy array, or a tensor on a GPU


class Optimiser(Protocol):
    """Changes some members' weights (M, parameters) in place; made of the weights and a learning rate."""

    def update(self, gradients: Array, /) -> None:
        """One step along gradients (M, parameters)."""


class Iterate(Protocol):
    """The weights that a snapshot shows, by `ddstudy.solvers.base.Config.keep`; made of the first weights and `keep`.

    Attributes:
        weights: (M, parameters); of a member that diverged, NaN.
    """

    weights: Array

    def update(self, losses: Array, weights: Array, /) -> None:
        """Takes in weights (M, parameters) and their losses (M,), before the optimiser changes them."""


class Average(Protocol):
    """The exponential average of outputs, by `ddstudy.solvers.base.Config.average`; made of outputs and that number.

    Attributes:
        mean: (M, T, C, h, w); after the first update the outputs themselves.
    """

    mean: Array

    def update(self, outputs: Array, /) -> None:
        """Takes in outputs (M, T, C, h, w)."""


class Fidelity(Protocol):
    """A loss that is not the mean squared error of outputs; made of the problem and `Config`. Threads share it."""

    def gradient(self, outputs: Array, losses: Array, grad_outputs: Array, /) -> None:
        """Writes losses (M,) of outputs (M, T, C, h, w), and their gradient but for what is no pixel of the slice.

        Of all members of the problem that are computed together.
        """

    def summary(self, outputs: Array, /) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Losses (M,) and ranges (M, T) of outputs (M, T, C, h, w), as `ddstudy.solvers.base.Snapshot` has them.

        Of a problem with an operator.
        """


class Kernels(Protocol):
    """The arithmetic of a `Step` on one kind of device; arrays are of the `dtype` names float32, float64 and int64."""

    # what the device is like

    @property
    def BATCHED(self) -> bool:  # noqa: N802 - a module's constant
        """One step computes all members at once, on one thread; otherwise each has a step, and threads share them."""

    @property
    def IN_PLACE(self) -> bool:  # noqa: N802
        """The last block's gradients replace its products; otherwise they have an array of their own."""

    @property
    def OUTPUT(self) -> int:  # noqa: N802
        """What `head` does: outputs only."""

    @property
    def MSE(self) -> int:  # noqa: N802
        """What `head` does: outputs, mean squared errors over what was measured, and their gradient."""

    @property
    def GRADIENT(self) -> int:  # noqa: N802
        """What `head` does after `OUTPUT`: a given gradient by the outputs, back to the last block."""

    def padded(self, k: int, /) -> int:
        """Channels that are computed for k; those beyond are zero."""

    def plane(self, height: int, width: int, channels: int, /) -> tuple[int, ...]:
        """The shape of one tile's feature maps, in the order that the kernels walk over them."""

    def rows_kept(self, height: int, last: bool, /) -> int:
        """Rows of a block's low-resolution products that exist at a time, of `height`; `last` is the last block."""

    # arrays and threads

    def zeros(self, shape: tuple[int, ...], dtype: str, /) -> Array:
        """A new array of zeros."""

    def from_numpy(self, values: NDArray[Any], dtype: str, /) -> Array:
        """A copy of an array of numpy where the kernels compute."""

    def to_numpy(self, values: Array, /) -> NDArray[Any]:
        """A copy in numpy."""

    def as_tensor(self, values: Array, /) -> torch.Tensor:
        """An array as a tensor of torch in the same memory."""

    def write(self, into: Array, values: NDArray[Any], /) -> None:
        """Overwrites an array with one of numpy, once what was asked for so far has read it."""

    def to_planes(self, values: NDArray[Any], /) -> NDArray[Any]:
        """Feature maps (..., channels, rows, columns) in the order of `plane`."""

    def begin_thread(self) -> None:
        """What a thread that is going to compute calls first."""

    def device_lock(self) -> contextlib.AbstractContextManager[Any]:
        """While something is done that the device can do for one thread at a time only, as allocating and capturing."""

    def synchronize(self) -> None:
        """Returns when everything that this thread asked for so far is computed."""

    def compile(self, launches: Callable[[], None], /) -> None:
        """Compiles what some launches need, where that is faster than to compile each when it is first launched.

        Torch's operations among them take place.
        """

    def captured(self, launches: Callable[[Step], None], step: Step, /) -> Callable[[Step], None]:
        """The same launches, on the same arrays, made ready to be repeated many times."""

    # the arithmetic

    @property
    def Scratch(self) -> Callable[[Step], Any]:  # noqa: N802
        """Makes what the kernels of a step need beside its arrays: `step.scratch`."""

    @property
    def Adam(self) -> Callable[[Array, float], Optimiser]:  # noqa: N802
        """Makes Adam (Kingma and Ba, 2015) with torch's defaults of weights (M, parameters) and a learning rate."""

    @property
    def Iterate(self) -> Callable[[Array, str], Iterate]:  # noqa: N802
        """Makes the iterate that a snapshot shows of the first weights and `Config.keep`."""

    @property
    def Average(self) -> Callable[[Array, float], Average]:  # noqa: N802
        """Makes the average of outputs like the first ones, and `Config.average`."""

    @property
    def Fidelity(self) -> Callable[[Problem, Config], Fidelity]:  # noqa: N802
        """Makes the loss of a problem with an operator, or any other than the mean squared error."""

    def forward(self, step: Step, i: int, inputs: Array, weights: Array, /) -> None:
        """Block i: products, upsampling, ReLU, and what the normalisation that follows needs.

        Args:
            step: whose arrays are written: `z[i]`, `r[i]` (not of the last block), `affine`.
            i: of 0 ... blocks - 1.
            inputs: what `Step.pad` makes.
            weights: (M, parameters).
        """

    def head(self, step: Step, weights: Array, gradients: Array, image: Array, mode: int, /) -> None:
        """Convolution to the image, and sigmoid where the head has it: writes `step.outputs`.

        Args:
            step: whose blocks went forward.
            weights: (M, parameters).
            gradients: (M, parameters), written but for `OUTPUT`: those of the head.
            image: with `MSE`, the measurement (1 or M, T, C, h, w), NaN where nothing was measured, of which each
                member has `step.measured`; `step.losses` are written, too. With `GRADIENT`, the loss' gradient by the
                outputs (M, T, C, h, w), and `step.outputs` are read. Of no meaning with `OUTPUT`.
            mode: `OUTPUT`, `MSE` or `GRADIENT`.
        """

    def backward(self, step: Step, i: int, inputs: Array, weights: Array, gradients: Array, /) -> None:
        """Block i, after all blocks above it: its part of `gradients`, and `step.d[i]` for the block before.

        Arguments are those of `forward`; gradients are (M, parameters).
        """

    def summary(
        self, outputs: Array, measurement: Array, pixels: Array | None, /
    ) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Losses (M,) and ranges (M, T) of one problem's outputs (M, T, C, h, w), as `ddstudy.solvers.base.summary`.

        The measurement is (1, T, C, h, w); there is no operator.
        """
