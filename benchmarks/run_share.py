"""The share of a run's wall time that is fitting, how good its forecast is, and what metrics cost.

    python benchmarks/run_share.py [--device auto] [--quick]

Runs the packaged study (96x80) and one at 256x320 as `ddstudy run` does, into a new SQLite file with all images.
`fitting` are the seconds of all fits, as their trials have them, for each of the fits that run at a time; what is left
of the wall time went into noise, starting weights, metrics, images and the store. `announced` is the forecast that
stood there before the first fit, `left` the largest error of the time left once a tenth of the run was over, as a share
of the whole run: of the whole time, so without a stop rule. `disturbed` are trials beside which the machine had other
work; where they are many, nothing here means much.

The second table has seconds for the metrics of one result, an ensemble of 5 and its members, on this machine as it is
and beside a process that keeps one core busy: in the threads that they have, and as torch would spread them.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np

from ddstudy.api import PACKAGED, announce, executor_for
from ddstudy.images import metrics
from ddstudy.images.volumes import load_target
from ddstudy.spec.files import parse_spec, read_spec
from ddstudy.spec.schema import StudySpec
from ddstudy.store.database import Store
from ddstudy.study import forecasting, planner, runner
from ddstudy.study.samplers import sampler


def whole_slice(device: str, quick: bool) -> StudySpec:
    """A study of the size of the thesis' slice; on a GPU with the thesis' budgets."""
    slow = device == "cpu"
    budgets = [500, 1000] if slow else [2000, 5000, 7000]
    space = {"k": [16, 64] if slow else [8, 16, 64], "s": [16], "l": [5], "iterations": budgets}
    pairs = {"noise": ["uniform", "simplex"], "tiling": ["1x1", "4x5"]}
    if quick:
        space["iterations"], pairs = budgets[:1], {}
    return parse_spec({"name": "whole-slice", "target": {"size": [256, 320]}, "space": space | pairs}, "run_share")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter fits at 256x320")
    options = parser.parse_args()
    from ddstudy.execution.executors import resolve_device

    device = resolve_device(options.device)
    columns = ("fits", "slots", "fitting", "wall", "share", "announced", "left", "disturbed")
    print(f"{'study':12s}", *(f"{column:>10s}" for column in columns), flush=True)
    for spec in (read_spec(PACKAGED), whole_slice(device, options.quick)):
        changes = {"fit": spec.fit.model_copy(update={"device": options.device})}
        changes["stability"] = spec.stability.model_copy(update={"prune": False})
        row = measure(spec.model_copy(update=changes))
        print(f"{spec.name:12s}", *(f"{row[column]:>10s}" for column in columns), flush=True)
    print(f"\n{'metrics':12s}", *(f"{column:>10s}" for column in ("ours", "torch's", "ours busy", "torch's busy")))
    for size in ((96, 80), (256, 320)):
        found = [*seconds(size), *beside(lambda size=size: seconds(size))]
        print(f"{'x'.join(map(str, size)):12s}", *(f"{one:8.3f} s" for one in found), flush=True)


def seconds(size: tuple[int, int]) -> tuple[float, float]:
    """Of the metrics of a result: as they are computed, and as torch would; medians of alternating calls."""
    random = np.random.default_rng(0)
    outputs, target = random.random((6, 1, *size), np.float32), random.random((1, *size), np.float32)

    def spread() -> None:
        metrics._similarity(outputs, target, 3)
        metrics._fidelity(outputs, target)

    ways: tuple[Callable[[], object], ...] = (lambda: metrics.quality(outputs, target), spread)
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(8):
        for way, times in zip(ways, taken, strict=True):
            began = time.perf_counter()
            way()
            times.append(time.perf_counter() - began)
    return statistics.median(taken[0][1:]), statistics.median(taken[1][1:])


def beside(call: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    """What a call gives while another process computes."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            return call()
        finally:
            other.kill()


def measure(spec: StudySpec) -> dict[str, str]:
    """One run from its plan to its last result."""
    lines: list[str] = []
    target = load_target(spec.target)
    with tempfile.TemporaryDirectory() as folder, Store(f"sqlite:///{folder}/share.db") as store:
        driven = store.drive(spec, target, sampler(spec))
        with executor_for(spec, target, tell=lines.append) as executor:
            plan = planner.plan(spec, target, set())
            forecast = announce(lines.append, spec, target, plan, executor, driven)
            assert forecast is not None
            announced = forecasting.forecast_seconds(spec, target, plan, forecast, executor.slots)
            began, told = time.perf_counter(), []
            for progress in runner.run(driven, executor, forecast):
                told.append((time.perf_counter() - began, progress.eta_seconds))
            wall, slots = time.perf_counter() - began, executor.slots
        trials = store.view(spec.name).trials
    fitting = trials.groupby("fit_id")["seconds"].max().sum() / slots
    late = [abs(at + left - wall) / wall for at, left in told if left is not None and at > wall / 10]
    return {
        "fits": str(trials["fit_id"].nunique()),
        "slots": str(slots),
        "fitting": f"{fitting:.1f} s",
        "wall": f"{wall:.1f} s",
        "share": f"{100 * fitting / wall:.0f} %",
        "announced": f"{announced:.1f} s",
        "left": f"{100 * max(late, default=0):.0f} %",
        "disturbed": f"{trials['disturbed'].eq(True).sum()} of {len(trials)}",
    }


if __name__ == "__main__":
    main()
