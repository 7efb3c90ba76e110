from pathlib import Path

from ddstudy.spec.axes import Fit, SearchSpace, Setting, budgets_by_fit, rows_and_columns
from ddstudy.spec.files import read_spec

STUDIES = Path(__file__).parent.parent / "studies"


def test_thesis_grid_has_189_settings_for_each_of_12_pairs() -> None:
    settings = list(read_spec(STUDIES / "thesis.toml").space.search_space)
    pairs = {(s.noise, s.tiling) for s in settings}
    assert len(settings) == len(set(settings)) == 2268
    assert len(pairs) == 12
    assert all(sum((s.noise, s.tiling) == pair for s in settings) == 189 for pair in pairs)
    assert len(read_spec(STUDIES / "thesis_whole_blur3.toml").space.search_space) == 189


def test_one_fit_serves_all_its_budgets() -> None:
    groups = budgets_by_fit(read_spec(STUDIES / "thesis.toml").space.search_space)
    assert len(groups) == 756
    assert set(groups.values()) == {(2000, 5000, 7000)}


def test_identities_are_readable_unique_and_stable() -> None:
    space = SearchSpace((8, 16), (8,), (4, 5), (10, 20), ("uniform", "blur3"), ("1x1", "4x5"))
    assert len({setting.id for setting in space}) == len(space) == 32
    fit = Fit(64, 16, 5, "blur3", "4x5")
    assert fit.id == "k64-s16-l5-blur3-4x5"
    # pinned: seeds derive from it, so a change would change every result
    assert fit.digest == 0x5B7DA4FE5A91A8119DAC4F5FABA526A7
    assert Setting(64, 16, 5, 2000, "blur3", "4x5").fit == fit
    assert Setting(64, 16, 5, 2000, "blur3", "4x5").id == "k64-s16-l5-blur3-4x5-i2000"


def test_membership_of_a_space() -> None:
    space = SearchSpace((8,), (8,), (4,), (10, 20), ("uniform",), ("1x1",))
    assert Setting(8, 8, 4, 10, "uniform", "1x1") in space
    assert Setting(8, 8, 4, 15, "uniform", "1x1") not in space
    assert "k8" not in space


def test_tiling_is_rows_by_columns() -> None:
    assert rows_and_columns("4x5") == (4, 5)
