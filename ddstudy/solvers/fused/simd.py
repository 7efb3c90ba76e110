"""Vectors for numba: values of a fixed number of lanes that stay in the processor's registers.

numba vectorises simple loops only; the kernels of the fit blend four corners into a varying number of pixels and
keep running sums, which it leaves scalar. Here a `Vector` is a numba type of its own, lowered to an LLVM vector, so
that a kernel says what stays in registers. LLVM splits vectors that are wider than the processor's.

The number of lanes is part of a type, so functions take it as a tuple of that length (`LANES_8`, `LANES_16`): numba
compiles a version for each. Loads and stores do not check bounds and count elements from the start of a contiguous
array of any shape.

numba keeps compiled functions on disk under the date of the file that they are in: after a change here, touch
`kernels_cpu.py`.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir

# private parts of numba, and what another version no longer has tests/test_canaries.py says: `numba.extending` makes
# types and functions, but has no blocks of LLVM code (cgutils) and no types for Python's operators (templates)
from numba.core import cgutils, types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

LANES_1 = (0,)
LANES_8 = (0,) * 8
LANES_16 = (0,) * 16

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_ELEMENTS = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}


def _intrinsic(function: Any) -> Any:
    return intrinsic(function)  # untyped, since numba's own type knows the typing context as an argument


class Vector(types.Type):
    """numba type: `lanes` numbers of `dtype`."""

    def __init__(self, dtype: Any, lanes: int) -> None:
        self.dtype, self.lanes = dtype, lanes
        super().__init__(name=f"Vector({dtype}, {lanes})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, ir.VectorType(_ELEMENTS[vector.dtype], vector.lanes))


def _operator(symbol: Any, instruction: str) -> None:
    @infer_global(symbol)
    class OnVectors(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            same = len(args) == 2 and args[0] == args[1] and isinstance(args[0], Vector)
            return signature(args[0], *args) if same else None

    @lower_builtin(symbol, Vector, Vector)  # type: ignore[untyped-decorator]
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, instruction)(*args)


_operator(operator.add, "fadd")
_operator(operator.sub, "fsub")
_operator(operator.mul, "fmul")
_operator(operator.truediv, "fdiv")


class _Code:
    """What the intrinsics below share: pieces of LLVM code around one builder."""

    def __init__(self, context: Any, builder: Any, sig: Any) -> None:
        self.context, self.builder, self.sig = context, builder, sig

    def address(self, argument: int, args: Any, index: Any) -> Any:
        """Of an element of the array that is argument number `argument`."""
        array = self.context.make_array(self.sig.args[argument])(self.context, self.builder, args[argument])
        return self.builder.gep(array.data, [index])

    def load(self, address: Any, kind: ir.VectorType) -> Any:
        value = self.builder.load(self.builder.bitcast(address, kind.as_pointer()))
        value.align = _bytes(kind)
        return value

    def store(self, value: Any, address: Any) -> None:
        store = self.builder.store(value, self.builder.bitcast(address, value.type.as_pointer()))
        store.align = _bytes(value.type)

    def broadcast(self, value: Any, lanes: int) -> Any:
        undefined = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
        first = self.builder.insert_element(undefined, value, _I32(0))
        return self.builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes))

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        suffix = {"float": "f32", "double": "f64"}[str(a.type.element)]
        kind = ir.FunctionType(a.type, [a.type] * 3)
        name = f"llvm.fmuladd.v{a.type.count}{suffix}"
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), [a, b, c])

    def pick(self, value: Any, places: list[int], more: Any = None) -> Any:
        """Some of the lanes of a vector, or of two after each other."""
        more = ir.Constant(value.type, ir.Undefined) if more is None else more
        return self.builder.shuffle_vector(value, more, ir.Constant(ir.VectorType(_I32, len(places)), places))


def _bytes(kind: ir.VectorType) -> int:
    return 8 if isinstance(kind.element, ir.DoubleType) else 4


def _constant(kind: ir.VectorType, value: float) -> ir.Constant:
    return ir.Constant(kind, [value] * kind.count)


@_intrinsic
def load(typing: Any, array: Any, index: Any, lanes: Any) -> Any:
    """As many consecutive elements as `lanes` is long."""
    vector = Vector(array.dtype, lanes.count)

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        this = _Code(context, builder, sig)
        return this.load(this.address(0, args, args[1]), context.get_value_type(vector))

    return vector(array, types.intp, lanes), code


@_intrinsic
def store(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Writes a vector to consecutive elements."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        this = _Code(context, builder, sig)
        this.store(args[2], this.address(0, args, args[1]))
        return context.get_dummy_value()

    return types.void(array, types.intp, value), code


@_intrinsic
def splat(typing: Any, array: Any, index: Any, lanes: Any) -> Any:
    """One element of an array in all lanes."""
    vector = Vector(array.dtype, lanes.count)

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        this = _Code(context, builder, sig)
        return this.broadcast(builder.load(this.address(0, args, args[1])), vector.lanes)

    return vector(array, types.intp, lanes), code


@_intrinsic
def same(typing: Any, value: Any, array: Any, lanes: Any) -> Any:
    """A number in all lanes, as the array's type."""
    vector = Vector(array.dtype, lanes.count)

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        number = context.cast(builder, args[0], sig.args[0], array.dtype)
        return _Code(context, builder, sig).broadcast(number, vector.lanes)

    return vector(value, array, lanes), code


