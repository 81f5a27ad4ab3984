"""A small classifier of styles, for the flow's evaluation only."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mltrain.rng import own_rng
from projects.style_transfer.pictures import random_crops

_CROPS_EACH = 8


def trained_classifier(pictures: Sequence[Sequence[Tensor]], side: int, steps: int) -> nn.Module:
    """Train a classifier on crops, with its own random numbers.

    Args:
        pictures: pictures of each style, (3, H, W) uint8.
        side: side of the crops in pixels.
        steps: number of batches, each with eight crops of every style.

    Returns:
        A module in evaluation mode, from (B, 3, H, W) in [0, 1] to logits (B, styles).

    """
    labels = torch.arange(len(pictures)).repeat_interleave(_CROPS_EACH)
    with own_rng(0), torch.enable_grad():
        net = _layers(len(pictures))
        optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=1e-2)
        for _ in range(steps):
            crops = torch.cat([random_crops(style, side, _CROPS_EACH) for style in pictures])
            # Brightness varies, so the classifier has to use texture and colour together.
            light = 0.8 + 0.4 * torch.rand(len(crops), 1, 1, 1)
            optimizer.zero_grad()
            F.cross_entropy(net((crops * light).clamp(0, 1)), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return net.eval().requires_grad_(False)


@torch.no_grad()
def share_named(classifier: nn.Module, images: Tensor, style: int) -> float:
    """Return the share of images (B, 3, H, W) classified as a style."""
    return float((classifier(images).argmax(1) == style).float().mean())


def _layers(styles: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=2, padding=2),
        nn.GroupNorm(4, 16),
        nn.SiLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.GroupNorm(4, 32),
        nn.SiLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, styles),
    )
