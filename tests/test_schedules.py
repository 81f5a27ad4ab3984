"""Schedules are recognized, located, and planned from their settings."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim import lr_scheduler as schedules

from mltrain.schedules import counts_steps, is_schedule, plan_of, position, put_settings, same_optimizer, settings_of


@pytest.fixture
def optimizer() -> SGD:
    return SGD([nn.Parameter(torch.ones(1))], lr=0.1)


class OfMyOwn:
    """Used as torch's are, and no subclass."""

    def __init__(self, optimizer: SGD) -> None:
        self.optimizer, self.last_epoch = optimizer, 0

    def get_last_lr(self) -> list[float]:
        return [0.1]

    def step(self) -> None:
        self.last_epoch += 1


def test_a_schedule_is_known_by_what_it_does(optimizer: SGD) -> None:
    assert is_schedule(schedules.StepLR(optimizer, 1))
    assert is_schedule(OfMyOwn(optimizer))
    assert not is_schedule(optimizer)
    assert not is_schedule(nn.Linear(1, 1))


def test_a_chain_is_where_its_furthest_schedule_is(optimizer: SGD) -> None:
    parts = [schedules.ConstantLR(optimizer, total_iters=2), schedules.StepLR(optimizer, 2)]
    chain = schedules.SequentialLR(optimizer, parts, milestones=[2])
    for _ in range(3):
        optimizer.step()
        chain.step()
    assert position(chain) == 3
    mine = OfMyOwn(optimizer)
    assert position(mine) == 0
    mine.step()
    assert position(mine) == 1


def test_only_some_schedules_follow_from_their_steps(optimizer: SGD) -> None:
    made: list[tuple[Any, bool]] = [
        (schedules.StepLR(optimizer, 1), True),
        (OfMyOwn(optimizer), True),
        (schedules.ReduceLROnPlateau(optimizer), False),
    ]
    assert [counts_steps(one) for one, _ in made] == [expected for _, expected in made]


def test_the_plan_leaves_the_position_out(optimizer: SGD) -> None:
    schedule = schedules.StepLR(optimizer, 4, 0.5)
    before = plan_of(schedule.state_dict())
    optimizer.step()
    schedule.step()
    assert plan_of(schedule.state_dict()) == before
    assert before["step_size"] == 4
    assert plan_of(schedules.StepLR(optimizer, 5, 0.5).state_dict()) != before


def test_settings_are_copies_that_can_be_put_back(optimizer: SGD) -> None:
    optimizer.param_groups[0]["lr"] = torch.tensor(0.1)
    kept = settings_of(optimizer)
    optimizer.param_groups[0]["lr"].mul_(2)
    optimizer.param_groups[0]["momentum"] = 0.9
    put_settings([(optimizer, kept)])
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.1)
    assert optimizer.param_groups[0]["momentum"] == 0
    assert "params" not in kept[0]


def test_a_wrapper_with_the_same_groups_is_the_same_optimizer(optimizer: SGD) -> None:
    class Wrapper:
        param_groups = optimizer.param_groups

    assert same_optimizer(optimizer, Wrapper())
    assert not same_optimizer(optimizer, SGD([nn.Parameter(torch.ones(1))], lr=0.1))
