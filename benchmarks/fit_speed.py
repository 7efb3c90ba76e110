"""Seconds and quality of the fused engine beside the reference engine, and how close it comes to the machine's limit.

    python benchmarks/fit_speed.py [--quick] [--k 64 192] [--precision bfloat16] [--json FILE]

MNI152 mid axial slice at 256x320, 5 members. Both engines run in one process on the same threads, alternating stretch
by stretch; times are medians of stretches, in milliseconds per iteration and member. `--quick` is the whole slice with
s = 16, l = 5 only. PSNR is that of the ensemble after the same number of iterations.
`--precision bfloat16` is for CUDA GPUs.

The floor is what this machine would need at its own measured rates: the operations that the step must do over the rate
of a large float32 matrix product, plus the bytes that it must move over the rate of a copy. On a GPU, products count at
a third of the TF32 rate: three products of TF32 have the accuracy of float32. Operations: six times k^2 for every
low-resolution pixel (forward, gradient of the input, gradient of the weights), and for every channel of every
high-resolution pixel what upsampling, ReLU, sums and their gradients need (counted below). Bytes: each stored
activation and gradient is written once and read once for each use.

On a GPU the reference engine repeats the launches of all members as a graph, and `--others` adds what plain torch can
do with its own means, in milliseconds per iteration and member: launched from Python one by one; compiled by
torch.compile and captured in a CUDA graph, one member; all members at once through torch.func.vmap.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ddstudy.execution.executors import resolve_device, usable_cores
from ddstudy.images.metrics import psnr
from ddstudy.images.tiling import join
from ddstudy.images.volumes import Target, load_target
from ddstudy.priors.deep_decoder import DeepDecoder
from ddstudy.solvers import Config, Problem, Snapshot, choose, fit
from ddstudy.spec.axes import Fit
from ddstudy.spec.options import FitSpec, NoiseSpec, TargetSpec
from ddstudy.study.evaluate import device_name, problem
from ddstudy.tasks.base import Measurement

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
    parser.add_argument("--precision", default="auto", help="bfloat16: the fused engine on a CUDA GPU")
    parser.add_argument("--others", action="store_true", help="torch.compile in a CUDA graph, and vmap; GPU only")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cases = [(16, 5, "1x1")] if options.quick else list(itertools.product((8, 32), (4, 6), ("1x1", "4x5")))
    target = load_target(TargetSpec(size=(256, 320)))
    device, threads = resolve_device("auto"), usable_cores()
    rates = measured_rates(device, threads)
    print(f"{target.name}, 256x320, {device_name(device)}, {threads} threads")
    print(f"matrix product {rates.product / 1e9:.0f} GFLOP/s, copy {rates.copy / 1e9:.1f} GB/s, both measured here")
    print("  k  s l tiling  reference    fused  ratio   floor  of floor   GFLOP/s   GB/s  PSNR reference / fused")
    rows = []
    for (s, l, tiling), k in itertools.product(cases, options.k):
        row = compare(
            target,
            Fit({"k": k, "s": s, "l": l, "noise": "uniform", "tiling": tiling}),
            device,
            threads,
            options.precision,
            rates,
        )
        rows.append(row)
        if options.others:
            work = problem(
                Fit({"k": k, "s": s, "l": l, "noise": "uniform", "tiling": tiling}),
                Measurement.of(target.image),
                FitSpec(),
                NoiseSpec(),
            )
            others = {"plain": plain_ms, "compiled": compiled_ms, "vmap": vmap_ms}
            row |= {f"{name}_ms": measure(work, device) for name, measure in others.items()}
            print(", ".join(f"{name} {row[f'{name}_ms']:.3f}" for name in others))
        print(
            f"{k:3d} {s:2d} {l} {tiling:6s} {row['reference_ms']:10.1f} {row['fused_ms']:8.2f} {row['ratio']:6.1f}"
            f" {row['floor_ms']:7.2f} {row['fused_ms'] / row['floor_ms']:9.2f} {row['gflops']:9.0f} {row['gbs']:6.1f}"
            f"  {row['psnr_reference']:.2f} / {row['psnr_fused']:.2f}",
            flush=True,
        )
    print(f"geometric mean of the ratios: {statistics.geometric_mean(row['ratio'] for row in rows):.1f}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


def compare(target: Target, what: Fit, device: str, threads: int, precision: str, rates: "Rates") -> dict[str, object]:
    work, config = problem(what, Measurement.of(target.image), FitSpec(), NoiseSpec()), Config()
    # about two seconds of the reference engine to a stretch, four iterations at least
    (one,) = fit(work, config, [1], device=device, threads=threads, method=choose(device, "reference"))
    length = max(4, min(60, round(2.0 / max(one.seconds, 1e-3))))
    stops = [length * (i + 1) for i in range(STRETCHES)]
    methods = {"reference": choose(device, "reference"), "fused": choose(device, "fused", precision)}
    runs = {
        name: fit(work, config, stops, device=device, threads=threads, method=method)
        for name, method in methods.items()
    }
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
    products, elements, moved = counted(work)
    score = {
        name: psnr(join(snapshot.outputs.mean(axis=0), what["tiling"], 256, 320), target.image)
        for name, snapshot in last.items()
    }
    return {
        "device": device_name(device), "k": what["k"], "s": what["s"], "l": what["l"], "tiling": what["tiling"],
        "members": members, "threads": threads, "iterations": stops[-1],
        "reference_ms": ms["reference"], "fused_ms": ms["fused"], "ratio": ms["reference"] / ms["fused"],
        "floor_ms": floor_ms(work, rates),
        "gflops": (products + elements) / ms["fused"] / 1e6, "gbs": moved / ms["fused"] / 1e6,
        "psnr_reference": score["reference"], "psnr_fused": score["fused"], "method": str(methods["fused"]),
    }  # fmt: skip


def counted(work: Problem) -> tuple[float, float, float]:
    """Operations of products, other operations, and bytes of one iteration of one member."""
    prior = work.prior
    assert isinstance(prior, DeepDecoder)
    tiles, k = len(work.measurement), prior.k
    pixels = [tiles * h * w for h, w in prior.sizes]
    products = sum(6 * k * k * low for low in pixels[:-1]) - 2 * k * k * pixels[0]  # no gradient of the input tensor
    elements = sum((FORWARD + BACKWARD) * k * high for high in pixels[1:]) + LAST * k * pixels[-1]
    stored = [k * p for p in pixels]
    # R of the inner blocks: written, read by the next block, by its weights' gradient and for the mask; the last
    # block's product: written, read three times; gradients: written, read once
    floats = 4 * sum(stored[1:-1]) + 4 * stored[-2] + 2 * sum(stored[:-1]) + 2 * stored[0] + 3 * pixels[-1]
    return float(products), float(elements), 4.0 * floats


class Rates(NamedTuple):
    """Of this machine: operations a second of a product that is as good as float32, of others, bytes a second."""

    product: float
    elements: float
    copy: float


def floor_ms(work: Problem, rates: Rates) -> float:
    """Milliseconds of an iteration of one member at these rates."""
    return 1e3 * sum(amount / rate for amount, rate in zip(counted(work), rates, strict=True))


def measured_rates(device: str, threads: int) -> Rates:
    """Of large matrix products in float32, or in TF32 by three, and of a copy (read and written), all threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    side = 8192 if device.startswith("cuda") else 1024
    a, b = torch.rand(max(side, 4096), side, device=device), torch.rand(side, side, device=device)
    c, d = torch.rand(2**25, device=device), torch.empty(2**25, device=device)
    out = torch.empty_like(a)
    product = elements = 2 * a.numel() * side / median_seconds(lambda: torch.mm(a, b, out=out))
    copy = 2 * c.numel() * 4 / median_seconds(lambda: d.copy_(c))
    if device.startswith("cuda"):
        exact, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, True
        product = 2 * a.numel() * side / median_seconds(lambda: torch.mm(a, b, out=out)) / 3
        torch.backends.cuda.matmul.allow_tf32 = exact
    torch.set_num_threads(before)
    return Rates(product, elements, copy)


