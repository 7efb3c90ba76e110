"""The kernels of the fused step on the processor: numba with explicit vectors; see `ddstudy.solvers.fused.kernels`.

One thread computes one decoder at a time, so numbers depend neither on the number of threads nor on the other
members. Work goes row by row, such that what one part writes is still in the cache when the next reads it: a row of
low-resolution products is made, and the pixels between it and the row before are blended from it at once. Between
four neighbouring low-resolution pixels lies a *cell*; all pixels of a cell share the four corners, which stay in
registers in the forward pass, and so do the four sums of gradients in the backward pass.

Feature maps are contiguous arrays (members, tiles, rows, chunks, columns, lanes): a row's channels, padded by zeros to
`padded(k)`, are cut into chunks of one vector, so that a pass over a row reads and writes one address after the other.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
from llvmlite import binding
from numpy.typing import NDArray

from ddstudy.priors.deep_decoder import EPS
from ddstudy.solvers.base import EMA_ITERATIONS, FLAT_VARIANCE, Config, Problem
from ddstudy.solvers.base import summary as summary_of
from ddstudy.solvers.fused.simd import (
    LANES_1,
    LANES_8,
    LANES_16,
    dots,
    exp,
    fma,
    load,
    product,
    relu,
    same,
    splat,
    store,
    total,
    where_number,
    where_positive,
)

if TYPE_CHECKING:
    import torch

    from ddstudy.solvers.fused.step import Step

# the tile of a matrix product that fits the registers: 32 of 16 lanes, or what other processors have
ROWS, WIDE = (8, 2) if binding.get_host_cpu_features().get("avx512f") else (4, 1)
BLOCK = 32  # pixels of a sum over pixels whose channels stay in the first-level cache together
SEGMENT = 24_576  # bytes of activations that the head keeps in the first-level cache
OUTPUT, MSE, GRADIENT = 0, 1, 2
BATCHED = False
IN_PLACE = True


def _compiled(function: Any) -> Any:
    options: Any = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # numba finds no directory that it may write to
        _tell_once()
        return numba.njit(**options)(function)


@functools.cache
def _tell_once() -> None:
    text = "No writable folder for compiled kernels: they are compiled anew in every process. Set NUMBA_CACHE_DIR."
    logging.getLogger("ddstudy").warning(text)


def padded(k: int) -> int:
    """Channels that are computed for k: 8, or the next multiple of 16."""
    return 8 if k <= 8 else -(-k // 16) * 16


def plane(height: int, width: int, channels: int) -> tuple[int, ...]:
    """The shape of one tile's feature maps: rows of chunks of channels."""
    lane = min(channels, 16)
    return height, channels // lane, width, lane


def to_planes(values: NDArray[Any]) -> NDArray[Any]:
    """Feature maps (..., channels, rows, columns) as `plane` orders them."""
    *outer, channels, height, width = values.shape
    _, chunks, _, lane = plane(height, width, channels)
    return np.moveaxis(values.reshape(*outer, chunks, lane, height, width), (-2, -4, -1, -3), (-4, -3, -2, -1))


