"""What it costs to record the N-th trial, and to resume and to plan a study of N trials, on SQLite and PostgreSQL.

    python benchmarks/store_scale.py [--trials 100 2268 10000 50000] [--json FILE]

Runner, store and samplers are the real ones; fits are stubs that answer at once with all that a fit of 5 members, 3
budgets and 70 checks has to say, and a small image. A grid of N settings is run in three parts: its first trials, while
all N are still to do; the middle, filled by SQL with copies of a recorded trial, which leaves the tables as N recorded
trials would; and its last trials, by a new process, which must first resume. Milliseconds are the median over fits of
the time per trial, images included. Memory is what the study takes at the peak of that process.

"Of CPU" is the process' own part, which other work on the machine disturbs less than the wall clock.

Beside it stand Optuna's own ways through a grid, GridSampler with N trials told and a queue of N enqueued trials, bare:
ask and tell of trials without measurements and images; and a TPE search with N trials recorded, with the part that is
Optuna's sampler (a mean, its first reading of all trials included); all three up to the thesis' 2,268 settings. The
PostgreSQL server is the tests' own (extra `test`).
"""

import argparse
import contextlib
import json
import math
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import sqlalchemy as sa

from ddstudy.execution.executors import Event, Finished
from ddstudy.images.volumes import Target
from ddstudy.spec.axes import Fit, budgets_by_fit
from ddstudy.spec.files import parse_spec
from ddstudy.spec.options import FitSpec, NoiseSpec
from ddstudy.spec.schema import StudySpec
from ddstudy.store.database import Store
from ddstudy.store.optuna_rows import distributions
from ddstudy.store.urls import parse_url
from ddstudy.study import forecasting, planner, runner
from ddstudy.study.evaluate import Job, Result, evaluate
from ddstudy.study.samplers import sampler
from ddstudy.tasks.cases import Case

BUDGETS = [2000, 5000, 7000]
MARGIN = 99  # trials that are really run at either end
ASKED = 6  # of GridSampler and of a queue
COMPARED = 2268  # trials of the largest study that Optuna's ways and samplers are tried on
TARGET = Target(np.random.default_rng(0).random((1, 48, 48), dtype=np.float32), "noise", None)
COLUMNS = {
    "first_ms": "first, ms", "last_ms": "last, ms", "cpu_ms": "of CPU, ms", "resume_s": "resume, s",
    "plan_s": "plan, s", "memory_mb": "memory, MB", "grid_sampler_ms": "GridSampler, ms", "enqueued_ms": "enqueued, ms",
    "tpe_ms": "TPE, ms", "tpe_optuna_ms": "Optuna's part, ms",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 2268, 10_000, 50_000])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sys.path.append(str(Path(__file__).parent.parent / "tests"))
    import postgres

    rows = []
    print("  ".join(["database  ", " trials", *COLUMNS.values()]))
    with tempfile.TemporaryDirectory() as folder, postgres.server() as server:
        for trials in options.trials:
            for kind in ("sqlite", "postgresql"):
                with contextlib.ExitStack() as databases:

                    def fresh(kind: str = kind, databases: contextlib.ExitStack = databases) -> str:
                        name = f"b{time.monotonic_ns()}"
                        if kind == "sqlite":
                            return f"sqlite:///{folder}/{name}.db"
                        return databases.enter_context(postgres.database(server.url, name))

                    row = {"database": kind, "trials": trials, **costs(trials, fresh, folder)}
                    rows.append(row)
                shown = [
                    f"{row[name]:{len(title)}.2f}" if name in row else " " * len(title)
                    for name, title in COLUMNS.items()
                ]
                print("  ".join([f"{kind:10s}", f"{trials:7,d}", *shown]), flush=True)
                if options.json:
                    shorter = [{k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()} for row in rows]
                    options.json.write_text("[\n" + ",\n".join(f" {json.dumps(row)}" for row in shorter) + "\n]\n")


