import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from ddstudy.priors.deep_decoder import EPS, deep_decoder
from ddstudy.priors.deep_decoder.network import Network


def test_parameter_count_of_the_thesis() -> None:
    assert deep_decoder(64, 16, 5, 256, 320).parameters == 21184


@given(st.integers(1, 40), st.integers(1, 7), st.sampled_from([1, 3]))
def test_parameter_count_is_that_of_the_network(k: int, l: int, channels: int) -> None:
    prior = deep_decoder(k, 4, l, 16, 12, channels)
    counted = sum(p.numel() for p in prior.build().parameters())
    assert counted == prior.parameters == prior.initial_weights(np.random.default_rng()).size


def test_cost_counts_products_at_low_and_everything_else_at_high_resolution() -> None:
    prior = deep_decoder(8, 4, 2, 16, 16)
    assert prior.sizes == ((4, 4), (8, 8), (16, 16))
    assert prior.input_shape == (8, 4, 4)
    assert prior.cost == 6 * 8**2 * (4 * 4 + 8 * 8) + 60 * 8 * (8 * 8 + 16 * 16)


def test_sizes_are_powers_where_they_can_be() -> None:
    assert deep_decoder(8, 32, 5, 256, 320).sizes == tuple((8 * 2**i, 10 * 2**i) for i in range(6))
    assert deep_decoder(8, 8, 3, 256, 320).sizes == ((32, 40), (64, 80), (128, 160), (256, 320))


@given(st.integers(1, 64), st.integers(1, 8), st.integers(8, 300), st.integers(8, 300))
def test_sizes_grow_from_the_input_to_the_tile(s: int, l: int, height: int, width: int) -> None:
    sizes = deep_decoder(1, s, l, height, width).sizes
    assert len(sizes) == l + 1
    assert sizes[-1] == (height, width)
    for size, full in zip(zip(*sizes, strict=True), (height, width), strict=True):
        assert size[0] == max(1, int(full / s + 0.5))
        assert list(size) == sorted(size)
        if s > 1:
            assert size[-1] > 1


def _numpy_decoder(net: Network, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Eqs. 2.1 and 2.2 written down once more, by loops and dense matrices."""

    def interpolation(n_in: int, n_out: int) -> NDArray[np.float64]:
        matrix = np.zeros((n_out, n_in))
        for i in range(n_out):
            source = max((i + 0.5) * n_in / n_out - 0.5, 0)
            low = int(source)
            high = min(low + 1, n_in - 1)
            matrix[i, low] += 1 - (source - low)
            matrix[i, high] += source - low
        return matrix

    for block in net.blocks:
        weight = block.conv.weight.detach().numpy()[:, :, 0, 0]
        gamma, beta = block.norm.weight.detach().numpy(), block.norm.bias.detach().numpy()
        x = np.einsum("oc,tchw->tohw", weight, x)
        rows, columns = interpolation(x.shape[2], block.size[0]), interpolation(x.shape[3], block.size[1])
        x = np.maximum(np.einsum("yh,xw,tchw->tcyx", rows, columns, x), 0)
        mean, variance = x.mean((2, 3), keepdims=True), x.var((2, 3), keepdims=True)
        x = gamma[:, None, None] * (x - mean) / np.sqrt(variance + EPS) + beta[:, None, None]
    head = net.head.weight.detach().numpy()[:, :, 0, 0]
    return np.asarray(1 / (1 + np.exp(-np.einsum("oc,tchw->tohw", head, x))))


@pytest.mark.parametrize("channels", [1, 3])
def test_network_is_eqs_2_1_and_2_2(channels: int) -> None:
    rng = np.random.default_rng(0)
    prior = deep_decoder(5, 4, 3, 19, 14, channels)
    net = prior.build().double()
    nn.utils.vector_to_parameters(torch.tensor(rng.normal(size=prior.parameters)), net.parameters())
    x = rng.random((4, 5, *prior.sizes[0]))
    with torch.no_grad():
        output = net(torch.tensor(x)).numpy()
    assert output.shape == (4, channels, 19, 14)
    np.testing.assert_allclose(output, _numpy_decoder(net, x), atol=1e-10)


def test_tiles_share_weights_but_not_statistics() -> None:
    prior = deep_decoder(4, 4, 2, 16, 16)
    net = prior.build()
    x = torch.rand(3, 4, *prior.sizes[0])
    with torch.no_grad():
        torch.testing.assert_close(net(x)[1:2], net(x[1:2]))


def test_start_is_uniform_within_torchs_bound() -> None:
    prior = deep_decoder(16, 4, 2, 16, 16)
    net = prior.build()
    nn.utils.vector_to_parameters(torch.tensor(prior.initial_weights(np.random.default_rng(1))), net.parameters())
    for block in net.blocks:
        weight = block.conv.weight.detach()
        assert weight.abs().max() <= 0.25
        assert weight.abs().max() > 0.24
        assert torch.equal(block.norm.weight.detach(), torch.ones(16))
        assert torch.equal(block.norm.bias.detach(), torch.zeros(16))
