"""Optimisers, schedules, losses and initialisations, against plain loops in double precision with torch's own."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from points import fit_of
from test_solvers_tasks import make_problem, same
from torch import nn

import ddstudy
from ddstudy.errors import UserError
from ddstudy.images.volumes import Target
from ddstudy.priors.base import normal_weights, of_products
from ddstudy.priors.deep_decoder import deep_decoder
from ddstudy.priors.dip import DeepImagePrior
from ddstudy.solvers import Config, Method, Problem, choose, fit, fit_together
from ddstudy.solvers.fidelity import SMOOTHING, total_variation, variation_gradient
from ddstudy.spec.files import parse_spec
from ddstudy.spec.options import FitSpec, NoiseSpec
from ddstudy.study.evaluate import problem
from ddstudy.tasks.base import Measurement

STEP: dict[str, Any] = {"schedule": "step", "decay": 0.3, "decay_every": 2}
SGD: dict[str, Any] = {"optimiser": "sgd"}
CONFIGS: dict[str, Config] = {
    "adam, step": Config(**STEP),
    "adam, decay of weights": Config(weight_decay=0.3),
    "adamw": Config(optimiser="adamw", weight_decay=0.3, **STEP),
    "radam": Config(0.1, optimiser="radam", weight_decay=0.1, **STEP),
    "sgd": Config(0.5, optimiser="sgd", momentum=0.7, weight_decay=0.1),
    "sgd, step": Config(0.5, optimiser="sgd", **STEP),
    "rmsprop": Config(0.001, optimiser="rmsprop", weight_decay=0.1, **STEP),
    "sgld": Config(optimiser="sgld", sgld_noise=1.5, weight_decay=0.1, **STEP),
    # Adam's first updates are the gradients' signs, so that the rounding of those near zero would hide a wrong gradient
    "l1": Config(0.5, loss="l1", **SGD),
    "huber": Config(0.5, loss="huber", huber_delta=0.2, **SGD),
    "log_mse": Config(0.02, loss="log_mse", **SGD),
    "mse, tv": Config(0.5, tv_weight=0.2, **SGD),
    "huber, tv, best": Config(0.5, loss="huber", huber_delta=0.1, tv_weight=0.1, keep="best", **SGD),
    "radam, l1, jitter": Config(optimiser="radam", loss="l1", jitter=0.1, average=0.5),
}
PROBLEMS: dict[str, dict[str, Any]] = {
    "tiles": {"tiling": "2x3", "missing": 0.3, "channels": 2},
    "operator": {"channels": 2, "tiling": "2x3", "samples": (9, 7), "missing": 0.3},
    "one tile": {},
}
TORCHS = {
    "adam": torch.optim.Adam, "sgld": torch.optim.Adam, "adamw": torch.optim.AdamW, "radam": torch.optim.RAdam,
    "sgd": torch.optim.SGD, "rmsprop": torch.optim.RMSprop,
}  # fmt: skip


@pytest.fixture(params=["reference", "fused"])
def method(request: pytest.FixtureRequest) -> Method:
    return choose("cpu", request.param)


def loss_of(work: Problem, config: Config, outputs: torch.Tensor) -> torch.Tensor:
    """By the definitions of torch's own losses."""
    flat, y = outputs.ravel(), torch.tensor(work.measurement).double().ravel()
    image = flat if work.pixels is None else flat[torch.tensor(work.pixels)]
    assert work.shape is not None
    image = image.view(work.shape)
    found = flat if work.operator is None else work.operator.forward(image[None]).ravel()
    found, y = found[~y.isnan()], y[~y.isnan()]
    match config.loss:
        case "l1":
            loss = nn.functional.l1_loss(found, y)
        case "huber":
            loss = nn.functional.huber_loss(found, y, delta=config.huber_delta)
        case "log_mse":
            loss = nn.functional.mse_loss(found, y).log()
        case _:
            loss = nn.functional.mse_loss(found, y)
    if not config.tv_weight:
        return loss
    channels, height, width = work.shape
    variation = torch.zeros((), dtype=torch.float64)
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                down = image[c, i + 1, j] - image[c, i, j] if i + 1 < height else torch.tensor(0.0)
                right = image[c, i, j + 1] - image[c, i, j] if j + 1 < width else torch.tensor(0.0)
                variation = variation + (down**2 + right**2 + 1e-6).sqrt()
    return loss + config.tv_weight * variation / image.numel()


