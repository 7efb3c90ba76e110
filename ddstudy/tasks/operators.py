"""The linear operators of tasks: downsampling and Cartesian MRI, in torch, each with its exact adjoint.

They are called once per iteration of a fit, by several threads at once, and within CUDA graphs: nothing is looked up,
moved or waited for in a call but constants, which the first call on a device makes (so it comes before the capture of
a graph). They are written out here because that makes them fast. As two products with small matrices, downsampling
takes a tenth of the time of deepinv's two-dimensional convolution, of whose pixels one in factor^2 is kept, and needs
no padding that its adjoint would have to undo. The shifts of a centred FFT are signs that are multiplied into what is
multiplied with anyway, coil maps and mask, instead of two more copies of k-space: half the time of deepinv's. The
tests hold both to Pillow's resampling, to NumPy's FFT, and to deepinv's operators. `Joint` applies some side by side.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

    from ddstudy.tasks.base import Operator

Filter = Literal["bicubic", "bilinear", "gaussian", "lanczos"]

_RADIUS = {"bicubic": 2.0, "bilinear": 1.0, "gaussian": 1.6, "lanczos": 3.0}  # in low-resolution pixels


def resampling(old: int, new: int, filter: Filter) -> NDArray[np.float64]:
    """Weights (new, old) that resample a line of pixels, as Pillow's `resize` does: antialiased, each row of sum 1.

    Where it shrinks, the filter is as wide as its radius in new pixels; where it grows, in old ones. At the ends it is
    cut and normalised, so that a constant stays one.

    Args:
        old: pixels, which are squares about their index + 1/2.
        new: pixels.
        filter: bicubic (Keys, a = -1/2, as MATLAB and Pillow), bilinear (triangle), gaussian (standard deviation 0.4,
            1.6 pixels at factor 4 as in super-resolution's blur-and-decimate benchmarks, cut at 4 deviations) or
            lanczos (3 lobes, with which the literature of the Deep Image Prior makes its measurements).
    """
    scale = old / new
    x = np.abs((np.arange(old) + 0.5) - (np.arange(new)[:, None] + 0.5) * scale) / max(scale, 1.0)
    match filter:
        case "bicubic":
            near, far = (1.5 * x - 2.5) * x**2 + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
            weights = np.where(x < 1, near, far)
        case "bilinear":
            weights = 1 - x
        case "gaussian":
            weights = np.exp(-0.5 * (x / 0.4) ** 2)
        case "lanczos":
            weights = np.sinc(x) * np.sinc(x / 3)
    weights = np.where(x < _RADIUS[filter], weights, 0.0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


class _Constants:
    """What an operator multiplies with, as tensors: made once for each device and precision that is asked for.

    Threads that ask at the same moment may each make them; all are equal.
    """

    def _tensors(self, like: torch.Tensor) -> tuple[torch.Tensor, ...]:
        known: dict[object, tuple[torch.Tensor, ...]] = self.__dict__.setdefault("_known", {})
        key = like.device, like.dtype
        if key not in known:
            import torch

            with torch.inference_mode(False):  # what is made in it could never take part in a gradient
                known[key] = tuple(
                    torch.as_tensor(each).to(
                        like.device, like.dtype.to_complex() if each.dtype.kind == "c" else like.dtype
                    )
                    for each in self._arrays()
                )
        return known[key]

    def _arrays(self) -> tuple[NDArray[Any], ...]:
        raise NotImplementedError

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Downsampling(_Constants):
    """Antialiased downsampling of each channel, y = R x C^T with the weights of `resampling` for rows and columns.

    Attributes:
        image_shape: (C, H, W) of images.
        factor: of both sides, which it divides.
        filter: of antialiasing, see `resampling`.
    """

    image_shape: tuple[int, int, int]
    factor: int
    filter: Filter

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H / factor, W / factor) of samples."""
        channels, height, width = self.image_shape
        return channels, height // self.factor, width // self.factor

    def forward(self, images: torch.Tensor, /) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H / factor, W / factor)."""
        rows, columns = self._tensors(images)
        return rows @ (images @ columns.T)

    def adjoint(self, samples: torch.Tensor, /) -> torch.Tensor:
        """(B, C, H / factor, W / factor) -> (B, C, H, W)."""
        rows, columns = self._tensors(samples)
        return (rows.T @ samples) @ columns

    def _arrays(self) -> tuple[NDArray[Any], ...]:
        return tuple(
            resampling(old, new, self.filter) for old, new in zip(self.image_shape[1:], self.shape[1:], strict=True)
        )


@dataclass(frozen=True, eq=False)
class Mri(_Constants):
    """Cartesian MRI, y = M F S x: coil maps S, centred orthonormal 2-D FFT F, sampling mask M.

    Images are complex, (2, H, W) their real and imaginary part; samples are (2, H, W), or (2, coils, H, W) with maps.
    Zero frequency is at (H // 2, W // 2). Where M is 0, y is 0. Operators of equal numbers are equal.

    Attributes:
        mask: bool (H, W), where k-space is measured, of all coils.
        maps: complex64 (coils, H, W), what each coil sees of a pixel; None: one coil that sees all alike.
    """

    mask: NDArray[np.bool_]
    maps: NDArray[np.complex64] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(2, H, W), with maps (2, coils, H, W)."""
        return (2, *self.mask.shape) if self.maps is None else (2, *self.maps.shape)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over mask and maps, in hexadecimal."""
        content = repr(self.shape).encode() + np.asarray(self.mask, dtype=bool).tobytes()
        return hashlib.sha256(content + (b"" if self.maps is None else self.maps.astype("<c8").tobytes())).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mri) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def forward(self, images: torch.Tensor, /) -> torch.Tensor:
        """(B, 2, H, W) -> (B, *shape)."""
        import torch

        before, after, _, _ = self._tensors(images)
        x = torch.complex(images[:, 0], images[:, 1])
        k = torch.fft.fft2(before * (x if self.maps is None else x[:, None]), norm="ortho") * after
        return torch.stack((k.real, k.imag), 1)

    def adjoint(self, samples: torch.Tensor, /) -> torch.Tensor:
        """(B, *shape) -> (B, 2, H, W); samples where M is 0 count for nothing, but must be finite."""
        import torch

        _, _, before, after = self._tensors(samples)
        x = torch.fft.ifft2(after * torch.complex(samples[:, 0], samples[:, 1]), norm="ortho") * before
        if self.maps is not None:
            x = x.sum(1)
        return torch.stack((x.real, x.imag), 1)

    def _arrays(self) -> tuple[NDArray[Any], ...]:
        """What is multiplied with before and after the FFT, and the conjugates of both.

        With c = N // 2, (k - c)(n - c) = k n - c k - c n + c^2: a centred FFT is a plain one between two factors. They
        are 1 and -1 for even N; others need no copies for them either.
        """
        lines = []
        for length in self.mask.shape:
            centre = length // 2
            turns = centre * np.arange(length) % length / length  # 1/2 is exact where length is even
            lines.append((np.exp(2j * np.pi * turns), np.exp(2j * np.pi * (turns - centre * centre % length / length))))
        before, after = (np.multiply.outer(rows, columns) for rows, columns in zip(*lines, strict=True))
        after = after * self.mask
        if self.maps is not None:
            before = before * self.maps
        return before, after, before.conj(), after.conj()


@dataclass(frozen=True)
class Joint:
    """What operators make of images that are the channels of one, one after the other; so are their samples.

    Attributes:
        operators: of the images.
        channels: of each.
    """

    operators: tuple[Operator, ...]
    channels: int

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the first with as many times its channels."""
        first, *others = self.operators[0].shape
        return len(self.operators) * first, *others

    def forward(self, images: torch.Tensor, /) -> torch.Tensor:
        """(B, images x C, H, W) -> (B, *shape)."""
        import torch

        parts = images.split(self.channels, dim=1)
        return torch.cat([each.forward(part) for each, part in zip(self.operators, parts, strict=True)], dim=1)

    def adjoint(self, samples: torch.Tensor, /) -> torch.Tensor:
        """(B, *shape) -> (B, images x C, H, W)."""
        import torch

        parts = samples.split(self.operators[0].shape[0], dim=1)
        return torch.cat([each.adjoint(part) for each, part in zip(self.operators, parts, strict=True)], dim=1)
