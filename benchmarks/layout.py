"""Workers and threads: fits a minute for every way to share the cores of this machine among fits.

    python benchmarks/layout.py [--k 8 64] [--iterations 100]

Each way fits the same ensembles of 5 members (MNI152, 128x160, s = 16, l = 5), as many as fill all ways evenly.
`ddstudy run` takes the way that is marked: threads up to the number of members, then workers.
"""

import argparse
import time
from collections.abc import Iterator

from ddstudy.evaluate import Job
from ddstudy.executors import Failed, InProcess, Layout, Threads, layout, usable_cores
from ddstudy.settings import Fit
from ddstudy.spec import FitSpec, NoiseSpec, StabilitySpec, TargetSpec
from ddstudy.target import Target, load_target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--k", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--iterations", type=int, default=100)
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


def ways(cores: int) -> Iterator[Layout]:
    """Every number of workers, with the threads that fill the cores."""
    for workers in range(1, cores + 1):
        if cores % workers == 0:
            yield Layout(workers, cores // workers)


def make_jobs(target: Target, k: int, iterations: int, count: int) -> Iterator[Job]:
    """Fits with different seeds."""
    for seed in range(count):
        yield Job(
            Fit(k, 16, 5, "uniform", "1x1"), (iterations,), target, FitSpec(seed=seed), NoiseSpec(), StabilitySpec()
        )


def run(jobs: list[Job], way: Layout) -> float:
    """Seconds for all jobs."""
    executor = Threads(way) if way.workers > 1 else InProcess(way.threads)
    start = time.perf_counter()
    for index, job in enumerate(jobs):
        executor.submit(str(index), job)
    for _, event in executor.events():
        assert not isinstance(event, Failed), event
    seconds = time.perf_counter() - start
    executor.close()
    return seconds


if __name__ == "__main__":
    main()
