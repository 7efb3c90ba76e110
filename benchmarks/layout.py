"""Workers and threads: fits a minute for every way to share the cores of this machine among fits.

    python benchmarks/layout.py [--k 8 64] [--iterations 100]

Each way fits the same ensembles of 5 members (MNI152, 128x160, s = 16, l = 5), as many as fill all ways evenly.
`ddstudy run` takes the way that is marked: threads up to the number of members, then workers. The last two lines
take turns: one fit after another, and packs of three, which `ddstudy run` makes on GPUs only.
"""

import argparse
import statistics
import time
from collections.abc import Iterator

from ddstudy.execution.executors import Failed, InProcess, Layout, Threads, layout, usable_cores
from ddstudy.images.volumes import Target, load_target
from ddstudy.spec.axes import Fit
from ddstudy.spec.options import FitSpec, NoiseSpec, TargetSpec
from ddstudy.study.evaluate import Job
from ddstudy.tasks.cases import Case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--k", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    cores = usable_cores()
    target = load_target(TargetSpec(size=(128, 160)))
    ours = layout(FitSpec(), "cpu", exclusive=False, bytes_per_fit=lambda: 0)
    print(f"{cores} cores; fits a minute")
    print("  k  workers x threads  fits/min")
    for k in options.k:
        jobs = list(make_jobs(target, k, options.iterations, 4 * cores))
        for way in ways(cores):
            seconds = min(run(jobs, way) for _ in range(2))
            mark = "  <- ddstudy run" if way == ours else ""
            print(f"{k:3d}  {way.workers:7d} x {way.threads:<7d}  {60 * len(jobs) / seconds:8.1f}{mark}", flush=True)
        jobs = jobs[: len(jobs) // 3 * 3]
        turns = [[run(jobs, Layout(1, cores), pack) for pack in (1, 3)] for _ in range(options.turns)]
        medians = [statistics.median(turn[i] for turn in turns) for i in range(2)]
        for pack, seconds in zip(("alone", "three together"), medians, strict=True):
            print(f"{k:3d}  {pack:17s}  {60 * len(jobs) / seconds:8.1f}", flush=True)


def ways(cores: int) -> Iterator[Layout]:
    """Every number of workers, with the threads that fill the cores."""
    for workers in range(1, cores + 1):
        if cores % workers == 0:
            yield Layout(workers, cores // workers)


def make_jobs(target: Target, k: int, iterations: int, count: int) -> Iterator[Job]:
    """Fits with different seeds."""
    for seed in range(count):
        yield Job(
            Fit({"k": k, "s": 16, "l": 5, "noise": "uniform", "tiling": "1x1"}),
            (iterations,),
            Case.of(target),
            FitSpec(seed=seed),
            NoiseSpec(),
        )


def run(jobs: list[Job], way: Layout, pack: int = 1) -> float:
    """Seconds for all jobs, so many of them together."""
    executor = Threads(way) if way.workers > 1 else InProcess(way.threads)
    start = time.perf_counter()
    for first in range(0, len(jobs), pack):
        executor.submit_together({str(first + i): job for i, job in enumerate(jobs[first : first + pack])})
    for _, event in executor.events():
        assert not isinstance(event, Failed), event
    seconds = time.perf_counter() - start
    executor.close()
    return seconds


if __name__ == "__main__":
    main()
