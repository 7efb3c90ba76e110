"""What the stopping rules choose, beside the oracle: real fits whose truth is known, none of which a rule ended.

    python benchmarks/stopping.py [--json FILE] [--replay]

MNI152 mid axial slice at 96x80 with Gaussian noise that is not clipped; s = 8, l = 4, 2 members, 3,000 iterations with
a check every 10. Every fit is done a second time with a tenth of the pixels held out, for the rule that needs them: its
gap is to the best check of that fit, and what holding out costs is said apart. Fits are added to the file as they end,
and those that are in it are not done again; `--replay` does none.
"""

import argparse
import itertools
import json
import math
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
from ddstudy.study.stopping import NAMES, Curve, MovingVariance, WindowedVariance, audit

RESULTS = Path(__file__).parent / "results" / "stopping.jsonl"
ITERATIONS, EVERY = 3000, 10
PATIENCES = (200, 500, 1000)
CASES: list[dict[str, Any]] = [
    {"seed": seed, "keep": keep, "held_out": share, "sigma": sigma, "k": k}
    for seed, (keep, share), sigma, k in itertools.product(
        (0, 1, 2), (("best", 0.0), ("best", 0.1), ("last", 0.0)), (0.05, 0.1, 0.2), (16, 32, 64)
    )
    if keep == "best" or seed == 0
]


def recorded(case: dict[str, Any]) -> dict[str, list[float]]:
    """The checks of a fit, without a stopping rule."""
    truth = load_target(TargetSpec(size=(96, 80))).image
    noise, places = (np.random.default_rng([case["seed"], stream]) for stream in range(2))
    noisy = (truth + case["sigma"] * noise.standard_normal(truth.shape)).astype(np.float32)
    kept_back = places.random(truth.shape) < case["held_out"]
    chosen = Fit({"k": case["k"], "s": 8, "l": 4, "noise": "uniform", "tiling": "1x1"})
    options = FitSpec(members=2, seed=case["seed"])
    seen = problem(chosen, np.where(kept_back, np.float32(np.nan), noisy), options, NoiseSpec())
    curve: dict[str, list[float]] = {name: [] for name in ("iterations", "loss", "held_out", "score", "wmv", "emv")}
    wmv, emv = WindowedVariance(), MovingVariance()
    config = Config(options.learning_rate, case["keep"])
    for snapshot in fit(seen, config, range(EVERY, ITERATIONS + 1, EVERY)):
        output = join(snapshot.outputs, "1x1", *truth.shape[1:]).mean(axis=0)
        curve["iterations"].append(snapshot.iteration)
        curve["loss"].append(float(snapshot.losses.mean()))
        curve["score"].append(psnr_of(float(((output - truth) ** 2).mean())))
        curve["wmv"].append(wmv.observe(snapshot.iteration, output))
        curve["emv"].append(emv.observe(snapshot.iteration, output))
        if kept_back.any():
            curve["held_out"].append(float(((output - noisy)[kept_back] ** 2).mean()))
    return {name: [int(it) if name == "iterations" else float(f"{it:.5g}") for it in rows] for name, rows in curve.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, default=RESULTS, help="file of the fits, a line each")
    parser.add_argument("--replay", action="store_true", help="only what is in the file")
    options = parser.parse_args()
    done = [json.loads(line) for line in options.json.read_text().splitlines()] if options.json.exists() else []
    cases = [(fit["case"], fit["curve"]) for fit in done]
    for case in CASES if not options.replay else []:
        if case in [known for known, _ in cases]:
            continue
        curve = recorded(case)
        with options.json.open("a") as file:
            file.write(json.dumps({"case": case, "curve": curve}, separators=(",", ":")) + "\n")
        cases.append((case, curve))
        print(f"{case}: best {max(curve['score']):.2f} dB, last {curve['score'][-1]:.2f} dB", flush=True)
    kinds = (("best", False), ("best", True), ("last", False))
    for keep, holds_out in kinds:
        fits = [
            (case, Curve(**curve, sigma=case["sigma"]))
            for case, curve in cases
            if case["keep"] == keep and bool(case["held_out"]) == holds_out
        ]
        print(f"\n{len(fits)} fits, keep = {keep}, {'a tenth' if holds_out else 'nothing'} held out; gaps in dB")
        print(f"{'rule':12}{'patience':>9}{'mean gap':>10}{'worst':>8}{'saved':>8}{'never':>7}   mean gap at each sigma")
        for name in NAMES:
            for patience in PATIENCES if name in ("wmv", "emv", "held_out") else PATIENCES[-1:]:
                found = audit([curve for _, curve in fits], name, patience)
                if found.fits:
                    levels = sorted({case["sigma"] for case, _ in fits})
                    each = [audit([it for case, it in fits if case["sigma"] == at], name, patience) for at in levels]
                    shown = f"{found.mean_gap:10.2f}{found.worst_gap:8.2f}{100 * found.saved:7.0f}%{found.never:7d}"
                    says = f"{patience if name in ('wmv', 'emv', 'held_out') else '':>9}"
                    print(f"{name:12}{says}{shown}   {'  '.join(f'{at:g}: {one.mean_gap:.2f}' for at, one in zip(levels, each, strict=True))}")
    best = {json.dumps(case): max(curve["score"]) for case, curve in cases}
    costs = [
        best[json.dumps(case | {"held_out": 0.0})] - best[json.dumps(case)]
        for case, _ in cases
        if case["held_out"] and json.dumps(case | {"held_out": 0.0}) in best
    ]
    if costs:
        print(f"\nHolding out costs {np.mean(costs):.2f} dB of the best check, at most {max(costs):.2f} ({len(costs)} pairs).")


if __name__ == "__main__":
    main()
