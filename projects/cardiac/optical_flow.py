"""Classical registration: the motion between two frames without any training."""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.registration import optical_flow_tvl1
from torch import Tensor

_CACHED = 2048
"""Pairs of frames whose flow is cached. Each saves a tenth of a second and takes about 100 kB at 80 by 80 pixels."""


def optical_flow(moving: Tensor, fixed: Tensor) -> Tensor:
    """Return displacements (N, 2, H, W) between pictures (N, 1, H, W).

    They are in pixels, rows first, backward: TV-L1 optical flow (Zach et al., DAGM 2007) by scikit-image with its
    defaults. The flow depends on the pictures alone, so that of recent pairs is cached.
    """
    pairs = zip(moving[:, 0].cpu(), fixed[:, 0].cpu(), strict=True)
    flows = [_between(_bytes(one), _bytes(other), *one.shape) for one, other in pairs]
    return torch.from_numpy(np.stack(flows))


def _bytes(picture: Tensor) -> bytes:
    return picture.float().contiguous().numpy().tobytes()


@lru_cache(_CACHED)
def _between(moving: bytes, fixed: bytes, height: int, width: int) -> NDArray[np.float32]:
    pictures = [np.frombuffer(one, dtype=np.float32).reshape(height, width) for one in (fixed, moving)]
    return np.asarray(optical_flow_tvl1(*pictures), dtype=np.float32)
