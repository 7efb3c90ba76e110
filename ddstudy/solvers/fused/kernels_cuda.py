"""The kernels of the fused step on NVIDIA GPUs, in Triton; see `ddstudy.solvers.fused.kernels`.

All members are computed together, and a whole iteration is captured in a CUDA graph, since at small k its forty
launches would cost more than their work. So nothing here allocates, waits or looks at a number on the way.

Products go through `tl.dot` in three products of TF32, or six of bfloat16, which have the accuracy of float32 and the
speed of tensor cores. What goes over pixels goes down patches: a program takes a few columns and some channels, goes
from one low-resolution row to the next and keeps what two rows have in common in registers; what it needs next is on
its way meanwhile. Transposed upsampling gathers: each low-resolution pixel adds up the few that it is part of.

Every sum over pixels is kept by a program and written once, into a row of partial sums of its own; whoever needs the
whole sum adds these rows in their order and in double precision. There are no atomic additions, and how the work is
split depends on the shapes of one member, not on the members beside it: a fit repeats exactly, run after run, alone
or among others.

A block's convolution gets its constant b C after upsampling, which leaves a constant as it is. Arrays are contiguous,
(members, tiles, rows, columns, channels), with channels padded by zeros to `padded(k)`; a *unit* is one tile of one
member. On a machine without GPU the same source runs in Triton's interpreter, for tests: `TritonKernels("cpu")`
with TRITON_INTERPRET=1 in the environment before triton is imported, and with products of bfloat16 mended as in
tests/interpreter.py. What the interpreter takes, the compiler may still
take wrongly: loops here never carry a number that bounds another loop, which Triton 3.6 takes for a constant.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from numpy.typing import NDArray

from ddstudy.priors.deep_decoder import EPS
from ddstudy.solvers import cuda
from ddstudy.solvers.base import EMA_ITERATIONS, FLAT_VARIANCE, Config, Problem
from ddstudy.solvers.fidelity import Fidelity

if TYPE_CHECKING:
    from ddstudy.solvers.fused.step import Axis, Step

_EPS, _FLAT_VARIANCE = tl.constexpr(EPS), tl.constexpr(FLAT_VARIANCE)
_EMA_ITERATIONS = tl.constexpr(EMA_ITERATIONS)
_CHUNK = 32  # pixels, at least and in steps, of one product R^T dZ
_TAPS = 8  # high-resolution pixels of a row that are added up at a time
_REGISTERS = 128  # of a thread that gathers up to 4: the compiler would take more, and fewer programs be under way
_UPDATE = 1024  # weights of one program of the optimiser
# sizes change from block to block: Triton would compile a kernel again for those that 16 divides
_SIZES = ["h", "w", "H", "W", "parts", "tall", "taps", "chunks", "tiles", "outs", "k", "at", "norm", "parameters",
          "pixels", "size", "chunk", "back"]  # fmt: skip


_collecting = threading.local()  # whose `jobs` a thread has while it collects launches


class _Kernel:
    """A kernel of Triton's, which can be compiled before it is launched; see `TritonKernels.compile`."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        jobs: dict[Any, Callable[[], Any]] | None = getattr(_collecting, "jobs", None)
        if jobs is None:
            launch: Callable[..., Any] = self.function[grid]
            return launch

        def collect(*arguments: Any, **constants: Any) -> None:
            # arguments do not make another kernel of it: within a step, types and alignments are the same
            jobs[self, *constants.items()] = partial(self.function.warmup, *arguments, grid=grid, **constants)

        return collect


@triton.jit
def _program(axis: tl.constexpr, back):  # type: ignore[no-untyped-def]
    """Which of the programs along an axis this is; with `back`, the last comes first."""
    number = tl.program_id(axis)
    return number + back * (tl.num_programs(axis) - 1 - 2 * number)


