"""A checkpoint's manifest, as a frozen value and as JSON.

The manifest is the commit: without it there is no checkpoint.

A run can be rolled back. If it returns from step 600 to step 300 and is killed at step 420, its newest state is that of step
420. The line of a checkpoint is the chain of commits that led to it. Checkpoints off the line of the newest one are abandoned.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from mltrain.errors import DamagedCheckpoint, UsageError

SCHEMA = 1
SHARDED_SCHEMA = 2
"""Schema of sharded checkpoints, whose part files (``shards``) list the pieces. All others have schema 1."""
FILE_NAME = "manifest.json"
MAX_BYTES = 64 * 2**20
"""A manifest larger than this is refused before it is parsed."""

Kind = Literal["epoch", "step", "interrupted", "imported"]
_NAME = re.compile(r"step-(\d{9})-a(\d{2,6})", re.ASCII)
_FILE = r"^[a-z][a-z0-9_-]{0,63}\.(safetensors|json|csv)$"
_SEAL = b',\n "sha256": "'
_BEGUN_NUMBER = re.compile(r"[-+.0-9eE]*", re.ASCII)

UNTRACKED = "untracked"
"""``run_id`` of a checkpoint that belongs to no run; its folder or file may be moved and copied."""
LARGEST_COUNT = 10**9 - 1
"""The largest step or epoch: directory names have nine digits for it."""

Count = Annotated[int, Field(ge=0, le=LARGEST_COUNT, strict=True)]
Bytes = Annotated[int, Field(ge=0, le=2**60, strict=True)]


_OWN_FILES = ("model", "state", "manifest", "part-r")


def refuse_names(names: Iterable[str]) -> None:
    """Raise an error for invalid names of extra checkpoint files.

    Raises:
        UsageError: a name has other characters or another suffix than allowed, or begins as a checkpoint's own files do.
    """
    for name in names:
        if re.fullmatch(_FILE, name) is None or name.startswith(_OWN_FILES):
            raise UsageError(
                f"{name!r:.80} cannot name an extra file of a checkpoint. Expected lower-case letters, digits, _ and -, "
                "ending in .json, .csv or .safetensors, and not beginning with model, state, manifest or part-r."
            )


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class CheckpointId(_Value):
    """The identity of a checkpoint: attempt and step.

    The step alone is not enough, because a run can be rolled back.
    """

    attempt: Annotated[int, Field(ge=1, le=999_999, strict=True)]
    step: Count

    @property
    def name(self) -> str:
        """The name of its directory: ``step-<9 digits>-a<attempt>``."""
        return f"step-{self.step:09d}-a{self.attempt:02d}"

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Parse a directory name; return ``None`` for any other name."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        identity = cls(step=int(match[1]), attempt=max(1, int(match[2])))
        return identity if identity.name == name else None

    @property
    def order(self) -> tuple[int, int]:
        """Sort key: later checkpoints have greater ones.

        Clocks are not used.
        """
        return self.attempt, self.step

    def __str__(self) -> str:
        return self.name


class FileEntry(_Value):
    """Size in bytes and SHA-256 (hexadecimal) of a checkpoint file."""

    size: Bytes
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


FileName = Annotated[str, Field(pattern=_FILE)]
"""The name of a checkpoint file; it cannot lead out of the checkpoint's folder."""


class TensorEntry(_Value):
    """File, dtype and shape of a stored tensor.

    A piece of a sharded tensor also has its offsets and the shape of the whole tensor.
    """

    file: FileName
    dtype: Annotated[str, Field(max_length=32)]
    shape: tuple[Bytes, ...]
    global_shape: tuple[Bytes, ...] | None = None
    offsets: tuple[Bytes, ...] | None = None


class Point(_Value):
    """A metric point with its timestamp in milliseconds since 1970."""

    key: Annotated[str, Field(max_length=250)]
    step: Annotated[int, Field(ge=-(2**62), le=2**62)]
    value: float
    timestamp: Annotated[int, Field(ge=0, le=2**62)]


