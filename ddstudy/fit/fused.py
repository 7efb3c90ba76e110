"""The fused step: a Deep Decoder's loss and gradients by hand, in few passes over memory.

Four facts make it fast.

1. *Normalisation folds away.* It is a R + b per channel, so the convolution after it is R (diag(a) C) + b C: the
   normalised tensor is never made. A constant passes unchanged through upsampling.
2. *Products happen at low resolution*, before upsampling, and upsampling, ReLU and the sums that normalisation needs
   are one pass.
3. *The last block is never stored.* It is the largest by far; R is made again from its low-resolution product in each
   of three passes: sums; output, loss and its slope g; gradients. There dL/dY = g v^T for the head's weights v.
4. *Normalisation's backward needs no pass of its own.* With G = R^T dZ, which dC = diag(a) G + b (sum dZ) needs anyway,
   sum dY R = (C * G) 1 and sum dY = C (sum dZ); then dR = a dY + alpha + beta R per channel with
   sum dY xhat = (sum dY R - mean sum dY) / sd, beta = -a (sum dY xhat) / (N sd), alpha = -a (sum dY) / N - beta mean.

Where a channel is constant in a tile, its normalisation is exactly zero there, and so is its 1 / sd as we use it: the
rounding of R, times 1 / sqrt(eps) in every block on the way back, would outgrow the gradient of all other tiles.

`Step` is that step for any kernel module: `kernels_cpu` (numba) or `kernels_cuda` (Triton), which offer the same
functions. Tiles share weights, not statistics; members are the leading axis of every array.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import math
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddstudy.fit import Look, Problem, setting
from ddstudy.priors.deep_decoder import Geometry

_log = logging.getLogger("ddstudy")


MOST = 40  # members of one launch; more gain nothing: an H100 is full (of 16 channels or fewer, twice as many)
USABLE = 0.9  # of a GPU's free memory: the allocator cannot give away all of it
LIBRARIES_BYTES = 256e6  # code of kernels, graphs and their pools


@dataclass(frozen=True, eq=False)
class Axis:
    """Bilinear upsampling along one axis, align_corners=False.

    Output x is (1 - fraction[x]) input[i] + fraction[x] input[i + 1] with start[i] <= x < start[i + 1]; the last
    input stands alone.

    Attributes:
        start: int64 (inputs + 1,).
        fraction: (outputs,), in [0, 1).
    """

    start: NDArray[np.int64]
    fraction: NDArray[Any]


def axis(inputs: int, outputs: int, dtype: str) -> Axis:
    """The weights of upsampling `inputs` samples to as many or more `outputs`."""
    source = np.maximum((np.arange(outputs) + 0.5) * inputs / outputs - 0.5, 0)
    lower = np.floor(source).astype(np.int64)
    fraction = np.where(lower < inputs - 1, source - lower, 0)
    return Axis(np.searchsorted(lower, np.arange(inputs + 1)), fraction.astype(dtype))


class Step:
    """Work arrays and order of the fused step.

    Args:
        shape: geometry of the decoder.
        tiles: (T, C, h, w), the target of `mse`.
        members: decoders that are computed together.
        kernels: the kernel module.
        precision: of the factors of matrix products, "float32" or, on CUDA GPUs, "bfloat16"; sums are float32.
        dtype: "float32", or "float64" for tests.

    Attributes:
        outputs: (M, T, C, h, w), written by `forward`.
        losses: float64 (M,), mean squared errors, written by `mse`.
    """

    def __init__(
        self,
        shape: Geometry,
        tiles: NDArray[Any],
        members: int,
        kernels: Any,
        precision: str = "float32",
        dtype: str = "float32",
    ) -> None:
        self.shape, self.kernels, self.precision, self.dtype = shape, kernels, precision, dtype
        M, T, C, l, k = members, len(tiles), shape.channels, shape.blocks, shape.k
        K = self.width = kernels.padded(k)
        self.at = [i * (k * k + 2 * k) for i in range(l + 1)]
        self.axes = [
            (axis(h, H, dtype), axis(w, W, dtype)) for (h, w), (H, W) in zip(shape.sizes, shape.sizes[1:], strict=False)
        ]
        self.tiles = kernels.array(tiles[None], dtype)
        self.r = [kernels.zeros((M, T, *kernels.plane(*size, K)), dtype) for size in shape.sizes[1:-1]]
        self.z = [
            kernels.zeros((M, T, *kernels.plane(kernels.rows_kept(h, i == l - 1), w, K)), dtype)
            for i, (h, w) in enumerate(shape.sizes[:-1])
        ]
        # a block's gradients are used by the block before it only, so two arrays serve all blocks
        stored = shape.sizes[: l - 1] if kernels.IN_PLACE else shape.sizes[:l]
        room = [kernels.zeros((M * T * h * w * K,), dtype) for h, w in stored[-2:]]
        self.d = [
            room[(i - len(stored)) % len(room)][: M * T * h * w * K].reshape(M, T, *kernels.plane(h, w, K))
            for i, (h, w) in enumerate(stored)
        ]
        if kernels.IN_PLACE:
            self.d.append(self.z[-1])
        # of each normalisation, float64 (M, T, 4, K): mean, 1 / sd, scale a and shift b; the input's is the identity
        self.affine = [kernels.zeros((M, T, 4, K), "float64") for _ in range(l + 1)]
        self.affine[0][:, :, 2] = 1
        self.head = kernels.zeros((M, T, C, K), dtype)
        self.slopes = kernels.zeros((M, T, C, *shape.sizes[-1]), dtype)
        self.outputs = kernels.zeros((M, T, C, *shape.sizes[-1]), dtype)
        self.losses = kernels.zeros((M,), "float64")
        self.scratch = kernels.Scratch(self)

    @property
    def nbytes(self) -> int:
        """Memory of the work arrays."""
        arrays = [*vars(self).values(), *vars(self.scratch).values()]
        flat = [a for value in arrays for a in (value if isinstance(value, list) else [value])]
        owners = {id(owner): owner.nbytes for owner in map(_owner, flat) if owner is not None}
        return sum(owners.values())

    def pad(self, inputs: NDArray[Any]) -> Any:
        """Input tensors (M, T, k, h0, w0) as the step takes them."""
        missing = self.width - inputs.shape[2]
        padded = np.pad(inputs, [(0, 0), (0, 0), (0, missing), (0, 0), (0, 0)])
        return self.kernels.array(self.kernels.arranged(padded), self.dtype)

    def mse(self, inputs: Any, weights: Any, gradients: Any) -> Any:
        """Loss (M,) of the members, and its gradient (M, parameters) in the order of `DeepDecoder.parameters()`."""
        self._blocks(inputs, weights)
        self.kernels.head(self, weights, gradients, self.tiles, self.kernels.MSE)
        self._back(inputs, weights, gradients)
        return self.losses

    def forward(self, inputs: Any, weights: Any) -> Any:
        """The members' outputs (M, T, C, h, w)."""
        self._blocks(inputs, weights)
        self.kernels.head(self, weights, weights, self.tiles, self.kernels.OUTPUT)
        return self.outputs

    def backward(self, inputs: Any, weights: Any, slopes: Any, gradients: Any) -> None:
        """The seam for any loss: dL/d output (M, T, C, h, w) to dL/d weights (M, parameters).

        Once after each `forward`, whose work arrays it uses up.
        """
        self.kernels.head(self, weights, gradients, slopes, self.kernels.GIVEN)
        self._back(inputs, weights, gradients)

    def _blocks(self, inputs: Any, weights: Any) -> None:
        for i in range(self.shape.blocks):
            self.kernels.forward(self, i, inputs, weights)

    def _back(self, inputs: Any, weights: Any, gradients: Any) -> None:
        for i in reversed(range(self.shape.blocks)):
            self.kernels.backward(self, i, inputs, weights, gradients)


