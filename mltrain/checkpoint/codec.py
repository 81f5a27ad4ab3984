"""A snapshot as files and back: safetensors for tensors, JSON for all else. Nothing in them can be executed.

The safetensors format (https://github.com/huggingface/safetensors, "Format"): eight bytes with the little-endian length
of a JSON header, the header, the tensors' bytes one after the other. It is written and read here, and not by the library,
so that bytes go out hashed and come in verified without a second copy of the state in memory; the tests hold both against
the library.
"""

import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mltrain.checkpoint.manifest import TensorEntry
from mltrain.checkpoint.pytree import as_bytes, unflatten
from mltrain.checkpoint.snapshot import Snapshot
from mltrain.errors import DamagedCheckpoint

LARGEST_FILE = 2 * 10**9
"""Files are split so that they stay below this many bytes, unless a single tensor is larger."""

STATE_TREE = "state.json"
_FORMAT = 1
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


@dataclass(frozen=True)
class EncodedFile:
    """A file to be written: its name and its content, piece by piece."""

    name: str
    content: Iterable[bytes | memoryview]


@dataclass(frozen=True)
class Encoded:
    """A snapshot as files, with what its manifest says of the tensors."""

    files: tuple[EncodedFile, ...]
    tensors: Mapping[str, TensorEntry]
    aliases: Mapping[str, str]


def encode(snapshot: Snapshot, *, largest_file: int = LARGEST_FILE) -> Encoded:
    """Return the files of a snapshot: ``model*.safetensors``, ``state*.safetensors`` and ``state.json``.

    A weight that is the same tensor as another is stored once; the file's metadata map its name to the stored one,
    which is how ``safetensors.torch.save_model`` and ``load_model`` treat tied weights.
    """
    prefix = f"{snapshot.weights}." if snapshot.weights is not None else None
    weights = {n.removeprefix(prefix): t for n, t in snapshot.tensors.items() if prefix and n.startswith(prefix)}
    rest = {n: t for n, t in snapshot.tensors.items() if not (prefix and n.startswith(prefix))}
    aliases = _tied(dict(_named(snapshot.tree))[snapshot.weights], prefix) if snapshot.weights and prefix else {}
    files: list[EncodedFile] = []
    entries: dict[str, TensorEntry] = {}
    for stem, tensors, metadata in (("model", weights, {"format": "pt", **aliases}), ("state", rest, {"format": "pt"})):
        pieces = _split(tensors, largest_file)
        for number, piece in enumerate(pieces, 1):
            name = (
                f"{stem}.safetensors" if len(pieces) == 1 else f"{stem}-{number:05d}-of-{len(pieces):05d}.safetensors"
            )
            files.append(EncodedFile(name, _safetensors(piece, metadata)))
            own = prefix if stem == "model" and prefix else ""
            for tensor_name, tensor in piece.items():
                dtype = str(tensor.dtype).removeprefix("torch.")
                entries[own + tensor_name] = TensorEntry(file=name, dtype=dtype, shape=tuple(tensor.shape))
    tree = {"format": _FORMAT, "weights": snapshot.weights, "tree": snapshot.tree}
    files.append(EncodedFile(STATE_TREE, [json.dumps(tree, allow_nan=False).encode()]))
    return Encoded(tuple(files), entries, aliases)


def decode(files: Mapping[str, bytes | bytearray], device: torch.device | None = None) -> dict[str, Any]:
    """Return the parts from the files of a checkpoint, whose digests the caller has verified.

    Args:
        files: name to content.
        device: where tensors go. If ``None``, the CPU.

    Raises:
        DamagedCheckpoint: the files do not belong together or are not of this format.
    """
    prefix, tree = _described(files)
    parts = unflatten(tree, _all_tensors(files, prefix), device)
    if not isinstance(parts, dict):
        raise DamagedCheckpoint(f"{STATE_TREE} holds a {type(parts).__name__}; a mapping of parts was expected.")
    return parts


def decode_weights(files: Mapping[str, bytes | bytearray], device: torch.device | None = None) -> dict[str, Any]:
    """Return the model's weights alone, from ``state.json`` and the files of the model; see :func:`decode`.

    A tied weight stands under all of its names; without a part that is a model's weights there are none.
    """
    prefix, tree = _described(files)
    if prefix is None:
        return {}
    try:
        own = dict(_named(tree))[prefix]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedCheckpoint(f"{STATE_TREE} is not as it was written: {error!r:.200}") from None
    weights = unflatten(own, _all_tensors(files, prefix), device)
    if not isinstance(weights, dict):
        raise DamagedCheckpoint(f"{STATE_TREE} holds a {type(weights).__name__}; tensors by name were expected.")
    return weights


