"""The fused step: a Deep Decoder's loss and gradients by hand, in few passes over memory.

Four facts make it fast.

1. *Normalisation folds away.* It is a R + b per channel, so the convolution after it is R (diag(a) C) + b C: the
   normalised tensor is never made. A constant passes unchanged through upsampling.
2. *Products happen at low resolution*, before upsampling, and upsampling, ReLU and the sums that normalisation needs
   are one pass.
3. *The last block is never stored.* It is the largest by far; R is made again from its low-resolution product in each
   of three passes: sums; output, loss and its slope g; gradients. There dL/dY = g v^T for the head's weights v.
4. *Normalisation's backward needs no pass of its own.* With G = R^T dZ, which dC = diag(a) G + b (sum dZ) needs anyway,
   sum dY R = (C * G) 1 and sum dY = C (sum dZ); then dR = a dY + alpha + beta R per channel with
   sum dY xhat = (sum dY R - mean sum dY) / sd, beta = -a (sum dY xhat) / (N sd), alpha = -a (sum dY) / N - beta mean.

Where a channel is constant in a tile, its normalisation is exactly zero there, and so is its 1 / sd as we use it: the
rounding of R, times 1 / sqrt(eps) in every block on the way back, would outgrow the gradient of all other tiles.

`Step` is that step for any kernel module: `kernels_cpu` (numba) or `kernels_cuda` (Triton), which offer the same
functions. Tiles share weights, not statistics; members are the leading axis of every array.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddstudy.decoder import Geometry
from ddstudy.fit import Problem, Snapshot, setting

_log = logging.getLogger("ddstudy")


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
        shape: geometry of the decoder.
        tiles: (T, C, h, w), the target of `mse`.
        members: decoders that are computed together.
        kernels: the kernel module.
        precision: of the factors of matrix products, "float32" or "bfloat16"; sums are float32.
        dtype: "float32", or "float64" for tests.

    Attributes:
        outputs: (M, T, C, h, w), written by `forward`.
        losses: float64 (M,), mean squared errors, written by `mse`.
    """

    def __init__(
        self,
        shape: Geometry,
        tiles: NDArray[Any],
        members: int,
        kernels: Any,
        precision: str = "float32",
        dtype: str = "float32",
    ) -> None:
        self.shape, self.kernels, self.precision, self.dtype = shape, kernels, precision, dtype
        M, T, C, l, k = members, len(tiles), shape.channels, shape.blocks, shape.k
        K = self.width = kernels.padded(k)
        self.at = [i * (k * k + 2 * k) for i in range(l + 1)]
        self.axes = [
            (axis(h, H, dtype), axis(w, W, dtype)) for (h, w), (H, W) in zip(shape.sizes, shape.sizes[1:], strict=False)
        ]
        self.tiles = kernels.array(tiles[None], dtype)
        self.r = [kernels.zeros((M, T, *kernels.plane(*size, K)), dtype) for size in shape.sizes[1:-1]]
        self.z = [
            kernels.zeros((M, T, *kernels.plane(kernels.rows_kept(h, i == l - 1), w, K)), dtype)
            for i, (h, w) in enumerate(shape.sizes[:-1])
        ]
        # a block's gradients are used by the block before it only, so two arrays serve all blocks
        stored = shape.sizes[: l - 1] if kernels.IN_PLACE else shape.sizes[:l]
        room = [kernels.zeros((M * T * h * w * K,), dtype) for h, w in stored[-2:]]
        self.d = [
            room[(i - len(stored)) % len(room)][: M * T * h * w * K].reshape(M, T, *kernels.plane(h, w, K))
            for i, (h, w) in enumerate(stored)
        ]
        if kernels.IN_PLACE:
            self.d.append(self.z[-1])
        # of each normalisation, float64 (M, T, 4, K): mean, 1 / sd, scale a and shift b; the input's is the identity
        self.affine = [kernels.zeros((M, T, 4, K), "float64") for _ in range(l + 1)]
        self.affine[0][:, :, 2] = 1
        self.head = kernels.zeros((M, T, C, K), dtype)
        self.slopes = kernels.zeros((M, T, C, *shape.sizes[-1]), dtype)
        self.outputs = kernels.zeros((M, T, C, *shape.sizes[-1]), dtype)
        self.losses = kernels.zeros((M,), "float64")
        self.scratch = kernels.Scratch(self)

    @property
    def nbytes(self) -> int:
        """Memory of the work arrays."""
        arrays = [*vars(self).values(), *vars(self.scratch).values()]
        flat = [a for value in arrays for a in (value if isinstance(value, list) else [value])]
        owners = {id(owner): owner.nbytes for owner in map(_owner, flat) if owner is not None}
        return sum(owners.values())

    def pad(self, inputs: NDArray[Any]) -> Any:
        """Input tensors (M, T, k, h0, w0) as the step takes them."""
        missing = self.width - inputs.shape[2]
        padded = np.pad(inputs, [(0, 0), (0, 0), (0, missing), (0, 0), (0, 0)])
        return self.kernels.array(self.kernels.arranged(padded), self.dtype)

    def mse(self, inputs: Any, weights: Any, gradients: Any) -> Any:
        """Loss (M,) of the members, and its gradient (M, parameters) in the order of `DeepDecoder.parameters()`."""
        self._blocks(inputs, weights)
        self.kernels.head(self, weights, gradients, self.tiles, self.kernels.MSE)
        self._back(inputs, weights, gradients)
        return self.losses

    def forward(self, inputs: Any, weights: Any) -> Any:
        """The members' outputs (M, T, C, h, w)."""
        self._blocks(inputs, weights)
        self.kernels.head(self, weights, weights, self.tiles, self.kernels.OUTPUT)
        return self.outputs

    def backward(self, inputs: Any, weights: Any, slopes: Any, gradients: Any) -> None:
        """The seam for any loss: dL/d output (M, T, C, h, w) to dL/d weights (M, parameters).

        Once after each `forward`, whose work arrays it uses up.
        """
        self.kernels.head(self, weights, gradients, slopes, self.kernels.GIVEN)
        self._back(inputs, weights, gradients)

    def _blocks(self, inputs: Any, weights: Any) -> None:
        for i in range(self.shape.blocks):
            self.kernels.forward(self, i, inputs, weights)

    def _back(self, inputs: Any, weights: Any, gradients: Any) -> None:
        for i in reversed(range(self.shape.blocks)):
            self.kernels.backward(self, i, inputs, weights, gradients)


