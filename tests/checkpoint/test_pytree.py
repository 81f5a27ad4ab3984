"""Nested state as JSON plus flat tensors, and back."""

import collections
import dataclasses
import datetime
import json
import math
import warnings
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrain.checkpoint.pytree import Flat, flatten, unflatten
from mltrain.errors import DamagedCheckpoint, UnsupportedValue
from tests.support.equality import identical
from tests.support.values import Pair, random_tensor, states, tensors


def there_and_back(state: dict[Any, Any], weights: str | None = None) -> Any:
    flat = flatten(state, weights)
    return unflatten(json.loads(json.dumps(flat.tree, allow_nan=False)), flat.tensors)


@settings(max_examples=150, deadline=None)
@given(states)
def test_whatever_a_state_may_hold_comes_back_bit_by_bit(state: dict[str, Any]) -> None:
    assert identical(there_and_back(state), state)


@settings(max_examples=60, deadline=None)
@given(
    states.filter(lambda state: "$" not in state),
    st.dictionaries(st.text(max_size=4).filter(lambda key: key != "$"), tensors(), min_size=1, max_size=3),
)
def test_the_weights_keep_their_names_whatever_the_rest_of_the_state_is_called(
    rest: dict[str, Any], weights: dict[str, torch.Tensor]
) -> None:
    state = {**rest, "model": weights}
    flat = flatten(state, "model")
    known = {reference["name"] for reference in flat.tree["model"].values()}
    assert {name for name in flat.tensors if name.startswith("model.")} == known
    assert identical(unflatten(flat.tree, flat.tensors), state)


@settings(max_examples=100, deadline=None)
@given(tensors())
def test_every_stored_tensor_is_of_a_dtype_that_safetensors_has(tensor: torch.Tensor) -> None:
    import safetensors.torch

    flat = flatten({"a": tensor})
    stored = {name: value.contiguous() for name, value in flat.tensors.items()}
    assert safetensors.torch.load(safetensors.torch.save(stored)).keys() == stored.keys()


def every_dtype() -> list[torch.dtype]:
    found = {getattr(torch, name) for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)}
    return sorted((dtype for dtype in found if not str(dtype).startswith("torch.q")), key=str)


@pytest.mark.parametrize("dtype", every_dtype(), ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3)], ids=str)
def test_every_dtype_of_torch_comes_back(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = random_tensor(dtype, shape, 1)
    back = there_and_back({"a": tensor})["a"]
    assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(back.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_dense_tensor_comes_back_in_the_same_memory_layout(layout: torch.memory_format) -> None:
    tensor = torch.rand(2, 3, 4, 5).to(memory_format=layout)
    assert there_and_back({"a": tensor})["a"].stride() == tensor.stride()
    assert there_and_back({"a": tensor.transpose(0, 3)})["a"].stride() == tensor.transpose(0, 3).stride()


@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta state")
@pytest.mark.parametrize("layout", ["coo", "csr", "csc", "bsr", "bsc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.int64])
def test_a_sparse_tensor_comes_back_by_its_parts(layout: str, dtype: torch.dtype) -> None:
    dense = torch.tensor([[0, 1, 0, 2], [0, 0, 0, 0], [3, 0, 0, 0], [0, 0, 4, 0]], dtype=dtype)
    block = {"blocksize": (2, 2)} if layout in ("bsr", "bsc") else {}
    sparse = dense.to_sparse(layout=getattr(torch, f"sparse_{layout}"), **block)
    back = there_and_back({"a": sparse})["a"]
    assert back.layout is sparse.layout
    assert torch.equal(back.to_dense(), dense)


def test_an_uncoalesced_sparse_tensor_comes_back_coalesced() -> None:
    sparse = torch.sparse_coo_tensor([[0, 0], [1, 1]], [1.0, 2.0], (2, 2), check_invariants=True)
    back = there_and_back({"a": sparse})["a"]
    assert back.is_coalesced()
    assert torch.equal(back.to_dense(), torch.tensor([[0.0, 3.0], [0.0, 0.0]]))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3)), max_size=2)),
        min_size=2,
        max_size=5,
    )
)
def test_tensors_that_shared_memory_share_it_again(looks: list[tuple[int, list[tuple[int, int]]]]) -> None:
    base = torch.arange(20, dtype=torch.float32)
    views = [base.as_strided([n for n, _ in dims], [step for _, step in dims], offset) for offset, dims in looks]
    back = there_and_back({"here": {"first": views[0]}, "there": views[1:], 5: torch.zeros(2)})
    again = [back["here"]["first"], *back["there"]]
    assert identical(again, views)
    for number, (before, now) in enumerate(zip(views, again, strict=True)):
        before.fill_(100 + number)
        now.fill_(100 + number)
        assert identical(again, views), "a write through one is seen through the others"