def plain_loop(work: Problem, config: Config, iterations: int) -> NDArray[Any]:
    """Outputs in the end, of the weights that `keep` says, or the average of outputs."""
    shown = []
    for member in range(len(work.weights)):
        net = work.prior.build().double()
        nn.utils.vector_to_parameters(torch.tensor(work.weights[member]).double(), net.parameters())
        x = torch.tensor(work.inputs[member]).double()
        settings: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
        if config.optimiser == "sgd":
            settings["momentum"] = config.momentum
        optimiser = TORCHS[config.optimiser](net.parameters(), **settings)
        every, factor = (config.decay_every, config.decay) if config.schedule == "step" else (1000, 1.0)
        schedule = torch.optim.lr_scheduler.StepLR(optimiser, every, factor)
        noise, jitter = np.random.default_rng(1007 + member), np.random.default_rng(7 + member)
        best, mean, kept = np.inf, None, None
        for _ in range(iterations):
            drawn = jitter.standard_normal(x.shape, dtype=np.float32) if config.jitter else np.zeros(x.shape)
            outputs = net(x + config.jitter * torch.tensor(drawn))
            loss = loss_of(work, config, outputs)
            optimiser.zero_grad()
            loss.backward()
            now = outputs.detach()
            mean = now if mean is None else config.average * mean + (1 - config.average) * now
            if loss.item() < best:
                best, kept = loss.item(), now
            rate = optimiser.param_groups[0]["lr"]
            optimiser.step()
            if config.optimiser == "sgld":
                flat = rate * config.sgld_noise * noise.standard_normal(work.prior.parameters, dtype=np.float32)
                at = 0
                for parameter in net.parameters():
                    if parameter.dim() > 1:
                        part = flat[at : at + parameter.numel()].reshape(parameter.shape)
                        parameter.data += torch.tensor(part)
                    at += parameter.numel()
            schedule.step()
        with torch.no_grad():
            end = mean if config.average else kept if config.keep == "best" else net(x)
        assert end is not None
        shown.append(end.numpy())
    return np.stack(shown)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_short_fit_is_that_of_a_plain_loop(name: str, method: Method) -> None:
    config = CONFIGS[name]
    kinds = ["tiles"] if config.is_plain_mse else list(PROBLEMS)
    for kind in kinds:
        work = make_problem(**PROBLEMS[kind])
        (snapshot,) = fit(work, config, [5], method=method)
        bound = 2e-5 if config.optimiser == "sgd" else 2e-4
        np.testing.assert_allclose(snapshot.outputs, plain_loop(work, config, 5), atol=bound)


@pytest.mark.parametrize("name", ["radam", "sgd, step", "sgld", "huber, tv, best"])
def test_stops_threads_and_neighbours_change_no_bit(name: str, method: Method) -> None:
    config = CONFIGS[name]
    pack = [make_problem(**PROBLEMS["tiles"], seed=seed) for seed in range(2)]
    first, second = fit(pack[1], config, [3, 6], method=method, threads=2)
    (alone,) = fit(pack[1], config, [6], method=method)
    assert same(second, alone)
    assert not same(first, second)
    together = {index: snapshot.fetched() for index, snapshot in fit_together(pack, config, [[2], [6]], method=method)}
    assert same(together[1], alone)
    assert pack[1].noise_seeds is not None
    one = replace(pack[1], inputs=pack[1].inputs[1:], weights=pack[1].weights[1:], noise_seeds=pack[1].noise_seeds[1:])
    (member,) = fit(one, config, [6], method=method)
    assert np.array_equal(member.outputs[0], alone.outputs[1])


def test_losses_that_are_told_are_mean_squared_errors(method: Method) -> None:
    work = make_problem(missing=0.3)
    for loss in ("mse", "l1", "huber", "log_mse"):
        (snapshot,) = fit(work, Config(loss=loss, tv_weight=0.1), [4], method=method)
        errors = np.nanmean((snapshot.outputs.astype(np.float64) - work.measurement) ** 2, axis=(1, 2, 3, 4))
        np.testing.assert_allclose(snapshot.losses, errors, rtol=1e-6)


