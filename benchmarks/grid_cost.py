"""What a grid costs the thesis' way and ddstudy's way, both really run, and what all 2,268 settings would cost.

    python benchmarks/grid_cost.py [--k 8 64 192] [--scale N] [--json FILE]

The thesis' way: each setting is a fit of its own and each member a plain torch fit of its own on all cores, with no
early stop. ddstudy's way: one fit passes all budgets, members together, with the engine that the device gets. The
sub-grid is k by the thesis' budgets 2,000, 5,000 and 7,000, all divided by `--scale`, on the whole slice at 256x320
with s = 16, l = 5; both ways have the same seeds and are asked for the same outputs. Seconds are those of the fits.
Early stops of unstable fits, which save more, do not happen in so few iterations and are not counted.

The projection multiplies each k's seconds per iteration by the iterations of the thesis' grid, scaled to other s, l and
tilings by the operations that they need.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ddstudy.execution.executors import resolve_device, usable_cores
from ddstudy.images.metrics import psnr
from ddstudy.images.tiling import join
from ddstudy.images.volumes import load_target
from ddstudy.solvers import Config, Problem, choose, fit
from ddstudy.spec.axes import Fit, budgets_by_fit
from ddstudy.spec.files import read_spec
from ddstudy.spec.options import FitSpec, NoiseSpec, TargetSpec
from ddstudy.study.evaluate import device_name, problem
from ddstudy.study.planner import operations
from ddstudy.tasks.base import Measurement
from ddstudy.tasks.cases import Case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--k", type=int, nargs="+", default=[8, 16, 32, 64, 96, 128, 192])
    parser.add_argument("--scale", type=int, default=250, help="what the thesis' budgets are divided by")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    target = load_target(TargetSpec(size=(256, 320)))
    device, threads = resolve_device("auto"), usable_cores()
    budgets = [budget // options.scale for budget in (2000, 5000, 7000)]
    torch.set_num_threads(threads)
    print(f"{target.name}, 256x320, {device_name(device)}, {threads} threads, budgets {budgets}, {choose(device)}")
    print("  k   thesis' way   ddstudy's way   ratio   PSNR at each budget, thesis' / ddstudy's")
    rows = []
    for k in options.k:
        work = problem(
            Fit({"k": k, "s": 16, "l": 5, "noise": "uniform", "tiling": "1x1"}),
            Measurement.of(target.image),
            FitSpec(),
            NoiseSpec(),
        )

        def score(outputs: NDArray[np.float32]) -> float:
            return psnr(join(outputs.mean(axis=0), "1x1", 256, 320), target.image)

        ours, ours_psnr = 0.0, []
        list(fit(work, Config(), [1], device=device, threads=threads))  # compiles
        for snapshot in fit(work, Config(), budgets, device=device, threads=threads):
            ours = snapshot.seconds
            ours_psnr.append(score(snapshot.outputs))
        theirs, theirs_psnr = 0.0, []
        for budget in budgets:
            start = time.perf_counter()
            outputs = np.stack([plain_fit(work, member, budget, device) for member in range(len(work.weights))])
            theirs += time.perf_counter() - start
            theirs_psnr.append(score(outputs))
        rows.append(
            {"k": k, "thesis_s": theirs, "ddstudy_s": ours, "ratio": theirs / ours, "budgets": budgets,
             "psnr_thesis": theirs_psnr, "psnr_ddstudy": ours_psnr}
        )  # fmt: skip
        scores = ", ".join(f"{a:.2f} / {b:.2f}" for a, b in zip(theirs_psnr, ours_psnr, strict=True))
        print(f"{k:3d} {theirs:11.1f} s {ours:13.2f} s {theirs / ours:7.1f}   {scores}", flush=True)
    thesis, ddstudy = (sum(float(row[name]) for row in rows) for name in ("thesis_s", "ddstudy_s"))  # type: ignore[arg-type]
    print(f"sub-grid of {3 * len(rows)} settings: {thesis:.0f} s and {ddstudy:.1f} s, ratio {thesis / ddstudy:.1f}")
    if set(options.k) == {8, 16, 32, 64, 96, 128, 192}:
        study = read_spec(Path(__file__).parent.parent / "studies" / "thesis.toml")
        total = {"thesis_s": 0.0, "ddstudy_s": 0.0}
        for what, wanted in budgets_by_fit(study.search_space).items():
            row = next(row for row in rows if row["k"] == what["k"])
            scale = operations(what, Case.of(target)) / operations(
                Fit({"k": what["k"], "s": 16, "l": 5, "noise": "uniform", "tiling": "1x1"}), Case.of(target)
            )
            total["thesis_s"] += float(row["thesis_s"]) / sum(budgets) * sum(wanted) * scale  # type: ignore[arg-type]
            total["ddstudy_s"] += float(row["ddstudy_s"]) / max(budgets) * max(wanted) * scale  # type: ignore[arg-type]
        days = {name: seconds / 86400 for name, seconds in total.items()}
        print(f"all 2,268 settings, projected: {days['thesis_s']:.0f} days and {days['ddstudy_s']:.1f} days")
        rows.append({"projected_days": days})
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


def plain_fit(work: Problem, member: int, iterations: int, device: str) -> NDArray[np.float32]:
    """One member as one would write it in torch."""
    net = work.prior.build()
    nn.utils.vector_to_parameters(torch.tensor(work.weights[member]), net.parameters())
    net.to(device)
    inputs, measurement = (torch.tensor(a, device=device) for a in (work.inputs[member], work.measurement))
    adam = torch.optim.Adam(net.parameters(), lr=Config().learning_rate)
    for _ in range(iterations):
        adam.zero_grad()
        nn.functional.mse_loss(net(inputs), measurement).backward()
        adam.step()
    with torch.no_grad():
        output: NDArray[np.float32] = net(inputs).cpu().numpy()
    return output


if __name__ == "__main__":
    main()
