"""Every prior by one suite, and each against its paper: parameter counts, geometry, the same network written anew."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage import restoration
from torch import nn
from torch.nn import functional as F  # noqa: N812  # as everybody calls it

import ddstudy
from ddstudy.errors import UserError
from ddstudy.images.inputs import coordinates
from ddstudy.priors.base import Prior
from ddstudy.priors.conv_decoder import ConvDecoder, conv_decoder
from ddstudy.priors.deep_decoder import DeepDecoder, deep_decoder, deep_decoder_2019
from ddstudy.priors.dip import DeepImagePrior
from ddstudy.priors.handcrafted import Handcrafted
from ddstudy.priors.siren import Siren
from ddstudy.solvers import Config, Problem, choose, direct, fit
from ddstudy.spec.axes import Fit
from ddstudy.spec.files import parse_spec, stored_spec
from ddstudy.spec.options import HANDCRAFTED, TRAINED, FitSpec, NoiseSpec, PriorSpec
from ddstudy.spec.schema import StudySpec
from ddstudy.study.evaluate import problem
from ddstudy.study.samplers import Unseen, sampler
from ddstudy.tasks.base import Measurement

torch.set_num_threads(1)

SMALL: dict[str, Callable[..., Prior]] = {
    "deep_decoder": lambda channels, head: deep_decoder(8, 4, 3, 24, 19, channels, head),
    "deep_decoder_2019": lambda channels, head: deep_decoder_2019(8, 2, 24, 19, channels, head),
    "conv_decoder": lambda channels, head: conv_decoder(8, 4, 3, 24, 19, channels, head),
    "dip": lambda channels, head: DeepImagePrior(8, 3, channels, (24, 19), head=head),
    "siren": lambda channels, head: Siren(16, 2, channels, (24, 19), head=head),
}
FITS: dict[str, dict[str, Any]] = {
    "deep_decoder": {"k": 16, "s": 8, "l": 3},
    "deep_decoder_2019": {"k": 16, "l": 3},
    "conv_decoder": {"k": 16, "s": 8, "l": 4},
    "dip": {"k": 16, "l": 3},
    "siren": {"k": 64, "l": 2},
}


def loaded(prior: Prior, seed: int = 0) -> nn.Module:
    net = prior.build()
    weights = prior.initial_weights(np.random.default_rng(seed))
    nn.utils.vector_to_parameters(torch.tensor(weights), net.parameters())
    return net


def image(size: int = 64) -> NDArray[np.float32]:
    """(1, size, size): soft shapes with an edge."""
    rows, columns = np.mgrid[0:size, 0:size] / size
    return np.asarray((0.5 + 0.3 * np.sin(7 * rows) * np.cos(5 * columns) + 0.2 * (rows > columns))[None], np.float32)


# the protocol


def test_every_trained_prior_is_in_the_suite() -> None:
    assert SMALL.keys() == FITS.keys() == set(TRAINED)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", TRAINED)
def test_counts_and_shapes_are_those_of_the_network(kind: str, channels: int) -> None:
    prior = SMALL[kind](channels, "sigmoid")
    net = prior.build()
    assert prior.parameters == sum(p.numel() for p in net.parameters())
    assert prior.initial_weights(np.random.default_rng(0)).shape == (prior.parameters,)
    assert prior.output_shape == (channels, 24, 19)
    outputs = loaded(prior)(torch.rand(2, *prior.input_shape))
    assert outputs.shape == (2, *prior.output_shape)
    assert prior.cost > 0
    assert prior == SMALL[kind](channels, "sigmoid")
    assert hash(prior) == hash(SMALL[kind](channels, "sigmoid"))


@pytest.mark.parametrize("kind", TRAINED)
def test_a_start_is_of_its_stream_alone_and_within_torchs_ranges(kind: str) -> None:
    """Also that weights are in the network's order: ranges of layers differ."""
    prior = SMALL[kind](3, "sigmoid")
    one, same, other = (prior.initial_weights(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one.dtype == np.float32
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    ours = list(loaded(prior).parameters())
    for mine, theirs in zip(ours, prior.build().parameters(), strict=True):
        if theirs.min() == theirs.max():
            assert torch.equal(mine, theirs)
        elif mine.numel() > 100 and kind != "siren":  # whose start is its own
            assert mine.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.05)


@pytest.mark.parametrize("kind", TRAINED)
def test_a_linear_head_is_the_logit_of_the_other(kind: str) -> None:
    inputs = torch.rand(1, *SMALL[kind](2, "linear").input_shape)
    linear, bounded = (loaded(SMALL[kind](2, head))(inputs) for head in ("linear", "sigmoid"))
    expected = (linear + 1) / 2 if kind == "siren" else torch.sigmoid(linear)
    torch.testing.assert_close(bounded, expected)


@pytest.mark.parametrize("kind", TRAINED)
def test_tiles_are_computed_by_themselves(kind: str) -> None:
    prior = SMALL[kind](1, "sigmoid")
    net, inputs = loaded(prior), torch.rand(3, *prior.input_shape)
    torch.testing.assert_close(net(inputs)[1:2], net(inputs[1:2]))


@pytest.mark.parametrize("kind", TRAINED)
def test_each_represents_an_image_within_seconds(kind: str) -> None:
    found = ddstudy.fit(
        image(48), prior=kind, members=2, iterations=200, learning_rate=1e-3 if kind == "siren" else 0.01, **FITS[kind],
        device="cpu",
    )  # fmt: skip
    assert found.psnr > 27
    assert found.values["parameters"] > 0
    assert found.members.shape == (2, 1, 48, 48)
    assert not np.array_equal(*found.members)


@pytest.mark.parametrize("kind", TRAINED)
def test_each_reconstructs_in_tiles_through_an_operator(kind: str) -> None:
    values = {}
    for threads in (1, 2):
        found = ddstudy.fit(
            image(), prior=kind, members=2, iterations=30, tiling="2x2", task={"kind": "super_resolve", "factor": 2},
            device="cpu", threads=threads, **FITS[kind],
        )  # fmt: skip
        values[threads] = found.psnr
    assert values[1] == values[2] > 10


# what the papers say


@pytest.mark.parametrize(
    ("prior", "parameters"),
    [
        *((deep_decoder_2019(k, 5, 512, 512), n) for k, n in [(32, 6560), (64, 25408), (128, 99968), (256, 396544)]),
        *(
            (deep_decoder_2019(k, 5, 512, 512, 3), n)
            for k, n in [(32, 6624), (64, 25536), (128, 100224), (320, 619200)]
        ),
        (DeepDecoder(256, 1, ((16, 16),) * 6), 330496),  # compressive sensing, 5 blocks
        (DeepDecoder(384, 30, ((16, 16),) * 12), 1641984),
        (conv_decoder(160, 80, 7, 640, 368, 30), 1619840),
        (conv_decoder(160, 80, 8, 640, 368, 30), 1850560),
        (conv_decoder(256, 80, 7, 640, 368, 30), 4140032),
        (conv_decoder(256, 80, 8, 640, 368, 30), 4730368),
        (conv_decoder(128, 80, 7, 640, 368, 2), 1034240),
        (DeepImagePrior(128, 5, 3, (512, 512)), 2217831),
        (DeepImagePrior(128, 5, 1, (512, 512)), 2217573),
        (DeepImagePrior(128, 5, 3, (512, 512), skip_channels=128, upsampling="nearest"), 3002627),
        (DeepImagePrior(128, 5, 3, (512, 512), skip_channels=0, input_channels=2), 2157955),
        (Siren(256, 3, 1, (256, 256)), 198401),
    ],
)
def test_parameter_counts_of_the_papers(prior: Prior, parameters: int) -> None:
    assert prior.parameters == parameters


def test_the_decoder_of_2019_is_that_of_its_authors() -> None:
    """`decodernw`: k per layer, bilinear doubling, ReLU, batch normalisation; once more without doubling; sigmoid."""
    prior, k = deep_decoder_2019(8, 3, 32, 48, 3), 8
    assert prior.sizes == ((4, 6), (8, 12), (16, 24), (32, 48), (32, 48))
    assert prior.input_scale == 0.1
    doubling = [nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)]
    block = lambda up: [nn.Conv2d(k, k, 1, bias=False), *up, nn.ReLU(), nn.BatchNorm2d(k)]  # noqa: E731
    layers = [layer for up in (doubling, doubling, doubling, []) for layer in block(up)]
    authors = nn.Sequential(*layers, nn.Conv2d(k, 3, 1, bias=False), nn.Sigmoid())
    weights = torch.tensor(prior.initial_weights(np.random.default_rng(3)))
    nn.utils.vector_to_parameters(weights, authors.parameters())
    inputs = torch.rand(1, k, 4, 6) / 10
    torch.testing.assert_close(loaded(prior, 3)(inputs), authors(inputs))


