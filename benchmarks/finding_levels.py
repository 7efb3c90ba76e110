"""How often findings are decided wrongly, and how often rightly: synthetic truths with few data and many.

    python benchmarks/finding_levels.py [--draws 2000] [--studies 60] [--out FILE.txt]    # 10 minutes

First one mean effect over n matched fits, decided alone: the share of draws with a verdict where the truth is no effect
(the level: it should be at most 5 %; beside it that of Student's t and of the studentised bootstrap, each alone), and
with the right verdict where it is 0.2, 0.5, 1 or 2 standard deviations of the fits' effects. Effects are normal,
heavy-tailed (Student's t with 3 degrees of freedom), skewed (exponential), clustered (normal, and two thirds of their
variance is what fits of one value of an axis share; their mean over the study's own four values is the truth) or, as a
warning, lognormal with a skewness of 6, where no interval can hold.

Then whole studies without any effect: the share that has any wrong verdict, with p-values as they are and corrected for
all findings (Holm).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from ddstudy.report.intervals import LEVEL, Mean, holm, mean_of
from ddstudy.spec.files import parse_spec
from ddstudy.store.study import StudyView
from ddstudy.thesis.findings import FINDINGS

COUNTS = (6, 8, 10, 12, 20, 27, 50, 100)
EFFECTS = (0.2, 0.5, 1.0, 2.0)  # standard deviations
SPACE = {
    "k": [8, 64, 128],
    "s": [8, 32],
    "l": [4, 6],
    "iterations": [2000, 5000],
    "noise": ["uniform", "blur3"],
    "tiling": ["1x1", "4x5"],
}
# of findings that an absence of effects makes true or false, the verdict that is right
RIGHT = {"time-k-flat": "supported", "ensemble": "supported", "k-128": "contradicted", "psnr-ssim": "contradicted"}
RIGHT |= dict.fromkeys(("best-iterations", "best-s", "best-k", "best-l"), "contradicted")

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]


def clustered(random: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Variance 1, of which 2/3 is between four groups whose mean is exactly 0."""
    groups = np.arange(count) % 4
    shared = random.normal(size=4)[groups]
    return (shared - shared.mean()) * (2 / 3) ** 0.5 + random.normal(size=count) * (1 / 3) ** 0.5


KINDS: dict[str, Draw] = {  # all of mean 0 and variance 1
    "normal": lambda random, count: random.normal(size=count),
    "heavy tails": lambda random, count: random.standard_t(3, size=count) / 3**0.5,
    "skewed": lambda random, count: random.exponential(size=count) - 1,
    "clustered": clustered,
    "lognormal": lambda random, count: (random.lognormal(size=count) - math.e**0.5) / (math.e**2 - math.e) ** 0.5,
}


def each_alone(mean: Mean) -> tuple[float, float]:
    """P-values of no effect by Student's t and by the studentised bootstrap, the standard error as it is."""
    count = len(mean.values)
    t = mean.mean / mean.error * (1 + 8 / count**2)
    beyond = min(np.mean(mean.studentised >= t), np.mean(mean.studentised <= t))
    return float(2 * stats.t.sf(abs(t), count - 1)), float(2 * beyond)


def of_one_mean(draws: int, say: Callable[[str], None]) -> None:
    head = f"{'effects':12s} {'n':>4s} {'wrong at none':>14s} {'Student':>8s} {'bootstrap':>10s}"
    say(head + "".join(f"{f'right at {effect:g} sd':>16s}" for effect in EFFECTS))
    for kind, draw in KINDS.items():
        for count in COUNTS:
            random = np.random.default_rng([count, *kind.encode()])
            means = [mean_of(draw(random, count)) for _ in range(draws)]
            wrong = np.mean([mean.p(0) < LEVEL for mean in means])
            # the data moved by an effect and asked about 0 are the data asked about minus the effect
            right = [np.mean([m.p(-effect) < LEVEL and m.mean > -effect for m in means]) for effect in EFFECTS]
            alone = [np.mean([p < LEVEL for p in ps]) for ps in zip(*map(each_alone, means), strict=True)]
            numbers = f"{wrong:>14.1%} {alone[0]:>8.1%} {alone[1]:>10.1%}"
            say(f"{kind:12s} {count:4d} {numbers}" + "".join(f"{share:>16.0%}" for share in right))


def of_studies(studies: int, say: Callable[[str], None]) -> None:
    spec = parse_spec({"name": "nothing", "space": SPACE}, "benchmark")
    settings = list(spec.search_space)
    base = pd.DataFrame([dict(setting) | {"fit_id": setting.fit.id} for setting in settings])
    base = base.assign(number=range(len(base)), state="COMPLETE", stable=True, shared=False, disturbed=False)
    base = base.assign(iterations_done=base["iterations"], study="nothing")
    fits = pd.factorize(base["fit_id"])[0]
    say(f"\nwhole studies: {len(base)} settings, {fits.max() + 1} fits, no effect at all")
    say(f"{'effects':12s} {'any wrong alone':>16s} {'any wrong, Holm':>16s}")
    for kind in ("normal", "heavy tails", "skewed"):
        random, alone, together = np.random.default_rng(list(kind.encode())), 0, 0

        def column(mean: float, sd: float) -> NDArray[np.float64]:
            """Half of the variance is what the budgets of a fit share."""
            shared = KINDS[kind](random, fits.max() + 1)[fits]  # noqa: B023
            return mean + sd * (shared + KINDS[kind](random, len(fits))) / 2**0.5  # noqa: B023

        for _ in range(studies):
            psnr = column(30, 1)
            trials = base.assign(
                psnr=psnr,
                psnr_tiles=psnr,
                psnr_1dd=psnr - column(2.5, 0.5),
                psnr_foreground=column(25, 1),
                ssim=column(0.8, 0.05),
                vif=column(0.5, 0.05),
                seconds=np.exp(column(0, 0.1)),
                cv_percent=np.where(random.uniform(size=fits.max() + 1) < 0.1, 9.0, 1.0)[fits],
            )
            view = StudyView("nothing", spec, {"target": ""}, trials)
            found = {finding.name: finding.test(view, []) for finding in FINDINGS}
            wrong = [one.verdict not in ("not enough data", RIGHT.get(name)) for name, one in found.items()]
            corrected = np.array(holm([one.p for one in found.values()]))
            alone += any(wrong)
            together += any(wrong & (corrected < LEVEL))
        say(f"{kind:12s} {alone / studies:>16.1%} {together / studies:>16.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draws", type=int, default=2000, help="of every truth")
    parser.add_argument("--studies", type=int, default=60, help="of every kind of effects")
    parser.add_argument("--out", type=Path, help="keep what is printed")
    options = parser.parse_args()
    lines: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    of_one_mean(options.draws, say)
    of_studies(options.studies, say)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
