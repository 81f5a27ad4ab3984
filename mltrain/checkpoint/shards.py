"""Sharded checkpoints: per-rank files and their reassembly.

Every rank writes its pieces of tensors as safetensors files, and a part file that lists them with their digests. The manifest
names only the part files, so it stays small for any number of ranks. The safetensors headers hold the offset of each piece as
torch.distributed.checkpoint writes it (``DCP_SHARDING_INFO``), so its ``HuggingFaceStorageReader`` reads the weights as well.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from mltrain.checkpoint import tensor_file
from mltrain.checkpoint.codec import LARGEST_FILE, named
from mltrain.checkpoint.manifest import FileEntry, FileName, Manifest, TensorEntry
from mltrain.errors import DamagedCheckpoint
from mltrain.store.durable import write_file

Read = Callable[[str, FileEntry], bytearray]
"""Returns the content of a checkpoint file, verified against its entry."""


def part_name(rank: int) -> str:
    """Return the name of a rank's part file."""
    return f"part-r{rank:05d}.json"


class Part(BaseModel):
    """The files that one rank wrote, and their tensor pieces."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    rank: Annotated[int, Field(ge=0, strict=True)]
    weights: str | None
    """Name of the model's weights in the state; the model's files name tensors without this prefix."""
    files: dict[FileName, FileEntry]
    pieces: dict[str, TensorEntry]

    @property
    def size(self) -> int:
        """Total bytes of its files."""
        return sum(entry.size for entry in self.files.values())

    def key(self, name: str) -> str:
        """Return a tensor's name in its file."""
        return _key(name, self.pieces[name].file, self.weights)

    @classmethod
    def from_json(cls, content: bytes | bytearray, name: str) -> Self:
        """Parse a part file whose digest was verified.

        Raises:
            DamagedCheckpoint: it is not a valid part file.
        """
        try:
            part = cls.model_validate_json(bytes(content))
        except ValidationError as error:
            raise DamagedCheckpoint(f"{name} is not as it was written: {error.errors()[0]['msg']}") from None
        if any(one.file not in part.files or not _lies_within(one) for one in part.pieces.values()):
            raise DamagedCheckpoint(
                f"{name} is not as it was written: a piece is in an unlisted file or outside its tensor."
            )
        return part


@dataclass(frozen=True)
class Piece:
    """A tensor piece in host memory, with its position."""

    tensor: Tensor
    offsets: tuple[int, ...]
    global_shape: tuple[int, ...]


def write_part(
    folder: Path, rank: int, pieces: Mapping[str, Piece], weights: str | None, largest_file: int = LARGEST_FILE
) -> tuple[str, FileEntry, int]:
    """Write a rank's pieces, then the part file listing them.

    Returns the part file's name and entry, and the total bytes of the pieces' files.

    Raises:
        StorageError: the disk refuses.
    """
    files: dict[str, FileEntry] = {}
    entries: dict[str, TensorEntry] = {}
    of_model = {name for name in pieces if weights is not None and name.startswith(f"{weights}.")}
    for stem, names in (("model", of_model), ("state", pieces.keys() - of_model)):
        groups = tensor_file.split({name: pieces[name].tensor for name in names}, largest_file)
        for number, group in enumerate(groups):
            file = f"{stem}-r{rank:05d}{f'-{number:02d}' if len(groups) > 1 else ''}.safetensors"
            keys = {_key(name, file, weights): tensor for name, tensor in group.items()}
            places = {_key(name, file, weights): {"saved_offsets": pieces[name].offsets} for name in group}
            metadata = {"format": "pt", "DCP_SHARDING_INFO": json.dumps(places), "DCP_VERSION": "1.0"}
            size, digest = write_file(folder / file, tensor_file.TensorFile(keys, metadata))
            files[file] = FileEntry(size=size, sha256=digest)
            for name, tensor in group.items():
                entries[name] = TensorEntry(
                    file=file,
                    dtype=str(tensor.dtype).removeprefix("torch."),
                    shape=tuple(tensor.shape),
                    offsets=pieces[name].offsets,
                    global_shape=pieces[name].global_shape,
                )
    part = Part(rank=rank, weights=weights, files=files, pieces=entries)
    size, digest = write_file(folder / part_name(rank), [part.model_dump_json(exclude_none=True).encode()])
    return part_name(rank), FileEntry(size=size, sha256=digest), part.size


def staged_files(folder: Path, manifest: Manifest, rank: int | None = None) -> tuple[list[str], list[str]]:
    """Return a machine's staged files: data, then part files.

    Args:
        folder: where the ranks of one machine have staged the checkpoint.
        manifest: of the checkpoint.
        rank: selects the pieces of one rank. If ``None``, those of all ranks.

    Raises:
        DamagedCheckpoint: a part file is not as it was written.
    """
    if not manifest.shards:
        return sorted(manifest.files), []
    own = set(manifest.shards) if rank is None else {part_name(rank)}
    parts = sorted(name for name in own & manifest.shards.keys() if (folder / name).is_file())
    data = {name for name in manifest.files if name not in manifest.shards}
    for name in parts:
        data |= Part.from_json((folder / name).read_bytes(), name).files.keys()
    return sorted(name for name in data if (folder / name).is_file()), parts


