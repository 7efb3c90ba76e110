"""The torch loop as a CUDA graph: on a GPU, and on the processor with a stand-in that keeps a graph's contract.

The stand-in records the operations of one iteration and computes nothing but them afterwards, on the same memory: what
Python would decide or hand over anew in each iteration is lost, as in a graph of CUDA.
"""

import contextlib
import importlib
import itertools
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddstudy.priors.base import Prior
from ddstudy.priors.conv_decoder import conv_decoder
from ddstudy.priors.deep_decoder import deep_decoder
from ddstudy.priors.dip import DeepImagePrior
from ddstudy.priors.siren import Siren
from ddstudy.solvers import Config, Problem, choose, cuda, fit_together, torch_loop
from ddstudy.tasks.operators import Downsampling

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
PRIORS: dict[str, Prior] = {
    "deep_decoder": deep_decoder(8, 4, 3, 24, 19, 1),
    "conv_decoder": conv_decoder(8, 4, 3, 24, 19, 1),
    "dip": DeepImagePrior(8, 3, 1, (24, 19)),
    "siren": Siren(16, 2, 1, (24, 19)),
}
CONFIGS = {
    "adam": Config(),
    "best, huber": Config(keep="best", loss="huber", tv_weight=0.01),
    "average of weights, jitter": Config(keep="average", jitter=0.03, jitter_decay=0.5),
    "average of outputs, schedule": Config(average=0.9, schedule="step", decay_every=2, loss="log_mse"),
    "adamw": Config(optimiser="adamw", weight_decay=0.1),
    "radam": Config(optimiser="radam", schedule="step", decay_every=3),
    "sgd": Config(optimiser="sgd", learning_rate=0.1, weight_decay=1e-3, loss="l1"),
    "rmsprop": Config(optimiser="rmsprop", learning_rate=1e-3),
    "sgld": Config(optimiser="sgld", keep="best"),
}
STOPS = [[1, 2, 7], [4]]  # the second ends on the way: the rest gets a graph of its own
Numbers = dict[tuple[int, int], tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]]


def problems(prior: Prior, *, operated: bool = False) -> list[Problem]:
    works = []
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        inputs = rng.random((2, 1, *prior.input_shape), dtype=np.float32)
        weights = np.stack([prior.initial_weights(rng) for _ in range(2)])
        image, seeds = rng.random((1, *prior.output_shape), dtype=np.float32), np.arange(2).astype(np.uint64)
        image[0, 0, :3, :5] = np.nan
        operator: dict[str, Any] = {}
        if operated:
            operator = {"operator": Downsampling((1, 24, 20), 2, "lanczos"), "shape": (1, 24, 20)}
            image = rng.random((1, 12, 10), dtype=np.float32)
        works.append(Problem(prior, image, inputs, weights, jitter_seeds=seeds, noise_seeds=seeds, **operator))
    return works


def fitted(works: Sequence[Problem], config: Config, device: str = "cpu") -> Numbers:
    """Outputs, weights and losses at each stop."""
    method = choose(device, "reference", prior=works[0].prior)
    found = {}
    for index, shot in fit_together(works, config, STOPS, device=device, threads=2, method=method):
        found[index, shot.iteration] = (shot.outputs, shot.weights, shot.losses)
    assert found.keys() == {(0, 1), (0, 2), (0, 7), (1, 4)}
    return found


