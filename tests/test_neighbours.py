"""Slices of a study that are fitted with their neighbours: one after the other, or several by one network."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

import ddstudy
from ddstudy import cli
from ddstudy.errors import UserError
from ddstudy.execution.executors import Event, Finished, Started
from ddstudy.images.metrics import psnr
from ddstudy.images.targets import load_targets
from ddstudy.report import cases
from ddstudy.spec.axes import budgets_by_fit
from ddstudy.spec.cases import CasesSpec, Network, inner_neighbours, networks, units_of
from ddstudy.spec.files import parse_spec
from ddstudy.spec.schema import CASE
from ddstudy.study import evaluate, forecasting, planner

Tables = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`volume.nii`, 16 x 14 x 8, each of whose slices goes from 0 to 1, so that all are on one scale anyhow."""
    folder = tmp_path_factory.mktemp("neighbours")
    x, y, z = np.mgrid[0:16, 0:14, 0:8]
    volume = (x - 8) ** 2 + (y - 7) ** 2 + np.sin(x / 2 + z / 3) * 9
    volume = (volume - volume.min(axis=(0, 1))) / np.ptp(volume, axis=(0, 1))
    nibabel.Nifti1Image(volume.astype(np.float32), np.eye(4)).to_filename(folder / "volume.nii")
    return folder


@pytest.fixture
def tables(folder: Path) -> Tables:
    """A study as a dictionary, with tables that replace its own or are added."""

    def make(**changed: Any) -> dict[str, Any]:
        tree: dict[str, Any] = {
            "name": "study",
            "target": {"file": str(folder / "volume.nii")},
            "task": {"kind": "denoise", "sigma": 0.1},
            "cases": {"slices": ["0:6"]},
            "space": {"k": [4], "s": [4], "l": [1], "iterations": [16]},
            "fit": {"members": 2, "check_every": 8},
            "stability": {"prune": False, "min_psnr": 0, "cv_percent": 1000},
        }
        return tree | changed

    return make


def test_units_cover_all_slices_and_chains_go_outwards_from_the_middle() -> None:
    assert units_of("abcdefg", 3) == [("a", "b", "c"), ("d", "e", "f"), ("e", "f", "g")]
    inner = inner_neighbours("abcde")
    assert next(iter(inner)) == "c"
    assert inner == {"c": None, "b": "c", "d": "c", "a": "b", "e": "d"}
    listed = CasesSpec.model_validate({"slices": [9, 3, 6], "seeds": [0, 1], "holdout": ["slice9-y1"]})
    found = networks(listed, "neighbour", 1)
    assert [network.cases for network in found["slice3-y0"]] == [("slice6-y0",), ("slice3-y0",), ("slice9-y0",)]
    assert [network.after for network in found["slice3-y0"]] == [None, 0, 0]
    assert found["slice9-y1"] == (Network(("slice9-y1",)),)  # held out, so by itself
    assert networks(listed, "random", 3)["slice9-y0"] == (Network(("slice3-y0", "slice6-y0", "slice9-y0")),)


@pytest.mark.parametrize(
    "fit",
    [{"start": "neighbour"}, {"joint": 2}, {"start": "neighbour", "start_iterations": 8, "joint": 3}],
    ids=["start", "joint", "both"],
)
def test_a_study_of_all_slices_has_the_numbers_of_the_fitted_volume(
    tables: Tables, folder: Path, tmp_path: Path, fit: dict[str, Any]
) -> None:
    study = ddstudy.run(tables(fit={"members": 2, "check_every": 8, **fit}), store=f"sqlite:///{tmp_path}/store.db")
    assert study.cases is not None
    volume = ddstudy.fit_volume(
        folder / "volume.nii",
        range(6),
        **{"k": 4, "s": 4, "l": 1, "iterations": 16, "members": 2, "check_every": 8},
        task={"kind": "denoise", "sigma": 0.1},
        **fit,
    )
    of_study = study.cases.trials.set_index(CASE).loc[[f"slice{index}" for index in range(6)]]
    np.testing.assert_array_equal(of_study["psnr"], volume.slices["psnr"])
    np.testing.assert_array_equal(of_study["iterations_done"], volume.slices["iterations_done"])
    again = ddstudy.fit_volume(folder / "volume.nii", range(6), **study.options())
    np.testing.assert_array_equal(again.output, volume.output)
    rebuilt = study.cases.reconstruct(of_study.reset_index().iloc[1])
    truth = load_targets(study.cases.spec).of({CASE: "slice1"}).image
    assert psnr(rebuilt[None], truth) == pytest.approx(of_study["psnr"]["slice1"], abs=1e-6)
    assert study.trials["psnr"].item() == pytest.approx(volume.psnr)
    assert study.trials["stable"].all()  # those that were given fewer iterations were not stopped early


