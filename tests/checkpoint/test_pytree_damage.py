"""A foreign tree is damage, and never code."""

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrain.checkpoint.pytree import unflatten
from mltrain.errors import DamagedCheckpoint

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
