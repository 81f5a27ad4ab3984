"""Classical registration, to hold the motion network against."""

import numpy as np
import torch
from skimage.registration import optical_flow_tvl1
from torch import Tensor

from projects.cardiac.prepared import PreparedCase


def optical_flow(case: PreparedCase) -> Tensor:
    """Return displacements (D, 2, S, S) from end diastole to end systole, in pixels, backward, without any training.

    TV-L1 optical flow (Zach et al., DAGM 2007; the one of scikit-image, with its defaults).
    """
    pairs = zip(case.systolic[:, 0].numpy(), case.diastolic[:, 0].numpy(), strict=True)
    return torch.from_numpy(np.stack([optical_flow_tvl1(fixed, moving) for fixed, moving in pairs])).float()
