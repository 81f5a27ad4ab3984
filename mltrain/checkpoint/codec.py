"""A snapshot as files and back: safetensors for tensors, JSON for all else. Nothing in them can be executed."""

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
    """A file to be written: its name, its content piece by piece, as often as it is asked for, and its size in bytes."""

    name: str
    content: Iterable[bytes | memoryview]
    size: int

    @classmethod
    def of(cls, name: str, content: bytes) -> "EncodedFile":
        """Return a small file."""
        return cls(name, [content], len(content))


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
    """Yield the safetensors files that hold these tensors: their names, and which tensors are in each."""
    pieces = split(tensors, largest_file)
    for number, piece in enumerate(pieces, 1):
        of = "" if len(pieces) == 1 else f"-{number:05d}-of-{len(pieces):05d}"
        yield f"{stem}{of}.safetensors", piece


def decode(
    files: Mapping[str, bytes | bytearray],
    device: torch.device | None = None,
    absent: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Return the parts from the files of a checkpoint, whose digests the caller has verified.

    Args:
        files: name to content.
        device: where tensors go. If ``None``, the CPU.
        absent: tensors that are in none of the files, by name: they are put in place as they are.

    Raises:
        DamagedCheckpoint: the files do not belong together or are not of this format.
    """
    prefix, tree = _described(files)
    parts = unflatten(tree, {**_all_tensors(files, prefix), **(absent or {})}, device)
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
