"""What a GPU does: speed of the kernels, packs, memory, checks, and a study from end to end; one command, one table.

    python benchmarks/gpu.py [--json FILE] [--without-run] [--tune K [K ...]]

MNI152 mid axial slice at 256x320, 5 members, under 4 minutes on one H100.

speed: milliseconds an iteration of all members, whole slice, s = 16, l = 5, beside plain torch (one member after
another) and the reference engine, which repeats the launches of plain torch as a graph. The floor is what the card
would need at the rates measured here: products at a third of its TF32 rate (three products of TF32 have the accuracy of
float32), everything else at its float32 rate, and the bytes of the arrays that the step keeps at the rate of a copy.
PSNR is the mean of the members' after equally many iterations.
goal: 7,000 iterations at k = 64, s = 8, l = 6.
packs: milliseconds an iteration and member, and the largest memory beside what the model says (`fused.memory`).
check: milliseconds of a look at how the members are doing.
run: `ddstudy run` of 42 fits in packs, its wall time beside the sum of its fits, and the thesis' grid from their times.

`--tune` measures each kernel with several sizes of its blocks, for the table `_TUNED` in kernels_cuda.py. Sizes are a
table and not chosen at run time: they decide how sums are rounded, and a study's numbers must not depend on which
sizes were faster in the moment it began.
"""

import argparse
import contextlib
import csv
import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from fit_speed import floor_ms, measured_rates, median_seconds, plain_ms

from ddstudy.images.volumes import Target, load_target
from ddstudy.solvers import Config, Problem, choose, fit, fused
from ddstudy.solvers.fused.step import Step
from ddstudy.spec.axes import Fit
from ddstudy.spec.files import read_spec
from ddstudy.spec.options import FitSpec, NoiseSpec, TargetSpec
from ddstudy.study.evaluate import device_name, problem
from ddstudy.study.planner import operations
from ddstudy.tasks.base import Measurement
from ddstudy.tasks.cases import Case