def _described(files: Mapping[str, bytes | bytearray]) -> tuple[str | None, Any]:
    """Return the name of the part that is a model's weights, and the tree of all parts."""
    try:
        described = json.loads(files[STATE_TREE])
        if described["format"] != _FORMAT:
            raise DamagedCheckpoint(
                f"{STATE_TREE} is of format {described['format']!r:.40}; this version of mltrain reads format {_FORMAT}."
            )
        return described["weights"], described["tree"]
    except KeyError as error:
        raise DamagedCheckpoint(f"{error} is missing in the checkpoint.") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise DamagedCheckpoint(f"{STATE_TREE} is not as it was written: {error}") from None


def _all_tensors(files: Mapping[str, bytes | bytearray], prefix: str | None) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, content in files.items():
        if name.endswith(".safetensors"):
            own = f"{prefix}." if name.startswith("model") and prefix is not None else ""
            tensors.update({own + key: tensor for key, tensor in read_tensors(content, name).items()})
    return tensors


def read_tensors(content: bytes | bytearray, name: str) -> dict[str, Tensor]:
    """Return the tensors of one safetensors file: views of ``content`` where it may be written to, copies otherwise.

    Raises:
        DamagedCheckpoint: the content is not such a file, or promises more than it holds.
    """
    try:
        return _tensors(content if isinstance(content, bytearray) else bytearray(content))
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, struct.error) as error:
        raise DamagedCheckpoint(f"{name} is not a valid safetensors file: {error!r:.300}") from None


def _tensors(content: bytearray) -> dict[str, Tensor]:
    (length,) = struct.unpack_from("<Q", content)
    begin = 8 + length
    if begin > len(content) or length > _LARGEST_HEADER:
        raise ValueError(f"its header would have {length} bytes")
    header = json.loads(content[8:begin], object_pairs_hook=_without_duplicates)
    metadata = header.pop("__metadata__", {})
    if not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("its metadata are not text")
    entries = {name: _Stored.of(entry) for name, entry in header.items()}
    end = 0
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.end)):
        if entry.start != end:
            raise ValueError(f"its tensors leave a gap or overlap at byte {end}")
        end = entry.end
    if begin + end != len(content):
        raise ValueError(f"its tensors have {end} bytes of {len(content) - begin}")
    return {name: entry.tensor(content, begin) for name, entry in entries.items()}


def stamped(content: bytes | bytearray, stamp: Mapping[str, str]) -> bytes:
    """Return a safetensors file with further entries in its metadata, under names that begin with ``mltrain.``."""
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(bytes(content[8 : 8 + length]))
    header["__metadata__"] = {**header.get("__metadata__", {}), **{_STAMP + key: text for key, text in stamp.items()}}
    return b"".join([_header(header), memoryview(content)[8 + length :]])


def stamp_of(file: Path) -> dict[str, str] | None:
    """Return what :func:`stamped` added to a file, without reading its tensors; ``None`` for any other file."""
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
    """What a header says of a tensor; the bytes are counted from the end of the header."""

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
        # A storage of its own for each, so that they do not look like views of one another when they are saved again.
        raw = torch.frombuffer(content, dtype=torch.uint8, count=self.end - self.start, offset=begin + self.start)
        # Bytes may become numbers of any width later on, complex ones of sixteen bytes, which the processor wants in place.
        if raw.data_ptr() % (16 if self.dtype is torch.uint8 else self.dtype.itemsize):
            raw = raw.clone()
        return raw.view(self.dtype).reshape(self.shape)


def _without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands in its header twice")
    return found


def _named(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the entries of a mapping that :mod:`mltrain.checkpoint.pytree` describes, plain or as pairs, whose keys are text."""
    for key, item in tree["of"] if "$" in tree else tree.items():
        if isinstance(key, str):
            yield key, item


def _tied(tree: Mapping[str, Any], prefix: str) -> dict[str, str]:
    return {
        key: reference["name"].removeprefix(prefix)
        for key, reference in _named(tree)
        if isinstance(reference, dict) and reference.get("$") == "tensor" and reference["name"] != prefix + key
    }


def _split(tensors: Mapping[str, Tensor], largest: int) -> list[dict[str, Tensor]]:
    """Cut a mapping into pieces of at most ``largest`` bytes; widest dtypes first, so that all are aligned."""
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


def _safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    yield _header(header)
    for tensor in tensors.values():
        if tensor.numel():
            content = memoryview(as_bytes(tensor).numpy())  # type: ignore[arg-type]
            for start in range(0, len(content), _CHUNK):
                yield content[start : start + _CHUNK]
