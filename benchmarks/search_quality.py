"""How many fits a search needs, replayed on a whole grid that was really measured.

    python benchmarks/search_quality.py [--seeds 20] [--table benchmarks/results/reduced.csv] [--out FILE.json]

The table is the export of a finished grid (`ddstudy run studies/reduced.toml`, then `ddstudy export reduced`). A fit is
looked up instead of run, and everything else is real: ours is the runner with its store, claims and samplers; plain
Optuna is `study.optimize` over the same six lists, as its documentation has it, every trial a fit of its own.

Two questions: how many fits until a stable setting within 0.1 dB of the best stable one is measured, and which share of
the table's hypervolume (PSNR against seconds, stable settings) is reached after some fits. Iterations are given beside
fits, since fits of ours go to the largest budget.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import torch

from ddstudy.execution.executors import Event, Finished
from ddstudy.images.volumes import Target
from ddstudy.spec.axes import Setting, budgets_by_fit
from ddstudy.spec.files import parse_spec, read_spec
from ddstudy.spec.options import THESIS
from ddstudy.spec.schema import StudySpec
from ddstudy.store.database import Store
from ddstudy.study import forecasting, runner
from ddstudy.study.evaluate import Job, Measurement
from ddstudy.study.samplers import sampler

ROOT = Path(__file__).parent
WITHIN_DB = 0.1
AFTER = (10, 20, 30)  # fits
MOST = 400  # fits of a search that does not find it; counted as that many

Row = dict[str, Any]
Table = dict[Setting, Row]


@dataclass
class Searched:
    """What one search measured: iterations and settings of each fit, in order."""

    table: Table
    fits: list[tuple[int, list[Setting]]] = field(default_factory=list)

    def add(self, iterations: int, settings: list[Setting]) -> None:
        """Adds one fit."""
        self.fits.append((iterations, settings))

    def until(self, goal: set[Setting]) -> tuple[int, int]:
        """Fits and iterations until a setting of the goal was measured."""
        spent = 0
        for index, (iterations, settings) in enumerate(self.fits):
            spent += iterations
            if goal & set(settings):
                return index + 1, spent
        return MOST, spent

    def volume(self, fits: int) -> float:
        """Hypervolume after some fits."""
        measured = {setting for _, settings in self.fits[:fits] for setting in settings}
        return hypervolume(self.table, measured)


def hypervolume(table: Table, settings: set[Setting]) -> float:
    """Area that stable settings dominate, PSNR (dB, from the limit of stability) x seconds (from the slowest)."""
    slowest = max(row["seconds"] for row in table.values())
    points = sorted((table[s]["seconds"], table[s]["psnr"]) for s in settings if table[s]["stable"])
    area, best = 0.0, 15.0
    for seconds, psnr in points:
        area += max(0.0, psnr - best) * (slowest - seconds)
        best = max(best, psnr)
    return area


class Replay:
    """An executor that looks results up."""

    slots = 1

    def __init__(self, searched: Searched) -> None:
        self._searched = searched
        self._waiting: deque[tuple[str, Job]] = deque()

    def room(self, job: Job) -> int:
        """See `Executor`."""
        return 1

    def submit(self, ticket: str, job: Job) -> None:
        """See `ddstudy.execution.executors.Executor`."""
        self._waiting.append((ticket, job))

    def events(self) -> Iterator[tuple[str, Event]]:
        """See `ddstudy.execution.executors.Executor`."""
        nothing = np.zeros((1, 1, 1), dtype=np.float32)
        while self._waiting:
            ticket, job = self._waiting.popleft()
            fit = job.fit
            settings = [fit.at(budget) for budget in job.budgets]
            self._searched.add(max(job.budgets), settings)
            for setting in settings:
                row = self._searched.table[setting]
                values = {key: value for key, value in row.items() if value == value}  # NaN: not measured
                curve: dict[str, list[object]] = {"iterations": [], "seconds": [], "psnr_members": []}
                yield ticket, Measurement(setting["iterations"], values, nothing, curve, False)
            yield ticket, Finished()

    def cancel(self, ticket: str) -> None:
        """Nothing runs."""

    def expect(self, jobs: int) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing runs."""


def ours(
    name: str, seed: int, spec: StudySpec, table: Table, objectives: dict[str, str], enough: Enough, folder: Path
) -> Searched:
    """One search by the runner, in a store of its own kind of study: a SQLite file."""
    tree = spec.model_dump(mode="json", exclude_none=True)
    tree |= {"images": False, "objectives": objectives, "name": f"{name}-{seed}-{len(objectives)}"}
    tree |= {"search": {"sampler": name, "seed": seed, "trials": len(table)}}
    spec, searched = parse_spec(tree, "benchmark"), Searched(table)
    target = Target(np.zeros((1, 64, 80), dtype=np.float32), "replayed", None)
    known = forecasting.Forecast()
    known.learn(1.0, 1.0)
    with Store(f"sqlite:///{folder}/searches.db") as store:
        run = runner.run(store.drive(spec, target, sampler(spec)), Replay(searched), known)
        with contextlib.closing(run):  # type: ignore[type-var]  # a generator has close()
            for _ in run:
                if enough(searched):
                    break
    return searched


