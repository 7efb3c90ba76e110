"""Measurements: simulated from a target, or taken from its file; what they look like, and how fits are held to them.

A simulation depends on the target and the `[task]` table only. Noise, mask, phase and held-out samples have streams of
their own, of NumPy's SeedSequence over `task.seed`, and are scaled or thresholded versions of the same numbers: what
is measured at twice the noise has the same noise, doubled; pixels at a smaller share are among those at a larger one.
So settings that differ in the level of a task differ in nothing else. (Poisson noise cannot be scaled, and equispaced
columns are elsewhere at every acceleration.) Slices of a volume that is measured as a whole (`Target.number`) have
noise of their own, and mask, phase and held-out places in common.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ddstudy.errors import UserError
from ddstudy.images.kspace import centred_fft, load_maps
from ddstudy.images.volumes import SIDE, Target, load_mask
from ddstudy.spec.options import TaskSpec
from ddstudy.tasks.base import Measurement
from ddstudy.tasks.operators import Downsampling, Joint, Mri, resampling

if TYPE_CHECKING:
    import torch

Array = NDArray[np.float32]

_STREAMS = {"noise": 0, "mask": 1, "phase": 2, "held_out": 3}
_LEAST_POISSON = 1e-8  # below, counts would not fit into 64 bits
_CALIBRATION = (8, 24)  # least and most rows and columns of k-space's centre that ESPIRiT is given
_NAN = np.float32("nan")


def measure(target: Target, task: TaskSpec, held_out: float = 0.0) -> Measurement:
    """What a solver may see of a target.

    * `represent`: the image itself; so is a measured file of `denoise`.
    * `denoise`: noise of standard deviation sigma. `gaussian` goes beyond [0, 1]. `clipped` to it, as in the literature
      of untrained priors, it is neither Gaussian nor of mean 0 near black: the black background of an MR image becomes
      brighter by 0.4 sigma. `rician`, the magnitude of an image with complex noise, does so by 1.25 sigma. `poisson` is
      sigma^2 Poisson(x / sigma^2), whose deviation is sigma sqrt(x).
    * `inpaint`: a share of the pixels, exactly, or those of `task.mask`, the same in all channels, with noise as above.
    * `super_resolve`: the image downsampled by `task.filter`, then noise as above; the operator, which the loss uses,
      is that of `task.loss_filter`. Of a measured file, the image is the low-resolution one.
    * `mri`: k-space of the grey image with a smooth phase (a random polynomial of degree 2, of `task.phase` radians at
      most), columns of it, with complex Gaussian noise of deviation sigma in either component, which an orthonormal
      FFT leaves the same in the image. Of a measured file, `Target.kspace`.

    Held-out k-space is of single locations, for all coils at once, outside the central `task.center_fraction` of
    columns: the centre has almost all energy, so one of its samples would decide the judge's score, no neighbour
    predicts it, and sensitivities are estimated from it.

    Args:
        target: its image, in [0, 1], or its k-space.
        task: the `[task]` table.
        held_out: share of the measured pixels, or of k-space's locations that may be held out, that goes to
            `Measurement.held_out`.

    Raises:
        UserError: the task cannot be done with this target, or a file that it names cannot be used.
    """
    match task.kind:
        case "represent":
            measured = Measurement(target.image, None, _three(target.image))
        case "denoise":
            simulated = task.source == "simulated"
            measured = Measurement(
                _noisy(target.image, task, target.number) if simulated else target.image, None, _three(target.image)
            )
        case "inpaint":
            measured = _inpaint(target, task)
        case "super_resolve":
            measured = _super_resolve(target, task)
        case "mri":
            return _mri(target, task, held_out)
    if not held_out:
        return measured
    samples, held = _hold_out(measured.samples, ~np.isnan(measured.samples[0]), task, held_out)
    return Measurement(samples, measured.operator, measured.shape, held)


def joint(measurements: Sequence[Measurement]) -> Measurement:
    """Measurements of one kind as one, of an image that has the channels of all of them; nothing is held out."""
    first = measurements[0]
    if len(measurements) == 1:
        return first
    channels, height, width = first.shape
    operators = tuple(each.operator for each in measurements if each.operator is not None)
    return Measurement(
        np.concatenate([each.samples for each in measurements]),
        Joint(operators, channels) if operators else None,
        (len(measurements) * channels, height, width),
        head=first.head,
    )


def picture(measurement: Measurement) -> Array:
    """What one would look at without a fit, (C, H, W) in [0, 1], of `Measurement.samples`.

    The noisy image; 0 where no pixel was measured; a low-resolution image enlarged by bicubic interpolation; of k-space
    the zero-filled magnitude, coils combined by their maps.
    """
    samples: NDArray[Any] = np.nan_to_num(measurement.samples, nan=0.0)
    operator = measurement.operator
    if isinstance(operator, Mri):
        samples = _applied(operator.adjoint, samples[None])[0]
    elif isinstance(operator, Downsampling):
        rows, columns = (
            resampling(old, new, "bicubic") for old, new in zip(samples.shape[1:], measurement.shape[1:], strict=True)
        )
        samples = rows @ samples @ columns.T
    return to_images(samples, measurement)


def to_images(outputs: NDArray[np.floating[Any]], measurement: Measurement) -> Array:
    """Outputs of networks (..., C, H, W) as images in [0, 1], clipped; of complex ones magnitudes (..., 1, H, W)."""
    images = np.asarray(outputs, dtype=np.float32)
    if measurement.head == "linear":
        images = np.hypot(images[..., :1, :, :], images[..., 1:, :, :])
    return np.clip(images, 0, 1)


def consistent(outputs: Array, measurement: Measurement) -> Array:
    """MR images with measured k-space in place of what was fitted there: hard data consistency.

    Every coil's image S x is transformed, its k-space replaced by the samples where there are any, transformed back,
    and coils are combined with the conjugate maps: sum |S|^2 x + A^T (y - A x), y - A x being 0 where there is no
    sample. Held-out samples are none.

    Args:
        outputs: (..., 2, H, W).
        measurement: of kind `mri`.
    """
    operator = measurement.operator
    if not isinstance(operator, Mri):
        raise ValueError("hard data consistency is defined for k-space")
    images = outputs.reshape(-1, *measurement.shape)
    correction = _applied(operator.adjoint, np.nan_to_num(-residual(images, measurement), nan=0.0))
    if operator.maps is not None:
        images = images * (np.abs(operator.maps) ** 2).sum(axis=0)
    return np.asarray(images + correction, dtype=np.float32).reshape(outputs.shape)


def residual(outputs: Array, measurement: Measurement) -> Array:
    """A x - y of outputs (M, C, H, W), (M, *samples.shape); NaN where there is no sample."""
    return _predicted(outputs, measurement) - measurement.samples


def residual_picture(left: Array, measurement: Measurement) -> Array:
    """What `residual` leaves of one output as one looks at it: in images, or as the image that k-space stands for.

    Args:
        left: of the samples' shape.
        measurement: that it is of.

    Returns:
        float32 (C, H, W), or of the low-resolution image; 0 where there is no sample.
    """
    filled = np.nan_to_num(left, nan=0.0)
    if not isinstance(measurement.operator, Mri):
        return np.asarray(filled, dtype=np.float32)
    real, imaginary = _applied(measurement.operator.adjoint, filled[None])[0]
    return np.asarray(np.hypot(real, imaginary)[None], dtype=np.float32)


def held_out_errors(outputs: Array, measurement: Measurement) -> NDArray[np.float64]:
    """Mean squared error of outputs (M, C, H, W) on the held-out samples, (M,)."""
    if measurement.held_out is None:
        raise ValueError("nothing was held out")
    held = ~np.isnan(measurement.held_out)
    predicted = _predicted(outputs.astype(np.float64), measurement)
    return np.asarray(((predicted[:, held] - measurement.held_out[held]) ** 2).mean(axis=1), dtype=np.float64)


def _predicted(outputs: NDArray[Any], measurement: Measurement) -> NDArray[Any]:
    """A x, in the outputs' precision."""
    return outputs if measurement.operator is None else _applied(measurement.operator.forward, outputs)