def zeros(shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """An array that starts at a cache line."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def from_numpy(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """A copy that starts at a cache line."""
    made = zeros(values.shape, dtype)
    made[...] = values
    return made


def to_numpy(values: NDArray[Any]) -> NDArray[Any]:
    """A copy."""
    return values.copy()


def summary(outputs: NDArray[Any], measurement: NDArray[Any], pixels: NDArray[Any] | None) -> tuple[Any, Any]:
    """See `ddstudy.solvers.base.summary`."""
    return summary_of(outputs, measurement[0], pixels)


def as_tensor(values: NDArray[Any]) -> torch.Tensor:
    """The same memory."""
    import torch

    return torch.from_numpy(values)


def write(into: NDArray[Any], values: NDArray[Any]) -> None:
    """Overwrites an array."""
    into[...] = values


def begin_thread() -> None:
    """Nothing is needed here."""


def device_lock() -> contextlib.AbstractContextManager[None]:
    """Nothing here has to be done by one thread at a time."""
    return contextlib.nullcontext()


def synchronize() -> None:
    """Kernels return when they are done."""


def compile(launches: Callable[[], None]) -> None:
    """Nothing: numba compiles one kernel at a time."""


def captured(launches: Callable[[Step], None], step: Step) -> Callable[[Step], None]:
    """Nothing is gained by more than calling them."""
    return launches


_tile = product(ROWS, WIDE)
_tile_narrow = product(ROWS, 1)
_tile_flat = product(1, WIDE)
_tile_flat_narrow = product(1, 1)


@_compiled
def _load_matrix(weights, member, at, matrix, k):
    """One convolution's matrix (output, input), padded to the channels that are computed."""
    for out in range(k):
        for channel in range(k):
            matrix[out, channel] = weights[member, at + out * k + channel]


@_compiled
def _load_transposed(weights, member, at, matrix, k):
    """One convolution's matrix transposed, (input, output), padded to the channels that are computed."""
    for out in range(k):
        for channel in range(k):
            matrix[channel, out] = weights[member, at + out * k + channel]


@_compiled
def _fold(transposed, affine, panels, bias, factors, lanes):
    """Normalisation and convolution as one matrix: panels (input, WIDE * lanes) of diag(a) C, and bias b C."""
    K, lane = bias.size, len(lanes)
    for channel in range(K):
        factors[0, channel], factors[1, channel] = affine[2, channel], affine[3, channel]
    for first in range(0, K, WIDE * lane):
        width = min(WIDE * lane, K - first)
        for c in range(first, first + width, lane):
            constant = same(0.0, bias, lanes)
            for channel in range(K):
                weight = load(transposed, channel * K + c, lanes)
                store(panels, first * K + channel * width + c - first, splat(factors, channel, lanes) * weight)
                constant = fma(splat(factors, K + channel, lanes), weight, constant)
            store(bias, c, constant)


@_compiled
def _fold_back(matrix, affine, panels, factors, lanes):
    """The transpose of `_fold`'s matrix, in panels (output, WIDE * lanes)."""
    K, lane = matrix.shape[0], len(lanes)
    for channel in range(K):
        factors[0, channel] = affine[2, channel]
    for first in range(0, K, WIDE * lane):
        width = min(WIDE * lane, K - first)
        for c in range(first, first + width, lane):
            scale = load(factors, c, lanes)
            for out in range(K):
                store(panels, first * K + out * width + c - first, scale * load(matrix, out * K + c, lanes))


@_compiled
def _multiply(a, a0, panels, c, c0, n, bias, lanes):
    """A row of n pixels times a matrix in panels: c = a @ panels + bias."""
    K, lane = bias.size, len(lanes)
    chunks = K // lane
    rows = ROWS if n >= ROWS else 1
    for q in range(0, chunks, WIDE):
        wide = chunks - q >= WIDE
        width = WIDE * lane if wide else lane
        right, start = (q * lane * K, lane, lane * width, width), (q * lane, 0, lane)
        for first in range(0, n, rows):
            i = min(first, n - rows)  # the last tile may do some pixels again
            left = (a0 + i * lane, lane, n * lane, 1)
            to = (c0 + (q * n + i) * lane, lane, n * lane)
            if rows == ROWS and wide:
                _tile(a, left, panels, right, bias, start, c, to, chunks, lane, lanes)
            elif rows == ROWS:
                _tile_narrow(a, left, panels, right, bias, start, c, to, chunks, lane, lanes)
            elif wide:
                _tile_flat(a, left, panels, right, bias, start, c, to, chunks, lane, lanes)
            else:
                _tile_flat_narrow(a, left, panels, right, bias, start, c, to, chunks, lane, lanes)


@_compiled
def _correlate(a, b, start, n, sums, lanes):
    """Adds a^T b to sums (K, K), a and b being rows of n pixels from `start` on."""
    K, lane = sums.shape[0], len(lanes)
    for first in range(0, n, BLOCK):
        size, here = min(BLOCK, n - first), start + first * lane
        for j in range(0, K, WIDE * lane):
            right = (here + j * n, n * lane, 0, lane)
            for i in range(0, K, ROWS):
                left = (here + i // lane * lane * n + i % lane, 1, 0, lane)
                to = (i * K + j, K, lane)
                if K - j >= WIDE * lane:
                    _tile(a, left, b, right, sums, to, sums, to, 1, size, lanes)
                else:
                    _tile_narrow(a, left, b, right, sums, to, sums, to, 1, size, lanes)


@_compiled
def _add(partial, start, total):
    """Adds a row's sums to the double-precision sums of the whole; clears them."""
    for i in range(total.size):
        total[i] += partial[start + i]
        partial[start + i] = 0


@_compiled
def _blend(z, top, bottom, w, K, ys, ye, yf, xs, xf, r, r0, keep, origins, partial, lanes):
    """Upsampling and ReLU of the pixels between two rows of products; adds up R and R^2 in `partial`.

    R is counted from the channel's first value, or the variance of a nearly constant channel would drown in its mean.
    """
    lane, W = len(lanes), xf.size
    for c in range(0, K, lane):
        above, below = top + c * w, bottom + c * w
        first, second, origin = same(0.0, z, lanes), same(0.0, z, lanes), load(origins, c, lanes)
        tl = load(z, above, lanes)
        fall_left = load(z, below, lanes) - tl
        for j in range(w):
            right = min(j + 1, w - 1) * lane
            tr = load(z, above + right, lanes)
            fall_right = load(z, below + right, lanes) - tr
            for y in range(ys, ye):
                fraction = splat(yf, y, lanes)
                start = fma(fraction, fall_left, tl)
                rise = fma(fraction, fall_right, tr) - start
                for x in range(xs[j], xs[j + 1]):
                    value = relu(fma(splat(xf, x, lanes), rise, start))
                    if keep:
                        store(r, r0 + (y * K + c) * W + x * lane, value)
                    value = value - origin
                    first = first + value
                    second = fma(value, value, second)
            tl, fall_left = tr, fall_right
        store(partial, c, first)
        store(partial, K + c, second)


@_compiled
def _forward(x, weights, at, before, after, z, r, keep, ys, yf, xs, xf, transposed, panels, bias, factors, origins,
             partial, sums, k, lanes):  # fmt: skip
    M, T, h, _, w, _ = x.shape
    H, W, ring, K = yf.size, xf.size, z.shape[2], bias.size
    for unit in range(M * T):
        m, t = unit // T, unit % T
        if t == 0:
            _load_transposed(weights, m, at, transposed, k)
        _fold(transposed, before[m, t], panels, bias, factors, lanes)
        x0, z0, r0 = unit * h * w * K, unit * ring * w * K, unit * H * W * K
        sums[:] = 0
        _multiply(x, x0, panels, z, z0, w, bias, lanes)
        for c in range(0, K, len(lanes)):
            store(origins, c, relu(load(z, z0 + c * w, lanes)))
        for i in range(h):
            below = min(i + 1, h - 1)
            if below > i:
                _multiply(x, x0 + below * w * K, panels, z, z0 + below % ring * w * K, w, bias, lanes)
            top, bottom = z0 + i % ring * w * K, z0 + below % ring * w * K
            _blend(z, top, bottom, w, K, ys[i], ys[i + 1], yf, xs, xf, r, r0, keep, origins, partial, lanes)
            _add(partial, 0, sums[0])
            _add(partial, K, sums[1])
        norm = at + k * k
        for c in range(K):
            offset = sums[0, c] / (H * W)
            variance, mean = sums[1, c] / (H * W) - offset * offset, origins[c] + offset
            inv_std = 0.0 if variance <= FLAT_VARIANCE * mean * mean else 1 / np.sqrt(variance + EPS)  # NaN stays
            scale = weights[m, norm + c] * inv_std if c < k else 0.0
            shift = weights[m, norm + k + c] - scale * mean if c < k else 0.0
            after[m, t, 0, c], after[m, t, 1, c], after[m, t, 2, c], after[m, t, 3, c] = mean, inv_std, scale, shift


@_compiled
def _activate(logits, s0, constant, image, i0, grad_logits, p0, outputs, o0, scale, mode, sigmoid, lanes):
    """The outputs of one vector of logits, which their gradients replace; sums of squared errors and of gradients.

    With `GRADIENT`, outputs are there already. What is NaN in a measurement has no error.
    """
    one, squares = same(1.0, logits, lanes), logits.dtype.type(0)
    if mode == GRADIENT:
        output = load(outputs, o0, lanes)
    else:
        output = load(logits, s0, lanes) + same(constant, logits, lanes)
        if sigmoid:
            output = one / (one + exp(same(0.0, logits, lanes) - output))
        store(outputs, o0, output)
    if mode == OUTPUT:
        return squares, squares
    grad = load(image, i0, lanes)
    if mode == MSE:
        error = where_number(grad, output - grad)
        squares = total(error * error)
        grad = same(scale, logits, lanes) * error
    if sigmoid:
        grad = grad * output * (one - output)
    store(grad_logits, p0, grad)
    store(logits, s0, grad)
    return squares, total(grad)


@_compiled
def _head(z, weights, gradients, at, affine, image, measured, grad_logits, outputs, head, losses, dy_sums, mode,
          sigmoid, ys, yf, xs, xf, segment, logits, partial, sums, of_outputs, k, lanes):  # fmt: skip
    M, T, h, _, w, _ = z.shape
    C, H, W = grad_logits.shape[2:]
    K = head.shape[-1]
    lane = len(lanes)
    room = logits.shape[1]
    span = room - lane  # the last pixels are computed by vectors that reach beyond
    for unit in range(M * T):
        m, t = unit // T, unit % T
        scale = 2 / measured[m]
        if t == 0:
            losses[m] = 0
            if mode != OUTPUT:
                gradients[m, at : at + C * k] = 0
        sums[:], of_outputs[:] = 0, 0
        constants, sum_grad_logits = of_outputs[0], of_outputs[1]
        for o in range(C):
            for c in range(k):
                head[m, t, o, c] = affine[m, t, 2, c] * weights[m, at + o * k + c]
                constants[o] += affine[m, t, 3, c] * weights[m, at + o * k + c]
        v0 = unit * C * K
        image_start = (unit if image.shape[0] == M else t) * C * H * W
        for i in range(h):
            top = (unit * h + i) * w * K
            bottom = (unit * h + min(i + 1, h - 1)) * w * K
            rows = ys[i + 1] - ys[i]
            left = 0
            while left < w:
                # as many cells as fit the segment, one at least
                right = left + 1
                while right < w and rows * (xs[right + 1] - xs[left]) <= span:
                    right += 1
                x0, n = xs[left], xs[right] - xs[left]
                for c in range(0, K, lane):
                    above, below = top + c * w, bottom + c * w
                    tl = load(z, above + left * lane, lanes)
                    fall_left = load(z, below + left * lane, lanes) - tl
                    for j in range(left, right):
                        beside = min(j + 1, w - 1) * lane
                        tr = load(z, above + beside, lanes)
                        fall_right = load(z, below + beside, lanes) - tr
                        for y in range(rows):
                            fraction = splat(yf, ys[i] + y, lanes)
                            start = fma(fraction, fall_left, tl)
                            rise = fma(fraction, fall_right, tr) - start
                            for x in range(xs[j], xs[j + 1]):
                                value = relu(fma(splat(xf, x, lanes), rise, start))
                                store(segment, c * room + (y * n + x - x0) * lane, value)
                        tl, fall_left = tr, fall_right
                for o in range(C):
                    if mode != GRADIENT:
                        for p in range(0, rows * n, lane):
                            dot = dots(segment, (p * lane, room * lane), head, v0 + o * K, K // lane, lanes)
                            store(logits, o * room + p, dot)
                    for y in range(rows):
                        place = ((unit * C + o) * H + ys[i] + y) * W + x0
                        there = image_start + (o * H + ys[i] + y) * W + x0
                        here = o * room + y * n
                        x = 0
                        while x + 16 <= n:
                            error, grad = _activate(logits, here + x, constants[o], image, there + x, grad_logits,
                                                    place + x, outputs, place + x, scale, mode, sigmoid,
                                                    LANES_16)  # fmt: skip
                            losses[m] += error
                            sum_grad_logits[o] += grad
                            x += 16
                        while x < n:
                            error, grad = _activate(logits, here + x, constants[o], image, there + x, grad_logits,
                                                    place + x, outputs, place + x, scale, mode, sigmoid,
                                                    LANES_1)  # fmt: skip
                            losses[m] += error
                            sum_grad_logits[o] += grad
                            x += 1
                    if mode != OUTPUT:
                        for c in range(0, K, lane):
                            # four sums, since one would wait for itself
                            a, b = load(partial, o * K + c, lanes), same(0.0, z, lanes)
                            d, e = same(0.0, z, lanes), same(0.0, z, lanes)
                            here, q = o * room, c * room
                            p = 0
                            while p + 4 <= rows * n:
                                a = fma(splat(logits, here + p, lanes), load(segment, q, lanes), a)
                                b = fma(splat(logits, here + p + 1, lanes), load(segment, q + lane, lanes), b)
                                d = fma(splat(logits, here + p + 2, lanes), load(segment, q + 2 * lane, lanes), d)
                                e = fma(splat(logits, here + p + 3, lanes), load(segment, q + 3 * lane, lanes), e)
                                p, q = p + 4, q + 4 * lane
                            while p < rows * n:
                                a = fma(splat(logits, here + p, lanes), load(segment, q, lanes), a)
                                p, q = p + 1, q + lane
                            store(partial, o * K + c, a + b + (d + e))
                left = right
            if mode != OUTPUT:
                for o in range(C):
                    _add(partial, o * K, sums[o])
        if mode == OUTPUT:
            continue
        dy_sums[m, t] = 0
        for o in range(C):
            for c in range(k):
                weight = weights[m, at + o * k + c]
                scale_c, shift_c = affine[m, t, 2, c], affine[m, t, 3, c]
                gradients[m, at + o * k + c] += scale_c * sums[o, c] + shift_c * sum_grad_logits[o]
                dy_sums[m, t, 0, c] += weight * sum_grad_logits[o]
                dy_sums[m, t, 1, c] += weight * sums[o, c]
    for m in range(M):
        losses[m] /= measured[m]


@_compiled
def _gather(z, top, bottom, grad_logits, g0, head, v0, r, r0, dy, d, carry, alpha_beta, w, K,
            ys, ye, yf, xs, xf, partial, lanes):  # fmt: skip
    """Gradients of the pixels between two rows, past normalisation, ReLU and upsampling, summed into those rows.

    The upper row is complete with what the pixels above it left in `carry`, which then holds the lower one's part.

    In the last block (`z` given) R is made again from its corners, and dL/dY is `grad_logits` times the head; `d` may
    be `z` itself. In the others (`z` None) R is in `r`, dL/dY in `dy`.
    """
    lane, W = len(lanes), xf.size
    C, N = grad_logits.shape[2], yf.size * W
    zero = same(0.0, d, lanes)
    for c in range(0, K, lane):
        above, below = top + c * w, bottom + c * w
        d_tl, d_bl, column_sum = zero, zero, load(partial, c, lanes)
        alpha, beta = load(alpha_beta, c, lanes), load(alpha_beta, K + c, lanes)
        if z is not None:
            weight = load(head, v0 + c, lanes)
            tl = load(z, above, lanes)
            fall_left = load(z, below, lanes) - tl
        for j in range(w):
            d_tr, d_br = zero, zero
            if z is not None:
                right = min(j + 1, w - 1) * lane
                tr = load(z, above + right, lanes)
                fall_right = load(z, below + right, lanes) - tr
            for y in range(ys, ye):
                fraction = splat(yf, y, lanes)
                to_left, to_right = zero, zero
                if z is not None:
                    start = fma(fraction, fall_left, tl)
                    rise = fma(fraction, fall_right, tr) - start
                    g = g0 + y * W
                else:
                    r_row, dy_row = r0 + (y * K + c) * W, ((y - ys) * K + c) * W
                for x in range(xs[j], xs[j + 1]):
                    f = splat(xf, x, lanes)
                    if z is not None:
                        value = fma(f, rise, start)
                        grad = fma(splat(grad_logits, g + x, lanes), weight, fma(beta, value, alpha))
                        for o in range(1, C):
                            more = load(head, v0 + o * K + c, lanes)
                            grad = fma(splat(grad_logits, g + o * N + x, lanes), more, grad)
                    else:
                        value = load(r, r_row + x * lane, lanes)
                        grad = fma(beta, value, alpha) + load(dy, dy_row + x * lane, lanes)
                    grad = where_positive(value, grad)
                    to_right = fma(f, grad, to_right)
                    to_left = to_left + grad
                to_left = to_left - to_right
                d_bl = fma(fraction, to_left, d_bl)
                d_tl = d_tl + to_left
                d_br = fma(fraction, to_right, d_br)
                d_tr = d_tr + to_right
            here = c * w + j * lane
            # a pixel's weights are 1 - fraction above and fraction below
            upper = d_tl - d_bl + load(carry, here, lanes)
            store(carry, here, d_bl)
            store(d, above + j * lane, upper)
            column_sum = column_sum + upper
            d_tl, d_bl = d_tr, d_br
            if z is not None:
                tl, fall_left = tr, fall_right
        store(partial, c, column_sum)


@_compiled
def _backward(x, weights, gradients, at, before, after, dy_sums, d, ys, yf, xs, xf, z, grad_logits, head, r, d_next, dy,
              carry, matrix, transposed, panels, bias, factors, alpha_beta, correlation, grad_weight, partial, sums, k,
              lanes):  # fmt: skip
    M, T, h, _, w, _ = x.shape
    H, W, K = yf.size, xf.size, bias.size
    N = H * W
    norm, next_at = at + k * k, at + k * k + 2 * k
    for unit in range(M * T):
        m, t = unit // T, unit % T
        if t == 0:
            gradients[m, norm : norm + 2 * k] = 0
            grad_weight[:] = 0
            _load_transposed(weights, m, at, transposed, k)
            if z is None:
                _load_matrix(weights, m, next_at, matrix, k)
        for c in range(K):
            mean, inv_std, scale = after[m, t, 0, c], after[m, t, 1, c], after[m, t, 2, c]
            sum_dy = dy_sums[m, t, 0, c]
            grad_scale = (dy_sums[m, t, 1, c] - mean * sum_dy) * inv_std
            if c < k:
                gradients[m, norm + c] += grad_scale
                gradients[m, norm + k + c] += sum_dy
            alpha_beta[1, c] = -scale * inv_std * grad_scale / N
            alpha_beta[0, c] = -scale * sum_dy / N + scale * inv_std * grad_scale / N * mean
            bias[c] = 0
        if z is None:
            _fold_back(matrix, after[m, t], panels, factors, lanes)
        correlation[:] = 0
        carry[:] = 0
        sums[0] = 0
        x0 = unit * h * w * K
        for i in range(h):
            top = x0 + i * w * K
            bottom = x0 + min(i + 1, h - 1) * w * K
            g0, v0, r0 = unit * grad_logits.shape[2] * N, unit * head.shape[2] * K, unit * N * K
            if z is None:
                for y in range(ys[i], ys[i + 1]):
                    dy_start = (y - ys[i]) * W * K
                    _multiply(d_next, r0 + y * W * K, panels, dy, dy_start, W, bias, lanes)
            _gather(z, top, bottom, grad_logits, g0, head, v0, r, r0, dy, d, carry, alpha_beta, w, K,
                    ys[i], ys[i + 1], yf, xs, xf, partial, lanes)  # fmt: skip
            _add(partial, 0, sums[0])
            _correlate(x, d, top, w, correlation, lanes)
        for channel in range(K):
            factors[0, channel], factors[1, channel] = before[m, t, 2, channel], before[m, t, 3, channel]
            bias[channel] = sums[0, channel]
        for channel in range(k):
            sum_dy, sum_dy_r = same(0.0, bias, lanes), same(0.0, bias, lanes)
            scale, shift = splat(factors, channel, lanes), splat(factors, K + channel, lanes)
            for c in range(0, K, len(lanes)):
                at_c = channel * K + c
                r_dz, sum_dz = load(correlation, at_c, lanes), load(bias, c, lanes)
                store(grad_weight, at_c, fma(scale, r_dz, fma(shift, sum_dz, load(grad_weight, at_c, lanes))))
                weight = load(transposed, at_c, lanes)
                sum_dy, sum_dy_r = fma(weight, sum_dz, sum_dy), fma(weight, r_dz, sum_dy_r)
            dy_sums[m, t, 0, channel], dy_sums[m, t, 1, channel] = total(sum_dy), total(sum_dy_r)
        if t == T - 1:
            for out in range(k):
                for channel in range(k):
                    gradients[m, at + out * k + channel] = grad_weight[channel, out]


@_compiled
def _adam(weights, gradients, exp_avg, exp_avg_sq, step_size, correction, beta1, beta2, eps):
    one = weights.dtype.type(1)
    for m in range(weights.shape[0]):
        for i in range(weights.shape[1]):
            grad = gradients[m, i]
            exp_avg[m, i] += (one - beta1) * (grad - exp_avg[m, i])
            exp_avg_sq[m, i] += (one - beta2) * (grad * grad - exp_avg_sq[m, i])
            weights[m, i] -= step_size * exp_avg[m, i] / (np.sqrt(exp_avg_sq[m, i]) * correction + eps)


@_compiled
def _average(mean, weights, share):
    for m in range(weights.shape[0]):
        for i in range(weights.shape[1]):
            mean[m, i] += share * (weights[m, i] - mean[m, i])


@_compiled
def _residual(predicted, samples, i, scale, residuals, sums, lanes):
    """One vector of residuals, 0 where a sample is NaN: stores them times a scale, and adds their squares to sums."""
    given = load(samples, i, lanes)
    residual = where_number(given, load(predicted, i, lanes) - given)
    store(residuals, i, same(scale, samples, lanes) * residual)
    return fma(residual, residual, sums)


@_compiled
def _residuals(predicted, samples, scale, residuals):
    """Residuals times a scale, and the sum of their squares."""
    squares, i = 0.0, 0
    while i + 16 <= samples.size:
        sums, end = same(0.0, samples, LANES_16), min(i + 1024, samples.size)
        while i + 16 <= end:
            sums = _residual(predicted, samples, i, scale, residuals, sums, LANES_16)
            i += 16
        squares += total(sums)
    while i < samples.size:
        squares += total(_residual(predicted, samples, i, scale, residuals, same(0.0, samples, LANES_1), LANES_1))
        i += 1
    return squares


class Scratch:
    """Small work arrays of a step, and the arguments of its kernels, made once."""

    def __init__(self, step: Step) -> None:
        prior, dtype = step.prior, step.dtype
        K, C = padded(prior.k), prior.channels
        self.lanes = LANES_8 if K == 8 else LANES_16
        # sum dY and sum dY R of the block that goes backward next
        self.dy_sums = zeros((*step.losses.shape, step.measurement.shape[1], 2, K), "float64")
        self.matrix, self.transposed = zeros((K, K), dtype), zeros((K, K), dtype)
        self.panels = zeros((K * K,), dtype)
        self.factors = zeros((2, K), dtype)
        self.bias = zeros((K,), dtype)
        self.alpha_beta = zeros((2, K), dtype)
        self.correlation, self.grad_weight = zeros((K, K), dtype), zeros((K, K), dtype)
        self.partial = zeros((max(2, C) * K,), dtype)
        self.origins = zeros((K,), dtype)
        self.sums = zeros((max(2, C), K), "float64")
        self.of_outputs = zeros((2, C), "float64")  # their constants, and sums of gradients by their logits
        tallest = [int(np.diff(rows.start).max()) for rows, _ in step.axes]
        widest = [int(np.diff(columns.start).max()) for _, columns in step.axes]
        self.dy = zeros(
            (max([n * W * K for n, (_, W) in zip(tallest, prior.sizes[1:-1], strict=False)] or [K]),), dtype
        )
        self.carry = zeros((max(w for _, w in prior.sizes[:-1]) * K,), dtype)
        span = max(SEGMENT // (K * np.dtype(dtype).itemsize), tallest[-1] * widest[-1])
        room = span + len(self.lanes)
        self.segment = zeros((K // len(self.lanes), room, len(self.lanes)), dtype)
        self.logits = zeros((C, room), dtype)


def rows_kept(height: int, last: bool) -> int:
    """Two, but all of the last block, whose products are used three times."""
    return height if last else min(2, height)


def forward(step: Step, i: int, inputs: Any, weights: Any) -> None:
    """Block i; `step.affine` has its statistics in the end."""
    scratch: Scratch = step.scratch
    last = i == step.prior.blocks - 1
    x = step.r[i - 1] if i else inputs
    rows, columns = step.axes[i]
    _forward(x, weights, step.at[i], step.affine[i], step.affine[i + 1], step.z[i], step.z[i] if last else step.r[i],
             not last, rows.start, rows.fraction, columns.start, columns.fraction, scratch.transposed, scratch.panels,
             scratch.bias, scratch.factors, scratch.origins, scratch.partial, scratch.sums, step.prior.k,
             scratch.lanes)  # fmt: skip


def head(step: Step, weights: Any, gradients: Any, image: Any, mode: int) -> None:
    """Convolution to the image, and sigmoid where the head has it."""
    scratch: Scratch = step.scratch
    rows, columns = step.axes[-1]
    _head(step.z[-1], weights, gradients, step.at[-1], step.affine[-1], image, step.measured, step.grad_logits,
          step.outputs, step.head, step.losses, scratch.dy_sums, mode, step.prior.head == "sigmoid", rows.start,
          rows.fraction, columns.start, columns.fraction, scratch.segment, scratch.logits, scratch.partial,
          scratch.sums, scratch.of_outputs, step.prior.k, scratch.lanes)  # fmt: skip


def backward(step: Step, i: int, inputs: Any, weights: Any, gradients: Any) -> None:
    """Block i: gradients of its normalisation and convolution, and what reaches the block before."""
    scratch: Scratch = step.scratch
    last = i == step.prior.blocks - 1
    x = step.r[i - 1] if i else inputs
    rows, columns = step.axes[i]
    _backward(x, weights, gradients, step.at[i], step.affine[i], step.affine[i + 1], scratch.dy_sums, step.d[i],
              rows.start, rows.fraction, columns.start, columns.fraction, step.z[i] if last else None,
              step.grad_logits, step.head, step.d[i] if last else step.r[i], step.d[i] if last else step.d[i + 1],
              scratch.dy, scratch.carry, scratch.matrix, scratch.transposed, scratch.panels, scratch.bias,
              scratch.factors, scratch.alpha_beta, scratch.correlation, scratch.grad_weight, scratch.partial,
              scratch.sums, step.prior.k, scratch.lanes)  # fmt: skip


class Adam:
    """Adam (Kingma and Ba, 2015) with torch's defaults, in place, for some members' weights (M, parameters)."""

    def __init__(self, weights: NDArray[Any], learning_rate: float) -> None:
        self.weights, self.learning_rate, self.steps = weights, learning_rate, 0
        self.exp_avg, self.exp_avg_sq = np.zeros_like(weights), np.zeros_like(weights)

    def update(self, gradients: NDArray[Any]) -> None:
        """One step."""
        self.steps += 1
        step_size = self.learning_rate / (1 - 0.9**self.steps)
        correction = (1 - 0.999**self.steps) ** -0.5
        scalars = self._scalars(step_size, correction, 0.9, 0.999, 1e-8)
        _adam(self.weights, gradients, self.exp_avg, self.exp_avg_sq, *scalars)

    def _scalars(self, *values: float) -> tuple[Any, ...]:
        return tuple(self.weights.dtype.type(value) for value in values)


class Iterate:
    """The weights (M, parameters) that a snapshot shows, by `Config.keep`; a member that diverged shows it."""

    def __init__(self, weights: NDArray[Any], keep: str) -> None:
        self.keep, self.averaged = keep, 0
        self.weights = weights if keep == "last" else from_numpy(weights, weights.dtype.name)
        self.best_loss = np.full(len(weights), np.inf)

    def update(self, losses: NDArray[np.float64], weights: NDArray[Any]) -> None:
        """Takes in weights and their losses, before they change."""
        if self.keep == "best":
            for m in range(len(losses)):
                if not losses[m] >= self.best_loss[m]:  # NaN is kept
                    self.best_loss[m], self.weights[m] = losses[m], weights[m]
        elif self.keep == "average":
            self.averaged += 1
            _average(self.weights, weights, weights.dtype.type(1 / min(self.averaged, EMA_ITERATIONS)))


class Average:
    """The exponential average of outputs; see `ddstudy.solvers.base.Config.average`."""

    def __init__(self, outputs: NDArray[Any], past: float) -> None:
        self.mean, self.share, self.later = zeros(outputs.shape, outputs.dtype.name), 1.0, 1 - past

    def update(self, outputs: NDArray[Any]) -> None:
        """Takes in outputs (M, T, C, h, w)."""
        members = len(outputs)
        _average(self.mean.reshape(members, -1), outputs.reshape(members, -1), outputs.dtype.type(self.share))
        self.share = self.later


def Fidelity(problem: Problem, config: Config) -> _InTorch | _MeanSquares:  # noqa: N802 - makes one, as a class would
    """The loss of a problem; see `ddstudy.solvers.fidelity.Fidelity`."""
    return _MeanSquares(problem, config) if config.is_plain_mse else _InTorch(problem, config)


class _InTorch:
    """Any loss, by the calls of torch that it is made of."""

    def __init__(self, problem: Problem, config: Config) -> None:
        import torch

        from ddstudy.solvers import fidelity

        self._tensor, self._fidelity = torch.from_numpy, fidelity.Fidelity(problem, config, "cpu")

    def gradient(self, outputs: NDArray[Any], losses: NDArray[np.float64], grad_outputs: NDArray[Any]) -> None:
        """See `ddstudy.solvers.fidelity.Fidelity.gradient`."""
        self._fidelity.gradient(*map(self._tensor, (outputs, losses, grad_outputs)))

    def summary(self, outputs: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """See `ddstudy.solvers.fidelity.Fidelity.summary`."""
        return self._fidelity.summary(self._tensor(outputs))


class _MeanSquares:
    """Mean squared error with an operator, of one member at a time.

    Of torch there are the operator's own calls only: a small iteration takes no longer than some dozens of calls.
    """

    def __init__(self, problem: Problem, config: Config) -> None:
        import torch

        from ddstudy.solvers import fidelity

        assert problem.operator is not None
        self._operator, self._pixels, self._shape = problem.operator, problem.pixels, problem.shape
        self._samples = problem.measurement.ravel()
        self._samples_shape, self._count = (1, *problem.measurement.shape), problem.measured
        self._tensor, self._in_torch = torch.from_numpy, fidelity.Fidelity(problem, config, "cpu")

    def gradient(self, outputs: NDArray[Any], losses: NDArray[np.float64], grad_outputs: NDArray[Any]) -> None:
        """See `ddstudy.solvers.fidelity.Fidelity.gradient`; of one member."""
        if self._pixels is None:
            images = outputs[:, 0]
        else:
            assert self._shape is not None
            images = outputs.reshape(-1)[self._pixels].reshape(1, *self._shape)
        predicted = self._operator.forward(self._tensor(images)).numpy()
        residuals = np.empty(self._samples_shape, np.float32)
        squares = _residuals(predicted.reshape(-1), self._samples, 2 / self._count, residuals.reshape(-1))
        losses[0] = squares / self._count
        grad_images = self._operator.adjoint(self._tensor(residuals)).numpy()
        if self._pixels is None:
            grad_outputs[:, 0] = grad_images
        else:
            grad_outputs.reshape(-1)[self._pixels] = grad_images.reshape(-1)

    def summary(self, outputs: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """See `ddstudy.solvers.fidelity.Fidelity.summary`."""
        return self._in_torch.summary(self._tensor(outputs))