def test_a_member_that_diverges_shows_as_nan() -> None:
    for config in (
        Config(loss="l1", tv_weight=0.1),
        Config(optimiser="radam", keep="best"),
        Config(1.0, optimiser="lbfgs"),
    ):
        work = make_problem(**PROBLEMS["tiles"])
        work.weights[1, 0] = np.nan
        (snapshot,) = fit(work, config, [2])
        assert np.isnan(snapshot.losses).tolist() == [False, True]


def test_a_logarithm_of_a_perfect_fit_is_finite() -> None:
    work = make_problem()
    (snapshot,) = fit(work, Config(), [1])
    perfect = replace(work, measurement=snapshot.outputs[0], inputs=work.inputs[:1], weights=work.weights[:1])
    (snapshot,) = fit(perfect, Config(loss="log_mse"), [3])
    assert np.isfinite(snapshot.losses).all()


def test_lbfgs_takes_few_iterations_and_the_reference_engine() -> None:
    assert choose("cpu", optimiser="lbfgs").engine == "reference"
    work = make_problem(missing=0.3)
    config = Config(1.0, optimiser="lbfgs")
    first, second = fit(work, config, [20, 40])
    (alone,) = fit(work, config, [40], threads=2)
    assert same(second, alone)
    (adam,) = fit(work, Config(), [40])
    assert (second.losses < first.losses).all()
    assert (second.losses < adam.losses).all()
    with pytest.raises(UserError, match=r"fused kernels have no fit\.optimiser = 'lbfgs'"):
        choose("cpu", "fused", optimiser="lbfgs")
    table = {"name": "a", "space": {"k": [4], "s": [4], "l": [2], "iterations": [5]}}
    with pytest.raises(UserError, match=r"'lbfgs' is for fit\.engine = 'auto' or 'reference'"):
        parse_spec({**table, "fit": {"optimiser": "lbfgs", "engine": "fused"}}, "a.toml")


def test_lbfgs_is_torchs_with_a_line_search() -> None:
    """Its iterations are those of one call that may make as many."""
    work = make_problem(members=1)
    net = work.prior.build()
    nn.utils.vector_to_parameters(torch.tensor(work.weights[0]), net.parameters())
    x, y = torch.tensor(work.inputs[0]), torch.tensor(work.measurement)
    whole = torch.optim.LBFGS(net.parameters(), lr=1.0, max_iter=4, max_eval=200, tolerance_grad=0,
                              tolerance_change=0, history_size=10, line_search_fn="strong_wolfe")  # fmt: skip

    def evaluate() -> torch.Tensor:
        whole.zero_grad()
        loss = nn.functional.mse_loss(net(x), y)
        loss.backward()
        return loss

    whole.step(evaluate)  # type: ignore[no-untyped-call]
    (snapshot,) = fit(work, Config(1.0, optimiser="lbfgs"), [4])
    np.testing.assert_allclose(snapshot.outputs[0], net(x).detach().numpy(), atol=2e-3)


def test_sgld_needs_seeds_and_draws_anew_for_each_member(method: Method) -> None:
    with pytest.raises(ValueError, match="noise_seeds"):
        next(fit(replace(make_problem(), noise_seeds=None), CONFIGS["sgld"], [1], method=method))
    work = make_problem(members=1)
    twice = replace(
        work, inputs=np.repeat(work.inputs, 2, 0), weights=np.repeat(work.weights, 2, 0),
        noise_seeds=np.array([3, 4], np.uint64),
    )  # fmt: skip
    (snapshot,) = fit(twice, CONFIGS["sgld"], [2], method=method)
    assert not np.array_equal(snapshot.outputs[0], snapshot.outputs[1])
    (quiet,) = fit(twice, replace(CONFIGS["sgld"], sgld_noise=0.0), [2], method=method)
    assert np.array_equal(quiet.outputs[0], quiet.outputs[1])


