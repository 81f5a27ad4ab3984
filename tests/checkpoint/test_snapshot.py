"""A snapshot in host memory: all of it is of the step boundary, also what is copied late, or there is none."""

import sys
import threading
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_pre_hooks

from mltrain.checkpoint.late_copy import LateCopy
from mltrain.checkpoint.snapshot import HostBuffers, snapshot
from mltrain.errors import UnsupportedValue
from tests.support.late import WIDE, net
from tests.support.waiting import let_pass


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


def test_a_refused_snapshot_leaves_the_buffers_as_they_were() -> None:
    buffers = HostBuffers()
    kept = snapshot({"w": torch.ones(2)}, buffers)
    with pytest.raises(UnsupportedValue):
        snapshot({"w": torch.zeros(2), "x": object()}, buffers)
    assert kept.tensors["w"].all()


def test_states_of_every_kind_can_be_saved() -> None:
    embedding = nn.Embedding(2000, 32, sparse=True)
    optimizer = torch.optim.SGD(embedding.parameters(), lr=0.1, momentum=0.9)
    embedding(torch.arange(9)).sum().backward()
    optimizer.step()
    optimizer.state["calls"] = 3  # type: ignore[index, assignment]
    with torch.inference_mode():
        optimizer.state["made"] = {"there": torch.zeros(128, WIDE)}  # type: ignore[index]
    late = LateCopy([optimizer])
    copied = snapshot(late.allow({"optimizer": dict(optimizer.state_dict()["state"])}), HostBuffers())
    optimizer.step()
    assert copied.pending_copies.error is None
    assert not copied.pending_copies.changed


def test_two_snapshots_at_once_are_both_whole() -> None:
    weight = nn.Parameter(torch.zeros(128, WIDE))
    optimizer = torch.optim.SGD([weight], lr=1.0, fused=True)
    weight.grad = torch.ones_like(weight)
    late = LateCopy([optimizer])
    first, second = (snapshot(late.allow({"model": {"weight": weight}}), HostBuffers()) for _ in range(2))
    optimizer.step()
    for copied in (first, second):
        copied.pending_copies.copy()
        assert not copied.tensors["model.weight"].any()


def test_a_late_copy_that_is_gone_is_not_asked_any_more() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=1.0)
    before = len(_global_optimizer_pre_hooks)
    late = LateCopy([optimizer])
    assert len(_global_optimizer_pre_hooks) == before + 1
    del late
    assert len(_global_optimizer_pre_hooks) == before


def test_only_large_tensors_of_optimizers_are_copied_late() -> None:
    model = net(6, 2)
    free = nn.Parameter(torch.zeros(128, WIDE))  # which no optimizer has
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    late, state = (
        LateCopy([optimizer]),
        {"model": model.state_dict() | {"free": free}, "average": torch.ones(128, WIDE)},
    )
    copied = snapshot(late.allow(state), HostBuffers())
    with torch.no_grad():
        for tensor in (*model.state_dict().values(), free, state["average"]):
            tensor.fill_(7)
    copied.pending_copies.confirm()
    later = {name for name, tensor in copied.tensors.items() if bool((tensor == 7).all())}
    assert later == {"model.3.weight"}
    assert copied.pending_copies.changed


def test_a_tensor_that_only_shares_memory_with_a_parameter_is_copied_at_once() -> None:
    memory = torch.zeros(2 * 128 * WIDE)
    weight = nn.Parameter(memory[: 128 * WIDE])
    optimizer = torch.optim.SGD([weight], lr=0.1)
    copied = snapshot(LateCopy([optimizer]).allow({"model": {"all": memory}}), HostBuffers())
    memory.fill_(7)
    copied.pending_copies.confirm()
    assert not any(tensor.any() for tensor in copied.tensors.values())


def test_an_optimizer_waits_for_a_copy_that_is_under_way() -> None:
    weight = nn.Parameter(torch.zeros(128, WIDE))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    late = LateCopy([optimizer])
    copied = snapshot(late.allow({"model": {"weight": weight}}), HostBuffers())
    weight.grad = torch.ones_like(weight)
    copying, seen = threading.Event(), []

    def hold() -> None:
        with copied.pending_copies._lock:  # as while another thread is copying
            copying.set()
            let_pass(0.2)
            seen.append(bool(weight.any()))

    holder = threading.Thread(target=hold)
    holder.start()
    copying.wait()
    optimizer.step()
    holder.join()
    assert seen == [False]
    assert weight.all()
    assert not copied.tensors["model.weight"].any()
    assert not copied.pending_copies.changed


def test_optimizer_state_whose_memory_is_replaced_before_it_is_copied_is_that_of_the_boundary() -> None:
    weight = nn.Parameter(torch.zeros(128, WIDE))
    optimizer = torch.optim.SGD([weight], lr=1.0, momentum=0.9)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    momentum = optimizer.state[weight]["momentum_buffer"]
    copied = snapshot(LateCopy([optimizer]).allow({"optimizer": optimizer.state_dict()}), HostBuffers())
    momentum.data = torch.full_like(momentum, 7)
    copied.pending_copies.confirm()
    (kept,) = copied.tensors.values()
    assert torch.equal(kept, torch.ones_like(weight))


def test_a_snapshot_makes_few_calls_for_each_tensor() -> None:
    """With hundreds of small tensors the calls cost the most."""
    state = {"model": {f"w{number}": torch.zeros(4) for number in range(500)}}
    state["optimizer"] = {"state": {number: {"m": torch.zeros(4)} for number in range(500)}}  # type: ignore[dict-item]
    buffers, calls = HostBuffers(), 0
    snapshot(state, buffers)

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        snapshot(state, buffers)
    finally:
        sys.setprofile(None)
    assert calls / 1000 < 36
