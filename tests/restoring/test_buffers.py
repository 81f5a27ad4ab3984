"""Buffers that a skipped step has changed."""

import math

import torch
from torch import nn

from mltrain.restoring.buffers import Buffers


def test_buffers_of_all_modules_are_those_of_before_the_step() -> None:
    one, other = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    buffers = Buffers([one, object(), nn.Sequential(other)])
    for module in (one, other):
        module(torch.randn(4, 2))
    expected = [buffer.clone() for module in (one, other) for buffer in module.buffers()]
    buffers.keep()
    for module in (one, other):
        module(torch.full((4, 2), math.nan))
    assert not one.get_buffer("running_mean").isfinite().any()
    buffers.restore()
    assert all(map(torch.equal, expected, [buffer for module in (one, other) for buffer in module.buffers()]))


def test_the_copy_is_of_the_last_call() -> None:
    module = nn.BatchNorm1d(2)
    buffers = Buffers([module])
    buffers.keep()
    module(torch.randn(4, 2))
    buffers.keep()
    expected = module.get_buffer("running_mean").clone()
    module(torch.randn(4, 2))
    buffers.restore()
    assert torch.equal(module.get_buffer("running_mean"), expected)


def test_a_large_buffer_that_nothing_changes_is_copied_once() -> None:
    module = nn.Module()
    module.register_buffer("mask", torch.zeros(2**17))
    buffers = Buffers([module])
    buffers.keep()
    first = buffers._kept[id(module.get_buffer("mask"))][2]
    buffers.keep()
    assert buffers._kept[id(module.get_buffer("mask"))][2] is first
    module.get_buffer("mask").fill_(1.0)
    buffers.restore()
    assert not module.get_buffer("mask").any()


def test_a_lazy_module_has_no_buffers_yet() -> None:
    module = nn.LazyBatchNorm1d()
    buffers = Buffers([module])
    buffers.keep()
    module(torch.randn(4, 2))
    buffers.restore()
    assert module.get_buffer("running_mean").isfinite().all()
