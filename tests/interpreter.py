"""Triton's interpreter for tests: programs that compute in it, and a quicker one.

Triton decides at its import whether it interprets, and torch may import it. So what is interpreted is computed by
programs of its own.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray


def numbers_of(program: str, folder: Path) -> dict[str, NDArray[Any]]:
    """What a program, which takes the name of a .npz file, computes in the interpreter."""
    file = folder / "numbers.npz"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, program, str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert not done.returncode, done.stdout + done.stderr
    with np.load(file) as numbers:
        return dict(numbers)


def quicken() -> None:
    """Keeps what the interpreter makes anew for each operation, three times the work of the operation itself.

    It looks for all functions of its language to patch them at every call, and makes the type and the shape of every
    block. In a program that only interprets, they are patched once, each type is made once, and blocks of the same
    shape need no look at its sides. What it computes to find overflows it tells only where it is debugged.

    Products of bfloat16 it makes of their bit patterns, as Triton 3.8 still does: here, of their values.
    """
    import triton.language as tl  # type: ignore[import-untyped]
    from triton.runtime import interpreter  # type: ignore[import-untyped]

    interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    interpreter._patch_lang = lambda _: interpreter._LangPatchScope()

    dtypes: dict[str, Any] = {}
    dtype_of = interpreter._get_np_dtype

    def known_dtype(kind: Any) -> Any:
        if kind.scalar.name not in dtypes:
            dtypes[kind.scalar.name] = dtype_of(kind.scalar)
        return dtypes[kind.scalar.name]

    interpreter._get_np_dtype = known_dtype

    dot = interpreter.InterpreterBuilder.create_dot

    def values_of(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    interpreter.InterpreterBuilder.create_dot = lambda self, a, b, *rest: dot(self, values_of(a), values_of(b), *rest)

    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)

    blocks: dict[tuple[Any, ...], Any] = {}
    shapes: dict[tuple[Any, ...], Any] = {}
    describe = tl.block_type.__init__

    def known_block(cls: Any, element_ty: Any, shape: Any) -> Any:
        key = (element_ty.name, *(side.value if isinstance(side, tl.constexpr) else side for side in shape))
        if key not in blocks:
            made = blocks[key] = object.__new__(cls)
            describe(made, element_ty, shape)
            sides = tl.tuple([tl.constexpr(side) for side in made.shape]), tl.constexpr(made.numel)
            made.of_tensor = shapes.setdefault(key[1:], sides)
        return blocks[key]

    of_scalar = tl.tuple([]), tl.constexpr(1)

    def describe_tensor(self: Any, handle: Any, type: Any) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = type.of_tensor if type.is_block() else of_scalar

    semantic = interpreter.TritonSemantic
    broadcast = semantic.broadcast_impl_value

    def broadcast_others(self: Any, lhs: Any, rhs: Any) -> Any:
        return (lhs, rhs) if lhs.shape is rhs.shape else broadcast(self, lhs, rhs)

    semantic.broadcast_impl_value = broadcast_others
    tl.block_type.__new__, tl.block_type.__init__ = known_block, lambda *_: None
    tl.block_type.__eq__, tl.block_type.__hash__ = object.__eq__, object.__hash__
    tl.tensor.__init__ = describe_tensor