def test_the_same_tensor_under_several_names_is_stored_once_and_is_one_again() -> None:
    tensor = torch.rand(100)
    flat = flatten({"model": {"encoder": tensor, "decoder": tensor}, "ema": [tensor]}, "model")
    back = unflatten(flat.tree, flat.tensors)
    assert list(flat.tensors) == ["model.encoder"]
    assert back["model"]["encoder"] is back["model"]["decoder"] is back["ema"][0]


def test_pieces_of_one_storage_keep_their_names_where_they_are_weights() -> None:
    storage = torch.rand(12)
    state = {"ih": storage[:6].view(2, 3), "hh": storage[6:]}
    assert flatten({"model": state}, "model").tensors.keys() == {"model.ih", "model.hh"}
    assert flatten({"other": state}, None).tensors.keys() == {"other.ih.storage"}


def test_conjugates_of_different_tensors_stay_different() -> None:
    many = [random_tensor(torch.complex64, (300, 301), seed).t().conj() for seed in range(6)]
    assert identical(there_and_back({"a": many})["a"], many)
    imaginary = [tensor.imag for tensor in many]
    assert identical(there_and_back({"a": imaginary})["a"], imaginary)


def test_equal_sets_are_equal_bytes() -> None:
    there = {f"word {number}" for number in range(50)}
    back = set()
    for word in sorted(there, reverse=True):
        back.add(word)
    assert flatten({"a": there}).tree == flatten({"a": back}).tree


def test_names_that_safetensors_keeps_for_itself_can_be_names_in_a_state() -> None:
    state = {"__metadata__": torch.ones(2), "part": {"__metadata__": torch.zeros(3)}, "": torch.ones(1)}
    flat = flatten(state)
    assert not any(name.rpartition(".")[2] == "__metadata__" for name in flat.tensors)
    assert identical(unflatten(flat.tree, flat.tensors), state)


def test_names_that_would_collide_are_told_apart() -> None:
    state = {"a.b": torch.ones(1), "a": {"b": torch.zeros(1), "b~2": torch.full((1,), 2.0)}, "a.b~2": torch.ones(2)}
    assert len(flatten(state).tensors) == 4
    assert identical(there_and_back(state), state)


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


@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
def test_a_nested_tensor_is_refused(layout: torch.layout) -> None:
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=layout)
    with pytest.raises(UnsupportedValue, match=r"^a\.b is a tensor that is nested"):
        flatten({"a": {"b": nested}})


def test_a_quantized_tensor_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates them
        quantized = torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)
    with pytest.raises(UnsupportedValue, match="quantized"):
        flatten({"a": quantized})


def test_a_name_that_is_not_valid_text_is_refused_for_a_tensor_and_kept_for_a_value() -> None:
    assert there_and_back({"\ud800": 1}) == {"\ud800": 1}
    with pytest.raises(UnsupportedValue, match="surrogate"):
        flatten({"\ud800": torch.ones(1)})


def test_paths_come_back_as_paths_of_this_system() -> None:
    assert there_and_back({"a": PurePosixPath("x/y")}) == {"a": Path("x/y")}


def test_a_gradient_does_not_come_along() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    back = there_and_back({"a": (parameter * 2)})["a"]
    assert not back.requires_grad


def test_a_tree_of_a_device_puts_every_tensor_there() -> None:
    shared = torch.ones(4)
    flat = flatten({"a": torch.ones(2), "b": [shared[:2], shared[1:]], "c": torch.ones(2, dtype=torch.complex64)})
    back = unflatten(flat.tree, flat.tensors, torch.device("meta"))
    devices = {tensor.device.type for tensor in (back["a"], *back["b"], back["c"])}
    assert devices == {"meta"}


