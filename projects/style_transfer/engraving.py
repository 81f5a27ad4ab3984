"""Pictures redrawn as engravings, hatched in sepia on cream paper."""

import math

import numpy as np
from numpy.typing import NDArray

PAPER = (0.95, 0.89, 0.76)
INK = (0.26, 0.13, 0.05)

_HATCHING = ((45.0, 0.0), (-45.0, 0.35), (10.0, 0.6))
"""Directions of the lines in degrees, each with the least darkness at which its lines appear."""


def engraved(grey: NDArray[np.float32], period: float = 9.0) -> NDArray[np.uint8]:
    """Draw a grey picture with hatched lines, thicker where darker.

    Args:
        grey: (H, W) in [0, 1].
        period: distance between lines in pixels.

    Returns:
        (H, W, 3), 8-bit RGB.

    """
    low, high = np.percentile(grey, (2, 98))
    darkness = 1 - np.clip((grey - low) / max(float(high - low), 1e-6), 0, 1)
    rows, columns = np.indices(grey.shape, dtype=np.float32)
    ink = np.zeros_like(darkness)
    for degrees, least in _HATCHING:
        angle = math.radians(degrees)
        across = rows * math.cos(angle) - columns * math.sin(angle)
        distance = np.abs(across / period % 1 - 0.5) * 2  # 0 in the middle of a line, 1 between two
        width = np.clip((darkness - least) / (1 - least), 0, 1)
        ink = np.maximum(ink, np.clip((width - distance) * period / 2 + 0.5, 0, 1))  # the edge is one pixel wide
    colours = np.asarray(PAPER) + ink[..., None] * (np.asarray(INK) - np.asarray(PAPER))
    return np.asarray(np.rint(255 * colours), np.uint8)
