"""Studies as large as the thesis' grid, made in seconds: real stores, made-up results, images of the right size.

`python tests/synthetic.py FOLDER [SETTINGS]` writes one, or goes on with it.
"""

import contextlib
import math
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ddstudy.images.volumes import Target
from ddstudy.spec.axes import Setting
from ddstudy.spec.files import parse_spec
from ddstudy.spec.options import NOISES, TILINGS
from ddstudy.spec.schema import StudySpec
from ddstudy.store.database import Store
from ddstudy.store.writer import StudyWriter
from ddstudy.study.evaluate import Result

THESIS = {
    "k": [8, 16, 32, 64, 96, 128, 192],
    "s": [8, 16, 32],
    "l": [4, 5, 6],
    "iterations": [2000, 5000, 7000],
    "noise": list(NOISES),
    "tiling": list(TILINGS),
}


def brain(height: int = 256, width: int = 320, seed: int = 0) -> NDArray[np.float32]:
    """Something as bright, as smooth and as detailed as a slice of a head; (1, H, W) in [0, 1]."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    radius = (x / 0.65) ** 2 + (y / 0.9) ** 2
    coarse, fine = (cv2.GaussianBlur(random.random((height, width)), (0, 0), sigma) - 0.5 for sigma in (6, 1.2))
    image = (radius < 1) * (0.55 + 3 * coarse + 0.8 * fine) + 0.35 * (np.abs(radius - 1.1) < 0.06)
    return np.clip(image, 0, 1).astype(np.float32)[None]


def quality(setting: Setting, shift: float = 0.0) -> tuple[float, float, float]:
    """PSNR (dB), CV (%) and seconds that a setting could have: smooth in every axis, with a little of everything."""
    random = np.random.default_rng([setting.fit.digest, setting["iterations"]])
    tiles = math.prod(map(int, setting["tiling"].split("x")))
    psnr = (
        20
        + 1.6 * math.log2(setting["k"])
        - 0.9 * math.log2(setting["s"])
        + 0.5 * setting["l"]
        + setting["iterations"] / 2500
    )
    psnr += {"uniform": 0.0, "blur3": 0.8, "simplex": -0.5}[setting["noise"]] - 0.08 * tiles + random.normal(0, 0.4)
    cv = abs(random.normal(1 + 3 * (setting["k"] > 64) + 0.12 * tiles, 1.2))
    seconds = setting["iterations"] * (1 + (setting["k"] / 64) ** 1.6) * setting["l"] * (1 + 4 / setting["s"]) / 700
    return psnr - shift * setting["k"] / 50 - 6 * (cv > 6), cv, seconds * random.uniform(0.95, 1.05)


def measurement(setting: Setting, members: int, target: NDArray[np.float32], shift: float = 0.0) -> Result:
    """A result with a curve, and an output that is about as bad as its PSNR says."""
    random = np.random.default_rng([setting.fit.digest, setting["iterations"], 1])
    psnr, cv, seconds = quality(setting, shift)
    of_members = psnr - 1.5 + (psnr - 1.5) * cv / 100 * np.resize([1.4, -1.4, 0.7, -0.7, 0.0], members)
    values: dict[str, float | int | str] = {
        "psnr": psnr,
        "ssim": 1 - 10 ** (-psnr / 25),
        "ms_ssim": 1 - 10 ** (-psnr / 20),
        "vif": psnr / 70,
        "psnr_foreground": psnr - 4,
        "psnr_1dd": float(of_members.mean()),
        **{f"psnr_member_{member}": float(score) for member, score in enumerate(of_members)},
        "cv_percent": cv,
        "sd_db": cv * psnr / 100,
        "seconds": seconds,
        "seconds_per_member": seconds / members,
        "parameters": setting["l"] * (setting["k"] ** 2 + 2 * setting["k"]) + setting["k"],
        "iterations_done": setting["iterations"],
        "dead_members": 0,
        "device": "made up",
        "engine": "made up",
    }
    every = 100 if setting["iterations"] >= 2000 else 10
    checks = range(every, setting["iterations"] + 1, every)
    fits = [[round(float(score) - 9 * math.exp(-check / 900), 3) for score in of_members] for check in checks]
    times = [round(seconds * check / setting["iterations"], 3) for check in checks]
    curve: dict[str, list[object]] = {"iterations": [*checks], "seconds": [*times], "psnr_members": [*fits]}
    height, width = target.shape[1:]
    coarse = cv2.resize(random.normal(0, 1, (height // 3, width // 3)), (width, height), interpolation=cv2.INTER_CUBIC)
    noisy = target + coarse * 10 ** (-psnr / 20) / coarse.std() * (target > 0)
    return Result(setting["iterations"], values, np.clip(noisy, 0, 1).astype(np.float32), curve, stopped=False)


def spec_of(name: str, space: dict[str, object] | None = None, **tables: object) -> StudySpec:
    return parse_spec({"name": name, "space": space or THESIS, "stability": {"prune": False}} | tables, "synthetic")


@contextmanager
def driven(
    url: str, spec: StudySpec, size: tuple[int, int] = (256, 320), target: str = "MNI152 T1 axial 94"
) -> Iterator[StudyWriter]:
    """A study of the store, ready to record results."""
    with Store(url) as store:
        yield store.drive(spec, Target(brain(*size), target, None), None)


def record(study: StudyWriter, settings: list[Setting], shift: float = 0.0) -> None:
    for setting in settings:
        result = measurement(setting, study.spec.fit.members, study.target.image, shift)
        started = datetime.now() - timedelta(seconds=float(result.values["seconds"]))
        study.record(setting, result, shared=False, started=started)


def multiply(database: Path, copies: int) -> None:
    """Gives the only study of a SQLite store so many copies of each of its trials, in seconds."""
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        [(first, last)] = connection.execute("SELECT min(trial_id), max(trial_id) FROM trials")
        tables = ("trials", "trial_params", "trial_values", "trial_intermediate_values", "trial_user_attributes")
        for table in (*tables, "trial_system_attributes"):
            names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")][
                0 if table == "trials" else 1 :
            ]
            for copy in range(1, copies):
                shift = copy * (last - first + 1)
                values = [f"{name} + {shift}" if name in ("trial_id", "number") else name for name in names]
                kept = "AND (key LIKE 'artifacts:%' OR key LIKE 'constraints:%')" * ("system" in table)
                rows = f"SELECT {', '.join(values)} FROM {table} WHERE trial_id <= {last} {kept}"
                connection.execute(f"INSERT INTO {table} ({', '.join(names)}) {rows}")


def main(folder: Path, settings: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    spec = spec_of("thesis")
    with driven(f"sqlite:///{folder / 'thesis.db'}", spec) as study:
        record(study, [s for s in spec.search_space if s not in study.measured()][:settings])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2268)
