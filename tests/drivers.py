"""Real drivers for tests that kill them: `ddstudy run` in processes of their own, soon started and short of breath.

A driver needs ten seconds to import its libraries, which would be the wrong thing to kill it in. Drivers are therefore
forked from a server process that has imported them: each is a process, runs the command line with arguments, has its
own connections, and dies by SIGKILL like any other. Their leases are short, so that nobody waits for the dead.
"""

import contextlib
import io
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddstudy.store.database import Store
from ddstudy.store.leases import Leases
from ddstudy.store.writer import StudyWriter
from ddstudy.study.evaluate import Check, Job, Result

LEASE_SECONDS = 2.0
SERVER_AWAY = ("connection failed", "closed the connection", "terminating connection")
GIVEN_UP = "settings failed (`ddstudy status` says why)"
STUDY = """
[target]
file = "picture.npy"

[space]
k = [4, 8]
s = [4]
l = [1, 2]
iterations = [{budgets}]

[fit]
engine = "reference"
members = 2
check_every = 20

[stability]
min_psnr = 0
cv_percent = 50
"""
PRELOADED = [
    *("torch", "torch._dynamo", "cv2", "nibabel", "numba", "opensimplex", "plotly.graph_objects", "narwhals"),
    *("optuna", "alembic.command", "sqlalchemy.orm", "sqlalchemy.dialects.sqlite", "psycopg", "scipy.stats"),
    *("rich.live", "drivers", "quick_stores", "ddstudy.cli", "ddstudy.api", "ddstudy.terminal", "ddstudy.study.runner"),
    *("ddstudy.solvers.torch_loop", "ddstudy.solvers.fused.kernels_cpu", "ddstudy.execution.ray_pool"),
    *("ddstudy.report.page", "ddstudy.report.tables", "ddstudy.thesis.panels"),
]
Key = tuple[object, ...]


def beside(store: Store, one: StudyWriter) -> StudyWriter:
    """Another driver of a study in this process, past the lock of a SQLite file."""
    study = one.study
    leases = Leases(store.storage.engine, study._study_id, store.driver, store.lease_seconds)
    made_by = {"version": "of the tests"}
    return StudyWriter(
        study, store.storage, one.spec, one.target, store.artifacts, leases, made_by, alone=store.is_sqlite
    )


def write_study(folder: Path, *budgets: int) -> None:
    """`study.toml`: four fits of a 16x16 picture, by the slow engine, so that there are moments to be killed at."""
    y, x = np.mgrid[0:16, 0:16]
    np.save(folder / "picture.npy", np.sin(x / 3) * np.cos(y / 4))
    (folder / "study.toml").write_text(STUDY.format(budgets=", ".join(map(str, budgets))))


