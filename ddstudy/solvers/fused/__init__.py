"""The fused solver: the Deep Decoder by hand-derived gradients, in compiled kernels for processors and CUDA GPUs.

`step` has the mathematics, `kernels` what it asks of a device, `kernels_cpu` (with `simd`) and `kernels_cuda` are the
two kinds, and `groups` iterates the members of problems in threads. Here is the solver, and how much memory it needs.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from ddstudy.priors.deep_decoder import DeepDecoder
from ddstudy.solvers.base import Config, Problem, Snapshot, snapshots
from ddstudy.solvers.fused.groups import ensemble
from ddstudy.solvers.fused.kernels import Kernels
from ddstudy.solvers.fused.step import Step

__all__ = ["capacity", "ensemble", "kernels_for", "memory", "solve"]

MOST_MEMBERS = 40  # members of one launch; more gain nothing: an H100 is full (of 16 channels or fewer, twice as many)
USABLE = 0.9  # of a GPU's free memory: the allocator cannot give away all of it
OPERATOR_COPIES = 6  # of an image and its samples that exist at a time while an operator is applied
LIBRARIES_BYTES = 256e6  # code of kernels, graphs and their pools


def solve(
    problems: Sequence[Problem],
    config: Config,
    stops: Sequence[Sequence[int]],
    *,
    device: str,
    threads: int,
    ended: Sequence[threading.Event],
    precision: Literal["float32", "bfloat16"] = "float32",
) -> Iterator[tuple[int, Snapshot]]:
    """See `ddstudy.solvers.base.Solver`; precision is that of the factors of matrix products.

    Raises:
        TypeError: the prior is not a Deep Decoder.
    """
    opened = ensemble(problems, config, kernels_for(device), threads=threads, precision=precision)
    return snapshots(opened, problems, stops, ended)


def kernels_for(device: str) -> Kernels:
    """The kernels of a device."""
    if device == "cpu":
        from ddstudy.solvers.fused import kernels_cpu

        return kernels_cpu
    from ddstudy.solvers.fused.kernels_cuda import TritonKernels

    return TritonKernels(device)


def memory(
    prior: DeepDecoder,
    tiles: int,
    members: int,
    threads: int,
    kernels: Kernels | None = None,
    *,
    config: Config | None = None,
    samples: int = 0,
) -> int:
    """Bytes that a fit needs: work arrays, the members' weights and inputs, and what looking at their outputs takes.

    Of a GPU, too, without one: `kernels_for("cuda:0")`. What CUDA and its libraries take themselves is not in it.

    Args:
        prior: the decoder.
        tiles: of the measurement.
        members: of all problems that are fitted together.
        threads: of the fit, on the processor.
        kernels: of the device, by default the processor's; nothing is allocated there.
        config: of the fit; averages, jitter and losses other than the mean squared error take some.
        samples: of an operator's measurement; 0: there is no operator.
    """
    kernels = kernels or kernels_for("cpu")
    h, w = prior.sizes[0]
    picture = 4 * tiles * prior.channels * math.prod(prior.sizes[-1])
    config = config or Config()
    if not config.is_plain_mse:  # such losses take the way of operators
        samples = samples or tiles * prior.channels * math.prod(prior.sizes[-1])
    # of a member: the average of its outputs, its input with noise, and the gradient by its outputs
    more = picture * (config.average > 0) + picture * (samples > 0)
    more += 4 * tiles * h * w * int(kernels.padded(prior.k)) * (config.jitter > 0)
    # roughly: samples, residuals and images on their way through an operator
    applied = (samples > 0) * OPERATOR_COPIES * (4 * samples + picture)
    if not kernels.BATCHED:
        step = Step(prior, np.zeros((tiles, prior.channels, *prior.sizes[-1]), np.float32), 1, kernels)
        work: int = min(threads, members) * step.nbytes
        states = members * 4 * picture  # a snapshot, and its errors in double precision
        return (
            work
            + states
            + min(threads, members) * applied
            + members * more
            + members * 4 * (5 * prior.parameters + tiles * h * w * int(step.width))
        )
    from ddstudy.solvers.fused.kernels_cuda import TritonKernels

    assert isinstance(kernels, TritonKernels)  # as all that compute members at once
    measurement = np.zeros((tiles, prior.channels, *prior.sizes[-1]), np.float32)
    step = Step(prior, measurement, members, kernels.without_memory())
    # weights, their gradients, Adam's two moments and the kept ones, and inputs: twice while a group takes over from
    # another, and some more; a measurement, where the pixels are in it, and a state's errors in double precision
    each = 4 * (2 * 5 * prior.parameters + 4 * prior.parameters + 2 * tiles * h * w * step.width) + 8 * picture
    return int(step.nbytes + members * (each + 2 * more + applied))


def capacity(
    prior: DeepDecoder, tiles: int, device: str, bytes_free: float, *, config: Config | None = None, samples: int = 0
) -> int:
    """Members that are fitted fastest together on a GPU: no more than its free memory holds, or than are of use.

    Args:
        prior: the decoder.
        tiles: of the measurement.
        device: a torch device with kernels that compute all members at once.
        bytes_free: of it.
        config: of the fit, as `memory` takes it.
        samples: likewise.
    """
    kernels = kernels_for(device)
    one, two = (memory(prior, tiles, members, 1, kernels, config=config, samples=samples) for members in (1, 2))
    room = USABLE * bytes_free - LIBRARIES_BYTES - (2 * one - two)
    most = MOST_MEMBERS if prior.k > 16 else 2 * MOST_MEMBERS
    return min(most, int(room // (two - one)))
