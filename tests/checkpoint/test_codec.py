"""A snapshot as files and back."""

import collections
import json
import random
import struct
from collections.abc import Mapping
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
from mltrain.checkpoint.host_memory import HostBuffers
from mltrain.checkpoint.snapshot import snapshot
from mltrain.checkpoint.tensor_file import read_tensors
from mltrain.errors import DamagedCheckpoint
from tests.support.runs import snapshot_of
from tests.support.values import DTYPES, identical, random_tensor, states, tensors


def files_of(state: Mapping[str, Any], **options: Any) -> dict[str, bytes]:
    encoded = encode(snapshot_of(state), **options)
    return {file.name: b"".join(bytes(piece) for piece in file.content) for file in encoded.files}


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


def test_no_file_is_larger_than_allowed_unless_one_tensor_is() -> None:
    state = {"model": {f"w{number}": torch.zeros(10) for number in range(9)}, "other": torch.zeros(100)}
    encoded = encode(snapshot_of(state), largest_file=100)
    sizes = collections.defaultdict(int)
    for entry in encoded.tensors.values():
        sizes[entry.file] += 4 * entry.shape[0]
    assert sizes.pop("state.safetensors") == 400
    assert len(sizes) == 5
    assert set(sizes) == {f"model-{number:05d}-of-00005.safetensors" for number in range(1, 6)}
    assert max(sizes.values()) <= 100


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(DTYPES), st.integers(0, 5)), min_size=1, max_size=6))
def test_every_tensor_is_aligned_to_its_dtype(parts: list[tuple[torch.dtype, int]]) -> None:
    state = {f"t{number}": random_tensor(dtype, (size,), number) for number, (dtype, size) in enumerate(parts)}
    content = files_of(state)["state.safetensors"]
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert length % 8 == 0
    width = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2}
    assert all(entry["data_offsets"][0] % width.get(entry["dtype"], 1) == 0 for entry in header.values())


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


def small_state() -> dict[str, Any]:
    return {
        "model": {"w": torch.arange(6.0).view(2, 3)},
        "optimizer": {"m": torch.ones(2, dtype=torch.float64)},
        "n": 1,
    }


def lying(change: Mapping[str, Any], data: bytes = bytes(24), name: str = "w") -> bytes:
    entry = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24], **change}
    text = json.dumps({name: entry}).encode()
    return struct.pack("<Q", len(text)) + text + data


LIES = {
    "empty": b"",
    "shorter than the length of its header": b"\x01\x00",
    "a header longer than the file": struct.pack("<Q", 10**6) + b"{}",
    "a header of 2**63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "a header that is not JSON": struct.pack("<Q", 4) + b"{{{{",
    "a header that is a list": struct.pack("<Q", 2) + b"[]",
    "a header nested deep": struct.pack("<Q", 200_000) + b"[" * 200_000,
    "a header that is not text": struct.pack("<Q", 4) + b"\xff\xfe\xfd\xfc",
    "metadata that are no text": struct.pack("<Q", 26) + b'{"__metadata__": {"a": 1}}',
    "a tensor larger than the file": lying({"shape": [2**20], "data_offsets": [0, 2**22]}),
    "a shape that overflows": lying({"shape": [2**62, 8]}),
    "a huge shape of nothing": lying({"shape": [2**62, 0, 2**62]}, data=b""),
    "another shape than bytes": lying({"shape": [7]}),
    "a negative size": lying({"shape": [-2, -3]}),
    "an offset before the beginning": lying({"data_offsets": [-24, 0]}),
    "an end before the start": lying({"data_offsets": [24, 0]}),
    "a hole": lying({"data_offsets": [8, 32]}, data=bytes(32)),
    "bytes that belong to nothing": lying({}, data=bytes(25)),
    "an unknown dtype": lying({"dtype": "OBJECT"}),
    "a missing dtype": lying({"dtype": None}),
    "a pickle": b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00\x8c\x05print\x94.",
    "a zip archive": b"PK\x03\x04" + bytes(60),
}


@pytest.mark.parametrize("content", LIES.values(), ids=LIES.keys())
def test_a_safetensors_file_that_lies_is_damage(content: bytes) -> None:
    with pytest.raises(DamagedCheckpoint, match="not a valid safetensors file"):
        read_tensors(content, "model.safetensors")


def test_a_safetensors_file_cut_anywhere_or_lengthened_is_damage() -> None:
    content = files_of(small_state())["model.safetensors"]
    for length in range(len(content)):
        with pytest.raises(DamagedCheckpoint):
            read_tensors(content[:length], "model.safetensors")
    with pytest.raises(DamagedCheckpoint):
        read_tensors(content + b"\0", "model.safetensors")


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


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([d for d in DTYPES if not d.is_complex]), st.integers(0, 5)), max_size=6))
def test_what_the_library_writes_is_read_as_the_library_reads_it(parts: list[tuple[torch.dtype, int]]) -> None:
    written = {f"t{number}": random_tensor(dtype, (size, 2), number) for number, (dtype, size) in enumerate(parts)}
    content = safetensors.torch.save(written, {"format": "pt"})
    read, expected = read_tensors(content, "model.safetensors"), safetensors.torch.load(content)
    assert read.keys() == expected.keys()
    assert all(identical(read[name], expected[name]) for name in expected)


def addresses(tensor: torch.Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes


def test_what_was_received_is_used_where_it_lies() -> None:
    content = bytearray(files_of({"model": {"w": torch.ones(64, 64), "b": torch.ones(64)}})["model.safetensors"])
    first, last = addresses(torch.frombuffer(content, dtype=torch.uint8))
    tensors = read_tensors(content, "model.safetensors")
    assert len(tensors) == 2
    assert all(first <= a and b <= last for a, b in map(addresses, tensors.values())), "no second copy of the state"


def test_what_was_loaded_is_saved_again_as_tensors_of_their_own() -> None:
    state = {"optimizer": {"m": torch.ones(8, 8), "v": torch.zeros(8)}, "n": torch.ones(3, dtype=torch.complex64)}
    once = {name: bytearray(content) for name, content in files_of(state).items()}
    again = decode(once)
    assert files_of(again) == once
    again["optimizer"]["m"].fill_(7)
    assert again["optimizer"]["v"].eq(0).all()


def test_numbers_across_the_boundaries_of_words_are_read_right() -> None:
    numbers = torch.arange(3, dtype=torch.float64)
    entries = {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}
    entries["b"] = {"dtype": "F64", "shape": [3], "data_offsets": [1, 25]}
    text = json.dumps(entries).encode()
    content = struct.pack("<Q", len(text)) + text + b"\x07" + numbers.numpy().tobytes()
    read = read_tensors(content, "model.safetensors")
    assert identical(read["b"], numbers)
    assert read["b"].data_ptr() % 8 == 0


def test_a_name_that_stands_in_a_header_twice_is_damage() -> None:
    entry = '"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}'
    text = f"{{{entry}, {entry}}}".encode()
    with pytest.raises(DamagedCheckpoint, match="twice"):
        read_tensors(struct.pack("<Q", len(text)) + text + b"x", "model.safetensors")


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
