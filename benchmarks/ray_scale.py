"""What Ray costs, and what it would make of the thesis' grid on many GPUs.

    python benchmarks/ray_scale.py [--only stubs|fits|simulation] [--workers 1 2 8 64] [--json FILE]

*Stubs*: fits that take no time on logical workers, which share this machine's cores: fits a second, milliseconds of a
fit, how much of a core the driver and the process beside it use, and the seconds until all workers are there; such a
worker takes 70 MB. Through the executor alone, and through the whole driver with its store.
*Fits*: real ones on every core through Ray, against one plain process per core; both are warm, turns alternate.
*Simulation*: the thesis' grid on N GPUs, longest fits first. What the driver takes for a fit, and what a worker loses
by one, are those of the stubs, measured in the same run. A worker fails at `--failures`; that is noticed after 15 s,
its fit begins anew elsewhere, and it is back a minute later (assumed). Costs of fits are those forecast from this
machine's processor divided by `--gpu-speed`, a guess: no GPU has been measured.
"""

import argparse
import contextlib
import heapq
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import stub_fits

from ddstudy.execution.executors import Failed, InProcess, usable_cores
from ddstudy.execution.ray_pool import Ray, Wish
from ddstudy.images.volumes import Target, load_target
from ddstudy.spec.axes import Fit
from ddstudy.spec.files import parse_spec, read_spec
from ddstudy.spec.options import FitSpec, NoiseSpec, TargetSpec
from ddstudy.spec.schema import ExecutorSpec
from ddstudy.store.database import Store
from ddstudy.study import forecasting, planner, runner
from ddstudy.study.evaluate import Job, evaluate
from ddstudy.study.samplers import sampler
from ddstudy.tasks.cases import Case

HERE = Path(__file__).parent
ONE = FitSpec(members=1, device="cpu")  # one thread each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=["stubs", "fits", "simulation"])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 8, 64])
    parser.add_argument("--stubs", type=int, default=2000, help="fits for each number of workers")
    parser.add_argument("--gpu-speed", type=float, default=50.0, help="of a GPU against this machine's processor")
    parser.add_argument("--failures", type=float, default=0.01, help="of a GPU in an hour")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    # workers find the stub fits
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    found: dict[str, Any] = {"cores": usable_cores()}
    if options.only != "fits":
        counts = options.workers if options.only != "simulation" else [1]
        found["stubs"] = [stubs(workers, options.stubs) for workers in counts]
        found["driver"] = whole_driver(options.stubs)
    if options.only in (None, "fits"):
        found["fits"] = real_fits()
    if options.only in (None, "simulation"):
        dispatch = 1 / found["driver"]["fits_per_s"]
        overhead = min(row["ms_per_fit"] * row["workers"] for row in found["stubs"]) / 1000
        costs = [cost / options.gpu_speed for cost in thesis_costs()]
        found["simulation"] = [
            simulation(costs, gpus, options.failures / 3600, dispatch, overhead) for gpus in (1, 8, 64, 512)
        ]
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


