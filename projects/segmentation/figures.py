"""Pictures of predictions."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from projects.segmentation.legend import VOID_COLOUR, beside, captioned, class_colours, painted, with_legend

HIT, EXCESS, MISSED, UNJUDGED = (0, 200, 0), (230, 30, 30), (40, 90, 255), (255, 200, 0)
"""Colours of predicted and true; predicted, not true; true, not predicted; and predicted where the truth is unknown."""

_LEAST_SIDE = 256


def overlay(
    image: NDArray[np.float32],
    predicted: NDArray[np.bool_],
    true: NDArray[np.integer | np.bool_] | None = None,
) -> NDArray[np.uint8]:
    """Draw a binary prediction over its image, above a legend.

    True positives are green, false positives red, false negatives blue, and void pixels (-1 in ``true``) grey; without
    ``true`` the prediction is yellow. Grey levels are stretched between the first and the 99th percentile. Small images are
    enlarged by an integer factor.

    Args:
        image: (C, H, W).
        predicted: (H, W).
        true: (H, W). If ``None``, the truth is unknown.

    Returns:
        (h, w, 3), 8-bit RGB.
    """
    if true is None:
        kinds, entries = np.asarray(predicted, np.int64), [("predicted", UNJUDGED)]
    else:
        kinds = np.where(predicted, np.where(true > 0, 1, 2), np.where(true > 0, 3, 0))
        kinds = np.where(true == -1, -1, kinds)
        entries = [("hit", HIT), ("excess", EXCESS), ("missed", MISSED)]
    shown = _enlarged(painted(stretched(image), kinds, [colour for _, colour in entries]))
    return np.asarray(
        with_legend(Image.fromarray(shown), entries + ([("void", VOID_COLOUR)] if (kinds < 0).any() else []))
    )


def class_overlay(
    image: NDArray[np.float32],
    predicted: NDArray[np.generic],
    names: Sequence[str],
    true: NDArray[np.generic] | None = None,
) -> NDArray[np.uint8]:
    """Draw predicted classes over their image, with a legend below.

    If ``true`` is given, the true classes are drawn to the left; void pixels (-1) are grey in both.

    Args:
        image: (C, H, W).
        predicted: class indices (H, W).
        names: of the classes, in the order of their indices from 1.
        true: class indices (H, W). If ``None``, the truth is unknown.

    Returns:
        (h, w, 3), 8-bit RGB.
    """
    picture, colours = stretched(image), class_colours(len(names))
    entries = list(zip(names, colours, strict=True))
    panels = [("predicted", predicted if true is None else np.where(true == -1, -1, predicted))]
    if true is not None:
        panels.insert(0, ("true", true))
        entries += [("void", VOID_COLOUR)] if (true == -1).any() else []
    shown = [
        captioned(Image.fromarray(_enlarged(painted(picture, classes, colours))), caption)
        for caption, classes in panels
    ]
    return np.asarray(with_legend(beside(shown), entries))


def _enlarged(picture: NDArray[np.float64]) -> NDArray[np.uint8]:
    factor = -(-_LEAST_SIDE // min(picture.shape[:2])) if min(picture.shape[:2]) < _LEAST_SIDE else 1
    return np.rint(picture).astype(np.uint8).repeat(factor, axis=0).repeat(factor, axis=1)


def precision_recall(curve: pd.DataFrame, threshold: float, average_precision: float) -> Figure:
    """Plot precision against recall, and mark the threshold in use.

    ``curve`` has the columns threshold, precision and recall.
    """
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(curve["recall"], curve["precision"], color="tab:blue", label=f"average precision {average_precision:.3f}")
    at = curve.iloc[(curve["threshold"] - threshold).abs().argmin()]
    axes.plot(at["recall"], at["precision"], "o", color="tab:red", label=f"threshold {at['threshold']:.2f}")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.01), aspect="equal")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(loc="lower left")
    return figure


def stretched(image: NDArray[np.float32]) -> NDArray[np.float64]:
    """Convert an image (C, H, W) to (H, W, 3) from 0 to 255, contrast stretched."""
    low, high = np.percentile(image, (1, 99))
    shown = (image.transpose(1, 2, 0) - low) / max(high - low, 1e-6)
    return np.asarray(255 * np.broadcast_to(shown, (*shown.shape[:2], 3)).clip(0, 1), np.float64)
