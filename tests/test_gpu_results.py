"""The models of a GPU's memory and time against what an H100 measured (benchmarks/gpu.py)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from points import fit_of

from ddstudy.images.tiling import tile_shape
from ddstudy.images.volumes import Target
from ddstudy.priors.deep_decoder import deep_decoder
from ddstudy.solvers import fused
from ddstudy.spec.options import rows_and_columns
from ddstudy.study.forecasting import Forecast, Work
from ddstudy.study.planner import operations
from ddstudy.tasks.cases import Case


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(__file__).parents[1] / "benchmarks/results/gpu.json").read_text())
    return found


def test_the_memory_of_packs_is_what_the_model_says(measured: dict[str, Any]) -> None:
    pytest.importorskip("triton", reason="Triton is not available for this platform")
    for row in measured["packs"]:
        rows, columns = rows_and_columns(row["tiling"])
        prior = deep_decoder(row["k"], row["s"], row["l"], *tile_shape(256, 320, row["tiling"]))
        model = fused.memory(prior, rows * columns, row["members"], 1, fused.kernels_for("cuda:0")) / 2**30
        assert row["gib"] - 0.005 <= model <= 2 * row["gib"] + 0.01  # it was rounded to hundredths


def test_a_line_through_operations_forecasts_seconds(measured: dict[str, Any]) -> None:
    target = Target(np.zeros((1, 256, 320), np.float32), "zeros", None)
    fits = [(fit_of(row["k"], 16, 5, "uniform", "1x1"), row["fused_ms"]) for row in measured["speed"]]
    fits += [
        (fit_of(row["k"], row["s"], row["l"], "uniform", row["tiling"]), row["members"] * row["ms"])
        for row in measured["packs"]
        if row["members"] == 5
    ]
    forecast = Forecast()
    for fit, ms in fits:
        forecast.learn("fused", operations(fit, Case.of(target)), ms / 1e3)
    works = [Work({"fused": (int(operations(fit, Case.of(target))), 1)}) for fit, _ in fits]
    ratios = [1e3 * forecast.fitting(work) / ms for work, (_, ms) in zip(works, fits, strict=True)]
    assert 0.8 < np.median(ratios) < 1.2
    assert 0.5 < min(ratios) < max(ratios) < 1.5
