"""Whether both engines reach the same quality: PSNR over many seeds after a long fit.

    python benchmarks/fit_quality.py [--seeds 200] [--iterations 2000] [--k 16 64] [--json FILE]

MNI152 mid axial slice at 64x80, uniform noise, whole. Each seed is a member of one ensemble, so both engines start from
the same weights and inputs; rounding errors send them on different ways within some hundred iterations, and Adam's
spikes spread them widely. The table has the median over seeds at the last iteration and at the check (every 100
iterations) with the least loss, which spikes hardly touch; the CV over all seeds; and the difference of the medians to
the reference engine with its 95 % interval (bootstrap).
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddstudy.execution.executors import usable_cores
from ddstudy.images.volumes import load_target
from ddstudy.solvers import Method, choose, fit
from ddstudy.spec.axes import Fit
from ddstudy.spec.options import FitSpec, NoiseSpec, TargetSpec
from ddstudy.study.evaluate import Job, problem
from ddstudy.tasks.cases import Case

SETTINGS = [(16, 8, 4), (32, 16, 4), (64, 16, 5)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--k", type=int, nargs="+", default=[k for k, _, _ in SETTINGS])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    methods = [choose("cpu", "reference"), choose("cpu", "fused")]
    target = load_target(TargetSpec(size=(64, 80)))
    print(f"{target.name}, 64x80, {options.seeds} seeds, {options.iterations} iterations; PSNR in dB")
    print("  k  s l method              last  (difference, 95 %)      best  (difference, 95 %)    CV %   seconds")
    rows = []
    for k, s, l in SETTINGS:
        if k not in options.k:
            continue
        job = Job(
            Fit({"k": k, "s": s, "l": l, "noise": "uniform", "tiling": "1x1"}),
            (1,),
            Case.of(target),
            FitSpec(members=options.seeds),
            NoiseSpec(),
        )
        reference: tuple[NDArray[np.float64], ...] = ()
        for method in methods:
            last, best, seconds = run(job, method, options.iterations)
            reference = reference or (last, best)
            row = {"k": k, "s": s, "l": l, "method": str(method), "seeds": options.seeds}
            row |= {"iterations": options.iterations, "seconds": seconds, "cv_percent": 100 * last.std() / last.mean()}
            for name, scores, other in (("last", last, reference[0]), ("best", best, reference[1])):
                low, high = interval(scores, other)
                row |= {
                    name: float(np.median(scores)),
                    f"{name}_difference": float(np.median(scores) - np.median(other)),
                }
                row |= {f"{name}_low": low, f"{name}_high": high}
            rows.append(row)
            print(
                f"{k:3d} {s:2d} {l} {method!s:17s}"
                + "".join(
                    "  {:6.2f}  ({:+.2f}, {:+.2f} to {:+.2f})".format(
                        *(row[name + part] for part in ("", "_difference", "_low", "_high"))
                    )
                    for name in ("last", "best")
                )
                + f"  {row['cv_percent']:5.1f} {seconds:9.0f}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


def run(job: Job, method: Method, iterations: int) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """PSNR (seeds,) at the last iteration and at the least loss, and seconds."""
    stops = range(min(100, iterations), iterations + 1, 100)
    losses, seconds = [], math.nan
    for snapshot in fit(
        problem(job.fit, job.case.measurement, job.options, job.noise),
        job.config,
        stops,
        threads=usable_cores(),
        method=method,
    ):
        losses.append(snapshot.losses)
        seconds = snapshot.seconds
    return -10 * np.log10(losses[-1]), -10 * np.log10(np.min(losses, axis=0)), seconds


def interval(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of the difference of the medians."""
    rng = np.random.default_rng(0)
    draws = [np.median(rng.choice(values, (2000, len(values))), axis=1) for values in (a, b)]
    low, high = np.percentile(draws[0] - draws[1], [2.5, 97.5])
    return float(low), float(high)


if __name__ == "__main__":
    main()