def plain(make: Callable[[int], Any], ordered: bool) -> Callable[..., Searched]:
    """One search by Optuna alone; ordered axes as indices or, as the lists stand, as categories."""

    def search(
        seed: int, spec: StudySpec, table: Table, objectives: dict[str, str], enough: Enough, folder: Path
    ) -> Searched:
        lists, searched = spec.search_space, Searched(table)

        def objective(trial: optuna.Trial) -> Any:
            values = {}
            for axis in lists.axes:
                if ordered and axis.is_ordered:
                    values[axis.name] = axis.values[trial.suggest_int(axis.name, 0, len(axis.values) - 1)]
                else:
                    values[axis.name] = trial.suggest_categorical(axis.name, axis.values)
            setting = Setting(values)
            searched.add(setting["iterations"], [setting])
            if enough(searched):
                trial.study.stop()
            row = table[setting]
            trial.set_constraint("cv_percent", row["cv_percent"] - spec.stability.cv_percent)
            return tuple(row[metric] for metric in objectives)

        study = optuna.create_study(sampler=make(seed), directions=list(objectives.values()))
        study.optimize(objective, n_trials=MOST)
        return searched

    return search


Enough = Callable[[Searched], bool]
S = optuna.samplers
PLAIN: dict[str, Callable[[int], Any]] = {
    "random": lambda seed: S.RandomSampler(seed=seed),
    "tpe": lambda seed: S.TPESampler(seed=seed),
    "nsga2": lambda seed: S.NSGAIISampler(seed=seed),
    "gp": lambda seed: S.GPSampler(seed=seed),
}
SEARCHES: dict[str, Callable[..., Searched]] = {
    **{f"plain {name}, categories": plain(make, ordered=False) for name, make in PLAIN.items()},
    **{f"plain {name}, ordered": plain(make, ordered=True) for name, make in PLAIN.items() if name != "random"},
    **{
        f"ddstudy {name}": lambda seed, *rest, name=name: ours(name, seed, *rest)
        for name in ("random", "tpe", "nsga2", "gp")
    },
}


def read_table(path: Path) -> Table:
    """A finished grid, setting -> its row."""
    rows = pd.read_csv(path)
    return {Setting({axis: row[axis] for axis in THESIS}): row for row in rows.to_dict("records")}


def main(folder: Path) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--table", type=Path, default=ROOT / "results" / "reduced.csv")
    parser.add_argument("--study", type=Path, default=ROOT.parent / "studies" / "reduced.toml")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--only", nargs="+", default=[""], help="searches whose name contains one of these")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)  # GPs this small are slower on more
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    table, spec = read_table(options.table), read_spec(options.study)
    assert set(table) == set(spec.search_space), "the table is not the whole grid of the study"
    stable = {setting: row for setting, row in table.items() if row["stable"]}
    best = max(row["psnr"] for row in stable.values())
    goal = {setting for setting, row in stable.items() if row["psnr"] >= best - WITHIN_DB}
    whole = hypervolume(table, set(table))
    print(
        f"{len(table)} settings, {len(budgets_by_fit(table))} fits, {len(stable)} settings stable; "
        f"best {best:.2f} dB, {len(goal)} settings of {len(budgets_by_fit(goal))} fits within {WITHIN_DB} dB; "
        f"{options.seeds} seeds"
    )
    chosen = {name: search for name, search in SEARCHES.items() if any(part in name for part in options.only)}
    results: dict[str, Any] = {}
    print(f"\nuntil within {WITHIN_DB} dB of the best   fits: median   mean    90 %   iterations: median    mean")
    for name, search in chosen.items():
        counts = []
        for seed in range(options.seeds):
            done = search(seed, spec, table, {"psnr": "maximize"}, lambda s: s.until(goal)[0] < MOST, folder)
            counts.append(done.until(goal))
        fits, iterations = np.array(counts).T
        results[name] = {"fits": fits.tolist(), "iterations": iterations.tolist()}
        print(
            f"{name:32s}  {np.median(fits):12.1f}  {fits.mean():6.1f}  {np.quantile(fits, 0.9):6.1f}"
            f"  {np.median(iterations):17,.0f}  {iterations.mean():6,.0f}",
            flush=True,
        )
    print(
        f"\nshare of the hypervolume after fits   {'   '.join(f'{n:5d}' for n in AFTER)}   iterations after {AFTER[-1]}"
    )
    for name, search in chosen.items():
        shares, spent = [], []
        for seed in range(options.seeds):
            done = search(
                seed,
                spec,
                table,
                {"psnr": "maximize", "seconds": "minimize"},
                lambda s: len(s.fits) >= AFTER[-1],
                folder,
            )
            shares.append([done.volume(fits) / whole for fits in AFTER])
            spent.append(sum(iterations for iterations, _ in done.fits[: AFTER[-1]]))
        results[name] |= {"hypervolume": shares, "iterations_after": spent}
        print(
            f"{name:36s}  {'   '.join(f'{v:5.3f}' for v in np.mean(shares, axis=0))}   {np.mean(spent):8,.0f}",
            flush=True,
        )
    if options.out:
        facts = {"table": options.table.name, "seeds": options.seeds, "within_db": WITHIN_DB, "after": AFTER}
        options.out.write_text(json.dumps({**facts, "searches": results}) + "\n")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(Path(name))