@contextlib.contextmanager
def ray(workers: int, work: Callable[..., Any] = evaluate) -> Iterator[tuple[Ray, float]]:
    """The executor on a cluster of its own, and the seconds until all workers were there."""
    from ray.cluster_utils import Cluster

    began = time.perf_counter()
    head = {"num_cpus": workers, "object_store_memory": 500 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    executor = Ray(
        Wish(ONE, ExecutorSpec(kind="ray", address=cluster.address), False, partial(float, 1), partial(float, 1), work),
        print,
    )
    try:
        while executor.slots < workers:
            executor._receive()
        yield executor, time.perf_counter() - began
    finally:
        executor.close()
        cluster.shutdown()


def cpu_seconds(pid: int) -> float:
    """Of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def feed(executor: Ray, jobs: Iterator[Job], beside: int) -> int:
    """Keeps so many jobs in flight until none is left."""
    count = 0
    for index, job in zip(range(beside), jobs, strict=False):
        executor.submit(str(index), job)
    for ticket, event in executor.events():
        assert not isinstance(event, Failed), event
        if type(event).__name__ == "Finished":
            count += 1
            with contextlib.suppress(StopIteration):
                executor.submit(ticket, next(jobs))
    return count


def stub_jobs(count: int) -> Iterator[Job]:
    target = Target(np.zeros((1, 256, 320), np.float32), "zeros", None)
    fit = Fit({"k": 8, "s": 16, "l": 5, "noise": "uniform", "tiling": "1x1"})
    return iter([Job(fit, (1,), Case.of(target), ONE, NoiseSpec())] * count)


def stubs(workers: int, count: int) -> dict[str, float]:
    with ray(workers, stub_fits.nothing) as (executor, started):
        feed(executor, stub_jobs(4 * workers), workers)  # all have the target
        pids = (os.getpid(), executor._process.pid)
        before, began = [cpu_seconds(pid) for pid in pids], time.perf_counter()
        feed(executor, stub_jobs(count), workers)
        seconds = time.perf_counter() - began
        driver, beside = ((cpu_seconds(pid) - was) / seconds for pid, was in zip(pids, before, strict=True))
    row = {
        "workers": workers, "start_s": started, "fits_per_s": count / seconds, "ms_per_fit": 1000 * seconds / count,
        "driver_cores": driver, "beside_cores": beside,
    }  # fmt: skip
    print("stubs " + ", ".join(f"{name} {value:.2f}" for name, value in row.items()), flush=True)
    return row


def whole_driver(count: int, workers: int = 2) -> dict[str, float]:
    """The same with planning, leases, and a result in SQLite for every fit; images are left out."""
    side = round(count**0.5)
    axis = list(range(1, side + 1))
    target = Target(np.zeros((1, 256, 320), np.float32), "zeros", None)
    spec = parse_spec(
        {"name": "stubs", "space": {"k": axis, "s": axis, "l": [5], "iterations": [1]}, "images": False,
         "fit": {"members": 1}, "stability": {"prune": False}}, "stubs",
    )  # fmt: skip
    with (
        tempfile.TemporaryDirectory() as folder,
        ray(workers, stub_fits.nothing) as (executor, _),
        Store(f"sqlite:///{folder}/stubs.db") as store,
    ):
        driven = store.drive(spec, target, sampler(spec))
        began, used = time.perf_counter(), time.process_time()
        *_, progress = runner.run(driven, executor, forecasting.Forecast())
        seconds = time.perf_counter() - began
        used = time.process_time() - used
    row = {"workers": workers, "fits": progress.done, "fits_per_s": progress.done / seconds, "cores": used / seconds}
    print("whole driver " + ", ".join(f"{name} {value:.2f}" for name, value in row.items()), flush=True)
    return row


def fit_jobs(count: int, first: int = 0) -> list[Job]:
    target = load_target(TargetSpec(size=(128, 160)))
    fit = Fit({"k": 32, "s": 16, "l": 5, "noise": "uniform", "tiling": "1x1"})
    options = [FitSpec(members=1, device="cpu", seed=first + seed) for seed in range(count)]
    return [Job(fit, (1000,), Case.of(target), each, NoiseSpec()) for each in options]


def plain(pipe: Connection) -> None:
    """One process without Ray on one core, as Ray's workers are: does the jobs that it is sent."""
    import torch

    torch.set_num_threads(1)
    while jobs := pipe.recv():
        for job in jobs:
            list(evaluate(job, device="cpu", threads=1))
        pipe.send(len(jobs))


def real_fits(turns: int = 15) -> dict[str, float]:
    cores = usable_cores()
    count = 4 * cores  # short turns: a shared machine changes its speed from minute to minute
    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe() for _ in range(cores)]
    processes = [context.Process(target=plain, args=(theirs,), daemon=True) for _, theirs in pairs]
    for process in processes:
        process.start()

    def without(jobs: list[Job]) -> None:
        for place, (ours, _) in enumerate(pairs):
            ours.send(jobs[place::cores])
        for ours, _ in pairs:
            ours.recv()

    ratios, with_ray, without_ray = [], [], []
    with ray(cores) as (executor, _):
        ways = {"plain": without, "ray": lambda jobs: feed(executor, iter(jobs), cores)}
        for work in ways.values():
            work(fit_jobs(cores))
        jobs = fit_jobs(count)
        for turn in range(turns):
            seconds = {}
            for way, work in sorted(ways.items(), reverse=bool(turn % 2)):
                began = time.perf_counter()
                work(jobs)
                seconds[way] = time.perf_counter() - began
            without_ray.append(count / seconds["plain"])
            with_ray.append(count / seconds["ray"])
            ratios.append(with_ray[-1] / without_ray[-1])
            print(f"fits a minute: plain {60 * without_ray[-1]:.1f}, Ray {60 * with_ray[-1]:.1f}", flush=True)
    for ours, _ in pairs:
        ours.send([])
    row = {
        "cores": cores, "plain_per_s": statistics.median(without_ray), "ray_per_s": statistics.median(with_ray),
        "share": statistics.median(ratios),
    }  # fmt: skip
    print(f"Ray reaches {100 * row['share']:.1f} % of plain processes", flush=True)
    return row


