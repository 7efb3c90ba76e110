from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from problems import make_problem
from torch import nn

from ddstudy.solvers import Config, Method, Snapshot, choose, fit


@pytest.fixture(params=["reference", "fused"])
def method(request: pytest.FixtureRequest) -> Method:
    return choose("cpu", request.param)


def same(one: Snapshot, other: Snapshot) -> bool:
    return np.array_equal(one.outputs, other.outputs) and np.array_equal(one.losses, other.losses)


def test_a_snapshot_on_the_way_equals_a_fit_that_was_asked_for_it(method: Method) -> None:
    work = make_problem(k=16)
    on_the_way, _ = fit(work, Config(), [200, 400], method=method)
    (alone,) = fit(work, Config(), [200], method=method)
    assert on_the_way.iteration == alone.iteration == 200
    assert same(on_the_way, alone)


@pytest.mark.parametrize("tiles", [1, 4])
def test_members_neighbours_and_threads_change_no_bit(tiles: int, method: Method) -> None:
    work = make_problem(members=5, tiles=tiles)
    (together,) = fit(work, Config(), [40], method=method, threads=2)
    (one_thread,) = fit(work, Config(), [40], method=method, threads=1)
    assert same(together, one_thread)
    (alone,) = fit(replace(work, inputs=work.inputs[3:4], weights=work.weights[3:4]), Config(), [40], method=method)
    assert np.array_equal(alone.outputs[0], together.outputs[3])
    assert alone.losses[0] == together.losses[3]


def test_losses_belong_to_the_outputs_and_fall(method: Method) -> None:
    work = make_problem(tiles=2, channels=3)
    snapshots = list(fit(work, Config(), [1, 50, 150], method=method))
    for snapshot in snapshots:
        assert snapshot.outputs.shape == (2, 2, 3, 24, 21)
        expected = [np.mean((output.astype(float) - work.measurement) ** 2) for output in snapshot.outputs]
        np.testing.assert_allclose(snapshot.losses, expected, rtol=1e-12)
    assert (snapshots[2].losses < snapshots[1].losses).all()
    assert (snapshots[1].losses < snapshots[0].losses).all()
    assert 0 < snapshots[0].seconds < snapshots[1].seconds < snapshots[2].seconds


@pytest.mark.parametrize("keep", ["last", "average"])
def test_three_updates_are_those_of_adam_in_float64(keep: Literal["last", "average"], method: Method) -> None:
    work = make_problem(k=4, members=1, tiles=2)
    net = work.prior.build().double()
    nn.utils.vector_to_parameters(torch.tensor(work.weights[0], dtype=torch.float64), net.parameters())
    x, y = torch.tensor(work.inputs[0]).double(), torch.tensor(work.measurement).double()
    parameters = list(net.parameters())
    first = [torch.zeros_like(p) for p in parameters]
    second = [torch.zeros_like(p) for p in parameters]
    seen: list[list[torch.Tensor]] = []
    for step in range(1, 4):  # Kingma and Ba 2015, algorithm 1
        seen.append([p.detach().clone() for p in parameters])
        gradients = torch.autograd.grad(((net(x) - y) ** 2).mean(), parameters)
        with torch.no_grad():
            for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
                m.mul_(0.9).add_(0.1 * g)
                v.mul_(0.999).add_(0.001 * g**2)
                p -= 0.01 * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
    if keep == "average":  # of those whose loss was seen
        for p, *values in zip(parameters, *seen, strict=True):
            p.data = torch.stack(values).mean(dim=0)
    (snapshot,) = fit(work, Config(keep=keep), [3], method=method)
    np.testing.assert_allclose(snapshot.outputs[0], net(x).detach().numpy(), atol=2e-5)


def test_inputs_are_left_as_they_were(method: Method) -> None:
    work = make_problem()
    before = [array.copy() for array in (work.measurement, work.inputs, work.weights)]
    list(fit(work, Config(), [3], method=method))
    assert all(map(np.array_equal, before, (work.measurement, work.inputs, work.weights)))


def test_the_best_has_the_least_loss_of_all_that_were_seen(method: Method) -> None:
    work, config = make_problem(k=8), Config(learning_rate=0.05)  # fast enough to spike
    losses = np.array([snapshot.losses for snapshot in fit(work, config, range(1, 81), method=method)])
    least = np.minimum.accumulate(losses)
    assert (least < losses).any()
    best = [snapshot.losses for snapshot in fit(work, replace(config, keep="best"), range(2, 82), method=method)]
    np.testing.assert_allclose(best, least, rtol=1e-5)


@pytest.mark.parametrize("keep", ["last", "best", "average"])
def test_divergence_shows_as_nan(keep: Literal["last", "best", "average"], method: Method) -> None:
    work = make_problem()
    work.weights[1, 0] = np.nan
    (snapshot,) = fit(work, Config(keep=keep), [2], method=method)
    assert np.isfinite(snapshot.losses[0])
    assert np.isnan(snapshot.losses[1])
