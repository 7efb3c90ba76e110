"""Is Adam at 0.01 what one should use? Optimisers, learning rates and losses against it, over seeds.

The packaged slice (MNI152, mid axial) at a small size, represented and denoised (Gaussian noise, sigma 0.1), by one
Deep Decoder with the defaults of a study. A seed has its own starts, inputs and noise; all ways start from the same,
so that they are compared in pairs. The tables have the PSNR of Adam at 0.01 with MSE, and what other ways gain over it:
mean over seeds and its 95 % interval, at each budget, and at the budget which is best for each (chosen by the mean over
seeds, so a little too good for both).

    python benchmarks/optimisers.py [--json FILE] [--seeds 6] [--size 48] [--k 32] [--only adam sgd] [--minutes 20]

Results are kept in the file, so that the script can be stopped and goes on. Seeds are done one after another.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from ddstudy.images.metrics import psnr
from ddstudy.images.targets import load_targets
from ddstudy.images.volumes import Target
from ddstudy.report.intervals import mean_of
from ddstudy.solvers import Config, fit
from ddstudy.spec.axes import Fit
from ddstudy.spec.files import parse_spec
from ddstudy.spec.options import FitSpec, NoiseSpec
from ddstudy.study.evaluate import problem
from ddstudy.tasks.cases import case_of

BUDGETS = (200, 500, 1000, 2000)
TASKS = ("represent", "denoise")
SPACE = {"k": [1], "s": [1], "l": [1], "iterations": [1]}
BASELINE = "adam 0.01"
RATES: dict[Any, tuple[float, ...]] = {
    "adam": (0.003, 0.01, 0.03, 0.1),
    "radam": (0.01, 0.03),
    "rmsprop": (0.001, 0.003, 0.01),
    "sgd": (0.1, 1.0, 5.0),
    "sgld": (0.001, 0.01),
}
WAYS: dict[str, Config] = {
    **{f"{name} {rate:g}": Config(rate, optimiser=name) for name, rates in RATES.items() for rate in rates},
    "adamw 0.01, decay 0.1": Config(optimiser="adamw", weight_decay=0.1),
    "adam 0.03, x0.5 every 500": Config(0.03, schedule="step", decay_every=500),
    "adam 0.01, l1": Config(loss="l1"),
    "adam 0.03, l1": Config(0.03, loss="l1"),
    "adam 0.01, huber 0.05": Config(loss="huber"),
    "adam 0.01, log_mse": Config(loss="log_mse"),
    "adam 0.01, tv 0.02": Config(tv_weight=0.02),
    "lbfgs 1": Config(1.0, optimiser="lbfgs"),
}


def measured(name: str, task: str, seed: int, chosen: argparse.Namespace) -> dict[str, Any]:
    """PSNR of the members' mean and seconds at each budget, of one way and one seed."""
    about: dict[str, Any] = {"kind": task}
    if task == "denoise":
        about |= {"sigma": 0.1, "seed": seed}
    table = {"name": "optimisers", "space": SPACE, "target": {"size": [chosen.size, chosen.size]}, "task": about}
    spec = parse_spec(table, "optimisers")
    target = load_targets(spec)
    assert isinstance(target, Target)
    (setting,) = spec.search_space
    point = Fit({"k": chosen.k, "s": 8, "l": 4, "noise": "uniform", "tiling": "1x1"})
    options = FitSpec(members=chosen.members, seed=seed)
    work = problem(point, case_of(spec, target, setting).measurement, options, NoiseSpec())
    config, found = WAYS[name], dict[str, Any]()
    kept = Config(**{**vars(config), "keep": options.keep})
    for snapshot in fit(work, kept, BUDGETS, threads=chosen.threads):
        output = np.clip(snapshot.outputs.mean(axis=0)[0], 0, 1)
        found[str(snapshot.iteration)] = {"psnr": psnr(output, target.image), "seconds": snapshot.seconds}
    return found


def show(known: dict[str, Any], names: list[str]) -> None:
    """Prints the tables of what is known."""
    for task in TASKS:
        seeds = sorted({int(key.split("|")[2]) for key in known if key.startswith(f"{BASELINE}|{task}|")})
        print(f"\n{task}, {len(seeds)} seeds: PSNR of {BASELINE}, and gains over it in dB")
        print(f"{'':26} " + "".join(f"{budget:>22}" for budget in BUDGETS) + f"{'best budget':>26} {'ms':>6}")

        def scores(name: str, seeds: list[int], task: str = task) -> Any:
            """(seeds, budgets)."""
            keys = (f"{name}|{task}|{seed}" for seed in seeds)
            return np.array([[known[key][str(budget)]["psnr"] for budget in BUDGETS] for key in keys])

        for name in names:
            mine = [seed for seed in seeds if f"{name}|{task}|{seed}" in known]
            if not mine:
                continue
            ours, theirs = scores(name, mine), scores(BASELINE, mine)
            best, best_theirs = (int(of.mean(axis=0).argmax()) for of in (ours, theirs))
            columns = [*range(len(BUDGETS)), None]
            cells = []
            for column in columns:
                at = (best, best_theirs) if column is None else (column, column)
                if name == BASELINE:
                    mean = mean_of(ours[:, at[0]])
                    cells.append(f"{mean.mean:.2f}")
                else:
                    mean = mean_of(ours[:, at[0]] - theirs[:, at[1]])
                    cells.append(f"{mean.mean:+.2f} [{mean.low:+.2f}, {mean.high:+.2f}]")
            cells[-1] += f" @{BUDGETS[best]}"
            last = str(BUDGETS[-1])
            pace = [1e3 * known[f"{name}|{task}|{seed}"][last]["seconds"] / BUDGETS[-1] for seed in mine]
            row = "".join(f"{cell:>22}" for cell in cells[:-1])
            print(f"{name:26} {row}{cells[-1]:>26} {np.median(pace):6.2f}  {len(mine)}")


def main() -> None:
    """Measures what is missing and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("optimisers.json"))
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--members", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="ways whose names begin so; the baseline always is among them")
    parser.add_argument("--minutes", type=float, help="no way begins later than this")
    chosen = parser.parse_args()
    facts = {key: getattr(chosen, key) for key in ("size", "k", "members")}
    stored = json.loads(chosen.json.read_text()) if chosen.json.exists() else {"facts": facts, "results": {}}
    if stored["facts"] != facts:
        parser.error(f"{chosen.json} is of {stored['facts']}")
    known, begun = stored["results"], time.monotonic()
    names = [n for n in WAYS if n == BASELINE or not chosen.only or any(n.startswith(o) for o in chosen.only)]
    for seed in range(chosen.seeds):
        for task in TASKS:
            for name in sorted(names, key=lambda name: name != BASELINE):
                key = f"{name}|{task}|{seed}"
                late = chosen.minutes is not None and time.monotonic() - begun > 60 * chosen.minutes
                if key in known or late:
                    continue
                known[key] = measured(name, task, seed, chosen)
                chosen.json.write_text(json.dumps(stored, indent=0) + "\n")
    show(known, names)


if __name__ == "__main__":
    main()
