"""Threshold for black-and-white masks in lossy formats such as JPEG."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_LEAST_DISTANCE = 16
_MOST_OTHERS = 0.25
_LEAST_PEAK = 0.005
_WIDTH = 9


class TooGrey(ValueError):
    """Lossy masks that are not of two values; its arguments are the kind of problem and the files that show it."""


@dataclass(frozen=True)
class Boundary:
    """Foreground is what is above ``threshold``; ``values`` are the two values meant, with the files that hold them."""

    threshold: float
    values: Mapping[int, Sequence[str]]


def boundary(files: Mapping[str, Mapping[int, int]]) -> Boundary:
    """Find the two original values of all lossy masks together.

    Args:
        files: for each file its number of pixels by value.

    Raises:
        TooGrey: there are other peaks than two, too many pixels between them, or the two are too close.
    """
    total: Counter[int] = Counter()
    for pixels in files.values():
        total.update(pixels)
    low, high = min(total), max(total)
    if low == high:
        return Boundary(low / 2, {low: list(files)}) if low >= _LEAST_DISTANCE else Boundary(127.5, {0: list(files)})
    if high - low < _LEAST_DISTANCE:
        raise TooGrey(
            f"lossy masks (JPEG) of the values {low} to {high}; labels do not survive. Save them as PNG", list(files)
        )
    middle = (low + high) / 2
    low = max((value for value in total if value <= middle), key=total.__getitem__)
    high = max((value for value in total if value > middle), key=total.__getitem__)
    quarter = (high - low) / 4
    others = np.array(
        [total[value] if min(abs(value - low), abs(value - high)) > quarter else 0 for value in range(256)]
    )
    share = others.sum() / total.total()
    if share > _MOST_OTHERS or (share > _LEAST_PEAK and np.convolve(others, np.ones(_WIDTH)).max() > others.sum() / 2):
        raise TooGrey(
            f"lossy masks (JPEG) of more than two values: {100 * share:.0f} % of their pixels are near neither {low} nor "
            f"{high}. Save them as PNG",
            list(files),
        )
    threshold = (low + high) / 2
    black, white = (0 if low < _LEAST_DISTANCE else low), (255 if high > 255 - _LEAST_DISTANCE else high)
    return Boundary(
        threshold,
        {
            black: [name for name, pixels in files.items() if min(pixels) <= threshold],
            white: [name for name, pixels in files.items() if max(pixels) > threshold],
        },
    )
