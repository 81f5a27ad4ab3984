"""An optimizer's state follows the names of its parameters."""

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn

from mltrain.errors import StateMismatch
from mltrain.state import TrainState
from tests.support.equality import identical
from tests.support.parts import Renames, Two, in_two, moments, stepped, swapped, turned, two


@pytest.mark.parametrize("groups", [swapped, turned, lambda net: turned(net)[::-1]])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_state_of_an_optimizer_follows_the_names_of_its_parameters(
    groups: Any, compiled: bool, caplog: pytest.LogCaptureFixture
) -> None:
    source = two(in_two)
    parts = stepped(source)
    wrap = (lambda net: torch.compile(net, backend="eager")) if compiled else (lambda net: net)
    target = two(groups, wrap=wrap)
    target.restore(parts)
    assert identical(moments(target), moments(source))
    assert "another order" in caplog.text
    for state in (source, target):
        optimizer, schedule = state.parts["optimizer"], state.parts["scheduler"]
        assert isinstance(optimizer, torch.optim.Optimizer)
        assert isinstance(schedule, torch.optim.lr_scheduler.LRScheduler)
        optimizer.zero_grad()
        optimizer.step()
        schedule.step()
    assert identical(moments(target), moments(source))


def test_the_state_of_an_optimizer_that_is_built_alike_is_given_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    parts, target = stepped(two(in_two)), two(in_two)
    target.restore(parts)
    assert identical(target.state_dict(), parts)
    assert caplog.text == ""
    other = two(in_two).parts["optimizer"]
    other.load_state_dict(parts["optimizer"])  # torch itself reads it


@pytest.mark.parametrize(
    ("groups", "named"),
    [
        (lambda net: in_two(net)[:1], ("model.decoder.bias", "model.decoder.weight")),
        (lambda net: [*in_two(net), {"params": [net.unused]}], ("model.unused",)),
        (lambda net: [{"params": [*net.encoder.parameters(), net.decoder.weight]}], ("model.decoder.bias",)),
    ],
)
def test_an_optimizer_of_other_parameters_is_refused_by_name(groups: Any, named: tuple[str, ...]) -> None:
    parts, target = stepped(two(in_two)), two(groups)
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(StateMismatch) as caught:
        target.restore(parts)
    assert (*caught.value.missing, *caught.value.unexpected) == named
    assert identical(target.state_dict(), before)


def test_groups_are_split_where_their_settings_are_clear_and_refused_where_they_are_not() -> None:
    def one(net: Two) -> list[dict[str, Any]]:
        return [{"params": [*net.encoder.parameters(), *net.decoder.parameters()]}]

    source, target = two(one), two(in_two)
    target.restore(stepped(source))
    assert identical(moments(target), moments(source))
    with pytest.raises(StateMismatch, match="whose settings differ"):
        two(one).restore(stepped(two(in_two)))


