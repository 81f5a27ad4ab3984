"""The segments of the left ventricle (Cerqueira et al., Circulation 2002), without the apical cap: sixteen."""

import numpy as np
from numpy.typing import NDArray

SEGMENTS = tuple(range(1, 17))

# In order from the middle of the septum over the anterior wall, clockwise as seen from the apex.
_SIX = (2, 1, 6, 5, 4, 3)
_FOUR = (14, 13, 16, 15)
_BASAL, _MIDDLE, _APICAL = 0, 1, 2


def levels(depth: int) -> tuple[int, ...]:
    """Return each slice's third of the ventricle, base first: 0 basal, 1 middle, 2 apical."""
    return tuple(int((index + 0.5) * 3 / depth) for index in range(depth))


def segments(myocardium: NDArray[np.bool_], septum: float, *, clockwise: bool = True) -> NDArray[np.int64]:
    """Return the segment number of each pixel (D, S, S); 0 outside the myocardium.

    Args:
        myocardium: slices from base to apex.
        septum: direction from the left to the right ventricle, in radians: 0 along columns, π/2 along rows.
        clockwise: whether angles that grow from columns to rows go from the septum to the anterior wall, as in a picture whose
            rows go down, seen from the apex; :func:`projects.cardiac.orientation.turns_clockwise` reads it from an affine.
    """
    sense = 1 if clockwise else -1
    numbers = np.zeros(myocardium.shape, np.int64)
    for index, (mask, level) in enumerate(zip(myocardium, levels(len(myocardium)), strict=True)):
        rows, columns = mask.nonzero()
        if not rows.size:
            continue
        angle = sense * (np.arctan2(rows - rows.mean(), columns - columns.mean()) - septum)
        if level == _APICAL:
            numbers[index, rows, columns] = np.take(_FOUR, _sector(angle + np.pi / 4, 4))
        else:
            numbers[index, rows, columns] = np.take(_SIX, _sector(angle, 6)) + (6 if level == _MIDDLE else 0)
    return numbers


def shares(numbers: NDArray[np.int64], infarct: NDArray[np.bool_]) -> dict[int, float]:
    """Return the infarcted share of each segment that has pixels."""
    return {number: float(infarct[numbers == number].mean()) for number in SEGMENTS if bool((numbers == number).any())}


def _sector(angle: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    return np.floor(np.mod(angle, 2 * np.pi) / (2 * np.pi / count)).astype(np.int64) % count
