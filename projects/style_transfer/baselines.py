"""Translations without a network: none, a colour matrix, or a histogram for each channel."""

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from projects.style_transfer.codec import Standardized
from projects.style_transfer.losses import structure_distance
from projects.style_transfer.transport import gaussian_map, points

Baseline = Callable[[Tensor, int, int], Tensor]
"""Maps images (B, 3, H, W) in [0, 1], their style and a target style to images of the target style."""

_RIDGE = 3e-3
"""Added to the variance of each channel (14 of 255 grey levels), so that grey pictures get no garish colours. Of the values from
0.0001 to 0.003 this one gave the matrix the smallest distances and the smallest change of content."""

_QUANTILES = 257


def baselines(crops: Sequence[Tensor]) -> Mapping[str, Baseline]:
    """Fit the baselines to training crops (B, 3, H, W) of each style.

    Returns:
        ``identity``; ``colour matrix``, the optimal 3 by 3 matrix and shift between the colours of the two styles (Pitié and
        Kokaram 2007); ``histogram``, which gives each channel the distribution that it has in the target style.

    """
    pixels = [points(one).double() for one in crops]
    return {
        "identity": lambda images, source, target: images,
        "colour matrix": _ColourMatrix(pixels),
        "histogram": _Histogram(pixels),
    }


@torch.no_grad()
def content_change(codec: Standardized, method: Baseline, crops: Sequence[Tensor]) -> float:
    """Return a method's change of self-similarity, averaged over style pairs.

    ``crops`` holds images (B, 3, H, W) of each style.
    """
    pairs = itertools.permutations(range(len(crops)), 2)
    encoded = [codec.encode(one) for one in crops]
    changes = [
        structure_distance(codec.encode(method(crops[source], source, target)), encoded[source])
        for source, target in pairs
    ]
    return float(torch.stack(changes).mean())


class _ColourMatrix:
    def __init__(self, pixels: Sequence[Tensor]) -> None:
        ridge = _RIDGE * torch.eye(pixels[0].shape[1], dtype=torch.float64)
        self._means = [one.mean(0) for one in pixels]
        self._covariances = [torch.cov(one.T) + ridge for one in pixels]

    def __call__(self, images: Tensor, source: int, target: int) -> Tensor:
        matrix = gaussian_map(self._covariances[source], self._covariances[target])
        moved = (images.movedim(1, -1).double() - self._means[source]) @ matrix + self._means[target]
        return moved.movedim(-1, 1).clamp(0, 1).float()


class _Histogram:
    def __init__(self, pixels: Sequence[Tensor]) -> None:
        shares = np.linspace(0, 1, _QUANTILES)
        self._quantiles = [np.quantile(one.numpy(), shares, axis=0) for one in pixels]

    def __call__(self, images: Tensor, source: int, target: int) -> Tensor:
        given, wanted = self._quantiles[source], self._quantiles[target]
        channels = [
            np.interp(images[:, channel].numpy(), given[:, channel], wanted[:, channel])
            for channel in range(images.shape[1])
        ]
        return torch.from_numpy(np.stack(channels, axis=1)).float()
