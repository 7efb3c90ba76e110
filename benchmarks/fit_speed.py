"""Seconds and quality of the fused engine beside the reference engine, and how close it comes to the machine's limit.

    python benchmarks/fit_speed.py [--quick] [--k 64 192] [--precision bfloat16] [--json FILE]

MNI152 mid axial slice at 256x320, 5 members. Both engines run in one process on the same threads, alternating stretch
by stretch; times are medians of stretches, in milliseconds per iteration and member. `--quick` is the whole slice with
s = 16, l = 5 only. PSNR is that of the ensemble after the same number of iterations.

The floor is what this machine would need at its own measured rates: the operations that the step must do over the rate
of a large float32 matrix product, plus the bytes that it must move over the rate of a copy. Operations: six times k^2
for every low-resolution pixel (forward, gradient of the input, gradient of the weights), and for every channel of every
high-resolution pixel what upsampling, ReLU, sums and their gradients need (counted below). Bytes: each stored
activation and gradient is written once and read once for each use.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ddstudy.decoder import Geometry
from ddstudy.evaluate import Job, device_name, problem
from ddstudy.executors import resolve_device, usable_cores
from ddstudy.fit import Problem, Snapshot, choose, fit
from ddstudy.metrics import psnr
from ddstudy.settings import Fit
from ddstudy.spec import FitSpec, NoiseSpec, StabilitySpec, TargetSpec
from ddstudy.target import Target, join, load_target

STRETCHES = 5
# floating-point operations per channel and pixel: bilinear blend 2, ReLU 1, sums 3
FORWARD = 6
# mask 1, normalisation's gradient 3, transposed blend 3
BACKWARD = 7
# the last block again: blend and ReLU 3 in the head and 2 in the backward pass, head's product 2, its gradient 2 and 2
LAST = 11


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="whole slice, s = 16, l = 5 only: under 5 minutes")
    parser.add_argument("--k", type=int, nargs="+", default=[8, 16, 32, 64, 96, 128, 192])
    parser.add_argument("--precision", default="auto", help="of the fused engine's matrix products")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cases = [(16, 5, "1x1")] if options.quick else list(itertools.product((8, 32), (4, 6), ("1x1", "4x5")))
    target = load_target(TargetSpec(size=(256, 320)))
    device, threads = resolve_device("auto"), usable_cores()
    rates = measured_rates(device, threads)
    print(f"{target.name}, 256x320, {device_name(device)}, {threads} threads")
    print(f"matrix product {rates[0] / 1e9:.0f} GFLOP/s, copy {rates[1] / 1e9:.1f} GB/s, both measured here")
    print("  k  s l tiling  reference    fused  ratio   floor  of floor   GFLOP/s   GB/s  PSNR reference / fused")
    rows = []
    for (s, l, tiling), k in itertools.product(cases, options.k):
        row = compare(target, Fit(k, s, l, "uniform", tiling), device, threads, options.precision, rates)
        rows.append(row)
        print(
            f"{k:3d} {s:2d} {l} {tiling:6s} {row['reference_ms']:10.1f} {row['fused_ms']:8.2f} {row['ratio']:6.1f}"
            f" {row['floor_ms']:7.2f} {row['fused_ms'] / row['floor_ms']:9.2f} {row['gflops']:9.0f} {row['gbs']:6.1f}"
            f"  {row['psnr_reference']:.2f} / {row['psnr_fused']:.2f}",
            flush=True,
        )
    print(f"geometric mean of the ratios: {statistics.geometric_mean(row['ratio'] for row in rows):.1f}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


def compare(
    target: Target, what: Fit, device: str, threads: int, precision: str, rates: tuple[float, float]
) -> dict[str, object]:
    job = Job(what, (1,), target, FitSpec(), NoiseSpec(), StabilitySpec())
    work = problem(job)
    # about two seconds of the reference engine to a stretch, four iterations at least
    (one,) = fit(work, [1], device=device, threads=threads, method=choose(device, "reference"))
    length = max(4, min(60, round(2.0 / max(one.seconds, 1e-3))))
    stops = [length * (i + 1) for i in range(STRETCHES)]
    methods = {"reference": choose(device, "reference"), "fused": choose(device, "fused", precision)}
    runs = {name: fit(work, stops, device=device, threads=threads, method=method) for name, method in methods.items()}
    times: dict[str, list[float]] = {name: [0.0] for name in runs}
    last: dict[str, Snapshot] = {}
    for _ in stops:
        for name, run in runs.items():
            last[name] = next(run)
            times[name].append(last[name].seconds)
    members = len(work.weights)
    ms = {
        name: 1e3 * statistics.median(b - a for a, b in itertools.pairwise(t)) / length / members
        for name, t in times.items()
    }
    operations, moved = counted(work)
    score = {
        name: psnr(join(snapshot.outputs.mean(axis=0), what.tiling, 256, 320), target.image)
        for name, snapshot in last.items()
    }
    return {
        "device": device_name(device), "k": what.k, "s": what.s, "l": what.l, "tiling": what.tiling,
        "members": members, "threads": threads, "iterations": stops[-1],
        "reference_ms": ms["reference"], "fused_ms": ms["fused"], "ratio": ms["reference"] / ms["fused"],
        "floor_ms": 1e3 * (operations / rates[0] + moved / rates[1]),
        "gflops": operations / ms["fused"] / 1e6, "gbs": moved / ms["fused"] / 1e6,
        "psnr_reference": score["reference"], "psnr_fused": score["fused"], "method": str(methods["fused"]),
    }  # fmt: skip


def counted(work: Problem) -> tuple[float, float]:
    """Operations and bytes of one iteration of one member."""
    shape: Geometry = work.shape
    tiles, k = len(work.tiles), shape.k
    pixels = [tiles * h * w for h, w in shape.sizes]
    products = sum(6 * k * k * low for low in pixels[:-1]) - 2 * k * k * pixels[0]  # no gradient of the input tensor
    elements = sum((FORWARD + BACKWARD) * k * high for high in pixels[1:]) + LAST * k * pixels[-1]
    stored = [k * p for p in pixels]
    # R of the inner blocks: written, read by the next block, by its weights' gradient and for the mask; the last
    # block's product: written, read three times; gradients: written, read once
    floats = 4 * sum(stored[1:-1]) + 4 * stored[-2] + 2 * sum(stored[:-1]) + 2 * stored[0] + 3 * pixels[-1]
    return float(products + elements), 4.0 * floats


def measured_rates(device: str, threads: int) -> tuple[float, float]:
    """Operations a second of a float32 matrix product, bytes a second (read and written) of a copy, all threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    a, b = torch.rand(4096, 1024, device=device), torch.rand(1024, 1024, device=device)
    c, d = torch.rand(2**25, device=device), torch.empty(2**25, device=device)
    out = torch.empty(4096, 1024, device=device)
    product = median_seconds(lambda: torch.mm(a, b, out=out))
    copy = median_seconds(lambda: d.copy_(c))
    torch.set_num_threads(before)
    return 2 * a.numel() * 1024 / product, 2 * c.numel() * 4 / copy


def median_seconds(call: Callable[[], object]) -> float:
    call()
    seconds = []
    for _ in range(15):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
