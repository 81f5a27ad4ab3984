"""Scores of overlap by counts of pixels.

Each takes the pixels that are predicted and true (``hit``), those predicted, and those true: int64, of one shape. 0/0 is 1
without true and predicted pixels, else 0.
"""

from typing import Any, TypeVar

from numpy.typing import NDArray
from torch import Tensor

Counts = TypeVar("Counts", NDArray[Any], Tensor)


def iou(hit: Counts, predicted: Counts, true: Counts) -> Counts:
    """Intersection over union."""
    return _share(hit, predicted + true - hit, predicted + true)


def precision(hit: Counts, predicted: Counts, true: Counts) -> Counts:
    """Share of predicted pixels that are true."""
    return _share(hit, predicted, predicted + true)


def recall(hit: Counts, predicted: Counts, true: Counts) -> Counts:
    """Share of true pixels that are predicted."""
    return _share(hit, true, predicted + true)


def f1(hit: Counts, predicted: Counts, true: Counts) -> Counts:
    """The Dice coefficient, harmonic mean of precision and recall: 2 IoU / (1 + IoU)."""
    return _share(2 * hit, predicted + true, predicted + true)


SCORES = {"iou": iou, "precision": precision, "recall": recall, "f1": f1}


def mean_of_present(scores: Counts, pixels: Counts) -> Counts:
    """Mean scores over the classes (..., K) with ``pixels``; 1 without any."""
    present = pixels > 0
    count = present.sum(-1)
    return _share((scores * present).sum(-1), count, count)


def _share(part: Counts, whole: Counts, pixels: Counts) -> Counts:
    shares: Counts = (part + (pixels == 0)) / (whole + (whole == 0))
    return shares
