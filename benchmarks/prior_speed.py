"""The torch loop's speed for each prior that it fits, beside a plain loop over members, and deepinv's fit of one.

The packaged slice at a size, denoised (sigma 0.1), in one process, every way in turn, medians over rounds. The plain
loop fits one member after another with autograd and Adam and all threads, as scripts do; so does deepinv's
`DeepImagePrior`, with its own ConvDecoder, which has biases besides. PSNR is that of the members' mean at the end.

    python benchmarks/prior_speed.py [--device cpu] [--size 128] [--members 5] [--iterations 40] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ddstudy.images.metrics import psnr
from ddstudy.images.targets import load_targets
from ddstudy.images.volumes import Target
from ddstudy.solvers import Config, Problem, choose, fit
from ddstudy.spec.axes import Fit
from ddstudy.spec.files import parse_spec
from ddstudy.spec.options import FitSpec, NoiseSpec, PriorSpec
from ddstudy.study.evaluate import device_name, problem
from ddstudy.tasks.cases import case_of

SPACE = {"k": [1], "s": [1], "l": [1], "iterations": [1]}
FITS = {
    "conv_decoder": {"k": 32, "s": 16, "l": 5, "noise": "uniform", "tiling": "1x1"},
    "dip": {"k": 32, "l": 4, "noise": "uniform", "tiling": "1x1"},
    "siren": {"k": 128, "l": 3, "tiling": "1x1"},
    "deep_decoder_2019": {"k": 64, "l": 4, "noise": "uniform", "tiling": "1x1"},
}
RATES = {"siren": 1e-3}


def plain_loop(work: Problem, rate: float, iterations: int, device: str) -> tuple[float, Any]:
    """One member after another, seconds and outputs."""
    measured = torch.tensor(work.measurement, device=device)
    outputs, spent = [], 0.0
    for inputs, weights in zip(work.inputs, work.weights, strict=True):
        net = work.prior.build()
        nn.utils.vector_to_parameters(torch.tensor(weights), net.parameters())
        net, x = net.to(device), torch.tensor(inputs, device=device)
        adam = torch.optim.Adam(net.parameters(), lr=rate)
        net(x)
        synchronize(device)
        start = time.perf_counter()
        for _ in range(iterations):
            adam.zero_grad()
            nn.functional.mse_loss(net(x), measured).backward()
            adam.step()
        synchronize(device)
        spent += time.perf_counter() - start
        outputs.append(net(x).detach().cpu().numpy())
    return spent, np.stack(outputs)


def of_deepinv(work: Problem, rate: float, iterations: int, device: str) -> tuple[float, Any]:
    """deepinv's fit of its ConvDecoder of the same shape, one member after another."""
    import deepinv

    k, *_ = work.prior.input_shape
    rows, columns = work.prior.input_shape[1:]
    y, physics = torch.tensor(work.measurement, device=device), deepinv.physics.Denoising()
    outputs, spent = [], 0.0
    for _ in work.weights:
        net = deepinv.models.ConvDecoder(work.prior.output_shape, (rows, columns), len(work.prior.sizes), k).to(device)
        model = deepinv.models.DeepImagePrior(net, (k, rows, columns), iterations, rate)
        synchronize(device)
        start = time.perf_counter()
        output = model(y, physics)
        synchronize(device)
        spent += time.perf_counter() - start
        outputs.append(output.detach().cpu().numpy())
    return spent, np.stack(outputs)


def ours(work: Problem, rate: float, iterations: int, device: str) -> tuple[float, Any]:
    """The solver that studies use."""
    threads = torch.get_num_threads()
    method = choose(device, "auto", "auto", work.prior)
    (end,) = fit(work, Config(rate), [iterations], device=device, threads=threads, method=method)
    return end.seconds, end.outputs


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    spec = parse_spec(
        {
            "name": "speed", "space": SPACE, "target": {"size": [chosen.size, chosen.size]},
            "task": {"kind": "denoise", "sigma": 0.1},
        },
        "speed",
    )  # fmt: skip
    target = load_targets(spec)
    assert isinstance(target, Target)
    (setting,) = spec.search_space
    measurement = case_of(spec, target, setting).measurement
    found: dict[str, Any] = {
        "device": device_name(chosen.device),
        **{k: v for k, v in vars(chosen).items() if k != "json"},
    }
    print(f"{found['device']}, {chosen.size}x{chosen.size}, {chosen.members} members, ms per iteration of all members")
    print(f"{'prior':18} {'way':8} {'ms':>8}  {'PSNR':>6}")
    for kind, axes in FITS.items():
        work = problem(Fit(axes), measurement, FitSpec(members=chosen.members), NoiseSpec(), PriorSpec(kind=kind))
        ways: dict[str, Callable[..., tuple[float, Any]]] = {"ours": ours, "plain": plain_loop}
        if kind == "conv_decoder":
            ways["deepinv"] = of_deepinv
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        scores = {}
        for _ in range(chosen.rounds):
            for way, run in ways.items():
                spent, outputs = run(work, RATES.get(kind, 0.01), chosen.iterations, chosen.device)
                seconds[way].append(1e3 * spent / chosen.iterations)
                scores[way] = psnr(np.clip(outputs.mean(axis=0)[0], 0, 1), target.image)
        for way in ways:
            found[f"{kind} {way}"] = {"ms": statistics.median(seconds[way]), "psnr": scores[way]}
            print(f"{kind:18} {way:8} {statistics.median(seconds[way]):8.2f}  {scores[way]:6.2f}", flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