@_intrinsic
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, in one instruction where the processor has it."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _Code(context, builder, sig).fma(*args)

    return a(a, b, c), code


@_intrinsic
def relu(typing: Any, a: Any) -> Any:
    """max(a, 0); NaN stays NaN, so that a fit that diverged is seen."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        zero = ir.Constant(args[0].type, None)
        return builder.select(builder.fcmp_ordered(">", zero, args[0]), zero, args[0])

    return a(a), code


@_intrinsic
def where_positive(typing: Any, a: Any, b: Any) -> Any:
    """b where a > 0, else 0."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        zero = ir.Constant(args[0].type, None)
        return builder.select(builder.fcmp_ordered(">", args[0], zero), args[1], zero)

    return a(a, b), code


@_intrinsic
def where_number(typing: Any, a: Any, b: Any) -> Any:
    """b where a is a number, 0 where it is NaN; where b is NaN it stays so."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        zero = ir.Constant(args[0].type, None)
        return builder.select(builder.fcmp_ordered("ord", args[0], zero), args[1], zero)

    return a(a, b), code


@_intrinsic
def total(typing: Any, a: Any) -> Any:
    """The sum of all lanes, by halves."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value = args[0]
        while value.type.count > 1:
            half = value.type.count // 2
            pick = _Code(context, builder, sig).pick
            value = builder.fadd(pick(value, list(range(half))), pick(value, list(range(half, 2 * half))))
        return builder.extract_element(value, _I32(0))

    return a.dtype(a), code


@_intrinsic
def exp(typing: Any, a: Any) -> Any:
    """e^a to the last digit or two; a is held within what the type can express, NaN stays NaN.

    a = n ln 2 + r with |r| <= ln 2 / 2: a Taylor polynomial in r, and n goes into the exponent's bits.
    """

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = args[0].type
        single = isinstance(kind.element, ir.FloatType)
        limit, degree, shift, one = (87.0, 7, 23, 0x3F800000) if single else (700.0, 13, 52, 0x3FF0000000000000)
        # adding 1.5 * 2^(bits of the mantissa) rounds to a whole number and leaves it in the lowest bits
        magic = _constant(kind, 12582912.0 if single else 6755399441055744.0)
        # ln 2 in two parts: n times the first is exact
        high, low = (0.693359375, -2.12194440e-4) if single else (0.6931471803691238, 1.9082149292705877e-10)
        integers = ir.VectorType(_I32 if single else _I64, kind.count)
        fma = _Code(context, builder, sig).fma
        x = args[0]
        for bound, beyond in ((limit, ">"), (-limit, "<")):
            x = builder.select(builder.fcmp_ordered(beyond, x, _constant(kind, bound)), _constant(kind, bound), x)
        shifted = fma(x, _constant(kind, 1.4426950408889634), magic)
        n = builder.fsub(shifted, magic)
        r = fma(n, _constant(kind, -high), x)
        r = fma(n, _constant(kind, -low), r)
        factorial = 1.0
        for i in range(2, degree + 1):
            factorial *= i
        value = _constant(kind, 1 / factorial)
        for i in range(degree, 0, -1):
            factorial /= i
            value = fma(value, r, _constant(kind, 1 / factorial))
        bits = builder.shl(builder.bitcast(shifted, integers), _constant(integers, shift))
        scale = builder.add(bits, _constant(integers, one))
        return builder.fmul(value, builder.bitcast(scale, kind))

    return a(a), code


