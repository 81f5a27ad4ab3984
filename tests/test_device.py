"""Which device computes."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from mltrain.device import make_current, mixing, warn_of_unsaved_dropout
from tests.support.fake_cuda import Cuda


def test_the_configured_device_becomes_the_current_one() -> None:
    cuda = Cuda()
    make_current(torch.device("cuda:1"), cuda)
    assert cuda.current == 1
    for device in ("cpu", "cuda", "mps"):
        make_current(torch.device(device), cuda)
    assert cuda.current == 1


ELSEWHERE = torch.device("meta")
"""A device that every machine has: torch knows shapes and devices of its tensors, and computes nothing."""


def test_an_evaluation_mixes_data_on_the_cpu_with_a_model_on_the_device() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3)).to(ELSEWHERE)
    images, labels = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    with pytest.raises(RuntimeError, match="device"):
        net(images)
    with mixing(ELSEWHERE):
        output = net(images)
        loss = nn.functional.cross_entropy(output, labels)
        joined = torch.cat([output, torch.zeros(1, 3)])
        assert labels.sum().device.type == "cpu", "what is on the CPU alone stays there"
    assert (output.device, loss.device, joined.device) == (ELSEWHERE, ELSEWHERE, ELSEWHERE)


def test_what_a_function_changes_in_place_is_never_moved() -> None:
    there, here = torch.zeros(3, 3, device=ELSEWHERE), torch.zeros(3, 3)
    with mixing(ELSEWHERE):
        assert there.addmm_(here, here) is there
        for change in (lambda: here.addmm_(there, there), lambda: torch.add(here, there, out=here)):
            with pytest.raises(RuntimeError, match="device"):
                change()
    assert (here.device.type, there.device) == ("cpu", ELSEWHERE)


def test_an_error_that_has_nothing_to_do_with_devices_is_raised_as_it_is() -> None:
    with mixing(ELSEWHERE), pytest.raises(RuntimeError, match="shape"):
        torch.zeros(2, 3) @ torch.zeros(2, 3)
    with mixing(ELSEWHERE), pytest.raises((RuntimeError, TypeError), match="meta"):
        torch.zeros(2, device=ELSEWHERE).numpy()


def test_on_the_cpu_every_call_is_torchs_own() -> None:
    assert isinstance(mixing(torch.device("cpu")), nullcontext)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_dropout_that_no_checkpoint_can_hold_is_warned_of(kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Own(nn.LSTM):
        """Draws its dropout elsewhere."""

    fine = {"one layer": kind(3, 4), "none dropped": kind(3, 4, 2), "own": Own(3, 4, 2, dropout=0.1), "step": object()}
    warn_of_unsaved_dropout(fine, torch.device("cuda"))
    stacked = {"model": nn.Sequential(nn.Linear(3, 3), kind(3, 4, 2, dropout=0.1)), "other": kind(3, 4, 2, dropout=0.1)}
    warn_of_unsaved_dropout(stacked, torch.device("cpu"))
    with torch.backends.cudnn.flags(enabled=False):
        warn_of_unsaved_dropout(stacked, torch.device("cuda"))
    assert caplog.text == ""
    warn_of_unsaved_dropout(stacked, torch.device("cuda"))
    assert "between the layers of model.1, other from a generator" in caplog.text