def _applied(function: Callable[[torch.Tensor], torch.Tensor], values: NDArray[Any]) -> NDArray[Any]:
    import torch

    with torch.no_grad():
        return np.asarray(function(torch.from_numpy(np.ascontiguousarray(values))).numpy())


def _three(image: NDArray[Any]) -> tuple[int, int, int]:
    channels, height, width = image.shape
    return channels, height, width


def _stream(task: TaskSpec, name: str, number: int | None = None) -> np.random.Generator:
    """A stream of a measurement, or of the slice of this number where a volume is measured."""
    own = [] if number is None else [number]
    return np.random.default_rng(np.random.SeedSequence([task.seed, _STREAMS[name], *own]))


def _least(values: NDArray[np.float64], count: int, among: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where the `count` least values are, of those `among` which to choose."""
    order = np.argsort(np.where(among, values, np.inf), axis=None, kind="stable")
    chosen = np.zeros(values.shape, dtype=bool)
    chosen.flat[order[:count]] = True
    return chosen


def _hold_out(samples: Array, candidates: NDArray[np.bool_], task: TaskSpec, share: float) -> tuple[Array, Array]:
    """Samples without, and with only, those at a share of the candidates (H, W)."""
    total = int(np.count_nonzero(candidates))
    count = max(1, round(share * total))
    if count >= total:
        wrong = f"judge.share = {share:g} holds out {count} of {total} samples that may be held out"
        raise UserError(wrong, "Valid: a task that measures more, a share that leaves some.")
    held = _least(_stream(task, "held_out").random(candidates.shape), count, candidates)
    return np.where(held, _NAN, samples), np.where(held, samples, _NAN)


def _noisy(image: NDArray[np.floating[Any]], task: TaskSpec, number: int | None) -> Array:
    rng, sigma, x = _stream(task, "noise", number), task.sigma, image.astype(np.float64)
    if task.noise == "poisson":
        if 0 < sigma < _LEAST_POISSON:
            wrong = f"task.sigma = {sigma:g} is too little for Poisson noise"
            raise UserError(wrong, f"Valid: 0, or {_LEAST_POISSON:g} and more.")
        # a filter's overshoot may be negative, where no photon is counted
        return (rng.poisson(np.maximum(x, 0) / sigma**2) * sigma**2 if sigma else x).astype(np.float32)
    y = x + sigma * rng.standard_normal(x.shape)
    if task.noise == "clipped":
        y = np.clip(y, 0, 1)
    elif task.noise == "rician":
        y = np.hypot(y, sigma * rng.standard_normal(x.shape))
    return y.astype(np.float32)


def _inpaint(target: Target, task: TaskSpec) -> Measurement:
    image = target.image
    sides = image.shape[1:]
    if task.mask is not None:
        measured = load_mask(task.mask)
        if measured.shape != sides:
            wrong = f"{task.mask}: is {_by(measured.shape)}, the target {_by(sides)}"
            raise UserError(wrong, "Valid: a mask of the target's rows and columns.")
        if not measured.any():
            raise UserError(f"{task.mask}: is 0 everywhere", "Valid: not 0 where the image is measured.")
    elif task.source == "file":
        raise UserError("task.mask: a measured image that is incomplete needs one", "Valid: an image or .npy file.")
    else:
        count = max(1, round(task.share * sides[0] * sides[1]))
        measured = _least(_stream(task, "mask").random(sides), count, np.ones(sides, dtype=bool))
    pixels = _noisy(image, task, target.number) if task.source == "simulated" else image
    return Measurement(np.where(measured, pixels, _NAN), None, _three(image))


def _super_resolve(target: Target, task: TaskSpec) -> Measurement:
    image = target.image
    (channels, height, width), factor = image.shape, task.factor
    in_loss = task.filter if task.loss_filter == "same" else task.loss_filter
    if task.source == "file":
        if factor * max(height, width) > SIDE[1]:
            wrong = f"task.factor = {factor} makes {factor * height} x {factor * width} pixels of the target"
            raise UserError(wrong, f"Valid: up to {SIDE[1]} on each side.")
        large = channels, factor * height, factor * width
        return Measurement(image, Downsampling(large, factor, in_loss), large)
    if height % factor or width % factor:
        wrong = f"task.factor = {factor} does not divide the target's sides, {_by((height, width))}"
        raise UserError(wrong, "Valid: a divisor of both; `target.size` resizes.")
    rows, columns = (resampling(side, side // factor, task.filter) for side in (height, width))
    samples = _noisy(rows @ image.astype(np.float64) @ columns.T, task, target.number)
    return Measurement(samples, Downsampling(_three(image), factor, in_loss), _three(image))


def _mri(target: Target, task: TaskSpec, held_out: float) -> Measurement:
    maps: NDArray[np.complex64] | None
    if task.source == "file":
        samples, mask, maps = _measured_kspace(target, task)
    else:
        samples, mask, maps = _simulated_kspace(target, task)
    samples, held = np.where(mask, samples, _NAN), None
    if held_out:
        outside = mask.copy()
        outside[:, _centre(task, mask.shape[1])] = False
        samples, held = _hold_out(samples, outside, task, held_out)
    if samples.ndim == 4 and task.sensitivities == "estimated":
        maps = _espirit(samples)
    height, width = mask.shape
    return Measurement(samples, Mri(mask, maps), (2, height, width), held, "linear")


def _measured_kspace(target: Target, task: TaskSpec) -> tuple[Array, NDArray[np.bool_], NDArray[np.complex64] | None]:
    """Samples of a file, where it has some, and maps of its coils, unless they are estimated."""
    kspace = target.kspace
    if kspace is None:
        wrong = f"{target.name}: is an image, no measured k-space"
        raise UserError(wrong, "Valid: complex .npy or .h5; task.source = 'simulated' measures an image.")
    maps = None
    if task.maps is not None:
        if task.sensitivities == "estimated":
            raise UserError("task.maps: sensitivities are to be estimated, too", "Valid: one of the two.")
        maps = _maps_of(task.maps, kspace.shape[-2:])
        kspace = kspace[None] if kspace.ndim == 2 else kspace
        if len(maps) != len(kspace):
            raise UserError(f"{task.maps}: has {len(maps)} coils, the k-space {len(kspace)}", "Valid: as many.")
    elif kspace.ndim == 3 and len(kspace) == 1:
        kspace = kspace[0]
    elif kspace.ndim == 3 and task.sensitivities == "birdcage":
        wrong = f"{target.name}: of its {len(kspace)} coils the sensitivities are not known"
        raise UserError(wrong, "Valid: task.sensitivities = 'estimated', or a file in task.maps.")
    mask = kspace != 0
    return _components(kspace).astype(np.float32), mask if mask.ndim == 2 else mask.any(axis=0), maps


def _simulated_kspace(target: Target, task: TaskSpec) -> tuple[Array, NDArray[np.bool_], NDArray[np.complex64] | None]:
    """All of k-space with noise, where it is sampled, and maps of the coils."""
    if len(target.image) != 1:
        raise UserError(f"{target.name}: has {len(target.image)} channels", "Valid: a grey image for task 'mri'.")
    image = target.image[0].astype(np.float64)
    height, width = image.shape
    maps: NDArray[np.complex64] | None = None
    if task.maps is not None:
        maps = _maps_of(task.maps, image.shape)
        if task.coils not in (1, len(maps)):
            raise UserError(f"{task.maps}: has {len(maps)} coils, not {task.coils}", "Valid: leave `task.coils` out.")
    elif task.coils > 1:
        maps = _birdcage(task.coils, height, width)
    x = image * np.exp(1j * task.phase * _unit_phase(task, height, width))
    clean = _components(centred_fft(x if maps is None else maps * x))
    samples = (clean + task.sigma * _stream(task, "noise", target.number).standard_normal(clean.shape)).astype(
        np.float32
    )
    return samples, np.broadcast_to(_columns(task, width), image.shape).copy(), maps


def _components(values: NDArray[Any]) -> NDArray[Any]:
    return np.stack((values.real, values.imag))


def _unit_phase(task: TaskSpec, height: int, width: int) -> NDArray[np.float64]:
    """A random polynomial of degree 2 without a constant, whose largest size over the image is 1."""
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
    terms = np.broadcast_arrays(y + 0 * x, x + 0 * y, y**2 + 0 * x, x * y, x**2 + 0 * y)
    phase = np.tensordot(_stream(task, "phase").standard_normal(len(terms)), np.stack(terms), axes=1)
    return np.asarray(phase / np.abs(phase).max())


def _centre(task: TaskSpec, width: int) -> slice:
    """The columns in the middle of k-space that are always measured (placed as fastMRI places them)."""
    count = round(task.center_fraction * width)
    first = (width - count + 1) // 2
    return slice(first, first + count)


def _columns(task: TaskSpec, width: int) -> NDArray[np.bool_]:
    """Which columns of k-space are measured: the centre, and others until they are width / acceleration, rounded.

    Of those, `random` are all equally likely; `equispaced` have fastMRI's spacing, corrected for the centre, from a
    random offset; `gaussian` are denser towards the centre (deviation width / 10 on a floor of 1 / (2 acceleration),
    Schlemper et al. 2018).
    """
    centre = np.zeros(width, dtype=bool)
    centre[_centre(task, width)] = True
    count = max(1, round(width / task.acceleration)) - int(np.count_nonzero(centre))
    if count < 0:
        wrong = (
            f"task.center_fraction = {task.center_fraction:g} is more than acceleration {task.acceleration:g} measures"
        )
        raise UserError(wrong, f"Valid: up to {1 / task.acceleration:g}.")
    rng = _stream(task, "mask")
    if task.sampling == "equispaced":
        outside = np.flatnonzero(~centre)
        chosen = np.zeros(width, dtype=bool)
        chosen[outside[((np.arange(count) + rng.random()) * len(outside) / max(count, 1)).astype(int)]] = True
        return centre | chosen
    likely: NDArray[np.float64] = np.ones(width)
    if task.sampling == "gaussian":
        x = (np.arange(width) - width / 2) / (width / 10)
        likely = np.exp(-0.5 * x**2) + 0.5 / task.acceleration
    # the least of exponential variables of these rates are a draw without replacement (Efraimidis & Spirakis 2006)
    waiting = rng.standard_exponential(width) / likely
    return centre | _least(waiting, count, ~centre)


def _maps_of(file: str, sides: tuple[int, ...]) -> NDArray[np.complex64]:
    maps = load_maps(file)
    if maps.shape[1:] != sides:
        wrong = f"{file}: is {_by(maps.shape[1:])}, the target {_by(sides)}"
        raise UserError(wrong, "Valid: maps of the target's rows and columns.")
    return maps


def _birdcage(coils: int, height: int, width: int) -> NDArray[np.complex64]:
    """Sensitivities of coils in a ring about the image, (coils, H, W), whose squares' sum is 1."""
    try:
        from sigpy.mri import birdcage_maps
    except ModuleNotFoundError:
        raise _without_sigpy("task.coils") from None
    return np.asarray(birdcage_maps((coils, height, width), dtype=np.complex64))


def _espirit(samples: Array) -> NDArray[np.complex64]:
    """Sensitivities from the centre of k-space alone (ESPIRiT, Uecker et al. 2014), squares' sum 1.

    They are not cropped to where the object is: a pixel that no coil sees could be anything in a fit. The kernel is 6
    wide as usual, and 4 where the centre is so small that 6 would leave too few places for it: from 8 rows and columns
    of four birdcage coils, coil images are explained but for 2 % instead of 4 % of their norm.
    """
    try:
        from sigpy.mri.app import EspiritCalib
    except ModuleNotFoundError:
        raise _without_sigpy("task.sensitivities") from None
    kept = ~np.isnan(samples[0, 0])
    least, most = _CALIBRATION
    for size in range(min(most, *kept.shape), least - 1, -1):
        middle = tuple(slice(side // 2 - size // 2, side // 2 - size // 2 + size) for side in kept.shape)
        if kept[middle].all():
            break
    else:
        wrong = f"task.sensitivities: to be estimated from fewer than {least} columns in the middle of k-space"
        raise UserError(wrong, f"Valid: task.center_fraction of {least / kept.shape[1]:.3g} and more.")
    filled = np.nan_to_num(samples, nan=0.0)
    kspace = (filled[0] + 1j * filled[1]).astype(np.complex64)
    app = EspiritCalib(kspace, calib_width=size, kernel_width=6 if size >= 16 else 4, crop=0, show_pbar=False)
    return np.asarray(app.run(), dtype=np.complex64)


def _without_sigpy(what: str) -> UserError:
    return UserError(f"{what}: sigpy is not installed", "Install it: pip install 'ddstudy[inverse]'.")


def _by(sides: tuple[int, ...]) -> str:
    return " x ".join(map(str, sides))
