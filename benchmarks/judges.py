"""What choosing a setting without the truth costs: regret against the setting that the truth would have chosen.

Two studies of the packaged slice with simulated Gaussian noise, at two levels and with several measurements of each,
are searched by grid; one is judged by a tenth of the pixels, held out of every loss, the other by a second measurement.
The truth is known here, so each measurement tells how much was lost:

    python benchmarks/judges.py [--store sqlite:///judges.db] [--seeds 5] [--json FILE]

Both studies are in the store: the script can be stopped and goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

import ddstudy
from ddstudy.report.inverse import regret


def study(against: str, seeds: int) -> dict[str, object]:
    """The study of one judge, as a study file says it."""
    return {
        "name": f"judged-by-{against}",
        "target": {"size": [96, 80]},
        "task": {"kind": "denoise"},
        "judge": {"against": against},
        "space": {
            "k": [16, 32, 64],
            "s": [8],
            "l": [3],
            "iterations": [100, 200, 400, 800, 1600],
            "noise": ["uniform", "blur3"],
            "task.sigma": [0.05, 0.1],
            "task.seed": list(range(seeds)),
        },
        "fit": {"members": 3, "check_every": 50},
        "stability": {"prune": False},
        "images": False,
    }


def main() -> None:
    """Runs what is missing and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", default="sqlite:///judges.db")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    rows = []
    for against in ("held_out", "repeat"):
        done = ddstudy.run(study(against, chosen.seeds), store=chosen.store, workers=1, threads=1)
        by_number = done.trials.set_index("number")
        for one in regret(done.trials, done.view.axes).to_dict("records"):
            rows.append(
                {
                    "judge": against,
                    "sigma": one["task.sigma"],
                    "seed": one["task.seed"],
                    "settings": one["n"],
                    "best": one["oracle"],
                    "chosen": one["chosen"],
                    "regret": one["regret"],
                    "rank correlation": one["spearman"],
                    "best setting": _words(by_number.loc[one["oracle_number"]]),
                    "chosen setting": _words(by_number.loc[one["chosen_number"]]),
                }
            )
    table = pd.DataFrame(rows)
    print(table.round(3).to_string(index=False))
    summary = table.groupby(["judge", "sigma"])["regret"].agg(["mean", "max"]).round(3)
    print(f"\nregret, dB\n{summary.to_string()}")
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=0, default=lambda value: np.asarray(value).item()))


def _words(row: pd.Series[object]) -> str:
    return f"k{row['k']} s{row['s']} l{row['l']} {row['noise']} i{row['iterations']}"


if __name__ == "__main__":
    main()