KS = (8, 16, 32, 64, 96, 128, 192)
DEVICE = "cuda"
ITERATIONS = 2000  # of fits of the study; one result is a fair share, as the grid of the thesis has 3 in 7,000
STUDY = """
[target]
size = [256, 320]
[space]
k = [8, 16, 32, 64, 96, 128, 192]
s = [16]
l = [5]
iterations = [{iterations}]
noise = ["uniform", "blur3", "simplex"]
tiling = ["1x1", "4x5"]
[stability]
prune = false
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--without-run", action="store_true")
    parser.add_argument("--tune", type=int, nargs="+", help="channels to choose blocks for")
    options = parser.parse_args()
    if options.tune:
        tune(options.tune)
        return
    found: dict[str, Any] = {"device": device_name(DEVICE), "torch": torch.__version__}
    target = whole_slice()
    print(f"{target.name}, 256x320, {found['device']}, torch {found['torch']}")
    parts = {"speed": speed, "goal": goal, "packs": packs} | ({} if options.without_run else {"run": run})
    for name, measure in parts.items():
        found[name] = measure(target)
        if options.json:  # after each part: a card may be lent for a limited time
            options.json.write_text(json.dumps(found, indent=1))


@functools.cache
def whole_slice() -> Target:
    return load_target(TargetSpec(size=(256, 320)))


def work_of(target: Target, k: int, s: int, l: int, tiling: str = "1x1", seed: int = 0) -> Problem:
    return problem(
        Fit({"k": k, "s": s, "l": l, "noise": "uniform", "tiling": tiling}),
        Measurement.of(target.image),
        FitSpec(seed=seed),
        NoiseSpec(),
    )


def timed(work: Problem, iterations: int, engine: str) -> tuple[float, float]:
    """Milliseconds of an iteration of all members, and the members' mean PSNR at the end."""
    stops = [iterations // 4 * (i + 1) for i in range(4)]
    ends = list(fit(work, Config(), stops, device=DEVICE, method=choose(DEVICE, engine)))
    times = [b.seconds - a.seconds for a, b in itertools.pairwise(ends)]
    score = statistics.mean(-10 * torch.log10(torch.tensor(ends[-1].losses)).numpy())
    return 1e3 * statistics.median(times) / (iterations // 4), float(score)


def speed(target: Target) -> list[dict[str, float]]:
    rates = measured_rates(DEVICE, 1)
    teras = [rate / 1e12 for rate in rates]
    print(f"product {teras[0]:.0f}, others {teras[1]:.0f} TFLOP/s, copy {teras[2]:.2f} TB/s, measured here")
    print("   k  plain torch  in a graph    fused  ratio   floor  of floor  PSNR reference / fused after 40")
    rows = []
    for k in KS:
        work = work_of(target, k, 16, 5)
        plain = len(work.weights) * plain_ms(work, DEVICE)
        graph, expected = timed(work, 40, "reference")
        _, score = timed(work, 40, "fused")
        ours, _ = timed(work, 400, "fused")
        floor = len(work.weights) * floor_ms(work, rates)
        rows.append({"k": k, "plain_ms": plain, "graph_ms": graph, "fused_ms": ours, "ratio": plain / ours,
                     "floor_ms": floor, "of_floor": ours / floor, "psnr_reference": expected,
                     "psnr_fused": score})  # fmt: skip
        print(
            f"{k:4d} {plain:12.1f} {graph:11.1f} {ours:8.3f} {plain / ours:6.1f} {floor:7.3f} {ours / floor:9.2f}"
            f"  {expected:.2f} / {score:.2f}",
            flush=True,
        )
    mean = statistics.geometric_mean(row["ratio"] for row in rows)
    print(f"geometric mean of the ratios: {mean:.1f}")
    return rows


def goal(target: Target) -> dict[str, float]:
    start = time.perf_counter()
    (end,) = fit(work_of(target, 64, 8, 6), Config(), [7000], device=DEVICE)
    wall = time.perf_counter() - start
    print(f"7,000 iterations at k = 64, s = 8, l = 6: {end.seconds:.2f} s, with compiling and transfers {wall:.1f} s")
    return {"seconds": end.seconds, "wall": wall}


def packs(target: Target) -> list[dict[str, float]]:
    print("   k  s l tiling  fits members  ms an iteration and member   GiB   model   check ms")
    rows = []
    for (k, s, l, tiling), counts in {
        (8, 32, 4, "1x1"): (1, 3, 8, 16),
        (64, 8, 6, "1x1"): (1, 3, 8),
        (64, 16, 5, "4x5"): (1, 3),
        (192, 8, 6, "1x1"): (1, 3),
    }.items():
        for count in counts:
            works = [work_of(target, k, s, l, tiling, seed) for seed in range(count)]
            members = sum(len(work.weights) for work in works)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            with fused.ensemble(works, Config(), fused.kernels_for(DEVICE), threads=1) as together:
                together.advance(20, never)
                start = time.perf_counter()
                together.advance(100, never)
                ms = 10 * (time.perf_counter() - start) / members
                together.states(range(count))
                start = time.perf_counter()
                together.states(range(count))
                check = 1e3 * (time.perf_counter() - start)
            peak = torch.cuda.max_memory_allocated() - before
            model = fused.memory(works[0].prior, len(works[0].measurement), members, 1, fused.kernels_for(DEVICE))
            rows.append({"k": k, "s": s, "l": l, "tiling": tiling, "members": members, "ms": round(ms, 4),
                         "gib": round(peak / 2**30, 2), "check_ms": round(check, 2)})  # fmt: skip
            print(
                f"{k:4d} {s:2d} {l} {tiling:6s} {count:5d} {members:7d} {ms:27.4f} {peak / 2**30:5.2f}"
                f" {model / 2**30:7.2f} {check:10.2f}",
                flush=True,
            )
    return rows


def never(_: int) -> bool:
    return False


def run(target: Target) -> dict[str, float]:
    command = [sys.executable, "-m", "ddstudy.cli"]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("gpu.toml").write_text('name = "gpu"' + STUDY.format(iterations=ITERATIONS))
        start = time.perf_counter()
        subprocess.run([*command, "run", "gpu.toml"], check=True, stdout=subprocess.DEVNULL)
        wall = time.perf_counter() - start
        subprocess.run([*command, "export", "gpu", "--out", "gpu"], check=True, stdout=subprocess.DEVNULL)
        with open("gpu.csv") as file:
            trials = list(csv.DictReader(file))
    ends = {(t["k"], t["noise"], t["tiling"]): t for t in trials}
    fitting = sum(float(t["seconds"]) for t in ends.values())
    each = {}  # seconds of 7,000 iterations per operation of one, by channels and tiling
    for (k, _, tiling), trial in ends.items():
        cost = operations(Fit({"k": int(k), "s": 16, "l": 5, "noise": "uniform", "tiling": tiling}), Case.of(target))
        each.setdefault((int(k), tiling), []).append(7000 / ITERATIONS * float(trial["seconds"]) / cost)
    thesis = read_spec(Path(__file__).parents[1] / "studies/thesis.toml").search_space
    grid = 0.0
    for k, s, l, tiling in itertools.product(thesis["k"], thesis["s"], thesis["l"], thesis["tiling"]):
        per = statistics.mean(each[k, "1x1" if tiling == "1x1" else "4x5"])
        grid += (
            len(thesis["noise"])
            * per
            * operations(Fit({"k": k, "s": s, "l": l, "noise": "uniform", "tiling": tiling}), Case.of(target))
        )
    print(f"run of {len(ends)} fits: {wall:.1f} s, fits {fitting:.1f} s; the thesis' grid {grid / 60:.0f} minutes")
    return {"fits": len(ends), "wall": wall, "fitting": fitting, "grid_minutes": grid / 60}


# choosing the sizes of blocks


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
        product = [(64, 64, 32, 4, 3), (64, 64, 64, 4, 2), (128, 64, 32, 4, 3), (128, 64, 32, 8, 3),
                   (64, wide, 32, 4, 3), (128, wide, 32, 8, 3), (128, 64, 64, 8, 2), (64, 64, 32, 4, 4)]  # fmt: skip
    else:
        correlation = [
            ((columns, columns, pixels, warps), chunks)
            for chunks in (64, 128)
            for pixels, warps in [(32, 1), (32, 2), (64, 2), (64, 4)]
        ]
        product = [(64, columns, inner, 4, 3), (128, columns, inner, 4, 3), (128, columns, inner, 8, 3),
                   (64, columns, inner, 4, 2), (64, columns, inner, 2, 2)]  # fmt: skip
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
    ("product",): ("_pixel_product",), ("gradient", "correlation"): ("_block_gradient", "_correlation"),
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
                found = sum(times[kernel] for kernel in kernels), [getattr(tuning, field) for field in fields]
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