def _owner(value: Any) -> Any:
    """The array whose memory a view uses."""
    while isinstance(getattr(value, "base", None), np.ndarray):
        value = value.base
    return value if hasattr(value, "nbytes") else None


def kernels_for(device: str) -> Any:
    """The kernels of a device."""
    if device == "cpu":
        from ddstudy.fit import kernels_cpu

        return kernels_cpu
    from ddstudy.fit.kernels_cuda import Kernels

    return Kernels(device)


def fit(
    problem: Problem,
    stops: Sequence[int],
    kernels: Any,
    *,
    threads: int,
    stop: threading.Event,
    precision: str = "float32",
) -> Iterator[Snapshot]:
    """See `ddstudy.fit.fit`.

    On the processor a member's numbers do not depend on `threads`, nor on the members beside it; on CUDA, cuBLAS may
    add up in another order for another number of members.
    """
    M = len(problem.weights)
    together = [slice(0, M)] if kernels.TOGETHER else [slice(m, m + 1) for m in range(M)]
    steps = [
        Step(problem.shape, problem.tiles, together[0].stop, kernels, precision)
        for _ in range(min(threads, len(together)))
    ]
    groups = [_Group(problem, members, steps[0]) for members in together]
    left = threading.Event()
    with ThreadPoolExecutor(len(steps)) as pool, setting(left):
        with _telling_of_compilation():
            for step in steps:  # compiles and touches everything: not part of the fit's time
                _Group(problem, together[0], step).iterate(step)
        kernels.wait()
        done, seconds = 0, 0.0
        for last in stops:
            start = time.perf_counter()
            queue = _Queue(groups, last - done, lambda: left.is_set() or stop.is_set())
            list(pool.map(queue.work, steps))
            kernels.wait()
            if stop.is_set():
                return
            seconds += time.perf_counter() - start
            done = last
            outputs = np.concatenate([group.outputs(steps[0]) for group in groups])
            errors = (outputs.astype(np.float64) - problem.tiles) ** 2
            yield Snapshot(done, seconds, errors.mean(axis=(1, 2, 3, 4)), outputs)


def memory(shape: Geometry, tiles: int, members: int, threads: int) -> int:
    """Bytes that `fit` needs on the processor: a step's work arrays per thread, and the members' weights and inputs."""
    step = Step(shape, np.zeros((tiles, shape.channels, *shape.sizes[-1]), np.float32), 1, kernels_for("cpu"))
    (h, w), threads = shape.sizes[0], min(threads, members)
    outputs: int = members * step.outputs.nbytes * 4  # a snapshot, and its errors in double precision
    work: int = threads * step.nbytes
    weights: int = members * 4 * (5 * shape.parameters + tiles * h * w * step.width)
    return work + weights + outputs


class _Group:
    """Members that are computed together, and their optimiser."""

    def __init__(self, problem: Problem, members: slice, step: Step) -> None:
        self.kernels = step.kernels
        self.inputs = step.pad(problem.inputs[members])
        self.weights = step.kernels.array(problem.weights[members], step.dtype)
        self.gradients = step.kernels.array(np.zeros_like(problem.weights[members]), step.dtype)
        self.adam = step.kernels.Adam(self.weights, problem.learning_rate)
        self.kept = step.kernels.Kept(self.weights, problem.keep)
        self.advance = step.kernels.captured(self.iterate, step)

    def iterate(self, step: Step) -> None:
        losses = step.mse(self.inputs, self.weights, self.gradients)
        self.kept.see(losses, self.weights)
        self.adam.update(self.gradients)

    def outputs(self, step: Step) -> NDArray[np.float32]:
        outputs: NDArray[np.float32] = self.kernels.numbers(step.forward(self.inputs, self.kept.weights))
        return outputs


@functools.cache  # once, though a second kind of fit may need more kernels
def _tell_of_compilation() -> None:
    _log.warning("Compiling the kernels of the fit, once on this machine: up to half a minute.")


@contextlib.contextmanager
def _telling_of_compilation() -> Iterator[None]:
    """Kernels that are on disk load within a second."""
    timer = threading.Timer(2.0, _tell_of_compilation)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Queue:
    """Iterations still to do; threads take the group that is most behind, so that none is idle but at the very end."""

    def __init__(self, groups: list[_Group], iterations: int, ended: Callable[[], bool]) -> None:
        self._lock = threading.Lock()
        self._waiting = [(iterations, i, group) for i, group in enumerate(groups)]
        self._ended = ended

    def work(self, step: Step) -> None:
        """Iterates until nothing waits."""
        mine: tuple[int, int, _Group] | None = None
        while not self._ended():
            with self._lock:
                if mine and mine[0] > 1:
                    self._waiting.append((mine[0] - 1, *mine[1:]))
                if not self._waiting:
                    return
                mine = max(self._waiting, key=lambda entry: entry[:2])
                self._waiting.remove(mine)
            mine[2].advance(step)
