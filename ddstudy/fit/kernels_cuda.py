"""The kernels of the fused step on NVIDIA GPUs: Triton for what goes over pixels, cuBLAS for products.

All members are computed together, and a whole iteration is captured in a CUDA graph, since at small k its forty
launches would cost more than their work. So nothing here allocates, waits or looks at a number on the way.

A row of pixels is split into blocks; a program takes a run of blocks and some channels, keeps sums per pixel of the
block in registers, and writes them once, into a row of partial sums of its own. Whoever needs the whole sum adds
these rows in their order and in double precision. There are no atomic additions: a fit repeats exactly, run after
run. How the work is split depends on the shapes of one member, not on the members beside it.

Transposed upsampling is a gather: a low-resolution pixel sums over the four cells between it and its neighbours. A
block's convolution gets its constant b C after upsampling, which leaves a constant as it is.

Arrays are contiguous, (members, tiles, rows, columns, channels), with channels padded by zeros to `padded(k)`; a
*unit* is one tile of one member. On a machine without GPU the same source runs in Triton's interpreter, for tests:
`Kernels("cpu")` with TRITON_INTERPRET=1 in the environment before triton is imported.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from numpy.typing import NDArray

from ddstudy.decoder import EPS
from ddstudy.fit import AVERAGED, FLAT

if TYPE_CHECKING:
    from ddstudy.fit.fused import Axis, Step

_EPS, _FLAT = tl.constexpr(EPS), tl.constexpr(FLAT)
# numbers of an array that one program has in hand: they, their corners and their sums have to fit its registers
_BLEND, _GATHER, _TABLE = 2048, 1024, 4096
_SPLIT = 32  # pixels, at least, of one product R^T dZ
_ADAM = 1024
# sizes change from block to block: Triton would compile a kernel again for those that 16 divides
_SIZES = ["h", "w", "H", "W", "per", "parts", "most", "chunks", "tiles", "outs", "k", "at", "norm", "parameters",
          "pixels", "size"]  # fmt: skip


@triton.jit
def _total(rows, count, stride, columns, inside, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sums over `count` rows of partial sums, in their order: float64 (COLUMNS,)."""
    total = tl.zeros((COLUMNS,), tl.float64)
    for first in range(0, count, ROWS):
        row = first + tl.arange(0, ROWS)
        here = (row < count)[:, None] & inside[None, :]
        some = tl.load(rows + row[:, None] * stride + columns[None, :], here, other=0.0)
        total += tl.sum(some.to(tl.float64), axis=0)
    return total


