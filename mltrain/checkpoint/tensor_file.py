"""Reads and writes the safetensors format without the library.

The format (https://github.com/huggingface/safetensors, "Format") is eight bytes with the little-endian length of a JSON header,
the header, then the bytes of all tensors. Own code hashes bytes while it writes and verifies them while it reads, without a
second copy of the state in memory. Tests compare both directions with the library.
"""

import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mltrain.checkpoint.flat_tensors import as_bytes
from mltrain.errors import DamagedCheckpoint

_STAMP = "mltrain."
_CHUNK = 2**24
_LARGEST_HEADER = 100 * 10**6
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


def read_tensors(content: bytes | bytearray, name: str) -> dict[str, Tensor]:
    """Return the tensors of one safetensors file.

    They are views of ``content`` if it is a ``bytearray``, and copies if not.

    Raises:
        DamagedCheckpoint: the content is not a valid safetensors file or is truncated.
    """
    try:
        return _tensors(content if isinstance(content, bytearray) else bytearray(content))
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, struct.error) as error:
        raise DamagedCheckpoint(f"{name} is not a valid safetensors file: {error!r:.300}") from None


def _tensors(content: bytearray) -> dict[str, Tensor]:
    (length,) = struct.unpack_from("<Q", content)
    begin = 8 + length
    if begin > len(content) or length > _LARGEST_HEADER:
        raise ValueError(f"its header claims {length} bytes")
    header = json.loads(content[8:begin], object_pairs_hook=_without_duplicates)
    metadata = header.pop("__metadata__", {})
    if not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("its metadata are not strings")
    entries = {name: _Stored.of(entry) for name, entry in header.items()}
    end = 0
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.end)):
        if entry.start != end:
            raise ValueError(f"its tensors leave a gap or overlap at byte {end}")
        end = entry.end
    if begin + end != len(content):
        raise ValueError(f"its tensors fill {end} of {len(content) - begin} bytes")
    return {name: entry.tensor(content, begin) for name, entry in entries.items()}


def stamped(content: bytes | bytearray, stamp: Mapping[str, str]) -> bytes:
    """Return a safetensors file with additional metadata entries.

    Their names begin with ``mltrain.``.
    """
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(bytes(content[8 : 8 + length]))
    header["__metadata__"] = {**header.get("__metadata__", {}), **{_STAMP + key: text for key, text in stamp.items()}}
    return b"".join([_header(header), memoryview(content)[8 + length :]])


def stamp_of(file: Path) -> dict[str, str] | None:
    """Return the entries added by :func:`stamped`.

    Reads no tensors. Returns ``None`` for any other file.
    """
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            metadata = json.loads(opened.read(length))["__metadata__"] if length <= _LARGEST_HEADER else {}
        found = {key.removeprefix(_STAMP): text for key, text in metadata.items() if key.startswith(_STAMP)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error):
        return None
    return found or None


@dataclass(frozen=True)
class _Stored:
    """A tensor's header entry.

    Offsets count from the header's end.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> "_Stored":
        dtype, shape, (start, end) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        if not all(type(number) is int and 0 <= number < 2**62 for number in (*shape, start, end)):
            raise ValueError("a size or an offset is not a number of bytes")
        if math.prod(size for size in shape if size) >= 2**62 or math.prod(shape) * dtype.itemsize != end - start:
            raise ValueError(
                f"a tensor of {str(dtype).removeprefix('torch.')} and {shape!r:.80} has {end - start} bytes"
            )
        return cls(dtype, tuple(shape), start, end)

    def tensor(self, content: bytearray, begin: int) -> Tensor:
        if self.start == self.end:
            return torch.empty(self.shape, dtype=self.dtype)
        # Each tensor gets its own storage, so that a later save does not take them for views of one another.
        raw = torch.frombuffer(content, dtype=torch.uint8, count=self.end - self.start, offset=begin + self.start)
        # Bytes may be viewed later as any dtype, up to complex128, whose elements need alignment to 16 bytes.
        if raw.data_ptr() % (16 if self.dtype is torch.uint8 else self.dtype.itemsize):
            raw = raw.clone()
        return raw.view(self.dtype).reshape(self.shape)


def _without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its header has a name twice")
    return found


def split(tensors: Mapping[str, Tensor], largest: int) -> list[dict[str, Tensor]]:
    """Split tensors into groups of at most ``largest`` bytes.

    The widest dtypes come first, so that all tensors are aligned.
    """
    pieces: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in sorted(tensors.items(), key=lambda entry: (-entry[1].itemsize, entry[0])):
        if pieces[-1] and size + tensor.nbytes > largest:
            pieces.append({})
            size = 0
        pieces[-1][name] = tensor
        size += tensor.nbytes
    return [piece for piece in pieces if piece]


def _header(header: Mapping[str, Any]) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _laid_out(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """Return a file's header, and each tensor's start and end.

    The offsets count from the header's end.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    places: dict[str, tuple[int, int]] = {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        places[name] = (start, end)
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    return _header(header), places


def blank(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[bytearray, dict[str, Tensor]]:
    """Return a zeroed safetensors file and views of its tensors."""
    header, places = _laid_out(tensors, metadata)
    content = bytearray(len(header) + max((end for _, end in places.values()), default=0))
    content[: len(header)] = header
    views = {}
    for name, (start, end) in places.items():
        like = tensors[name]
        raw = torch.empty(0, dtype=torch.uint8)
        if end > start:
            raw = torch.frombuffer(content, dtype=torch.uint8, count=end - start, offset=len(header) + start)
        views[name] = raw.view(like.dtype).reshape(like.shape)
    return content, views


class TensorFile:
    """The content of a safetensors file in pieces.

    It can be iterated over more than once.

    Args:
        tensors: by name; contiguous ones are yielded as views of their memory. For the size alone, meta tensors suffice.
        metadata: of the file.
    """

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        self._tensors = tensors
        self._header, places = _laid_out(tensors, metadata)
        self.size = len(self._header) + max((end for _, end in places.values()), default=0)
        """Size of the file in bytes."""

    def __iter__(self) -> Iterator[bytes | memoryview]:
        """Yield the header, then each tensor's bytes in pieces."""
        yield self._header
        for tensor in self._tensors.values():
            if tensor.numel():
                content = memoryview(as_bytes(tensor).numpy())  # type: ignore[arg-type]
                for start in range(0, len(content), _CHUNK):
                    yield content[start : start + _CHUNK]
