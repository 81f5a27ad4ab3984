"""States become flat tensors for safetensors, and states again."""

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrain.checkpoint.pytree import flatten, unflatten
from mltrain.errors import UnsupportedValue
from tests.support.equality import identical
from tests.support.trees import there_and_back
from tests.support.values import random_tensor, states, tensors


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


def test_names_that_safetensors_keeps_for_itself_can_be_names_in_a_state() -> None:
    state = {"__metadata__": torch.ones(2), "part": {"__metadata__": torch.zeros(3)}, "": torch.ones(1)}
    flat = flatten(state)
    assert not any(name.rpartition(".")[2] == "__metadata__" for name in flat.tensors)
    assert identical(unflatten(flat.tree, flat.tensors), state)


def test_names_that_would_collide_are_told_apart() -> None:
    state = {"a.b": torch.ones(1), "a": {"b": torch.zeros(1), "b~2": torch.full((1,), 2.0)}, "a.b~2": torch.ones(2)}
    assert len(flatten(state).tensors) == 4
    assert identical(there_and_back(state), state)


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


def test_a_lazy_parameter_without_a_shape_is_refused() -> None:
    with pytest.raises(UnsupportedValue, match=r"net\.weight is a parameter of a lazy module"):
        flatten({"net": dict(torch.nn.LazyLinear(2).state_dict())})


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
