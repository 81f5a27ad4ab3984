"""Nested state as JSON plus flat tensors, and back."""

import collections
import dataclasses
import datetime
import json
import math
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from mltrain.checkpoint.pytree import Flat, flatten
from mltrain.errors import UnsupportedValue
from tests.support.equality import identical
from tests.support.trees import there_and_back
from tests.support.values import Pair, states


@settings(max_examples=150, deadline=None)
@given(states)
def test_whatever_a_state_may_hold_comes_back_bit_by_bit(state: dict[str, Any]) -> None:
    assert identical(there_and_back(state), state)


def test_equal_sets_are_equal_bytes() -> None:
    there = {f"word {number}" for number in range(50)}
    back = set()
    for word in sorted(there, reverse=True):
        back.add(word)
    assert flatten({"a": there}).tree == flatten({"a": back}).tree


def test_a_state_with_names_that_are_not_text_keeps_its_weights() -> None:
    state = {5: 3, "model": {"w": torch.ones(2)}, None: 1}
    assert there_and_back(state, "model").keys() == state.keys()
    assert identical(there_and_back(state, "model")["model"], state["model"])


def test_the_key_that_names_types_can_be_a_key_of_a_state() -> None:
    state = {"a": {"$": "tensor", "name": "b"}, "$": {"$": 1}}
    assert there_and_back(state) == state


@pytest.mark.parametrize(
    "wrap", [lambda v: [v], lambda v: (v,), lambda v: {"a": v}, lambda v: {1: v}, lambda v: Pair(v, 0)]
)
def test_what_is_not_refused_as_too_deep_can_be_read_back(wrap: Any) -> None:
    value: Any = 0
    for _ in range(99):
        value = wrap(value)
    assert identical(there_and_back({"a": value})["a"], value)
    with pytest.raises(UnsupportedValue, match="nested more than"):
        flatten({"a": wrap(wrap(wrap(value)))})


def test_a_state_that_is_part_of_itself_is_refused() -> None:
    circle: list[Any] = []
    circle += [circle, circle, circle]
    with pytest.raises(UnsupportedValue, match="contain itself"):
        flatten({"a": circle})


@dataclasses.dataclass
class Unknown:
    x: int = 0


@pytest.mark.parametrize(
    "value",
    [
        object(),
        Unknown(),
        torch.nn.Linear(1, 1),
        lambda: 0,
        np.array([object()]),
        np.zeros(2, dtype=[("x", "i4")]),
        np.zeros(2, dtype=[("x", "i4")])[0],
        collections.defaultdict(lambda: 0),
        torch.ones(2, device="meta"),
        range(3),
        datetime.time(1),
        torch.max(torch.ones(2, 2), 0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_stored_is_refused_by_the_path_to_it(value: Any) -> None:
    with pytest.raises(UnsupportedValue, match=r"^part\.inner\.2 is a"):
        flatten({"part": {"inner": [1, 2, value]}})


def test_a_name_that_is_not_valid_text_is_refused_for_a_tensor_and_kept_for_a_value() -> None:
    assert there_and_back({"\ud800": 1}) == {"\ud800": 1}
    with pytest.raises(UnsupportedValue, match="surrogate"):
        flatten({"\ud800": torch.ones(1)})


def test_paths_come_back_as_paths_of_this_system() -> None:
    assert there_and_back({"a": PurePosixPath("x/y")}) == {"a": Path("x/y")}


def test_a_flat_state_is_plain_json() -> None:
    flat = flatten({"a": math.nan, "b": (1, math.inf), "c": b"x", "d": 1j, "e": torch.ones(1)})
    assert isinstance(flat, Flat)
    assert json.loads(json.dumps(flat.tree, allow_nan=False)) == flat.tree


@pytest.mark.parametrize("number", [10**5000, -(10**5000), 2**1024, 2**1023, -(2**64)], ids=int.bit_length)
def test_whole_numbers_of_any_length_come_back(number: int) -> None:
    assert there_and_back({"n": number, number: "as a key"}) == {"n": number, number: "as a key"}


def test_the_parts_keep_their_order_whatever_they_are_called() -> None:
    state = {"$": 1, "model": {"w": torch.ones(1)}, 3: 4}
    assert list(there_and_back(state, "model")) == list(state)
