"""Overlap of predicted and true foreground, over all pixels and per image, as accumulating torchmetrics."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import BinaryF1Score, BinaryJaccardIndex, BinaryPrecision, BinaryRecall


def overlap_metrics() -> dict[str, Metric]:
    """New accumulators of (logits, target) by name: ``iou, precision, recall, f1`` over all pixels, and
    ``iou_per_image, f1_per_image``.

    F1 is the Dice coefficient; over the same pixels F1 = 2 IoU / (1 + IoU).
    """
    return {
        "iou": Jaccard(validate_args=False),
        "precision": Precision(validate_args=False),
        "recall": Recall(validate_args=False),
        "f1": F1(validate_args=False),
        "iou_per_image": IoUPerImage(),
        "f1_per_image": F1PerImage(),
    }


# torchmetrics takes scores for logits only where one of them lies outside [0, 1], so early in training, when all are
# small, it would compare a logit with 0.5. A logit above zero is a probability above one half; that is decided here.


class _OfLogits(Metric):
    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add a batch of logits and targets, both (N, 1, H, W)."""
        super().update((logits > 0).long(), target.long())  # type: ignore[safe-super] # torchmetrics' own comes next


class Jaccard(_OfLogits, BinaryJaccardIndex):
    """Intersection over union, over all pixels."""


class Precision(_OfLogits, BinaryPrecision):
    """The share of predicted foreground that is foreground, over all pixels."""


class Recall(_OfLogits, BinaryRecall):
    """The share of the foreground that is predicted, over all pixels."""


class F1(_OfLogits, BinaryF1Score):
    """The harmonic mean of precision and recall, over all pixels."""


class _PerImage(Metric):
    """The mean over images of a score of each."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: Tensor
    images: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add a batch of logits and targets, both (N, 1, H, W)."""
        predicted, true = (logits > 0).flatten(1), target.flatten(1) > 0
        both = (predicted & true).sum(1)
        self.total += self._score(both, predicted.sum(1), true.sum(1)).sum()
        self.images += len(logits)

    def compute(self) -> Tensor:
        """The mean score."""
        return self.total / self.images

    def _score(self, both: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
        raise NotImplementedError


class IoUPerImage(_PerImage):
    """Mean over images of intersection over union; 1 for an image without foreground in which none is predicted."""

    def _score(self, both: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
        union = predicted + true - both
        return torch.where(union == 0, 1.0, both / union.clamp(min=1))


class F1PerImage(_PerImage):
    """Mean over images of the Dice coefficient; 1 for an image without foreground in which none is predicted."""

    def _score(self, both: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
        pixels = predicted + true
        return torch.where(pixels == 0, 1.0, 2 * both / pixels.clamp(min=1))