class Recorder(TorchDispatchMode):
    """Operations, each with its arguments and results, and what stood where they wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if call is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        for tensor in tensors((args, kwargs)):
            whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
            self.before.setdefault(whole.data_ptr(), (whole, whole.clone()))
        found = call(*args, **kwargs)
        self.calls.append((call, args, kwargs, found))
        return found

    @torch.no_grad()
    def undo(self) -> None:
        """Capturing computes nothing."""
        for whole, before in self.before.values():
            whole.copy_(before)

    @torch.no_grad()
    def replay(self) -> None:
        for call, args, kwargs, found in self.calls:
            for into, made in zip(tensors(found), tensors(call(*args, **kwargs)), strict=True):
                if into.data_ptr() != made.data_ptr():
                    into.copy_(made)


def tensors(values: Any) -> list[torch.Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    """Every fit by the torch loop is captured, by recorders, which are found here."""
    made: list[Recorder] = []

    def graph_of(sequences: Sequence[Callable[[], None]], device: torch.device) -> Callable[[], None]:
        recorder = Recorder()
        with recorder:
            for launch in sequences:
                launch()
        recorder.undo()
        made.append(recorder)
        return recorder.replay

    monkeypatch.setattr(cuda, "graph_of", graph_of)
    monkeypatch.setattr(torch_loop, "_is_captured", lambda device, config: True)
    for name in ("radam", "rmsprop"):  # which can count their steps on the processor, too
        optimiser = importlib.import_module(f"torch.optim.{name}")
        monkeypatch.setattr(optimiser, "_get_capturable_supported_devices", lambda *_, **__: ["cpu"])
    return made


def one_by_one(*_: Any) -> Callable[[], None]:
    raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors might be ...")


@pytest.mark.parametrize(
    ("kind", "name"),
    [*(("conv_decoder", name) for name in CONFIGS), *((kind, "average of weights, jitter") for kind in PRIORS)],
)
def test_a_repeated_graph_is_the_loop(
    kind: str, name: str, graphs: list[Recorder], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """To the last bit of the same launches one by one, which take over where there can be no graph, and say so."""
    works, config = problems(PRIORS[kind]), CONFIGS[name]
    repeated = fitted(works, config)
    assert len(graphs) == 2
    assert not caplog.records
    monkeypatch.setattr(cuda, "graph_of", one_by_one)
    torch_loop._tell_that_there_is_no_graph.cache_clear()
    with caplog.at_level(logging.WARNING):
        launched = fitted(works, config)
    message = "cpu: iterations are launched one by one, which is slower: no graph of them: operation not permitted when"
    assert [record.getMessage() for record in caplog.records] == [f"{message} stream is capturing"]
    monkeypatch.setattr(torch_loop, "_is_captured", lambda device, config: False)
    plain = fitted(works, config)
    for at, numbers in repeated.items():
        for ours, same in zip(numbers, launched[at], strict=True):
            np.testing.assert_array_equal(ours, same)
        # optimisers that count on the device round otherwise; of weights, some have no gradient but rounding
        np.testing.assert_allclose(numbers[0], plain[at][0], atol=1e-3)


@pytest.mark.parametrize("name", ["adam", "average of outputs, schedule"])
def test_an_operator_is_part_of_the_graph(name: str, graphs: list[Recorder], monkeypatch: pytest.MonkeyPatch) -> None:
    works = problems(conv_decoder(8, 4, 3, 24, 20, 1), operated=True)
    repeated = fitted(works, CONFIGS[name])
    assert len(graphs) == 2
    monkeypatch.setattr(torch_loop, "_is_captured", lambda device, config: False)
    plain = fitted(works, CONFIGS[name])
    for at, numbers in repeated.items():
        np.testing.assert_allclose(numbers[0], plain[at][0], atol=1e-3)


def test_what_looks_at_the_device_is_no_graph(graphs: list[Recorder]) -> None:
    """The stand-in refuses it as CUDA does."""
    with pytest.raises(RuntimeError, match="not permitted"):
        cuda.graph_of([lambda: print(float(torch.ones(1).sum()))], torch.device("cpu"))
    assert not graphs


def test_memory_that_is_short_is_no_reason_to_go_on_without_a_graph(
    graphs: list[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fit that does not fit is told as such, and begun again when there is room."""

    def short(*_: Any) -> Callable[[], None]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(cuda, "graph_of", short)
    with pytest.raises(torch.OutOfMemoryError):
        fitted(problems(PRIORS["siren"]), Config())


@pytest.mark.parametrize("recovers", [True, False])
def test_torch_that_does_not_recover_from_a_failed_capture_fails_the_fit(
    recovers: bool, graphs: list[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "graph_of", one_by_one)
    monkeypatch.setattr(torch_loop, "_RECOVERS", recovers)
    with contextlib.nullcontext() if recovers else pytest.raises(RuntimeError, match="not permitted"):
        fitted(problems(PRIORS["siren"]), Config())


def test_threads_and_captures_have_streams_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch deals out the same 32: a capture would take in what another fit does on its stream, or be broken by it."""
    numbers = itertools.count()

    class Stream:
        def __init__(self, device: torch.device) -> None:
            self.cuda_stream = next(numbers) % cuda.DEALT

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    gpu, device, over = cuda._Gpu(), torch.device("cuda:0"), threading.Thread()
    seen = [gpu.stream(device).cuda_stream]
    gpu.threads[seen[0]] = threading.current_thread()
    seen += [stream.cuda_stream for stream in gpu.side_streams(device)]
    while len(seen) < cuda.DEALT:
        seen.append(gpu.stream(device).cuda_stream)
        gpu.threads[seen[-1]] = threading.current_thread()
    assert sorted(seen) == list(range(cuda.DEALT))
    assert len(gpu.side_streams(device)) == cuda.SIDE
    gpu.threads[seen[20]] = over  # whose stream is the only free one
    assert gpu.stream(device).cuda_stream == seen[20]


def test_a_captured_fit_ends_when_it_is_told_to(graphs: list[Recorder]) -> None:
    works, ended = problems(PRIORS["siren"]), [threading.Event(), threading.Event()]
    seen = []
    shots = fit_together(works, Config(), [[2, 10**9]] * 2, ended=ended, method=choose("cpu", "reference"))
    for index, shot in shots:
        seen.append((index, shot.iteration))
        ended[index].set()
    assert seen == [(0, 2), (1, 2)]


@NEEDS_GPU
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kind", PRIORS)
def test_a_graph_of_all_members_is_the_loop_over_them_on_a_gpu(
    kind: str, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where sums are not always in one order: close after a few iterations."""
    works, config = problems(PRIORS[kind]), CONFIGS[name]
    graph = fitted(works, config, "cuda")
    assert not caplog.records
    monkeypatch.setattr(torch_loop, "_is_captured", lambda device, config: False)
    loop = fitted(works, config, "cuda")
    for at, numbers in graph.items():
        np.testing.assert_allclose(numbers[0], loop[at][0], atol=5e-3)


@NEEDS_GPU
def test_graphs_of_fits_in_threads_do_not_disturb_each_other_on_a_gpu(caplog: pytest.LogCaptureFixture) -> None:
    """Many more than torch has streams, with products by cuBLAS in all."""
    works = [
        problems(PRIORS["siren"]),
        problems(PRIORS["dip"]),
        problems(conv_decoder(8, 4, 3, 24, 20, 1), operated=True),
    ]
    alone = [fitted(work, Config(), "cuda") for work in works]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda work: fitted(work, Config(), "cuda"), 8 * works))
    assert not caplog.records
    for one, other in zip(8 * alone, together, strict=True):
        for at, numbers in one.items():
            np.testing.assert_allclose(numbers[0], other[at][0], atol=5e-3)
