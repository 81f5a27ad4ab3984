"""The frame of end systole, found in the pictures."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, binary_fill_holes
from skimage.registration import optical_flow_ilk

_LEAST_CAVITY = 20  # pixels over all slices


def end_systole(cine: NDArray[np.float32], myocardium: NDArray[np.bool_], end_diastole: int = 0) -> tuple[int, str]:
    """Return the end-systolic frame and its criterion: ``area`` or ``motion``.

    It is the frame with the smallest bright area within the epicardium of end diastole. Bright is above the middle between
    the grey levels of blood and wall at end diastole. If the wall encloses no cavity, it is the frame with the
    largest mean motion of the wall since end diastole, by optical flow (iterative Lucas-Kanade; Le Besnerais and
    Champagnat, ICIP 2005).

    Args:
        cine: (D, T, H, W).
        myocardium: (D, H, W) at end diastole.
        end_diastole: frame of end diastole.
    """
    filled = np.stack([binary_fill_holes(mask) for mask in myocardium])
    cavity = filled & ~myocardium
    if cavity.sum() < _LEAST_CAVITY:
        return _most_moved(cine, myocardium, end_diastole), "motion"
    first = cine[:, end_diastole]
    middle = (np.median(first[cavity]) + np.median(first[myocardium])) / 2
    areas = ((cine > middle) & filled[:, None]).sum((0, 2, 3))
    return int(areas.argmin()), "area"


def _most_moved(cine: NDArray[np.float32], myocardium: NDArray[np.bool_], end_diastole: int) -> int:
    near = [binary_dilation(mask, iterations=2) for mask in myocardium]
    moved = np.zeros(cine.shape[1])
    for slices, mask in zip(cine, near, strict=True):
        if not mask.any():
            continue
        for frame, picture in enumerate(slices):
            flow = np.stack(optical_flow_ilk(slices[end_diastole], picture, radius=5, num_warp=5))
            moved[frame] += float(np.hypot(*flow)[mask].sum())
    return int(moved.argmax())
