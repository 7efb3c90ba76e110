"""Optimisers: how members follow their gradients, for every solver; torch's own, driven iteration by iteration.

An optimiser of torch knows the weights, their gradients and a learning rate. What it does not know is here: the
schedule of the rate, and the noise of stochastic gradient Langevin dynamics. Both are functions of the iteration alone,
never of how many there will be.

Sources: Kingma and Ba, 2015 (Adam); Loshchilov and Hutter, 2019 (AdamW); Liu et al., 2020 (RAdam); Tieleman and Hinton,
2012 (RMSprop); Welling and Teh, 2011, as Cheng et al., CVPR 2019, use it for the Deep Image Prior (SGLD).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddstudy.priors.base import of_products
from ddstudy.solvers.base import Config, Problem


def optimiser_of(
    config: Config, parameters: Iterable[torch.Tensor], device: str, *, captured: bool = False
) -> torch.optim.Optimizer:
    """torch's optimiser with the settings of a configuration, at its first learning rate.

    Args:
        config: of the fit.
        parameters: tensors that it changes in place.
        device: of these.
        captured: its updates become part of a CUDA graph: it counts its steps on the GPU, where its learning rate is.
    """
    parameters, decay = list(parameters), config.weight_decay
    rate: Any = torch.tensor(config.learning_rate, device=device) if captured else config.learning_rate
    # one call for all parameters, where torch has it: on the processor a call costs as much as a small update
    fused = not device.startswith("mps")
    # of those without, a GPU gets one launch for all parameters, and the processor the plain loop, which no graph can
    # have, since it looks at the learning rate
    several: dict[str, Any] = {"foreach": captured or device.startswith("cuda")}
    graph: dict[str, Any] = {"capturable": captured}
    match config.optimiser:
        case "adam" | "sgld":
            return torch.optim.Adam(parameters, lr=rate, weight_decay=decay, fused=fused, **graph)
        case "adamw":
            return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=fused, **graph)
        case "radam":
            return torch.optim.RAdam(parameters, lr=rate, weight_decay=decay, **several, **graph)
        case "sgd":
            # whose fused form alone takes a learning rate that is on the GPU
            return torch.optim.SGD(parameters, lr=rate, momentum=config.momentum, weight_decay=decay, fused=fused)
        case "rmsprop":
            return torch.optim.RMSprop(parameters, lr=rate, weight_decay=decay, **several, **graph)
        case "lbfgs":
            # one update for each call, which ends where the line search ends, not at a tolerance; the search has what
            # the first of all evaluations leaves
            return torch.optim.LBFGS(
                parameters, lr=rate, max_iter=1, max_eval=26, tolerance_grad=0, tolerance_change=0, history_size=10,
                line_search_fn="strong_wolfe",
            )  # fmt: skip


def set_learning_rate(optimiser: torch.optim.Optimizer, config: Config, iteration: int) -> None:
    """Sets the learning rate of the update that follows after so many, where the schedule changes it there."""
    if config.schedule == "constant" or iteration % config.decay_every:
        return
    for group in optimiser.param_groups:
        rate = config.rate_at(iteration)
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


class Langevin:
    """The noise that `sgld` adds to one member's weights after each update, from a stream of its own.

    Normal, with a standard deviation of `Config.sgld_noise` times the learning rate, on what is multiplied with
    activations; biases and normalisation have none, as in the code of Cheng et al. Drawn by numpy in single precision
    for every solver and device.

    Args:
        config: how strong it is.
        problem: whose member it is.
        member: its index in the problem.

    Raises:
        ValueError: the problem has no seeds.
    """

    def __init__(self, config: Config, problem: Problem, member: int) -> None:
        if problem.noise_seeds is None:
            raise ValueError("Config.optimiser = 'sgld' needs Problem.noise_seeds")
        self._config, self._where = config, of_products(problem.prior).astype(np.float32)
        self._stream = np.random.default_rng(int(problem.noise_seeds[member]))
        self._iteration = 0

    def draw(self) -> NDArray[np.float32]:
        """(prior.parameters,) for the next update."""
        noise: NDArray[np.float32] = self._stream.standard_normal(len(self._where), dtype=np.float32)
        noise *= np.float32(self._config.sgld_noise * self._config.rate_at(self._iteration))
        noise *= self._where
        self._iteration += 1
        return noise


class FlatOptimiser:
    """An optimiser of torch on flat vectors of weights, whose memory it shares with the kernels that fill gradients.

    Each member is a parameter of its own, so that its arithmetic is the same whatever members are beside it.

    Args:
        config: of the fit, with any optimiser of first order.
        weights: (M, parameters), changed in place.
        gradients: (M, parameters), read at each update.
        noises: of each member, with `sgld`; else none.

    Attributes:
        weights: (M, parameters).
        optimiser: torch's.
        iteration: updates that were prepared.
    """

    def __init__(
        self, config: Config, weights: torch.Tensor, gradients: torch.Tensor, noises: Sequence[Langevin]
    ) -> None:
        self._config, self._noises, self.iteration, self.weights = config, noises, 0, weights
        self._noise = torch.zeros_like(weights) if noises else None
        self._parameters = list(weights.unbind())
        for parameter, gradient in zip(self._parameters, gradients.unbind(), strict=True):
            parameter.grad = gradient
        self.optimiser = optimiser_of(config, self._parameters, str(weights.device), captured=weights.is_cuda)
        # what torch wraps around a step for profilers and hooks takes as long as a small update
        self._step = partial(inspect.unwrap(type(self.optimiser).step), self.optimiser)
        # torch makes its state at the first step, which in a graph would be at each; all of it starts at zero
        start = weights.clone()
        self._step()
        weights.copy_(start)
        for state in self.states:
            for value in state.values():
                value.zero_()

    @property
    def states(self) -> list[dict[str, torch.Tensor]]:
        """Of each member."""
        return [
            {name: value for name, value in self.optimiser.state[parameter].items() if isinstance(value, torch.Tensor)}
            for parameter in self._parameters
        ]

    def prepare(self) -> None:
        """What comes from outside before each update, and is no part of a graph: learning rate and noise."""
        set_learning_rate(self.optimiser, self._config, self.iteration)
        self.iteration += 1
        if self._noise is not None:
            self._noise.copy_(torch.from_numpy(np.stack([noise.draw() for noise in self._noises])))

    def update(self) -> None:
        """One step."""
        self._step()
        if self._noise is not None:
            self.weights.add_(self._noise)

    def take_over(self, old: FlatOptimiser, members: Sequence[int]) -> None:
        """Goes on where some members of a larger group stood, whose indices there are given."""
        self.iteration = old.iteration
        self.weights.copy_(old.weights[members])
        states = old.states
        for ours, member in zip(self.states, members, strict=True):
            for name, value in states[member].items():
                ours[name].copy_(value)
        for group, theirs in zip(self.optimiser.param_groups, old.optimiser.param_groups, strict=True):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].copy_(theirs["lr"])
            else:
                group["lr"] = theirs["lr"]
