"""CUDA GPUs: which thread may do what there, and launches that are repeated as a graph.

A graph is captured: its launches are recorded once, and replayed without Python. A capture is broken by whatever waits
for the whole device, as the allocator may when memory is short, and by what another thread does with a stream of it. So
who allocates or captures has the device's lock; each thread has a stream of its own, and waits for that only. Launches
need no lock. On other devices there is nothing to lock, and nothing to wait for.
"""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch

DEALT = 32  # streams that torch has for a device: it deals them out in turn, again and again
SIDE = 8  # of these, for sequences of a graph that run beside each other


class _Gpu:
    """What this process keeps of a GPU: its lock, and which streams are taken."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.threads: dict[int, threading.Thread] = {}  # by their streams
        self.side: list[torch.cuda.Stream] = []  # of captures, which take turns

    def stream(self, device: torch.device) -> torch.cuda.Stream:
        """One that neither a living thread nor a capture has, as long as there are such."""
        taken = {number for number, thread in self.threads.items() if thread.is_alive()}
        taken |= {stream.cuda_stream for stream in self.side}
        for _ in range(DEALT):
            stream = torch.cuda.Stream(device)
            if stream.cuda_stream not in taken:
                break
        return stream

    def side_streams(self, device: torch.device) -> list[torch.cuda.Stream]:
        """For sequences within a graph."""
        while len(self.side) < SIDE:
            self.side.append(self.stream(device))
        return self.side


_gpus: defaultdict[torch.device, _Gpu] = defaultdict(_Gpu)


def device_of(name: str) -> torch.device:
    """The device of a name; `cuda` is the caller's current one, for other threads, too."""
    device = torch.device(name)
    return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device


def lock_of(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Held while something is done that the device does for one thread at a time; its holder may take it again."""
    return _gpus[device].lock if device.type == "cuda" else contextlib.nullcontext()


def on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Launches go to the thread's current device, wherever the arrays are."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def begin_thread(device: torch.device) -> None:
    """Gives the thread a stream of its own, so that fits overlap."""
    if device.type == "cuda":
        with lock_of(device):
            stream = _gpus[device].stream(device)
            _gpus[device].threads[stream.cuda_stream] = threading.current_thread()
        torch.cuda.set_stream(stream)


def synchronize(device: torch.device) -> None:
    """Returns when everything that this thread asked for so far is computed."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def graph_of(sequences: Sequence[Callable[[], None]], device: torch.device) -> Callable[[], None]:
    """Sequences of launches that do not depend on each other, as one graph: what is returned runs them all once more.

    In a thread that began with `begin_thread`, and that launched all of it before: compiling and loading code are
    nothing that a graph can hold. The graph runs in the same thread, on the same arrays.

    Args:
        sequences: where there are several, they run beside each other.
        device: a CUDA GPU.

    Raises:
        RuntimeError: one of them waits for the device, or looks at a number on it.
        torch.OutOfMemoryError: there is no memory for what they allocate.
    """
    with lock_of(device), on(device):
        try:
            return _captured(sequences, device)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()  # a capture cannot take what the allocator keeps
            return _captured(sequences, device)


def _captured(sequences: Sequence[Callable[[], None]], device: torch.device) -> Callable[[], None]:
    graph = torch.cuda.CUDAGraph()
    # cuBLAS would keep one work area for all graphs of a stream, which may run at the same time in two threads: with
    # none there before and none left behind, each graph has its own, as in torch's cudagraph_trees
    torch._C._cuda_clearCublasWorkspaces()
    try:
        # not `torch.cuda.graph`, which waits for the whole device and empties the allocator's cache.
        # thread_local: what other threads do with the device does not concern this graph
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            if len(sequences) == 1:
                sequences[0]()
            else:
                _side_by_side(sequences, device)
        except BaseException:
            with contextlib.suppress(RuntimeError):  # which would hide why it is no graph
                graph.capture_end()
            raise
        graph.capture_end()
    finally:
        torch._C._cuda_clearCublasWorkspaces()
    return graph.replay


def _side_by_side(sequences: Sequence[Callable[[], None]], device: torch.device) -> None:
    main, side = torch.cuda.current_stream(device), _gpus[device].side_streams(device)[: len(sequences)]
    for stream in side:
        stream.wait_stream(main)
    for place, launch in enumerate(sequences):
        with torch.cuda.stream(side[place % len(side)]):
            launch()
    for stream in side:
        main.wait_stream(stream)
