"""Features of untrained random convolutions, beside the LSTM."""

import math
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LENGTH = 9
"""Weights of a kernel for each channel."""


GAIN = 4.0
"""Norm of the features of a window; with a smaller one the head learns too slowly beside an LSTM."""


class Kernels(nn.Module):
    """Maximum and share of positive values of random convolutions: normalised windows (N, T, C) to features (N, 2 K).

    The transform of ROCKET (Dempster, Petitjean and Webb, Data Mining and Knowledge Discovery 34, 2020) with kernels of one
    length, padding on both sides, and dilations that are powers of two. On a few dozen windows a linear layer on such features
    generalises where trained convolutions do not. Kernels and the moments of the features are buffers, so they are
    saved and loaded with the weights that were trained on them.

    Args:
        weight: shape (dilations, kernels, C, 9), dilated by 1, 2, 4, …
        bias: shape (dilations, kernels).
        mean: of each feature over the training windows, shape (2 K,) with K = dilations * kernels.
        std: likewise; 0 counts as 1.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.clone())
        self.register_buffer("bias", bias.clone())
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", torch.where(std > 1e-6, std, torch.ones_like(std)))

    @classmethod
    @torch.no_grad()
    def drawn(cls, count: int, scaled: Tensor) -> Self:
        """Return about ``count`` kernels for normalised training windows (N, T, C).

        A kernel sees a random subset of the channels. The longest spans at most a window; steps of NaN are padding. Random
        numbers are from torch's global generator.
        """
        _, steps, channels = scaled.shape
        dilations = max(1, int(math.log2(max(1.0, (steps - 1) / (LENGTH - 1)))) + 1)
        each = max(1, count // dilations)
        weight = torch.randn(dilations, each, channels, LENGTH)
        weight -= weight.mean(dim=3, keepdim=True)
        seen = torch.exp2(torch.rand(dilations, each) * math.log2(channels + 1)).floor()
        rank = torch.rand(dilations, each, channels).argsort(dim=2)
        weight *= (rank < seen[..., None])[..., None]
        bias = torch.empty(dilations, each).uniform_(-1.0, 1.0)
        unit = torch.ones(2 * dilations * each)
        raw = cls(weight, bias, torch.zeros_like(unit), unit)
        inside = ~scaled[..., 0].isnan()
        pieces = zip(torch.split(scaled.nan_to_num(), 64), torch.split(inside, 64), strict=True)
        features = torch.cat([raw.raw(piece, within) for piece, within in pieces])
        return cls(weight, bias, features.mean(dim=0), features.std(dim=0, correction=0))

    def forward(self, scaled: Tensor, inside: Tensor) -> Tensor:
        """Return standardised features of shape (N, 2 K).

        Over the training windows their mean is 0, and the norm of a window's features about :data:`GAIN`.

        Args:
            scaled: normalised signals, shape (N, T, C), with padding of 0.
            inside: which steps are not padding, bool, shape (N, T).
        """
        return (self.raw(scaled, inside) - self.mean) / self.std * (GAIN / math.sqrt(len(self.mean)))

    @torch.no_grad()
    def raw(self, scaled: Tensor, inside: Tensor) -> Tensor:
        """Return the features as they are, shape (N, 2 K): all maxima, then all shares."""
        counted, values = inside[:, None], scaled.transpose(1, 2)
        largest, positive = [], []
        for number, (weight, bias) in enumerate(zip(self.weight, self.bias, strict=True)):
            dilation = 2**number
            convolved = F.conv1d(values, weight, bias, dilation=dilation, padding=LENGTH // 2 * dilation)
            largest.append(convolved.masked_fill(~counted, -torch.inf).amax(dim=2))
            positive.append(((convolved > 0) & counted).sum(dim=2) / inside.sum(dim=1, keepdim=True))
        return torch.cat([*largest, *positive], dim=1)
