"""The order of queued copies from simulated CUDA devices."""

import pytest
import torch
from torch import nn

from mltrain.checkpoint.late_copy import LateCopy, SideStreams
from mltrain.checkpoint.snapshot import HostBuffers, snapshot
from tests.support.fake_cuda import Cuda, OnCuda, OnSecond

ONE, TWO = torch.device("cuda:0"), torch.device("cuda:1")


def on(kind: type[OnCuda], size: int = 1 << 16) -> OnCuda:
    return torch.ones(size).as_subclass(kind)


def test_a_copy_comes_after_what_the_current_stream_was_given_and_before_what_it_is_given_next() -> None:
    cuda = Cuda()
    buffer = torch.zeros(1 << 16)
    queued = SideStreams(cuda).copy([(buffer, on(OnCuda))])
    assert cuda.queued == ["side of cuda:0 waits for current of cuda:0", "side of cuda:0 ends"]
    assert buffer.all()
    queued.hold_back()
    assert cuda.queued[2:] == ["current of cuda:0 waits for side of cuda:0"]
    assert cuda.waited == [], "the host waits for nothing"
    queued.wait()
    assert cuda.waited == [ONE]


def test_every_device_copies_on_a_stream_of_its_own_which_is_used_again() -> None:
    cuda = Cuda()
    streams = SideStreams(cuda)
    pairs = [(torch.zeros(1 << 16), tensor) for tensor in (on(OnCuda), on(OnSecond), on(OnCuda))]
    streams.copy(pairs).wait()
    assert cuda.waited == [ONE, TWO]
    streams.copy(pairs[:1])
    assert cuda.made == [ONE, TWO]


def test_nothing_to_copy_asks_no_device_for_anything() -> None:
    cuda = Cuda()
    queued = SideStreams(cuda).copy([])
    assert not queued
    queued.hold_back()
    queued.wait()
    assert (cuda.made, cuda.queued) == ([], [])


@pytest.fixture
def trained() -> tuple[Cuda, OnCuda, LateCopy]:
    weight, other = on(OnCuda), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([other], lr=1.0)
    other.grad = torch.ones(2)
    optimizer.state[other]["momentum_buffer"] = weight
    cuda = Cuda()
    return cuda, weight, LateCopy([optimizer], cuda)


def test_a_step_is_queued_behind_the_copies_and_no_thread_waits(trained: tuple[Cuda, OnCuda, LateCopy]) -> None:
    cuda, weight, late = trained
    copied = snapshot(late.allow({"optimizer": {"momentum": weight}}), HostBuffers(cuda, pin=False))
    assert copied.pending_copies
    assert cuda.waited == []
    late._optimizers[0].step()
    assert cuda.queued[-1] == "current of cuda:0 waits for side of cuda:0"
    assert cuda.waited == []
    copied.pending_copies.complete(lambda: False)
    assert cuda.waited == [ONE]
    assert copied.tensors["optimizer.momentum"].all()


def test_what_is_no_step_waits_until_all_is_copied(trained: tuple[Cuda, OnCuda, LateCopy]) -> None:
    cuda, weight, late = trained
    snapshot(late.allow({"optimizer": {"momentum": weight}}), HostBuffers(cuda, pin=False))
    late.finish()
    assert cuda.waited == [ONE]


def test_a_change_of_a_tensor_on_a_device_is_noticed(trained: tuple[Cuda, OnCuda, LateCopy]) -> None:
    cuda, weight, late = trained
    copied = snapshot(late.allow({"optimizer": {"momentum": weight}}), HostBuffers(cuda, pin=False))
    weight.mul_(2)
    late._optimizers[0].step()
    assert copied.pending_copies.changed