@triton.jit
def _sum_rows(partial, rows, stride, columns, inside, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sums over rows of partial sums, in their order: float64 (COLUMNS,)."""
    total = tl.zeros((COLUMNS,), tl.float64)
    for first in range(0, rows, ROWS):
        row = first + tl.arange(0, ROWS)
        here = (row < rows)[:, None] & inside[None, :]
        values = tl.load(partial + row[:, None] * stride + columns[None, :], here, other=0.0)
        total += tl.sum(values.to(tl.float64), axis=0)
    return total


@_Kernel
@triton.jit(do_not_specialize=_SIZES)
def _fold(weights, partial, affine, folded, transposed, constants, parts, pixels, parameters, norm, at, outs, k, tiles,
          K: tl.constexpr, OUTS: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
          ROWS: tl.constexpr, INPUT: tl.constexpr, BACK: tl.constexpr, PARTS: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip
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
        first, second = tl.zeros((CHANNELS,), tl.float64), tl.zeros((CHANNELS,), tl.float64)
        for start in range(0, parts, ROWS):
            row = start + tl.arange(0, ROWS)
            here = (row < parts)[:, None] & (c < K)[None, :]
            place = partial + row[:, None] * 3 * K + c[None, :]
            values, squares = tl.load(place, here, other=0.0), tl.load(place + K, here, other=0.0)
            first += tl.sum(values.to(tl.float64), axis=0)
            second += tl.sum(squares.to(tl.float64), axis=0)
        offset = first / pixels
        variance = second / pixels - offset * offset
        mean = tl.load(partial + 2 * K + c, c < K, other=0.0).to(tl.float64) + offset
        flat = variance <= mean * mean * _FLAT_VARIANCE  # which NaN is not
        inv_std = tl.where(flat, 0.0, 1.0 / tl.sqrt(tl.where(flat, 0.0, variance) + _EPS))
        scale = tl.load(weights + norm + c, c < k, other=0.0) * inv_std
        shift = tl.load(weights + norm + k + c, c < k, other=0.0) - scale * mean
        if block == 0:
            tl.store(affine + c, mean, c < K)
            tl.store(affine + K + c, inv_std, c < K)
            tl.store(affine + 2 * K + c, scale, c < K)
            tl.store(affine + 3 * K + c, shift, c < K)
    out = block * BLOCK + tl.arange(0, BLOCK)
    real = (out < outs)[:, None] & (c < k)[None, :]
    weight = tl.load(weights + at + out[:, None] * k + c[None, :], real, other=0.0).to(tl.float64)
    inside = (out < OUTS)[:, None] & (c < K)[None, :]
    scaled = (weight * scale[None, :]).to(folded.dtype.element_ty)
    place = (unit * OUTS + out[:, None]) * K + c[None, :]
    other_place = (unit * K + c[None, :]) * OUTS + out[:, None]
    if PARTS:
        scaled, small = _parts(scaled)
        beside = tl.num_programs(1) * OUTS * K
        tl.store(folded + beside + place, small, inside)
        if BACK:
            tl.store(transposed + beside + other_place, small, inside)
    tl.store(folded + place, scaled, inside)
    if BACK:  # products are fast where the factor's rows are what is summed over
        tl.store(transposed + other_place, scaled, inside)
    tl.store(constants + unit * OUTS + out, tl.sum(weight * shift[None, :], axis=1), out < OUTS)


@triton.jit
def _load(values, p, end, c, K: tl.constexpr):  # type: ignore[no-untyped-def]
    """Channels of pixels before `end`, (pixels, channels)."""
    return tl.load(values + p[:, None] * K + c[None, :], (p < end)[:, None] & (c < K)[None, :], other=0.0)


@triton.jit
def _parts(x):  # type: ignore[no-untyped-def]
    """A number as two, of which TF32 has the first as it is and the second nearly so."""
    large = (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
    return large, x - large


@triton.jit
def _bfloat16_parts(x):  # type: ignore[no-untyped-def]
    """A number as three of bfloat16, whose sum it is."""
    first = (x.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)
    x -= first
    second = (x.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)
    return first.to(tl.bfloat16), second.to(tl.bfloat16), (x - second).to(tl.bfloat16)


@triton.jit
def _dot(a, b, acc, PRECISION: tl.constexpr):  # type: ignore[no-untyped-def]
    if PRECISION == "bfloat16":
        a, b = a.to(tl.bfloat16), b.to(tl.bfloat16)
    return tl.dot(a, b, acc, input_precision="ieee", out_dtype=acc.dtype)


@triton.jit
def _add_product(a, large, small, acc, PRECISION: tl.constexpr):  # type: ignore[no-untyped-def]
    """acc + a b. For float32, b comes in its two parts."""
    if PRECISION == "float32":
        large_a, small_a = _parts(a)
        acc = tl.dot(large_a, small, acc, input_precision="tf32")
        acc = tl.dot(small_a, large, acc, input_precision="tf32")
        # the large part again: Triton 3.8 would send it through shared memory once more, with conflicts
        acc = tl.dot(a - small_a, large, acc, input_precision="tf32")
    else:
        acc = _dot(a, large, acc, PRECISION)
    return acc


@_Kernel
@triton.jit(do_not_specialize=_SIZES)
def _pixel_product(a, b, out, size, chunk, back, K: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
                   INNER: tl.constexpr, PRECISION: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip
    """Pixels (size, K) times the transpose of a matrix (K, K). Programs (columns, pixels, unit).

    A program keeps its columns of the matrix in shared memory, and goes through `chunk` pixels. For float32 the
    matrices come in their two parts, one array after the other.
    """
    unit = _program(2, back).to(tl.int64)
    a += unit * size * K
    b += unit * K * K
    out += unit * size * K
    n = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    large, small = (), ()
    for start in tl.static_range(0, K, INNER):
        j = start + tl.arange(0, INNER)
        here = (j < K)[:, None] & (n < K)[None, :]
        place = b + n[None, :] * K + j[:, None]
        large = large + (tl.load(place, here, other=0.0),)  # type: ignore[assignment] # noqa: RUF005
        if PRECISION == "float32":
            place += tl.num_programs(2) * K * K
            small = small + (tl.load(place, here, other=0.0),)  # type: ignore[assignment] # noqa: RUF005
        else:
            small = large
    first = _program(1, back) * chunk
    for pixel in range(first, tl.minimum(first + chunk, size), ROWS):
        p = pixel + tl.arange(0, ROWS)
        acc = tl.zeros((ROWS, COLUMNS), a.dtype.element_ty)
        for start in tl.static_range(0, K, INNER):
            j = start + tl.arange(0, INNER)
            left = _load(a, p, size, j, K)
            acc = _add_product(left, large[start // INNER], small[start // INNER], acc, PRECISION)
        tl.store(out + p[:, None] * K + n[None, :], acc, (p < size)[:, None] & (n < K)[None, :])


@_Kernel
@triton.jit(do_not_specialize=_SIZES)
def _wide_product(a, b, out, size, back, K: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
                  INNER: tl.constexpr, PRECISION: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip
    """The same for more channels than shared memory has room for: a program has some pixels only.

    Programs (columns and pixels, 1, unit): there may be more blocks of pixels than an axis but the first has room for.
    """
    unit = _program(2, back).to(tl.int64)
    a += unit * size * K
    b += unit * K * K
    out += unit * size * K
    block, count = _program(0, back), tl.cdiv(K, COLUMNS)
    p = block // count * ROWS + tl.arange(0, ROWS)
    n = block % count * COLUMNS + tl.arange(0, COLUMNS)
    acc = tl.zeros((ROWS, COLUMNS), a.dtype.element_ty)
    for start in range(0, K, INNER):
        j = start + tl.arange(0, INNER)
        left = _load(a, p, size, j, K)
        here = (j < K)[:, None] & (n < K)[None, :]
        large = tl.load(b + n[None, :] * K + j[:, None], here, other=0.0)
        small = large
        if PRECISION == "float32":
            small = tl.load(b + tl.num_programs(2) * K * K + n[None, :] * K + j[:, None], here, other=0.0)
        acc = _add_product(left, large, small, acc, PRECISION)
    tl.store(out + p[:, None] * K + n[None, :], acc, (p < size)[:, None] & (n < K)[None, :])


@_Kernel
@triton.jit(do_not_specialize=_SIZES)
def _correlation(a, b, out, sums, size, chunk, back, K: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
                 INNER: tl.constexpr, PRECISION: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip
    """a^T b (K, K), and sums of b, over some of the pixels of both (size, K).

    Programs (chunk, block of the product, unit). Here pixels are summed over, which are not the inner dimension of
    either factor. Tensor cores take that for 16 bits only, and otherwise factors are turned around in shared memory,
    which takes several times as long as the product. So for float32 it is six products of bfloat16: all parts' but
    those about its last bit.
    """
    part, unit = _program(0, back), _program(2, back).to(tl.int64)
    columns = tl.cdiv(K, COLUMNS)
    m = tl.program_id(1) // columns * ROWS + tl.arange(0, ROWS)
    n = tl.program_id(1) % columns * COLUMNS + tl.arange(0, COLUMNS)
    a += unit * size * K
    b += unit * size * K
    acc = tl.zeros((ROWS, COLUMNS), a.dtype.element_ty)
    total = tl.zeros((INNER, COLUMNS), a.dtype.element_ty)
    end = tl.minimum((part + 1) * chunk, size)
    p = part * chunk + tl.arange(0, INNER)
    next_left = _load(a, p, end, m, K)
    next_right = _load(b, p, end, n, K)
    for start in range(part * chunk, end, INNER):
        left, right = next_left, next_right
        p = start + INNER + tl.arange(0, INNER)
        next_left = _load(a, p, end, m, K)
        next_right = _load(b, p, end, n, K)
        if PRECISION == "float32":
            left1, left2, left3 = _bfloat16_parts(left)
            right1, right2, right3 = _bfloat16_parts(right)
            left1, left2, left3 = tl.trans(left1), tl.trans(left2), tl.trans(left3)
            acc = tl.dot(left3, right1, acc)  # the smallest first
            acc = tl.dot(left1, right3, acc)
            acc = tl.dot(left2, right2, acc)
            acc = tl.dot(left2, right1, acc)
            acc = tl.dot(left1, right2, acc)
            acc = tl.dot(left1, right1, acc)
        else:
            acc = _dot(tl.trans(left), right, acc, PRECISION)
        total += right
    row = unit * tl.num_programs(0) + part
    tl.store(out + row * K * K + m[:, None] * K + n[None, :], acc, (m < K)[:, None] & (n < K)[None, :])
    if tl.program_id(1) < columns:
        tl.store(sums + row * K + n, tl.sum(total, axis=0), n < K)


@triton.jit
def _relu(x):  # type: ignore[no-untyped-def]
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _corners(z, row, left, right, c, here, w, K: tl.constexpr):  # type: ignore[no-untyped-def]
    """The two low-resolution neighbours of some pixels along a row, (pixels, channels) each."""
    start = tl.load(z + (row * w + left[:, None]) * K + c[None, :], here, other=0.0)
    end = tl.load(z + (row * w + right[:, None]) * K + c[None, :], here, other=0.0)
    return start, end


@_Kernel
@triton.jit(do_not_specialize=_SIZES)
def _blend(z, constants, r, partial, y_start, y_fraction, x_lower, x_fraction, h, w, H, W, tall, back,
           K: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, KEEP: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip
    """Upsampling and ReLU. Programs (patch, channels, unit).

    Partial sums of R - R0 and (R - R0)^2, and R0, the first R: without it the variance of a channel that
    varies little would be a difference of two large numbers.
    """
    part, unit = _program(0, back), _program(2, back).to(tl.int64)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    constant = tl.load(constants + unit * K + c, c < K, other=0.0)
    z += unit * h * w * K
    r += unit * H * W * K
    corner = tl.load(z + c, c < K, other=0.0) + constant
    origin = _relu(corner)
    first = tl.zeros((PIXELS, CHANNELS), z.dtype.element_ty)
    second = tl.zeros((PIXELS, CHANNELS), z.dtype.element_ty)
    runs = tl.cdiv(W, PIXELS)
    x = part % runs * PIXELS + tl.arange(0, PIXELS)
    here = (x < W)[:, None] & (c < K)[None, :]
    left = tl.load(x_lower + x, x < W, other=0)
    right = tl.minimum(left + 1, w - 1)
    fraction = tl.load(x_fraction + x, x < W, other=0.0)[:, None]
    i0 = part // runs * tall
    start, end = _corners(z, i0, left, right, c, here, w, K)
    upper = start + fraction * (end - start) + constant[None, :]
    start, end = _corners(z, tl.minimum(i0 + 1, h - 1), left, right, c, here, w, K)
    for i in range(i0, tl.minimum(i0 + tall, h)):
        lower = start + fraction * (end - start) + constant[None, :]
        fall = lower - upper
        start, end = _corners(z, tl.minimum(i + 2, h - 1), left, right, c, here, w, K)  # on their way meanwhile
        # bounds are loaded, not carried: Triton 3.6 takes a carried bound for one that never changes
        for y in range(tl.load(y_start + i), tl.load(y_start + i + 1)):
            value = _relu(upper + tl.load(y_fraction + y) * fall)
            if KEEP:
                tl.store(r + (y * W + x[:, None]) * K + c[None, :], value, here)
            value -= origin[None, :]
            first += value
            second += value * value
        upper = lower
    partial += (unit * tl.num_programs(0) + part) * 3 * K
    tl.store(partial + c, tl.sum(tl.where(here, first, 0.0), axis=0), c < K)
    tl.store(partial + K + c, tl.sum(tl.where(here, second, 0.0), axis=0), c < K)
    tl.store(partial + 2 * K + c, origin, c < K)


@_Kernel
@triton.jit(do_not_specialize=_SIZES)
def _head(z, constants, head, shifts, image, measured, grad_logits, outputs, partial, sums, y_start, y_fraction,
          x_lower, x_fraction, h, w, H, W, tall, tiles, back, K: tl.constexpr, C: tl.constexpr,
          CHANNELS: tl.constexpr, PIXELS: tl.constexpr, GRADIENTS: tl.constexpr, ERRORS: tl.constexpr,
          SHARED: tl.constexpr, SIGMOID: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip
    """Outputs, or with `GRADIENTS` dL/d logits g, or with `ERRORS` both. Programs (patch, colour, unit).

    Partial sums of g R, g and the squared errors.

    `image` is the measurement with `ERRORS` and otherwise dL/d output; with `SHARED`, members have it in common. What
    is NaN in a measurement has no error; a member has `measured` numbers that are not.
    """
    part, o, unit = _program(0, back), tl.program_id(1), _program(2, back).to(tl.int64)
    c = tl.arange(0, CHANNELS)
    constant = tl.load(constants + unit * K + c, c < K, other=0.0)
    weight = tl.load(head + (unit * C + o) * K + c, c < K, other=0.0)
    shift = tl.load(shifts + unit * C + o)
    z += unit * h * w * K
    outputs += (unit * C + o) * H * W
    grad_logits += (unit * C + o) * H * W
    if SHARED:
        image += (unit % tiles * C + o) * H * W
    else:
        image += (unit * C + o) * H * W
    kind = z.dtype.element_ty
    grad_weight = tl.zeros((PIXELS, CHANNELS), kind)
    sum_grad_logits = tl.zeros((PIXELS,), kind)
    sum_errors = tl.zeros((PIXELS,), kind)
    twice = tl.full((), 2, kind) / tl.load(measured + unit // tiles).to(tl.int32)  # the gradient of a mean of squares
    runs = tl.cdiv(W, PIXELS)
    x = part % runs * PIXELS + tl.arange(0, PIXELS)
    here = (x < W)[:, None] & (c < K)[None, :]
    left = tl.load(x_lower + x, x < W, other=0)
    right = tl.minimum(left + 1, w - 1)
    fraction = tl.load(x_fraction + x, x < W, other=0.0)[:, None]
    i0 = part // runs * tall
    start, end = _corners(z, i0, left, right, c, here, w, K)
    upper = start + fraction * (end - start) + constant[None, :]
    start, end = _corners(z, tl.minimum(i0 + 1, h - 1), left, right, c, here, w, K)
    if GRADIENTS:
        next_given = tl.load(image + tl.load(y_start + i0) * W + x, x < W, other=0.0)
    for i in range(i0, tl.minimum(i0 + tall, h)):
        lower = start + fraction * (end - start) + constant[None, :]
        fall = lower - upper
        start, end = _corners(z, tl.minimum(i + 2, h - 1), left, right, c, here, w, K)  # on their way meanwhile
        for y in range(tl.load(y_start + i), tl.load(y_start + i + 1)):
            if GRADIENTS:
                given = next_given
                next_given = tl.load(image + (y + 1) * W + x, (x < W) & (y + 1 < H), other=0.0)
            value = _relu(upper + tl.load(y_fraction + y) * fall)
            if GRADIENTS and not ERRORS:
                output = tl.load(outputs + y * W + x, x < W, other=0.0)  # made before
            else:
                output = tl.sum(value * weight[None, :], axis=1) + shift
                if SIGMOID:
                    output = 1.0 / (1.0 + tl.exp(-output))
                tl.store(outputs + y * W + x, output, x < W)
            if GRADIENTS:
                if ERRORS:
                    error = tl.where((x < W) & (given == given), output - given, 0.0)
                    sum_errors += error * error
                    given = twice * error
                grad = given * output * (1.0 - output) if SIGMOID else given
                tl.store(grad_logits + y * W + x, grad, x < W)
                sum_grad_logits += grad
                grad_weight += grad[:, None] * value
        upper = lower
    if GRADIENTS:
        row = unit * tl.num_programs(0) + part
        tl.store(partial + (row * C + o) * K + c, tl.sum(grad_weight, axis=0), c < K)
        tl.store(sums + row * 2 * C + o, tl.sum(sum_grad_logits, axis=0))
        tl.store(sums + row * 2 * C + C + o, tl.sum(sum_errors, axis=0))


@triton.jit
def _norm_gradient(sum_dy, sum_dy_r, affine, alpha_beta, c, inside, pixels, K: tl.constexpr):  # type: ignore[no-untyped-def]
    """The gradient by the scale, and the constants of dR = a dY + alpha + beta R, of a unit."""
    mean = tl.load(affine + c, inside, other=0.0)
    inv_std = tl.load(affine + K + c, inside, other=0.0)
    scale = tl.load(affine + 2 * K + c, inside, other=0.0)
    grad_scale = (sum_dy_r - mean * sum_dy) * inv_std
    beta = -scale * inv_std * grad_scale / pixels
    tl.store(alpha_beta + c, -scale * sum_dy / pixels - beta * mean, inside)
    tl.store(alpha_beta + K + c, beta, inside)
    return grad_scale


@_Kernel
@triton.jit(do_not_specialize=_SIZES)
def _head_gradient(weights, gradients, affine, partial, sums, losses, measured, alpha_beta, parts, parameters, norm,
                   at, k, pixels, tiles, K: tl.constexpr, C: tl.constexpr, COLOURS: tl.constexpr,
                   CHANNELS: tl.constexpr, ROWS: tl.constexpr, ERRORS: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip
    """Gradients of the head and of the normalisation before it, and the loss. Programs (channels, unit)."""
    block, unit = tl.program_id(0), tl.program_id(1).to(tl.int64)
    c, o = block * CHANNELS + tl.arange(0, CHANNELS), tl.arange(0, COLOURS)
    weights += unit // tiles * parameters
    gradients += unit * parameters
    affine += unit * 4 * K
    sums += unit * parts * 2 * C
    here = (o < C)[:, None] & (c < k)[None, :]
    place = at + o[:, None] * k + c[None, :]
    weight = tl.load(weights + place, here, other=0.0).to(tl.float64)
    sum_grad_logits_r = tl.zeros((COLOURS, CHANNELS), tl.float64)
    for first in range(0, parts, ROWS):
        row = first + tl.arange(0, ROWS)
        there = ((unit * parts + row[:, None, None]) * C + o[None, :, None]) * K + c[None, None, :]
        values = tl.load(partial + there, (row < parts)[:, None, None] & here[None, :, :], other=0.0)
        sum_grad_logits_r += tl.sum(values.to(tl.float64), axis=0)
    sum_grad_logits = _sum_rows(sums, parts, 2 * C, o, o < C, ROWS, COLOURS)
    scale = tl.load(affine + 2 * K + c, c < K, other=0.0)
    shift = tl.load(affine + 3 * K + c, c < K, other=0.0)
    sum_dy = tl.sum(weight * sum_grad_logits[:, None], axis=0)
    sum_dy_r = tl.sum(weight * sum_grad_logits_r, axis=0)
    grad_scale = _norm_gradient(sum_dy, sum_dy_r, affine, alpha_beta + unit * 2 * K, c, c < K, pixels, K)
    tl.store(gradients + place, scale[None, :] * sum_grad_logits_r + shift[None, :] * sum_grad_logits[:, None], here)
    tl.store(gradients + norm + c, grad_scale, c < k)
    tl.store(gradients + norm + k + c, sum_dy, c < k)
    if ERRORS:  # noqa: SIM102 - the compiler takes the one, the program the other
        if (block == 0) & (unit % tiles == 0):  # of all tiles of the member, whose sums follow each other
            errors = _sum_rows(sums + C, tiles * parts, 2 * C, o, o < C, ROWS, COLOURS)
            count = tl.load(measured + unit // tiles).to(tl.float64)
            tl.store(losses + unit // tiles, tl.sum(errors, axis=0) / count)


@triton.jit
def _neighbours(z, row, left, j, right, c, here, constant, w, K: tl.constexpr):  # type: ignore[no-untyped-def]
    """Some low-resolution pixels of a row and those before and after them, (pixels, channels) each."""
    z += row * w * K + c[None, :]
    before = tl.load(z + left[:, None] * K, here, other=0.0) + constant
    own = tl.load(z + j[:, None] * K, here, other=0.0) + constant
    after = tl.load(z + right[:, None] * K, here, other=0.0) + constant
    return before, own, after


@_Kernel
@triton.jit(do_not_specialize=_SIZES)
def _gather(z, constants, head, grad_logits, r, dy, alpha_beta, d, y_start, y_fraction, x_start, x_fraction,
            h, w, H, W, tall, taps, back, K: tl.constexpr, C: tl.constexpr, CHANNELS: tl.constexpr,
            COLUMNS: tl.constexpr, TAPS: tl.constexpr, LAST: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip
    """Gradients past ReLU and upsampling. Programs (patch, channels, unit).

    A low-resolution pixel gets something from at most `taps` pixels of each row that touches it: a program goes down
    the rows of a patch of `COLUMNS` such pixels, adds up these by their weights, and rows by theirs. In the `LAST`
    block, R is made again and dL/dY is `grad_logits` times `head`; in the others they are `r` and `dy`, which has the
    normalisation's scale already.
    """
    part, unit = _program(0, back), _program(2, back).to(tl.int64)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    kind = d.dtype.element_ty
    alpha = tl.load(alpha_beta + unit * 2 * K + c, c < K, other=0.0)[None, :]
    beta = tl.load(alpha_beta + unit * 2 * K + K + c, c < K, other=0.0)[None, :]
    runs = tl.cdiv(w, COLUMNS)
    i0 = part // runs * tall
    first = tl.maximum(i0 - 1, 0)
    j = part % runs * COLUMNS + tl.arange(0, COLUMNS)
    mine = j < w
    here = mine[:, None] & (c < K)[None, :]
    before, after = tl.maximum(j - 1, 0), tl.minimum(j + 1, w - 1)
    x0, x1 = tl.load(x_start + before, mine, other=0), tl.load(x_start + j, mine, other=0)
    x2 = tl.load(x_start + j + 1, mine, other=0)
    d += unit * h * w * K
    if LAST:
        z += unit * h * w * K
        grad_logits += unit * C * H * W
        head += unit * C * K
        constant = tl.load(constants + unit * K + c, c < K, other=0.0)[None, :]
        weight = tl.load(head + c, c < K, other=0.0)[None, :]
    else:
        r += unit * H * W * K
        dy += unit * H * W * K
    for begin in range(0, taps, TAPS):  # once, but where a pixel becomes very many
        shares, left_shares, right_shares = (), (), ()
        for t in tl.static_range(TAPS):
            x = x0 + begin + t
            inside = x < x2
            fraction = tl.load(x_fraction + x, inside, other=0.0)
            share = tl.where(x < x1, fraction, 1.0 - fraction)
            shares = shares + (tl.where(inside, share, 0.0)[:, None],)  # type: ignore[assignment] # noqa: RUF005
            left_shares = left_shares + (tl.where(x < x1, 1.0 - share, 0.0)[:, None],)  # type: ignore[assignment] # noqa: RUF005
            right_shares = right_shares + (tl.where(x < x1, 0.0, 1.0 - share)[:, None],)  # type: ignore[assignment] # noqa: RUF005
        above = tl.zeros((COLUMNS, CHANNELS), kind)
        if LAST:
            upper0, upper1, upper2 = _neighbours(z, first, before, j, after, c, here, constant, w, K)
            next0, next1, next2 = _neighbours(
                z, tl.minimum(first + 1, h - 1), before, j, after, c, here, constant, w, K
            )
        for i in range(first, tl.minimum(i0 + tall, h)):
            if LAST:
                lower0, lower1, lower2 = next0, next1, next2
                next0, next1, next2 = _neighbours(  # on their way meanwhile
                    z, tl.minimum(i + 2, h - 1), before, j, after, c, here, constant, w, K
                )
            rows = above
            above = tl.zeros((COLUMNS, CHANNELS), kind)
            # bounds are loaded, not carried: Triton 3.6 takes a carried bound for one that never changes
            for y in range(tl.load(y_start + i), tl.load(y_start + i + 1)):
                down = tl.load(y_fraction + y)
                if LAST:
                    row0 = upper0 + down * (lower0 - upper0)
                    row1 = upper1 + down * (lower1 - upper1)
                    row2 = upper2 + down * (lower2 - upper2)
                row = tl.zeros((COLUMNS, CHANNELS), kind)
                for t in tl.static_range(TAPS):
                    x = x0 + begin + t
                    inside = x < x2
                    if LAST:
                        value = left_shares[t] * row0 + shares[t] * row1 + right_shares[t] * row2
                        grad_logit = tl.load(grad_logits + y * W + x, inside, other=0.0)
                        grad = alpha + beta * value + grad_logit[:, None] * weight
                        for o in tl.static_range(1, C):
                            grad_logit = tl.load(grad_logits + (o * H + y) * W + x, inside, other=0.0)
                            grad += grad_logit[:, None] * tl.load(head + o * K + c, c < K, other=0.0)[None, :]
                    else:
                        place = (y * W + x[:, None]) * K + c[None, :]
                        there = inside[:, None] & (c < K)[None, :]
                        value = tl.load(r + place, there, other=0.0)
                        grad = alpha + beta * value + tl.load(dy + place, there, other=0.0)
                    row += shares[t] * tl.where(value > 0, grad, 0.0)
                rows += (1.0 - down) * row
                above += down * row
            if LAST:
                upper0, upper1, upper2 = lower0, lower1, lower2
            if i >= i0:
                target = d + (i * w + j[:, None]) * K + c[None, :]
                if begin > 0:
                    tl.debug_barrier()  # other threads may have stored what this one adds to
                    rows += tl.load(target, here, other=0.0)
                tl.store(target, rows, here)


@_Kernel
@triton.jit(do_not_specialize=_SIZES)
def _block_gradient(weights, gradients, affine, correlation, sums, alpha_beta, chunks, parameters, norm, at,
                    k, pixels, tiles, K: tl.constexpr, OUTS: tl.constexpr, CHANNELS: tl.constexpr, CHUNKS: tl.constexpr,
                    ROWS: tl.constexpr, INPUT: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip
    """Gradients of a convolution and of the normalisation before it. Programs (input channels, unit)."""
    unit = tl.program_id(1).to(tl.int64)
    c, out = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS), tl.arange(0, OUTS)
    weights += unit // tiles * parameters
    gradients += unit * parameters
    affine += unit * 4 * K
    here = (c < k)[:, None] & (out < k)[None, :]
    place = at + out[None, :] * k + c[:, None]
    weight = tl.load(weights + place, here, other=0.0).to(tl.float64)
    scale = tl.load(affine + 2 * K + c, c < K, other=0.0)
    shift = tl.load(affine + 3 * K + c, c < K, other=0.0)
    r_dz = tl.zeros((CHANNELS, OUTS), tl.float64)
    for first in range(0, chunks, CHUNKS):
        chunk = first + tl.arange(0, CHUNKS)
        there = ((unit * chunks + chunk[:, None, None]) * K + c[None, :, None]) * K + out[None, None, :]
        values = tl.load(correlation + there, (chunk < chunks)[:, None, None] & here[None, :, :], other=0.0)
        r_dz += tl.sum(values.to(tl.float64), axis=0)
    sum_dz = _sum_rows(sums + unit * chunks * K, chunks, K, out, out < K, ROWS, OUTS)
    tl.store(gradients + place, scale[:, None] * r_dz + shift[:, None] * sum_dz[None, :], here)
    if not INPUT:
        sum_dy, sum_dy_r = tl.sum(weight * sum_dz[None, :], axis=1), tl.sum(weight * r_dz, axis=1)
        grad_scale = _norm_gradient(sum_dy, sum_dy_r, affine, alpha_beta + unit * 2 * K, c, c < K, pixels, K)
        tl.store(gradients + norm + c, grad_scale, c < k)
        tl.store(gradients + norm + k + c, sum_dy, c < k)


@_Kernel
@triton.jit(do_not_specialize=_SIZES)
def _add_tiles(partial, gradients, parameters, tiles, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Gradients of members from those of their tiles. Programs (weights, member)."""
    i, member = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1).to(tl.int64)
    here = i < parameters
    partial += member * tiles * parameters + i
    total = tl.zeros((BLOCK,), tl.float64)
    for tile in range(0, tiles):
        total += tl.load(partial + tile * parameters, here, other=0.0).to(tl.float64)
    tl.store(gradients + member * parameters + i, total, here)