def _owner(value: Any) -> Any:
    """The array whose memory a view uses."""
    while isinstance(getattr(value, "base", None), np.ndarray):
        value = value.base
    if getattr(value, "_base", None) is not None:  # torch's name for it
        value = value._base
    return value if hasattr(value, "nbytes") else None


def kernels_for(device: str) -> Any:
    """The kernels of a device."""
    if device == "cpu":
        from ddstudy.fit import kernels_cpu

        return kernels_cpu
    from ddstudy.fit.kernels_cuda import Kernels

    return Kernels(device)


@contextlib.contextmanager
def ensemble(
    problems: Sequence[Problem], kernels: Any, *, threads: int, precision: str = "float32"
) -> Iterator[_Ensemble]:
    """The members of some problems, for kernels of either kind; see `ddstudy.fit.Ensemble`.

    A member's numbers depend neither on `threads` nor on the members beside it. Everything is done in the ensemble's
    own threads: a fit on a GPU has one, with a stream of its own.
    """
    left = threading.Event()
    count = 1 if kernels.TOGETHER else min(threads, sum(len(problem.weights) for problem in problems))
    with ThreadPoolExecutor(count, initializer=kernels.begin) as pool:
        made = _Ensemble(problems, kernels, precision, pool, count, left)
        try:
            with setting(left):  # whoever leaves, by Ctrl-C for example, does not wait for a hundred iterations
                pool.submit(made.set_up).result()
                yield made
        finally:
            pool.submit(made.close).result()


