"""A snapshot as files and back."""

import collections
import json
import random
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mltrain.checkpoint.codec import STATE_TREE, decode, decode_weights, encode
from mltrain.checkpoint.snapshot import HostBuffers, snapshot
from mltrain.errors import DamagedCheckpoint
from tests.support.encoded import files_of, small_state
from tests.support.equality import identical
from tests.support.runs import snapshot_of
from tests.support.values import DTYPES, random_tensor, states, tensors


@settings(max_examples=100, deadline=None)
@given(states)
def test_a_state_survives_the_files_bit_by_bit(state: dict[str, Any]) -> None:
    assert identical(decode(files_of(state)), state)


@settings(max_examples=50, deadline=None)
@given(states, st.dictionaries(st.text(max_size=4), tensors(), min_size=1, max_size=4), st.integers(1, 100))
def test_however_small_the_files_the_state_is_the_same(
    rest: dict[str, Any], weights: dict[str, torch.Tensor], largest: int
) -> None:
    state = {**rest, "model": collections.OrderedDict(weights)}
    assert identical(decode(files_of(state, largest_file=largest)), state)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_views_of_one_storage_share_it_again_after_reading(dtype: torch.dtype) -> None:
    whole = random_tensor(dtype, (6, 4), 3)
    back = decode(files_of({"a": whole, "b": [whole[2:, ::2]], "c": {"d": whole.t()}}))
    assert identical(back, {"a": whole, "b": [whole[2:, ::2]], "c": {"d": whole.t()}})
    back["a"].fill_(1)
    assert back["b"][0].eq(1).all()
    assert back["c"]["d"].eq(1).all()


