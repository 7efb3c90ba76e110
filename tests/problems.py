"""Small fits for tests."""

import numpy as np

from ddstudy.decoder import geometry, initial_weights
from ddstudy.fit import Problem


def make_problem(k: int = 16, members: int = 2, tiles: int = 1, channels: int = 1, size: int = 24) -> Problem:
    shape = geometry(k, 4, 3, size, size - 3, channels)
    target = np.random.default_rng(1).random((tiles, channels, size, size - 3), dtype=np.float32)
    streams = [np.random.default_rng(100 + member) for member in range(members)]
    inputs = np.stack([rng.random((tiles, k, *shape.sizes[0]), dtype=np.float32) for rng in streams])
    weights = np.stack([initial_weights(shape, rng) for rng in streams])
    return Problem(shape, target, inputs, weights, learning_rate=0.01)
