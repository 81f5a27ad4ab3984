"""Scores of masks and displacements against a reference."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt
from torch import Tensor


def dice(one: Tensor, other: Tensor) -> float:
    """Dice coefficient of two masks of any, equal shape: 1 if both are empty."""
    total = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / total if total else 1.0


def mean_dice(one: Tensor, other: Tensor) -> float:
    """Mean Dice coefficient over the first dimension."""
    return sum(dice(a, b) for a, b in zip(one, other, strict=True)) / len(one)


def endpoint_error(field: Tensor, true: Tensor, within: Tensor) -> float:
    """Mean distance between displacements (N, 2, H, W) within masks (N, H, W), in their unit."""
    return float((field - true).norm(dim=1)[within].mean())


def hd95(one: Tensor, other: Tensor, pixel_mm: float) -> float | None:
    """95th percentile of contour distances between two masks (H, W), in mm; ``None`` if one is empty.

    The larger of both directions, as in MONAI, whose own function logs warnings about its own calls.
    """
    if not (one.any() and other.any()):
        return None
    contours = [contour(mask.numpy()) for mask in (one, other)]
    distances = [distance_transform_edt(~contour) for contour in contours]
    percentiles = [np.percentile(distances[1 - side][contours[side]], 95) for side in (0, 1)]
    return float(max(percentiles)) * pixel_mm


def contour(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels of a mask (H, W) with a neighbour outside."""
    return np.asarray(mask & ~binary_erosion(mask))


def mean_hd95(one: Tensor, other: Tensor, pixel_mm: float) -> float | None:
    """Mean of :func:`hd95` over slices (N, H, W) where neither mask is empty; ``None`` without such a slice."""
    found = [value for a, b in zip(one, other, strict=True) if (value := hd95(a, b, pixel_mm)) is not None]
    return sum(found) / len(found) if found else None


def folded_percent(determinant: Tensor) -> float:
    """Percentage of pixels with a non-positive Jacobian determinant."""
    return float((determinant <= 0).to(torch.float64).mean() * 100)