def test_start_and_joint_are_axes_and_another_budget_changes_no_number(tables: Tables, tmp_path: Path) -> None:
    space = {"k": [4], "s": [4], "l": [1], "iterations": [8, 16], "fit.start": ["random", "neighbour"]}
    space |= {"fit.start_iterations": [0, 8], "fit.joint": [1, 2]}
    url, ways = f"sqlite:///{tmp_path}/store.db", ["fit.start", "fit.start_iterations", "fit.joint"]
    study = ddstudy.run(tables(space=space), store=url)
    assert study.cases is not None
    assert (len(study.trials), len(study.cases.trials)) == (12, 72)
    assert set(study.cases.trials["state"]) == {"COMPLETE"}
    alone = ddstudy.run(tables(name="alone", space=space | {"iterations": [16]}), store=url)
    assert alone.cases is not None
    rows = [
        each[each["iterations"] == 16].set_index([*ways, CASE])["psnr"].sort_index()
        for each in (study.cases.trials, alone.cases.trials)
    ]
    assert rows[0].equals(rows[1])
    by_way = study.trials[study.trials["iterations"] == 16].fillna({"fit.start_iterations": -1}).set_index(ways)["psnr"]
    assert by_way["neighbour", 0, 1] > by_way["random", -1, 1]
    scores = cases.scores(study.view, "psnr")
    assert scores is not None
    assert ways[1] in set(cases.by_axis(scores)["axis"])  # which does not apply to every setting


def test_what_is_done_is_left_out_unless_others_start_from_it(tables: Tables) -> None:
    spec = parse_spec(tables(fit={"start": "neighbour"}), "study.toml").by_case
    assert spec is not None
    target, (fit, *_) = load_targets(spec), budgets_by_fit(spec.search_space)
    settings = {str(each[CASE]): each for each in spec.search_space}
    done = [settings[name] for name in ("slice3", "slice2", "slice1", "slice4")]
    work = planner.job(spec, target, fit, (16,), done)
    order = "".join(case[-1] for network in work.networks for case in network.cases)
    assert order == "324150"
    done = [settings[name] for name in ("slice3", "slice2", "slice1", "slice0", "slice4")]
    work = planner.job(spec, target, fit, (16,), done)
    assert [(list(network.cases), network.after) for network in work.networks] == [
        (["slice3"], None),
        (["slice4"], 0),
        (["slice5"], 1),
    ]
    assert planner.plan(spec, target, set(done)).todo == {spec.root(fit): (16,)}
    assert spec.root(fit)[CASE] == "slice3"