class Manifest(_Value):
    """A complete description of a checkpoint except its tensors' values."""

    schema_version: Annotated[int, Field(strict=True)] = SCHEMA
    run_id: Annotated[str, Field(max_length=64)]
    id: CheckpointId
    kind: Kind
    epoch: Count
    parent: CheckpointId | None
    """The previous commit of the attempt, or the checkpoint that the attempt resumed from."""
    ancestry: tuple[CheckpointId, ...] = ()
    """The checkpoints at which the line moved on to the next attempt, oldest first. It outlives pruned parents."""
    metrics: dict[str, float] = {}
    best: bool = False
    """Whether the caller declared it best at the save; a metric or a later declaration may decide otherwise."""
    parts: tuple[str, ...]
    files: dict[FileName, FileEntry]
    tensors: dict[str, TensorEntry] = {}
    """The whole tensors; part files list the pieces of sharded ones."""
    shards: dict[Annotated[str, Field(pattern=r"^part-r\d{5}\.json$")], Bytes] = {}
    """The part files of a sharded checkpoint, one per rank, each with the total bytes of the files that it lists."""
    aliases: dict[str, str] = {}
    created: AwareDatetime
    versions: dict[str, str] = {}
    code: dict[str, str] = {}
    data: dict[str, str] = {}
    pending: tuple[Point, ...] = ()
    """Metric points up to this step that the server had not acknowledged at the save."""

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.id.step

    @property
    def name(self) -> str:
        """The name of its directory."""
        return self.id.name

    @property
    def size(self) -> int:
        """Total bytes of all files except the manifest."""
        return sum(entry.size for entry in self.files.values()) + sum(self.shards.values())

    @property
    def title(self) -> str:
        """A title: ``epoch 50``, ``step 1234``, ``interrupted at step 1234``."""
        if self.kind == "interrupted":
            return f"interrupted at step {self.step}"
        return f"epoch {self.epoch}" if self.kind == "epoch" else f"{self.kind} {self.step}"

    def to_json(self) -> bytes:
        """Return the manifest as UTF-8 JSON.

        Its last entry is the SHA-256 of everything before it.
        """
        without = None if self.shards else {"shards"}
        body = self.model_dump_json(indent=1, exclude=without).encode().removesuffix(b"\n}")
        return body + _SEAL + hashlib.sha256(body).hexdigest().encode() + b'"\n}'

    @classmethod
    def from_json(cls, content: bytes, *, run_id: str | None = None, name: str | None = None) -> Self:
        """Parse a manifest; check its run and folder.

        Raises:
            DamagedCheckpoint: it is not valid JSON, too large or too deep, has another schema, was changed, has wrong types,
                or names another run or folder.
        """
        where = f"the manifest of {name}" if name else "the manifest"
        if len(content) > MAX_BYTES:
            raise DamagedCheckpoint(f"{where} has {len(content)} bytes; at most {MAX_BYTES} are read.")
        try:
            raw: Any = json.loads(content)
        except (ValueError, RecursionError) as error:
            damaged = DamagedCheckpoint(f"{where} is not valid JSON: {error}")
            damaged.torn = _ends_too_early(content, error)
            raise damaged from None
        if isinstance(raw, dict) and raw.get("schema_version") != (SHARDED_SCHEMA if raw.get("shards") else SCHEMA):
            raise DamagedCheckpoint(
                f"{where} has schema {raw.get('schema_version')!r:.40}; this version of mltrain reads schema {SCHEMA}, and "
                f"{SHARDED_SCHEMA} for sharded checkpoints."
            )
        body, _, seal = content.rpartition(_SEAL)
        if seal != hashlib.sha256(body).hexdigest().encode() + b'"\n}':
            raise DamagedCheckpoint(f"{where} has another SHA-256 than when it was written.")
        del raw["sha256"]
        try:
            manifest = cls.model_validate(raw)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise DamagedCheckpoint(f"{where} is not as it was written: {place!r:.200}: {first['msg']}") from None
        if not manifest.shards.keys() <= manifest.files.keys():
            raise DamagedCheckpoint(f"{where} names a part file without its digest.")
        if (run_id is not None and manifest.run_id != run_id) or (name is not None and manifest.name != name):
            raise DamagedCheckpoint(
                f"{where} names {manifest.name} of run {manifest.run_id!r}: it was moved or swapped."
            )
        return manifest


def whole_manifest(manifest: Manifest, made: Mapping[str, FileEntry]) -> Manifest:
    """Return the manifest of a sharded checkpoint's reassembled files.

    A manifest without shards is returned unchanged.
    """
    if not manifest.shards:
        return manifest
    there = {n: e for n, e in manifest.files.items() if n not in names_of_shards(manifest)}
    return manifest.model_copy(
        update={"schema_version": SCHEMA, "shards": {}, "tensors": {}, "files": {**there, **made}}
    )


def names_of_shards(manifest: Manifest) -> Sequence[str]:
    """Return a sharded checkpoint's files that reassembled files replace."""
    return [n for n in manifest.files if manifest.shards and (n in manifest.shards or n.endswith(".safetensors"))]


def _ends_too_early(content: bytes, error: Exception) -> bool:
    """Whether JSON is invalid only because its end is missing."""
    if isinstance(error, UnicodeDecodeError):
        return error.end == len(content) and error.reason == "unexpected end of data"
    if not isinstance(error, json.JSONDecodeError):
        return False
    rest = error.doc[error.pos :]
    begun = _BEGUN_NUMBER.fullmatch(rest) or any(word.startswith(rest) for word in ("true", "false", "null", "NaN"))
    return (
        bool(begun)
        or error.msg.startswith("Unterminated string")
        or (error.msg.startswith("Invalid \\") and len(rest) < 6)
    )


def now() -> datetime:
    """The current UTC time, for display only, never for ordering."""
    return datetime.now(UTC)


def newest(manifests: Iterable[Manifest]) -> Manifest | None:
    """Return the newest commit of the newest attempt, or ``None``."""
    return max(manifests, key=lambda manifest: manifest.id.order, default=None)


def line_of(head: Manifest, manifests: Iterable[Manifest]) -> list[Manifest]:
    """Return the line's checkpoints up to ``head``, oldest first.

    ``head`` is the last of them.
    """
    # An attempt that continued from one of its own checkpoints is in the ancestry too; its last step counts.
    ends = {point.attempt: point.step for point in head.ancestry} | {head.id.attempt: head.step}
    on_line = [m for m in manifests if m.id.attempt in ends and m.step <= ends[m.id.attempt]]
    return sorted(on_line, key=lambda manifest: manifest.id.order)


def current_line(manifests: Sequence[Manifest]) -> list[Manifest]:
    """Return the checkpoints on the current line, oldest first."""
    head = newest(manifests)
    return line_of(head, manifests) if head is not None else []


def ancestry_after(resumed_from: Manifest | None) -> tuple[CheckpointId, ...]:
    """Return the ancestry of commits that continue from a checkpoint."""
    return (*resumed_from.ancestry, resumed_from.id) if resumed_from is not None else ()
