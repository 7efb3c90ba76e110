"""Which feature size makes simplex noise the compromise between uniform and blurred noise that the thesis describes.

    python benchmarks/simplex.py [--kinds uniform blur3 1.0 1.6] [--out benchmarks/results/simplex.csv]

Of the input tensor (32 channels of 16x20, 20 seeds): the share of values that are exactly 0.5; the correlation of
neighbours in the image and of neighbouring channels; and the effective rank, the exponential of the entropy of the
channels' squared singular values, which is 32 where no channel can be made from others. Of fits (MNI152 mid axial slice
at 64x80, k = 32, s = 4, l = 4, whole and in 2x2 tiles, 500 iterations, 20 members): the members' mean PSNR and half its
95 % interval. Kinds that the table has already are not measured again.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ddstudy.execution.executors import usable_cores
from ddstudy.images.inputs import noise_volume
from ddstudy.images.volumes import load_target
from ddstudy.spec.axes import budgets_by_fit
from ddstudy.spec.files import parse_spec
from ddstudy.study.evaluate import Job, Result, evaluate
from ddstudy.tasks.cases import Case

OUT = Path(__file__).parent / "results" / "simplex.csv"
KINDS = ["uniform", "blur3", "1.0", "1.1", "1.3", "1.6", "2.0", "3.0"]
SEEDS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kinds", nargs="+", default=KINDS, help="uniform, blur3, or a feature size of simplex noise")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    rows = pd.read_csv(options.out, dtype={"kind": str}).to_dict("records") if options.out.exists() else []
    for kind in options.kinds:
        if kind not in {row["kind"] for row in rows}:
            rows.append({"kind": kind, **structure(kind), **quality(kind)})
            table = pd.DataFrame(sorted(rows, key=lambda row: KINDS.index(row["kind"]) if row["kind"] in KINDS else 99))
            table.round(4).to_csv(options.out, index=False)
    print(pd.read_csv(options.out).round(3).to_string(index=False))


def study(kind: str) -> dict[str, object]:
    simplex = kind[0].isdigit()
    return {
        "name": "simplex",
        "noise": {"feature_size": float(kind)} if simplex else {},
        "fit": {"members": SEEDS},
        "target": {"size": [64, 80]},
        "space": {
            "k": [32],
            "s": [4],
            "l": [4],
            "iterations": [500],
            "noise": ["simplex" if simplex else kind],
            "tiling": ["1x1", "2x2"],
        },
        "stability": {"prune": False},
    }


def structure(kind: str) -> dict[str, float]:
    """What the values of an input tensor have to do with each other."""
    spec, found = parse_spec(study(kind), "benchmark"), []
    for seed in range(SEEDS):
        random = np.random.default_rng(seed)
        values = noise_volume(spec.search_space["noise"][0], 32, 16, 20, random, **spec.noise.model_dump()).astype(
            float
        )
        spectrum = np.linalg.svd((values - values.mean()).reshape(32, -1), compute_uv=False) ** 2
        weights = spectrum / spectrum.sum()
        found.append(
            {
                "exactly_half": float((values == 0.5).mean()),
                "neighbours": (_correlation(values, 1) + _correlation(values, 2)) / 2,
                "channels": _correlation(values, 0),
                "rank": math.exp(-(weights * np.log(weights)).sum()),
            }
        )
    return pd.DataFrame(found).mean().to_dict()


def _correlation(values: NDArray[np.float64], axis: int) -> float:
    first, second = np.delete(values, -1, axis).ravel(), np.delete(values, 0, axis).ravel()
    return float(np.corrcoef(first, second)[0, 1])


def quality(kind: str) -> dict[str, float]:
    """Mean PSNR of single members, dB."""
    spec, found = parse_spec(study(kind), "benchmark"), {}
    target = load_target(spec.target)
    for fit, budgets in budgets_by_fit(spec.search_space).items():
        job = Job(fit, budgets, Case.of(target), spec.fit, spec.noise)
        for event in evaluate(job, device="cpu", threads=usable_cores()):
            if isinstance(event, Result):
                scores = np.array([float(event.values[f"psnr_member_{member}"]) for member in range(SEEDS)])
                tiling = fit.id.rpartition("-")[2]
                found[f"psnr_{tiling}"] = scores.mean()
                found[f"psnr_{tiling}_half"] = 1.96 * scores.std(ddof=1) / math.sqrt(SEEDS)
    return found


if __name__ == "__main__":
    main()
