import tomllib
from pathlib import Path
from typing import Any

import pytest

from ddstudy.errors import UserError
from ddstudy.spec import known_keys, parse_spec, read_spec

STUDIES = sorted((Path(__file__).parent.parent / "studies").glob("*.toml"))
SMALLEST = """
[space]
k = [8]
s = [8]
l = [4]
iterations = [100]
"""


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_studies_of_the_repository_are_valid(path: Path) -> None:
    assert read_spec(path).name == path.stem


@pytest.mark.parametrize(
    ("extra", "expected", "valid"),
    [
        ("foo = 1", "foo: unknown key", "space"),
        ("[serch]\nsampler = 'tpe'", "serch: unknown key", "Did you mean 'search'?"),
        ("[fit]\nmember = 5", "fit.member: unknown key", "Did you mean 'members'?"),
        ("[fit]\nmembers = '5'", "fit.members: input should be a valid integer, not '5'", ">= 1"),
        ("[fit]\nmembers = true", "fit.members", "a whole number"),
        ("[fit]\nlearning_rate = nan", "fit.learning_rate", "a number > 0"),
        ("[fit]\ndevice = 'gpu'", "fit.device", "cuda"),
        ("[search]\nsampler = 'cma'", "search.sampler", '"nsga3"'),
        ("[search]\ntrials = 0", "search.trials", ">= 1"),
        ("[objectives]\npsnrr = 'maximize'", "objectives.psnrr", "psnr_foreground"),
        ("[objectives]\npsnr = 'max'", "objectives.psnr", '"maximize", "minimize"'),
        ("[objectives]", "objectives", "direction"),
        ("[target]\nslice = -1", "target.slice", '"mid"'),
        ("[target]\nsize = [4, 4]", "target.size[0]", ">= 8"),
        ("[target]\nsize = 64", "target.size", "rows, columns"),
        ("[target]\npercentiles = [5.0, 1.0]", "target.percentiles", "lower and upper"),
        ("[noise]\nblur_kernel = 4", "noise.blur_kernel", "3, 5, 7"),
        ("[noise]\nrange = [1, 0]", "noise.range", "lowest and highest"),
        ("[stability]\ncv_percent = -1", "stability.cv_percent", "> 0"),
        ("[search]\npruner = 'asha'", "search.pruner", '"median", "hyperband", "wilcoxon"'),
        ("[search]\npruner = 'median'", "search.pruner needs a search", ""),
        (
            "[search]\nsampler = 'tpe'\npruner = 'median'\n[objectives]\npsnr = 'maximize'\nseconds = 'minimize'",
            "search.pruner needs psnr = 'maximize' as the only objective",
            "",
        ),
        ("[fit]\nmembers = 1\n[objectives]\ncv_percent = 'minimize'", "members of at least 2", ""),
    ],
)
def test_what_is_not_valid_is_refused_with_file_key_and_what_is(
    tmp_path: Path, extra: str, expected: str, valid: str
) -> None:
    path = tmp_path / "study.toml"
    first_table = extra.startswith("[")
    path.write_text(SMALLEST + extra if first_table else extra + "\n" + SMALLEST)
    with pytest.raises(UserError) as caught:
        read_spec(path)
    first, second = str(caught.value).split("\n")
    assert first.startswith(f"{path}: ")
    assert expected in first
    assert valid in second


@pytest.mark.parametrize("values", ["k = [0]", "k = []", "k = [8, 8]", "k = [8.5]", "k = 8", "kk = [8]"])
def test_impossible_values_of_an_axis(tmp_path: Path, values: str) -> None:
    path = tmp_path / "study.toml"
    path.write_text(SMALLEST.replace("k = [8]", values))
    with pytest.raises(UserError, match=r"space\.k"):
        read_spec(path)


def test_missing_file_no_toml_and_missing_space(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such study file"):
        read_spec(tmp_path / "none.toml")
    (tmp_path / "a.toml").write_text("k = [")
    with pytest.raises(UserError, match="not valid TOML"):
        read_spec(tmp_path / "a.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="UTF-8"):
        read_spec(tmp_path / "b.toml")
    (tmp_path / "c.toml").write_text("")
    with pytest.raises(UserError, match="space: missing"):
        read_spec(tmp_path / "c.toml")
    with pytest.raises(UserError, match="cannot be read"):
        read_spec(tmp_path)


def test_target_file_is_relative_to_the_study(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(SMALLEST + "[target]\nfile = 'brain.nii'")
    assert read_spec(tmp_path / "study.toml").target.file == str(tmp_path / "brain.nii")


def _fingerprint(**tables: Any) -> dict[str, Any]:
    return parse_spec({"name": "a", **tomllib.loads(SMALLEST), **tables}, "test").fingerprint()


def test_fingerprint_holds_what_changes_results_and_nothing_else() -> None:
    same = [
        {"name": "b"},
        {"description": "text"},
        {"images": False},
        {"search": {"trials": 5}},
        {"fit": {"device": "cpu"}},
        {"target": {"file": "elsewhere.nii"}},
    ]
    other = [
        {"fit": {"seed": 1}},
        {"fit": {"members": 3}},
        {"search": {"sampler": "tpe"}},
        {"objectives": {"ssim": "maximize"}},
        {"noise": {"feature_size": 2.0}},
        {"stability": {"prune": False}},
    ]
    assert all(_fingerprint(**change) == _fingerprint() for change in same)
    assert all(_fingerprint(**change) != _fingerprint() for change in other)
    order = [{"psnr": "maximize", "seconds": "minimize"}, {"seconds": "minimize", "psnr": "maximize"}]
    assert _fingerprint(objectives=order[0]) != _fingerprint(objectives=order[1])  # objectives are ordered


def test_whole_numbers_are_numbers() -> None:
    assert parse_spec({"name": "a", **tomllib.loads(SMALLEST), "target": {"percentiles": [1, 99]}}, "t").target


def test_every_key_is_described() -> None:
    keys = known_keys()
    assert len({key for key, _, _ in keys}) == len(keys) > 30
    assert all(description for _, _, description in keys)