@pytest.mark.parametrize("failures", [1, 99])
def test_a_chain_that_fails_is_tried_again_and_then_given_up(
    tables: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    whole = ddstudy.run(tables(fit={"start": "neighbour"}), store=f"sqlite:///{tmp_path}/whole.db")
    calls, measure = [0], evaluate.quality

    def breaks(*arguments: Any) -> Any:
        calls[0] += 1
        if 4 <= calls[0] < 4 + failures:  # one of the forecast, one of each slice
            raise RuntimeError("the device is gone")
        return measure(*arguments)

    monkeypatch.setattr(evaluate, "quality", breaks)
    run = lambda: ddstudy.run(tables(fit={"start": "neighbour"}), store=f"sqlite:///{tmp_path}/store.db")  # noqa: E731
    if failures > 1:
        with pytest.warns(ddstudy.StudyWarning, match="settings failed"):
            broken = run()
        assert broken.cases is not None
        assert broken.cases.trials["state"].value_counts().to_dict() == {"COMPLETE": 2, "FAIL": 4}
        monkeypatch.undo()
    study = run()
    assert study.cases is not None
    assert whole.cases is not None
    measured = [
        each.trials[each.trials["state"] == "COMPLETE"].set_index(CASE)["psnr"].sort_index()
        for each in (study.cases, whole.cases)
    ]
    assert measured[0].equals(measured[1])


def test_a_search_over_ways_goes_on_after_a_stop_and_is_judged(tables: Tables, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    tree = tables(
        cases={"slices": ["0:8"], "holdout": ["slice6", "slice7"]},
        space={"k": [2, 4], "s": [4], "l": [1], "iterations": [8, 16], "fit.start": ["random", "neighbour"]},
        search={"sampler": "random", "trials": 6, "pruner": "wilcoxon"},
    )
    stop = threading.Event()
    ddstudy.run(tree, store=url, stop=stop, progress=lambda progress: progress.done > 3 and stop.set())
    study = ddstudy.run(tree, store=url)
    assert len(study.trials[study.trials["state"] != "FAIL"]) == 6
    judged = ddstudy.judge("study", store=url)
    assert judged.cases is not None
    held_out = judged.cases.trials[judged.cases.trials[CASE].isin(["slice6", "slice7"])]
    assert len(held_out)
    assert held_out["state"].eq("COMPLETE").all()


class Scripted:
    """An executor whose every job has the checks of two slices, at iterations 4 and 8."""

    def __init__(self) -> None:
        self.tickets: list[str] = []

    def submit(self, ticket: str, job: evaluate.Job) -> None:
        self.tickets.append(ticket)

    def cancel(self, ticket: str) -> None:
        """It ends soon anyhow."""

    def events(self) -> Iterator[tuple[str, Event]]:
        for ticket in self.tickets:
            yield ticket, Started("worker")
            for iteration, seconds in ((4, 0.1), (8, 0.2)):
                for case in ("slice0", "slice1"):
                    yield ticket, evaluate.Check(iteration, seconds, (20.0, 20.0), case=case)
            yield ticket, Finished()


def test_a_forecast_of_slices_takes_the_pace_of_one(tables: Tables) -> None:
    spec = parse_spec(tables(fit={"members": 2, "joint": 2}), "study.toml").by_case
    assert spec is not None
    target = load_targets(spec)
    fits = list(planner.plan(spec, target, set()).todo)
    executor: Any = Scripted()
    forecast = forecasting.calibrate(spec, target, fits, executor)
    one = forecasting.work_of(spec, fits[0], (8,), target)
    assert (one.iterations, one.results) == (2 * 8, 2)
    assert forecast.fitting(one) == pytest.approx(2 * 8 * 0.1 / 4)


def test_the_command_line_fits_what_a_study_chose_to_other_slices(
    tables: Tables, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    study = ddstudy.run(tables(fit={"members": 2, "check_every": 8, "start": "neighbour"}), store=url)
    words = ["--study", "study", "--store", url, "--slices", "3:7", "--joint", "2", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["ddstudy", "fit", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    options = study.options() | {"joint": 2}
    expected = ddstudy.fit_volume(folder / "volume.nii", range(3, 7), **options)
    np.testing.assert_array_equal(nibabel.load(tmp_path / "out.nii.gz").get_fdata(), expected.output)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"cases": {}}, r"are of slices: name them in \[cases\], or take `ddstudy fit --all-slices`"),
        ({"cases": {"seeds": [0, 1]}}, "there is no other slice beside 'y0'"),
        ({"cases": {"slices": [1, 2, 3], "holdout": ["slice2"]}}, "there is no other slice held out beside 'slice2'"),
        ({"cases": {"slices": [3, "mid"]}}, "count the slices beside 'slice3' all by index, or all from the middle"),
        ({"cases": {"table": [{"name": "a"}, {"name": "b", "slice": "mid"}]}}, "two of the cases beside 'a' are one"),
        ({"fit": {"joint": 4}}, "fit.joint = 4: slices must be a multiple, beside 'slice0' there are 6"),
        ({"fit": {"start_iterations": 9}}, "fit.start_iterations is for fit.start = 'neighbour' only"),
        (
            {
                "search": {"sampler": "tpe"},
                "space": {"k": [4], "s": [4], "l": [1], "iterations": [16], CASE: ["slice1"]},
            },
            "cases.case cannot be searched",
        ),
    ],
)
def test_what_has_no_neighbours_is_refused(tables: Tables, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_spec(tables(**({"fit": {"start": "neighbour"}} | changed)), "study.toml")


def test_results_of_other_stacks_are_not_reused(tables: Tables, tmp_path: Path) -> None:
    url, fit = f"sqlite:///{tmp_path}/store.db", {"members": 2, "check_every": 8, "start": "neighbour"}
    ddstudy.run(tables(fit=fit), store=url)
    more = tables(name="more", fit=fit, cases={"slices": ["0:8"]})
    with pytest.raises(UserError, match="cases: slices that are fitted with their neighbours, and others"):
        ddstudy.run(more, store=url, reuse="study")
    same = ddstudy.run(tables(name="same", fit=fit, cases={"slices": ["0:6"]}), store=url, reuse="study")
    assert same.cases is not None
    assert same.cases.trials["reused_from"].notna().all()
