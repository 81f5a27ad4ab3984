"""What a checkpoint is, as a frozen value and as JSON. The manifest is the commit: without it there is no checkpoint.

A run can be rolled back: from step 600 to 300, and killed at 420, its newest state is 420. The line of a checkpoint is
the chain of commits that led to it; what is off the newest one's line is abandoned.
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
"""Of a checkpoint whose tensors are in pieces, which the part files of ``shards`` list. All others are of schema 1."""
FILE_NAME = "manifest.json"
MAX_BYTES = 64 * 2**20
"""A manifest larger than this is refused before it is parsed."""

Kind = Literal["epoch", "step", "interrupted", "imported"]
_NAME = re.compile(r"step-(\d{9})-a(\d{2,6})", re.ASCII)
_FILE = r"^[a-z][a-z0-9_-]{0,63}\.(safetensors|json|csv)$"
_SEAL = b',\n "sha256": "'
_BEGUN_NUMBER = re.compile(r"[-+.0-9eE]*", re.ASCII)

UNTRACKED = "untracked"
"""What the manifest of a checkpoint without a run names as its run, so that a folder or a file may be moved and copied."""
LARGEST_COUNT = 10**9 - 1
"""The largest number of steps or epochs: their directories have nine digits."""

Count = Annotated[int, Field(ge=0, le=LARGEST_COUNT, strict=True)]
Bytes = Annotated[int, Field(ge=0, le=2**60, strict=True)]


_OWN_FILES = ("model", "state", "manifest", "part-r")


def refuse_names(names: Iterable[str]) -> None:
    """Refuse names that no further file of a checkpoint can have: these are plain, of a known kind, unlike its own.

    Raises:
        UsageError: one is not.
    """
    for name in names:
        if re.fullmatch(_FILE, name) is None or name.startswith(_OWN_FILES):
            raise UsageError(
                f"{name!r:.80} cannot name a further file of a checkpoint: lower-case letters, digits, _ and - were "
                "expected, ending in .json, .csv or .safetensors, and not beginning with model, state, manifest or part-r."
            )


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class CheckpointId(_Value):
    """A checkpoint's identity. (attempt, step) and not the step alone, because a run can be rolled back."""

    attempt: Annotated[int, Field(ge=1, le=999_999, strict=True)]
    step: Count

    @property
    def name(self) -> str:
        """The name of its directory: ``step-<9 digits>-a<attempt>``."""
        return f"step-{self.step:09d}-a{self.attempt:02d}"

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Return the identity that a directory name spells, or ``None`` for any other name."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        identity = cls(step=int(match[1]), attempt=max(1, int(match[2])))
        return identity if identity.name == name else None

    @property
    def order(self) -> tuple[int, int]:
        """The later of two checkpoints has the greater one. Clocks play no part in it."""
        return self.attempt, self.step

    def __str__(self) -> str:
        return self.name


class FileEntry(_Value):
    """A file of a checkpoint: its size in bytes and the SHA-256 of its content, hexadecimal."""

    size: Bytes
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


FileName = Annotated[str, Field(pattern=_FILE)]
"""The name of a file of a checkpoint, which leads out of no folder."""


class TensorEntry(_Value):
    """A stored tensor: its file, dtype and shape; for sharded state the whole tensor's shape and this piece's offsets."""

    file: FileName
    dtype: Annotated[str, Field(max_length=32)]
    shape: tuple[Bytes, ...]
    global_shape: tuple[Bytes, ...] | None = None
    offsets: tuple[Bytes, ...] | None = None


class Point(_Value):
    """A metric point, with the time when it was logged in milliseconds since 1970."""

    key: Annotated[str, Field(max_length=250)]
    step: Annotated[int, Field(ge=-(2**62), le=2**62)]
    value: float
    timestamp: Annotated[int, Field(ge=0, le=2**62)]


