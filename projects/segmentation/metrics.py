"""Accumulating metrics of overlap, over all pixels and per image.

A pixel whose target is -1 is void and counts nowhere.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import BinaryF1Score, BinaryJaccardIndex, BinaryPrecision, BinaryRecall

_VOID = -1


def overlap_metrics(classes: Sequence[str] = ()) -> dict[str, Any]:
    """New accumulators of (logits, target) by name: ``iou, precision, recall, f1`` over all pixels, and
    ``iou_per_image, f1_per_image``.

    F1 is the Dice coefficient; over the same pixels F1 = 2 IoU / (1 + IoU). Of several classes these are means over the
    classes, and there are ``iou_CLASS`` and ``f1_CLASS`` for each.

    Args:
        classes: names of several classes, in the order of their indices from 1; fewer than two for a binary mask.
    """
    if len(classes) > 1:
        return class_metrics(classes)
    return {
        "iou": Jaccard(validate_args=False, ignore_index=_VOID),
        "precision": Precision(validate_args=False, ignore_index=_VOID),
        "recall": Recall(validate_args=False, ignore_index=_VOID),
        "f1": F1(validate_args=False, ignore_index=_VOID),
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
    """Share of predicted foreground that is foreground, over all pixels."""


class Recall(_OfLogits, BinaryRecall):
    """Share of the foreground that is predicted, over all pixels."""


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
        judged, true = target.flatten(1) != _VOID, target.flatten(1) > 0
        predicted = (logits > 0).flatten(1) & judged
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


class ClassCounts(Metric):
    """Pixels of each of several classes: hit, predicted and true; and sums over images of their mean scores."""

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
        """Add a batch of logits (N, K, H, W) and targets (N, 1, H, W)."""
        judged = target != _VOID
        chosen = logits.argmax(1, keepdim=True)
        counts = [
            torch.stack([both.flatten(1).sum(1) for both in (found & true, found, true)])
            for index in range(1, len(self.hit) + 1)
            for found, true in [((chosen == index) & judged, target == index)]
        ]
        hit, predicted, true = torch.stack(counts, dim=2)  # each (N, K - 1)
        self.hit += hit.sum(0)
        self.predicted += predicted.sum(0)
        self.true += true.sum(0)
        self.iou_sum += _mean_of_present(iou(hit, predicted, true), predicted + true).sum()
        self.f1_sum += _mean_of_present(f1(hit, predicted, true), predicted + true).sum()
        self.images += len(target)

    def compute(self) -> Tensor:
        """The mean IoU over the classes."""
        return self.mean(iou)

    def of_each(self, score: "_Score") -> Tensor:
        """A score of every class; 1 for one that is nowhere, neither true nor predicted."""
        return score(self.hit, self.predicted, self.true)

    def of_class(self, score: "_Score", index: int) -> Tensor:
        """A score of one class, counted from 0."""
        return self.of_each(score)[index]

    def mean(self, score: "_Score") -> Tensor:
        """The mean over the classes that are somewhere; 1 if there is none."""
        return _mean_of_present(self.of_each(score)[None], (self.predicted + self.true)[None])[0]


_Score = Callable[[Tensor, Tensor, Tensor], Tensor]


def iou(hit: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
    """Intersection over union; 0/0 is 1."""
    return _share(hit, predicted + true - hit, predicted + true == 0)


def f1(hit: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
    """The Dice coefficient; 0/0 is 1."""
    return _share(2 * hit, predicted + true, predicted + true == 0)


def precision(hit: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
    """The share of what is predicted that is true; 0/0 is 1 where nothing is true."""
    return _share(hit, predicted, predicted + true == 0)


def recall(hit: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
    """The share of what is true that is predicted; 0/0 is 1 where nothing is predicted."""
    return _share(hit, true, predicted + true == 0)


def class_metrics(classes: Sequence[str]) -> dict[str, Any]:
    """Metrics of several classes, which all read the same counts."""
    counts = ClassCounts(len(classes))
    views: dict[str, Any] = {"iou": counts}
    for name, score in (("precision", precision), ("recall", recall), ("f1", f1)):
        views[name] = _View(counts, partial(counts.mean, score))
    views["iou_per_image"] = _View(counts, lambda: counts.iou_sum / counts.images)
    views["f1_per_image"] = _View(counts, lambda: counts.f1_sum / counts.images)
    for index, name in enumerate(classes):
        views[f"iou_{name}"] = _View(counts, partial(counts.of_class, iou, index))
        views[f"f1_{name}"] = _View(counts, partial(counts.of_class, f1, index))
    return views


class _View:
    """A score of counts that another metric accumulates."""

    _update_count = 0

    def __init__(self, counts: ClassCounts, compute: Callable[[], Tensor]) -> None:
        self._counts = counts
        self.compute = compute

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


def _share(part: Tensor, whole: Tensor, nothing: Tensor) -> Tensor:
    return torch.where(nothing, 1.0, part / whole.clamp(min=1))


def _mean_of_present(scores: Tensor, pixels: Tensor) -> Tensor:
    """Mean scores (N) over classes with pixels; 1 where none has any."""
    present = pixels > 0
    return torch.where(present.any(1), (scores * present).sum(1) / present.sum(1).clamp(min=1), 1.0)
