"""The safetensors format, written and read."""

import collections
import json
import struct
from collections.abc import Mapping
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrain.checkpoint.codec import encode
from mltrain.checkpoint.tensor_file import read_tensors
from mltrain.errors import DamagedCheckpoint
from tests.support.encoded import files_of, small_state
from tests.support.equality import identical
from tests.support.runs import snapshot_of
from tests.support.values import DTYPES, random_tensor


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
