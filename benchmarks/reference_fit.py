"""Milliseconds per iteration and member of the reference engine over k, with the PSNR reached.

    python benchmarks/reference_fit.py [--size ROWS COLUMNS] [--iterations N] [--json FILE]

MNI152 mid axial slice, whole, s = 16, l = 5, 5 members on all cores. Times are medians of equal stretches of one fit.
"""

import argparse
import itertools
import json
import statistics
from pathlib import Path

from ddstudy.evaluate import Job, problem
from ddstudy.executors import resolve_device, usable_cores
from ddstudy.fit import fit
from ddstudy.metrics import psnr
from ddstudy.settings import Fit
from ddstudy.spec import FitSpec, NoiseSpec, StabilitySpec, TargetSpec
from ddstudy.target import join, load_target

STRETCHES = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, nargs=2, default=(256, 320), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--iterations", type=int, default=10, help="iterations of each of the five stretches")
    parser.add_argument("--k", type=int, nargs="+", default=[8, 16, 32, 64, 96, 128, 192])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    target = load_target(TargetSpec(size=tuple(options.size)))
    device, threads = resolve_device("auto"), usable_cores()
    rows = []
    print(f"{target.name}, {options.size[0]}x{options.size[1]}, {device}, {threads} threads")
    print("    k   ms per iteration and member   PSNR of the ensemble after all")
    for k in options.k:
        work = problem(Job(Fit(k, 16, 5, "uniform", "1x1"), (1,), target, FitSpec(), NoiseSpec(), StabilitySpec()))
        stops = [options.iterations * (i + 1) for i in range(STRETCHES)]
        snapshots = list(fit(work, stops, device=device, threads=threads))
        times = [0.0, *(snapshot.seconds for snapshot in snapshots)]
        lengths = [later - earlier for earlier, later in itertools.pairwise(times)]
        milliseconds = 1e3 * statistics.median(lengths) / options.iterations / len(work.weights)
        output = join(snapshots[-1].outputs.mean(axis=0), "1x1", *options.size)
        rows.append({"k": k, "reference_ms": milliseconds, "psnr": psnr(output, target.image), "device": device})
        print(f"{k:5d} {milliseconds:21.1f} {rows[-1]['psnr']:28.2f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
