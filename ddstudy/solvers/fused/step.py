"""The fused step: a Deep Decoder's loss and gradients by hand, in few passes over memory.

Four facts make it fast.

1. *Normalisation folds away.* It is a R + b per channel, so the convolution after it is R (diag(a) C) + b C: the
   normalised tensor is never made. A constant passes unchanged through upsampling.
2. *Products happen at low resolution*, before upsampling, and upsampling, ReLU and the sums that normalisation needs
   are one pass.
3. *The last block is never stored.* It is the largest by far; R is made again from its low-resolution product in each
   of three passes: sums; output, loss and its gradient g by the logits; gradients. There dL/dY = g v^T for the head's
   weights v.
4. *Normalisation's backward needs no pass of its own.* With G = R^T dZ, which dC = diag(a) G + b (sum dZ) needs anyway,
   sum dY R = (C * G) 1 and sum dY = C (sum dZ); then dR = a dY + alpha + beta R per channel with
   sum dY xhat = (sum dY R - mean sum dY) / sd, beta = -a (sum dY xhat) / (N sd), alpha = -a (sum dY) / N - beta mean.

Where a channel is constant in a tile, its normalisation is exactly zero there, and so is its inv_std as we use it: the
rounding of R, times 1 / sqrt(eps) in every block on the way back, would outgrow the gradient of all other tiles.

`Step` is that step for any kernels (`ddstudy.solvers.fused.kernels`). Tiles share weights, not statistics; members are
the leading axis of every array.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddstudy.priors.deep_decoder import DeepDecoder
from ddstudy.solvers.fused.kernels import Array, Kernels


@dataclass(frozen=True, eq=False)
class Axis:
    """Bilinear upsampling along one axis, align_corners=False.

    Output x is (1 - fraction[x]) input[i] + fraction[x] input[i + 1] with start[i] <= x < start[i + 1]; the last
    input stands alone.

    Attributes:
        start: int64 (inputs + 1,).
        fraction: (outputs,), in [0, 1).
    """

    start: NDArray[np.int64]
    fraction: NDArray[Any]


def axis(inputs: int, outputs: int, dtype: str) -> Axis:
    """The weights of upsampling `inputs` samples to as many or more `outputs`."""
    source = np.maximum((np.arange(outputs) + 0.5) * inputs / outputs - 0.5, 0)
    lower = np.floor(source).astype(np.int64)
    fraction = np.where(lower < inputs - 1, source - lower, 0)
    return Axis(np.searchsorted(lower, np.arange(inputs + 1)), fraction.astype(dtype))


class Step:
    """Work arrays and order of the fused step.

    Args:
        prior: the decoder.
        measurement: (T, C, h, w), what `mse` compares outputs with; NaN where nothing was measured.
        members: decoders that are computed together.
        kernels: of a device.
        precision: of the factors of matrix products, "float32" or, on CUDA GPUs, "bfloat16"; sums are float32.
        dtype: "float32", or "float64" for tests.

    Attributes:
        width: channels that are computed, K >= k.
        at: where each block's weights begin among the parameters, and the head's.
        axes: of each block, how rows and columns are upsampled.
        z: of each block, (M, T, *plane), low-resolution products, before upsampling.
        r: of each block but the last, (M, T, *plane), after upsampling and ReLU.
        d: of each block, (M, T, *plane), dL/dz.
        affine: of each normalisation, the first being the input's identity: float64 (M, T, 4, K), its mean, inv_std,
            scale a and shift b.
        head: (M, T, C, K), the head's weights times a.
        grad_logits: (M, T, C, h, w), dL/d what the sigmoid is taken of.
        outputs: (M, T, C, h, w), written by `forward`.
        losses: float64 (M,), mean squared errors, written by `mse`.
        measured: int64 (M,), numbers of the measurement that are not NaN.
    """

    def __init__(
        self,
        prior: DeepDecoder,
        measurement: NDArray[Any],
        members: int,
        kernels: Kernels,
        precision: str = "float32",
        dtype: str = "float32",
    ) -> None:
        self.prior, self.kernels, self.precision, self.dtype = prior, kernels, precision, dtype
        M, T, C, l, k = members, len(measurement), prior.channels, prior.blocks, prior.k
        K = self.width = kernels.padded(k)
        self.at = [i * (k * k + 2 * k) for i in range(l + 1)]
        self.axes = [
            (axis(h, H, dtype), axis(w, W, dtype)) for (h, w), (H, W) in zip(prior.sizes, prior.sizes[1:], strict=False)
        ]
        self.measurement = kernels.from_numpy(measurement[None], dtype)
        self.measured = kernels.from_numpy(np.full(M, np.count_nonzero(~np.isnan(measurement))), "int64")
        self.r = [kernels.zeros((M, T, *kernels.plane(*size, K)), dtype) for size in prior.sizes[1:-1]]
        self.z = [
            kernels.zeros((M, T, *kernels.plane(kernels.rows_kept(h, i == l - 1), w, K)), dtype)
            for i, (h, w) in enumerate(prior.sizes[:-1])
        ]
        # a block's gradients are used by the block before it only, so two arrays serve all blocks
        stored = prior.sizes[: l - 1] if kernels.IN_PLACE else prior.sizes[:l]
        room = [kernels.zeros((M * T * h * w * K,), dtype) for h, w in stored[-2:]]
        self.d = [
            room[(i - len(stored)) % len(room)][: M * T * h * w * K].reshape(M, T, *kernels.plane(h, w, K))
            for i, (h, w) in enumerate(stored)
        ]
        if kernels.IN_PLACE:
            self.d.append(self.z[-1])
        self.affine = [kernels.zeros((M, T, 4, K), "float64") for _ in range(l + 1)]
        self.affine[0][:, :, 2] = 1
        self.head = kernels.zeros((M, T, C, K), dtype)
        self.grad_logits = kernels.zeros((M, T, C, *prior.sizes[-1]), dtype)
        self.outputs = kernels.zeros((M, T, C, *prior.sizes[-1]), dtype)
        self.losses = kernels.zeros((M,), "float64")
        self.scratch = kernels.Scratch(self)

    @property
    def nbytes(self) -> int:
        """Memory of the work arrays."""
        arrays = [*vars(self).values(), *vars(self.scratch).values()]
        flat = [a for value in arrays for a in (value if isinstance(value, list) else [value])]
        owners = {id(owner): owner.nbytes for owner in map(_owner, flat) if owner is not None}
        return sum(owners.values())

    def pad(self, inputs: NDArray[Any]) -> Array:
        """Input tensors (M, T, k, h0, w0) as the step takes them."""
        return self.kernels.from_numpy(self._planes(inputs), self.dtype)

    def write_inputs(self, into: Array, inputs: NDArray[Any]) -> None:
        """Overwrites what `pad` made."""
        self.kernels.write(into, self._planes(inputs))

    def _planes(self, inputs: NDArray[Any]) -> NDArray[Any]:
        missing = self.width - inputs.shape[2]
        return self.kernels.to_planes(np.pad(inputs, [(0, 0), (0, 0), (0, missing), (0, 0), (0, 0)]))

    def mse(self, inputs: Array, weights: Array, gradients: Array) -> Array:
        """Loss (M,) of the members, and its gradient (M, parameters) in the order of `prior.build().parameters()`."""
        self._blocks(inputs, weights)
        self.kernels.head(self, weights, gradients, self.measurement, self.kernels.MSE)
        self._back(inputs, weights, gradients)
        return self.losses

    def forward(self, inputs: Array, weights: Array) -> Array:
        """The members' outputs (M, T, C, h, w)."""
        self._blocks(inputs, weights)
        self.kernels.head(self, weights, weights, self.measurement, self.kernels.OUTPUT)
        return self.outputs

    def backward(self, inputs: Array, weights: Array, grad_outputs: Array, gradients: Array) -> None:
        """Where any other loss enters: dL/d outputs (M, T, C, h, w) to dL/d weights (M, parameters).

        Once after each `forward`, whose outputs it reads and whose work arrays it uses up.
        """
        self.kernels.head(self, weights, gradients, grad_outputs, self.kernels.GRADIENT)
        self._back(inputs, weights, gradients)

    def _blocks(self, inputs: Array, weights: Array) -> None:
        for i in range(self.prior.blocks):
            self.kernels.forward(self, i, inputs, weights)

    def _back(self, inputs: Array, weights: Array, gradients: Array) -> None:
        for i in reversed(range(self.prior.blocks)):
            self.kernels.backward(self, i, inputs, weights, gradients)


def _owner(value: Any) -> Any:
    """The array whose memory a view uses."""
    while isinstance(getattr(value, "base", None), np.ndarray):
        value = value.base
    if getattr(value, "_base", None) is not None:  # torch's name for it
        value = value._base
    return value if hasattr(value, "nbytes") else None
