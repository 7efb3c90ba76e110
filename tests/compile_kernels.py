"""Compiles the processor's kernels for one kind of numbers, and keeps them: `python compile_kernels.py float64`.

With those of single precision, which studies use, OpenSimplex's; double precision is for tests.
"""

import sys

import numpy as np
from problems import make_problem

from ddstudy.images.inputs import noise_volume
from ddstudy.solvers.fused import kernels_cpu
from ddstudy.solvers.fused.step import Step


def main(dtype: str) -> None:
    """Calls each with all its types."""
    for k in (8, 24):  # vectors of 8 channels and of 16
        work = make_problem(k)
        step = Step(work.prior, work.measurement, len(work.weights), kernels_cpu, dtype=dtype)
        inputs, weights = step.pad(work.inputs), kernels_cpu.from_numpy(work.weights, dtype)
        gradients = kernels_cpu.zeros(weights.shape, dtype)
        losses, outputs = step.mse(inputs, weights, gradients), step.forward(inputs, weights)
        step.backward(inputs, weights, outputs.copy(), gradients)
        kernels_cpu.Adam(weights, 0.01).update(gradients)
        kernels_cpu.Iterate(weights, "average").update(losses, weights)
        kernels_cpu.Average(outputs, 0.5).update(outputs)
    if dtype == "float32":
        samples = np.zeros(40, np.float32)
        kernels_cpu._residuals(samples, samples, 1.0, samples)
        noise_volume("simplex", 1, 2, 2, np.random.default_rng(0))


if __name__ == "__main__":
    main(sys.argv[1])
