"""What the compiler makes of the CUDA kernels, on any machine, and which sizes of their blocks are fastest, on a GPU.

    python benchmarks/gpu_kernels.py [--sm 90] [K ...]
    python benchmarks/gpu_kernels.py --tune [K ...]

The first compiles what the iterations of 5 members launch, whole slice and 4x5 of three colours at s = 16, l = 5, for
an H100 (or `--sm 80`, an A100, or `--sm 75`, a T4) that need not be there. It prints for each kernel: programs, warps,
registers of a thread, bytes that it spills, shared memory of a program, how many programs a multiprocessor has room
for, instructions of the longest loop, and factors of products that are read from shared memory with bank conflicts,
that is, from a layout without swizzle. Lines with # tell how long compiling took, side by side
(`TritonKernels.compile`).

`--tune` measures each kernel with several sizes of its blocks, for the table `_TUNED` in kernels_cuda.py. Sizes are a
table and not chosen at run time: they decide how sums are rounded, and a study's numbers must not depend on which
sizes were faster in the moment it began.
"""

import argparse
import contextlib
import itertools
import os
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fit_speed import median_seconds
from gpu import DEVICE, KS, whole_slice, work_of

from ddstudy.priors.deep_decoder import deep_decoder
from ddstudy.solvers import fused
from ddstudy.solvers.fused.step import Step

MEMBERS = 5
# of one multiprocessor: registers, bytes of shared memory, and what each program takes of it beside its own
REGISTERS, SHARED, RESERVED = 65536, {75: 65536, 80: 167936, 90: 233472}, 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("k", type=int, nargs="*", default=KS, metavar="K", help="channels")
    parser.add_argument("--sm", type=int, choices=SHARED, default=90, help="compute capability to compile for")
    parser.add_argument("--tune", action="store_true", help="measure sizes of blocks, on a GPU")
    options = parser.parse_args()
    if options.tune:
        tune(options.k)
    else:
        resources(options.k, options.sm)


# what the compiler makes of them


def resources(ks: list[int], sm: int) -> None:
    """Prints a line for each kernel that differs from those before it, and how long they took to compile."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    class Absent:
        """A GPU to compile for."""

        get_current_target = staticmethod(lambda: GPUTarget("cuda", sm, 32))
        get_current_device = staticmethod(lambda: 0)
        get_current_stream = staticmethod(lambda device: 0)

    launches: list[tuple[str, Any, Any]] = []
    compiled: list[Any] = []

    def recorded(kernel: Any, grid: Any) -> Callable[..., None]:
        def launch(*arguments: Any, **constants: Any) -> None:
            launches.append((kernel.fn.__name__, grid, kernel.warmup(*arguments, grid=grid, **constants)))

        return launch

    def counted(compile: Callable[..., Any]) -> Callable[..., Any]:
        def once(*arguments: Any, **options: Any) -> Any:
            compiled.append(compile(*arguments, **options))
            return compiled[-1]

        return once

    driver.set_active(Absent())
    JITFunction.__getitem__ = recorded
    triton.compiler.compile = counted(triton.compiler.compile)
    kernels = fused.kernels_for("cuda:0").without_memory()
    kernels.in_parts = sm >= 80
    print("  k kernel           programs  warps  registers  spilled  shared  at a time  loop  conflicts")
    for k in ks:
        start, seen = time.perf_counter(), set()
        for tiles, colours, height, width in ((1, 1, 256, 320), (20, 3, 64, 64)):
            launches.clear()
            compiled.clear()
            launch_all = iteration(kernels, k, tiles, colours, height, width)
            kernels.compile(launch_all)
            seconds, number = time.perf_counter() - start, len(compiled)
            launch_all()
            print(f"# {number} kernels in {seconds:.1f} s, {len(compiled) - number} when they were launched")
            for name, grid, made in launches:
                if made.hash not in seen:
                    seen.add(made.hash)
                    print(f"{k:3d} {line(name, grid, made, SHARED[sm])}", flush=True)
            start = time.perf_counter()


def line(name: str, grid: tuple[int, ...], made: Any, memory: int) -> str:
    """What a kernel takes, of a multiprocessor with that much shared memory."""
    warps, shared = made.metadata.num_warps, made.metadata.shared
    registers, spilled, loop = of_cubin(made.asm["cubin"])
    together = min(64 // warps, REGISTERS // (-(-registers // 8) * 8 * 32 * warps), memory // (shared + RESERVED))
    return (
        f"{name:16s} {'x'.join(map(str, grid)):>9s} {warps:5d} {registers:10d} {spilled:8d} {shared:7d}"
        f" {together:10d} {loop:5d} {conflicts(made.asm['ttgir']):10d}"
    )


def iteration(kernels: Any, k: int, tiles: int, colours: int, height: int, width: int) -> Callable[[], None]:
    """What launches all kernels there are, on arrays without memory."""
    prior = deep_decoder(k, 16, 5, height, width, colours)
    step = Step(prior, np.zeros((tiles, colours, height, width)), MEMBERS, kernels)
    weights = kernels.zeros((MEMBERS, prior.parameters), "float32")
    inputs = kernels.zeros((MEMBERS, tiles, *prior.sizes[0], step.width), "float32")

    def launch_all() -> None:
        step.mse(inputs, weights, weights)
        step.forward(inputs, weights)
        step.backward(inputs, weights, step.outputs, weights)
        kernels.Adam(weights, 0.01).update(weights)
        for keep in ("best", "average"):
            kernels.Iterate(weights, keep).update(step.losses, weights)

    return launch_all


def of_cubin(cubin: bytes) -> tuple[int, int, int]:
    """Registers of a thread, bytes that it spills, and instructions of the longest loop."""
    import triton

    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        texts = [
            subprocess.run([tools / tool, option, file.name], check=True, capture_output=True, text=True).stdout
            for tool, option in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        ]
    found = re.search(r"REG:(\d+) STACK:(\d+)", texts[0])
    assert found, texts[0]
    labels: dict[str, int] = {}
    at = longest = 0
    for line in texts[1].splitlines():
        if label := re.match(r"(\.L_\S+):", line.strip()):
            labels[label[1]] = at
        elif re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+\S", line):
            at += 1
            target = re.search(r"\bBRA\b.*`\((\.L_\S+)\)", line)
            if target and target[1] in labels:
                longest = max(longest, at - labels[target[1]])
    return int(found[1]), int(found[2]), longest


def conflicts(text: str) -> int:
    """Factors of products that are read from a layout without swizzle, of Triton's own last listing."""
    shared = dict(re.findall(r"^(#\w+) = #ttg\.((?:swizzled|nvmma)_shared<.*)", text, re.MULTILINE))
    if re.search(r"\b(tt\.dot|warp_group_dot) ", text) and not shared:
        raise ValueError("Triton writes its listings in another way")
    plain = [name for name, layout in shared.items() if "vec = 1, perPhase = 1, maxPhase = 1," in layout]
    reads = re.findall(r"local_load .*?, (#\w+), #smem.*-> tensor<[^,]*, (#[\w.]+)", text)
    return sum(source in plain and not layout.startswith("#blocked") for source, layout in reads)


