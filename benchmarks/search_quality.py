"""How many fits a search needs, replayed on whole grids that were really measured.

    python benchmarks/search_quality.py [--only gp] [--seeds 1000 1100] [--volume]

The tables are exports of finished grids (`ddstudy run studies/reduced.toml`, then `ddstudy export reduced`). A fit is
looked up instead of run, and everything else is real: ours is the runner with its store, leases and samplers; plain
Optuna is `study.optimize` over the same six lists, as its documentation has it, every trial a fit of its own.

Two questions: how many fits, and how many iterations, until a stable setting within 0.1, 1 and 2 dB of the best stable
one is measured, and (`--volume`) which share of the table's hypervolume (PSNR against seconds, stable settings) is
reached after some fits. Iterations are given beside fits, since fits of ours go to the largest budget.

Seeds below 1000 served to choose what our samplers do, so that ours are not reported for them; how Optuna's are set was
never chosen. Results are kept search by search, seed by seed; the same command goes on where it was stopped, and ends
with medians over the seeds that are there, with 95 % intervals (bootstrap over seeds).
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import itertools
import tempfile
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import torch
from numpy.typing import NDArray

from ddstudy.execution.executors import Event, Finished
from ddstudy.images.volumes import Target
from ddstudy.spec.axes import Setting, budgets_by_fit
from ddstudy.spec.files import parse_spec, read_spec
from ddstudy.spec.options import THESIS
from ddstudy.spec.schema import StudySpec
from ddstudy.store.database import Store
from ddstudy.study import forecasting, runner
from ddstudy.study.evaluate import Job, Result
from ddstudy.study.samplers import sampler

ROOT = Path(__file__).parent
TABLES = ("reduced", "reduced_upper")  # studies, and their exports
WITHIN_DB = (0.1, 1.0, 2.0)
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
                yield ticket, Result(setting["iterations"], values, nothing, curve, False)
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
    tree |= {"images": False, "objectives": objectives, "name": f"{spec.name}-{name}-{seed}-{len(objectives)}"}
    tree |= {"search": {"sampler": name, "seed": seed, "trials": len(table)}}
    spec, searched = parse_spec(tree, "benchmark"), Searched(table)
    target = Target(np.zeros((1, 64, 80), dtype=np.float32), "replayed", None)
    known = forecasting.Forecast()
    known.learn("deep_decoder auto", 1.0, 1.0)
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


def goals(table: Table) -> dict[float, set[Setting]]:
    """The stable settings that are no further from the best stable one, by distance in dB."""
    stable = {setting: row["psnr"] for setting, row in table.items() if row["stable"]}
    best = max(stable.values())
    return {within: {setting for setting, psnr in stable.items() if psnr >= best - within} for within in WITHIN_DB}


def floor(table: Table) -> int:
    """At which rank a model that knows all other fits puts the fit of the best stable setting.

    The model is least squares with an effect of each value and of each pair of values, without one fit after another;
    the rank is that of the fit's best prediction of PSNR. A search that learns such effects from nothing can hardly
    need fewer fits.
    """
    settings = list(table)
    codes = np.stack([pd.factorize(pd.Series([setting[axis] for setting in settings]))[0] for axis in THESIS])
    main = [np.eye(values.max() + 1)[values] for values in codes]
    pairs = [np.einsum("ni,nj->nij", a, b).reshape(len(settings), -1) for a, b in itertools.combinations(main, 2)]
    X, psnr = np.hstack([*main, *pairs]), np.array([row["psnr"] for row in table.values()])
    fits = pd.factorize(pd.Series([setting.fit.id for setting in settings]))[0]
    predicted = np.empty(fits.max() + 1)
    for fit in range(len(predicted)):
        own = fits == fit
        predicted[fit] = (X[own] @ np.linalg.lstsq(X[~own], psnr[~own])[0]).max()
    best = goals(table)[min(WITHIN_DB)]
    return int((predicted > max(predicted[fits[settings.index(setting)]] for setting in best)).sum()) + 1


def until_found(search: Callable[..., Searched], seed: int, spec: StudySpec, table: Table, folder: Path) -> list[Row]:
    """Fits and iterations until each goal, of one search for PSNR."""
    of_table = goals(table)
    hardest = of_table[min(WITHIN_DB)]
    done = search(seed, spec, table, {"psnr": "maximize"}, lambda s: s.until(hardest)[0] < MOST, folder)
    found = ((within, *done.until(goal)) for within, goal in of_table.items())
    return [{"within_db": within, "fits": fits, "iterations": iterations} for within, fits, iterations in found]


def volumes(search: Callable[..., Searched], seed: int, spec: StudySpec, table: Table, folder: Path) -> list[Row]:
    """Shares of the table's hypervolume after some fits, of one search for PSNR and seconds."""
    both, whole = {"psnr": "maximize", "seconds": "minimize"}, hypervolume(table, set(table))
    done = search(seed, spec, table, both, lambda s: len(s.fits) >= AFTER[-1], folder)
    spent = np.cumsum([iterations for iterations, _ in done.fits])
    return [
        {"after": fits, "share": round(done.volume(fits) / whole, 4), "iterations": int(spent[fits - 1])}
        for fits in AFTER
    ]