@triton.jit(do_not_specialize=_SIZES)
def _fold(weights, partial, affine, folded, constants, parts, pixels, parameters, norm, at, outs, k, tiles,
          K: tl.constexpr, OUTS: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
          ROWS: tl.constexpr, INPUT: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip
    """A normalisation's statistics, from the partial sums before it, folded into the convolution after it.

    Programs (outputs, unit): diag(a) C as (outputs, inputs), and b C. Each makes the statistics, the first keeps them.
    """
    block, unit = tl.program_id(0), tl.program_id(1).to(tl.int64)
    c = tl.arange(0, CHANNELS)
    weights += unit // tiles * parameters
    affine += unit * 4 * K
    if INPUT:
        scale = tl.load(affine + 2 * K + c, c < K, other=0.0)
        shift = tl.load(affine + 3 * K + c, c < K, other=0.0)
    else:
        partial += unit * parts * 3 * K
        offset = _total(partial, parts, 3 * K, c, c < K, ROWS, CHANNELS) / pixels
        variance = _total(partial + K, parts, 3 * K, c, c < K, ROWS, CHANNELS) / pixels - offset * offset
        mean = tl.load(partial + 2 * K + c, c < K, other=0.0).to(tl.float64) + offset
        flat = variance <= mean * mean * _FLAT  # which NaN is not
        inverse = tl.where(flat, 0.0, 1.0 / tl.sqrt(tl.where(flat, 0.0, variance) + _EPS))
        scale = tl.load(weights + norm + c, c < k, other=0.0) * inverse
        shift = tl.load(weights + norm + k + c, c < k, other=0.0) - scale * mean
        if block == 0:
            tl.store(affine + c, mean, c < K)
            tl.store(affine + K + c, inverse, c < K)
            tl.store(affine + 2 * K + c, scale, c < K)
            tl.store(affine + 3 * K + c, shift, c < K)
    out = block * BLOCK + tl.arange(0, BLOCK)
    here = (out < outs)[:, None] & (c < k)[None, :]
    weight = tl.load(weights + at + out[:, None] * k + c[None, :], here, other=0.0).to(tl.float64)
    inside = (out < OUTS)[:, None] & (c < K)[None, :]
    tl.store(folded + (unit * OUTS + out[:, None]) * K + c[None, :], weight * scale[None, :], inside)
    tl.store(constants + unit * OUTS + out, tl.sum(weight * shift[None, :], axis=1), out < OUTS)


@triton.jit
def _rectified(z, y, x, c, y_lower, y_fraction, x_lower, x_fraction, constant, h, w, W, K: tl.constexpr):  # type: ignore[no-untyped-def]
    """R of some pixels x of the row y of a unit, zero past the row's end."""
    here = (x < W)[:, None] & (c < K)[None, :]
    top = tl.load(y_lower + y)
    bottom = tl.minimum(top + 1, h - 1)
    left = tl.load(x_lower + x, x < W, other=0)
    right = tl.minimum(left + 1, w - 1)
    down = tl.load(y_fraction + y)
    along = tl.load(x_fraction + x, x < W, other=0.0)
    to_left, to_right = left[:, None] * K + c[None, :], right[:, None] * K + c[None, :]
    top_left = tl.load(z + top * w * K + to_left, here, other=0.0)
    top_right = tl.load(z + top * w * K + to_right, here, other=0.0)
    bottom_left = tl.load(z + bottom * w * K + to_left, here, other=0.0)
    bottom_right = tl.load(z + bottom * w * K + to_right, here, other=0.0)
    start = top_left + down * (bottom_left - top_left)
    end = top_right + down * (bottom_right - top_right)
    value = start + along[:, None] * (end - start) + constant[None, :]
    return tl.where(here, tl.where(value < 0, 0.0, value), 0.0)  # NaN is not below zero, and stays


@triton.jit(do_not_specialize=_SIZES)
def _blend(z, constants, r, partial, y_lower, y_fraction, x_lower, x_fraction, h, w, H, W, per, K: tl.constexpr,
           CHANNELS: tl.constexpr, PIXELS: tl.constexpr, KEEP: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip
    """Upsampling and ReLU. Programs (part, unit, channels); partial sums of R - R0 and (R - R0)^2, and R0, the first R.

    Without it the variance of a channel that varies little would be a difference of two large numbers.
    """
    part, unit = tl.program_id(0), tl.program_id(1).to(tl.int64)
    c = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    constant = tl.load(constants + unit * K + c, c < K, other=0.0)
    z += unit * h * w * K
    r += unit * H * W * K
    corner = tl.load(z + c, c < K, other=0.0) + constant
    origin = tl.where(corner < 0, 0.0, corner)
    first = tl.zeros((PIXELS, CHANNELS), z.dtype.element_ty)
    second = tl.zeros((PIXELS, CHANNELS), z.dtype.element_ty)
    blocks = tl.cdiv(W, PIXELS)
    for item in range(part * per, tl.minimum((part + 1) * per, H * blocks)):
        y = item // blocks
        x = item % blocks * PIXELS + tl.arange(0, PIXELS)
        value = _rectified(z, y, x, c, y_lower, y_fraction, x_lower, x_fraction, constant, h, w, W, K)
        here = (x < W)[:, None] & (c < K)[None, :]
        if KEEP:
            tl.store(r + (y * W + x[:, None]) * K + c[None, :], value, here)
        value = tl.where(here, value - origin[None, :], 0.0)
        first += value
        second += value * value
    partial += (unit * tl.num_programs(0) + part) * 3 * K
    tl.store(partial + c, tl.sum(first, axis=0), c < K)
    tl.store(partial + K + c, tl.sum(second, axis=0), c < K)
    tl.store(partial + 2 * K + c, origin, c < K)


@triton.jit(do_not_specialize=_SIZES)
def _head(z, constants, head, shifts, image, slopes, outputs, partial, sums, y_lower, y_fraction, x_lower, x_fraction,
          h, w, H, W, per, tiles, K: tl.constexpr, C: tl.constexpr, COLOURS: tl.constexpr, CHANNELS: tl.constexpr,
          PIXELS: tl.constexpr, SLOPES: tl.constexpr, ERRORS: tl.constexpr, SHARED: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip
    """Outputs, and with `SLOPES` dL/d(pre-sigmoid) g. Programs (part, unit); partial sums of g R, g and the errors.

    `image` is the target with `ERRORS` and otherwise dL/d output; with `SHARED`, members have it in common.
    """
    part, unit = tl.program_id(0), tl.program_id(1).to(tl.int64)
    c, o = tl.arange(0, CHANNELS), tl.arange(0, COLOURS)
    constant = tl.load(constants + unit * K + c, c < K, other=0.0)
    weight = tl.load(head + (unit * C + o[:, None]) * K + c[None, :], (o < C)[:, None] & (c < K)[None, :], other=0.0)
    shift = tl.load(shifts + unit * C + o, o < C, other=0.0)
    z += unit * h * w * K
    outputs += unit * C * H * W
    slopes += unit * C * H * W
    if SHARED:
        image += unit % tiles * C * H * W
    else:
        image += unit * C * H * W
    along = tl.zeros((COLOURS, PIXELS, CHANNELS), z.dtype.element_ty)
    whole = tl.zeros((COLOURS, PIXELS), z.dtype.element_ty)
    errors = tl.zeros((COLOURS, PIXELS), z.dtype.element_ty)
    twice = tl.full((), 2, z.dtype.element_ty) / (tiles * C * H * W)  # the slope of a mean of squares
    blocks = tl.cdiv(W, PIXELS)
    for item in range(part * per, tl.minimum((part + 1) * per, H * blocks)):
        y = item // blocks
        x = item % blocks * PIXELS + tl.arange(0, PIXELS)
        value = _rectified(z, y, x, c, y_lower, y_fraction, x_lower, x_fraction, constant, h, w, W, K)
        output = 1.0 / (1.0 + tl.exp(-(tl.sum(value[None, :, :] * weight[:, None, :], axis=2) + shift[:, None])))
        place = (o[:, None] * H + y) * W + x[None, :]
        here = (o < C)[:, None] & (x < W)[None, :]
        tl.store(outputs + place, output, here)
        if SLOPES:
            given = tl.load(image + place, here, other=0.0)
            if ERRORS:
                error = tl.where(here, output - given, 0.0)
                errors += error * error
                given = twice * error
            slope = tl.where(here, given * output * (1.0 - output), 0.0)
            tl.store(slopes + place, slope, here)
            whole += slope
            along += slope[:, :, None] * value[None, :, :]
    if SLOPES:
        row = unit * tl.num_programs(0) + part
        place = (row * C + o[:, None]) * K + c[None, :]
        tl.store(partial + place, tl.sum(along, axis=1), (o < C)[:, None] & (c < K)[None, :])
        sums += row * 2 * C
        tl.store(sums + o, tl.sum(whole, axis=1), o < C)
        tl.store(sums + C + o, tl.sum(errors, axis=1), o < C)


@triton.jit
def _normalised(whole, along, affine, pulls, c, inside, pixels, K: tl.constexpr):  # type: ignore[no-untyped-def]
    """From sum dY and sum dY R of a unit: the gradient by the scale, and dR = a dY + alpha + beta R's two constants."""
    mean = tl.load(affine + c, inside, other=0.0)
    inverse = tl.load(affine + K + c, inside, other=0.0)
    scale = tl.load(affine + 2 * K + c, inside, other=0.0)
    slope = (along - mean * whole) * inverse
    beta = -scale * inverse * slope / pixels
    tl.store(pulls + c, -scale * whole / pixels - beta * mean, inside)
    tl.store(pulls + K + c, beta, inside)
    return slope


@triton.jit(do_not_specialize=_SIZES)
def _head_gradient(weights, gradients, affine, partial, sums, losses, pulls, parts, parameters, norm, at, k, pixels,
                   tiles, K: tl.constexpr, C: tl.constexpr, COLOURS: tl.constexpr, CHANNELS: tl.constexpr,
                   ROWS: tl.constexpr, ERRORS: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip
    """Gradients of the head and of the normalisation before it, and the loss. Programs (channels, member)."""
    block, member = tl.program_id(0), tl.program_id(1).to(tl.int64)
    c, o = block * CHANNELS + tl.arange(0, CHANNELS), tl.arange(0, COLOURS)
    weights += member * parameters
    gradients += member * parameters
    here = (o < C)[:, None] & (c < k)[None, :]
    place = at + o[:, None] * k + c[None, :]
    weight = tl.load(weights + place, here, other=0.0).to(tl.float64)
    of_weight = tl.zeros((COLOURS, CHANNELS), tl.float64)
    of_scale = tl.zeros((CHANNELS,), tl.float64)
    of_shift = tl.zeros((CHANNELS,), tl.float64)
    errors = tl.zeros((COLOURS,), tl.float64)
    for tile in range(0, tiles):
        unit = member * tiles + tile
        along = tl.zeros((COLOURS, CHANNELS), tl.float64)
        for first in range(0, parts, ROWS):
            row = first + tl.arange(0, ROWS)
            there = ((unit * parts + row[:, None, None]) * C + o[None, :, None]) * K + c[None, None, :]
            some = tl.load(partial + there, (row < parts)[:, None, None] & here[None, :, :], other=0.0)
            along += tl.sum(some.to(tl.float64), axis=0)
        whole = _total(sums + unit * parts * 2 * C, parts, 2 * C, o, o < C, ROWS, COLOURS)
        errors += _total(sums + unit * parts * 2 * C + C, parts, 2 * C, o, o < C, ROWS, COLOURS)
        own = affine + unit * 4 * K
        scale = tl.load(own + 2 * K + c, c < K, other=0.0)
        shift = tl.load(own + 3 * K + c, c < K, other=0.0)
        of_weight += scale[None, :] * along + shift[None, :] * whole[:, None]
        slope = tl.sum(weight * whole[:, None], axis=0)
        of_shift += slope
        of_scale += _normalised(slope, tl.sum(weight * along, axis=0), own, pulls + unit * 2 * K, c, c < K, pixels, K)
    tl.store(gradients + place, of_weight, here)
    tl.store(gradients + norm + c, of_scale, c < k)
    tl.store(gradients + norm + k + c, of_shift, c < k)
    if ERRORS and block == 0:
        tl.store(losses + member, tl.sum(errors, axis=0) / (pixels.to(tl.float64) * tiles * C))


@triton.jit(do_not_specialize=_SIZES)
def _gather(z, constants, head, slopes, r, dy, pulls, d, partial, y_start, y_fraction, x_start, x_fraction,
            h, w, H, W, per, most, K: tl.constexpr, C: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
            LAST: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip
    """Gradients past ReLU and upsampling. Programs (part, unit, channels); partial sums of the result.

    In the `LAST` block, R is made again from its corners and dL/dY is `slopes` times `head`; in the others they are
    `r` and `dy`, which has the normalisation's scale already.
    """
    part, unit = tl.program_id(0), tl.program_id(1).to(tl.int64)
    c = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    own, to_c = (c < K)[None, :], c[None, :]
    alpha = tl.load(pulls + unit * 2 * K + c, c < K, other=0.0)[None, :]
    beta = tl.load(pulls + unit * 2 * K + K + c, c < K, other=0.0)[None, :]
    d += unit * h * w * K
    if LAST:
        z += unit * h * w * K
        slopes += unit * C * H * W
        head += unit * C * K
        constant = tl.load(constants + unit * K + c, c < K, other=0.0)[None, :]
    else:
        r += unit * H * W * K
        dy += unit * H * W * K
    total = tl.zeros((PIXELS, CHANNELS), d.dtype.element_ty)
    blocks = tl.cdiv(w, PIXELS)
    for item in range(part * per, tl.minimum((part + 1) * per, h * blocks)):
        i = item // blocks
        j = item % blocks * PIXELS + tl.arange(0, PIXELS)
        here = (j < w)[:, None] & own
        before, after = tl.maximum(j - 1, 0), tl.minimum(j + 1, w - 1)
        # the cell on the left begins at `left`, the cell on the right at `middle`
        left = tl.load(x_start + before, j < w, other=0)
        middle = tl.load(x_start + j, j < w, other=0)
        right = tl.load(x_start + j + 1, j < w, other=0)
        result = tl.zeros((PIXELS, CHANNELS), d.dtype.element_ty)
        for below in tl.static_range(2):
            top, bottom = tl.maximum(i - 1 + below, 0), tl.minimum(i + below, h - 1)
            if LAST:
                top_left = tl.load(z + (top * w + before[:, None]) * K + to_c, here, other=0.0)
                top_middle = tl.load(z + (top * w + j[:, None]) * K + to_c, here, other=0.0)
                top_right = tl.load(z + (top * w + after[:, None]) * K + to_c, here, other=0.0)
                fall_left = tl.load(z + (bottom * w + before[:, None]) * K + to_c, here, other=0.0) - top_left
                fall_middle = tl.load(z + (bottom * w + j[:, None]) * K + to_c, here, other=0.0) - top_middle
                fall_right = tl.load(z + (bottom * w + after[:, None]) * K + to_c, here, other=0.0) - top_right
            for y in range(tl.load(y_start + top), tl.load(y_start + i + below)):
                down = tl.load(y_fraction + y)
                if LAST:
                    at_left = top_left + down * fall_left
                    at_middle = top_middle + down * fall_middle
                    at_right = top_right + down * fall_right
                for n in range(0, most):
                    for beside in tl.static_range(2):
                        x = (middle if beside else left) + n
                        inside = x < (right if beside else middle)
                        along = tl.load(x_fraction + x, inside, other=0.0)
                        share = (1.0 - down if below else down) * (1.0 - along if beside else along)
                        if LAST:
                            start, end = (at_middle, at_right) if beside else (at_left, at_middle)
                            value = start + along[:, None] * (end - start) + constant
                            pull = alpha + beta * value
                            for o in tl.static_range(C):
                                weight = tl.load(head + o * K + c, c < K, other=0.0)
                                slope = tl.load(slopes + (o * H + y) * W + x, inside, other=0.0)
                                pull += slope[:, None] * weight[None, :]
                        else:
                            place = (y * W + x[:, None]) * K + to_c
                            there = inside[:, None] & own
                            value = tl.load(r + place, there, other=0.0)
                            pull = alpha + beta * value + tl.load(dy + place, there, other=0.0)
                        result += tl.where(inside[:, None] & (value > 0), pull * share[:, None], 0.0)
        tl.store(d + (i * w + j[:, None]) * K + to_c, result, here)
        total += result
    tl.store(partial + (unit * tl.num_programs(0) + part) * K + c, tl.sum(total, axis=0), c < K)


@triton.jit(do_not_specialize=_SIZES)
def _block_gradient(weights, gradients, affine, correlation, partial, pulls, chunks, parts, parameters, norm, at, k,
                    pixels, tiles, K: tl.constexpr, OUTS: tl.constexpr, CHANNELS: tl.constexpr, CHUNKS: tl.constexpr,
                    ROWS: tl.constexpr, INPUT: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip
    """Gradients of a convolution and of the normalisation before it. Programs (input channels, member)."""
    member = tl.program_id(1).to(tl.int64)
    c, out = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS), tl.arange(0, OUTS)
    weights += member * parameters
    gradients += member * parameters
    here = (c < k)[:, None] & (out < k)[None, :]
    place = at + out[None, :] * k + c[:, None]
    weight = tl.load(weights + place, here, other=0.0).to(tl.float64)
    of_weight = tl.zeros((CHANNELS, OUTS), tl.float64)
    of_scale = tl.zeros((CHANNELS,), tl.float64)
    of_shift = tl.zeros((CHANNELS,), tl.float64)
    for tile in range(0, tiles):
        unit = member * tiles + tile
        along = tl.zeros((CHANNELS, OUTS), tl.float64)
        for first in range(0, chunks, CHUNKS):
            chunk = first + tl.arange(0, CHUNKS)
            there = ((unit * chunks + chunk[:, None, None]) * K + c[None, :, None]) * K + out[None, None, :]
            some = tl.load(correlation + there, (chunk < chunks)[:, None, None] & here[None, :, :], other=0.0)
            along += tl.sum(some.to(tl.float64), axis=0)
        whole = _total(partial + unit * parts * K, parts, K, out, out < K, ROWS, OUTS)
        own = affine + unit * 4 * K
        scale = tl.load(own + 2 * K + c, c < K, other=0.0)
        shift = tl.load(own + 3 * K + c, c < K, other=0.0)
        of_weight += scale[:, None] * along + shift[:, None] * whole[None, :]
        if not INPUT:
            slope = tl.sum(weight * whole[None, :], axis=1)
            across = tl.sum(weight * along, axis=1)
            of_shift += slope
            of_scale += _normalised(slope, across, own, pulls + unit * 2 * K, c, c < K, pixels, K)
    tl.store(gradients + place, of_weight, here)
    if not INPUT:
        tl.store(gradients + norm + c, of_scale, c < k)
        tl.store(gradients + norm + k + c, of_shift, c < k)


@triton.jit(do_not_specialize=_SIZES)
def _adam(weights, gradients, first, second, rate, powers, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """One update of all members' weights; `powers` are beta^t."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    kind = weights.dtype.element_ty
    step = (tl.load(rate) / (1.0 - tl.load(powers))).to(kind)
    correction = (1.0 / tl.sqrt(1.0 - tl.load(powers + 1))).to(kind)
    slope = tl.load(gradients + i, i < size, other=0.0)
    mean = tl.load(first + i, i < size, other=0.0)
    square = tl.load(second + i, i < size, other=0.0)
    weight = tl.load(weights + i, i < size, other=0.0)
    mean += 0.1 * (slope - mean)
    square += 0.001 * (slope * slope - square)
    tl.store(first + i, mean, i < size)
    tl.store(second + i, square, i < size)
    tl.store(weights + i, weight - step * mean / (tl.sqrt(square) * correction + 1e-8), i < size)


def _power(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _block(size: int, smallest: int, largest: int) -> int:
    """The power of two between two that splits `size` with the least left over; the larger of equals."""
    largest = max(1, min(largest, _power(size)))
    smallest = min(smallest, largest)
    choices = [1 << i for i in range(smallest.bit_length() - 1, largest.bit_length())]
    return min(reversed(choices), key=lambda block: -(-size // block) * block)


class _Split(NamedTuple):
    """How an image is shared out: `parts` programs per unit take `per` blocks each of (pixels, channels) numbers."""

    channels: int
    pixels: int
    per: int
    parts: int


def _split(height: int, width: int, channels: int, numbers: int, programs: int) -> _Split:
    pixels = _block(width, 32, numbers // channels)
    items = height * -(-width // pixels)
    per = -(-items // max(1, min(items, programs)))
    return _Split(channels, pixels, per, -(-items // per))


class _Tables(NamedTuple):
    """An `Axis` on the device, with the first input of every output."""

    start: torch.Tensor
    lower: torch.Tensor
    fraction: torch.Tensor
    most: int  # outputs of an input


class _Adam:
    """Adam (Kingma and Ba, 2015) with torch's defaults, in place, for some members' weights (M, parameters)."""

    def __init__(self, weights: torch.Tensor, learning_rate: float) -> None:
        self.weights = weights
        self.first, self.second = torch.zeros_like(weights), torch.zeros_like(weights)
        # on the device, since a graph replays the same arguments
        self.betas = torch.tensor([0.9, 0.999], dtype=torch.float64, device=weights.device)
        self.powers = torch.ones_like(self.betas)
        self.rate = torch.tensor([learning_rate], dtype=torch.float64, device=weights.device)

    def update(self, gradients: torch.Tensor) -> None:
        """One step."""
        size = self.weights.numel()
        with _on(self.weights.device):
            self.powers.mul_(self.betas)
            _adam[(triton.cdiv(size, _ADAM),)](
                self.weights, gradients, self.first, self.second, self.rate, self.powers, size, BLOCK=_ADAM
            )


class _Kept:
    """The weights (M, parameters) that count, by `Problem.keep`; a member that diverged shows it."""

    def __init__(self, weights: torch.Tensor, keep: str) -> None:
        self.keep = keep
        self.weights = weights if keep == "last" else weights.clone()
        self.least = torch.full((len(weights), 1), torch.inf, dtype=torch.float64, device=weights.device)
        self.seen = torch.zeros((), dtype=torch.float64, device=weights.device)

    def see(self, losses: torch.Tensor, weights: torch.Tensor) -> None:
        """Weights and their losses, before they change."""
        if self.keep == "best":
            better = ~(losses[:, None] >= self.least)  # NaN is kept
            self.least.copy_(torch.where(better, losses[:, None], self.least))
            self.weights.copy_(torch.where(better, weights, self.weights))
        elif self.keep == "average":
            self.seen += 1
            self.weights.lerp_(weights, (1 / self.seen.clamp(max=AVERAGED)).to(weights.dtype))


class _Scratch:
    """What the kernels of a step need beside its arrays."""

    def __init__(self, step: Step) -> None:
        shape, kernels = step.shape, step.kernels
        M, T, K, C, l = step.outputs.shape[0], step.tiles.shape[1], step.width, shape.channels, shape.blocks
        units, dtype, sizes = M * T, step.dtype, shape.sizes
        self.units, self.tiles = units, T
        self.axes = [tuple(self._tables(axis, kernels) for axis in pair) for pair in step.axes]
        self.channels, self.colours = _power(K), _power(C)
        some = _block(K, 16, 64)
        programs = max(1, kernels.programs // (T * -(-K // some)))
        self.blends = [_split(H, W, some, _BLEND, programs) for H, W in sizes[1:]]
        self.gathers = [_split(h, w, some, _GATHER, programs) for h, w in sizes[:-1]]
        self.head = _split(*sizes[-1], self.channels, _BLEND // self.colours, max(1, kernels.programs // T))
        products = kernels.products / (T * max(1, K / 64) ** 2)
        self.chunks = [_chunks(h * w, products) for h, w in sizes[:-1]]
        # of each convolution, the head being the last: diag(a) C as (outputs, inputs), and b C
        self.folded = [kernels.zeros((units, K, K), dtype) for _ in range(l)] + [step.head]
        self.constants = [kernels.zeros((units, outs), dtype) for outs in [K] * l + [C]]
        self.pulls = kernels.zeros((units, 2, K), dtype)
        parts = max([3 * split.parts for split in self.blends] + [split.parts for split in self.gathers])
        self.partial = kernels.zeros((units * parts * K,), dtype)
        self.head_partial = kernels.zeros((units, self.head.parts, C, K), dtype)
        self.head_sums = kernels.zeros((units, self.head.parts, 2, C), dtype)
        self.correlation = kernels.zeros((units * max(self.chunks) * K * K,), dtype)
        self.dy = kernels.zeros((units * max([0] + [H * W for H, W in sizes[1:-1]]) * K,), dtype)
        self.rounded: list[torch.Tensor] = []
        if step.precision == "bfloat16":
            pixels = max(h * w for h, w in sizes[:-1])
            self.rounded = [kernels.zeros((units * max(pixels, K) * K,), "bfloat16") for _ in range(2)]

    @staticmethod
    def _tables(axis: Axis, kernels: Kernels) -> _Tables:
        outputs = np.diff(axis.start)
        start = kernels.array(axis.start, "int32")
        lower = kernels.array(np.repeat(np.arange(len(outputs)), outputs), "int32")
        return _Tables(start, lower, kernels.array(axis.fraction, axis.fraction.dtype.name), int(outputs.max()))

    def upsampling(self, i: int) -> tuple[torch.Tensor, ...]:
        """What block i's upsampling reads at an output."""
        rows, columns = self.axes[i]
        return rows.lower, rows.fraction, columns.lower, columns.fraction

    def multiply(self, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, turned: str) -> None:
        """A batch of products; `turned` says which factor, "a" or "b" or neither, enters as its transpose.

        Float32 products are true ones unless the program has allowed torch to use TF32.
        """
        if self.rounded:
            a, b = (
                room[: factor.numel()].view(factor.shape).copy_(factor)
                for room, factor in zip(self.rounded, (a, b), strict=True)
            )
        a = a.transpose(1, 2) if turned == "a" else a
        b = b.transpose(1, 2) if turned == "b" else b
        if not self.rounded:
            torch.bmm(a, b, out=out)
        elif out.is_cuda:
            torch.bmm(a, b, out_dtype=out.dtype, out=out)
        else:  # torch's processor kernels round the results, too
            torch.bmm(a.to(out.dtype), b.to(out.dtype), out=out)


def _chunks(pixels: int, wanted: float) -> int:
    """The divisor of a number of pixels that is nearest to the wanted number of products over some pixels each.

    One product over all pixels would leave a GPU idle but for a few cores; a divisor keeps the chunks equal.
    """
    wanted = min(max(wanted, 1), max(pixels / _SPLIT, 1))
    divisors = [n for n in range(1, pixels + 1) if pixels % n == 0]
    return min(divisors, key=lambda n: abs(math.log(n / wanted)))


_locks: defaultdict[torch.device, threading.RLock] = defaultdict(threading.RLock)


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Launches go to the thread's current device, wherever the arrays are."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


class Kernels:
    """The kernels on one device: what `kernels_cpu` offers as a module.

    Args:
        device: `cuda` or `cuda:1`; `cpu` in Triton's interpreter.

    Raises:
        RuntimeError: for `cpu` when Triton does not interpret.
    """

    OUTPUT, MSE, GIVEN = 0, 1, 2  # what the head does
    TOGETHER = True  # all members in one step
    IN_PLACE = False  # the last block's gradients have an array of their own
    Scratch = _Scratch
    Adam = _Adam
    Kept = _Kept

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        if self.device == torch.device("cuda"):  # the caller's current one, for other threads too
            self.device = torch.device("cuda", torch.cuda.current_device())
        if self.device.type == "cpu" and isinstance(_adam, triton.JITFunction):
            raise RuntimeError("Triton computes on a processor only with TRITON_INTERPRET=1 set before it is imported")
        # per member, and enough for the largest GPUs at a few members; the interpreter takes its time for each
        self.programs, self.products = (256, 64) if self.device.type == "cuda" else (3, 3)

    def padded(self, k: int) -> int:
        """Channels that are computed for k: the next multiple of 8, which keeps loads of whole sectors."""
        return -(-k // 8) * 8

    def plane(self, height: int, width: int, channels: int) -> tuple[int, ...]:
        """The shape of one tile's feature maps."""
        return height, width, channels

    def arranged(self, values: NDArray[Any]) -> NDArray[Any]:
        """Feature maps (..., channels, rows, columns) as `plane` orders them."""
        return np.moveaxis(values, -3, -1)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
        """An array on the device."""
        return torch.zeros(shape, dtype=getattr(torch, dtype), device=self.device)

    def array(self, values: NDArray[Any], dtype: str) -> torch.Tensor:
        """The same numbers where the kernels compute."""
        return torch.tensor(np.ascontiguousarray(values), dtype=getattr(torch, dtype), device=self.device)

    def numbers(self, values: torch.Tensor) -> NDArray[Any]:
        """A copy of the kernels' numbers for the rest of the program."""
        made: NDArray[Any] = values.detach().cpu().numpy().copy()
        return made

    def rows_kept(self, height: int, last: bool) -> int:
        """Rows of a block's products that must exist at a time: all, as one product makes them."""
        return height

    def begin(self) -> None:
        """What a thread that is going to compute does first: it gets a stream of its own, so that fits overlap."""
        if self.device.type == "cuda":
            torch.cuda.set_stream(torch.cuda.Stream(self.device))

    def alone(self) -> contextlib.AbstractContextManager[Any]:
        """While something is done that the device can do for one thread at a time only: a capture, or what breaks one.

        A capture is broken by whatever waits for the whole device, as the allocator may when memory is short. So who
        allocates or captures has the device's lock, and nobody waits but for his own stream. Launches need no lock.
        """
        return _locks[self.device] if self.device.type == "cuda" else contextlib.nullcontext()

    def summary(self, outputs: torch.Tensor, tiles: torch.Tensor, pixels: torch.Tensor | None) -> tuple[Any, Any]:
        """Losses (M,) and ranges (M, T) of outputs, as `ddstudy.fit.summary` has them.

        Of one fit's members at a time: how sums are split depends on the shape, and must not on the members beside.
        """
        seen, truth = outputs.flatten(1), tiles.flatten()
        if pixels is not None:
            seen, truth = seen[:, pixels], truth[pixels]
        losses = (seen.double() - truth).square().mean(dim=1)
        return self.numbers(losses), self.numbers(outputs.amax((2, 3, 4)) - outputs.amin((2, 3, 4)))

    def wait(self) -> None:
        """Returns when everything that this thread asked for so far is computed."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def captured(self, advance: Callable[[Step], None], step: Step) -> Callable[[Step], None]:
        """A sequence of kernels that will be run many times on the same arrays, as a CUDA graph.

        In a thread that began with `begin` and ran these kernels before, for the same shapes: compiling, loading code
        and cuBLAS' workspace of a stream are nothing that a graph can hold. The graph is run by the same thread.
        """
        if self.device.type != "cuda":
            return advance
        graph = self._graph(advance, step)

        def replay(_: Step) -> None:
            graph.replay()

        return replay

    def _graph(self, advance: Callable[[Step], None], step: Step) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with self.alone(), _on(self.device):
            # not `torch.cuda.graph`, which waits for the whole device and empties the allocator's cache.
            # thread_local: what other threads do with the device does not concern this graph
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                advance(step)
            except BaseException:
                with contextlib.suppress(RuntimeError):  # which would hide why it is no graph
                    graph.capture_end()
                raise
            graph.capture_end()
        return graph

    def forward(self, step: Step, i: int, inputs: torch.Tensor, weights: torch.Tensor) -> None:
        """Block i: products, upsampling, ReLU, and partial sums for the normalisation that follows."""
        own: _Scratch = step.scratch
        (h, w), (H, W), K = step.shape.sizes[i], step.shape.sizes[i + 1], step.width
        last = i == step.shape.blocks - 1
        z, split = step.z[i], own.blends[i]
        with _on(self.device):
            self._fold(step, i, weights)
            own.multiply(_pixels(step.r[i - 1] if i else inputs), own.folded[i], _pixels(z), turned="b")
            _blend[(split.parts, own.units, triton.cdiv(K, split.channels))](
                z, own.constants[i], z if last else step.r[i], own.partial, *own.upsampling(i), h, w, H, W, split.per,
                K=K, CHANNELS=split.channels, PIXELS=split.pixels, KEEP=not last,
            )  # fmt: skip

    def head(self, step: Step, weights: torch.Tensor, gradients: torch.Tensor, image: torch.Tensor, mode: int) -> None:
        """Convolution to the image and sigmoid.

        `OUTPUT`: the outputs alone. `MSE`: `image` is the target; losses, and the gradient up to the last block.
        `GIVEN`: `image` is the loss' gradient with respect to the outputs.
        """
        own: _Scratch = step.scratch
        shape, K, split, i = step.shape, step.width, own.head, step.shape.blocks
        C, k, ((h, w), (H, W)) = shape.channels, shape.k, shape.sizes[-2:]
        with _on(self.device):
            if mode != self.GIVEN:
                self._fold(step, i, weights)  # before `GIVEN`, `OUTPUT` did it
            _head[(split.parts, own.units)](
                step.z[-1], own.constants[i - 1], step.head, own.constants[i], image.contiguous(), step.slopes,
                step.outputs, own.head_partial, own.head_sums, *own.upsampling(i - 1), h, w, H, W, split.per, own.tiles,
                K=K, C=C, COLOURS=own.colours, CHANNELS=own.channels, PIXELS=split.pixels, SLOPES=mode != self.OUTPUT,
                ERRORS=mode == self.MSE, SHARED=len(image) < len(step.losses),
            )  # fmt: skip
            if mode == self.OUTPUT:
                return
            channels = min(16, own.channels)
            _head_gradient[(triton.cdiv(K, channels), len(step.losses))](
                weights, gradients, step.affine[i], own.head_partial, own.head_sums, step.losses, own.pulls,
                split.parts, weights.shape[1], step.at[i] - 2 * k, step.at[i], k, H * W, own.tiles, K=K, C=C,
                COLOURS=own.colours, CHANNELS=channels, ROWS=_TABLE // (own.colours * channels),
                ERRORS=mode == self.MSE,
            )  # fmt: skip

    def backward(
        self, step: Step, i: int, inputs: torch.Tensor, weights: torch.Tensor, gradients: torch.Tensor
    ) -> None:
        """Block i: gradients of its convolution and of the normalisation before it, and what reaches that."""
        own: _Scratch = step.scratch
        shape, K, split, k, chunks = step.shape, step.width, own.gathers[i], step.shape.k, own.chunks[i]
        (h, w), (H, W) = shape.sizes[i], shape.sizes[i + 1]
        last = i == shape.blocks - 1
        z, d = step.z[i], step.d[i]
        rows, columns = own.axes[i]
        with _on(self.device):
            if not last:
                dy = own.dy[: own.units * H * W * K].view(own.units, H * W, K)
                own.multiply(_pixels(step.d[i + 1]), own.folded[i + 1], dy, turned="")
            _gather[(split.parts, own.units, triton.cdiv(K, split.channels))](
                z, own.constants[i], step.head, step.slopes, z if last else step.r[i], own.dy, own.pulls, d,
                own.partial, rows.start, rows.fraction, columns.start, columns.fraction, h, w, H, W, split.per,
                columns.most, K=K, C=shape.channels, CHANNELS=split.channels, PIXELS=split.pixels, LAST=last,
            )  # fmt: skip
            x = (step.r[i - 1] if i else inputs).view(own.units * chunks, h * w // chunks, K)
            correlation = own.correlation[: len(x) * K * K].view(-1, K, K)
            own.multiply(x, d.view(x.shape), correlation, turned="a")
            channels, outs = 4, own.channels
            together = min(_power(chunks), max(1, _TABLE // (channels * outs)))
            _block_gradient[(triton.cdiv(K, channels), len(weights))](
                weights, gradients, step.affine[i], correlation, own.partial, own.pulls, chunks, split.parts,
                weights.shape[1], step.at[i] - 2 * k, step.at[i], k, h * w, own.tiles, K=K, OUTS=outs,
                CHANNELS=channels, CHUNKS=together, ROWS=_TABLE // outs, INPUT=i == 0,
            )  # fmt: skip

    def _fold(self, step: Step, i: int, weights: torch.Tensor) -> None:
        """The normalisation before convolution i, and that convolution; the last is the head."""
        own: _Scratch = step.scratch
        shape, K, k = step.shape, step.width, step.shape.k
        outs, padded = (k, K) if i < shape.blocks else (shape.channels, shape.channels)
        block = min(16, _power(padded))
        parts = own.blends[i - 1].parts if i else 0
        H, W = shape.sizes[i]
        _fold[(triton.cdiv(padded, block), own.units)](
            weights, own.partial, step.affine[i], own.folded[i], own.constants[i], parts, H * W, weights.shape[1],
            step.at[i] - 2 * k, step.at[i], outs, k, own.tiles, K=K, OUTS=padded, BLOCK=block, CHANNELS=own.channels,
            ROWS=_TABLE // own.channels, INPUT=i == 0,
        )  # fmt: skip


def _pixels(values: torch.Tensor) -> torch.Tensor:
    """(M, T, h, w, K) as a batch of matrices."""
    return values.view(values.shape[0] * values.shape[1], -1, values.shape[-1])
