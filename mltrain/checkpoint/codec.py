"""Encodes snapshots as safetensors and JSON files, and decodes them.

Nothing in these files can be executed.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mltrain.checkpoint.manifest import TensorEntry
from mltrain.checkpoint.pytree import unflatten
from mltrain.checkpoint.snapshot import Snapshot
from mltrain.checkpoint.tensor_file import TensorFile, read_tensors, split
from mltrain.errors import DamagedCheckpoint

LARGEST_FILE = 2 * 10**9
"""Files are split so that they stay below this many bytes, unless a single tensor is larger."""

STATE_TREE = "state.json"
_FORMAT = 1


@dataclass(frozen=True)
class EncodedFile:
    """A file to write: name, size in bytes, content.

    The content comes in pieces and can be iterated over more than once.
    """

    name: str
    content: Iterable[bytes | memoryview]
    size: int

    @classmethod
    def of(cls, name: str, content: bytes) -> "EncodedFile":
        """Return a small file."""
        return cls(name, [content], len(content))


@dataclass(frozen=True)
class Encoded:
    """A snapshot's files, with the tensor entries of its manifest."""

    files: tuple[EncodedFile, ...]
    tensors: Mapping[str, TensorEntry]
    aliases: Mapping[str, str]


def encode(snapshot: Snapshot, *, largest_file: int = LARGEST_FILE) -> Encoded:
    """Return the files of a snapshot.

    These are ``model*.safetensors``, ``state*.safetensors`` and ``state.json``. Tied weights are stored once; the file's
    metadata map the other names to the stored one, as ``safetensors.torch.save_model`` and ``load_model`` do.
    """
    prefix = f"{snapshot.weights}." if snapshot.weights is not None else None
    weights = {n.removeprefix(prefix): t for n, t in snapshot.tensors.items() if prefix and n.startswith(prefix)}
    rest = {n: t for n, t in snapshot.tensors.items() if not (prefix and n.startswith(prefix))}
    aliases = _tied(dict(_named(snapshot.tree))[snapshot.weights], prefix) if snapshot.weights and prefix else {}
    files: list[EncodedFile] = []
    entries: dict[str, TensorEntry] = {}
    for stem, tensors, metadata in (("model", weights, {"format": "pt", **aliases}), ("state", rest, {"format": "pt"})):
        for name, piece in named(stem, tensors, largest_file):
            content = TensorFile(piece, metadata)
            files.append(EncodedFile(name, content, content.size))
            own = prefix if stem == "model" and prefix else ""
            for tensor_name, tensor in piece.items():
                dtype = str(tensor.dtype).removeprefix("torch.")
                entries[own + tensor_name] = TensorEntry(file=name, dtype=dtype, shape=tuple(tensor.shape))
    tree = {"format": _FORMAT, "weights": snapshot.weights, "tree": snapshot.tree}
    files.append(EncodedFile.of(STATE_TREE, json.dumps(tree, allow_nan=False).encode()))
    return Encoded(tuple(files), entries, aliases)


def named(
    stem: str, tensors: Mapping[str, Tensor], largest_file: int = LARGEST_FILE
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the name and tensors of each safetensors file."""
    pieces = split(tensors, largest_file)
    for number, piece in enumerate(pieces, 1):
        of = "" if len(pieces) == 1 else f"-{number:05d}-of-{len(pieces):05d}"
        yield f"{stem}{of}.safetensors", piece


def decode(
    files: Mapping[str, bytes | bytearray],
    device: torch.device | None = None,
    absent: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Return the parts of a checkpoint from its verified files.

    Args:
        files: name to content.
        device: where tensors go. If ``None``, the CPU.
        absent: tensors that no file holds, by name; they are inserted unchanged.

    Raises:
        DamagedCheckpoint: the files do not belong together or have another format.
    """
    prefix, tree = _described(files)
    parts = unflatten(tree, {**_all_tensors(files, prefix), **(absent or {})}, device)
    if not isinstance(parts, dict):
        raise DamagedCheckpoint(f"{STATE_TREE} holds a {type(parts).__name__}; a mapping of parts was expected.")
    return parts


def decode_weights(files: Mapping[str, bytes | bytearray], device: torch.device | None = None) -> dict[str, Any]:
    """Return the model's weights alone; see :func:`decode`.

    Reads ``state.json`` and the model's files. A tied weight appears under all of its names. A checkpoint without a model part
    has no weights.
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
    """Return the weights part's name and the state's tree."""
    try:
        described = json.loads(files[STATE_TREE])
        if described["format"] != _FORMAT:
            raise DamagedCheckpoint(
                f"{STATE_TREE} has format {described['format']!r:.40}; this version of mltrain reads format {_FORMAT}."
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


def _named(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield a described mapping's entries with string keys.

    The mapping may be plain or a list of pairs; see :mod:`mltrain.checkpoint.pytree`.
    """
    for key, item in tree["of"] if "$" in tree else tree.items():
        if isinstance(key, str):
            yield key, item


def _tied(tree: Mapping[str, Any], prefix: str) -> dict[str, str]:
    return {
        key: reference["name"].removeprefix(prefix)
        for key, reference in _named(tree)
        if isinstance(reference, dict) and reference.get("$") == "tensor" and reference["name"] != prefix + key
    }