# which sizes of blocks are fastest


def candidates(K: int) -> list[Any]:
    """The sizes in use, and others: the i-th choice of all kernels at once, so that few iterations measure all."""
    from ddstudy.solvers.fused.kernels_cuda import _block, _power, _Tuning, _tuning

    used = _tuning(K)
    columns, channels = max(16, _block(K, 16, 64)), _block(K, 8, 64)
    inner = min(32, columns)
    fold = [(8192, 4), (8192, 8), (16384, 8), (4096, 8)]
    blend = [(128, 1024, 4), (256, 512, 2), (256, 1024, 2), (128, 1024, 2)]
    head = [(256, 1024, 4), (512, 1024, 2), (1024, 512, 2), (512, 512, 2), (512, 1024, 4)]
    gather = [
        (programs, max(4, numbers // each), each, warps)
        for programs, numbers, warps in [(256, 512, 4), (512, 512, 4), (256, 256, 2), (512, 256, 2)]
        for each in sorted({channels, max(8, channels // 2)}, reverse=True)
    ]
    if K >= 64:
        correlation = [
            ((64, 64, 32, 4), 64), ((64, 64, 32, 4), 96), ((64, 64, 64, 4), 64), ((64, 32, 32, 4), 64),
            ((64, 128, 32, 4), 64), ((128, 64, 32, 8), 64), ((128, 128, 32, 8), 64), ((64, 64, 16, 4), 64),
        ]  # fmt: skip
        wide = min(128, _power(K))
        product = [(64, 64, 32, 4, 3, 0), (128, 64, 32, 4, 3, 0), (128, 64, 32, 8, 3, 0), (64, wide, 32, 4, 3, 0),
                   (128, wide, 32, 8, 3, 0), (256, 64, 32, 8, 2, 0), (128, 64, 64, 8, 2, 0)]  # fmt: skip
        if K == 64:
            product = [(64, 64, 32, 4, 3, 0), (64, 64, 32, 4, 2, 152), (64, 64, 32, 4, 3, 51), (64, 64, 32, 4, 2, 51),
                       (128, 64, 32, 8, 2, 51), (64, 64, 64, 4, 2, 76)]  # fmt: skip
    else:
        correlation = [
            ((columns, columns, pixels, warps), chunks)
            for chunks in (64, 128)
            for pixels, warps in [(32, 1), (32, 2), (64, 2), (64, 4)]
        ]
        product = [(64, columns, inner, 4, 2, 0), (64, columns, inner, 4, 2, 128), (64, columns, inner, 4, 3, 256),
                   (128, columns, inner, 4, 2, 128), (128, columns, inner, 8, 2, 128)]  # fmt: skip
    sums = [(1, 8192, 4), (1, 2048, 2), (2, 8192, 4), (1, 4096, 2), (2, 4096, 4), (1, 8192, 8)]
    gradient = [(n, chunks, table, warps) for (n, table, warps), (_, chunks) in
                zip(itertools.cycle(sums), correlation, strict=False)]  # fmt: skip
    lists = [fold, blend, head, gather, gradient, product, [blocks for blocks, _ in correlation]]
    others = itertools.zip_longest(*lists)
    return [used] + [
        _Tuning(*[old if new is None else new for old, new in zip(used, each, strict=True)]) for each in others
    ]


# fields of a tuning, and the kernels whose times they decide: chunks of the correlation are what the gradient adds up
PARTS = {
    ("fold",): ("_fold",), ("blend",): ("_blend",), ("head",): ("_head", "_head_gradient"), ("gather",): ("_gather",),
    ("product",): ("_pixel_product", "_wide_product"), ("gradient", "correlation"): ("_block_gradient", "_correlation"),
}  # fmt: skip


def group_of(k: int, tuning: Any) -> Callable[[], None]:
    """An iteration of 5 members with the given sizes."""
    from ddstudy.solvers.fused import kernels_cuda

    kernels_cuda._tuning = lambda _: tuning
    kernels, work = fused.kernels_for(DEVICE), work_of(whole_slice(), k, 16, 5)
    step = Step(work.prior, work.measurement, len(work.weights), kernels)
    weights, inputs = kernels.from_numpy(work.weights, "float32"), step.pad(work.inputs)
    gradients = torch.zeros_like(weights)
    adam, kept = kernels.Adam(weights, 0.01), kernels.Iterate(weights, "best")

    def iterate() -> None:
        kept.update(step.mse(inputs, weights, gradients), weights)
        adam.update(gradients)

    return iterate


def compile_only(job: tuple[int, int]) -> str:
    k, index = job
    try:
        group_of(k, candidates(k)[index])()
        torch.cuda.synchronize()
    except Exception as error:  # sizes that a card has no room for, in whatever words the compiler has; it is printed
        return f"{k} {index}: {str(error)[:200]}"
    return ""


def kernel_times(iterate: Callable[[], None], repeats: int = 5) -> dict[str, float]:
    """Microseconds of each kernel in an iteration, medians."""
    from torch.profiler import ProfilerActivity, profile

    iterate()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(repeats):
            iterate()
        torch.cuda.synchronize()
    events = sorted((e for e in profiler.events() if e.name.startswith("_")), key=lambda e: e.time_range.start)
    length = len(events) // repeats
    times: dict[str, float] = {}
    for i in range(length):
        each = [events[i + n * length].time_range.elapsed_us() for n in range(repeats)]
        times[events[i].name] = times.get(events[i].name, 0.0) + statistics.median(each)
    return times


@contextlib.contextmanager
def captured(iterate: Callable[[], None]) -> Iterator[torch.cuda.CUDAGraph]:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        iterate()
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin()
        iterate()
        graph.capture_end()
        yield graph


def tune(ks: list[int]) -> None:
    """Prints the sizes that are fastest for each kernel, and the time of an iteration with them."""
    from ddstudy.solvers.fused import kernels_cuda

    padded = {k: -(-k // 8) * 8 for k in ks}
    jobs = [(k, i) for k in sorted(ks, reverse=True) for i in range(len(candidates(padded[k])))]
    with ProcessPoolExecutor(min(15, os.cpu_count() or 1), mp_context=get_context("spawn")) as pool:
        for failure in filter(None, pool.map(compile_only, jobs)):
            print("left out:", failure)
    for k in ks:
        best: dict[tuple[str, ...], tuple[float, Any]] = {}
        for tuning in candidates(padded[k]):
            try:
                times = kernel_times(group_of(k, tuning))
            except Exception as error:  # as in `compile_only`
                print(f"left out: {str(error)[:100]}")
                continue
            for fields, kernels in PARTS.items():
                found = sum(times.get(kernel, 0) for kernel in kernels), [getattr(tuning, field) for field in fields]
                best[fields] = min(best.get(fields, found), found)
        chosen = kernels_cuda._Tuning(
            **{f: value for fields, (_, some) in best.items() for f, value in zip(fields, some, strict=True)}
        )
        iterate = group_of(k, chosen)
        times = kernel_times(iterate)
        with captured(iterate) as graph:
            ms = 1e3 * median_seconds(lambda: [graph.replay() for _ in range(20)]) / 20
        print(f"    {padded[k]}: _Tuning{tuple(chosen)},")
        print(f"    # {ms:.3f} ms;", ", ".join(f"{name[1:]} {value:.0f}" for name, value in times.items()), flush=True)


if __name__ == "__main__":
    main()
