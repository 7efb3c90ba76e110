import itertools
import pickle
from pathlib import Path
from typing import Any

import pytest
from points import fit_of, setting_of

from ddstudy.errors import UserError
from ddstudy.spec.axes import Space, budgets_by_fit
from ddstudy.spec.files import parse_spec, read_spec, stored_spec
from ddstudy.spec.options import OPTIONS, THESIS, rows_and_columns
from ddstudy.spec.schema import CASE, StudySpec

STUDIES = Path(__file__).parent.parent / "studies"
ONE = {"k": [64], "s": [16], "l": [5], "iterations": [2000], "noise": ["blur3"], "tiling": ["4x5"]}


def spec_of(**space: Any) -> StudySpec:
    return parse_spec({"name": "some", "space": {**ONE, **space}}, "some.toml")


def space_of(**lists: Any) -> Space:
    return spec_of(**lists).search_space


def test_thesis_grid_has_189_settings_for_each_of_12_pairs() -> None:
    settings = list(read_spec(STUDIES / "thesis.toml").search_space)
    pairs = {(s["noise"], s["tiling"]) for s in settings}
    assert len(settings) == len(set(settings)) == 2268
    assert len(pairs) == 12
    assert all(sum((s["noise"], s["tiling"]) == pair for s in settings) == 189 for pair in pairs)
    assert len(read_spec(STUDIES / "thesis_whole_blur3.toml").search_space) == 189


def test_one_fit_serves_all_its_budgets() -> None:
    groups = budgets_by_fit(read_spec(STUDIES / "thesis.toml").search_space)
    assert len(groups) == 756
    assert set(groups.values()) == {(2000, 5000, 7000)}


def test_identities_are_readable_unique_and_stable() -> None:
    space = space_of(k=[8, 16], s=[8], l=[4, 5], iterations=[10, 20], noise=["uniform", "blur3"], tiling=["1x1", "4x5"])
    assert len({setting.id for setting in space}) == len(space) == 32
    fit = fit_of(64, 16, 5, "blur3", "4x5")
    assert fit.id == "k64-s16-l5-blur3-4x5"
    # pinned: seeds derive from it, so a change would change every result
    assert fit.digest == 0x5B7DA4FE5A91A8119DAC4F5FABA526A7
    setting = setting_of(64, 16, 5, 2000, "blur3", "4x5")
    assert setting.fit == fit
    assert fit.at(2000) == setting
    assert list(fit.at(2000)) == list(THESIS)
    assert setting.id == "k64-s16-l5-blur3-4x5-i2000"
    assert pickle.loads(pickle.dumps(setting)) == setting
    assert fit != setting


def test_an_axis_at_its_default_changes_neither_identity_nor_seed() -> None:
    """Whatever option becomes an axis."""
    (old,) = space_of()
    others = {"target.slice": 94, "target.volume": 1, "fit.members": 2, "fit.seed": 7, "fit.check_every": 10}
    for path, option in OPTIONS.items():
        parent, wanted = option.needs or ("", ())
        meaningless = (parent == "prior.kind" and "deep_decoder" not in wanted) or (
            parent not in ("", "prior.kind") and "blur3" not in wanted and "adam" not in wanted
        )
        if option.is_of_thesis or option.default is None or meaningless:
            continue
        # which need a task or cases, see tests/test_tasks.py, test_cases.py and test_neighbours.py
        if path in ("fit.stop", "fit.start", "fit.joint", CASE):
            continue
        words = [
            value
            for value in (
                "coronal",
                "percentile",
                "interpolated",
                "last",
                "fused",
                "float32",
                "inpaint",
                "conv_decoder",
                "radam",
                "step",
                "l1",
                "normal",
            )
            if option.accepts(value)
        ]
        other = others.get(path, words[0] if words else next(value for value in (5, 0.003) if option.accepts(value)))
        same, new = sorted(space_of(**{path: [option.default, other]}), key=lambda setting: len(setting.id))
        assert (same.id, same.fit.digest) == (old.id, old.fit.digest)
        assert new.id.startswith("k64-s16-l5-blur3-4x5-")
        assert new.id.endswith("-i2000")
        assert new.fit.digest != old.fit.digest


def test_identities_of_any_options_are_unique() -> None:
    space = space_of(**{
        "fit.learning_rate": [0.003, 0.01, 1], "fit.keep": ["last", "best", "average"], "target.slice": [0, 94],
        "fit.members": [1, 5], "fit.seed": [0, 1], "noise.channels": ["independent", "interpolated"],
        "noise.blur_kernel": [3, 5, 7], "target.plane": ["axial", "sagittal"],
    })  # fmt: skip
    assert len({setting.id for setting in space}) == len(space) == 3 * 3 * 2 * 2 * 2 * 2 * 3 * 2
    assert "k64-s16-l5-blur3-4x5-slice94-lr0.003-last-i2000" in {setting.id for setting in space}