@_intrinsic
def dots(typing: Any, A: Any, a: Any, B: Any, b: Any, depth: Any, lanes: Any) -> Any:
    """As many dot products as a vector has lanes.

    `dots(A, (a, aq), B, b, depth, lanes)` has in lane i

        sum over q < depth and t < lanes of A[a + i lanes + q aq + t] * B[b + q lanes + t]

    The vectors of partial sums are added to each other by halves, such that each addition serves several i.
    """
    vector = Vector(A.dtype, lanes.count)

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        this = _Code(context, builder, sig)
        kind, n = context.get_value_type(vector), vector.lanes
        start, step = cgutils.unpack_tuple(builder, args[1])
        sums = [cgutils.alloca_once_value(builder, ir.Constant(kind, None)) for _ in range(n)]
        with cgutils.for_range(builder, args[4]) as loop:
            right = this.load(this.address(2, args, builder.add(args[3], builder.mul(loop.index, _I64(n)))), kind)
            first = builder.add(start, builder.mul(loop.index, step))
            for i in range(n):
                left = this.load(this.address(0, args, builder.add(first, _I64(i * n))), kind)
                builder.store(this.fma(left, right, builder.load(sums[i])), sums[i])
        # blocks of `size` lanes belong to one i each; lane i of the last vector is i if i and i + n / 2 meet first
        parts, size = [builder.load(one) for one in sums], n
        order = [int(f"{i:0{n.bit_length() - 1}b}"[::-1], 2) for i in range(n)] if n > 1 else [0]
        parts = [parts[i] for i in order]
        while size > 1:
            half = size // 2
            firsts = [lane + offset for lane in range(0, n, size) for offset in (*range(half), *range(n, n + half))]
            seconds = [lane + half for lane in firsts]
            pairs = zip(parts[::2], parts[1::2], strict=True)
            parts = [builder.fadd(this.pick(u, firsts, v), this.pick(u, seconds, v)) for u, v in pairs]
            size = half
        return parts[0]

    index = types.intp
    return vector(A, types.UniTuple(index, 2), B, index, index, lanes), code


def product(rows: int, columns: int) -> Any:
    """Makes the inner part of a matrix product: a tile of the result that lives in registers.

    The made intrinsic `(A, (a, ai, aq, at), B, (b, bj, bq, bt), S, (s, si, sj), C, (c, ci, cj), depth, inner, lanes)`
    computes, for i < rows, j < columns, and vectors of as many lanes as `lanes` is long,

        C[c + i ci + j cj] = S[s + i si + j sj]
                             + sum over q < depth and t < inner of A[a + i ai + q aq + t at] * B[b + j bj + q bq + t bt]

    with vectors of B, C and S, single elements of A. Terms are added in the order of q, then t, whatever the tile's
    size, so results do not depend on it.
    """

    @_intrinsic
    def tile(
        typing: Any, A: Any, a: Any, B: Any, b: Any, S: Any, s: Any, C: Any, c: Any, depth: Any, inner: Any, lanes: Any
    ) -> Any:
        vector = Vector(C.dtype, lanes.count)
        grid = [(i, j) for i in range(rows) for j in range(columns)]

        def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            this = _Code(context, builder, sig)
            kind = context.get_value_type(vector)
            depth, inner = args[8], args[9]

            def address(array: int, *steps: Any) -> Any:
                """Of the element at the start that follows the array's argument, plus steps times its strides."""
                start, *strides = cgutils.unpack_tuple(builder, args[array + 1])
                for step, stride in zip(steps, strides, strict=True):
                    start = builder.add(start, builder.mul(stride, _I64(step) if isinstance(step, int) else step))
                return this.address(array, args, start)

            sums = {}
            for i, j in grid:
                sums[i, j] = cgutils.alloca_once_value(builder, this.load(address(4, i, j), kind))
            with cgutils.for_range(builder, depth) as outer, cgutils.for_range(builder, inner) as loop:
                right = [this.load(address(2, j, outer.index, loop.index), kind) for j in range(columns)]
                for i in range(rows):
                    left = this.broadcast(builder.load(address(0, i, outer.index, loop.index)), vector.lanes)
                    for j in range(columns):
                        builder.store(this.fma(left, right[j], builder.load(sums[i, j])), sums[i, j])
            for i, j in grid:
                this.store(builder.load(sums[i, j]), address(6, i, j))
            return context.get_dummy_value()

        index = types.intp
        four, three = types.UniTuple(index, 4), types.UniTuple(index, 3)
        return types.void(A, four, B, four, S, three, C, three, index, index, lanes), code

    return tile
