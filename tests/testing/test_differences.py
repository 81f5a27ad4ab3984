"""Differences of nested values."""

import torch
from torch import nn

from mltrain.testing import differences


def test_differences_name_the_place() -> None:
    net = dict(nn.Linear(2, 2).state_dict())
    other = {**net, "bias": net["bias"] + torch.tensor([0.0, 1.0])}
    assert list(differences({"net": net, "n": 1}, {"net": other, "n": 1})) == ["net.bias: 1 of 2 values differ"]
    assert list(differences({"a": [1, float("nan")]}, {"a": [1, float("nan")]})) == []
    assert list(differences({"a": 1}, {"b": 1})) == ["a: missing", "b: not expected"]
    assert list(differences(1, 1.0, "x")) == ["x: float instead of int"]


def test_sparse_tensors_are_compared_by_their_values() -> None:
    one, other = torch.eye(2).to_sparse(), 2 * torch.eye(2).to_sparse()
    assert list(differences(one, one.clone())) == []
    assert list(differences(one, other, "x")) == ["x: 2 of 4 values differ"]
