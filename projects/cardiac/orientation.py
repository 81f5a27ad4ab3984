"""Orientation of short-axis slices in their arrays: direction of the septum, and side of the anterior wall.

The long axis of the left ventricle runs from the base to the left, forward and down. Seen from the apex, the wall goes clockwise
from the septum over the anterior to the lateral wall (Cerqueira et al., Circulation 2002). In an array that is
transposed or mirrored relative to the screen, as those of NIfTI files are, it goes the other way, which the affine shows.
"""

import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes

PICTURE_LEFT = float(np.pi)
"""Default direction of the septum: the left of the picture."""

_LONG_AXIS = np.array([-1.0, 1.0, -1.0]) / np.sqrt(3)  # from base to apex, in right-anterior-superior
_RIGHT_VENTRICLE = np.array([1.0, 1.0, 0.0]) / np.sqrt(2)  # from the left ventricle
_SHORT_AXIS = 0.8  # least cosine of the angle between the normal of short-axis slices and the usual long axis
_SMALLER = 0.9  # largest area of the ventricle at the apex relative to the base


def direction(wall: NDArray[np.bool_], right: NDArray[np.bool_]) -> float | None:
    """Return the direction from wall to right ventricle, in radians.

    It is that from the centre of one mask (D, H, W) to that of the other. 0 is along columns and π/2 along rows.
    ``None`` if no right ventricle is marked.
    """
    if not right.any():
        return None
    rows, columns = (a.mean() - b.mean() for a, b in zip(right.nonzero()[1:], wall.nonzero()[1:], strict=True))
    return float(np.arctan2(rows, columns))


def usual_direction(affine: NDArray[np.float64]) -> float | None:
    """Return the right ventricle's usual direction by an affine; ``None`` if it is not of short-axis slices."""
    axes = affine[:3, :3] / voxel_sizes(affine)
    if abs(_normal(axes) @ _LONG_AXIS) < _SHORT_AXIS:
        return None
    return float(np.arctan2(axes[:, 0] @ _RIGHT_VENTRICLE, axes[:, 1] @ _RIGHT_VENTRICLE))


def base_is_first(myocardium: NDArray[np.bool_], affine: NDArray[np.float64], *, oriented: bool) -> bool:
    """Whether slices (D, H, W) run from base to apex.

    The affine of short-axis slices decides. Without one, the end with the clearly smaller ventricle is the apex; if neither is,
    the first slice is at the base.
    """
    axes = affine[:3, :3] / voxel_sizes(affine)
    if oriented and abs(_normal(axes) @ _LONG_AXIS) >= _SHORT_AXIS:
        return bool(axes[:, 2] @ _LONG_AXIS > 0)
    areas = [int(binary_fill_holes(mask).sum()) for mask in myocardium if mask.any()]
    alike = not areas or min(areas[0], areas[-1]) >= _SMALLER * max(areas[0], areas[-1])
    return alike or areas[0] > areas[-1]


def turns_clockwise(affine: NDArray[np.float64], *, base_first: bool) -> bool:
    """Whether growing angles go from septum to anterior wall.

    Angles grow from columns to rows. From the septum to the anterior wall is a right-handed turn about the direction
    from apex to base. Columns towards rows is one about columns × rows, so the determinant of the affine decides.
    """
    return bool((np.linalg.det(affine[:3, :3]) > 0) == base_first)


def _normal(axes: NDArray[np.float64]) -> NDArray[np.float64]:
    across: NDArray[np.float64] = np.cross(axes[:, 0], axes[:, 1])
    return across / np.linalg.norm(across)