def test_the_conv_decoder_is_deepinvs_without_its_biases() -> None:
    import deepinv

    prior = conv_decoder(8, 8, 5, 64, 40, 2, head="linear")
    theirs = deepinv.models.ConvDecoder((2, 64, 40), in_size=(8, 5), layers=5, channels=8)
    ours = loaded(prior)
    mine = iter([layer for layer in ours if list(layer.parameters())])
    for layer in theirs.net:
        if list(layer.parameters()):
            layer.load_state_dict(next(mine).state_dict(), strict=False)
        if isinstance(layer, nn.Conv2d):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    inputs = torch.rand(1, *prior.input_shape)
    torch.testing.assert_close(ours(inputs), theirs(inputs))


def test_the_conv_decoder_grows_as_its_authors() -> None:
    sizes = [conv_decoder(1, s, 8, side, side).sizes for s, side in ((80, 640), (92, 368))]
    rows, columns = ([side for side, _ in each] for each in sizes)
    assert rows == [8, 15, 28, 53, 98, 183, 343, 640]
    assert columns == [4, 8, 15, 28, 53, 102, 193, 368]
    assert conv_decoder(4, 8, 1, 24, 16).sizes == ((24, 16),)


@pytest.mark.parametrize(("skip", "upsampling"), [(4, "bilinear"), (0, "nearest")])
def test_the_deep_image_prior_is_that_of_its_authors(skip: int, upsampling: Any) -> None:
    """Their recursion, where a scale holds the next one, by functions and batch normalisation."""
    prior = DeepImagePrior(8, 3, 3, (32, 48), skip_channels=skip, input_channels=5, upsampling=upsampling)
    net: Any = loaded(prior)

    def convolved(x: torch.Tensor, of: Any, stride: int = 1) -> torch.Tensor:
        conv, norm, _ = of
        x = F.conv2d(F.pad(x, [conv.kernel_size[0] // 2] * 4, mode="reflect"), conv.weight, conv.bias, stride)
        return F.leaky_relu(F.batch_norm(x, None, None, norm.weight, norm.bias, training=True), 0.2)

    def scale(x: torch.Tensor, index: int) -> torch.Tensor:
        if index == prior.scales:
            return x
        down, (norm, three, one) = net.down[index], net.up[prior.scales - 1 - index]
        deeper = convolved(convolved(x, down.deeper[0], stride=2), down.deeper[1])
        aligned = {"align_corners": False} if upsampling == "bilinear" else {}
        up = F.interpolate(scale(deeper, index + 1), scale_factor=2, mode=upsampling, **aligned)
        both = torch.cat([convolved(x, down.skips[0]), up], 1) if skip else up
        both = F.batch_norm(both, None, None, norm.weight, norm.bias, training=True)
        return convolved(convolved(both, three), one)

    inputs = torch.rand(1, *prior.input_shape)
    torch.testing.assert_close(net(inputs), torch.sigmoid(net.head(scale(inputs, 0))))


def test_the_deep_image_prior_needs_pixels_to_mirror() -> None:
    assert loaded(DeepImagePrior(4, 5, 1, (33, 33)))(torch.rand(1, 32, 33, 33)).shape == (1, 1, 33, 33)
    with pytest.raises(ValueError, match="5 scales need sides of more than 32 pixels"):
        DeepImagePrior(4, 5, 1, (33, 32))
    with pytest.raises(UserError, match=r"prior dip: 5 scales \(l\) need sides.*32x32\nValid: l up to 4"):
        ddstudy.fit(image(32), prior="dip", iterations=1)
    ddstudy.fit(image(32), prior="dip", k=4, l=4, iterations=1, members=1, device="cpu")


def test_siren_by_its_formula() -> None:
    prior = Siren(7, 2, 3, (5, 6), omega=20.0)
    weights = prior.initial_weights(np.random.default_rng(0)).astype(float)
    places = coordinates(5, 6).reshape(2, -1).T.astype(float)
    values, start = places, 0
    for inputs, outputs in itertools.pairwise([2, 7, 7, 7, 3]):
        matrix = weights[start : start + inputs * outputs].reshape(outputs, inputs)
        start += inputs * outputs
        values = values @ matrix.T + weights[start : start + outputs]
        start += outputs
        values = values if outputs == 3 else np.sin(20 * values)
        assert np.abs(matrix).max() <= (1 / 2 if inputs == 2 else math.sqrt(6 / 7) / 20)
    found = loaded(prior)(torch.tensor(coordinates(5, 6))[None]).detach().numpy()
    assert start == prior.parameters
    np.testing.assert_allclose(found[0].reshape(3, -1).T, (values + 1) / 2, rtol=1e-4, atol=1e-5)


def test_coordinates_are_of_the_whole_slice() -> None:
    found = coordinates(3, 5)
    assert found[0].tolist() == [[-1.0] * 5, [0.0] * 5, [1.0] * 5]
    assert found[1].tolist() == [[-1.0, -0.5, 0.0, 0.5, 1.0]] * 3
    tiled = Fit({"k": 4, "l": 1, "tiling": "2x2"})
    made = problem(tiled, Measurement.of(image(16)), FitSpec(members=1), NoiseSpec(), PriorSpec(kind="siren"))
    assert made.inputs[0, 0, :, 0, 0].tolist() == [-1, -1]
    assert made.inputs[0, 3, :, -1, -1].tolist() == [1, 1]


def test_noise_of_other_priors_is_a_tenth() -> None:
    measurement, options = Measurement.of(image(16)), FitSpec(members=2)
    of = {
        kind: problem(
            Fit({"k": 4, "s": 4, "l": 2, "noise": "uniform", "tiling": "1x1"}), measurement, options, NoiseSpec(),
            PriorSpec(kind=kind),
        )
        for kind in ("deep_decoder", "deep_decoder_2019")
    }  # fmt: skip
    one, other = of.values()
    assert isinstance(other.prior, DeepDecoder)
    assert other.prior.blocks == 3
    np.testing.assert_array_equal(other.inputs, np.float32(0.1) * one.inputs)  # s = 2^l, so shapes are equal


# solvers


def test_the_fused_engine_has_both_deep_decoders() -> None:
    prior = deep_decoder_2019(16, 3, 24, 21)
    rng = np.random.default_rng(0)
    inputs = 0.1 * rng.random((2, 1, *prior.input_shape), dtype=np.float32)
    weights = np.stack([prior.initial_weights(rng) for _ in range(2)])
    work = Problem(prior, rng.random((1, 1, 24, 21), dtype=np.float32), inputs, weights)
    ends = [next(fit(work, Config(), [5], method=choose("cpu", engine))) for engine in ("fused", "reference")]
    np.testing.assert_allclose(ends[0].outputs, ends[1].outputs, atol=2e-3)
    np.testing.assert_allclose(ends[0].losses, ends[1].losses, rtol=1e-3)


@pytest.mark.parametrize("kind", TRAINED)
def test_each_prior_has_its_engine(kind: str) -> None:
    prior, fused = SMALL[kind](1, "sigmoid"), kind in ("deep_decoder", "deep_decoder_2019")
    assert str(choose("cpu", prior=prior)) == ("fused float32" if fused else "reference float32")
    assert choose("cpu", "reference", prior=prior).engine == "reference"
    if not fused:
        with pytest.raises(UserError, match=r"fused kernels are for the Deep Decoders only\nValid: auto, reference\."):
            choose("cpu", "fused", prior=prior)
        with pytest.raises(UserError, match="bfloat16"):
            choose("cuda", "auto", "bfloat16", prior)


# without weights


def noisy(size: int = 48, sigma: float = 0.1) -> NDArray[np.float32]:
    return image(size) + np.float32(sigma) * np.random.default_rng(0).standard_normal((1, size, size), np.float32)


def test_handcrafted_priors_are_scikit_images() -> None:
    measured = noisy()
    expected = {
        "tv": restoration.denoise_tv_chambolle(measured[0], weight=0.2),
        "wavelet": restoration.cycle_spin(
            measured[0], restoration.denoise_wavelet, 5, workers=1, func_kw={"sigma": 0.2, "wavelet": "haar"}
        ),
        "nlm": restoration.denoise_nl_means(measured[0], 5, 6, h=0.16, sigma=0.2, fast_mode=True),
    }
    assert expected.keys() == set(HANDCRAFTED)
    for kind in HANDCRAFTED:
        snapshot = direct.solve(Handcrafted(kind, 0.2), measured)
        np.testing.assert_allclose(snapshot.outputs[0, 0, 0], expected[kind], atol=1e-5)
        assert snapshot.iteration == 0
        assert snapshot.losses == pytest.approx([np.mean((snapshot.outputs[0, 0] - measured) ** 2)], rel=1e-4)


@pytest.mark.parametrize("kind", HANDCRAFTED)
def test_a_prior_without_weights_denoises_the_same_each_time(kind: str) -> None:
    task = {"kind": "denoise", "sigma": 0.1}
    one, same = (ddstudy.fit(image(), prior={"kind": kind, "strength": 0.1}, task=task, seed=i) for i in (0, 1))
    assert np.array_equal(one.output, same.output)
    assert one.psnr > one.values["baseline"] + 3
    assert one.members.shape == (1, 1, 64, 64)
    assert (one.cv_percent, one.values["parameters"], one.values["iterations_done"]) == (0, 0, 0)
    assert one.values["engine"] == "direct float32"
    copied = ddstudy.fit(image(), prior={"kind": kind, "strength": 0.001})
    assert copied.psnr > 40


# studies


def spec_of(text: dict[str, Any]) -> StudySpec:
    return parse_spec({"name": "some", **text}, "some.toml")


LISTS = {"k": [8], "l": [2], "iterations": [5, 10]}
TV = {"prior": {"kind": "tv"}}


def test_priors_are_an_axis_and_each_has_its_own_options() -> None:
    spec = spec_of({"space": {
        **LISTS, "s": [2, 4], "prior.kind": [*TRAINED, *HANDCRAFTED], "prior.strength": [0.05, 0.1],
        "prior.omega": [10, 30], "noise": ["uniform", "blur3"], "fit.learning_rate": [0.01, 0.001],
    }})  # fmt: skip
    counts = dict.fromkeys((*TRAINED, *HANDCRAFTED), 0)
    settings = list(spec.search_space)
    for setting in settings:
        counts[setting["prior.kind"]] += 1
    assert counts == {
        **{"deep_decoder": 16, "deep_decoder_2019": 8, "conv_decoder": 16, "dip": 8, "siren": 8},
        **dict.fromkeys(HANDCRAFTED, 2),
    }
    assert len({setting.id for setting in settings}) == len(settings) == len(spec.search_space)
    ids = {setting.id for setting in settings}
    assert {
        *("k8-s2-l2-uniform-1x1-i5", "k8-l2-uniform-1x1-deep_decoder_2019-lr0.001-i10", "k8-l2-1x1-siren-omega10-i5"),
        *("tv", "tv-strength0.05"),
    } <= ids
    for setting in settings:
        assert setting in spec.search_space
        assert spec.search_space.setting(spec.search_space.params(setting)) == setting
        assert setting.fit.at(setting.budget) == setting
        assert set(spec.search_space.budgets(setting.fit)) == ({5, 10} if "iterations" in setting else {0})
    assert stored_spec(spec.stored(), "a store") == (spec, [])


def test_a_study_of_one_prior_names_only_what_it_has() -> None:
    spec = spec_of({"prior": {"kind": "deep_decoder_2019"}, "space": LISTS})
    assert spec.search_space.names == ("k", "l", "iterations", "noise", "tiling")
    assert [setting.id for setting in spec.search_space] == ["k8-l2-uniform-1x1-i5", "k8-l2-uniform-1x1-i10"]
    spec = spec_of({"prior": {"kind": "tv"}, "space": {"prior.strength": [0.1, 0.2]}})
    assert [setting.id for setting in spec.search_space] == ["default", "strength0.2"]
    assert stored_spec(spec.stored(), "a store") == (spec, [])


UNION = {"space": {"iterations": [5, 10], "k": [8], "prior": [
    {"kind": ["deep_decoder", "conv_decoder"], "s": [2, 4], "l": [2]},
    {"kind": "dip", "k": [4, 8], "l": [1], "iterations": [5], "fit": {"learning_rate": [0.001, 0.003]}},
    {"kind": "tv", "strength": [0.05, 0.1, 0.2]},
]}}  # fmt: skip


def test_a_union_of_priors_has_the_lists_of_each() -> None:
    spec = spec_of(UNION)
    space = spec.search_space
    settings = list(space)
    assert len(settings) == len(set(settings)) == len(space) == 2 * 2 * 2 + 2 * 2 + 3
    assert space["k"] == (4, 8)
    assert space["fit.learning_rate"] == (0.001, 0.003, 0.01)  # of the others what [fit] says
    rates = {s["prior.kind"]: {t["fit.learning_rate"] for t in settings if t["prior.kind"] == s["prior.kind"]}
             for s in settings if "k" in s}  # fmt: skip
    assert rates == {"deep_decoder": {0.01}, "conv_decoder": {0.01}, "dip": {0.001, 0.003}}
    for setting in settings:
        assert setting in space
        assert space.setting(space.params(setting)) == setting
    dip = next(setting for setting in settings if setting["prior.kind"] == "dip")
    assert space.budgets(dip.fit) == (5,)
    assert dip.fit.at(10) not in space
    assert stored_spec(spec.stored(), "a store") == (spec, [])
    assert stored_spec(spec.stored(), "a store")[0].fingerprint() == spec.fingerprint()
    assert (
        spec_of({"space": {**UNION["space"], "prior": UNION["space"]["prior"][:2]}}).fingerprint() != spec.fingerprint()
    )


def test_a_proposal_outside_of_a_union_keeps_its_prior() -> None:
    spec = spec_of(UNION)
    space, chooser = spec.search_space, sampler(spec)
    assert isinstance(chooser, Unseen)
    every = list(space)
    for kind in ("dip", "tv", "conv_decoder"):
        wanted = space.setting({**space.params(every[0]), "prior.kind": kind, "k": 8, "prior.strength": 0.1})
        assert wanted is not None
        found = chooser._nearest(wanted, every)
        assert found["prior.kind"] == kind
        assert found in space
    others = [setting for setting in every if setting["prior.kind"] != "tv"]
    assert chooser._nearest(wanted, others) in others


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"prior": {"kind": "dd"}, "space": LISTS}, r"prior\.kind: .*'deep_decoder', 'deep_decoder_2019', .*'nlm'"),
        ({"space": LISTS}, r"space\.s: missing\nValid: a list of a whole number >= 1 and <= 1024 - scale factors"),
        (
            {"prior": {"kind": "dip"}, "space": {"k": [8]}},
            r"space\.l: missing\n(.*\n)?some\.toml: space\.iterations: missing",
        ),
        (
            {"prior": {"kind": "dip"}, "space": {**LISTS, "s": [4]}},
            r"space\.s is for prior\.kind = 'deep_decoder' or 'conv_decoder' only",
        ),
        ({"prior": {"kind": "tv"}, "space": {"k": [4]}}, r"space\.k is for prior\.kind = 'deep_decoder' or .* only"),
        ({"prior": {"kind": "tv"}, "space": {"fit.keep": ["last"]}}, r"space\.fit\.keep is for prior\.kind = "),
        (
            {"space": {**LISTS, "s": [2], "prior.strength": [1.0]}},
            r"space\.prior\.strength is for prior\.kind = 'tv' or 'wavelet' or 'nlm' only",
        ),
        (
            {"prior": {"kind": "siren"}, "fit": {"engine": "fused"}, "space": LISTS},
            r"fit\.engine = 'fused' is for prior\.kind = 'deep_decoder' or 'deep_decoder_2019' only, not 'siren'",
        ),
        (
            {"prior": {"kind": "dip"}, "fit": {"precision": "bfloat16"}, "space": LISTS},
            r"fit\.precision = 'bfloat16' is for",
        ),
        (
            {"prior": {"kind": "nlm"}, "task": {"kind": "inpaint"}, "space": {}},
            r"prior\.kind = 'nlm' is for task\.kind = 'represent' or 'denoise' only.*not 'inpaint'",
        ),
        (
            {**TV, "task": {"kind": "denoise", "sigma": 0.1}, "judge": {"against": "held_out"}, "space": {}},
            r"takes whole images: nothing can be held out",
        ),
        (
            {"space": {**LISTS, "prior": [{"k": [4]}]}},
            r"space\.prior\[0\]\.prior\.kind: missing|space\.prior\[0\]\.kind: missing",
        ),
        ({"space": {**LISTS, "prior": [{"kind": "deep_decoder"}]}}, r"space\.s: missing"),
        (
            {"space": {**LISTS, "prior": [{"kind": "tv", "omega": [3.0]}]}},
            r"space\.prior: prior\.omega is for prior\.kind = 'siren' only",
        ),
        (
            {"space": {**LISTS, "s": [2], "prior": [{"kind": "dip"}]}},
            r"space\.s is for prior\.kind = 'deep_decoder' or 'conv_decoder' only",
        ),
        (
            {"space": {**LISTS, "prior": [{"kind": "tv", "strength": [-1.0]}]}},
            r"space\.prior\[0\]\.(prior\.)?strength\[0\]: .*greater than 0",
        ),
        ({"space": {**LISTS, "prior": [{"kind": "dip", "strenght": [3.0]}]}}, r"strenght: unknown key"),
    ],
)  # fmt: skip
def test_what_a_prior_has_not_is_refused_in_words(text: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        spec_of(text)


def test_conv_decoders_weights_are_counted_by_the_formula() -> None:
    assert ConvDecoder(64, 1, ((8, 8),) * 5).parameters == 185024 == 5 * (9 * 64**2 + 2 * 64) + 64


def test_a_measured_image_is_denoised_by_a_prior_without_weights() -> None:
    """One fit compares nothing, and so needs nothing that judges it."""
    measured = noisy()
    task = {"kind": "denoise", "source": "file"}
    found = ddstudy.fit(measured, prior={"kind": "tv", "strength": 0.2}, task=task)
    low, high = float(measured.min()), float(measured.max())
    unit = ((measured[0] - low) / (high - low)).astype(np.float32)
    expected = low + (high - low) * restoration.denoise_tv_chambolle(unit, weight=0.2)
    np.testing.assert_allclose(found.output[0], expected, atol=1e-4)
    assert math.isnan(found.psnr)
