"""What the stop rule does to fits that had no part in choosing it, beside those that had.

    python benchmarks/stop_rule.py

Every table is of fits that nothing stopped, 1,000 iterations each. The rule of the defaults was chosen on the first
three, so what it did there is the best of many tries and no forecast; the fourth was measured afterwards. To see how
much choosing flatters, rules are chosen on each of the first three tables as the default was, to wrong no stable fit
and then to save most, and judged on the others.
"""

import itertools
import json
from pathlib import Path

import pandas as pd
from scipy.stats import beta

from ddstudy.spec.schema import StabilitySpec
from ddstudy.study.stability import Audit, Recorded, audit

RESULTS = Path(__file__).parent / "results"
CHOSEN_ON = {"axial and coronal, 96x120": ["audit_axial", "audit_coronal"], "axial, 64x80": ["reduced"]}
FRESH = {"sagittal, 64x80, other seeds": ["audit_fresh"]}
RULES = [
    dict(zip(("stop", "warmup", "window", "patience"), values, strict=True))
    for values in itertools.product([1, 1.5, 2], [0, 100, 200, 300, 500], [1, 3, 5], [1, 3, 5])
]


def read(names: list[str]) -> list[Recorded]:
    """The fits of some tables."""
    fits = []
    for name in names:
        results = dict(iter(pd.read_csv(RESULTS / f"{name}.csv").groupby("fit_id")))
        for fit, rows in pd.read_csv(RESULTS / f"{name}_checks.csv").groupby("fit_id"):
            curve = rows[rows["iteration"] % 100 == 0].pivot(index="iteration", columns="member", values="psnr")
            scores = zip(results[fit]["psnr"], results[fit]["stable"], strict=True)
            by_budget = dict(zip(results[fit]["iterations"], scores, strict=True))
            fits.append(Recorded(curve.index.tolist(), curve.to_numpy().tolist(), by_budget))
    return fits


def main() -> None:
    tables = {name: read(files) for name, files in (CHOSEN_ON | FRESH).items()}
    print(f"{'the rule of the defaults':36s}  saved   caught        wronged (95 %: up to)   best lost")
    for name, fits in tables.items():
        say(f"{name}{', fresh' if name in FRESH else ''}", audit(fits, StabilitySpec()))
    old = {name: tables[name] for name in CHOSEN_ON}
    for name in old:
        others = [fit for other, fits in old.items() if other != name for fit in fits]
        here = [(rule, audit(old[name], StabilitySpec(**rule))) for rule in RULES]
        harmless = sorted((r for r in here if r[1].wronged == 0 and r[1].saved > 0), key=lambda r: -r[1].saved)
        there = [audit(others, StabilitySpec(**rule)) for rule, _ in harmless]
        wrongs = [found.wronged for found in there if found.wronged]
        print(
            f"\nchosen on {name}: {len(harmless)} of {len(RULES)} rules wrong none of its {here[0][1].stable} stable "
            f"fits; {len(wrongs)} of them wrong some of the other {there[0].stable}, {max(wrongs, default=0)} at most. "
            f"The one that saves most, {json.dumps(harmless[0][0])}:"
        )
        say("  where it was chosen", harmless[0][1])
        say("  on the others", there[0])


def say(name: str, found: Audit) -> None:
    most = beta.ppf(0.975, found.wronged + 1, found.stable - found.wronged) if found.wronged < found.stable else 1.0
    print(
        f"{name:36s} {found.saved:6.1%} {found.caught:5d} of {found.unstable:3d}"
        f" {found.wronged:6d} of {found.stable:3d} ({most:5.1%}) {found.best_lost:16.2f} dB"
    )


if __name__ == "__main__":
    main()
