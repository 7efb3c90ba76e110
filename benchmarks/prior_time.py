"""Is the thesis' decoder faster than the original at equal quality, by processor time?

`studies/prior_noise.toml` was measured while other programs ran, so that its seconds say nothing, but its quality does.
Here an iteration of each of its Deep Decoders is timed in seconds of the processor, in turn, medians over rounds; with
these in place of the seconds the finding is tested on the study's results, also on both of its tasks apart.

    python benchmarks/prior_time.py [--iterations 400] [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import pandas as pd

from ddstudy.images.targets import load_targets
from ddstudy.solvers import Config, fit
from ddstudy.spec.axes import Fit
from ddstudy.spec.files import read_spec
from ddstudy.spec.options import FUSED
from ddstudy.store.study import StudyView
from ddstudy.study.evaluate import problem
from ddstudy.study.planner import job
from ddstudy.thesis.findings import FINDINGS, ask

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    spec = read_spec(ROOT / "studies/prior_noise.toml")
    target = load_targets(spec)
    trials = pd.read_csv(ROOT / "benchmarks/results/prior_noise.csv")
    trials = trials[trials["prior.kind"].isin(FUSED)].astype({"k": int})
    one_of_each: dict[tuple[str, int], Fit] = {}
    for setting in spec.search_space:
        if setting["prior.kind"] in FUSED and setting["task.kind"] == "denoise":
            one_of_each.setdefault((setting["prior.kind"], setting["k"]), setting.fit)
    spent: dict[tuple[str, int], list[float]] = {which: [] for which in one_of_each}
    for round_ in range(chosen.rounds + 1):  # the first compiles
        for which, each in one_of_each.items():
            work = job(spec, target, each, (chosen.iterations,))
            posed = problem(each, work.case.measurement, work.options, work.noise, work.prior)
            before = time.process_time()
            list(fit(posed, Config(), [chosen.iterations], device="cpu", threads=1))
            spent[which] += [(time.process_time() - before) / chosen.iterations] * bool(round_)
    per_iteration = {which: statistics.median(seconds) for which, seconds in spent.items()}
    for (kind, k), seconds in per_iteration.items():
        print(f"{kind:18} k = {k:3}  {1e3 * seconds:.2f} ms of processor time per iteration")
    keys = zip(trials["prior.kind"], trials["k"], trials["iterations"], strict=True)
    trials["seconds"] = [per_iteration[kind, k] * iterations for kind, k, iterations in keys]
    trials = trials.assign(shared=False, disturbed=False)
    finding = next(each for each in FINDINGS if each.name == "time-variant")
    for task in ("denoise", "represent", None):
        some = trials if task is None else trials[trials["task.kind"] == task]
        view = StudyView("prior_noise", spec, {"target shape": "1x64x64"}, some)
        found = ask(finding, view)
        print(f"{task or 'both':10} {found.effect_text}  {found.tested}")


if __name__ == "__main__":
    main()
