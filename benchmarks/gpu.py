"""What a GPU does: speed of the kernels, packs, memory, checks, and a study from end to end; one command, one table.

    python benchmarks/gpu.py [--json FILE] [--without-run]

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
"""

import argparse
import contextlib
import csv
import functools
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from fit_speed import floor_ms, measured_rates, plain_ms

from ddstudy.images.volumes import Target, load_target
from ddstudy.solvers import Config, Problem, choose, fit, fused
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
    options = parser.parse_args()
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


if __name__ == "__main__":
    main()