def test_a_group_with_a_name_keeps_its_settings_when_it_takes_over_parameters() -> None:
    def groups(net: Two, bias_in: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = [
            {"params": [net.encoder.weight], "lr": 1e-2, "name": "slow"},
            {"params": [net.decoder.weight], "lr": 1e-4, "name": "fast"},
        ]
        found[bias_in]["params"] += [net.encoder.bias]
        return found

    parts, target = stepped(two(lambda net: groups(net, 0))), two(lambda net: groups(net, 1))
    target.restore(parts)
    optimizer = target.parts["optimizer"]
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert [group["initial_lr"] for group in optimizer.param_groups] == [1e-2, 1e-4]


def test_several_optimizers_and_modules_each_go_by_their_names() -> None:
    def gan(turn: int) -> TrainState:
        torch.manual_seed(0)
        first, second = nn.Linear(2, 2), nn.Linear(2, 2)
        both = {"g": first, "d": second}
        optimizers = {
            f"optimizer_{name}": torch.optim.SGD(list(net.parameters())[::turn], lr=0.1, momentum=0.9)
            for name, net in both.items()
        }
        return TrainState({**optimizers, **both})

    def step(state: TrainState) -> None:
        for name in "gd":
            net, optimizer = state.parts[name], state.parts[f"optimizer_{name}"]
            assert isinstance(net, nn.Module)
            assert isinstance(optimizer, torch.optim.Optimizer)
            optimizer.zero_grad()
            net(torch.ones(1, 2)).square().sum().backward()
            optimizer.step()

    source, target = gan(1), gan(-1)
    step(source)
    target.restore(copy.deepcopy(source.state_dict()))
    step(source)
    step(target)
    assert identical(
        [dict(target.parts[n].state_dict()) for n in "gd"], [dict(source.parts[n].state_dict()) for n in "gd"]
    )


class Holder:
    """A part that keeps a module to itself."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def state_dict(self) -> dict[str, Any]:
        return {"net": dict(self.net.state_dict())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.net.load_state_dict(state_dict["net"])


def test_parameters_of_a_module_that_another_part_holds_have_names() -> None:
    def held(groups: Any) -> TrainState:
        state = two(groups)
        net = state.parts["model"]
        assert isinstance(net, nn.Module)
        return TrainState({"optimizer": state.parts["optimizer"], "holder": Holder(net)})

    def moved(state: TrainState) -> Any:
        holder = state.parts["holder"]
        assert isinstance(holder, Holder)
        return moments(TrainState({"optimizer": state.parts["optimizer"], "model": holder.net}))

    whole = two(in_two)
    stepped(whole)
    net = whole.parts["model"]
    assert isinstance(net, nn.Module)
    source, target = TrainState({"optimizer": whole.parts["optimizer"], "holder": Holder(net)}), held(swapped)
    target.restore(copy.deepcopy(source.state_dict()))
    assert identical(moved(target), moved(source))


def test_tied_parameters_have_one_name() -> None:
    def tied() -> TrainState:
        net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        net[1].weight = net[0].weight
        return TrainState({"model": net, "optimizer": torch.optim.AdamW(net.parameters())})

    parts, target = stepped(tied()), tied()
    target.restore(parts)
    assert identical(target.state_dict(), parts)


def unknown(*shapes: tuple[int, ...], named: bool = False) -> tuple[TrainState, torch.optim.Optimizer]:
    parameters: list[Any] = [nn.Parameter(torch.ones(shape)) for shape in shapes]
    given = [(f"p{len(one.shape)}{one.numel()}", one) for one in parameters] if named else parameters
    optimizer = torch.optim.AdamW(given)
    for one in parameters:
        one.grad = torch.ones_like(one) * one.numel()
    optimizer.step()
    return TrainState({"optimizer": optimizer}), optimizer


def test_parameters_of_no_known_module_go_by_place_and_shape() -> None:
    source, _ = unknown((2,), (3, 3))
    parts = copy.deepcopy(source.state_dict())
    unknown((2,), (3, 3))[0].restore(parts)
    with pytest.raises(StateMismatch, match="another shape"):
        unknown((3, 3), (2,))[0].restore(parts)
    with pytest.raises(StateMismatch, match="parameter 1 of group 0"):
        unknown((2,))[0].restore(parts)


def test_parameters_that_their_optimizer_names_go_by_that() -> None:
    source, one = unknown((2,), (3, 3), named=True)
    target, other = unknown((3, 3), (2,), named=True)
    target.restore(copy.deepcopy(source.state_dict()))
    assert other.param_groups[0]["param_names"] == ["p29", "p12"]
    (small, large), (first, second) = one.param_groups[0]["params"], other.param_groups[0]["params"]
    assert identical(dict(other.state[first]), dict(one.state[large]))
    assert identical(dict(other.state[second]), dict(one.state[small]))


def test_checkpoints_without_names_go_by_place_and_are_refused_by_shape() -> None:
    source, _ = unknown((2,), (3, 3))
    parts = copy.deepcopy(source.state_dict())
    del parts["optimizer"]["parameters"]
    target, _ = unknown((2,), (3, 3))
    target.restore(parts)
    assert identical(target.state_dict()["optimizer"]["state"], parts["optimizer"]["state"])
    for shapes in ([(3, 3), (2,)], [(2,), (3, 4)], [(2,)], [(2,), (3, 3), (1,)]):
        with pytest.raises(StateMismatch, match="optimizer"):
            unknown(*shapes)[0].restore(parts)


def test_the_state_of_another_kind_of_optimizer_is_refused() -> None:
    parts = copy.deepcopy(unknown((2,))[0].state_dict())
    other = TrainState({"optimizer": torch.optim.SGD([nn.Parameter(torch.ones(2))], momentum=0.9)})
    with pytest.raises(StateMismatch, match="momentum"):
        other.restore(parts)


def test_the_optimizer_of_a_module_that_renames_its_weights_goes_by_place(caplog: pytest.LogCaptureFixture) -> None:
    net = nn.Sequential(OrderedDict(old=nn.Linear(2, 3)))
    source = TrainState({"model": net, "optimizer": torch.optim.AdamW(net.parameters())})
    parts, other = stepped(source), Renames()
    target = TrainState({"model": other, "optimizer": torch.optim.AdamW(other.parameters())})
    target.restore(parts)
    assert "model.old.weight to model.new.weight" in caplog.text
    assert identical(target.state_dict()["optimizer"]["state"], parts["optimizer"]["state"])
