"""What an iteration of each task costs on the processor, beside that of `represent` and of the task's operator alone.

    python benchmarks/task_speed.py [--k 8 64] [--json FILE]

One member, one thread, fused engine, s = 8, l = 4, on random images. All tasks of a size take turns, stretch by
stretch; numbers are medians of stretches in milliseconds per iteration, of the processor's time (of all threads of this
process, which others on the machine do not lengthen) and of the wall's. `operator` is the operator alone, forward and
adjoint, time after time. `sum` is the processor's time of a step of the same network without operator and its update
and then of the operator, in turns as in a fit: what the one needs is no longer in the caches when the other is done.
`over` is how much a task takes more than that, in percent of it. Under a minute in all.
"""

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ddstudy.images.metrics import take_one_core
from ddstudy.priors.deep_decoder import DeepDecoder, deep_decoder
from ddstudy.solvers import Config, Problem, fused
from ddstudy.solvers.base import Ensemble
from ddstudy.solvers.fused.step import Step
from ddstudy.tasks.base import Operator
from ddstudy.tasks.operators import Downsampling, Mri

SIZES = ((96, 80), (197, 233))
REPEATS = 15
STRETCH = 0.03  # seconds


@dataclass(frozen=True)
class Identity:
    """A = 1: what the way through an operator costs itself."""

    shape: tuple[int, ...]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """A copy."""
        return images.clone()

    def adjoint(self, samples: torch.Tensor) -> torch.Tensor:
        """A copy."""
        return samples.clone()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--k", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    take_one_core()
    print("size     k  task              ms (processor)  ms (wall)  operator     sum  over")
    rows = []
    for height, width in SIZES:
        for k in options.k:
            for row in measured(height, width, k):
                rows.append(row)
                over = f"{100 * (row['processor_ms'] / row['sum_ms'] - 1):+5.1f}%"
                print(
                    f"{height}x{width:3d} {k:3d}  {row['task']:17s} {row['processor_ms']:14.3f} {row['wall_ms']:10.3f}"
                    f" {row['operator_ms']:9.3f} {row['sum_ms']:7.3f} {over}",
                    flush=True,
                )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


def measured(height: int, width: int, k: int) -> list[dict[str, Any]]:
    """A row for each task."""
    grey, complex_image = (1, height, width), (2, height, width)
    rng = np.random.default_rng(0)
    mask = np.broadcast_to(rng.random(width) < 0.3, (height, width)).copy()
    maps = (rng.normal(size=(4, height, width)) + 1j * rng.normal(size=(4, height, width))).astype(np.complex64)
    head: Literal["sigmoid", "linear"]
    tasks: dict[str, tuple[tuple[int, int, int], Operator | None, float]] = {
        "represent": (grey, None, 0),
        "denoise": (grey, None, 0),
        "inpaint": (grey, None, 0.5),
        "identity": (grey, Identity(grey), 0),
        "super-resolve": (grey, Downsampling(grey, 4, "bicubic"), 0),
        "represent complex": (complex_image, None, 0),
        "mri": (complex_image, Mri(mask), 0.7),
        "mri, 4 coils": (complex_image, Mri(mask, maps), 0.7),
    }
    calls: dict[str, list[Callable[[int], object]]] = {}
    with contextlib.ExitStack() as stack:
        for name, (shape, operator, missing) in tasks.items():
            head = "linear" if shape[0] == 2 else "sigmoid"
            prior = deep_decoder(k, 8, 4, height, width, shape[0], head)
            y = rng.random(operator.shape if operator else (1, *shape), dtype=np.float32)
            y[rng.random(y.shape) < missing] = np.nan
            x = rng.random((1, 1, *prior.input_shape), dtype=np.float32)
            work = Problem(prior, y, x, prior.initial_weights(rng)[None], operator=operator, shape=shape)
            ensemble = stack.enter_context(fused.ensemble([work], Config(), fused.kernels_for("cpu"), threads=1))
            calls[name] = [advanced(ensemble), stepped(work, operator)]
            if operator is not None:
                calls[name].append(applied(operator, shape))
        counts = {name: [iterations(call) for call in pair] for name, pair in calls.items()}
        times: dict[str, list[list[tuple[float, float]]]] = {name: [[] for _ in counts[name]] for name in calls}
        for _ in range(REPEATS):
            for name, pair in calls.items():
                for call, n, found in zip(pair, counts[name], times[name], strict=True):
                    found.append(timed(call, n))
    medians = {
        name: [[1e3 * statistics.median(column) for column in zip(*found, strict=True)] for found in times[name]]
        for name in tasks
    }
    return [
        {
            "rows": height, "columns": width, "k": k, "task": name, "processor_ms": found[0][0],
            "wall_ms": found[0][1], "sum_ms": found[1][0], "operator_ms": found[2][0] if len(found) > 2 else 0.0,
        }
        for name, found in medians.items()
    ]  # fmt: skip


def advanced(ensemble: Ensemble) -> Callable[[int], object]:
    """An ensemble, some iterations."""
    return lambda n: ensemble.advance(n, lambda _: False)


def stepped(work: Problem, operator: Operator | None) -> Callable[[int], object]:
    """Steps and updates of a problem's network as if there were no operator, and then the operator, some times."""
    prior, kernels = work.prior, fused.kernels_for("cpu")
    assert isinstance(prior, DeepDecoder)
    measurement = np.zeros((1, prior.channels, *prior.sizes[-1]), np.float32)
    step = Step(prior, measurement, 1, kernels)
    inputs, weights = step.pad(work.inputs), work.weights.copy()
    gradients, adam = np.empty_like(weights), kernels.Adam(weights, Config().learning_rate)

    def iterate(n: int) -> None:
        for _ in range(n):
            step.mse(inputs, weights, gradients)
            if operator is not None:
                operator.adjoint(operator.forward(torch.from_numpy(step.outputs[:, 0])))
            adam.update(gradients)

    return iterate


def applied(operator: Operator, shape: tuple[int, int, int]) -> Callable[[int], object]:
    """An operator forward and back, some times."""
    image = torch.rand((1, *shape))

    def apply(n: int) -> None:
        for _ in range(n):
            operator.adjoint(operator.forward(image))

    return apply


def iterations(call: Callable[[int], object]) -> int:
    """How many make a stretch."""
    call(3)
    return max(1, round(STRETCH / timed(call, 3)[0]))


def timed(call: Callable[[int], object], n: int) -> tuple[float, float]:
    """Seconds of the processor and of the wall for one of n iterations."""
    wall, processor = time.perf_counter(), time.process_time()
    call(n)
    return (time.process_time() - processor) / n, (time.perf_counter() - wall) / n


if __name__ == "__main__":
    main()
