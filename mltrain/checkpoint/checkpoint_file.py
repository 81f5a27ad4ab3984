"""A whole checkpoint in one file, which needs no tracking server; see :mod:`mltrain.checkpoint.packed` for its form.

A run's training writes it (``export=full``, ``checkpoint_path``), and so do a classifier and a ``CheckpointManager`` of a folder,
which have no run. Nothing in it can be executed, and nothing is read before its digest has matched.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mltrain.checkpoint.manifest import FILE_NAME, LARGEST_COUNT, MAX_BYTES, UNTRACKED, CheckpointId, Manifest
from mltrain.checkpoint.packed import ABOUT, MOST_ABOUT, PackedStaging, is_packed, member_names, read_member
from mltrain.checkpoint.store import PARAMS
from mltrain.errors import DamagedCheckpoint, NoCheckpoint, nearest
from mltrain.provenance import fingerprint
from mltrain.store.durable import make_folder

if TYPE_CHECKING:
    import torch

VERSION = 2
"""Of the file's form. The first had ``about.json`` beside its members, and is read as ever."""

_FORMAT = "mltrain checkpoint file"
_LISTED = 10
_NO_DATE = datetime(1980, 1, 1, tzinfo=UTC)
"""The first date that a ZIP archive can have, in place of the present time: equal states make equal files."""


@dataclass(frozen=True)
class Written:
    """What a file tells of the run that wrote it.

    Attributes:
        run_id: of the run. If ``None``, a loop without a run wrote it.
        checkpoint: the name of the checkpoint in that run.
        project: what the run trained.
        complete: whether the file holds a whole checkpoint, and not weights alone.
    """

    run_id: str | None
    checkpoint: str | None
    project: str | None
    complete: bool


def write(file: Path, state: Mapping[str, Any]) -> None:
    """Write a state of tensors and plain values. The file's name always stands for a complete checkpoint.

    Raises:
        UnsupportedValue: the state holds something else; the message names the path to it.
        StorageError: the disk refuses.
    """
    from mltrain.checkpoint import codec
    from mltrain.checkpoint.host_memory import HostBuffers
    from mltrain.checkpoint.snapshot import snapshot

    encoded = codec.encode(snapshot(state, HostBuffers()))
    with _staging(file, CheckpointId(attempt=1, step=_count(state, "step"))) as staging:
        for member in encoded.files:
            staging.write(member.name, member.content)
        manifest = Manifest(
            run_id=UNTRACKED,
            id=CheckpointId(attempt=1, step=_count(state, "step")),
            kind="step",
            epoch=_count(state, "epoch"),
            parent=None,
            parts=tuple(state),
            files=staging.files,
            tensors=dict(encoded.tensors),
            aliases=dict(encoded.aliases),
            created=_NO_DATE,
            versions=fingerprint.versions(),
        )
        staging.commit(manifest, file)


def write_checkpoint(file: Path, manifest: Manifest, files: Mapping[str, bytes | bytearray], project: str) -> None:
    """Write a committed checkpoint of a run, with the ids that lead back to it.

    Args:
        file: to write; it is replaced as a whole.
        manifest: of the checkpoint.
        files: all its files, verified.
        project: what the run trains.

    Raises:
        StorageError: the disk refuses.
    """
    with _staging(file, manifest.id) as staging:
        for name, content in files.items():
            staging.write(name, [bytes(content)])
        staging.describe({"format": _FORMAT, "version": VERSION, "project": project})
        staging.commit(manifest, file)


def read(file: Path, device: "torch.device | None" = None) -> dict[str, Any]:
    """Return the state in a file, its tensors on ``device`` (the CPU if ``None``).

    Raises:
        NoCheckpoint: there is no such file.
        DamagedCheckpoint: it is not a checkpoint file, of a later version, or not as it was written.
    """
    from mltrain.checkpoint import codec

    return codec.decode(members(file, lambda name: name.startswith(("model", "state"))), device)


def manifest_of(file: Path) -> Manifest | None:
    """Return the manifest in a file, or ``None`` for one of the first form without a run. Raises as :func:`read` does."""
    if FILE_NAME not in _names(file):
        return None
    return Manifest.from_json(bytes(read_member(file, FILE_NAME, MAX_BYTES)))


def params_of(file: Path) -> dict[str, Any] | None:
    """Return the configuration that a checkpoint was trained with; ``None`` if it has none. Raises as :func:`read` does."""
    content = members(file, PARAMS.__eq__).get(PARAMS)
    if content is None:
        return None
    try:
        params = json.loads(content)
    except ValueError as error:
        raise DamagedCheckpoint(f"{file}: {PARAMS} is not valid JSON: {error}.") from None
    return dict(params) if isinstance(params, Mapping) else None


