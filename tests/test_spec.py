import os
import tomllib
from pathlib import Path
from typing import Any

import pytest

from ddstudy.errors import UserError
from ddstudy.spec.files import known_keys, parse_spec, read_spec
from ddstudy.spec.options import OPTIONS
from ddstudy.spec.schema import StudySpec

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
        ("K = [16]", "K: unknown key", "Did you mean 'space.k'?"),
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
            "search.pruner needs psnr or judge",
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
    first, *_, last = str(caught.value).split("\n")
    assert first.startswith(f"{path}: ")
    assert expected in first
    assert valid in last


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


def test_all_mistakes_are_said_and_unknown_keys_first(tmp_path: Path) -> None:
    """`K = [16]` once said that k is missing, and one more."""
    path = tmp_path / "study.toml"
    path.write_text("members = 4\n[space]\nK = [16]\ns = [4, 0, 'x']\nl = [2]\niterations = [5]\n'a b' = 1\n")
    with pytest.raises(UserError) as caught:
        read_spec(path)
    assert str(caught.value).replace(f"{path}: ", "").split("\n") == [
        "space.K: unknown key",
        f"Did you mean 'k'? Valid in space: {', '.join((*OPTIONS, 'prior'))}.",
        "space.a b: unknown key",
        f"Valid in space: {', '.join((*OPTIONS, 'prior'))}.",
        "members: unknown key",
        f"Did you mean 'fit.members'? Valid in a study file: {', '.join(StudySpec.model_fields)}.",
        "space.k: missing",
        "Valid: a list of a whole number >= 1 and <= 1024 - channels.",
        "space.s[1]: input should be greater than or equal to 1, not 0",
        "space.s[2]: input should be a valid integer, not 'x'",
        "Valid: a list of a whole number >= 1 and <= 1024 - scale factors.",
    ]
    path.write_text(SMALLEST.replace("[8]", str([0] * 5000), 1) + "\n".join(f"u{n} = 1" for n in range(5000)))
    with pytest.raises(UserError) as caught:
        read_spec(path)
    assert len(str(caught.value).split("\n")) < 50
    assert str(caught.value).endswith("\nAnd 9,980 more mistakes.")


def test_only_regular_files_of_some_size_are_read(tmp_path: Path) -> None:
    """A pipe was waited for, /dev/zero ended in a traceback, /dev/full in a lack of memory."""
    os.mkfifo(tmp_path / "pipe.toml")
    for path in (tmp_path / "pipe.toml", Path("/dev/zero"), Path("/dev/full")):
        with pytest.raises(UserError, match=r"cannot be read \(no regular file\)"):
            read_spec(path)
    large, deep, number = (tmp_path / f"{name}.toml" for name in ("large", "deep", "number"))
    large.write_text("#" * 2**20 + "\n")
    deep.write_text("a = " + "[" * 10000)
    number.write_text("a = " + "9" * 10000)
    for path, said in ((large, "too large"), (deep, "nested too deeply"), (number, "not valid TOML")):
        with pytest.raises(UserError, match=said):
            read_spec(path)


def test_a_mark_in_front_and_a_name_for_a_file_without_one(tmp_path: Path) -> None:
    path = tmp_path / "my study.toml"
    path.write_text(SMALLEST, encoding="utf-8-sig")
    with pytest.raises(UserError, match=r"name: cannot be 'my study'"):
        read_spec(path)
    assert read_spec(path, "mine").name == "mine"


def test_a_target_that_is_no_path_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(SMALLEST + '[target]\nfile = "a\\u0000b.nii"')
    with pytest.raises(UserError, match=r"target\.file"):
        read_spec(tmp_path / "study.toml")


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
