"""Sharded checkpoints: the files that each rank writes, and the whole files that they stand for.

Every rank writes its pieces of tensors as safetensors files, and a part file that lists them with their digests. The manifest
names the part files only, so it stays small however many ranks there are. The headers say where a piece lies in the way of
torch.distributed.checkpoint (``DCP_SHARDING_INFO``), so its ``HuggingFaceStorageReader`` reads the weights as well.
"""

import json
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
"""Returns the content of a file of the checkpoint, verified against its entry."""


def part_name(rank: int) -> str:
    """Return the name of the part file of a rank."""
    return f"part-r{rank:05d}.json"


class Part(BaseModel):
    """What one rank has written: its files with their digests, and the piece of each tensor in them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    rank: Annotated[int, Field(ge=0, strict=True)]
    weights: str | None
    """The name of the part of the state that is a model's weights: without it tensors are named in files of the model."""
    files: dict[FileName, FileEntry]
    pieces: dict[str, TensorEntry]

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(entry.size for entry in self.files.values())

    def key(self, name: str) -> str:
        """Return what a tensor is called in its file."""
        return _key(name, self.pieces[name].file, self.weights)

    @classmethod
    def from_json(cls, content: bytes | bytearray, name: str) -> Self:
        """Read a part file, whose digest the caller has verified.

        Raises:
            DamagedCheckpoint: it is none.
        """
        try:
            part = cls.model_validate_json(bytes(content))
        except ValidationError as error:
            raise DamagedCheckpoint(f"{name} is not as it was written: {error.errors()[0]['msg']}") from None
        if any(one.file not in part.files or not _lies_within(one) for one in part.pieces.values()):
            raise DamagedCheckpoint(
                f"{name} is not as it was written: a piece lies in no file of it, or beyond its tensor."
            )
        return part


@dataclass(frozen=True)
class Piece:
    """A piece of a tensor in host memory: where it begins in the whole, and the whole's shape."""

    tensor: Tensor
    offsets: tuple[int, ...]
    global_shape: tuple[int, ...]


def write_part(
    folder: Path, rank: int, pieces: Mapping[str, Piece], weights: str | None, largest_file: int = LARGEST_FILE
) -> tuple[str, FileEntry, int]:
    """Write the pieces of a rank into a folder, and last its part file; return that file's name and entry, and all bytes.

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
    """Return which files of a checkpoint a machine uploads, and which part files after them.

    Args:
        folder: where the ranks of one machine have staged it.
        manifest: of the checkpoint.
        rank: whose pieces are meant. If ``None``, those of all ranks.

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
    """The whole tensors of a sharded checkpoint, and the files that a single process would have written.

    Args:
        manifest: of the checkpoint.
        read: reads its files, verified.

    Attributes:
        parts: what each rank has written, by rank.
        weights: the name of the part of the state that is a model's weights, if there is one.
        tensors: each sharded tensor without data: its shape and dtype.

    Raises:
        DamagedCheckpoint: a part file is missing or damaged, or the pieces do not make up their tensors.
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
                    raise DamagedCheckpoint(f"{manifest.name}: the pieces of {name} are of different tensors.")
                found[name] = found.get(name, 0) + _numel(one.shape)
        lacking = [name for name, whole in self.tensors.items() if found[name] != whole.numel()]
        if lacking:
            raise DamagedCheckpoint(f"{manifest.name}: the pieces of {lacking[0]} do not make up the whole tensor.")
        self._wholes = dict(self._laid_out())

    def read(self, name: str, entry: FileEntry) -> bytearray:
        """Return the content of a file, verified: what :meth:`hold` has read, once, else it is read now."""
        held = self._held.pop(name, None)
        return held if held is not None else self._read(name, entry)

    def hold(self, name: str, entry: FileEntry) -> None:
        """Read a file, verified, and keep it in memory for the next :meth:`read` of it."""
        self._held[name] = self._read(name, entry)

    def release(self) -> None:
        """Free the memory of what :meth:`hold` has read."""
        self._held.clear()

    def files(self) -> dict[str, FileEntry]:
        """Return the files of pieces, of all parts."""
        return {name: entry for part in self.parts for name, entry in part.files.items()}

    def sizes(self) -> dict[str, int]:
        """Return the sizes in bytes of the whole files, by name."""
        return {name: tensor_file.size_of(tensors, self._metadata(name)) for name, tensors in self._wholes.items()}

    def content(self, name: str) -> bytearray:
        """Return the content of a whole file; beside it, one file of pieces is in memory at a time."""
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
        raise DamagedCheckpoint(f"A tensor is of dtype {dtype!r:.40}, which torch does not have.")
    return torch.empty(tuple(shape), dtype=found, device="meta")


def _numel(shape: Sequence[int]) -> int:
    return int(torch.Size(shape).numel())


def _lies_within(piece: TensorEntry) -> bool:
    if piece.offsets is None or piece.global_shape is None:
        return False
    if not len(piece.offsets) == len(piece.shape) == len(piece.global_shape):
        return False
    return all(o + s <= g for o, s, g in zip(piece.offsets, piece.shape, piece.global_shape, strict=True))
