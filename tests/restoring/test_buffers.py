"""Buffers that a skipped step has changed."""

import math

import pytest
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


@pytest.mark.parametrize("through_data", [False, True])
def test_a_large_buffer_is_that_of_before_the_step(through_data: bool) -> None:
    module = nn.Module()
    module.register_buffer("codes", torch.zeros(2**17))
    buffer = module.get_buffer("codes")
    buffers = Buffers([module])
    buffers.keep()
    for value in (1.0, math.nan):
        buffers.keep()
        (buffer.data if through_data else buffer).fill_(value)
    buffers.restore()
    assert buffer.eq(1.0).all()


def test_a_buffer_whose_elements_share_memory_stays() -> None:
    module = nn.Module()
    module.register_buffer("mask", torch.zeros(1).expand(8))
    buffers = Buffers([module])
    buffers.keep()
    buffers.restore()
    assert not module.get_buffer("mask").any()


def test_a_lazy_module_has_no_buffers_yet() -> None:
    module = nn.LazyBatchNorm1d()
    buffers = Buffers([module])
    buffers.keep()
    module(torch.randn(4, 2))
    buffers.restore()
    assert module.get_buffer("running_mean").isfinite().all()


class Running(nn.Module):
    """Assigns its buffers anew in each forward."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("last", torch.zeros(2), persistent=False)
        self.register_buffer("first", None)

    def forward(self, values: torch.Tensor) -> None:
        self.mean = 0.9 * self.mean + 0.1 * values.mean(0)
        self.last = values[-1]
        if self.first is None:
            self.first = values[0]
        if not hasattr(self, "later"):
            self.register_buffer("later", values[0])


def test_buffers_that_a_step_assigns_anew_are_those_of_before() -> None:
    module = Running()
    buffers = Buffers([module])
    buffers.keep()
    module(torch.full((4, 2), math.nan))
    buffers.restore()
    assert module.first is None
    assert {name: one.tolist() for name, one in module.named_buffers()} == {"mean": [0.0, 0.0], "last": [0.0, 0.0]}

    module(torch.ones(4, 2))
    expected = {name: one.clone() for name, one in module.named_buffers()}
    buffers.keep()
    module(torch.full((4, 2), math.nan))
    buffers.restore()
    assert all(torch.equal(one, expected[name]) for name, one in module.named_buffers())
    assert expected.keys() == {"mean", "last", "first", "later"}


def test_a_shared_buffer_is_still_shared() -> None:
    module = nn.ModuleList([Running(), Running()])
    module[1].mean = module[0].mean
    buffers = Buffers([module])
    buffers.keep()
    module[0].mean.fill_(math.nan)
    module[1].mean = module[1].mean + 1
    buffers.restore()
    assert module[0].mean is module[1].mean
    assert module[0].mean.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("in_place", [False, True])
def test_a_cache_that_grew_stays_unless_it_has_nan(in_place: bool) -> None:
    def grow(value: float) -> None:
        if in_place:
            module.get_buffer("table").resize_(3).fill_(value)
        else:
            module.table = torch.full((3,), value)

    module = nn.Module()
    module.register_buffer("table", torch.zeros(2))
    buffers = Buffers([module])
    buffers.keep()
    grow(math.nan)
    buffers.restore()
    assert module.get_buffer("table").tolist() == [0.0, 0.0]
    grow(-math.inf)  # a causal mask
    buffers.restore()
    assert module.get_buffer("table").tolist() == [-math.inf, -math.inf, -math.inf]


def test_a_buffer_that_requires_grad_is_restored() -> None:
    module = nn.Module()
    module.register_buffer("scale", torch.ones(1, requires_grad=True))
    buffers = Buffers([module])
    buffers.keep()
    module.get_buffer("scale").detach().fill_(math.nan)
    buffers.restore()
    assert module.get_buffer("scale").tolist() == [1.0]


def test_a_buffer_of_inference_mode_counts_no_versions() -> None:
    module = nn.Module()
    with torch.inference_mode():
        module.register_buffer("mask", torch.zeros(2**17))
    buffers = Buffers([module])
    buffers.keep()
    buffers.keep()
    with torch.inference_mode():
        module.get_buffer("mask").fill_(1.0)
    buffers.restore()
    assert not module.get_buffer("mask").any()


def test_buffers_of_a_scripted_module_are_restored() -> None:
    module = torch.jit.script(nn.BatchNorm1d(2))
    buffers = Buffers([module])
    buffers.keep()
    module(torch.full((4, 2), math.nan))
    buffers.restore()
    assert module.running_mean.isfinite().all()
