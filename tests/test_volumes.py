"""Fits that start where others ended, and whole volumes, slice by slice."""

import re
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from drivers import Driver
from filelock import FileLock
from numpy.typing import NDArray
from problems import make_problem

import ddstudy
from ddstudy import cli
from ddstudy.errors import StoppedError, UserError, WorkError
from ddstudy.image_fit import asked, job_of
from ddstudy.images.metrics import psnr
from ddstudy.images.slices import load_slices
from ddstudy.images.volumes import Target, load_target
from ddstudy.solvers import Config, Method, Problem, choose, fit
from ddstudy.spec.options import TargetSpec, TaskSpec
from ddstudy.study.evaluate import Job, Result, evaluate, evaluate_together, problem
from ddstudy.tasks.cases import Case
from ddstudy.tasks.measurements import joint as joint_of
from ddstudy.tasks.measurements import measure
from ddstudy.tasks.operators import Joint


@pytest.fixture(params=["reference", "fused"])
def method(request: pytest.FixtureRequest) -> Method:
    return choose("cpu", request.param)


def end_of(work: Problem, config: Config, method: Method) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Outputs and weights after 30 iterations."""
    ((outputs, weights),) = [(each.outputs, each.weights) for each in fit(work, config, [30], method=method)]
    return outputs, weights


@pytest.mark.parametrize("keep", ["last", "best", "average"])
@pytest.mark.parametrize("tiles", [1, 2])
def test_weights_that_were_handed_out_make_the_same_output(
    keep: Literal["last", "best", "average"], tiles: int, method: Method
) -> None:
    work = make_problem(members=3, tiles=tiles)
    outputs, weights = end_of(work, Config(keep=keep), method)
    # the best of one iteration are the weights before the first update
    before, after = fit(replace(work, weights=weights), Config(keep="best"), [1, 20], method=method)
    assert np.array_equal(before.outputs, outputs)
    assert (after.losses < before.losses).all()


def test_weights_of_one_engine_start_the_other(method: Method) -> None:
    work = make_problem()
    outputs, weights = end_of(work, Config(), choose("cpu", "fused"))
    (before,) = fit(replace(work, weights=weights), Config(keep="best"), [1], method=method)
    np.testing.assert_allclose(before.outputs, outputs, atol=1e-5)


def test_weights_are_refused_once_the_fit_has_gone_on(method: Method) -> None:
    snapshots = fit(make_problem(), Config(), [1, 2], method=method)
    first, _ = next(snapshots), next(snapshots)
    with pytest.raises(RuntimeError, match="gone on since"):
        _ = first.weights


def test_a_job_goes_on_from_the_weights_of_another(make_job: Callable[..., Job]) -> None:
    job = replace(make_job(8, 40), budgets=(40,), with_weights=True)
    first = result(job)
    assert first.weights is not None
    assert result(replace(job, with_weights=False)).weights is None
    assert np.array_equal(result(replace(job, start=first.weights, budgets=(1,))).output, first.output)
    assert result(replace(job, start=first.weights)).values["psnr"] > first.values["psnr"]
    with pytest.raises(ValueError, match=r"weights of shape \(1,"):
        result(replace(job, start=first.weights[:1]))


def result(job: Job) -> Result:
    (found,) = (event for event in evaluate(job, device="cpu", threads=1) if isinstance(event, Result))
    return found


def three(make_job: Callable[..., Job], k: int = 4) -> list[Job]:
    """Jobs of three adjacent slices, which share a network."""
    job = replace(make_job(k, 10), joint=3, every_member=True)
    return [
        replace(job, case=Case.of(Target(np.roll(job.case.measurement.samples, n, 1), f"{n}", None))) for n in range(3)
    ]


@pytest.mark.parametrize("engine", ["reference", "fused"])
def test_a_joint_fit_is_one_network_with_a_channel_for_each_slice(
    make_job: Callable[..., Job], engine: Literal["reference", "fused"]
) -> None:
    jobs = [replace(job, options=job.options.model_copy(update={"engine": engine})) for job in three(make_job)]
    stops = [threading.Event() for _ in jobs]
    events = list(evaluate_together(jobs, device="cpu", threads=2, stops=stops))
    results = {(i, event.budget): event for i, event in events if isinstance(event, Result)}
    assert results.keys() == {(i, budget) for i in range(3) for budget in (5, 10)}
    assert [event for _, event in events if event is None] == [None] * 3
    # in plain torch
    first = jobs[0]
    images = torch.tensor(np.concatenate([job.case.measurement.samples for job in jobs]))[None]
    whole = replace(first.case.measurement, samples=images[0].numpy(), shape=(3, *first.case.measurement.shape[1:]))
    work = problem(first.fit, whole, first.options, first.noise)
    for member in range(first.options.members):
        net = work.prior.build()
        torch.nn.utils.vector_to_parameters(torch.tensor(work.weights[member]), net.parameters())
        optimiser, x = torch.optim.Adam(net.parameters(), 0.01), torch.tensor(work.inputs[member])
        best, shown = np.inf, torch.empty(0)
        for _ in range(10):
            output = net(x)
            loss = ((output - images) ** 2).mean()
            if loss.item() < best:  # the default iterate
                best, shown = loss.item(), output.detach()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        for i in range(3):
            found = results[i, 10].members[member]
            np.testing.assert_allclose(found[0], shown[0, i], atol=2e-5)
    for i, job in enumerate(jobs):
        found = results[i, 10]
        assert found.values["psnr"] == pytest.approx(psnr(found.output, job.case.measurement.samples), abs=1e-6)
        assert found.values["psnr_member_0"] == pytest.approx(psnr(found.members[0], job.case.measurement.samples))
        assert found.values["parameters"] == work.prior.parameters
    assert results[0, 10].values["seconds"] == results[2, 10].values["seconds"]


ORIENTATIONS = {
    "RAS": np.diag([1.0, 1.0, 1.0, 1.0]),
    "LAS": np.array([[-1.0, 0, 0, 50], [0, 1, 0, -7], [0, 0, 1, 3], [0, 0, 0, 1]]),
    "PIR, oblique": np.array([[0, 0.1, 1.0, 5], [-1.0, 0, 0, 7], [0, -1.0, 0.1, -3], [0, 0, 0, 1]]),
}


def write_volume(path: Path, affine: NDArray[np.float64] = ORIENTATIONS["LAS"], zooms: float = 1.0) -> None:
    """A smooth volume of 15 x 12 x 10 voxels whose outermost slices along the last axis are empty, in microns."""
    x, y, z = np.mgrid[0:15, 0:12, 0:10]
    voxels = 300 + 100 * np.sin(x / 3 + z / 4) * np.cos(y / 2 - z / 3) + 10 * z
    voxels[..., [0, -1]] = 0
    image = nibabel.Nifti1Image(np.round(voxels).astype(np.int16), affine @ np.diag([1000, 1000, 1000 * zooms, 1]))
    image.set_sform(image.affine, 4)
    image.set_qform(image.affine, 1)
    image.header.set_xyzt_units("micron")
    nibabel.save(image, path)


@pytest.mark.parametrize("affine", ORIENTATIONS.values(), ids=ORIENTATIONS)
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_slices_go_back_to_where_they_were(
    plane: Literal["axial", "coronal", "sagittal"], affine: NDArray[np.float64], tmp_path: Path
) -> None:
    write_volume(tmp_path / "volume.nii.gz", affine)
    there = nibabel.load(tmp_path / "volume.nii.gz")
    found = load_slices(TargetSpec(file=str(tmp_path / "volume.nii.gz"), plane=plane), "2,4:8:2")
    assert list(found.targets) == [2, 4, 6]
    voxels = found.volume({index: target.image for index, target in found.targets.items()})
    (tmp_path / "written.nii.gz").write_bytes(found.nifti_bytes(voxels))
    written = nibabel.load(tmp_path / "written.nii.gz")
    assert written.shape == there.shape
    for key in ("sform_code", "qform_code", "xyzt_units", "pixdim", "srow_x", "quatern_b"):
        assert np.array_equal(written.header[key], there.header[key]), key
    assert np.array_equal(written.affine, there.affine)
    # what is there is what was there, in three slices across one axis, which are those of `load_target`
    filled = written.get_fdata() != 0
    np.testing.assert_allclose(written.get_fdata()[filled], there.get_fdata()[filled], atol=1e-3)
    axis = next(a for a in range(3) if filled.any(axis=tuple({0, 1, 2} - {a})).sum() == 3)
    order = nibabel.io_orientation(affine)
    assert order[axis, 0] == {"sagittal": 0, "coronal": 1, "axial": 2}[plane]
    for index, target in found.targets.items():
        alone = load_target(TargetSpec(file=str(tmp_path / "volume.nii.gz"), plane=plane, slice=index), found.scale)
        np.testing.assert_allclose(target.image, alone.image, atol=1e-6)
        assert np.array_equal(target.affine, alone.affine)


def test_resampled_slices_go_back_to_the_grid_of_the_volume(tmp_path: Path) -> None:
    write_volume(tmp_path / "volume.nii.gz", zooms=2.5)
    there = nibabel.load(tmp_path / "volume.nii.gz")
    found = load_slices(TargetSpec(file=str(tmp_path / "volume.nii.gz"), plane="coronal", size=(60, 40)), "all")
    voxels = found.volume({index: target.image for index, target in found.targets.items()})
    assert found.targets[3].image.shape == (1, 60, 40)
    assert np.abs(voxels - there.get_fdata())[..., 2:-2].max() < 0.1 * np.ptp(there.get_fdata())
    assert np.corrcoef(voxels.ravel(), there.get_fdata().ravel())[0, 1] > 0.99


def test_all_slices_are_on_the_scale_of_the_volume(tmp_path: Path) -> None:
    write_volume(tmp_path / "volume.nii.gz")
    table = TargetSpec(file=str(tmp_path / "volume.nii.gz"))
    found, some = load_slices(table, "all"), load_slices(table, 5)
    there = nibabel.load(tmp_path / "volume.nii.gz").get_fdata()
    assert found.scale == some.scale == (0, there.max())
    assert np.array_equal(found.targets[5].image, some.targets[5].image)
    assert list(found.targets) == list(range(1, 9))
    assert found.constant == {0: 0, 9: 0}
    clipped = load_slices(table.model_copy(update={"intensity": "percentile", "percentiles": (20.0, 90.0)}))
    low, high = np.percentile(there, [20, 90])
    assert clipped.scale == (low, high)
    voxels = clipped.volume({index: target.image for index, target in clipped.targets.items()})
    np.testing.assert_allclose(voxels, np.clip(there, low, high), atol=1e-3)


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ("40:140:10", "there is no axial slice 40"),
        ("-1", "cannot be '-1'"),
        ("3:3", "'3:3' names no slice"),
        ([], "none are chosen"),
        ("mid+-30", "there is no axial slice -25"),
        ([2.5], "cannot be 2.5"),
        ("0,9", "every chosen slice is constant"),
    ],
)
def test_slices_that_are_not_there_are_refused(chosen: Any, said: str, tmp_path: Path) -> None:
    write_volume(tmp_path / "volume.nii.gz")
    with pytest.raises(UserError, match=said):
        load_slices(TargetSpec(file=str(tmp_path / "volume.nii.gz")), chosen)


def test_ranges_of_slices() -> None:
    table = TargetSpec(size=(8, 8))
    assert list(load_slices(table, "mid+-20:10").targets) == [74, 84, 94, 104, 114]
    assert list(load_slices(table, [60, "mid-3", "40:50:5"]).targets) == [40, 45, 60, 91]


def test_every_slice_has_noise_of_its_own_and_the_same_mask(tmp_path: Path) -> None:
    write_volume(tmp_path / "volume.nii.gz")
    found = load_slices(TargetSpec(file=str(tmp_path / "volume.nii.gz")))
    noise = [
        measure(found.targets[i], TaskSpec(kind="denoise", sigma=0.1)).samples - found.targets[i].image for i in (3, 4)
    ]
    assert abs(np.corrcoef(*(each.ravel() for each in noise))[0, 1]) < 0.2
    assert np.std(noise[0]) == pytest.approx(0.1, rel=0.2)
    masks = [np.isnan(measure(found.targets[i], TaskSpec(kind="inpaint")).samples) for i in (3, 4)]
    assert np.array_equal(*masks)


SMALL: dict[str, Any] = {"k": 4, "s": 4, "l": 2, "iterations": 40, "members": 2, "check_every": 20}


def test_a_slice_starts_from_its_inner_neighbour(tmp_path: Path) -> None:
    write_volume(tmp_path / "volume.nii.gz")
    made = ddstudy.fit_volume(tmp_path / "volume.nii.gz", "3:7", start="neighbour", **SMALL)
    spec = asked(str(tmp_path / "volume.nii.gz"), **SMALL)
    (setting,), found = spec.search_space, load_slices(spec.target, "3:7")
    outputs, weights = {}, {}
    for index, inner in ((5, None), (6, 5), (4, 5), (3, 4)):
        start = weights[inner] if inner else None
        done = result(replace(job_of(spec, found.targets[index], setting), with_weights=True, start=start))
        outputs[index], weights[index] = done.output, done.weights
    assert np.array_equal(made.output, found.volume(outputs))
    short = ddstudy.fit_volume(tmp_path / "volume.nii.gz", "3:7", start="neighbour", start_iterations=10, **SMALL)
    assert dict(short.slices["iterations_done"]) == {3: 10, 4: 10, 5: 40, 6: 10}
    cold = ddstudy.fit_volume(tmp_path / "volume.nii.gz", "3:7", **SMALL)
    assert made.slices["psnr"][5] == cold.slices["psnr"][5]
    assert (made.slices["psnr"].drop(5) > cold.slices["psnr"].drop(5)).all()


def test_joint_slices_are_fitted_in_groups_of_one_size(tmp_path: Path) -> None:
    write_volume(tmp_path / "volume.nii.gz")
    made = ddstudy.fit_volume(tmp_path / "volume.nii.gz", joint=3, **SMALL)
    spec = asked(str(tmp_path / "volume.nii.gz"), **SMALL)
    (setting,), found = spec.search_space, load_slices(spec.target)
    outputs = {}
    for unit in ((6, 7, 8), (4, 5, 6), (1, 2, 3)):  # the last group of eight slices begins within that before
        jobs = [replace(job_of(spec, found.targets[index], setting), joint=3) for index in unit]
        stops = [threading.Event() for _ in jobs]
        events = evaluate_together(jobs, device="cpu", threads=1, stops=stops)
        outputs |= {unit[place]: event.output for place, event in events if isinstance(event, Result)}
    assert np.array_equal(made.output, found.volume(outputs))
    assert made.constant == (0, 9)
    assert list(made.slices.index) == list(range(1, 9))
    error = np.mean((made.output[..., 1:-1] - nibabel.load(tmp_path / "volume.nii.gz").get_fdata()[..., 1:-1]) ** 2)
    assert (10 ** (-made.slices["psnr"] / 10)).mean() * found.scale[1] ** 2 == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize(
    "task",
    [
        {"kind": "mri", "acceleration": 2.0, "center_fraction": 0.3, "sigma": 0.01},
        {"kind": "super_resolve", "factor": 3},
    ],
    ids=lambda task: task["kind"],
)
def test_operators_go_side_by_side(task: dict[str, Any], tmp_path: Path) -> None:
    write_volume(tmp_path / "volume.nii.gz")
    options = {**SMALL, "iterations": 10, "task": task, "joint": 2}
    made = [
        ddstudy.fit_volume(tmp_path / "volume.nii.gz", "3:7", engine=each, **options) for each in ("fused", "reference")
    ]
    np.testing.assert_allclose(made[0].output, made[1].output, atol=0.002 * made[0].output.max())
    np.testing.assert_allclose(made[0].slices["psnr"], made[1].slices["psnr"], atol=0.02)
    found = load_slices(TargetSpec(file=str(tmp_path / "volume.nii.gz")), "3:7")
    both = joint_of([measure(found.targets[index], TaskSpec(**task)) for index in (3, 4)])
    assert isinstance(both.operator, Joint)
    assert both.operator.shape == both.samples.shape
    x, y = (torch.randn(2, *shape, dtype=torch.float64) for shape in (both.shape, both.operator.shape))
    ahead, back = both.operator.forward(x), both.operator.adjoint(y)
    torch.testing.assert_close((ahead * y).sum(), (x * back).sum())


@pytest.mark.parametrize("options", [{}, {"start": "neighbour", "joint": 2}])
def test_a_volume_goes_on_after_kill_9_with_the_same_bytes(options: dict[str, Any], tmp_path: Path) -> None:
    write_volume(tmp_path / "volume.nii.gz")
    task, long = {"kind": "denoise", "sigma": 0.05}, {**SMALL, "iterations": 400, "check_every": 50}
    ddstudy.fit_volume(tmp_path / "volume.nii.gz", task=task, out=tmp_path / "whole", **long, **options)
    words = [f"--{key.replace('_', '-')}={value}" for key, value in {**long, **options, "sigma": 0.05}.items()]
    command = ["fit", "volume.nii.gz", "--all-slices", "--task=denoise", *words, "--out", "other"]
    folder = tmp_path / "other.slices"
    for wanted in (1, 3):
        driver = Driver(tmp_path, *command)
        while len(list(folder.glob("*.npz"))) < wanted and driver.wait(0.005) is None:
            pass
        assert driver.kill()
    driver = Driver(tmp_path, *command)
    assert driver.wait() == 0, driver.output
    assert "were finished before" in driver.output
    assert (tmp_path / "other.nii.gz").read_bytes() == (tmp_path / "whole.nii.gz").read_bytes()
    assert not folder.exists()
    tables = [pd.read_csv(tmp_path / f"{name}.csv", index_col="slice") for name in ("whole", "other")]
    same = [name for name in tables[0] if not re.match("seconds|waited|disturbed", name)]
    pd.testing.assert_frame_equal(tables[0][same], tables[1][same])


def test_slices_of_another_fit_are_refused_and_kept(tmp_path: Path) -> None:
    write_volume(tmp_path / "volume.nii.gz")
    stop = threading.Event()

    def fit_slices(**changes: Any) -> Any:
        options = {**SMALL, "out": "out", "stop": stop, "progress": lambda at: at.done and stop.set(), **changes}
        return ddstudy.fit_volume(tmp_path / "volume.nii.gz", **options)

    with pytest.raises(StoppedError):
        fit_slices()
    kept = sorted(Path("out.slices").iterdir())
    stop.clear()
    for changes in ({"learning_rate": 0.02}, {"slices": "2:5"}, {"joint": 3}, {"k": 5}):
        name = {"slices": "slices", "k": "space"}.get(next(iter(changes)), f"fit.{next(iter(changes))}")
        with pytest.raises(UserError, match=rf"holds slices of another fit; what differs: .*{name}"):
            fit_slices(**changes)
    assert sorted(Path("out.slices").iterdir()) == kept
    with FileLock("out.slices/.lock"), pytest.raises(UserError, match="another run is at work there"):
        fit_slices()
    npz = next(Path("out.slices").glob("*.npz"))
    npz.write_bytes(npz.read_bytes()[:100])
    with pytest.raises(UserError, match="Delete it: its slices are then fitted again"):
        fit_slices()
    npz.unlink()  # the only one: whatever comes next finds nothing to keep
    with pytest.raises(WorkError, match="out of memory"):
        fit_slices(learning_rate=0.02, progress=out_of_memory)
    assert not Path("out.slices").exists()
    assert fit_slices(progress=None).files == (Path("out.nii.gz"), Path("out.csv"))


def out_of_memory(at: ddstudy.SliceProgress) -> None:
    raise WorkError("out of memory")


def test_of_a_measured_volume_nothing_says_how_good_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_volume(tmp_path / "volume.nii.gz")
    words = ["fit", "volume.nii.gz", "--all-slices", "--task=denoise", "--measured", "--joint=8", "--k=8", "--s=4"]
    monkeypatch.setattr(sys, "argv", ["ddstudy", *words, "--l=2", "--members=2", "--iterations=300", "--out=made"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert "its truth is not known" in told
    assert "psnr" not in told
    table = pd.read_csv("made.csv", index_col="slice")
    assert not {"psnr", "judge"} & set(table)
    there, made = (nibabel.load(file).get_fdata() for file in ("volume.nii.gz", "made.nii.gz"))
    assert 1 < np.abs(made - there)[..., 1:-1].mean() < 40  # of 400: it is smooth, and so no copy
    assert np.array_equal(made[..., [0, -1]], there[..., [0, -1]])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"start": "warm"}, "fit.start: cannot be 'warm'"),
        ({"joint": 0}, "fit.joint: cannot be 0"),
        ({"start_iterations": 5}, "fit.start_iterations: is of slices that start from their neighbour"),
        ({"prior": "tv", "joint": 3, "task": {"kind": "denoise", "sigma": 0.1}}, "prior tv: has no weights"),
        ({"task": {"kind": "super_resolve", "source": "file"}}, "has another grid than the file"),
        ({"membres": 3}, "fit.membres: unknown key"),
    ],
)
def test_what_a_volume_cannot_have_is_refused(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    write_volume(tmp_path / "volume.nii.gz")
    with pytest.raises(UserError, match=re.escape(said)):
        ddstudy.fit_volume(tmp_path / "volume.nii.gz", **options)


def test_pictures_have_no_slices_and_studies_no_neighbours(picture: Path, make_spec: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="is a picture, it has no slices"):
        ddstudy.fit_volume(picture)
    with pytest.raises(UserError, match=r"fit\.start and fit\.joint are of slices: name them in \[cases\]"):
        make_spec(fit={"start": "neighbour"})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--joint", "3"], "--joint is for slices of a volume\nGive --all-slices or --slices, too."),
        (["--start-iterations", "30"], "--start-iterations is for slices of a volume"),
        (["--all-slices", "--slice", "30"], "exclude each other"),
        (["--all-slices", "--slices", "30"], "exclude each other"),
        (["--slices", "90:80"], "slices: '90:80' names no slice"),
    ],
)
def test_mistakes_about_slices_end_with_code_2(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ddstudy", "fit", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert not list(Path().iterdir())
