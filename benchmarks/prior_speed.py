"""The torch loop's speed for each prior that it fits, beside other ways to fit the same members.

The packaged slice at a size, denoised (sigma 0.1), in one process, every way in turn, medians over rounds, of wall time
and of processor time, which other programs on the machine change less. `ours` has a thread per member, and on a GPU one
graph of all members. The others use all threads in each operation: `plain` fits one member after another with autograd
and Adam, as scripts do, `channels_last` likewise in that memory format, `compiled` likewise with torch.compile;
`together` has all members in one network by torch.func.vmap, which makes grouped convolutions and batched products of
them. `deepinv` is its `DeepImagePrior`, which fits the same network, one member after another; of conv_decoder its own,
which has biases besides. Compilation and a first iteration are no part of the times. PSNR is that of the members' mean
at the end.

    python benchmarks/prior_speed.py [--device cpu] [--size 128] [--members 5] [--iterations 40] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ddstudy.images.metrics import psnr
from ddstudy.images.targets import load_targets
from ddstudy.images.volumes import Target
from ddstudy.priors.conv_decoder import ConvDecoder
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

Spent = tuple[float, float, Any]  # wall seconds, processor seconds, outputs


def plain_loop(work: Problem, rate: float, iterations: int, device: str, how: str = "") -> Spent:
    """One member after another; `how` may be channels_last or compiled."""
    measured = torch.tensor(work.measurement, device=device)
    outputs, wall, processor = [], 0.0, 0.0
    made = work.prior.build().to(device)
    net: Any = torch.compile(made) if how == "compiled" else made
    if how == "channels_last":
        made.to(memory_format=torch.channels_last)
    for inputs, weights in zip(work.inputs, work.weights, strict=True):
        nn.utils.vector_to_parameters(torch.tensor(weights, device=device), made.parameters())
        x = torch.tensor(inputs, device=device)
        x = x.to(memory_format=torch.channels_last) if how == "channels_last" else x
        # one launch on a GPU; on a processor scripts have torch's default
        adam = torch.optim.Adam(made.parameters(), lr=rate, fused=device.startswith("cuda"))

        def step(net: Any = net, x: Any = x, adam: Any = adam) -> None:
            adam.zero_grad()
            nn.functional.mse_loss(net(x), measured).backward()
            adam.step()

        spent = timed(step, iterations, device)
        wall, processor = wall + spent[0], processor + spent[1]
        outputs.append(net(x).detach().cpu().numpy())
    return wall, processor, np.stack(outputs)


def together(work: Problem, rate: float, iterations: int, device: str) -> Spent:
    """All members in one network, their losses added."""
    measured = torch.tensor(work.measurement, device=device)
    nets = [work.prior.build() for _ in work.weights]
    for net, weights in zip(nets, work.weights, strict=True):
        nn.utils.vector_to_parameters(torch.tensor(weights), net.parameters())
        net.to(device)
    parameters, buffers = torch.func.stack_module_state(nets)
    x, net = torch.tensor(work.inputs, device=device), nets[0]
    outputs_of = torch.func.vmap(lambda own, inputs: torch.func.functional_call(net, (own, buffers), (inputs,)))
    adam = torch.optim.Adam(parameters.values(), lr=rate)

    def step() -> None:
        adam.zero_grad()
        (outputs_of(parameters, x) - measured).square().mean(dim=tuple(range(1, 5))).sum().backward()
        adam.step()

    wall, processor = timed(step, iterations, device)
    return wall, processor, outputs_of(parameters, x).detach().cpu().numpy()


def timed(step: Callable[[], None], iterations: int, device: str) -> tuple[float, float]:
    """Wall and processor seconds of so many steps, the first of which is not counted."""
    step()
    synchronize(device)
    start, used = time.perf_counter(), time.process_time()
    for _ in range(iterations - 1):
        step()
    synchronize(device)
    share = iterations / max(1, iterations - 1)
    return share * (time.perf_counter() - start), share * (time.process_time() - used)


def of_deepinv(work: Problem, rate: float, iterations: int, device: str) -> Spent:
    """deepinv's fit of the same network, or of its ConvDecoder of the same shape, one member after another."""
    import deepinv

    k, rows, columns = work.prior.input_shape
    y, physics = torch.tensor(work.measurement, device=device), deepinv.physics.Denoising()
    outputs, wall, processor = [], 0.0, 0.0
    for _ in work.weights:
        net = work.prior.build()
        if isinstance(work.prior, ConvDecoder):
            net = deepinv.models.ConvDecoder(work.prior.output_shape, (rows, columns), len(work.prior.sizes), k)
        net.to(device)
        model = deepinv.models.DeepImagePrior(net, (k, rows, columns), iterations, rate)
        synchronize(device)
        start, used = time.perf_counter(), time.process_time()
        output = model(y, physics)
        synchronize(device)
        wall, processor = wall + time.perf_counter() - start, processor + time.process_time() - used
        outputs.append(output.detach().cpu().numpy())
    return wall, processor, np.stack(outputs)


def ours(work: Problem, rate: float, iterations: int, device: str) -> Spent:
    """The solver that studies use."""
    threads = torch.get_num_threads()
    method = choose(device, "auto", "auto", work.prior)
    snapshots = fit(work, Config(rate), [1, iterations], device=device, threads=threads, method=method)
    first = next(snapshots)
    used = time.process_time()
    end = next(snapshots)
    share = iterations / max(1, iterations - 1)
    return share * (end.seconds - first.seconds), share * (time.process_time() - used), end.outputs


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
    parser.add_argument("--priors", nargs="+", choices=list(FITS), default=list(FITS))
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
    print(f"{'prior':18} {'way':13} {'wall':>8} {'processor':>10}  {'PSNR':>6}")
    for kind in chosen.priors:
        work = problem(Fit(FITS[kind]), measurement, FitSpec(members=chosen.members), NoiseSpec(), PriorSpec(kind=kind))
        ways: dict[str, Callable[..., Spent]] = {"ours": ours, "plain": plain_loop, "together": together}
        ways |= {how: partial(plain_loop, how=how) for how in ("channels_last", "compiled")}
        if kind != "siren":  # whose input are coordinates: deepinv draws noise
            ways["deepinv"] = of_deepinv
        seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        scores = {}
        for _ in range(chosen.rounds):
            for way, run in ways.items():
                wall, processor, outputs = run(work, RATES.get(kind, 0.01), chosen.iterations, chosen.device)
                seconds[way].append((wall, processor))
                scores[way] = psnr(np.clip(outputs.mean(axis=0)[0], 0, 1), target.image)
        for way in ways:
            medians = (statistics.median(some) for some in zip(*seconds[way], strict=True))
            wall, processor = (1e3 * median / chosen.iterations for median in medians)
            found[f"{kind} {way}"] = {"ms": wall, "processor ms": processor, "psnr": scores[way]}
            print(f"{kind:18} {way:13} {wall:8.2f} {processor:10.2f}  {scores[way]:6.2f}", flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
