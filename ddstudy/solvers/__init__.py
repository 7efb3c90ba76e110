"""Fits: an ensemble of untrained networks is fitted to one measurement; a fit is a generator of snapshots.

`fit` takes a `Problem` (the measurement, inputs and starting weights as arrays, and the operator by which an image
becomes the measurement) and a `Config`, and yields a `Snapshot` at each iteration asked for. Whoever consumes it
decides what to do with a snapshot and may stop at any of them. No schedule depends on the total number of iterations,
so a snapshot at 2,000 equals a fit that was asked for 2,000.

`fit_together` fits several problems of equal shapes, a *pack*: their members go through the same launches, which fills
a GPU, and each has the numbers of its own fit alone. Each ends when it likes; the others go on.

Two solvers of one protocol (`base.Solver`) compute the same: `fused`, by hand-derived gradients in compiled kernels,
for the Deep Decoders, and `torch_loop`, plain torch with autograd, for any prior, for devices without kernels and as
the oracle; it is called the `reference` engine in study files. `choose` says which one a prior gets on a device.
`fidelity` has the losses, through operators, too, and `optimisers` those of torch; `cuda` says which thread may do what
on a GPU, and makes graphs. `direct` applies priors without weights, which are not fitted.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from ddstudy.errors import UserError
from ddstudy.priors.base import Prior
from ddstudy.priors.deep_decoder import DeepDecoder
from ddstudy.priors.handcrafted import Handcrafted
from ddstudy.solvers.base import Config, Optimiser, Problem, Snapshot, Solver

__all__ = ["Config", "Method", "Problem", "Snapshot", "Solver", "choose", "fit", "fit_together", "solver_of"]


@dataclass(frozen=True)
class Method:
    """How a fit is computed.

    Attributes:
        engine: `fused` or `reference`; `direct` of a prior without weights.
        precision: of the factors of matrix products; everything else, and their sums, are float32.
    """

    engine: Literal["fused", "reference", "direct"]
    precision: Literal["float32", "bfloat16"]

    def __str__(self) -> str:
        """As recorded with every trial."""
        return f"{self.engine} {self.precision}"


def choose(
    device: str,
    engine: str = "auto",
    precision: str = "auto",
    prior: Prior | Handcrafted | None = None,
    optimiser: Optimiser = "adam",
) -> Method:
    """The fastest method that a device has for a prior within what is asked for.

    Args:
        device: a torch device, `cpu`, `cuda`, `cuda:1`, `mps`.
        engine: `auto`, `fused` or `reference`.
        precision: `auto`, `float32` or, on CUDA GPUs, `bfloat16`. `auto` is float32: see docs/speed.md.
        prior: that is fitted; a Deep Decoder when not given.
        optimiser: `Config.optimiser`.

    Raises:
        UserError: the device does not have it, or the prior, or the optimiser.
    """
    if isinstance(prior, Handcrafted):
        return Method("direct", "float32")
    if prior is not None and not isinstance(prior, DeepDecoder):
        if engine == "fused":
            raise UserError("fit.engine: fused kernels are for the Deep Decoders only", "Valid: auto, reference.")
        engine = "reference"
    if optimiser == "lbfgs":  # whose line search evaluates the loss as often as it likes
        if engine == "fused":
            raise UserError(
                "fit.engine: fused kernels have no fit.optimiser = 'lbfgs'", "Valid there: auto, reference."
            )
        engine = "reference"
    kernels = device == "cpu" or (device.startswith("cuda") and _has_triton())
    if engine == "fused" and not kernels:
        raise UserError(f"fit.engine: there are no fused kernels for {device} here", "Valid: auto, reference.")
    found: Literal["fused", "reference"] = "fused" if kernels and engine != "reference" else "reference"
    if precision != "bfloat16":
        return Method(found, "float32")
    if found == "reference" or device == "cpu":
        raise UserError(
            f"fit.precision: bfloat16 needs the fused engine on a CUDA GPU, this is the {found} engine on {device}",
            "Valid there: auto, float32.",
        )
    return Method(found, "bfloat16")


def _has_triton() -> bool:
    from importlib.util import find_spec

    return find_spec("triton") is not None


def solver_of(method: Method) -> Solver:
    """The solver that computes a method."""
    if method.engine == "reference":
        from ddstudy.solvers import torch_loop

        return torch_loop.solve
    from ddstudy.solvers import fused

    return partial(fused.solve, precision=method.precision)


def fit(
    problem: Problem,
    config: Config,
    stops: Sequence[int],
    *,
    device: str = "cpu",
    threads: int = 1,
    method: Method | None = None,
) -> Iterator[Snapshot]:
    """Fits all members and yields a snapshot at every stop, with its outputs.

    Args:
        problem: what is fitted; its arrays are not changed.
        config: how it is optimised.
        stops: iterations to yield at, ascending, >= 1.
        device: a torch device, `cpu`, `cuda`, `cuda:1`, `mps`.
        threads: CPU threads that members are spread over; results do not depend on it.
        method: how it is computed; what `choose` finds for the device when not given.
    """
    pack = fit_together([problem], config, [stops], device=device, threads=threads, method=method)
    return (snapshot.fetched() for _, snapshot in pack)


def fit_together(
    problems: Sequence[Problem],
    config: Config,
    stops: Sequence[Sequence[int]],
    *,
    device: str = "cpu",
    threads: int = 1,
    method: Method | None = None,
    ended: Sequence[threading.Event] | None = None,
) -> Iterator[tuple[int, Snapshot]]:
    """Fits several problems of one kind at once and yields the snapshots of each at its stops.

    Args:
        problems: what is fitted, all of one `Problem.kind`.
        config: how they are optimised.
        stops: of each problem, iterations to yield at, ascending, >= 1.
        device: a torch device, `cpu`, `cuda`, `cuda:1`, `mps`.
        threads: CPU threads that members are spread over; results do not depend on it.
        method: how it is computed; what `choose` finds for the device when not given.
        ended: of each problem, an event that ends it soon, without a further snapshot, while the others go on; set by
            whoever consumes the snapshots, or by another thread.

    Yields:
        The index of a problem and its snapshot.

    Raises:
        ValueError: the problems are of several kinds.
        UserError: the device does not have the method.
    """
    if len({problem.kind for problem in problems}) != 1:
        raise ValueError("problems that are fitted together have one prior, one operator and arrays of one shape")
    prior = problems[0].prior
    engine, precision = (method.engine, method.precision) if method else ("auto", "auto")
    method = choose(device, engine, precision, prior, config.optimiser)
    ended = ended or [threading.Event() for _ in problems]
    return solver_of(method)(problems, config, stops, device=device, threads=threads, ended=ended)
