"""Benchmarks start, and what they replay is read as results: two did not after the store had changed."""

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from ddstudy.spec.files import read_spec
from ddstudy.store.database import Store

ROOT = Path(__file__).parents[1]


def loaded(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))  # they share functions
    return runpy.run_path(str(ROOT / f"benchmarks/{name}.py"), run_name="loaded")


@pytest.mark.parametrize("name", sorted(path.stem for path in ROOT.glob("benchmarks/*.py")))
def test_it_starts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = set(sys.modules)
    assert loaded(name, monkeypatch)["__doc__"]
    for extra in set(sys.modules) - known:
        if (ROOT / f"benchmarks/{extra}.py").exists():
            del sys.modules[extra]


def test_a_replayed_search_is_one_of_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    search = loaded("search_quality", monkeypatch)
    spec, table = (
        read_spec(ROOT / "studies/reduced.toml"),
        search["read_table"](ROOT / "benchmarks/results/reduced.csv"),
    )
    found = search["ours"](
        "random", 0, spec, table, {"psnr": "maximize"}, lambda searched: len(searched.fits) > 3, tmp_path
    )
    with Store(f"sqlite:///{tmp_path}/searches.db", read_only=True) as store:
        view = store.view("reduced-random-0-1")
    assert not view.left_out
    assert view.measured >= sum(len(settings) for _, settings in found.fits[:3])


def test_a_factor_without_swizzle_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = """#shared = #ttg.swizzled_shared<{{vec = {0}, perPhase = 1, maxPhase = {0}, order = [1, 0]}}>
#smem = #ttg.shared_memory
  %1 = ttg.local_load %0 token %2 : !ttg.memdesc<32x64xf32, #shared, #smem, mutable> -> tensor<32x64xf32, {1}>
  %3 = tt.dot %1, %4, %5
"""
    conflicts = loaded("gpu_kernels", monkeypatch)["conflicts"]
    operand = "#ttg.dot_op<{opIdx = 1, parent = #mma, kWidth = 1}>"
    assert [conflicts(listing.format(*case)) for case in ((1, operand), (4, operand), (1, "#blocked"))] == [1, 0, 0]
    with pytest.raises(ValueError, match="another way"):
        conflicts("%3 = tt.dot %1, %4, %5")
