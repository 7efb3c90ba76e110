"""Stopping rules against brute force over the whole fit, and what is recorded of them."""

import math
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from synthetic import driven, measurement, spec_of

from ddstudy import cli
from ddstudy.report.tables import curves_of_tasks
from ddstudy.store.database import Store
from ddstudy.study.stopping import (
    NAMES,
    Audit,
    Choice,
    Curve,
    MovingVariance,
    Name,
    Rule,
    Watch,
    WindowedVariance,
    audit,
    replay,
)

every = st.sampled_from([1, 7, 10, 25, 50])
seeds = st.integers(0, 2**32 - 1)
# few values, so that there are ties; and checks that are not judged
few = settings(max_examples=25, deadline=None)
criteria = st.lists(st.sampled_from([math.nan, 1.0, 2.0, 3.0, 4.0, 5.0]), max_size=25)


def outputs_of(seed: int, checks: int, scale: float = 1.0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((checks, 2, 3, 4), dtype=np.float32) * np.float32(scale)


@few
@given(seeds, every)
def test_windowed_variance_is_that_of_the_checks_of_the_last_hundred_iterations(seed: int, every: int) -> None:
    outputs = outputs_of(seed, max(6, 130 // every))
    variance = WindowedVariance()
    for at, output in enumerate(outputs):
        iteration = (at + 1) * every
        found = variance.observe(iteration, output)
        inside = [outputs[i].astype(float) for i in range(at + 1) if iteration - (i + 1) * every < 100]
        if iteration < 100:
            assert math.isnan(found)
            continue
        mean = sum(inside) / len(inside)
        distances = [((each - mean) ** 2).sum() / each.size for each in inside]
        assert found == pytest.approx(sum(distances) / len(distances), rel=1e-9)


def test_windowed_variance_keeps_no_more_than_its_window_and_no_array_of_others() -> None:
    variance, output = WindowedVariance(), np.zeros((1, 2, 2), np.float32)
    for iteration in range(10, 1001, 10):
        output += 1  # a network writes each output where the last was
        last = variance.observe(iteration, output)
        assert len(variance._outputs) <= 10
    assert last == pytest.approx((10**2 - 1) / 12)  # of ten numbers in a row


def test_windowed_variance_cannot_tell_of_checks_that_are_too_far_apart() -> None:
    variance = WindowedVariance()
    found = [variance.observe(60 * at, output) for at, output in enumerate(outputs_of(0, 9), 1)]
    assert not all(map(math.isnan, found))  # two are in the window at some of them, and the rule asks for all
    variance, most = WindowedVariance(), 50  # which study files are held to
    found = [variance.observe(most * at, output) for at, output in enumerate(outputs_of(0, 9), 1)]
    assert [math.isnan(one) for one in found] == [True] + 8 * [False]
    found = [WindowedVariance().observe(100 * at, output) for at, output in enumerate(outputs_of(0, 9), 1)]
    assert all(map(math.isnan, found))


@few
@given(seeds, every)
def test_moving_variance_is_the_sum_that_its_recursion_makes(seed: int, every: int) -> None:
    """EMA_n and EMV_n as weighted sums over all checks so far; at every iteration the weights are the original's."""
    outputs = outputs_of(seed, max(6, 130 // every)).astype(float)
    forgets = 0.9**every
    variance, squares = MovingVariance(), []
    for at, output in enumerate(outputs):
        found = variance.observe((at + 1) * every, output.astype(np.float32))
        past = outputs[: max(at, 1)]  # the average starts at the first
        weights = (1 - forgets) * forgets ** np.arange(len(past) - 1, -1, -1)
        weights[0] = forgets ** (len(past) - 1)
        average = np.tensordot(weights, past, 1)
        squares.append(float(((output - average) ** 2).mean()))
        ages = np.arange(len(squares), 0, -1)
        expected = float(((1 - forgets) * forgets**ages * squares).sum())
        judged = (at + 1) * every >= 100 and at > 0
        assert found == pytest.approx(expected, rel=1e-6) if judged else math.isnan(found)


def test_moving_variance_forgets_as_fast_whatever_the_checks() -> None:
    """After a jump, the distance to the average falls by 0.9 in each iteration, and what was seen before it as well."""
    seen: dict[int, dict[int, float]] = {}
    for every in (1, 5, 20):
        variance = MovingVariance()
        seen[every] = {
            iteration: variance.observe(iteration, np.full((1, 1, 1), float(iteration > 200), np.float32))
            for iteration in range(every, 401, every)
        }
    for every in (5, 20):
        fall = seen[every][400] / seen[every][380]
        # squares fall by 0.81 and what is remembered of them by 0.9 an iteration: the slower is left
        assert fall == pytest.approx(seen[1][400] / seen[1][380], rel=0.2)
        assert 0.9**20 <= fall < 1.2 * 0.9**20


def chosen(iterations: list[int], values: list[float], patience: int) -> tuple[int, int | None]:
    """What the words say, by brute force: the place of the lowest so far, and the first check that ends the fit."""
    for last in range(len(iterations)):
        judged = [(values[at], at) for at in range(last + 1) if not math.isnan(values[at])]
        if judged and iterations[last] - iterations[min(judged)[1]] >= patience:
            return iterations[min(judged)[1]], iterations[last]
    judged = [(value, at) for at, value in enumerate(values) if not math.isnan(value)]
    return (iterations[min(judged)[1]] if judged else ([0, *iterations])[-1]), None


@given(criteria, st.integers(1, 80), st.sampled_from(["wmv", "emv", "held_out"]))
def test_the_lowest_criterion_is_chosen(values: list[float], patience: int, name: Name) -> None:
    iterations = [10 * at for at in range(1, len(values) + 1)]
    curve = Curve(iterations, **{name: values})  # type: ignore[arg-type]
    found = replay(name, curve, patience)
    if all(map(math.isnan, values)):
        assert found is None
    else:
        assert found == Choice(*chosen(iterations, values, patience))


@given(st.lists(st.floats(0, 2), min_size=1, max_size=25), st.floats(0.1, 1.4))
def test_discrepancy_is_the_first_loss_that_is_down_to_the_noise(losses: list[float], sigma: float) -> None:
    iterations = [10 * at for at in range(1, len(losses) + 1)]
    reached = [iteration for iteration, loss in zip(iterations, losses, strict=True) if loss <= sigma**2]
    expected = Choice(reached[0], reached[0]) if reached else Choice(iterations[-1], None)
    assert replay("discrepancy", Curve(iterations, loss=losses, sigma=sigma), 1) == expected


def test_discrepancy_needs_a_noise_level() -> None:
    assert replay("discrepancy", Curve([10, 20], loss=[0.2, 0.0]), 100) is None


def test_the_budget_is_the_last_check() -> None:
    assert replay("budget", Curve([10, 20, 30]), 1) == Choice(30, None)
    assert replay("budget", Curve([10, 20, 30]), 1, budget=25) == Choice(20, None)


Seen = tuple[int, dict[str, float]]


def fit_of(seed: int, checks: int, every: int, sigma: float) -> list[Seen]:
    """What rules see of a made-up fit: errors fall, and the noise comes in."""
    rng = np.random.default_rng(seed)
    image, noise, rate = rng.random((1, 6, 6)), sigma * rng.standard_normal((1, 6, 6)), rng.uniform(100, 600)
    watch, seen = Watch(), []
    for iteration in range(every, every * checks + 1, every):
        settled, wild = 1 - math.exp(-iteration / rate), (iteration / 6000) ** 2 * noise
        output = (settled * image + wild + 0.02 * rng.standard_normal(image.shape)).astype(np.float32)
        loss, held_out = (float(((output - image - it) ** 2).mean()) for it in (noise, sigma * rng.standard_normal(1)))
        seen.append((iteration, {"loss": loss, "held_out": held_out, **watch.observe(iteration, output)}))
    return seen


def recorded(fit: list[Seen], sigma: float) -> Curve:
    lists = {name: [watched[name] for _, watched in fit] for name in ("loss", "held_out", "wmv", "emv")}
    return Curve([iteration for iteration, _ in fit], **lists, sigma=sigma)  # type: ignore[arg-type]


@few
@given(seeds, st.integers(3, 40), every, st.sampled_from(NAMES), st.integers(1, 300), st.integers(1, 40))
def test_a_choice_does_not_depend_on_what_comes_after(
    seed: int, checks: int, every: int, name: Name, patience: int, cut: int
) -> None:
    """At work, replayed, replayed with a smaller budget, and of a fit that is cut there: all the same."""
    fit, sigma = fit_of(seed, checks, every, 0.3), 0.3
    budget = min(cut, checks) * every
    rule, answer, ended_at = Rule(name, patience, sigma), 0, None
    for iteration, watched in fit[: min(cut, checks)]:
        if rule.observe(iteration, watched):
            answer = iteration
        if rule.over:
            ended_at = iteration
            break
    whole, part = recorded(fit, sigma), recorded(fit[: min(cut, checks)], sigma)
    if part.criterion(name) is None:  # nothing was judged so soon
        assert (answer, ended_at) == (budget, None)
        return
    assert replay(name, whole, patience, budget) == Choice(answer, ended_at) == replay(name, part, patience)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_over_stays_so(name: Name) -> None:
    rule = Rule(name, 50, 0.5)
    answers, overs = [], []
    for iteration, watched in [*fit_of(1, 60, 10, 0.3), (700, dict.fromkeys(("loss", "held_out", "wmv", "emv"), 0.0))]:
        answers.append(rule.observe(iteration, watched))
        overs.append(rule.over)
    assert overs == sorted(overs)
    assert not any(new for new, over in zip(answers[1:], overs, strict=False) if over)
    assert overs[-1] == (name != "budget")


def test_variances_are_least_between_the_image_and_the_noise() -> None:
    """An error that falls as exp(-t / 200) and noise that comes in as t^3: the turn is where their speeds are equal."""
    rng = np.random.default_rng(3)
    image, noise = rng.random((1, 32, 32)) - 0.5, rng.standard_normal((1, 32, 32))

    def at(iteration: float) -> NDArray[np.float32]:
        found = (1 - math.exp(-iteration / 200)) * image + (iteration / 3000) ** 3 * noise
        return found.astype(np.float32)

    iterations = range(10, 3001, 10)
    variances = (WindowedVariance(), MovingVariance())
    lowest = [
        10 * (1 + int(np.nanargmin([it.observe(iteration, at(iteration)) for iteration in iterations])))
        for it in variances
    ]
    speeds = [float(((at(t + 5).astype(float) - at(t - 5)) ** 2).mean()) for t in iterations]
    turn = 10 * (1 + int(np.argmin(speeds)))
    assert abs(lowest[0] - 50 - turn) <= 20  # the window's middle is where it looks
    assert abs(lowest[1] - turn) <= 40
    assert abs(lowest[1] - 10 - turn) <= 20  # as far behind as its average


def test_audit_by_hand() -> None:
    nan = math.nan
    falls = Curve([100, 200, 300, 400], score=[20, 25, 23, 22], emv=[4, 3, 2, 5], loss=[9, 4, 2, 1], sigma=2.0)
    rises = Curve([100, 200, 300, 400], score=[20, 21, 22, 24], emv=[1, 2, 3, 4], loss=[9, 8, 7, 6], sigma=2.0)
    blind = Curve([100, 200, 300, 400], emv=[nan, 2, 3, 1], loss=[9, 8, 7, 6])
    fits = [falls, rises, blind]
    assert audit(fits, "budget", 1) == Audit("budget", 1, 3, 2, 1.5, 3.0, 0.0, 3)
    # 300 of the first, 2 dB from the best at 200; 100 of the second, which it ends at 300; 400 of the third
    assert audit(fits, "emv", 200) == Audit("emv", 200, 3, 2, 3.0, 4.0, pytest.approx(0.25 / 3), 2)
    assert audit(fits, "emv", 200, budget=300) == Audit(
        "emv", 200, 3, 2, 2.0, 2.0, 0.0, 3
    )  # an end at the end saves nothing
    assert audit(fits, "discrepancy", 1) == Audit("discrepancy", 1, 2, 2, 0.0, 0.0, 0.25, 1)
    assert audit([blind], "emv", 200).scored == 0
    assert math.isnan(audit([blind], "emv", 200).mean_gap)
    assert audit(fits, "wmv", 200).fits == 0


# --- what is recorded of a study


def record(url: str, *keys: dict[str, Any], name: str = "noisy", **tables: Any) -> None:
    """A study with a check every 10 iterations up to 400; of each fit, what its curve has besides."""
    space = {"k": [*range(8, 8 + len(keys))], "s": [8], "l": [2], "iterations": [200, 400]}
    common: dict[str, Any] = {"task": {"kind": "denoise", "sigma": 0.1}, "fit": {"check_every": 10, "members": 2}}
    spec = spec_of(name, space, images=False, **common | tables)
    with driven(url, spec, (24, 20)) as study:
        for setting in spec.search_space:
            found = measurement(setting, 2, study.target.image)
            length = len(found.curve["iterations"])
            more = {
                key: values[:length] if isinstance(values, list) else values
                for key, values in keys[setting["k"] - 8].items()
            }
            found = replace(found, curve=found.curve | more, values=found.values | {"judge": 20.0})
            study.record(setting, found, shared=False, started=datetime.now())


CHECKS = range(1, 41)
KEYS = {
    "loss": [1 / at**2 for at in CHECKS],
    "held_out": [None] * 40,
    "score": [20 - abs(at - 15) / 10 for at in CHECKS],
    "wmv": [None] * 9 + [1 + abs(at - 20) for at in range(10, 41)],
    "emv": [None] * 9 + [1 + abs(at - 17) for at in range(10, 41)],
}


def curves(url: str) -> list[Curve]:
    with Store(url, read_only=True) as store:
        view = store.view("noisy")
    assert not view.left_out
    return curves_of_tasks(view.records, view.spec)


def test_curves_of_tasks_are_read_as_they_were_recorded(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    record(url, KEYS, KEYS)
    first, second = curves(url)
    assert first.sigma == second.sigma == 0.1
    assert list(first.iterations) == [10 * at for at in CHECKS]
    for key, values in KEYS.items():
        np.testing.assert_array_equal(getattr(first, key), np.array(values, float))


def test_a_damaged_list_is_left_out_and_its_trial_is_not(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    damaged: list[Any] = ["text", [1.0], {"a": 1}, [True] * 40, ["1"] * 40, None, [[1.0]] * 40]
    record(url, *({**KEYS, "wmv": one, "others": one} for one in damaged))
    found = curves(url)
    assert [(len(curve.wmv), len(curve.emv)) for curve in found] == [(0, 40)] * len(damaged)


def test_a_curve_of_before_is_as_it_was(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    record(url, {}, task={"kind": "represent"})
    assert curves(url) == []
    with Store(url, read_only=True) as store:
        records = store.view("noisy").records
    assert {tuple(record.curve) for record in records} == {("iterations", "seconds", "psnr_members")}


def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[Any, str]:
    monkeypatch.setattr(sys, "argv", ["ddstudy", "stop-audit", *arguments])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    return ended.value.code, out + err


def test_stop_audit(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    record(url, KEYS, KEYS)
    code, out = command(capsys, monkeypatch, "noisy", "--patience", "50", "--patience", "300", "--store", url)
    assert code == 0
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    # the best score is at 150; the loss is down to 0.01 at 100; 300 iterations after a minimum the budget is over
    assert rows == [
        ["budget", "", "2", "2.50 dB", "2.50 dB", "0 %", "2 of 2"],
        ["wmv", "50", "2", "0.50 dB", "0.50 dB", "38 %", "0 of 2"],
        ["wmv", "300", "2", "0.50 dB", "0.50 dB", "0 %", "2 of 2"],
        ["emv", "50", "2", "0.20 dB", "0.20 dB", "45 %", "0 of 2"],
        ["emv", "300", "2", "0.20 dB", "0.20 dB", "0 %", "2 of 2"],
        ["discrepancy", "", "2", "0.50 dB", "0.50 dB", "75 %", "0 of 2"],
    ]
    assert "Not recorded here: what held_out would look at." in out
    assert "cannot be told" not in out


def test_stop_audit_without_truth_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What judges in its place is no measure: here it is what a rule looks at."""
    url = f"sqlite:///{tmp_path}/s.db"
    file = {"kind": "denoise", "sigma": 0.1, "source": "file"}
    record(url, KEYS, name="real", task=file, judge={"against": "held_out"})
    code, out = command(capsys, monkeypatch, "--store", url)
    assert code == 0
    assert "The gap cannot be told: the truth is not known." in out
    assert " dB" not in out
    assert "nan" not in out
    record(url, KEYS)
    code, out = command(capsys, monkeypatch, "real", "noisy", "--store", url)
    assert code == 0
    assert "2 fits of real, noisy" in out
    assert "The gaps are those of 1 fit: of the others the truth is not known." in out


def test_stop_audit_of_what_stopping_means_nothing_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    record(url, {}, task={"kind": "represent"})
    code, out = command(capsys, monkeypatch, "noisy", "--store", url)
    assert code == 2
    assert out.splitlines()[-2:] == [
        "ddstudy: noisy: no fit ran to its end that tells what stopping rules look at",
        "Valid: a study with a [task] other than 'represent', with fit.stop = 'budget'.",
    ]