def test_the_weights_are_a_safetensors_file_that_anyone_can_load(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    (tmp_path / "model.safetensors").write_bytes(files_of({"model": net.state_dict(), "epoch": 1})["model.safetensors"])
    loaded = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert identical({name: loaded[name] for name in net.state_dict()}, dict(net.state_dict()))


@pytest.mark.parametrize("kind", [dict, collections.OrderedDict])
def test_tied_weights_are_stored_once_and_load_into_a_tied_model(kind: type, tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Linear(4, 4, bias=False)
            self.decoder = nn.Linear(4, 4, bias=False)
            self.decoder.weight = self.encoder.weight

    net, fresh = Tied(), Tied()
    encoded = encode(snapshot_of({"model": kind(net.state_dict())}))
    (tmp_path / "model.safetensors").write_bytes(b"".join(bytes(piece) for piece in encoded.files[0].content))
    assert encoded.aliases == {"decoder.weight": "encoder.weight"}
    assert encoded.tensors.keys() == {"model.encoder.weight"}
    safetensors.torch.load_model(fresh, tmp_path / "model.safetensors")
    assert torch.equal(fresh.encoder.weight, net.encoder.weight)


def test_weights_among_names_that_are_not_text_are_a_file_of_their_own() -> None:
    files = files_of({1: 2, "model": {"w": torch.ones(2)}})
    assert safetensors.torch.load(files["model.safetensors"]).keys() == {"w"}
    assert identical(decode(files)["model"], {"w": torch.ones(2)})


def test_a_part_whose_name_begins_like_the_weights_does_not_get_into_their_file() -> None:
    files = files_of({"model": {"w": torch.ones(2)}, "model.ema": {"w": torch.zeros(3)}})
    assert safetensors.torch.load(files["model.safetensors"]).keys() == {"w"}


def test_a_state_without_tensors_is_one_file() -> None:
    assert files_of({"epoch": 3}).keys() == {STATE_TREE}
    assert decode(files_of({})) == {}


def test_a_snapshot_does_not_change_with_the_training() -> None:
    live = {"model": {"w": torch.ones(3)}, "list": [1], "bytes": b"x" * 2000}
    copied = snapshot(live, HostBuffers())
    live["model"]["w"].zero_()
    live["list"].append(2)
    files = {file.name: b"".join(bytes(piece) for piece in file.content) for file in encode(copied).files}
    assert identical(decode(files), {"model": {"w": torch.ones(3)}, "list": [1], "bytes": b"x" * 2000})


def test_buffers_that_are_used_again_hold_the_state_of_this_time() -> None:
    buffers = HostBuffers()
    for number, shape in enumerate([(3,), (3,), (2, 2), (2, 2)]):
        tensor = torch.full(shape, float(number))
        layout = tensor.t() if number == 3 else tensor
        files = encode(snapshot({"a": layout}, buffers)).files
        back = decode({file.name: b"".join(bytes(piece) for piece in file.content) for file in files})
        assert identical(back, {"a": layout})


def test_everything_goes_to_the_device_that_is_asked_for() -> None:
    files = files_of({"model": {"w": torch.ones(2)}, "sparse": [torch.ones(2, dtype=torch.complex64)], "n": 1})
    back = decode(files, torch.device("meta"))
    assert (back["model"]["w"].device.type, back["sparse"][0].device.type, back["n"]) == ("meta", "meta", 1)


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", STATE_TREE])
def test_a_changed_byte_is_a_state_or_damage_and_never_another_error(name: str) -> None:
    files = files_of(small_state())
    chance = random.Random(5)
    for place in range(len(files[name])):
        changed = bytearray(files[name])
        changed[place] ^= 1 << chance.randrange(8)
        try:
            decode({**files, name: bytes(changed)})
        except DamagedCheckpoint:
            continue


def test_a_state_cut_anywhere_is_damage() -> None:
    files = files_of(small_state())
    for length in range(len(files[STATE_TREE])):
        with pytest.raises(DamagedCheckpoint):
            decode({**files, STATE_TREE: files[STATE_TREE][:length]})


@pytest.mark.parametrize("missing", ["model.safetensors", "state.safetensors", STATE_TREE])
def test_a_missing_file_is_damage(missing: str) -> None:
    files = files_of(small_state())
    del files[missing]
    with pytest.raises(DamagedCheckpoint):
        decode(files)


def described(tree: Any, **more: Any) -> bytes:
    return json.dumps({"format": 1, "weights": None, "tree": tree, **more}).encode()


HOSTILE_STATES = {
    "empty": b"",
    "not text": b"\xff\xfe",
    "not an object": b"[1, 2]",
    "nothing": b"null",
    "nested beyond the parser": b"[" * 1_000_000,
    "nested objects beyond the parser": b'{"a":' * 300_000,
    "nested beyond what is written": described([0]).replace(b"0", b"[" * 400 + b"]" * 400),
    "another format": described({}, format=2),
    "a format that is a list": described({}, format=[1]),
    "a number of too many digits": described({}).replace(b"null", b"9" * 5000),
    "an unknown type": described({"a": {"$": "posix.system", "of": "true"}}),
    "a module by name": described({"a": {"$": "module", "name": "os"}}),
    "a tree that is a list": described([]),
    "a tree that is a tensor": described({"$": "tuple", "of": []}),
    "a huge tensor of a small one": described(
        {"a": {"$": "tensor", "name": "optimizer.m", "dtype": "uint8", "shape": [2**50]}}
    ),
    "a view larger than its storage": described(
        {"a": {"$": "view", "storage": "optimizer.m", "dtype": "float64", "shape": [2**45], "stride": [1], "offset": 0}}
    ),
}


@pytest.mark.parametrize("content", HOSTILE_STATES.values(), ids=HOSTILE_STATES.keys())
def test_a_hostile_state_is_damage(content: bytes) -> None:
    with pytest.raises(DamagedCheckpoint):
        decode({**files_of(small_state()), STATE_TREE: content})


def test_what_was_loaded_is_saved_again_as_tensors_of_their_own() -> None:
    state = {"optimizer": {"m": torch.ones(8, 8), "v": torch.zeros(8)}, "n": torch.ones(3, dtype=torch.complex64)}
    once = {name: bytearray(content) for name, content in files_of(state).items()}
    again = decode(once)
    assert files_of(again) == once
    again["optimizer"]["m"].fill_(7)
    assert again["optimizer"]["v"].eq(0).all()


def test_the_weights_alone_are_as_they_were_saved() -> None:
    shared = torch.ones(2)
    weights = {
        "w": torch.ones(2, dtype=torch.complex64),
        "a": shared,
        "tied": shared,
        "t": torch.arange(6).view(2, 3).t(),
    }
    files = files_of({"model": weights, "optimizer": {"m": torch.ones(4)}})
    del files["state.safetensors"]
    assert identical(decode_weights(files), weights)
    assert decode_weights(files_of({"epoch": 1})) == {}
