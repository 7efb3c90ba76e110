import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from ddstudy.study import load
from ddstudy.study.load import DISTURBED_PERCENT, watched


def computing(seconds: float) -> Iterator[str]:
    for name in ("one", "two"):
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass
        yield name


def resting() -> Iterator[str]:
    time.sleep(0.2)
    yield "one"


@pytest.mark.parametrize("counted", [True, False], ids=["queues", "processor time"])
def test_a_fit_beside_another_program_has_waited(monkeypatch: pytest.MonkeyPatch, counted: bool) -> None:
    if not hasattr(os, "sched_setaffinity") or load._queues() is None:
        pytest.skip("nobody counts here")
    if not counted:
        monkeypatch.setattr(load, "_queues", lambda: None)
    before = os.sched_getaffinity(0)
    core = min(before)
    busy = f"import os; os.sched_setaffinity(0, [{core}]); print('busy', flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", busy], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        os.sched_setaffinity(0, [core])
        try:
            found = list(watched(computing(0.1), 1, on_processor=True))
        finally:
            os.sched_setaffinity(0, before)
            other.kill()
    assert [name for name, _ in found] == ["one", "two"]
    assert all(waited is not None and waited > 2 * DISTURBED_PERCENT for _, waited in found)


def test_neither_rest_nor_what_its_consumer_waits_for_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    ran, waited = 0.0, 0.0

    def fit() -> Iterator[str]:
        nonlocal ran, waited
        for name in ("one", "two"):
            ran, waited = ran + 0.99, waited + 0.01
            yield name

    monkeypatch.setattr(load, "_queues", lambda: (ran, waited))
    for _, share in watched(fit(), 1, on_processor=True):
        assert share == pytest.approx(1)
        waited += 5  # metrics, on a full machine
    monkeypatch.setattr(load, "_queues", lambda: None)
    assert list(watched(resting(), 1, on_processor=False)) == [("one", None)]
