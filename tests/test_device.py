"""Which device computes."""

import torch

from mltrain.device import make_current
from tests.support.fake_cuda import Cuda


def test_the_configured_device_becomes_the_current_one() -> None:
    cuda = Cuda()
    make_current(torch.device("cuda:1"), cuda)
    assert cuda.current == 1
    for device in ("cpu", "cuda", "mps"):
        make_current(torch.device(device), cuda)
    assert cuda.current == 1
