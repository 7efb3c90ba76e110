"""`ddstudy init`: a study file of one's own image that runs, and takes as long as one has."""

from pathlib import Path

import drivers
import nibabel
import numpy as np
import pytest

import ddstudy
from ddstudy import first_study
from ddstudy.errors import UserError
from ddstudy.spec.files import read_spec


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    x, y, z = np.mgrid[0:40, 0:36, 0:9]
    image = np.sin(x / 5 + z / 3) * np.cos(y / 4)
    nibabel.Nifti1Image(image.astype(np.float32), np.eye(4)).to_filename(tmp_path / "brain.nii.gz")
    return tmp_path / "brain.nii.gz"


def test_what_is_written_is_a_study_that_fits_into_the_time(volume: Path, tmp_path: Path) -> None:
    code, said = drivers.here("init", "brain.nii.gz", "--measured", "--minutes", "1", "--plane", "coronal")
    assert code == 0, said
    assert "Wrote brain.toml: " in said
    text = (tmp_path / "brain.toml").read_text()
    spec = read_spec(tmp_path / "brain.toml")
    assert (spec.target.file, spec.target.plane, spec.task.source) == (str(volume), "coronal", "file")
    assert all(len(line) <= 120 for line in text.splitlines())
    assert {tuple(spec.search_space[axis]) for axis in "ks"} <= {
        tuple(g[axis]) for g in first_study.GRIDS for axis in "ks"
    }
    # it runs as it stands; one setting of it is enough to see
    study = ddstudy.run("brain.toml", trials=1, store=f"sqlite:///{tmp_path}/store.db", threads=1)
    assert study.view.measured >= 1
    assert drivers.here("init", "brain.nii.gz") == (
        2,
        "ddstudy: brain.toml: is there already\nName another file with --out.\n",
    )


def test_little_time_makes_the_image_smaller_and_none_is_refused(
    volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a forecast of one second for each 10,000 pixels and setting, since that of this machine is never the same."""

    def seconds(spec: ddstudy.StudySpec, stop: object) -> float:
        rows, columns = spec.target.size or (1000, 1000)
        return rows * columns / 10_000 * len(spec.search_space)

    monkeypatch.setattr(first_study, "_seconds", seconds)
    np.save(tmp_path / "large.npy", np.random.default_rng(0).random((1000, 1000)))
    large = first_study.write(tmp_path / "large.npy", minutes=160.0)
    assert (large.spec.target.size, len(large.spec.search_space)) == (None, 96)
    middle = first_study.write(tmp_path / "large.npy", "middle.toml", minutes=14.0)
    assert (middle.spec.target.size, len(middle.spec.search_space)) == (None, 8)
    small = first_study.write(tmp_path / "large.npy", "small.toml", minutes=8.0)
    assert (small.spec.target.size, len(small.spec.search_space)) == ((500, 500), 18)
    assert read_spec(tmp_path / "small.toml") == small.spec
    with pytest.raises(UserError, match=r"not even the smallest study takes less than 0\.001 minutes"):
        first_study.write(tmp_path / "large.npy", "none.toml", minutes=0.001)
    assert not (tmp_path / "none.toml").exists()


@pytest.mark.parametrize(
    ("out", "why"),
    [
        ("there.toml", "there.toml: is there already"),
        ("circle.toml", "circle.toml: is there already"),
        ("none/study.toml", "none: no such folder"),
        ("/proc/study.toml", "/proc/study.toml: cannot be written"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_tried(
    volume: Path, tmp_path: Path, out: str, why: str
) -> None:
    """A circle of links ended in a traceback, minutes later."""
    (tmp_path / "there.toml").touch()
    (tmp_path / "circle.toml").symlink_to("circle.toml")
    told: list[str] = []
    with pytest.raises(UserError, match=why):
        first_study.write(volume, out, tell=told.append)
    assert told == []