@_Kernel
@triton.jit
def _adam(weights, gradients, exp_avg, exp_avg_sq, learning_rate, powers, parameters, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """One update of Adam. Programs (weights, member), each with its own beta^t."""
    block, member = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i = block * BLOCK + tl.arange(0, BLOCK)
    here, place = i < parameters, member * parameters + i
    powers += (member * tl.num_programs(0) + block) * 2
    beta1_power, beta2_power = tl.load(powers) * 0.9, tl.load(powers + 1) * 0.999
    tl.debug_barrier()  # all threads have read them
    tl.store(powers, beta1_power)
    tl.store(powers + 1, beta2_power)
    kind = weights.dtype.element_ty
    step_size = (tl.load(learning_rate) / (1.0 - beta1_power)).to(kind)
    correction = (1.0 / tl.sqrt(1.0 - beta2_power)).to(kind)
    grad = tl.load(gradients + place, here, other=0.0)
    mean = tl.load(exp_avg + place, here, other=0.0)
    square = tl.load(exp_avg_sq + place, here, other=0.0)
    weight = tl.load(weights + place, here, other=0.0)
    mean += 0.1 * (grad - mean)
    square += 0.001 * (grad * grad - square)
    tl.store(exp_avg + place, mean, here)
    tl.store(exp_avg_sq + place, square, here)
    tl.store(weights + place, weight - step_size * mean / (tl.sqrt(square) * correction + 1e-8), here)


@_Kernel
@triton.jit
def _keep(kept, weights, losses, best_loss, averaged, parameters, BEST: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Keeps the best weights so far, or updates their average. Programs (weights, member)."""
    block, member = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i = block * BLOCK + tl.arange(0, BLOCK)
    here, place = i < parameters, member * parameters + i
    if BEST:
        # the programs of a member write the same number, and one that finds it there already does the same
        loss = tl.load(losses + member)
        if not (loss > tl.load(best_loss + member)):  # NaN is kept
            tl.store(best_loss + member, loss)
            tl.store(kept + place, tl.load(weights + place, here, other=0.0), here)
    else:
        averaged += member * tl.num_programs(0) + block
        number = tl.load(averaged) + 1
        tl.debug_barrier()  # all threads have read it
        tl.store(averaged, number)
        before = tl.load(kept + place, here, other=0.0)
        share = (1.0 / tl.minimum(number, _EMA_ITERATIONS)).to(kept.dtype.element_ty)
        tl.store(kept + place, before + share * (tl.load(weights + place, here, other=0.0) - before), here)


def _power(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _block(size: int, smallest: int, largest: int) -> int:
    """The power of two between two that splits `size` with the least left over; the larger of equals."""
    largest = max(1, min(largest, _power(size)))
    smallest = min(smallest, largest)
    choices = [1 << i for i in range(smallest.bit_length() - 1, largest.bit_length())]
    return min(reversed(choices), key=lambda block: -(-size // block) * block)


class _Tuning(NamedTuple):
    """Sizes of the kernels' blocks: they decide how fast a card is, and how sums are rounded.

    Attributes:
        fold: partial sums that a program has in hand, warps; of the head's gradient, too.
        blend: programs of a unit at most, numbers that one has in hand, warps.
        head: likewise.
        gather: programs of a unit at most, low-resolution pixels along a row, channels, warps.
        gradient: input channels of a program, into how many chunks a unit's pixels are split at k = 64, partial sums
            that a program has in hand, warps.
        product: pixels, outputs and inputs of a block, warps, stages, programs of a unit at most; 0 where the matrix is
            not kept in shared memory, of which every card has room for 64 channels.
        correlation: inputs, outputs and pixels of a block, warps.
    """

    fold: tuple[int, int]
    blend: tuple[int, int, int]
    head: tuple[int, int, int]
    gather: tuple[int, int, int, int]
    gradient: tuple[int, int, int, int]
    product: tuple[int, int, int, int, int, int]
    correlation: tuple[int, int, int, int]


# by padded channels; `benchmarks/gpu_kernels.py --tune` on an H100, but for the last two, which are by what the
# compiler makes of them. A table rather than a choice at run time: numbers must not depend on what was faster when a
# study began, nor differ between the cards of a cluster
_TUNED = {
    8: _Tuning((8192, 4), (128, 1024, 2), (512, 1024, 2), (256, 64, 8, 4), (1, 64, 8192, 4),
               (64, 16, 16, 4, 2, 256), (16, 16, 32, 1)),
    16: _Tuning((8192, 4), (256, 512, 2), (512, 1024, 2), (256, 32, 16, 4), (2, 128, 8192, 4),
                (64, 16, 16, 4, 2, 256), (16, 16, 32, 1)),
    32: _Tuning((8192, 4), (256, 512, 2), (256, 1024, 4), (512, 8, 32, 2), (1, 64, 4096, 2),
                (64, 32, 32, 4, 2, 156), (32, 32, 32, 2)),
    64: _Tuning((8192, 4), (128, 1024, 2), (1024, 512, 2), (256, 8, 64, 4), (1, 64, 2048, 2),
                (64, 64, 32, 4, 2, 76), (64, 64, 32, 4)),
    96: _Tuning((8192, 4), (256, 512, 2), (512, 1024, 4), (256, 8, 32, 2), (1, 48, 2048, 2),
                (128, 64, 32, 4, 3, 0), (64, 64, 32, 4)),
    128: _Tuning((8192, 4), (128, 1024, 4), (256, 1024, 4), (256, 8, 64, 4), (1, 64, 2048, 2),
                 (128, 64, 32, 8, 3, 0), (64, 64, 32, 4)),
    192: _Tuning((8192, 4), (128, 1024, 4), (256, 1024, 4), (256, 8, 64, 4), (1, 64, 4096, 2),
                 (128, 64, 32, 8, 3, 0), (64, 64, 32, 4)),
}  # fmt: skip


def _tuning(K: int) -> _Tuning:
    return _TUNED[min(_TUNED, key=lambda known: abs(math.log(known / K)))]


class _Patches(NamedTuple):
    """How an image is shared out: `parts` programs of a unit take patches of `tall` low-resolution rows."""

    pixels: int  # along a row: high-resolution ones going forward, low-resolution ones going back
    tall: int
    parts: int


def _patches(rows: int, width: int, pixels: int, programs: int) -> _Patches:
    """Patches of whole runs of pixels."""
    runs = -(-width // pixels)
    tall = max(1, -(-rows * runs // programs))
    while -(-rows // tall) * runs > programs and tall < rows:
        tall += 1
    return _Patches(pixels, tall, -(-rows // tall) * runs)


def _taps(starts: NDArray[np.int64]) -> int:
    """High-resolution pixels along a row that a low-resolution one is part of, at most."""
    first = np.maximum(np.arange(len(starts) - 1) - 1, 0)
    return int((starts[1:] - starts[first]).max())


class _Tables(NamedTuple):
    """An `Axis` on the device, with the first input of every output."""

    start: torch.Tensor
    lower: torch.Tensor
    fraction: torch.Tensor


class _Adam:
    """Adam (Kingma and Ba, 2015) with torch's defaults, in place, for some members' weights (M, parameters)."""

    def __init__(self, weights: torch.Tensor, learning_rate: float) -> None:
        self.weights = weights
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(weights), torch.zeros_like(weights)
        # on the device, since a graph replays the same arguments
        blocks = triton.cdiv(weights.shape[1], _UPDATE)
        self.powers = torch.ones((len(weights), blocks, 2), dtype=torch.float64, device=weights.device)
        self.learning_rate = torch.tensor([learning_rate], dtype=torch.float64, device=weights.device)

    def update(self, gradients: torch.Tensor) -> None:
        """One step."""
        members, parameters = self.weights.shape
        with cuda.on(self.weights.device):
            _adam[(self.powers.shape[1], members)](
                self.weights, gradients, self.exp_avg, self.exp_avg_sq, self.learning_rate, self.powers, parameters,
                BLOCK=_UPDATE,
            )  # fmt: skip


class _Iterate:
    """The weights (M, parameters) that a snapshot shows, by `Config.keep`; a member that diverged shows it."""

    def __init__(self, weights: torch.Tensor, keep: str) -> None:
        self.keep = keep
        self.weights = weights if keep == "last" else weights.clone()
        self.best_loss = torch.full((len(weights),), torch.inf, dtype=torch.float64, device=weights.device)
        blocks = triton.cdiv(weights.shape[1], _UPDATE)
        self.averaged = torch.zeros((len(weights), blocks), dtype=torch.float64, device=weights.device)

    def update(self, losses: torch.Tensor, weights: torch.Tensor) -> None:
        """Takes in weights and their losses, before they change."""
        if self.keep == "last":
            return
        with cuda.on(weights.device):
            _keep[(self.averaged.shape[1], len(weights))](
                self.weights, weights, losses, self.best_loss, self.averaged, weights.shape[1],
                BEST=self.keep == "best", BLOCK=_UPDATE,
            )  # fmt: skip


class _Average:
    """The exponential average of outputs; see `ddstudy.solvers.base.Config.average`."""

    def __init__(self, outputs: torch.Tensor, past: float) -> None:
        self.mean, self.later = torch.zeros_like(outputs), 1 - past
        self.share = torch.ones((), dtype=outputs.dtype, device=outputs.device)  # there, since a graph replays this

    def update(self, outputs: torch.Tensor) -> None:
        """Takes in outputs (M, T, C, h, w)."""
        self.mean.lerp_(outputs, self.share)
        self.share.fill_(self.later)


class _Scratch:
    """What the kernels of a step need beside its arrays."""

    def __init__(self, step: Step) -> None:
        prior, kernels = step.prior, step.kernels
        assert isinstance(kernels, TritonKernels)  # whose scratch this is
        M, T, K, C, l = step.outputs.shape[0], step.measurement.shape[1], step.width, prior.channels, prior.blocks
        units, dtype, sizes = M * T, step.dtype, prior.sizes
        self.units, self.tiles, self.back = units, T, 0
        self.axes = [tuple(self._tables(axis, kernels) for axis in pair) for pair in step.axes]
        self.channels, self.colours = _power(K), _power(C)
        tuning = self.tuning = _tuning(K)
        self.outs = _block(K, 8, 64)  # channels of a program that goes over pixels
        self.programs, few = kernels.programs, self.few

        chunks = -(-K // self.outs)
        programs, numbers, _ = tuning.blend
        self.blends = [
            _patches(h, W, _block(W, 16, max(16, numbers // self.outs)), few(programs, chunks))
            for (h, _), (_, W) in itertools.pairwise(sizes)
        ]
        programs, numbers, _ = tuning.head
        pixels = _block(sizes[-1][1], 8, max(8, numbers // self.channels))
        self.head = _patches(sizes[-2][0], sizes[-1][1], pixels, few(programs))
        programs, columns, channels, _ = tuning.gather
        self.gathers = [
            _patches(h, w, min(columns, _power(w)), few(programs, -(-K // channels))) for h, w in sizes[:-1]
        ]
        self.taps = [_taps(axes[1].start) for axes in step.axes]
        wanted = max(1, round(tuning.gradient[1] / (T * max(1, K / 64) ** 2)))
        # pixels of one product for the weights' gradient, and how many there are
        self.chunk = [_CHUNK * triton.cdiv(h * w, _CHUNK * wanted) for h, w in sizes[:-1]]
        self.chunks = [triton.cdiv(h * w, chunk) for (h, w), chunk in zip(sizes[:-1], self.chunk, strict=True)]
        # of each convolution, the head being the last: diag(a) C as (outputs, inputs), in `_parts` or whole, and b C
        self.parts = kernels.precision(step) == "float32"
        self.folded = [kernels.zeros((1 + self.parts, units, K, K), dtype) for _ in range(l)] + [step.head]
        self.transposed = [kernels.zeros((1 + self.parts, units, K, K), dtype) for _ in range(l)]
        self.constants = [kernels.zeros((units, outs), dtype) for outs in [K] * l + [C]]
        self.alpha_beta = kernels.zeros((units, 2, K), dtype)
        self.unit_gradients = kernels.zeros((units, prior.parameters) if T > 1 else (0,), dtype)
        self.partial = kernels.zeros((units * max(split.parts for split in self.blends) * 3 * K,), dtype)
        self.head_partial = kernels.zeros((units, self.head.parts, C, K), dtype)
        self.head_sums = kernels.zeros((units, self.head.parts, 2, C), dtype)
        self.correlation = kernels.zeros((units * max(self.chunks) * K * K,), dtype)
        self.correlation_sums = kernels.zeros((units * max(self.chunks) * K,), dtype)
        self.dy = kernels.zeros((units * max([0] + [H * W for H, W in sizes[1:-1]]) * K,), dtype)

    @staticmethod
    def _tables(axis: Axis, kernels: TritonKernels) -> _Tables:
        lower = np.repeat(np.arange(len(axis.start) - 1), np.diff(axis.start))
        return _Tables(
            kernels.from_numpy(axis.start, "int32"),
            kernels.from_numpy(lower, "int32"),
            kernels.from_numpy(axis.fraction, axis.fraction.dtype.name),
        )

    def into(self, gradients: torch.Tensor) -> torch.Tensor:
        """Where gradients of units are written: there, where a member is one unit."""
        return gradients if self.tiles == 1 else self.unit_gradients

    def few(self, programs: int, blocks: int = 1) -> int:
        """Programs of each unit and block of channels, where a member has so many at most."""
        each: int = min(programs, self.programs) // (self.tiles * blocks)
        return max(1, each)

    def turn(self) -> int:
        """Whether a kernel goes back over what the one before it came along: every other does.

        What that wrote or read last is in the second-level cache still.
        """
        self.back = 1 - self.back
        return self.back

    def upsampling(self, i: int) -> tuple[torch.Tensor, ...]:
        """What block i's upsampling reads going forward."""
        rows, columns = self.axes[i]
        return rows.start, rows.fraction, columns.lower, columns.fraction

    def times(self, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, precision: str) -> None:
        """Pixels (units, size, K) times the transposes of matrices (units, K, K)."""
        units, size, K = a.shape
        rows, columns, inner, warps, stages, programs = self.tuning.product
        blocks = triton.cdiv(size, rows)
        if programs:
            each = triton.cdiv(blocks, self.few(programs))
            _pixel_product[(triton.cdiv(K, columns), triton.cdiv(blocks, each), units)](
                a, b, out, size, each * rows, self.turn(), K=K, ROWS=rows, COLUMNS=columns, INNER=inner,
                PRECISION=precision, num_warps=warps, num_stages=stages,
            )  # fmt: skip
        else:
            _wide_product[(triton.cdiv(K, columns) * blocks, 1, units)](
                a, b, out, size, self.turn(), K=K, ROWS=rows, COLUMNS=columns, INNER=inner, PRECISION=precision,
                num_warps=warps, num_stages=stages,
            )  # fmt: skip

    def correlate(self, a: torch.Tensor, b: torch.Tensor, chunk: int, precision: str) -> None:
        """Products of pixels (units, size, K) with each other, and sums of b, a chunk of them at a time."""
        units, size, K = a.shape
        rows, columns, inner, warps = self.tuning.correlation
        blocks = triton.cdiv(K, rows) * triton.cdiv(K, columns)
        _correlation[(triton.cdiv(size, chunk), blocks, units)](
            a, b, self.correlation, self.correlation_sums, size, chunk, self.turn(), K=K, ROWS=rows, COLUMNS=columns,
            INNER=inner, PRECISION=precision, num_warps=warps, num_stages=1,
        )  # fmt: skip


class TritonKernels:
    """The kernels on one device.

    Args:
        device: `cuda` or `cuda:1`; `cpu` in Triton's interpreter.

    Raises:
        RuntimeError: for `cpu` when Triton does not interpret.
    """

    OUTPUT, MSE, GRADIENT = 0, 1, 2
    BATCHED = True
    IN_PLACE = False
    Scratch = _Scratch
    Adam = _Adam
    Iterate = _Iterate
    Average = _Average

    def __init__(self, device: str) -> None:
        self.device = cuda.device_of(device)
        if self.device.type == "cpu" and isinstance(_adam.function, triton.JITFunction):
            raise RuntimeError("Triton computes on a processor only with TRITON_INTERPRET=1 set before it is imported")
        # of one member, at most; the interpreter takes its time for each
        self.programs = 1024 if self.device.type == "cuda" else 3

    @cached_property
    def in_parts(self) -> bool:
        """Tensor cores take TF32 and bfloat16; on older cards products of parts would be worse than plain ones."""
        return self.device.type != "cuda" or torch.cuda.get_device_capability(self.device) >= (8, 0)

    def without_memory(self) -> TritonKernels:
        """The same, whose arrays have a size and no memory: to ask a step for its size, also without a GPU."""
        made = copy.copy(self)
        made.device = torch.device("meta")
        return made

    def padded(self, k: int) -> int:
        """Channels that are computed for k: the next multiple of 8, which keeps loads of whole sectors."""
        return -(-k // 8) * 8

    def plane(self, height: int, width: int, channels: int) -> tuple[int, ...]:
        """The shape of one tile's feature maps."""
        return height, width, channels

    def to_planes(self, values: NDArray[Any]) -> NDArray[Any]:
        """Feature maps (..., channels, rows, columns) as `plane` orders them."""
        return np.moveaxis(values, -3, -1)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
        """An array on the device."""
        return torch.zeros(shape, dtype=getattr(torch, dtype), device=self.device)

    def from_numpy(self, values: NDArray[Any], dtype: str) -> torch.Tensor:
        """A copy on the device."""
        return torch.tensor(np.ascontiguousarray(values), dtype=getattr(torch, dtype), device=self.device)

    def to_numpy(self, values: torch.Tensor) -> NDArray[Any]:
        """A copy in numpy."""
        made: NDArray[Any] = values.detach().cpu().numpy().copy()
        return made

    def as_tensor(self, values: torch.Tensor) -> torch.Tensor:
        """What it is."""
        return values

    def write(self, into: torch.Tensor, values: NDArray[Any]) -> None:
        """Overwrites an array, in the order of the thread's stream."""
        into.copy_(torch.from_numpy(np.ascontiguousarray(values)))

    def Fidelity(self, problem: Problem, config: Config) -> Fidelity:  # noqa: N802 - makes one, as a class would
        """The loss of a problem, for the device."""
        return Fidelity(problem, config, self.device)

    def rows_kept(self, height: int, last: bool) -> int:
        """All, as one product makes them."""
        return height

    def begin_thread(self) -> None:
        """The thread gets a stream of its own, so that fits overlap."""
        cuda.begin_thread(self.device)

    def device_lock(self) -> contextlib.AbstractContextManager[Any]:
        """Whoever allocates or captures has it; see `ddstudy.solvers.cuda`."""
        return cuda.lock_of(self.device)

    def summary(self, outputs: torch.Tensor, measurement: torch.Tensor, pixels: torch.Tensor | None) -> tuple[Any, Any]:
        """Losses (M,) and ranges (M, T) of outputs, as `ddstudy.solvers.base.summary` has them.

        Of one fit's members at a time: how sums are split depends on the shape, and must not on the members beside.
        """
        predicted, measured = outputs.flatten(1), measurement.flatten()
        if pixels is not None:
            predicted, measured = predicted[:, pixels], measured[pixels]
        known = ~measured.isnan()
        if not known.all():
            predicted, measured = predicted[:, known], measured[known]
        losses = (predicted.double() - measured).square().mean(dim=1)
        return self.to_numpy(losses), self.to_numpy(outputs.amax((2, 3, 4)) - outputs.amin((2, 3, 4)))

    def synchronize(self) -> None:
        """Returns when everything that this thread asked for so far is computed."""
        cuda.synchronize(self.device)

    def compile(self, launches: Callable[[], None]) -> None:
        """Compiles kernels side by side, before each would be when it is first launched."""
        if self.device.type == "cpu":  # the interpreter
            return
        jobs: dict[Any, Callable[[], Any]] = {}
        _collecting.jobs = jobs
        try:
            launches()
        finally:
            del _collecting.jobs

        def compiled(job: Callable[[], Any]) -> None:
            with cuda.on(self.device):
                job()

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(compiled, jobs.values()))

    def captured(self, launches: Callable[[Step], None], step: Step) -> Callable[[Step], None]:
        """A sequence of kernels that will be run many times on the same arrays, as a CUDA graph.

        In a thread that began with `begin_thread` and ran these kernels before, for the same shapes.
        """
        if self.device.type != "cuda":
            return launches
        replay = cuda.graph_of([lambda: launches(step)], self.device)
        return lambda _: replay()

    def forward(self, step: Step, i: int, inputs: torch.Tensor, weights: torch.Tensor) -> None:
        """Block i: products, upsampling, ReLU, and partial sums for the normalisation that follows."""
        work: _Scratch = step.scratch
        (h, w), (H, W), K = step.prior.sizes[i], step.prior.sizes[i + 1], step.width
        last = i == step.prior.blocks - 1
        z, split = step.z[i], work.blends[i]
        with cuda.on(self.device):
            self._fold(step, i, weights)
            work.times(_pixels(step.r[i - 1] if i else inputs), work.folded[i], z, self.precision(step))
            _blend[(split.parts, triton.cdiv(K, work.outs), work.units)](
                z, work.constants[i], z if last else step.r[i], work.partial, *work.upsampling(i), h, w, H, W,
                split.tall, work.turn(), K=K, CHANNELS=work.outs, PIXELS=split.pixels, KEEP=not last,
                num_warps=work.tuning.blend[2],
            )  # fmt: skip

    def head(self, step: Step, weights: torch.Tensor, gradients: torch.Tensor, image: torch.Tensor, mode: int) -> None:
        """Convolution to the image, and sigmoid where the head has it."""
        work: _Scratch = step.scratch
        prior, K, split, i = step.prior, step.width, work.head, step.prior.blocks
        C, k, ((h, w), (H, W)) = prior.channels, prior.k, prior.sizes[-2:]
        with cuda.on(self.device):
            if mode != self.GRADIENT:
                self._fold(step, i, weights)  # before `GRADIENT`, `OUTPUT` did it
            _head[(split.parts, C, work.units)](
                step.z[-1], work.constants[i - 1], step.head, work.constants[i], image.contiguous(), step.measured,
                step.grad_logits, step.outputs, work.head_partial, work.head_sums, *work.upsampling(i - 1), h, w, H, W,
                split.tall, work.tiles, work.turn(), K=K, C=C, CHANNELS=work.channels, PIXELS=split.pixels,
                GRADIENTS=mode != self.OUTPUT, ERRORS=mode == self.MSE, SHARED=len(image) < len(step.losses),
                SIGMOID=prior.head == "sigmoid", num_warps=work.tuning.head[2],
            )  # fmt: skip
            if mode == self.OUTPUT:
                return
            channels, (table, warps) = min(16, work.channels), work.tuning.fold
            _head_gradient[(triton.cdiv(K, channels), work.units)](
                weights, work.into(gradients), step.affine[i], work.head_partial, work.head_sums, step.losses,
                step.measured, work.alpha_beta, split.parts, weights.shape[1], step.at[i] - 2 * k, step.at[i], k, H * W,
                work.tiles, K=K, C=C, COLOURS=work.colours, CHANNELS=channels, ROWS=table // (work.colours * channels),
                ERRORS=mode == self.MSE, num_warps=warps,
            )  # fmt: skip

    def backward(
        self, step: Step, i: int, inputs: torch.Tensor, weights: torch.Tensor, gradients: torch.Tensor
    ) -> None:
        """Block i: gradients of its convolution and of the normalisation before it, and what reaches that."""
        work: _Scratch = step.scratch
        prior, K, split, k, chunks = step.prior, step.width, work.gathers[i], step.prior.k, work.chunks[i]
        (h, w), (H, W) = prior.sizes[i], prior.sizes[i + 1]
        last = i == prior.blocks - 1
        z, d = step.z[i], step.d[i]
        rows, columns = work.axes[i]
        with cuda.on(self.device):
            if not last:
                work.times(_pixels(step.d[i + 1]), work.transposed[i + 1], work.dy, self.precision(step))
            _gather[(split.parts, triton.cdiv(K, work.tuning.gather[2]), work.units)](
                z, work.constants[i], step.head, step.grad_logits, z if last else step.r[i], work.dy, work.alpha_beta,
                d, rows.start, rows.fraction, columns.start, columns.fraction, h, w, H, W, split.tall,
                work.taps[i], work.turn(), K=K, C=prior.channels, CHANNELS=work.tuning.gather[2], COLUMNS=split.pixels,
                TAPS=min(_TAPS, work.taps[i]), LAST=last,
                num_warps=work.tuning.gather[3], maxnreg=_REGISTERS if work.taps[i] <= 4 else None,
            )  # fmt: skip
            x = step.r[i - 1] if i else inputs
            work.correlate(_pixels(x), _pixels(d), work.chunk[i], self.precision(step))
            (channels, _, table, warps), outs = work.tuning.gradient, work.channels
            together = min(_power(chunks), max(1, table // (channels * outs)))
            _block_gradient[(triton.cdiv(K, channels), work.units)](
                weights, work.into(gradients), step.affine[i], work.correlation, work.correlation_sums, work.alpha_beta,
                chunks, weights.shape[1], step.at[i] - 2 * k, step.at[i], k, h * w, work.tiles, K=K, OUTS=outs,
                CHANNELS=channels, CHUNKS=together, ROWS=table // outs, INPUT=i == 0, num_warps=warps,
            )  # fmt: skip
            if i == 0 and work.tiles > 1:
                members, parameters = weights.shape
                _add_tiles[(triton.cdiv(parameters, _UPDATE), members)](
                    work.unit_gradients, gradients, parameters, work.tiles, BLOCK=_UPDATE
                )

    def precision(self, step: Step) -> str:
        """Of the factors of products: bfloat16, float32 in parts that tensor cores take, or what they are."""
        if step.dtype == "float32" and (step.precision == "bfloat16" or self.in_parts):
            return step.precision
        return "ieee"

    def _fold(self, step: Step, i: int, weights: torch.Tensor) -> None:
        """The normalisation before convolution i, and that convolution; the last is the head."""
        work: _Scratch = step.scratch
        prior, K, k = step.prior, step.width, step.prior.k
        l = prior.blocks
        outs, padded = (k, K) if i < l else (prior.channels, prior.channels)
        block = min(16, _power(padded))
        parts = work.blends[i - 1].parts if i else 0
        H, W = prior.sizes[i]
        _fold[(triton.cdiv(padded, block), work.units)](
            weights, work.partial, step.affine[i], work.folded[i], work.transposed[min(i, l - 1)], work.constants[i],
            parts, H * W, weights.shape[1], step.at[i] - 2 * k, step.at[i], outs, k, work.tiles, K=K, OUTS=padded,
            BLOCK=block, CHANNELS=work.channels, ROWS=work.tuning.fold[0] // work.channels, INPUT=i == 0,
            BACK=0 < i < l, PARTS=work.parts and i < l, num_warps=work.tuning.fold[1],
        )  # fmt: skip


def _pixels(values: torch.Tensor) -> torch.Tensor:
    """(M, T, h, w, K) as a batch of matrices."""
    return values.view(values.shape[0] * values.shape[1], -1, values.shape[-1])