class _Ensemble:
    """Groups of members, and the steps that they take turns in: one for each thread."""

    def __init__(
        self,
        problems: Sequence[Problem],
        kernels: Any,
        precision: str,
        pool: ThreadPoolExecutor,
        threads: int,
        left: threading.Event,
    ) -> None:
        self.problems = dict(enumerate(problems))
        self.kernels, self.precision, self.pool, self.threads, self.left = kernels, precision, pool, threads, left
        self.targets: dict[int, _Target] = {}
        self.groups: list[_Group] = []
        self.steps: list[Step] = []
        self.rounds = 0

    def set_up(self) -> None:
        """Makes groups and steps. Compiles and touches everything: that is not part of the fit's time."""
        everyone = [(index, m) for index, problem in self.problems.items() for m in range(len(problem.weights))]
        parts = [everyone] if self.kernels.TOGETHER else [[member] for member in everyone]
        problem = self.problems[everyone[0][0]]
        with self.kernels.alone(), _telling_of_compilation():
            self.steps = [
                Step(problem.shape, problem.tiles, len(parts[0]), self.kernels, self.precision)
                for _ in range(self.threads)
            ]
            self.targets = _targets(self.problems, self.kernels)
            for step in self.steps:
                first = _Group(self.problems, self.targets, parts[0], step)
                first.iterate(step)
                first.forward(step)
            self.groups = [_Group(self.problems, self.targets, part, self.steps[0]) for part in parts]
            for group in self.groups:
                group.get_ready(self.steps[0])
            self.kernels.wait()

    def close(self) -> None:
        """Gives back what the device has of this ensemble; its snapshots' outputs are gone with it."""
        with self.kernels.alone():
            self.kernels.wait()
            for group in self.groups:
                group.close()
            self.targets, self.groups, self.steps = {}, [], []
            self.rounds += 1

    def advance(self, iterations: int, ended: Callable[[int], bool]) -> None:
        """See `Ensemble`."""
        queue = _Queue(self.groups, iterations, lambda g: self.left.is_set() or all(map(ended, g.rows)))

        def work(step: Step) -> None:
            queue.work(step)
            self.kernels.wait()

        self.rounds += 1
        list(self.pool.map(work, self.steps))

    def look(self, indices: Collection[int]) -> dict[int, Look]:
        """See `Ensemble`; of a GPU, numbers that are few come at once, and outputs when they are asked for."""
        groups = [group for group in self.groups if not group.rows.keys().isdisjoint(indices)]
        free: SimpleQueue[Step] = SimpleQueue()
        for step in self.steps:
            free.put(step)

        def show(group: _Group) -> dict[int, Look]:
            step = free.get()  # there are as many as threads
            with self.kernels.alone():
                group.show(step)
                shown = step.outputs
                if not self.kernels.TOGETHER:
                    shown = self.kernels.numbers(shown)  # before the next group takes the step
                looks = {}
                for index in group.rows.keys() & set(indices):
                    outputs = shown[group.rows[index]]
                    losses, ranges = self.kernels.summary(outputs, *self.targets[index])
                    fetch = partial(self._fetch, outputs, self.rounds) if self.kernels.TOGETHER else outputs.copy
                    looks[index] = Look(losses, ranges, fetch)
            free.put(step)
            return looks

        found = list(self.pool.map(show, groups))
        return {index: _joined([looks[index] for looks in found if index in looks]) for index in indices}

    def _fetch(self, shown: Any, rounds: int) -> NDArray[np.float32]:
        if rounds != self.rounds:
            raise RuntimeError("the fit has gone on since: its outputs are no longer there")
        outputs: NDArray[np.float32] = self.pool.submit(self.kernels.numbers, shown).result()
        return outputs

    def drop(self, indices: Collection[int]) -> None:
        """See `Ensemble`."""
        for index in indices:
            del self.problems[index]
        self.groups, gone = [g for g in self.groups if g.rows.keys() <= self.problems.keys()], self.groups
        if not self.groups:  # all members are one group
            self.pool.submit(self._close_ranks, *gone).result()

    def _close_ranks(self, old: _Group) -> None:
        """Goes on with fewer members in one group."""
        with self.kernels.alone():
            old.close()
            self.steps.clear()
            self.set_up()
            self.groups[0].take_over(old)
            self.kernels.wait()