def medians(values: pd.Series[float], seed: int = 0) -> NDArray[np.float64]:
    """Of 2,000 draws of as many seeds as there are (bootstrap)."""
    return np.median(np.random.default_rng(seed).choice(values.to_numpy(), (2000, len(values))), axis=1)


def interval(values: pd.Series[float]) -> str:
    """The median with its 95 % interval."""
    low, high = np.percentile(medians(values), [2.5, 97.5])
    digits = ".2f" if values.max() <= 1 else ",.4g" if values.max() < 1000 else ",.0f"
    return f"{values.median():{digits}} ({low:{digits}} to {high:{digits}})"


def summary(results: pd.DataFrame, columns: list[str]) -> str:
    """Medians by table, search, and goal or number of fits."""
    level = "within_db" if "within_db" in results else "after"
    groups = results.groupby(["table", "search", level], sort=False)
    return groups[columns].agg(interval).assign(seeds=groups["seed"].nunique()).to_string()


def of_the_best_plain(results: pd.DataFrame, column: str) -> str:
    """Medians of `gp` by those of the best plain sampler, for each table and goal, with 95 % intervals."""
    lines = []
    for (table, within), rows in results.groupby(["table", "within_db"]):
        of = {str(search): values[column] for search, values in rows.groupby("search")}
        plain = [search for search in of if search.startswith("plain")]
        if "ddstudy gp" in of and plain:
            ours, best = of["ddstudy gp"], of[min(plain, key=lambda search: of[search].median())]
            low, high = np.percentile(medians(ours) / medians(best, seed=1), [2.5, 97.5])
            ratio = ours.median() / best.median()
            lines.append(f"{table}, within {within:g} dB: {ratio:.2f} ({low:.2f} to {high:.2f}) of the {column}")
    return "\n".join(lines)


def main(folder: Path) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--seeds", type=int, nargs=2, default=(1000, 1100), help="the first, and the one after the last"
    )
    parser.add_argument("--only", nargs="+", default=[""], help="searches whose name contains one of these")
    parser.add_argument("--volume", action="store_true", help="the second question")
    parser.add_argument("--out", type=Path, help="[results/searches.csv or results/search_volumes.csv]")
    options = parser.parse_args()
    torch.set_num_threads(1)  # GPs this small are slower on more
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    question: Callable[..., list[Row]] = volumes if options.volume else until_found
    columns = ["share", "iterations"] if options.volume else ["fits", "iterations"]
    out = options.out or ROOT / "results" / ("search_volumes.csv" if options.volume else "searches.csv")
    chosen = [name for name in SEARCHES if any(part in name for part in options.only)]
    known = pd.read_csv(out) if out.exists() else pd.DataFrame(columns=["table", "search", "seed"])
    done = set(known[["table", "search", "seed"]].itertuples(index=False, name=None))
    tables = {name: read_table(ROOT / "results" / f"{name}.csv") for name in TABLES}
    specs = {name: read_spec(ROOT.parent / "studies" / f"{name}.toml") for name in TABLES}
    for name, table in tables.items():
        assert set(table) == set(specs[name].search_space), "the table is not the whole grid of the study"
        sizes = ", ".join(f"{len(budgets_by_fit(goal))} within {db:g} dB" for db, goal in goals(table).items())
        print(f"{name}: {len(table)} settings, {len(budgets_by_fit(table))} fits; of these have {sizes} of the best")
        print(f"  a model of effects and pairs that knows all other fits puts the best one at rank {floor(table)}")
    for seed in range(*options.seeds):
        for name, search in itertools.product(tables, chosen):
            if (name, search, seed) not in done:
                rows = question(SEARCHES[search], seed, specs[name], tables[name], folder)
                keep(out, ({"table": name, "search": search, "seed": seed, **row} for row in rows))
    results = pd.read_csv(out)
    asked = results["search"].isin(chosen) & results["seed"].isin(range(*options.seeds))
    print(summary(results[asked], columns))
    if not options.volume:
        for column in columns:
            print(of_the_best_plain(results[asked], column))


def keep(out: Path, rows: Iterable[Row]) -> None:
    """Adds rows to a CSV file."""
    rows = list(rows)
    fresh = not out.exists()
    with out.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if fresh:
            writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(Path(name))
