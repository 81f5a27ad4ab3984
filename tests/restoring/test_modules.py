"""Whether weights fit a module, and under which names."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from mltrain.errors import StateMismatch
from mltrain.restoring.modules import fitted
from mltrain.state import TrainState
from tests.support.equality import identical
from tests.support.parts import Renames, trained


@pytest.mark.parametrize("wrong", [3, None, [1], torch.ones(2), {1: torch.ones(2)}])
def test_weights_that_are_none_are_refused(wrong: Any) -> None:
    state, *_ = trained()
    with pytest.raises(StateMismatch, match="model"):
        state.restore({**state.state_dict(), "model": wrong})


def test_weights_fit_a_compiled_module_and_the_other_way_round() -> None:
    plain = nn.Sequential(nn.Linear(2, 2))
    compiled = torch.compile(nn.Sequential(nn.Linear(2, 2)), backend="eager")
    assert all("_orig_mod" in name for name in compiled.state_dict())
    compiled.load_state_dict(fitted(plain.state_dict(), compiled))
    assert identical(list(compiled.state_dict().values()), list(plain.state_dict().values()))
    back = nn.Sequential(nn.Linear(2, 2))
    back.load_state_dict(fitted(compiled.state_dict(), back))
    assert identical(dict(back.state_dict()), dict(plain.state_dict()))


def test_many_missing_names_are_counted_and_not_all_listed() -> None:
    with pytest.raises(StateMismatch) as caught:
        fitted({}, nn.Sequential(*[nn.Linear(1, 1) for _ in range(20)]))
    assert len(caught.value.missing) == 40
    assert "missing in the checkpoint (40)" in str(caught.value)
    assert "and 28 more" in str(caught.value)


def test_a_lazy_module_is_not_touched_by_the_question_whether_weights_fit() -> None:
    net, lazy = nn.Linear(2, 3), nn.LazyLinear(3)
    fitted(net.state_dict(), lazy)
    assert is_lazy(lazy.weight)
    assert is_lazy(lazy.bias)
    with pytest.raises(StateMismatch) as caught:
        fitted({"weight": torch.ones(3, 2)}, lazy)
    assert caught.value.missing == ("bias",)
    assert is_lazy(lazy.weight)


class Grows(nn.Module):
    """Has a buffer that takes any shape on load. torch's observers have such buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(0))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        self.seen.resize_(state_dict[f"{prefix}seen"].shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Lenient(nn.Linear):
    """Leaves out what it has not, whatever it is asked."""

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict(state_dict, strict=False)


class Remembers(nn.Linear):
    """Has more to remember than tensors."""

    seen = 0

    def get_extra_state(self) -> Any:
        return {"seen": self.seen}

    def set_extra_state(self, state: Any) -> None:
        self.seen = state["seen"]


WEIGHT, BIAS = torch.ones(3, 2), torch.ones(3)

TAKEN: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "grows": (Grows, {"seen": torch.ones(5)}),
    "renames": (Renames, {"old.weight": WEIGHT, "old.bias": BIAS}),
    "lenient": (lambda: Lenient(2, 3), {"weight": WEIGHT, "bias": BIAS, "more": BIAS}),
    "remembers": (lambda: Remembers(2, 3), {"weight": WEIGHT, "bias": BIAS, "_extra_state": {"seen": 3}}),
    "lazy": (lambda: nn.LazyLinear(3), {"weight": WEIGHT, "bias": BIAS}),
}


@pytest.mark.parametrize(
    ("kind", "wrapped"),
    [
        (kind, wrapped)
        for kind in TAKEN
        for wrapped in ("plain", "inside", "compiled", "data parallel")
        if kind != "lenient" or wrapped not in ("inside", "compiled")  # torch asks the outermost module only
    ],
)
def test_what_torch_takes_is_taken(kind: str, wrapped: str) -> None:
    make, weights = TAKEN[kind]
    alone, net = make(), make()
    alone.load_state_dict(weights)
    if wrapped == "inside":
        net, weights = nn.ModuleDict({"net": net}), {f"net.{key}": value for key, value in weights.items()}
    if wrapped == "compiled":
        net = torch.compile(net, backend="eager")  # type: ignore[assignment]
    if wrapped == "data parallel":
        weights = {f"module.{key}": value for key, value in weights.items()}
    before = copy.deepcopy(dict(net.state_dict())) if kind != "lazy" else {}
    fitted(weights, net)
    if kind != "lazy":
        assert identical(dict(net.state_dict()), before)
    TrainState({"model": net}).restore({"model": weights})
    assert identical(list(net.state_dict().values()), list(alone.state_dict().values()))


def test_what_a_module_refuses_leaves_it_as_it_was() -> None:
    net = nn.Sequential(OrderedDict(remembers=Remembers(2, 3), grows=Grows()))
    before = copy.deepcopy(dict(net.state_dict()))
    wrong = {**copy.deepcopy(before), "remembers._extra_state": {"seen": 3}, "grows.seen": torch.ones(4), "more": BIAS}
    with pytest.raises(StateMismatch) as caught:
        fitted(wrong, net)
    assert caught.value.unexpected == ("more",)
    assert identical(dict(net.state_dict()), before)


def test_weights_go_into_a_data_parallel_module_and_out_of_it() -> None:
    plain, wrapped = nn.Linear(2, 3), nn.DataParallel(nn.Linear(2, 3))
    TrainState({"model": wrapped}).restore({"model": plain.state_dict()})
    assert identical(list(wrapped.state_dict().values()), list(plain.state_dict().values()))
    other = nn.Linear(2, 3)
    TrainState({"model": other}).restore({"model": wrapped.state_dict()})
    assert identical(dict(other.state_dict()), dict(plain.state_dict()))
