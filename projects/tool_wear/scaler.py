"""Normalisation of the channels, saved with the weights."""

from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class Scaler(nn.Module):
    """Subtracts every channel's mean and divides by its standard deviation.

    It is a module without parameters. Mean and standard deviation are buffers, so they are part of the model's state, and a
    loaded model always has the right normalisation.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        """Take mean and standard deviation of each channel, shape (C,), float32; a standard deviation of 0 counts as 1."""
        super().__init__()
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", torch.where(std > 0, std, torch.ones_like(std)))

    @classmethod
    def fitted(cls, signals: NDArray[np.floating]) -> Self:
        """Return the scaler of training windows (N, T, C).

        The moments are taken in double precision over windows and time, without padding; a constant channel is only centred.
        """
        padded = bool(np.isnan(signals).any())
        mean = (np.nanmean if padded else np.mean)(signals, axis=(0, 1), dtype=np.float64)
        std = (np.nanstd if padded else np.std)(signals, axis=(0, 1), dtype=np.float64)
        # By rounding a constant channel has a deviation of about 1e-16 of its mean, which must not be scaled to 1.
        std = np.where(std > 1e-7 * np.abs(mean), std, 0.0)
        return cls(torch.from_numpy(mean).float(), torch.from_numpy(std).float())

    def forward(self, signals: Tensor) -> Tensor:
        """Return normalised signals of the same shape (..., C)."""
        scaled: Tensor = (signals - self.mean) / self.std
        return scaled