def test_an_option_that_does_not_apply_is_no_part_of_a_setting() -> None:
    space = space_of(**{"noise": ["uniform", "simplex"], "noise.feature_size": [1.0, 2.0, 4.0], "iterations": [5, 10]})
    settings = list(space)
    assert len(space) == len(settings) == len(set(settings)) == 2 * (1 + 3)
    for setting in settings:
        assert ("noise.feature_size" in setting) == (setting["noise"] == "simplex")
        assert setting in space
        params = space.params(setting)
        assert params.keys() == set(space.names)
        assert space.setting(params) == setting
    assert fit_of(64, 16, 5, "uniform", "4x5").at(5) in space
    assert fit_of(64, 16, 5, "simplex", "4x5").at(5) not in space  # of which feature size?


def test_tables_at_a_point() -> None:
    spec = spec_of(**{"fit.learning_rate": [0.01, 0.003], "target.slice": [7], "fit.members": [2]})
    fast, slow = sorted(spec.search_space, key=lambda setting: setting["fit.learning_rate"])
    assert spec.at(fast).fit == spec.fit.model_copy(update={"learning_rate": 0.003, "members": 2})
    assert spec.at(slow.fit).fit.learning_rate == 0.01
    assert spec.at(slow.fit).target.slice == 7
    assert spec_of().at(next(iter(spec_of().search_space))) == spec_of()


def test_axes_are_written_as_keys_or_tables_and_stored() -> None:
    one, other = (
        spec_of(fit={"keep": ["last"], "learning_rate": [1, 0.5]}),
        spec_of(**{"fit.learning_rate": [0.5, 1.0], "fit.keep": ["last"]}),
    )
    assert one.fingerprint() == other.fingerprint()
    assert one.search_space.names == (*THESIS, "fit.learning_rate", "fit.keep")
    assert one.search_space["fit.learning_rate"] == (0.5, 1.0)
    assert stored_spec(one.stored(), "a store") == (one, [])
    # what a table says of an option that is an axis is of no account
    base = parse_spec({"name": "some", "space": {**ONE, "fit.keep": ["last"]}, "fit": {"keep": "average"}}, "some.toml")
    assert base.fingerprint() == spec_of(**{"fit.keep": ["last"]}).fingerprint()


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            {"fit.lr": [1.0]},
            r"space\.fit\.lr: unknown key\nDid you mean 'fit\.learning_rate'\?|space\.fit\.lr: unknown key",
        ),
        ({"fit": {"learning_rat": [1.0]}}, r"space\.fit\.learning_rat: unknown key\nDid you mean 'fit\.learning_rate'"),
        (
            {"fit.learning_rate": [0.1, -1.0]},
            r"space\.fit\.learning_rate\[1\]: .*greater than 0.*\n.*a list of a number",
        ),
        ({"fit.keep": ["first"]}, r"space\.fit\.keep\[0\]: .*'last', 'best' or 'average'"),
        ({"fit.keep": []}, r"space\.fit\.keep: .*at least 1"),
        ({"fit.learning_rate": [0.1, 0.1]}, r"space\.fit\.learning_rate: must not name a value twice"),
        ({"noise.feature_size": [2.0]}, r"space\.noise\.feature_size is for noise = 'simplex' only"),
        ({"executor.mix": [True]}, r"space\.executor\.mix: unknown key"),
        ({"target.size": [[8, 8]]}, r"space\.target\.size: unknown key"),
    ],
)
def test_axes_that_are_none_are_refused_in_words(space: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        spec_of(**space)


@pytest.mark.parametrize("order", [("noise", "noise.feature_size"), ("noise.feature_size", "noise")])
def test_a_key_beside_a_list_of_its_table_needs_quotes(tmp_path: Path, order: tuple[str, str]) -> None:
    lists = {"noise": 'noise = ["simplex"]', "noise.feature_size": "noise.feature_size = [1.0]"}
    head = "[space]\nk = [4]\ns = [4]\nl = [2]\niterations = [5]\n"
    path = tmp_path / "study.toml"
    path.write_text(head + "\n".join(lists[key] for key in order))
    with pytest.raises(UserError, match=r'not valid TOML: .*\n.*needs quotes: "noise\.feature_size" = '):
        read_spec(path)
    path.write_text(path.read_text().replace("noise.feature_size", '"noise.feature_size"'))
    assert read_spec(path).search_space["noise.feature_size"] == (1.0,)


def test_membership_of_a_space() -> None:
    space = space_of(k=[8], s=[8], l=[4], iterations=[10, 20], noise=["uniform"], tiling=["1x1"])
    assert setting_of(8, 8, 4, 10, "uniform", "1x1") in space
    assert setting_of(8, 8, 4, 15, "uniform", "1x1") not in space
    assert "k8" not in space
    assert space.setting({"k": 8}) is None
    odd = itertools.product((0, -1, 1.5, "8", None, True, [8], float("nan")), THESIS[:4])
    whole = dict(next(iter(space)))
    assert all(space.setting({**whole, axis: value}) is None for value, axis in odd)


def test_tiling_is_rows_by_columns() -> None:
    assert rows_and_columns("4x5") == (4, 5)
