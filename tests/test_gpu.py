"""What only a machine with CUDA devices can show; elsewhere this file is not collected."""

import pytest
import torch

from mltrain.checkpoint.snapshot import HostBuffers
from mltrain.device import make_current
from mltrain.rng import Rng

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("number", range(torch.cuda.device_count()))
def test_a_snapshot_is_complete_before_the_next_kernel_changes_what_was_copied(number: int) -> None:
    weight = torch.zeros(2**26, device=f"cuda:{number}")
    other = torch.eye(2048, device=weight.device)
    buffers = HostBuffers()
    buffers.copy({"w": weight})  # takes the page-locked memory, so that the next copy is queued at once
    for _ in range(20):
        other = other @ other  # keeps the device busy, so that the copy is still in its queue when the call returns
    weight += 1
    copied = buffers.copy({"w": weight})["w"]
    assert bool((copied == 1).all())


def test_the_last_device_computes_and_its_generator_goes_on() -> None:
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    make_current(device)
    state = Rng().state_dict()
    expected = torch.rand(3, device="cuda")
    assert expected.device == device
    Rng().load_state_dict(state)
    assert torch.rand(3, device="cuda").equal(expected)