def origin_of(file: Path) -> Written | None:
    """Return what a file tells of the run that wrote it, by its head alone; ``None`` if another program wrote it.

    Raises:
        NoCheckpoint: there is no such file.
        DamagedCheckpoint: it is a checkpoint file that is cut short, or of a later version.
    """
    from mltrain.checkpoint import tensor_file

    if not file.is_file():
        raise NoCheckpoint(f"There is no checkpoint {file}.{beside(file)}")
    if not is_packed(file):
        stamp = tensor_file.stamp_of(file)
        if stamp is None:
            return None
        return Written(stamp.get("run_id"), stamp.get("checkpoint"), stamp.get("project"), complete=False)
    about, manifest = _about(file), manifest_of(file)
    project = about.get("project")
    if manifest is None or manifest.run_id == UNTRACKED:
        return Written(None, None, None, complete=True)
    return Written(manifest.run_id, manifest.name, project if isinstance(project, str) else None, complete=True)


def members(file: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, bytearray]:
    """Return the wanted files of a checkpoint, each verified. Raises as :func:`read` does."""
    names, manifest = _names(file), manifest_of(file)
    if manifest is not None:
        listed = {name: (entry.size, entry.sha256) for name, entry in manifest.files.items()}
    else:
        files: Mapping[str, Any] = _about(file).get("files", {})
        listed = {name: (int(entry["size"]), str(entry["sha256"])) for name, entry in files.items()}
    if names - {FILE_NAME} != listed.keys():
        raise DamagedCheckpoint(f"{file} holds {sorted(names - {FILE_NAME})}, and should hold {sorted(listed)}.")
    contents = {}
    for name, (size, digest) in listed.items():
        if wanted(name):
            content = read_member(file, name, size)
            if hashlib.sha256(content).hexdigest() != digest:
                raise DamagedCheckpoint(
                    f"{file}: {name} is not as it was written; its SHA-256 is another. Use an older copy."
                )
            contents[name] = content
    return contents


def beside(file: Path) -> str:
    """Return sentences that list what is in the folder of a file that is missing, the newest first, and the nearest name."""
    if not file.parent.is_dir():
        return f" There is no folder {file.parent} either."
    files = [other for other in file.parent.iterdir() if other.is_file()]
    names = [other.name for other in sorted(files, key=lambda one: one.stat().st_mtime_ns, reverse=True)]
    if not names:
        return ""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{nearest(file.name, names)} In {file.parent.resolve()} there are: {', '.join(names[:_LISTED])}{more}."


def _staging(file: Path, identity: CheckpointId) -> PackedStaging:
    make_folder(file.parent)
    return PackedStaging(file.parent, identity, lambda manifest: file.name)


def _count(state: Mapping[str, Any], name: str) -> int:
    """Return how many steps or epochs a state tells of; 0 where it tells of none."""
    progress = state.get("progress")
    value = (progress if isinstance(progress, Mapping) else state).get(name)
    return value if type(value) is int and 0 <= value <= LARGEST_COUNT else 0


def _names(file: Path) -> set[str]:
    try:
        packed = is_packed(file)
        names = set(member_names(file)) if packed else set()
    except FileNotFoundError:
        raise NoCheckpoint(f"There is no checkpoint {file}.{beside(file)}") from None
    except OSError as error:
        raise DamagedCheckpoint(f"{file} cannot be read: {error.strerror or error}.") from None
    if not packed:
        raise DamagedCheckpoint(f"{file} is not a checkpoint file, or is damaged.{_foreign(file)}")
    _about(file)
    return names


def _about(file: Path) -> dict[str, Any]:
    """Return what a file says of itself; a checkpoint that a manager wrote to its folder says nothing beside its manifest.

    Raises:
        DamagedCheckpoint: it is of a later version, or cannot be read.
    """
    try:
        about = json.loads(read_member(file, ABOUT, MOST_ABOUT))
        version = about["version"]
        if about["format"] != _FORMAT or not all(isinstance(one, dict) for one in about.get("files", {}).values()):
            raise ValueError("it is of another format")
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCheckpoint(
            f"{file} is not a checkpoint file: its {ABOUT} cannot be read: {error!r:.200}."
        ) from None
    if version not in (1, 2):
        raise DamagedCheckpoint(
            f"{file} is of version {version!r:.20}, and versions 1 and 2 are read here. Use the version of this software that "
            "wrote it."
        )
    return dict(about)


def _foreign(file: Path) -> str:
    if file.suffix in (".pth", ".pt", ".ckpt"):
        return " If another program wrote it, make it the start of a run: mltrain import FILE."
    return ""
