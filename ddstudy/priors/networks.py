"""The networks of ConvDecoder, Deep Image Prior and SIREN in torch, differentiated by autograd.

Normalisation is over the pixels of each tile and channel (`nn.InstanceNorm2d`): for one tile the batch normalisation of
the papers in training, which is how they use it throughout.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from ddstudy.priors.base import Head


def conv_decoder(k: int, channels: int, sizes: Sequence[tuple[int, int]], head: Head) -> nn.Sequential:
    """(tiles, k, h0, w0) -> (tiles, channels, h, w); arguments as in `ddstudy.priors.conv_decoder.ConvDecoder`."""
    layers: list[nn.Module] = []
    for size in (*sizes[1:], None):
        if size is not None:
            layers.append(nn.Upsample(size=size, mode="nearest"))
        layers += [nn.Conv2d(k, k, 3, padding=1, bias=False), nn.ReLU(), _norm(k)]
    layers.append(nn.Conv2d(k, channels, 1, bias=False))
    return nn.Sequential(*layers, *([nn.Sigmoid()] if head == "sigmoid" else []))


class SkipNetwork(nn.Module):
    """(tiles, inputs, h, w) -> (tiles, channels, h, w); arguments as in `ddstudy.priors.dip.DeepImagePrior`."""

    def __init__(self, k: int, scales: int, channels: int, skip: int, inputs: int, upsampling: str, head: Head) -> None:
        super().__init__()
        self.down = nn.ModuleList(_Downwards(k if index else inputs, k, skip) for index in range(scales))
        self.up = nn.ModuleList(
            nn.Sequential(_norm(k + skip), _convolved(k + skip, k, 3), _convolved(k, k)) for _ in range(scales)
        )
        self.head = nn.Conv2d(k, channels, 1)
        self.upsampling, self.linear = upsampling, head == "linear"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """All scales and the head."""
        kept = []
        for scale in self.down:
            skipped, size, x = scale(x)
            kept.append((skipped, size))
        for (skipped, size), scale in zip(reversed(kept), self.up, strict=True):
            x = nn.functional.interpolate(x, size, mode=self.upsampling)
            x = scale(torch.cat([*skipped, x], dim=1))
        logits: torch.Tensor = self.head(x)
        return logits if self.linear else torch.sigmoid(logits)


class _Downwards(nn.Module):
    """One scale: what is skipped, none or one tensor; the size; what the next scale is given, at half of it."""

    def __init__(self, inputs: int, k: int, skip: int) -> None:
        super().__init__()
        self.skips = nn.ModuleList([_convolved(inputs, skip)] if skip else [])
        self.deeper = nn.Sequential(_convolved(inputs, k, 3, stride=2), _convolved(k, k, 3))

    def forward(self, x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Size, torch.Tensor]:
        return [skip(x) for skip in self.skips], x.shape[2:], self.deeper(x)


class SirenNetwork(nn.Module):
    """(tiles, 2, h, w) -> (tiles, channels, h, w); arguments as in `ddstudy.priors.siren.Siren`."""

    def __init__(self, k: int, hidden: int, channels: int, omega: float, head: Head) -> None:
        super().__init__()
        widths = [2, *[k] * (hidden + 1)]
        self.sines = nn.ModuleList(nn.Linear(one, other) for one, other in itertools.pairwise(widths))
        self.last = nn.Linear(k, channels)
        self.omega, self.linear = omega, head == "linear"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Each pixel by itself."""
        values = x.movedim(1, -1)
        for layer in self.sines:
            values = torch.sin(self.omega * layer(values))
        output: torch.Tensor = self.last(values).movedim(-1, 1)
        return output if self.linear else (output + 1) / 2


def _norm(channels: int) -> nn.InstanceNorm2d:
    return nn.InstanceNorm2d(channels, affine=True)


def _convolved(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, padding_mode="reflect")
    return nn.Sequential(convolution, _norm(outputs), nn.LeakyReLU(0.2))