HOSTILE_TREES = {
    "an unknown type": {"$": "module", "of": "os"},
    "a type that is not a word": {"$": ["tensor"]},
    "a reference to nothing": {"$": "tensor", "name": "missing"},
    "a reference without a name": {"$": "tensor"},
    "a huge shape": {"$": "tensor", "name": "bytes", "dtype": "float32", "shape": [2**40]},
    "a shape that overflows": {"$": "tensor", "name": "bytes", "dtype": "float32", "shape": [2**62, 2**62]},
    "a dtype that is a function": {"$": "dtype", "of": "load"},
    "a dtype of a dunder": {"$": "dtype", "of": "__builtins__"},
    "strides that leave the memory": {"$": "tensor", "name": "floats", "stride": [2**40]},
    "strides that overlap": {"$": "tensor", "name": "floats", "stride": [0]},
    "too few strides": {"$": "tensor", "name": "floats", "stride": []},
    "a view beyond its storage": {
        **{"$": "view", "storage": "bytes", "dtype": "float32"},
        **{"shape": [5], "stride": [1], "offset": 0},
    },
    "a view before its storage": {
        **{"$": "view", "storage": "bytes", "dtype": "float32"},
        **{"shape": [1], "stride": [1], "offset": -1},
    },
    "a view with negative strides": {
        **{"$": "view", "storage": "bytes", "dtype": "float32"},
        **{"shape": [2], "stride": [-1], "offset": 2},
    },
    "a view of a huge shape": {
        **{"$": "view", "storage": "bytes", "dtype": "float32"},
        **{"shape": [2**40], "stride": [2**40], "offset": 0},
    },
    "an array of objects": {"$": "array", "tensor": "bytes", "dtype": "|O", "shape": [2]},
    "an array of a huge shape": {"$": "array", "tensor": "bytes", "dtype": "<f4", "shape": [2**40]},
    "a number of objects": {"$": "numpy", "dtype": "O", "of": "AAAAAAAAAAA="},
    "bytes that are not base64": {"$": "bytes", "of": "not base64!"},
    "a factory that is not a plain type": {"$": "defaultdict", "factory": "eval", "of": []},
    "a named tuple with a field that is code": {"$": "namedtuple", "name": "A", "fields": ["x=1"], "of": [1]},
    "a named tuple with a name that is code": {"$": "namedtuple", "name": "A(object)", "fields": ["x"], "of": [1]},
    "a set of lists": {"$": "set", "of": [[1]]},
    "a key that is a list": {"$": "dict", "of": [[[1], 2]]},
    "a time that is none": {"$": "datetime", "of": "yesterday", "fold": 0},
    "a length of time beyond all": {"$": "timedelta", "of": [10**12, 0, 0]},
    "a device that is none": {"$": "device", "of": "the moon"},
    "a sparse tensor with indices outside": {
        **{"$": "sparse", "layout": "coo", "shape": [1, 1]},
        "of": {"indices": {"$": "tensor", "name": "indices"}, "values": {"$": "tensor", "name": "floats"}},
    },
    "a float that is none": {"$": "float", "of": "1e400"},
    "a path that is a number": {"$": "path", "of": 3},
    "what is too deep": json.loads("[" * 300 + "]" * 300),
}


@pytest.mark.parametrize("tree", HOSTILE_TREES.values(), ids=HOSTILE_TREES.keys())
def test_a_tree_that_was_not_written_here_is_damage(tree: Any) -> None:
    there = {"floats": torch.rand(4), "bytes": torch.zeros(16, dtype=torch.uint8), "indices": torch.full((2, 4), 7)}
    with pytest.raises(DamagedCheckpoint, match="not as it was written"):
        unflatten({"a": tree}, there)


words = st.sampled_from(["x", "float32", "bytes", "floats", "coo", "csr", "list", "<f4", "|O", "1", "cpu", "nan"])
numbers = st.integers(-2, 5) | st.sampled_from([2**31, 2**40, 2**62, -(2**63), 2**70])
tags = [
    *("tensor", "view", "sparse", "array", "numpy", "float", "complex", "dict", "ordered", "counter", "defaultdict"),
    *("deque", "tuple", "namedtuple", "set", "frozenset", "bytes", "bytearray", "size", "dtype", "device", "datetime"),
    *("date", "timedelta", "path", "unknown"),
]
fields = [
    *("of", "name", "shape", "stride", "dtype", "tensor", "storage", "offset", "layout", "factory", "most", "fields"),
    "fold",
]
hostile = st.recursive(
    st.none() | st.booleans() | st.floats() | numbers | words | st.lists(numbers, max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.builds(
            lambda tag, entries: {"$": tag, **entries},
            st.sampled_from(tags),
            st.dictionaries(st.sampled_from(fields), inner, max_size=5),
        )
    ),
    max_leaves=10,
)


@settings(max_examples=300, deadline=None)
@given(hostile)
@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta state")
def test_whatever_stands_in_a_tree_it_is_a_state_or_damage(tree: Any) -> None:
    there = {"floats": torch.rand(4), "bytes": torch.zeros(16, dtype=torch.uint8)}
    try:
        unflatten(tree, there)
    except DamagedCheckpoint:
        return


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
