"""What the stopping rules choose, beside the oracle: real fits whose truth is known, none of which a rule ended.

    python benchmarks/stopping.py [--json FILE] [--replay]

MNI152 mid axial slice at 96x80 with Gaussian noise that is not clipped; s = 8, l = 4, 2 members, 3,000 iterations with
a check every 10. Every fit is done with fit.keep = "best", with "last", and with "best" and a tenth of the pixels held
out, for the rule that needs them: its gap is to the best check of that fit, and what holding out costs is said apart.
Fits are added to the file as they end, and those that are in it are not done again; `--replay` does none.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from ddstudy.images.metrics import psnr_of
from ddstudy.images.tiling import join
from ddstudy.images.volumes import load_target
from ddstudy.solvers import Config, fit
from ddstudy.spec.axes import Fit
from ddstudy.spec.options import FitSpec, NoiseSpec, TargetSpec
from ddstudy.study.evaluate import problem
from ddstudy.study.stopping import NAMES, Curve, Watch, audit, takes_patience
from ddstudy.tasks.base import Measurement

RESULTS = Path(__file__).parent / "results" / "stopping.jsonl"
ITERATIONS, EVERY = 3000, 10
PATIENCES = (200, 500, 1000)
KINDS = (("best", 0.0), ("last", 0.0), ("best", 0.1))  # fit.keep, and the share that is held out
CASES: list[dict[str, Any]] = [
    {"seed": seed, "keep": keep, "held_out": share, "sigma": sigma, "k": k}
    for seed in (0, 1, 2)
    for keep, share in KINDS
    for sigma, k in itertools.product((0.05, 0.1, 0.2), (16, 32))
]


def recorded(case: dict[str, Any]) -> dict[str, list[float]]:
    """The checks of a fit, without a stopping rule."""
    truth = load_target(TargetSpec(size=(96, 80))).image
    noise, places = (np.random.default_rng([case["seed"], stream]) for stream in range(2))
    noisy = (truth + case["sigma"] * noise.standard_normal(truth.shape)).astype(np.float32)
    kept_back = places.random(truth.shape) < case["held_out"]
    chosen = Fit({"k": case["k"], "s": 8, "l": 4, "noise": "uniform", "tiling": "1x1"})
    options = FitSpec(members=2, seed=case["seed"])
    channels, height, width = truth.shape
    measured = Measurement(np.where(kept_back, np.float32(np.nan), noisy), None, (channels, height, width))
    seen = problem(chosen, measured, options, NoiseSpec())
    curve: dict[str, list[float]] = {name: [] for name in ("iterations", "loss", "held_out", "score", "wmv", "emv")}
    watch = Watch()
    config = Config(options.learning_rate, case["keep"])
    for snapshot in fit(seen, config, range(EVERY, ITERATIONS + 1, EVERY)):
        output = join(snapshot.outputs, "1x1", height, width).mean(axis=0)
        curve["iterations"].append(snapshot.iteration)
        curve["loss"].append(float(snapshot.losses.mean()))
        curve["score"].append(psnr_of(float(((output - truth) ** 2).mean())))
        for name, criterion in watch.observe(snapshot.iteration, output).items():
            curve[name].append(criterion)
        if kept_back.any():
            curve["held_out"].append(float(((output - noisy)[kept_back] ** 2).mean()))
    return {
        name: [int(it) if name == "iterations" else float(f"{it:.5g}") for it in rows] for name, rows in curve.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, default=RESULTS, help="file of the fits, a line each")
    parser.add_argument("--replay", action="store_true", help="only what is in the file")
    options = parser.parse_args()
    done = [json.loads(line) for line in options.json.read_text().splitlines()] if options.json.exists() else []
    cases = [(line["case"], line["curve"]) for line in done]
    for case in CASES if not options.replay else []:
        if case in [known for known, _ in cases]:
            continue
        curve = recorded(case)
        with options.json.open("a") as file:
            file.write(json.dumps({"case": case, "curve": curve}, separators=(",", ":")) + "\n")
        cases.append((case, curve))
        print(f"{case}: best {max(curve['score']):.2f} dB, last {curve['score'][-1]:.2f} dB", flush=True)
    for keep, share in KINDS:
        fits = [
            (case["sigma"], Curve(**curve, sigma=case["sigma"]))
            for case, curve in cases
            if (case["keep"], case["held_out"]) == (keep, share)
        ]
        print(f"\n{len(fits)} fits, keep = {keep}, {share:.0%} held out; gaps in dB\n")
        say(fits)
    best = {tuple(case.values()): max(curve["score"]) for case, curve in cases}
    pairs = [
        (tuple((case | {"held_out": 0.0}).values()), tuple(case.values())) for case, _ in cases if case["held_out"]
    ]
    costs = [best[whole] - best[part] for whole, part in pairs if whole in best]
    if costs:
        print(f"\nHolding out costs {np.mean(costs):.2f} dB of the best, at most {max(costs):.2f}; {len(costs)} pairs")


def say(fits: list[tuple[float, Curve]]) -> None:
    """Prints what every rule would have made of fits with some sigma, as a table of Markdown."""
    levels = sorted({sigma for sigma, _ in fits})
    print("| rule | patience | mean | worst | saved | never |" + "".join(f" sigma {sigma:g} |" for sigma in levels))
    print("| --- |" + " ---: |" * (5 + len(levels)))
    for name in NAMES:
        for patience in PATIENCES if takes_patience(name) else PATIENCES[:1]:
            found = audit([curve for _, curve in fits], name, patience)
            if not found.fits:
                break
            each = (audit([curve for sigma, curve in fits if sigma == at], name, patience) for at in levels)
            waits = f" {patience}" * takes_patience(name)
            told = f"{found.mean_gap:.2f} | {found.worst_gap:.2f} | {100 * found.saved:.0f} % | {found.never}"
            print(f"| `{name}` |{waits} | {told} |" + "".join(f" {one.mean_gap:.2f} |" for one in each))


if __name__ == "__main__":
    main()
