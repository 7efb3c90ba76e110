"""Drivers that die, servers that restart, disks that are full or read-only: no result is lost, none is there twice.

`benchmarks/faults.py` does the same for longer.
"""

import random
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import drivers
import postgres
import psycopg
import pytest
from drivers import Driver, Key, findings, here
from optuna.exceptions import StorageInternalError
from pgbouncer import bouncer

from ddstudy.store.database import Store
from ddstudy.study import runner

FULL = ("full", "File too large", "No space left", "disk I/O error")
READ_ONLY = ("read-only", "readonly", "Read-only", "Permission denied", "unable to open")


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> dict[Key, float]:
    """What an undisturbed run of the study measures."""
    folder = tmp_path_factory.mktemp("undisturbed")
    drivers.write_study(folder, 40, 80)
    return drivers.undisturbed(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    drivers.write_study(tmp_path, 40, 80)
    return tmp_path


@pytest.fixture
def restartable() -> Iterator[postgres.Server]:
    with postgres.server() as server:
        yield server


def assert_sound(url: str, truth: dict[Key, float], name: str = "study", *, whole: bool = True) -> None:
    """Every setting once, with the value of the undisturbed run, and nothing RUNNING."""
    found = findings(url, name)
    assert (found.duplicates, found.running) == (0, 0)
    assert found.results.items() <= truth.items()
    assert len(found.results) == len(truth) or not whole


def assert_says(driver: Driver, words: tuple[str, ...], code: int | None = None) -> None:
    """It ended with an error of one or two lines that hold one of some words, without a traceback."""
    assert driver.wait() in ((1, 2) if code is None else (code,)), driver.output
    assert "Traceback" not in driver.output
    *_, error = driver.output.partition("ddstudy: ")
    assert len(error.strip().splitlines()) in (1, 2), driver.output
    assert any(word in error for word in words), driver.output


@pytest.mark.parametrize("search", [(), ("--tpe", "--trials", "6")], ids=["grid", "tpe"])
def test_a_killed_driver_loses_nothing(folder: Path, truth: dict[Key, float], search: tuple[str, ...]) -> None:
    url = f"sqlite:///{folder}/killed.db"
    command = ("run", "study.toml", *search, "--name", "study", "--store", url)
    assert list(drivers.kill_and_restart(folder, command, 3, random.Random(3)))
    assert_sound(url, truth, whole=not search)
    assert len(findings(url, "study").results) >= 6


def test_a_killed_driver_loses_nothing_of_other_optimisers_and_losses(tmp_path: Path) -> None:
    """Their state and their streams of noise are a fit's own, which begins anew."""
    drivers.write_study(tmp_path, 300, 600)
    file = tmp_path / "study.toml"
    axes = 'l = [2]\nfit.optimiser = ["sgd", "radam", "sgld"]\nfit.loss = ["mse", "huber"]'
    text = file.read_text().replace("k = [4, 8]", "k = [4]").replace("l = [1, 2]", axes)
    file.write_text(text.replace('engine = "reference"', 'engine = "fused"\nschedule = "step"\ndecay_every = 100'))
    truth = drivers.undisturbed(tmp_path)
    url = f"sqlite:///{tmp_path}/killed.db"
    command = ("run", "study.toml", "--name", "study", "--store", url)
    assert list(drivers.kill_and_restart(tmp_path, command, 2, random.Random(5)))
    assert_sound(url, truth)
    assert len(truth) == 12


def test_a_fit_that_runs_die_of_is_given_up_and_the_rest_is_measured(
    folder: Path, truth: dict[Key, float], store_url: str
) -> None:
    """Of memory, for example: every run began it again, before all others, and nothing was ever measured."""
    command, deadly = ("run", "study.toml", "--store", store_url), "k8-s4-l2-uniform-1x1"  # the longest
    for _ in range(runner.RETRIES + 1):
        assert Driver(folder, *command, deadly=deadly).wait() == -signal.SIGKILL
    assert len(findings(store_url, "study").results) == 6
    last = Driver(folder, *command, deadly=deadly)
    assert_says(last, ("2 settings failed",), code=1)
    code, printed = here("status", "--store", store_url)
    assert code == 0
    assert "3 drivers died while they fitted this" in printed
    again = Driver(folder, *command)  # and the same command tries again
    assert again.wait() == 0, again.output
    assert_sound(store_url, truth)


def test_four_drivers_are_killed_and_their_server_restarts(
    folder: Path, truth: dict[Key, float], restartable: postgres.Server
) -> None:
    command = ("run", "study.toml", "--store", restartable.url)
    for count, _ in enumerate(drivers.kill_and_restart(folder, command, 3, random.Random(4), drivers=4)):
        if count == 1:
            restartable.stop(signal.SIGQUIT)
            restartable.start()
    assert_sound(restartable.url, truth)


def test_a_server_that_stays_away_is_named(folder: Path, truth: dict[Key, float], restartable: postgres.Server) -> None:
    command = ("run", "study.toml", "--store", restartable.url)
    driver = Driver(folder, *command)
    driver.wait_for_results()
    restartable.stop()
    assert_says(driver, ("connection", "refused"), code=1)
    assert_says(Driver(folder, *command), ("refused",), code=2)
    restartable.start()
    again = Driver(folder, *command)
    assert again.wait() == 0, again.output
    assert_sound(restartable.url, truth)


@pytest.mark.parametrize("how", ["quota", "disk"])
def test_a_full_disk_ends_a_run_that_goes_on_later(folder: Path, truth: dict[Key, float], how: str) -> None:
    disk = folder / "disk"
    disk.mkdir()
    url = f"sqlite:///{disk}/study.db"
    command = ("run", "study.toml", "--store", url)

    def check() -> None:
        driver = Driver(folder, *command)
        driver.wait_for_results()
        if how == "quota":
            resource.prlimit(driver.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
            assert_says(driver, FULL, code=1)
        else:
            ballast = drivers.fill(disk)
            assert_says(driver, FULL, code=1)
            assert_says(Driver(folder, *command), FULL)
            ballast.unlink()
        again = Driver(folder, *command)
        assert again.wait() == 0, again.output
        assert_sound(url, truth)

    if how == "quota":
        check()
        return
    try:
        with drivers.small_disk(disk, 4):
            check()
    except PermissionError as error:
        pytest.skip(str(error))


def test_a_read_only_folder_is_named_and_can_be_looked_at(folder: Path, truth: dict[Key, float]) -> None:
    disk = folder / "disk"
    disk.mkdir()
    url = f"sqlite:///{disk}/study.db"
    code, printed = here("run", "study.toml", "--trials", "2", "--store", url)
    assert code == 0, printed
    try:
        with drivers.read_only(disk):
            assert_says(Driver(folder, "run", "study.toml", "--store", url), READ_ONLY)
            for command in ("status", "export", "report"):
                code, printed = here(command, "--store", url)
                assert code == 0, printed
            assert_sound(url, truth, whole=False)
    except PermissionError as error:
        pytest.skip(str(error))


def test_a_server_that_becomes_read_only_is_named(folder: Path, truth: dict[Key, float], postgres_url: str) -> None:
    command = ("run", "study.toml", "--store", postgres_url)
    driver = Driver(folder, *command)
    driver.wait_for_results()
    base = postgres_url.rpartition("/")[2]
    with psycopg.connect(postgres_url.rpartition("/")[0] + "/postgres", autocommit=True) as connection:
        connection.execute(f'ALTER DATABASE "{base}" SET default_transaction_read_only = on')
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [base])
        assert_says(driver, ("read-only",), code=1)
        assert_says(Driver(folder, *command), ("read-only",))
        connection.execute(f'ALTER DATABASE "{base}" RESET default_transaction_read_only')
    again = Driver(folder, *command)
    assert again.wait() == 0, again.output
    assert_sound(postgres_url, truth)


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_pgbouncer_may_stand_before_the_server(
    folder: Path, truth: dict[Key, float], postgres_url: str, mode: str
) -> None:
    with bouncer(postgres_url, mode) as url:
        both = [Driver(folder, "run", "study.toml", "--store", url) for _ in range(2)]
        assert [driver.wait(60) for driver in both] == [0, 0], [driver.output for driver in both]
        for command in ("status", "report"):
            code, printed = here(command, "--store", url)
            assert code == 0, printed
        assert_sound(url, truth)
        with Store(url, read_only=True) as store, pytest.raises(StorageInternalError):
            store.storage.set_study_user_attr(1, "a", 1)
        with Store(url) as store:  # whom a look before must not have made read-only, on the server's same connection
            for _ in range(10):
                store.storage.set_study_user_attr(1, "a", 1)


def test_a_folder_of_images_that_breaks_costs_no_number(folder: Path, truth: dict[Key, float]) -> None:
    url, images = f"sqlite:///{folder}/study.db", folder / "study-artifacts"
    driver = Driver(folder, "run", "study.toml", "--store", url)
    driver.wait_for_results()
    images.rename(folder / "gone")
    images.write_text("a file")
    assert_says(driver, ("not all images",), code=1)
    assert_sound(url, truth)
    code, printed = here("status", "--store", url)
    assert code == 0
    assert "images are missing or damaged" in printed
    images.unlink()
    (folder / "gone").rename(images)
    first, second = sorted(images.iterdir())[:2]
    first.unlink()
    second.write_bytes(second.read_bytes()[:-20])
    for command in ("status", "export", "report"):
        code, printed = here(command, "--store", url)
        assert code == 0, printed
        assert ("2 of " in printed) == (command == "status")
    assert_sound(url, truth)