def costs(trials: int, fresh: Any, folder: str) -> dict[str, float]:
    """One row of the table."""
    images = f"{folder}/images"
    margin = min(MARGIN, trials // 3)
    spec = spec_of(trials, {"trials": trials})
    url = fresh()
    first = alone(drive, url, images, spec, margin)
    fill_study(url, images, spec, trials - margin)
    last = alone(drive, url, images, spec, margin)
    row = {"first_ms": first["ms"], "last_ms": last["ms"], "cpu_ms": last["cpu_ms"]}
    row |= {name: last[name] for name in ("resume_s", "plan_s", "memory_mb")}
    if trials <= COMPARED:
        row |= {f"{way}_ms": alone(bare, fresh(), spec, trials, way) for way in ("grid_sampler", "enqueued")}
        search = spec_of(trials + MARGIN, {"sampler": "tpe", "trials": trials + MARGIN})
        url = fresh()
        alone(drive, url, images, search, 12)
        fill_study(url, images, search, trials)
        found = alone(drive, url, images, search, margin // 3)
        row |= {"tpe_ms": found["ms"], "tpe_optuna_ms": found["sampler_ms"]}
    return row


def alone(work: Any, *arguments: Any) -> Any:
    """A call in a process of its own: its memory is its own, and nothing is remembered."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def spec_of(trials: int, search: dict[str, Any]) -> StudySpec:
    """The thesis' axes, with as many numbers of channels as it takes."""
    channels = math.ceil(trials / (3 * 3 * 3 * 3 * 4))
    space = {"k": list(range(8, 8 + channels)), "s": [8, 16, 32], "l": [4, 5, 6], "iterations": BUDGETS,
             "noise": ["uniform", "blur3", "simplex"], "tiling": ["1x1", "2x2", "3x3", "4x5"]}  # fmt: skip
    return parse_spec({"name": "scale", "space": space, "search": search}, "benchmark")


class Stub:
    """An executor whose fits cost nothing."""

    slots = 1

    def __init__(self) -> None:
        options = FitSpec(device="cpu", engine="reference", check_every=1)
        work = Job(
            Fit({"k": 2, "s": 8, "l": 2, "noise": "uniform", "tiling": "1x1"}),
            (70,),
            Case.of(TARGET),
            options,
            NoiseSpec(),
        )
        (self._measurement,) = (e for e in evaluate(work, device="cpu", threads=1) if isinstance(e, Result))
        self._waiting: deque[tuple[str, Job]] = deque()

    def room(self, job: Job) -> int:
        """See `Executor`."""
        return 1

    def submit(self, ticket: str, job: Job) -> None:
        """See `Executor`."""
        self._waiting.append((ticket, job))

    def expect(self, jobs: int) -> None:
        """See `Executor`."""

    def events(self) -> Iterator[tuple[str, Event]]:
        """See `Executor`."""
        while self._waiting:
            ticket, job = self._waiting.popleft()
            for budget in job.budgets:
                scores = {"psnr": 20 + math.log2(job.fit["k"] * budget) / 2, "vif": 0.5, "cv_percent": 2.0}
                values = {**self._measurement.values, **scores, "seconds": budget * job.fit["k"] * 1e-5}
                yield ticket, replace(self._measurement, budget=budget, values=values)
            yield ticket, Finished()

    def close(self) -> None:
        """See `Executor`."""
        self._waiting.clear()


def drive(url: str, images: str, spec: StudySpec, trials: int) -> dict[str, float]:
    """Starts or resumes a study and records so many trials."""
    executor, forecast = Stub(), forecasting.Forecast()
    forecast.learn("deep_decoder auto", 1e6, 0.001)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    with Store(url, Path(images)) as store:
        driven = store.drive(spec, TARGET, sampler(spec))
        done = set(driven.measured())
        driven.study.sampler = sampler(spec, len(done))
        resumed = time.perf_counter()
        planner.plan(spec, TARGET, done)
        planned = time.perf_counter()
        asked = timed(driven.study.sampler._inner, "sample_relative")  # type: ignore[attr-defined]
        times, cpu = [], time.process_time()
        with contextlib.closing(runner.run(driven, executor, forecast)) as steps:
            for step in steps:
                if step.message:
                    times.append(time.perf_counter())
                    if len(times) == trials:
                        break
        cpu = time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    fits = times[2::3]  # from one fit's last budget to the next one's
    return {
        "ms": 1e3 * statistics.median((b - a) / 3 for a, b in pairwise(fits)),
        "cpu_ms": 1e3 * cpu / len(times),
        "sampler_ms": 1e3 * sum(asked) / len(times),
        "resume_s": resumed - start,
        "plan_s": planned - resumed,
        "memory_mb": memory / 1024,
    }


def timed(it: Any, method: str) -> list[float]:
    """Measures the calls of a method from now on."""
    seconds: list[float] = []
    call = getattr(it, method)

    def measured(*arguments: Any) -> Any:
        start = time.perf_counter()
        answer = call(*arguments)
        seconds.append(time.perf_counter() - start)
        return answer

    setattr(it, method, measured)
    return seconds


def bare(url: str, spec: StudySpec, trials: int, way: str) -> float:
    """Milliseconds of ask and tell the way of GridSampler, or of a queue, with so many trials told or waiting."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = {
        **{axis: spec.search_space[axis] for axis in spec.search_space.names},
        "k": range(8, 16 + len(spec.search_space["k"])),
    }  # more than are there
    sampling = optuna.samplers.GridSampler(space) if way == "grid_sampler" else optuna.samplers.RandomSampler()
    shown = parse_url(url).render_as_string(hide_password=False)
    study = optuna.create_study(storage=shown, sampler=sampling, direction="maximize")
    axes = {name: optuna.distributions.CategoricalDistribution(list(values)) for name, values in space.items()}
    if way == "grid_sampler":
        study.tell(study.ask(axes), 1.0)
    else:
        study.enqueue_trial({name: values[0] for name, values in space.items()})
    engine = sa.create_engine(shown)
    copies(engine, study._study_id, trials - 1)
    with engine.begin() as connection:
        connection.execute(sa.text(
            "UPDATE trial_system_attributes SET value_json = (SELECT CAST(number AS TEXT) FROM trials "
            "WHERE trials.trial_id = trial_system_attributes.trial_id) WHERE key = 'grid_id'"
        ))  # fmt: skip
    engine.dispose()
    seconds = []
    for _ in range(ASKED):
        start = time.perf_counter()
        study.tell(study.ask(axes), 1.0)
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds[1:])  # the first one reads all trials


def fill_study(url: str, images: str, spec: StudySpec, trials: int) -> None:
    """Copies the latest trial to settings without a result until there are so many results."""
    with Store(url, Path(images)) as store:
        driven = store.drive(spec, TARGET, sampler(spec))
        done = set(driven.measured())
        order = [
            f.at(b)
            for f, budgets in reversed(budgets_by_fit(s for s in spec.search_space if s not in done).items())
            for b in budgets
        ]
        engine = store.storage.engine
        new = copies(engine, driven.study._study_id, trials - len(done))
        filled = list(zip(new, order, strict=False))
        with engine.begin() as connection:
            connection.execute(
                sa.text("UPDATE trial_user_attributes SET value_json = :fit WHERE trial_id = :id AND key = 'fit_id'"),
                [{"id": trial, "fit": json.dumps(setting.fit.id)} for trial, setting in filled],
            )
            for name, axis in distributions(spec.search_space).items():
                connection.execute(
                    sa.text("UPDATE trial_params SET param_value = :value WHERE trial_id = :id AND param_name = :name"),
                    [
                        {"id": trial, "name": name, "value": axis.to_internal_repr(setting[name])}
                        for trial, setting in filled
                    ],
                )
        driven.settle()


def copies(engine: sa.Engine, study: int, count: int) -> list[int]:
    """Copies a study's latest trial; the new trials' ids."""
    tables = {
        "trial_params": "param_name, param_value, distribution_json",
        "trial_values": "objective, value, value_type",
        "trial_user_attributes": "key, value_json",
        "trial_system_attributes": "key, value_json",
        "trial_intermediate_values": "step, intermediate_value, intermediate_value_type",
    }
    with engine.begin() as connection:
        pick = "SELECT max(trial_id), max(number) FROM trials WHERE study_id = :study"
        template, number = connection.execute(sa.text(pick), {"study": study}).one()
        connection.execute(
            sa.text(
                "INSERT INTO trials (number, study_id, state, datetime_start, datetime_complete) "
                "SELECT :number, study_id, state, datetime_start, datetime_complete FROM trials WHERE trial_id = :id"
            ),
            [{"number": number + 1 + index, "id": template} for index in range(count)],
        )
        for table, columns in tables.items():
            copy = (
                f"INSERT INTO {table} (trial_id, {columns}) SELECT new.trial_id, {columns} FROM trials AS new, "
                f"{table} AS old WHERE new.study_id = :study AND new.trial_id > :id AND old.trial_id = :id"
            )
            connection.execute(sa.text(copy), {"study": study, "id": template})
        ids = "SELECT trial_id FROM trials WHERE study_id = :study AND trial_id > :id ORDER BY trial_id"
        return list(connection.execute(sa.text(ids), {"study": study, "id": template}).scalars())


if __name__ == "__main__":
    main()
