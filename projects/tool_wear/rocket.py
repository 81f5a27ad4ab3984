"""Random convolution kernels as features: ROCKET, for several channels and windows of unequal length."""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

KERNEL_SIZES = (7, 9, 11)


class RocketFeatures(TransformerMixin, BaseEstimator):  # type: ignore[misc] # scikit-learn ships no types
    """Maximum and share of positive values of many random convolutions: windows (N, T, C) to features.

    ROCKET: Dempster, Petitjean and Webb, "ROCKET: exceptionally fast and accurate time series classification using random
    convolutional kernels", Data Mining and Knowledge Discovery 34 (2020); the kernels are those of pyts. Each channel has kernels
    of its own. Channels are standardised over all windows, not window by window, because strength depends on wear.

    Args:
        kernels: number of kernels of all channels together. The authors use 10,000; 2,000 cost a fifth.
        seed: seed of the kernels.

    Attributes:
        mean_, std_: mean and standard deviation of each channel, shape (C,).
        steps_: number T of steps in the fitted windows; shorter windows are padded to it.
        channels_: a ROCKET of pyts for each channel.
    """

    def __init__(self, kernels: int = 2000, seed: int = 0) -> None:
        self.kernels = kernels
        self.seed = seed

    def fit(self, signals: NDArray[np.float32], labels: Any = None) -> Self:
        """Draw kernels, and compute mean and standard deviation per channel; steps of NaN are padding."""
        from pyts.transformation import ROCKET  # the import compiles its kernels, which takes seconds

        self.mean_ = np.nanmean(signals, axis=(0, 1), dtype=np.float64)
        spread = np.nanstd(signals, axis=(0, 1), dtype=np.float64)
        self.std_ = np.where(spread > 1e-7 * np.abs(self.mean_), spread, 1.0)
        _, self.steps_, channels = signals.shape
        each = -(-self.kernels // channels)
        # A window shorter than every kernel gets kernels of its own length, at least two weights.
        sizes = [size for size in KERNEL_SIZES if size <= self.steps_] or [max(self.steps_, 2)]
        self.steps_ = max(self.steps_, 2)
        self.channels_ = [
            ROCKET(each, sizes, random_state=self.seed + channel).fit(self._prepared(signals)[..., channel])
            for channel in range(channels)
        ]
        return self

    def transform(self, signals: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the features of windows (N, T, C), shape (N, 2 * kernels)."""
        check_is_fitted(self, "channels_")
        prepared = self._prepared(signals)
        return np.concatenate([one.transform(prepared[..., row]) for row, one in enumerate(self.channels_)], axis=1)

    def _prepared(self, signals: NDArray[np.float32]) -> NDArray[np.float64]:
        scaled = np.nan_to_num((signals - self.mean_) / self.std_)
        missing = max(0, self.steps_ - signals.shape[1])
        return np.pad(scaled, ((0, 0), (0, missing), (0, 0)))
