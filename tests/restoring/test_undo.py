"""A restore that fails changes nothing."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from mltrain.errors import StateMismatch, UsageError
from mltrain.rng import Rng, seed_everything
from mltrain.state import TrainState
from tests.support.equality import identical
from tests.support.parts import Part, stepped


class Refuses(Part):
    """A part that loads half its state and then raises."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(a=1, b=torch.zeros(2))
        self.error: BaseException | None = error

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.values["a"] = state_dict["a"]
        self.values["b"].fill_(7)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        self.values = dict(state_dict)


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (RuntimeError("no"), StateMismatch),
        (ZeroDivisionError(), StateMismatch),
        (AssertionError(), StateMismatch),
        (UsageError("so it is"), UsageError),
        (OSError("disk"), OSError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (SystemExit(3), SystemExit),
    ],
)
def test_a_part_that_refuses_leaves_all_parts_as_they_were(error: BaseException, raised: type[BaseException]) -> None:
    def fresh(last: Any) -> TrainState:
        net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        return TrainState({"model": net, "optimizer": optimizer, "scheduler": schedule, "rng": Rng(), "last": last})

    parts = stepped(fresh(Part(a=5, b=torch.ones(2))))
    target = fresh(Refuses(error))
    stepped(target)
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(raised):
        target.restore(parts)
    assert identical(target.state_dict(), before)
    net = target.parts["model"]
    assert isinstance(net, nn.Module)
    target.restore(parts)  # and they can be restored afterwards
    assert identical(target.state_dict()["model"], parts["model"])


def test_an_optimizer_that_refuses_leaves_the_model_as_it_was() -> None:
    def fresh(width: int) -> TrainState:
        net = nn.Linear(2, 3)
        return TrainState({"model": net, "optimizer": torch.optim.SGD([net.weight, net.bias][:width], momentum=0.9)})

    parts, target = stepped(fresh(2)), fresh(1)
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(StateMismatch, match=r"model\.bias"):
        target.restore(parts)
    assert identical(target.state_dict(), before)


def test_a_lazy_module_that_has_to_go_back_is_lazy_again() -> None:
    def fresh(last: Any) -> TrainState:
        net = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d())
        return TrainState({"last": last, "optimizer": torch.optim.AdamW(net.parameters()), "model": net})

    source = fresh(Part(a=2, b=torch.ones(2)))
    parts = stepped(source)
    target = fresh(Refuses(RuntimeError("no")))
    with pytest.raises(StateMismatch):
        target.restore(parts)
    net, optimizer = target.parts["model"], target.parts["optimizer"]
    assert isinstance(net, nn.Sequential)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert all(is_lazy(parameter) for parameter in net.parameters())
    assert not optimizer.state
    target.restore(parts)
    assert identical(target.state_dict(), parts)
    seed_everything(1)
    expected = stepped(source)
    seed_everything(1)
    assert identical(stepped(target), expected)