class Manifest(_Value):
    """Describes a checkpoint completely, except for the values of its tensors."""

    schema_version: Annotated[int, Field(strict=True)] = SCHEMA
    run_id: Annotated[str, Field(max_length=64)]
    id: CheckpointId
    kind: Kind
    epoch: Count
    parent: CheckpointId | None
    """The commit before it on its line: of the same attempt, or the one that the attempt resumed from."""
    ancestry: tuple[CheckpointId, ...] = ()
    """Where the line changed from one attempt to the next, oldest first; parents may be pruned, this stays."""
    metrics: dict[str, float] = {}
    best: bool = False
    """Declared best by the caller when it was written; a policy or a metric may say otherwise later."""
    parts: tuple[str, ...]
    files: dict[FileName, FileEntry]
    tensors: dict[str, TensorEntry] = {}
    """Those that are whole; of sharded ones the part files say more."""
    shards: dict[Annotated[str, Field(pattern=r"^part-r\d{5}\.json$")], Bytes] = {}
    """The part files of a sharded checkpoint, one a rank, each with the bytes of the files that it lists."""
    aliases: dict[str, str] = {}
    created: AwareDatetime
    versions: dict[str, str] = {}
    code: dict[str, str] = {}
    data: dict[str, str] = {}
    pending: tuple[Point, ...] = ()
    """Metric points up to this step that the server had not acknowledged when this was written."""

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
        """Bytes of all files but the manifest."""
        return sum(entry.size for entry in self.files.values()) + sum(self.shards.values())

    @property
    def title(self) -> str:
        """A title for people: ``epoch 50``, ``step 1234``, ``interrupted at step 1234``."""
        if self.kind == "interrupted":
            return f"interrupted at step {self.step}"
        return f"epoch {self.epoch}" if self.kind == "epoch" else f"{self.kind} {self.step}"

    def to_json(self) -> bytes:
        """Return the manifest as UTF-8 JSON, whose last entry is the SHA-256 of everything before it."""
        without = None if self.shards else {"shards"}
        body = self.model_dump_json(indent=1, exclude=without).encode().removesuffix(b"\n}")
        return body + _SEAL + hashlib.sha256(body).hexdigest().encode() + b'"\n}'

    @classmethod
    def from_json(cls, content: bytes, *, run_id: str | None = None, name: str | None = None) -> Self:
        """Read a manifest and check that it names the run and the folder where it was found.

        Raises:
            DamagedCheckpoint: not JSON, too large, too deep, of another schema, changed, of wrong types, or of another
                place.
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
                f"{where} is of schema {raw.get('schema_version')!r:.40}; this version of mltrain reads schema {SCHEMA}, and "
                f"{SHARDED_SCHEMA} of sharded checkpoints."
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
                f"{where} speaks of {manifest.name} of run {manifest.run_id!r}: it was moved or swapped."
            )
        return manifest


def whole_manifest(manifest: Manifest, made: Mapping[str, FileEntry]) -> Manifest:
    """Return the manifest that describes files which were put together from shards; without shards, the same manifest."""
    if not manifest.shards:
        return manifest
    there = {n: e for n, e in manifest.files.items() if n not in names_of_shards(manifest)}
    return manifest.model_copy(
        update={"schema_version": SCHEMA, "shards": {}, "tensors": {}, "files": {**there, **made}}
    )


def names_of_shards(manifest: Manifest) -> Sequence[str]:
    """Return the names of a sharded checkpoint's files that its whole files replace."""
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
    """The present time in UTC: for people to read, never for ordering."""
    return datetime.now(UTC)


def newest(manifests: Iterable[Manifest]) -> Manifest | None:
    """Return the newest commit of the newest attempt, or ``None``."""
    return max(manifests, key=lambda manifest: manifest.id.order, default=None)


def line_of(head: Manifest, manifests: Iterable[Manifest]) -> list[Manifest]:
    """Return the checkpoints on the line that ends in ``head``, oldest first, ``head`` included."""
    # An attempt may load one of its own checkpoints and go on: then it stands in the ancestry too, and its end counts.
    ends = {point.attempt: point.step for point in head.ancestry} | {head.id.attempt: head.step}
    on_line = [m for m in manifests if m.id.attempt in ends and m.step <= ends[m.id.attempt]]
    return sorted(on_line, key=lambda manifest: manifest.id.order)


def current_line(manifests: Sequence[Manifest]) -> list[Manifest]:
    """Return the checkpoints on the current line, oldest first."""
    head = newest(manifests)
    return line_of(head, manifests) if head is not None else []


def ancestry_after(resumed_from: Manifest | None) -> tuple[CheckpointId, ...]:
    """Return the ancestry of the commits of an attempt that continues from a checkpoint."""
    return (*resumed_from.ancestry, resumed_from.id) if resumed_from is not None else ()
