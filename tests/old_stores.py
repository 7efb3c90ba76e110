"""Stores that earlier versions made, for the tests: three studies, a grid, a TPE search and a Pareto search, half done.

This file run by the version itself makes one:

    git worktree add /tmp/old 87a1aef
    TZ=CET-1 PYTHONPATH=/tmp/old python tests/old_stores.py tests/data/store-87a1aef.sql.gz

A zone beside UTC, since that version stored some times as local ones.
"""

import contextlib
import gzip
import json
import os
import sqlite3
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

SPACE = {"k": [8], "s": [4, 8], "l": [2], "iterations": [10, 20], "noise": ["uniform"], "tiling": ["1x1", "2x2"]}
COMMON: dict[str, Any] = {"images": False, "fit": {"members": 2, "check_every": 5}, "space": SPACE}
COMMON |= {"stability": {"min_psnr": 0.0, "cv_percent": 50.0, "max_vif": 10.0}, "target": {"file": "picture.npy"}}
STUDIES: dict[str, dict[str, Any]] = {
    "grid": COMMON,
    "tpe": {**COMMON, "search": {"sampler": "tpe", "trials": 6}},
    "pareto": {
        **COMMON,
        "search": {"sampler": "tpe", "trials": 6},
        "objectives": {"psnr": "maximize", "seconds": "minimize"},
    },
}


def write_picture(folder: Path) -> None:
    """`picture.npy`, 32x32, of whole numbers: the same pixels everywhere."""
    y, x = np.mgrid[0:32, 0:32]
    np.save(folder / "picture.npy", ((x * x + 3 * y * y) // 16 % 256).astype(np.uint8))


def restore(dump: Path, folder: Path) -> str:
    """Puts a store, its picture and the files of its studies into a folder; the store's URL."""
    write_picture(folder)
    with contextlib.closing(sqlite3.connect(folder / "old.db")) as database:
        database.executescript(gzip.decompress(dump.read_bytes()).decode())
    for study, tables in STUDIES.items():
        lines = [f"{key} = {json.dumps(value)}" for key, value in tables.items() if not isinstance(value, dict)]
        for table, options in tables.items():
            if isinstance(options, dict):
                lines += [f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in options.items())]
        (folder / f"{study}.toml").write_text("\n".join(lines))
    return f"sqlite:///{folder / 'old.db'}"


def main(out: Path) -> None:
    # where that version has them
    from ddstudy.executors import InProcess
    from ddstudy.samplers import sampler
    from ddstudy.target import load_target

    from ddstudy import runner
    from ddstudy.spec import parse_spec
    from ddstudy.store import Store

    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        write_picture(Path(name))
        for study, tables in STUDIES.items():
            spec = parse_spec({"name": study, **tables}, study)
            target = load_target(spec.target)
            with Store("sqlite:///old.db") as store, contextlib.closing(InProcess(1)) as executor:
                driven = store.drive(spec, target, sampler(spec))
                the_plan = runner.plan(spec, target, set())
                fits = list(the_plan.todo or {setting.fit: 0 for setting in spec.search_space})
                forecast = runner.calibrate(spec, target, fits, executor)
                for progress in runner.run(driven, executor, forecast):
                    if progress.done >= the_plan.settings // 2:
                        break
        with contextlib.closing(sqlite3.connect("old.db")) as database:
            dump = "\n".join(database.iterdump())
    out.write_bytes(gzip.compress(dump.encode(), 9, mtime=0))


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
