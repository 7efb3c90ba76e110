"""CUDA GPUs: which thread may do what there, and launches that are repeated as a graph.

A graph is captured: its launches are recorded once, and replayed without Python. A capture is broken by whatever waits
for the whole device, as the allocator may when memory is short. So who allocates or captures has the device's lock;
each thread has a stream of its own, and waits for that only. Launches need no lock. On other devices there is nothing
to lock, and nothing to wait for.
"""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch

_locks: defaultdict[torch.device, threading.RLock] = defaultdict(threading.RLock)


def device_of(name: str) -> torch.device:
    """The device of a name; `cuda` is the caller's current one, for other threads, too."""
    device = torch.device(name)
    return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device


def lock_of(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Held while something is done that the device does for one thread at a time; its holder may take it again."""
    return _locks[device] if device.type == "cuda" else contextlib.nullcontext()


def on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Launches go to the thread's current device, wherever the arrays are."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def begin_thread(device: torch.device) -> None:
    """Gives the thread a stream of its own, so that fits overlap."""
    if device.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream(device))


def synchronize(device: torch.device) -> None:
    """Returns when everything that this thread asked for so far is computed."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def graph_of(sequences: Sequence[Callable[[], None]], device: torch.device) -> Callable[[], None]:
    """Sequences of launches that do not depend on each other, as one graph: what is returned runs them all once more.

    In a thread that began with `begin_thread`, and that launched all of it before: compiling and loading code are
    nothing that a graph can hold. The graph runs in the same thread, on the same arrays.

    Args:
        sequences: each gets a stream of its own within the graph, where there are several.
        device: a CUDA GPU.

    Raises:
        RuntimeError: one of them waits for the device, or looks at a number on it.
    """
    graph = torch.cuda.CUDAGraph()
    with lock_of(device), on(device):
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
    return graph.replay


def _side_by_side(sequences: Sequence[Callable[[], None]], device: torch.device) -> None:
    main, streams = torch.cuda.current_stream(device), [torch.cuda.Stream(device) for _ in sequences]
    for stream, launch in zip(streams, sequences, strict=True):
        stream.wait_stream(main)
        with torch.cuda.stream(stream):
            launch()
    for stream in streams:
        main.wait_stream(stream)