def plain_ms(work: Problem, device: str, iterations: int = 10) -> float:
    """An iteration of one member, launched from Python, members one after another."""
    measurement, spent = torch.tensor(work.measurement, device=device), 0.0
    for inputs, weights in zip(work.inputs, work.weights, strict=True):
        net, x = work.prior.build().to(device), torch.tensor(inputs, device=device)
        torch.nn.utils.vector_to_parameters(torch.tensor(weights, device=device), net.parameters())
        adam = torch.optim.Adam(net.parameters(), lr=Config().learning_rate, fused=True)

        def iterate(net: Any = net, x: Any = x, adam: Any = adam) -> None:
            adam.zero_grad(set_to_none=True)
            torch.nn.functional.mse_loss(net(x), measurement).backward()
            adam.step()

        spent += median_seconds(lambda iterate=iterate: [iterate() for _ in range(iterations)])
    return 1e3 * spent / iterations / len(work.weights)


def compiled_ms(work: Problem, device: str, iterations: int = 50) -> float:
    """An iteration of one member: torch.compile and Adam in a CUDA graph."""
    net = work.prior.build().to(device)
    torch.nn.utils.vector_to_parameters(torch.tensor(work.weights[0], device=device), net.parameters())
    inputs, measurement = (torch.tensor(a, device=device) for a in (work.inputs[0], work.measurement))
    optimiser = torch.optim.Adam(net.parameters(), lr=Config().learning_rate, capturable=True)
    loss_of = torch.compile(lambda: torch.nn.functional.mse_loss(net(inputs), measurement))

    def iterate() -> None:
        optimiser.zero_grad(set_to_none=True)
        loss_of().backward()
        optimiser.step()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            iterate()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        iterate()
    return 1e3 * median_seconds(lambda: [graph.replay() for _ in range(iterations)]) / iterations


def vmap_ms(work: Problem, device: str) -> float:
    """An iteration of all members through torch.func.vmap, by their number."""
    nets = [work.prior.build().to(device) for _ in work.weights]
    for net, weights in zip(nets, work.weights, strict=True):
        torch.nn.utils.vector_to_parameters(torch.tensor(weights, device=device), net.parameters())
    parameters, _ = torch.func.stack_module_state(nets)
    inputs, measurement = (torch.tensor(a, device=device) for a in (work.inputs, work.measurement))
    optimiser = torch.optim.Adam(parameters.values(), lr=Config().learning_rate, fused=True)

    def loss_of(one: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.mse_loss(torch.func.functional_call(nets[0], one, (x,)), measurement)

    gradient_of = torch.func.vmap(torch.func.grad(loss_of))

    def iterate() -> None:
        with torch.no_grad():
            for name, gradient in gradient_of(parameters, inputs).items():
                parameters[name].grad = gradient
            optimiser.step()

    return 1e3 * median_seconds(iterate) / len(nets)


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