def test_total_variation_is_that_of_known_images_and_its_gradient_that_of_autograd() -> None:
    flat = torch.full((1, 1, 4, 5), 0.3, dtype=torch.float64)
    assert total_variation(flat).item() == pytest.approx(SMOOTHING)
    edge = torch.zeros(1, 1, 4, 6, dtype=torch.float64)
    edge[..., 3:] = 1
    assert total_variation(edge).item() == pytest.approx(1 / 6, abs=SMOOTHING)  # one of six columns has a step
    assert total_variation(edge.mT).item() == pytest.approx(total_variation(edge).item())
    images = torch.rand(3, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(total_variation(images).sum(), images)
    torch.testing.assert_close(variation_gradient(images.detach()), expected)


def test_a_normal_initialisation_is_of_convolutions_alone() -> None:
    rng = np.random.default_rng
    for prior in (deep_decoder(16, 4, 3, 16, 16), DeepImagePrior(16, 2, 1, (16, 16), 4, 8, "bilinear", "sigmoid")):
        start = prior.initial_weights(rng(0))
        drawn, factors = normal_weights(prior, start, 0.02, rng(1)), of_products(prior)
        assert np.array_equal(drawn[~factors], start[~factors])
        assert drawn[factors].std() == pytest.approx(0.02, rel=0.1)
        assert abs(drawn[factors].mean()) < 0.002
    assert of_products(deep_decoder(16, 4, 3, 16, 16)).sum() == 3 * 16**2 + 16


def test_options_reach_the_solver_and_the_default_start_stays(tiny_target: Target) -> None:
    def work_of(**options: Any) -> Problem:
        at = fit_of(4, 4, 2, "uniform", "1x1")
        return problem(at, Measurement.of(tiny_target.image), FitSpec(members=2, **options), NoiseSpec())

    plain, normal = work_of(), work_of(initialisation="normal", initialisation_sd=0.1)
    assert np.array_equal(plain.inputs, normal.inputs)
    assert not np.array_equal(plain.weights, normal.weights)
    assert plain.noise_seeds is not None
    assert plain.jitter_seeds is not None
    assert len({*plain.noise_seeds.tolist(), *plain.jitter_seeds.tolist()}) == 4


def test_one_fit_takes_all_of_them() -> None:
    image = np.random.default_rng(0).random((16, 20))
    numbers: dict[str, Any] = {"k": 4, "s": 4, "l": 2, "iterations": 5, "members": 2}
    plain = ddstudy.fit(image, **numbers)
    for options in (
        {"optimiser": "radam", "weight_decay": 0.1, "schedule": "step", "decay_every": 2},
        {"optimiser": "lbfgs", "learning_rate": 1.0},
        {"optimiser": "sgld", "keep": "last"},
        {"loss": "huber", "tv_weight": 0.1},
        {"initialisation": "normal"},
    ):
        other = ddstudy.fit(image, **numbers, **options)
        assert np.isfinite(other.output).all()
        assert not np.array_equal(other.output, plain.output)
    same_again = ddstudy.fit(image, **numbers, momentum=0.1, huber_delta=0.3, decay=0.1, initialisation_sd=3.0)
    assert np.array_equal(same_again.output, plain.output)


def test_conditional_options_are_of_their_settings_only() -> None:
    spec = parse_spec(
        {
            "name": "a",
            "space": {
                "k": [4], "s": [4], "l": [2], "iterations": [5], "fit.optimiser": ["adam", "sgd"],
                "fit.momentum": [0.5, 0.9], "fit.loss": ["mse", "huber"], "fit.huber_delta": [0.05, 0.1],
            },
        },
        "a.toml",
    )  # fmt: skip
    names = {setting.id for setting in spec.search_space}
    assert len(names) == (1 + 2) * (1 + 2)
    assert {"k4-s4-l2-uniform-1x1-i5", "k4-s4-l2-uniform-1x1-sgd-momentum0.5-huber-delta0.1-i5"} <= names
    with pytest.raises(UserError, match=r"space\.fit\.momentum is for fit\.optimiser = 'sgd' only"):
        parse_spec(
            {"name": "a", "space": {"k": [4], "s": [4], "l": [2], "iterations": [5], "fit.momentum": [0.5]}}, "a"
        )
