"""Accumulating metrics of overlap, over all pixels and per image.

A pixel whose target is -1 is void and counts nowhere.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from projects.segmentation.labels import VOID
from projects.segmentation.overlap import SCORES, f1, iou, mean_of_present

_Score = Callable[[Tensor, Tensor, Tensor], Tensor]


def overlap_metrics(classes: Sequence[str] = ()) -> dict[str, Any]:
    """New accumulators of (logits, target) by name: ``iou, precision, recall, f1`` over all pixels, and
    ``iou_per_image, f1_per_image``.

    F1 is the Dice coefficient; over the same pixels F1 = 2 IoU / (1 + IoU). Of several classes these are means over the
    classes, and there are ``iou_CLASS`` and ``f1_CLASS`` for each.

    Args:
        classes: names of several classes, in the order of their indices from 1; fewer than two for a binary mask.
    """
    counts = ClassCounts(max(1, len(classes)))
    metrics: dict[str, Any] = {"iou": counts}
    for name in ("precision", "recall", "f1"):
        metrics[name] = _View(counts, partial(counts.mean, SCORES[name]))
    metrics["iou_per_image"] = _View(counts, lambda: counts.iou_sum / counts.images)
    metrics["f1_per_image"] = _View(counts, lambda: counts.f1_sum / counts.images)
    if len(classes) > 1:
        for index, name in enumerate(classes):
            metrics[f"iou_{name}"] = _View(counts, partial(counts.of_class, iou, index))
            metrics[f"f1_{name}"] = _View(counts, partial(counts.of_class, f1, index))
    return metrics


class ClassCounts(Metric):
    """Pixels of each class: hit, predicted and true; and sums over images of their mean scores."""

    is_differentiable = False
    full_state_update = False
    hit: Tensor
    predicted: Tensor
    true: Tensor
    iou_sum: Tensor
    f1_sum: Tensor
    images: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        for name in ("hit", "predicted", "true"):
            self.add_state(name, torch.zeros(classes, dtype=torch.int64), dist_reduce_fx="sum")
        for name in ("iou_sum", "f1_sum"):
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add a batch of logits (N, K, H, W) and targets (N, 1, H, W); of one channel, those above 0 are foreground."""
        judged = target != VOID
        chosen = logits.argmax(1, keepdim=True) if logits.shape[1] > 1 else (logits > 0).long()
        counts = [
            torch.stack([both.flatten(1).sum(1) for both in (found & true, found, true)])
            for index in range(1, len(self.hit) + 1)
            for found, true in [((chosen == index) & judged, target == index)]
        ]
        hit, predicted, true = torch.stack(counts, dim=2)  # each (N, classes)
        self.hit += hit.sum(0)
        self.predicted += predicted.sum(0)
        self.true += true.sum(0)
        self.iou_sum += mean_of_present(iou(hit, predicted, true), predicted + true).sum()
        self.f1_sum += mean_of_present(f1(hit, predicted, true), predicted + true).sum()
        self.images += len(target)

    def compute(self) -> Tensor:
        """The mean IoU over the classes."""
        return self.mean(iou)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = False, assign: bool = False) -> Any:
        """Load counts; the state of an earlier version, which had other ones, is ignored."""
        return super().load_state_dict(state_dict, strict, assign)

    def of_each(self, score: _Score) -> Tensor:
        """A score of every class; 1 for one that is nowhere, neither true nor predicted."""
        return score(self.hit, self.predicted, self.true)

    def of_class(self, score: _Score, index: int) -> Tensor:
        """A score of one class, counted from 0."""
        return self.of_each(score)[index]

    def mean(self, score: _Score) -> Tensor:
        """The mean over the classes that occur. Without any it is 1."""
        return mean_of_present(self.of_each(score), self.predicted + self.true)


class _View:
    """A score of counts that another metric accumulates."""

    _update_count = 0

    def __init__(self, counts: ClassCounts, compute: Callable[[], Tensor]) -> None:
        self._counts = counts
        self._compute = compute

    def compute(self) -> Tensor:
        """Return the score, over all processes."""
        with self._counts.sync_context(dist_sync_fn=self._counts.dist_sync_fn):
            return self._compute()

    @property
    def update_called(self) -> bool:
        """Whether the counts saw a batch."""
        return self._counts.update_called

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Do nothing: the counts are updated themselves."""

    def reset(self) -> None:
        """Do nothing: the counts are reset themselves."""

    def persistent(self, mode: bool) -> None:
        """Do nothing: the counts are part of the state themselves."""

    def to(self, device: torch.device) -> "_View":
        """Return itself: the counts are moved themselves."""
        return self

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take nothing."""