def thesis_costs() -> list[float]:
    """Seconds of every fit of the thesis' grid on all of this machine's cores."""
    spec = read_spec(HERE.parent / "studies" / "thesis.toml")
    target = load_target(TargetSpec(size=(256, 320)))
    todo = planner.plan(spec, target, set()).todo
    forecast = forecasting.calibrate(spec, target, list(todo), InProcess(usable_cores()))
    return [forecast.fitting(forecasting.work_of(spec, fit, budgets, target)) for fit, budgets in todo.items()]


def simulation(costs: list[float], gpus: int, failures: float, dispatch: float, overhead: float) -> Any:
    """Makespan of fits in this order.

    Args:
        costs: seconds of each fit.
        gpus: workers.
        failures: of a worker in a second.
        dispatch: seconds of the driver for a fit, its store included.
        overhead: seconds that a worker loses per fit, from the end of one to the beginning of the next.
    """
    random = np.random.default_rng(0)
    waiting, lost, driver, last = list(reversed(costs)), 0, 0.0, 0.0
    idle = [(0.0, gpu) for gpu in range(gpus)]
    pending: list[tuple[float, float]] = []  # when a lost fit is known to be lost
    while waiting or pending:
        free, gpu = heapq.heappop(idle)
        while pending and (pending[0][0] <= free or not waiting):
            when, cost = heapq.heappop(pending)
            free = max(free, when)
            waiting.append(cost)
        driver = max(driver, free) + dispatch
        cost = waiting.pop()
        death = random.exponential(1 / failures) if failures else float("inf")
        if death < cost:
            lost += 1
            heapq.heappush(pending, (driver + death + 15, cost))  # Ray notices a lost node after some 15 s
            heapq.heappush(idle, (driver + death + 75, gpu))
        else:
            end = driver + overhead + cost
            last = max(last, end)
            heapq.heappush(idle, (end, gpu))
    ideal, bound = sum(costs) / gpus, max(sum(costs) / gpus, max(costs))
    row = {
        "gpus": gpus, "makespan_s": last, "ideal_s": ideal, "efficiency": ideal / last, "longest_fit_s": max(costs),
        "share_of_bound": bound / last, "fits_lost": lost, "failures_per_gpu_hour": 3600 * failures,
        "dispatch_ms": 1000 * dispatch, "overhead_ms": 1000 * overhead,
    }  # fmt: skip
    print("simulated " + ", ".join(f"{name} {value:.3g}" for name, value in row.items()), flush=True)
    return row


if __name__ == "__main__":
    main()
