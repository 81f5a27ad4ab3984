"""The velocity field of the flow: a small U-Net conditioned on time and style."""

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GRID = 4
"""The sides of latents are multiples of this, because the network halves them twice."""

_WAVES = 16

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


class VelocityNet(nn.Module):
    """Maps latents, time and style to the latents' velocity.

    It consists of convolutions, so latents may have any size in multiples of :data:`GRID`.

    Args:
        channels: channels of the latents.
        styles: number of styles.
        width: channels of the first level; the two below have twice as many.

    """

    def __init__(self, channels: int, styles: int, width: int = 32) -> None:
        super().__init__()
        inner, condition = 2 * width, 4 * width
        self.styles = nn.Embedding(styles, condition)
        self.time = nn.Sequential(nn.Linear(2 * _WAVES, condition), nn.SiLU(), nn.Linear(condition, condition))
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.fine = _Block(width, condition)
        self.down = nn.Conv2d(width, inner, 3, stride=2, padding=1)
        self.middle = _Block(inner, condition)
        self.lower = nn.Conv2d(inner, inner, 3, stride=2, padding=1)
        self.coarse = _Block(inner, condition)
        self.rise = nn.Conv2d(inner, inner, 3, padding=1)
        self.middle_again = _Block(inner, condition)
        self.up = nn.Conv2d(inner, width, 3, padding=1)
        self.fine_again = _Block(width, condition)
        self.leave = _zeroed(nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, latents: Tensor, time: Tensor, style: Tensor) -> Tensor:
        """Return the velocity.

        Args:
            latents: (B, C, H, W), H and W multiples of :data:`GRID`.
            time: (B,), 0 for noise and 1 for data.
            style: (B,) int64, or float32 weights (B, styles) of the sum of the embeddings.

        Returns:
            The velocity (B, C, H, W).

        """
        embedded = style @ self.styles.weight if style.is_floating_point() else self.styles(style)
        condition = F.silu(self.time(_waves(time)) + embedded)
        fine = self.fine(self.enter(latents), condition)
        middle = self.middle(self.down(fine), condition)
        coarse = self.coarse(self.lower(middle), condition)
        middle = self.middle_again(middle + self.rise(_doubled(coarse)), condition)
        fine = self.fine_again(fine + self.up(_doubled(middle)), condition)
        velocity: Tensor = self.leave(F.silu(fine))
        return velocity


class _Block(nn.Module):
    """Two convolutions beside a shortcut; the condition scales and shifts the input of each."""

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(min(8, width), width, affine=False) for _ in range(2)])
        self.films = nn.ModuleList([_zeroed(nn.Linear(condition, 2 * width)) for _ in range(2)])
        self.convolutions = nn.ModuleList(
            [nn.Conv2d(width, width, 3, padding=1), _zeroed(nn.Conv2d(width, width, 3, padding=1))]
        )

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        hidden = features
        for norm, film, convolution in zip(self.norms, self.films, self.convolutions, strict=True):
            scale, shift = film(condition)[:, :, None, None].chunk(2, dim=1)
            hidden = convolution(F.silu(norm(hidden) * (1 + scale) + shift))
        return features + hidden


def _waves(time: Tensor) -> Tensor:
    """Return sines and cosines (B, 32) of times in [0, 1]; frequencies from half a wave to 32 waves."""
    frequencies = math.pi * torch.logspace(0, 6, _WAVES, base=2, device=time.device)
    angles = time.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _doubled(features: Tensor) -> Tensor:
    return features.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def _zeroed(layer: Layer) -> Layer:
    """Return the layer with zero weights: a block begins as its shortcut (Zhang et al., Fixup, ICLR 2019)."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
