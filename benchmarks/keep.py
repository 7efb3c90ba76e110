"""What `[fit] keep` does: PSNR, CV and the share of stable settings for the last, the best and the average iterate.

    python benchmarks/keep.py [--k 16 64 128] [--json FILE]

MNI152 mid axial slice at 64x80; uniform and blur3, 1x1 and 4x5, s = 8, l = 4, 5 members, budgets 500, 1,000 and 2,000.
The three run the same fits from the same starts, so settings are compared in pairs. A setting is stable by the filter
of the thesis (sec. 4.3).
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Literal

import pandas as pd

from ddstudy.execution.executors import usable_cores
from ddstudy.images.volumes import load_target
from ddstudy.spec.axes import Fit
from ddstudy.spec.options import FitSpec, Noise, NoiseSpec, TargetSpec, Tiling
from ddstudy.study.evaluate import Job, Result, evaluate
from ddstudy.study.stability import Limits, violations
from ddstudy.tasks.cases import Case

BUDGETS = (500, 1000, 2000)
KEEPS: tuple[Literal["last", "best", "average"], ...] = ("last", "best", "average")
NOISES: tuple[Noise, ...] = ("uniform", "blur3")
TILINGS: tuple[Tiling, ...] = ("1x1", "4x5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--k", type=int, nargs="+", default=[16, 64, 128])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    target, limits, rows = load_target(TargetSpec(size=(64, 80))), Limits(cv_percent=5, min_psnr=15, max_vif=1), []
    for k, noise, tiling, keep in itertools.product(options.k, NOISES, TILINGS, KEEPS):
        job = Job(
            Fit({"k": k, "s": 8, "l": 4, "noise": noise, "tiling": tiling}),
            BUDGETS,
            Case.of(target),
            FitSpec(keep=keep),
            NoiseSpec(),
        )
        for event in evaluate(job, device="cpu", threads=usable_cores()):
            if isinstance(event, Result):
                values = {name: float(event.values[name]) for name in ("psnr", "psnr_1dd", "cv_percent", "vif")}
                beyond = violations({name: values[name] for name in ("cv_percent", "psnr", "vif")}, limits)
                stable = max(beyond.values()) <= 0
                setting = {"k": k, "noise": noise, "tiling": tiling, "iterations": event.budget, "keep": keep}
                rows.append({**setting, **values, "stable": stable})
    table = pd.DataFrame(rows)
    means = table.groupby(["k", "iterations", "keep"], sort=False)[["psnr", "psnr_1dd", "cv_percent", "stable"]].mean()
    print(f"{target.name}, 64x80; means over {len(NOISES) * len(TILINGS)} pairs of noise and tiling")
    print(means.unstack("keep").round(2).to_string())
    print("\nAll settings:")
    print(table.groupby("keep", sort=False)[["psnr", "psnr_1dd", "cv_percent", "stable"]].mean().round(2).to_string())
    if options.json:
        options.json.write_text(json.dumps(rows, indent=0))


if __name__ == "__main__":
    main()
