"""How many fits a search over cases needs, with and without a pruner over them, replayed on a grid that was measured.

    ddstudy run benchmarks/cases_search.toml
    python benchmarks/cases_search.py --export ddstudy.db     # results/cases_search.csv
    python benchmarks/cases_search.py [--seeds 20] [--samplers tpe]

A fit is looked up instead of run; all else is real: the runner with its store, leases and sampler. Each seed searches
twice, without a pruner and with Optuna's Wilcoxon pruner over cases, the sampler's seed being the same. "Choice" is the
best stable setting of a search, its regret what its mean over all cases loses against the best mean that there is.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from search_quality import Replay, Searched

import ddstudy
from ddstudy.images.volumes import Target, Targets
from ddstudy.report.intervals import mean_of
from ddstudy.spec.axes import Setting
from ddstudy.spec.files import parse_spec, read_spec
from ddstudy.spec.schema import CASE, StudySpec, on
from ddstudy.store.database import Store
from ddstudy.study import runner
from ddstudy.study.forecasting import Forecast
from ddstudy.study.over_cases import OverCases
from ddstudy.study.samplers import sampler

ROOT = Path(__file__).parent
TABLE = ROOT / "results" / "cases_search.csv"
COLUMNS = ["psnr", "ssim", "psnr_1dd", "cv_percent", "spread_percent", "seconds", "iterations_done"]


def export(store: str) -> None:
    """Writes the table of the recorded study."""
    study = ddstudy.open_study("cases_search", store=f"sqlite:///{store}").cases
    assert study is not None
    axes = [axis for axis in study.view.axes if study.trials[axis].nunique() > 1]
    study.trials[[*axes, *COLUMNS]].round(4).to_csv(TABLE, index=False)


def table_of(spec: StudySpec) -> dict[Setting, dict[str, float]]:
    """What was measured of each setting on each case."""
    rows, space = pd.read_csv(TABLE), spec.by_case
    assert space is not None
    found = {}
    for row in rows.to_dict("records"):
        values = {axis: listed[0] for axis, listed in ((a.name, a.values) for a in space.search_space.axes)}
        values |= {axis: row[axis] for axis in values if axis in row}
        setting = space.search_space.setting(values)
        assert setting is not None
        found[setting] = {name: row[name] for name in COLUMNS} | {"device": "table", "engine": "table"}
    return found


def search(spec: StudySpec, table: dict[Setting, dict[str, float]], folder: Path) -> tuple[int, int, Setting]:
    """Fits, iterations and the choice of one search."""
    searched, known = Searched(table), Forecast()
    known.learn("deep_decoder auto", 1.0, 1.0)
    assert spec.by_case is not None
    cases = spec.cases.by_name
    images = {(case,): Target(np.full((1, 48, 40), i / 99, np.float32), case, None) for i, case in enumerate(cases)}
    target = Targets((CASE,), images)
    with Store(f"sqlite:///{folder}/searches.db") as store:
        asking = store.drive(spec, target, sampler(spec))
        over = OverCases(asking, store.drive(spec.by_case, target, sampler(spec.by_case)))
        for _ in runner.run(over.by_case, Replay(searched), known, over=over):
            pass
        results = {setting: outcome.value for setting, outcome in asking.measured().items() if outcome.stable}
    chosen = max(results, key=lambda setting: results[setting] or 0.0)
    return len(searched.fits), sum(iterations for iterations, _ in searched.fits), chosen


def main() -> None:
    """Searches on the table and prints what they took and chose."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--export", metavar="FILE.db", help="write the table from a store and end")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--samplers", nargs="+", default=["tpe"], help="tpe, random, gp, ...")
    parser.add_argument("--trials", type=int, default=60, help="settings that a search tries, of 108")
    given = parser.parse_args()
    if given.export:
        export(given.export)
        return
    plain = read_spec(ROOT / "cases_search.toml")
    table = table_of(plain)
    whole = {setting: [table[on(setting, case)] for case in plain.cases.chosen_by] for setting in plain.search_space}
    stable = {s: rows for s, rows in whole.items() if np.mean([row["cv_percent"] for row in rows]) <= 5}
    psnr = {setting: float(np.mean([row["psnr"] for row in rows])) for setting, rows in stable.items()}
    found = []
    for name in given.samplers:
        for seed in range(given.seeds):
            row: dict[str, object] = {"sampler": name, "seed": seed}
            for pruner in (None, "wilcoxon"):
                tree = plain.model_dump(mode="json", exclude_none=True) | {"images": False}
                tree["search"] = {"sampler": name, "seed": seed, "trials": given.trials} | (
                    {"pruner": pruner} if pruner else {}
                )
                with tempfile.TemporaryDirectory() as folder:
                    fits, iterations, chosen = search(parse_spec(tree, "benchmark"), table, Path(folder))
                regret = max(psnr.values()) - psnr[chosen]
                row |= {f"fits {pruner}": fits, f"iterations {pruner}": iterations, f"regret {pruner}": regret}
                row |= {f"chosen {pruner}": chosen.id}
            found.append(row)
            print(json.dumps(row), flush=True)
    rows = pd.DataFrame(found)
    for name, own in rows.groupby("sampler"):
        saved = mean_of(own["fits wilcoxon"] / own["fits None"])
        same = int((own["chosen wilcoxon"] == own["chosen None"]).sum())
        print(
            f"{name}: fits {own['fits None'].median():.0f} -> {own['fits wilcoxon'].median():.0f} (median), ratio "
            f"{saved.mean:.2f} ({saved.low:.2f} to {saved.high:.2f}); the same choice in {same} of {len(own)}; "
            f"mean regret {own['regret None'].mean():.3f} -> {own['regret wilcoxon'].mean():.3f} dB"
        )


if __name__ == "__main__":
    main()