class _Target(NamedTuple):
    """A problem's target where the kernels compute: tiles (1, T, C, h, w), and which of their numbers are pixels."""

    tiles: Any
    pixels: Any


def _targets(problems: Mapping[int, Problem], kernels: Any) -> dict[int, _Target]:
    """Of each problem; those of equal tiles share them."""
    made: dict[int, _Target] = {}
    for index, problem in problems.items():
        alike = (made[i].tiles for i in made if np.array_equal(problems[i].tiles, problem.tiles))
        tiles = next(alike, None)
        if tiles is None:
            tiles = kernels.array(problem.tiles[None], "float32")
        made[index] = _Target(tiles, None if problem.pixels is None else kernels.array(problem.pixels, "int64"))
    return made


def _joined(looks: list[Look]) -> Look:
    """Of members that were looked at in several groups."""
    if len(looks) == 1:
        return looks[0]
    return Look(
        np.concatenate([look.losses for look in looks]),
        np.concatenate([look.ranges for look in looks]),
        lambda: np.concatenate([look.fetch() for look in looks]),
    )


def memory(shape: Geometry, tiles: int, members: int, threads: int, kernels: Any = None) -> int:
    """Bytes that a fit needs: work arrays, the members' weights and inputs, and what a look at them takes.

    Of a GPU, too, without one: `kernels_for("cuda:0")`. What CUDA and its libraries take themselves is not in it.

    Args:
        shape: geometry of the decoder.
        tiles: of the target.
        members: of all problems that are fitted together.
        threads: of the fit, on the processor.
        kernels: of the device, by default the processor's; nothing is allocated there.
    """
    kernels = kernels or kernels_for("cpu")
    h, w = shape.sizes[0]
    picture = 4 * tiles * shape.channels * math.prod(shape.sizes[-1])
    if not kernels.TOGETHER:
        step = Step(shape, np.zeros((tiles, shape.channels, *shape.sizes[-1]), np.float32), 1, kernels)
        work: int = min(threads, members) * step.nbytes
        looks = members * 4 * picture  # a snapshot, and its errors in double precision
        return work + looks + members * 4 * (5 * shape.parameters + tiles * h * w * int(step.width))
    import torch

    kernels = copy.copy(kernels)
    kernels.device = torch.device("meta")  # arrays there have a size, and no memory
    step = Step(shape, np.zeros((tiles, shape.channels, *shape.sizes[-1]), np.float32), members, kernels)
    # weights, their gradients, Adam's two moments and the kept ones, and inputs: twice while a group takes over from
    # another, and some more; a target, where the pixels are in it, and a look's errors in double precision
    each = 4 * (2 * 5 * shape.parameters + 4 * shape.parameters + 2 * tiles * h * w * step.width) + 8 * picture
    return int(step.nbytes + members * each)


