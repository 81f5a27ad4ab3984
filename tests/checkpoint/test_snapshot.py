"""A snapshot in host memory."""

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch

from mltrain.checkpoint.snapshot import HostBuffers, snapshot
from mltrain.errors import UnsupportedValue
from tests.support.fake_cuda import Cuda, OnCuda, OnSecond


def test_a_snapshot_shares_no_memory_with_the_training() -> None:
    live = {"model": {"w": torch.zeros(4)}, "array": np.zeros(3), "bytes": bytearray(2000)}
    copied = snapshot(live, HostBuffers())
    live["model"]["w"].fill_(1)
    live["array"][:] = 1
    live["bytes"][:] = b"x" * 2000
    assert all(not tensor.any() for tensor in copied.tensors.values())
    assert (copied.weights, copied.parts) == ("model", ("model", "array", "bytes"))


@pytest.mark.parametrize(
    ("state", "weights"),
    [
        ({"model": {"w": torch.ones(1)}}, "model"),
        ({"model_state_dict": OrderedDict(w=torch.ones(1)), "epoch": 1}, "model_state_dict"),
        ({"net": {"w": torch.ones(1)}, "weights": {"w": torch.ones(1)}}, "net"),
        ({"generator": {"w": torch.ones(1)}}, None),
        ({"model": {}, "net": {"w": torch.ones(1)}}, "net"),
        ({"model": 3}, None),
        ({"model": {1: torch.ones(1)}}, None),
        ({"model": torch.ones(1)}, None),
    ],
)
def test_the_part_that_is_the_weights_is_found_by_its_name(state: dict[str, Any], weights: str | None) -> None:
    assert snapshot(state, HostBuffers()).weights == weights


def test_host_memory_is_used_again_from_one_snapshot_to_the_next() -> None:
    buffers = HostBuffers()
    first = buffers.copy({"w": torch.ones(8)})["w"].data_ptr()
    second = buffers.copy({"w": torch.zeros(8)})
    assert second["w"].data_ptr() == first
    assert not second["w"].any()
    assert buffers.copy({"w": torch.zeros(9)})["w"].shape == (9,)
    assert buffers.copy({"w": torch.zeros(9, dtype=torch.float64)})["w"].dtype is torch.float64


def test_a_snapshot_waits_for_every_device_that_it_copied_from() -> None:
    cuda = Cuda()
    one, two, here = torch.ones(2).as_subclass(OnCuda), torch.ones(2).as_subclass(OnSecond), torch.ones(2)
    buffers = HostBuffers(cuda, pin=False)
    buffers.copy({"here": here})
    assert cuda.waited == []
    buffers.copy({"two": two, "here": here})
    assert cuda.waited == [torch.device("cuda:1")]
    cuda.waited.clear()
    buffers.copy({"one": one, "two": two, "again": two})
    assert sorted(cuda.waited, key=str) == [torch.device("cuda:0"), torch.device("cuda:1")]


def test_a_refused_snapshot_leaves_the_buffers_as_they_were() -> None:
    buffers = HostBuffers()
    kept = snapshot({"w": torch.ones(2)}, buffers)
    with pytest.raises(UnsupportedValue):
        snapshot({"w": torch.zeros(2), "x": object()}, buffers)
    assert kept.tensors["w"].all()
