"""Counts of right and wrong pixels, and scores from them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Pixel counts of a predicted and a true foreground; they can be added."""

    hit: int = 0
    """Predicted and true."""
    excess: int = 0
    """Predicted, not true."""
    missed: int = 0
    """True, not predicted."""

    @classmethod
    def of(cls, predicted: NDArray[np.bool_], true: NDArray[np.bool_]) -> "Overlap":
        """Compare two masks of the same shape."""
        return cls(
            hit=int((predicted & true).sum()),
            excess=int((predicted & ~true).sum()),
            missed=int((~predicted & true).sum()),
        )

    def __add__(self, other: "Overlap") -> "Overlap":
        return Overlap(hit=self.hit + other.hit, excess=self.excess + other.excess, missed=self.missed + other.missed)

    @property
    def iou(self) -> float:
        """Intersection over union."""
        return self._share(self.hit + self.excess + self.missed)

    @property
    def precision(self) -> float:
        """The share of what is predicted that is true."""
        return self._share(self.hit + self.excess)

    @property
    def recall(self) -> float:
        """The share of what is true that is predicted."""
        return self._share(self.hit + self.missed)

    @property
    def f1(self) -> float:
        """The Dice coefficient, harmonic mean of precision and recall: 2 IoU / (1 + IoU)."""
        return 2 * self.iou / (1 + self.iou)

    def _share(self, whole: int) -> float:
        """0/0 is 1 without true and predicted pixels, else 0."""
        if whole:
            return self.hit / whole
        return float(self.excess + self.missed == 0)
