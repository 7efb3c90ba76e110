"""The Deep Decoder as torch modules: Eqs. 2.1 and 2.2 of the thesis, differentiated by autograd."""

from __future__ import annotations

import torch
from torch import nn

from ddstudy.priors.deep_decoder import EPS, DeepDecoder


class Block(nn.Module):
    """B_{i+1} = norm(relu(upsample(conv(B_i)))) (Eq. 2.1); (tiles, k, h, w) -> (tiles, k, *size)."""

    def __init__(self, k: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.conv = nn.Conv2d(k, k, 1, bias=False)
        # per tile and channel: batch normalisation would mix the tiles (sec. 3.2)
        self.norm = nn.InstanceNorm2d(k, eps=EPS, affine=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One block."""
        up = nn.functional.interpolate(self.conv(x), self.size, mode="bilinear", align_corners=False)
        normalised: torch.Tensor = self.norm(torch.relu(up))
        return normalised


class Network(nn.Module):
    """Input (tiles, k, h0, w0) -> output (tiles, channels, h, w), in [0, 1] but for a linear head."""

    def __init__(self, prior: DeepDecoder) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(prior.k, size) for size in prior.sizes[1:]))
        self.head = nn.Conv2d(prior.k, prior.channels, 1, bias=False)
        self.linear = prior.head == "linear"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """All blocks and the head (Eq. 2.2)."""
        logits: torch.Tensor = self.head(self.blocks(x))
        return logits if self.linear else torch.sigmoid(logits)