class Assembly:
    """Reassembles the whole tensors of a sharded checkpoint.

    Its files are those that a single process would have written.

    Args:
        manifest: of the checkpoint.
        read: reads the checkpoint's files, verified.

    Attributes:
        parts: the part of each rank, in the order of ranks.
        weights: the name of the model's weights in the state, or ``None``.
        tensors: each sharded tensor on the meta device, with its shape and dtype.

    Raises:
        DamagedCheckpoint: a part file is missing or damaged, or the pieces do not fill their tensors.
    """

    def __init__(self, manifest: Manifest, read: Read) -> None:
        self._manifest, self._read = manifest, read
        self._held: dict[str, bytearray] = {}
        self.parts = [Part.from_json(read(name, manifest.files[name]), name) for name in sorted(manifest.shards)]
        self.weights = self.parts[0].weights if self.parts else None
        self.tensors: dict[str, Tensor] = {}
        found: dict[str, int] = {}
        for part in self.parts:
            for name, one in part.pieces.items():
                whole = self.tensors.get(name)
                if whole is None:
                    whole = self.tensors[name] = _without_data(one.dtype, one.global_shape or ())
                if (tuple(whole.shape), whole.dtype) != (one.global_shape or (), getattr(torch, one.dtype)):
                    raise DamagedCheckpoint(f"{manifest.name}: the pieces of {name} belong to different tensors.")
                found[name] = found.get(name, 0) + math.prod(one.shape)
        lacking = [name for name, whole in self.tensors.items() if found[name] != whole.numel()]
        if lacking:
            raise DamagedCheckpoint(f"{manifest.name}: the pieces of {lacking[0]} do not fill the whole tensor.")
        self._wholes = dict(self._laid_out())

    def read(self, name: str, entry: FileEntry) -> bytearray:
        """Return a file's verified content.

        Content kept by :meth:`hold` is returned once; the next call reads the file again.
        """
        held = self._held.pop(name, None)
        return held if held is not None else self._read(name, entry)

    def hold(self, name: str, entry: FileEntry) -> None:
        """Read a verified file into memory for the next :meth:`read`."""
        self._held[name] = self._read(name, entry)

    def release(self) -> None:
        """Free the memory taken by :meth:`hold`."""
        self._held.clear()

    def files(self) -> dict[str, FileEntry]:
        """Return the files that hold pieces, of all parts."""
        return {name: entry for part in self.parts for name, entry in part.files.items()}

    def sizes(self) -> dict[str, int]:
        """Return the whole files' sizes in bytes, by name."""
        return {
            name: tensor_file.TensorFile(tensors, self._metadata(name)).size for name, tensors in self._wholes.items()
        }

    def content(self, name: str) -> bytearray:
        """Return the content of a whole file.

        One file of pieces at a time is in memory in addition.
        """
        content, views = tensor_file.blank(self._wholes[name], self._metadata(name))
        own = {key: entry for key, entry in self._manifest.tensors.items() if self._key(key, name) in views}
        for file in sorted({entry.file for entry in own.values() if _stem(entry.file) == _stem(name)}):
            tensors = tensor_file.read_tensors(self.read(file, self._manifest.files[file]), file)
            for key in views.keys() & tensors.keys():
                views[key].copy_(tensors[key])
        for part in self.parts:
            for file in sorted(part.files):
                wanted = [one for one, piece in part.pieces.items() if piece.file == file and part.key(one) in views]
                if not wanted or _stem(file) != _stem(name):
                    continue
                tensors = tensor_file.read_tensors(self.read(file, part.files[file]), file)
                for one in wanted:
                    piece, key = part.pieces[one], part.key(one)
                    place = zip(piece.offsets or (), piece.shape, strict=True)
                    views[key][tuple(slice(at, at + size) for at, size in place)] = tensors[key]
        return content

    def _laid_out(self) -> Any:
        own = {n: _without_data(e.dtype, e.shape) for n, e in self._manifest.tensors.items()}
        for stem in ("model", "state"):
            tensors = {
                self._key(name, stem): tensor
                for name, tensor in {**own, **self.tensors}.items()
                if self._of_model(name) == (stem == "model")
            }
            yield from named(stem, tensors)

    def _of_model(self, name: str) -> bool:
        return self.weights is not None and name.startswith(f"{self.weights}.")

    def _key(self, name: str, file: str) -> str:
        return _key(name, file, self.weights)

    def _metadata(self, name: str) -> dict[str, str]:
        return {"format": "pt", **(self._manifest.aliases if _stem(name) == "model" else {})}


def _stem(file: str) -> str:
    return "model" if file.startswith("model") else "state"


def _key(name: str, file: str, weights: str | None) -> str:
    return name.removeprefix(f"{weights}.") if _stem(file) == "model" and weights is not None else name


def _without_data(dtype: str, shape: Sequence[int]) -> Tensor:
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise DamagedCheckpoint(f"A tensor is of dtype {dtype!r:.40}, which torch does not know.")
    return torch.empty(tuple(shape), dtype=found, device="meta")


def _lies_within(piece: TensorEntry) -> bool:
    if piece.offsets is None or piece.global_shape is None:
        return False
    if not len(piece.offsets) == len(piece.shape) == len(piece.global_shape):
        return False
    return all(o + s <= g for o, s, g in zip(piece.offsets, piece.shape, piece.global_shape, strict=True))