def capacity(shape: Geometry, tiles: int, device: str, bytes_free: float) -> int:
    """Members that are fitted fastest together on a GPU: no more than its free memory holds, or than are of use.

    Args:
        shape: geometry of the decoder.
        tiles: of the target.
        device: a torch device with kernels that compute all members at once.
        bytes_free: of it.
    """
    kernels = kernels_for(device)
    one, two = (memory(shape, tiles, members, 1, kernels) for members in (1, 2))
    room = USABLE * bytes_free - LIBRARIES_BYTES - (2 * one - two)
    most = MOST if shape.k > 16 else 2 * MOST
    return min(most, int(room // (two - one)))


class _Group:
    """Members that are computed together, and their optimiser.

    Args:
        problems: whose members they are.
        targets: of the problems.
        members: index of the problem and of the member in it, for each; those of a problem follow each other.
        step: where they are computed.

    Attributes:
        rows: which members are a problem's.
    """

    def __init__(
        self,
        problems: Mapping[int, Problem],
        targets: Mapping[int, _Target],
        members: Sequence[tuple[int, int]],
        step: Step,
    ) -> None:
        owners = [index for index, _ in members]
        self.rows = {index: slice(owners.index(index), owners.index(index) + owners.count(index)) for index in owners}
        some = problems[owners[0]]
        self.inputs = step.pad(np.stack([problems[index].inputs[m] for index, m in members]))
        starts = np.stack([problems[index].weights[m] for index, m in members])
        self.kernels = step.kernels
        self.weights = self.kernels.array(starts, step.dtype)
        self.gradients = self.kernels.array(np.zeros_like(starts), step.dtype)
        self.adam = self.kernels.Adam(self.weights, some.learning_rate)
        self.kept = self.kernels.Kept(self.weights, some.keep)
        self.tiles = targets[owners[0]].tiles
        if any(targets[index].tiles is not self.tiles for index in self.rows):
            self.tiles = self.kernels.array(np.stack([problems[index].tiles for index in owners]), step.dtype)

    def iterate(self, step: Step) -> None:
        step.tiles = self.tiles
        losses = step.mse(self.inputs, self.weights, self.gradients)
        self.kept.see(losses, self.weights)
        self.adam.update(self.gradients)

    def forward(self, step: Step) -> None:
        step.forward(self.inputs, self.kept.weights)

    def get_ready(self, step: Step) -> None:
        """Once everything that `iterate` and `forward` launch was launched before."""
        self.advance = self.kernels.captured(self.iterate, step)
        self.show = self.kernels.captured(self.forward, step)

    def take_over(self, old: _Group) -> None:
        """Goes on where some members stood in a larger group."""
        members = [m for index in self.rows for m in range(len(old.weights))[old.rows[index]]]
        for ours, theirs in [(self.adam, old.adam), (self.kept, old.kept)]:
            for name, value in vars(theirs).items():
                into = getattr(ours, name)
                if hasattr(value, "shape"):  # of fewer members, where there is a number for each
                    into[...] = value if into.shape == value.shape else value[members]
                elif isinstance(value, int | float):
                    setattr(ours, name, value)

    def close(self) -> None:
        """Frees what was captured now, rather than whenever Python collects what refers to itself."""
        if hasattr(self, "advance"):
            del self.advance, self.show


@functools.cache  # once, though a second kind of fit may need more kernels
def _tell_of_compilation() -> None:
    _log.warning("Compiling the kernels of the fit, once on this machine: up to half a minute.")


@contextlib.contextmanager
def _telling_of_compilation() -> Iterator[None]:
    """Kernels that are on disk load within a second."""
    timer = threading.Timer(2.0, _tell_of_compilation)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Queue:
    """Iterations still to do; threads take the group that is most behind, so that none is idle but at the very end."""

    def __init__(self, groups: list[_Group], iterations: int, ended: Callable[[_Group], bool]) -> None:
        self._lock = threading.Lock()
        self._waiting = [(iterations, i, group) for i, group in enumerate(groups)]
        self._ended = ended

    def work(self, step: Step) -> None:
        """Iterates until nothing waits."""
        mine: tuple[int, int, _Group] | None = None
        while True:
            with self._lock:
                if mine and mine[0] > 1:
                    self._waiting.append((mine[0] - 1, *mine[1:]))
                if not self._waiting:
                    return
                mine = max(self._waiting, key=lambda entry: entry[:2])
                self._waiting.remove(mine)
            if self._ended(mine[2]):
                mine = None
            else:
                mine[2].advance(step)