def _context() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _main(arguments: list[str], folder: Path, log: Path, deadly: str) -> None:
    os.chdir(folder)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115 (the process' own)
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    defaults = Store.__init__.__kwdefaults__
    assert defaults is not None
    defaults["lease_seconds"] = LEASE_SECONDS
    from ddstudy import cli
    from ddstudy.execution import executors
    from ddstudy.study import forecasting, runner

    forecasting.CALIBRATION_SECONDS = 0.1
    runner.POLL_SECONDS = 0.2
    fit = executors.careful_together

    def killed_for_memory(jobs: Sequence[Job], **how: Any) -> Iterator[tuple[int, Check | Result | None]]:
        if any(job.fit.id == deadly for job in jobs):
            os.kill(os.getpid(), signal.SIGKILL)
        return fit(jobs, **how)

    executors.careful_together = killed_for_memory
    sys.argv = ["ddstudy", *arguments]
    cli.main()


def here(*arguments: str) -> tuple[int, str]:
    """A `ddstudy` command in this process, where nothing happens to it: exit code, and what it printed."""
    from ddstudy import cli

    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as redirected:
        patch.setattr(sys, "argv", ["ddstudy", *arguments])
        redirected.enter_context(contextlib.redirect_stdout(printed))
        redirected.enter_context(contextlib.redirect_stderr(printed))
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code, printed.getvalue()


class Driver:
    """A running `ddstudy` command.

    Args:
        folder: its working folder.
        arguments: of the command line.
        deadly: a fit that the system ends it for, as for one that takes too much memory.
    """

    def __init__(self, folder: Path, *arguments: str, deadly: str = "") -> None:
        self._log = folder / f"driver-{time.monotonic_ns()}.log"
        self._log.touch()
        self._process = _context().Process(target=_main, args=(list(arguments), folder, self._log, deadly))
        self._process.start()

    @property
    def output(self) -> str:
        """What it printed so far."""
        return self._log.read_text()

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process.pid is not None
        return self._process.pid

    def wait(self, seconds: float | None = 120) -> int | None:
        """Its exit code, or None if it still runs after so long."""
        self._process.join(seconds)
        return self._process.exitcode

    def kill(self) -> bool:
        """SIGKILL; False if it had ended before."""
        self._process.kill()
        self._process.join()
        return self._process.exitcode == -9

    def wait_for_results(self, count: int = 1) -> None:
        """Until it has printed so many results more, or has ended."""
        before = self._results
        while self._results < before + count and self.wait(0.02) is None:
            pass

    @property
    def _results(self) -> int:
        return self.output.count(" dB, CV")


@dataclass
class Findings:
    """What a store holds after the faults.

    Attributes:
        results: setting -> PSNR, of COMPLETE and PRUNED trials.
        duplicates: results beyond one per setting.
        running: trials that are still RUNNING.
        failed: FAIL trials.
    """

    results: dict[Key, float]
    duplicates: int
    running: int
    failed: int


def findings(url: str, name: str) -> Findings:
    """Looks at a study as anyone may."""
    with Store(url, read_only=True) as store:
        view = store.view(name)
        study = next(s for s in store.storage.get_all_studies() if s.study_name == name)
        states = Counter(trial.state.name for trial in store.storage.get_all_trials(study._study_id))
    measured = view.trials[view.trials["state"] != "FAIL"]
    values = measured[list(view.axes)].astype(object)
    keys = list(values.where(values.notna(), None).itertuples(index=False, name=None))
    results = dict(zip(keys, measured["psnr"], strict=True))
    return Findings(results, len(keys) - len(results), states["RUNNING"], states["FAIL"])


def undisturbed(folder: Path) -> dict[Key, float]:
    """Results of the study in a run that nothing happens to."""
    url = f"sqlite:///{folder}/undisturbed.db"
    driver = Driver(folder, "run", "study.toml", "--store", url)
    assert driver.wait() == 0, driver.output
    return findings(url, "study").results


def kill_and_restart(
    folder: Path, arguments: list[str], kills: int, moments: random.Random, drivers: int = 1
) -> Iterator[Driver]:
    """Runs the same command in several drivers; kills one at a random moment and starts another, until all end.

    A moment is some results and a part of a second later, so that slow machines and fast ones kill in the same places.

    Args:
        folder: to work in.
        arguments: of the command.
        kills: how often at most; drivers may be done before.
        moments: seeded.
        drivers: at the same time.

    Yields:
        Every driver that was killed. Drivers that are not must end with exit code 0.
    """
    running = [Driver(folder, *arguments) for _ in range(drivers)]
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: [driver.kill() for driver in running])
        while kills:
            victim = moments.choice(running)
            victim.wait_for_results(moments.choice((0, 0, 1, 2)))
            if victim.wait(moments.uniform(0, 0.3)) is None and victim.kill():
                kills -= 1
                yield victim
            elif victim.wait() is not None and all(driver.wait(0) == 0 for driver in running):
                break
            running.remove(victim)
            running.append(Driver(folder, *arguments))
        while running:
            driver = running.pop()
            # whoever begins or ends while the server is away says so; what runs between waits for it. And three deaths
            # with one fit may look like its fault
            if driver.wait() in (1, 2) and any(words in driver.output for words in (*SERVER_AWAY, GIVEN_UP)):
                running.append(Driver(folder, *arguments))
            else:
                assert driver.wait() == 0, driver.output


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Keeps everyone from writing to a folder; root, whom permissions do not stop, by a mount.

    Raises:
        PermissionError: root may not mount here.
    """
    if os.geteuid():
        files = list(folder.rglob("*"))
        modes = {path: path.stat().st_mode for path in [folder, *files]}
        for path, mode in modes.items():
            path.chmod(mode & ~0o222)
        yield
        for path, mode in modes.items():
            path.chmod(mode)
        return
    _mount("--bind", folder, folder)
    try:
        _mount("-o", "remount,bind,ro", folder)
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    """A folder on a disk of its own.

    Raises:
        PermissionError: this user may not mount.
    """
    _mount("-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def fill(disk: Path) -> Path:
    """A file that takes all the space that is left."""
    ballast = disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return ballast


def _mount(*arguments: object) -> None:
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise PermissionError(f"cannot mount: {done.stderr.strip()}")
