"""Whole checkpoints in single files, readable without a tracking server.

Trainings write such files (``export=full``, ``checkpoint_path``), and so do classifiers and a ``CheckpointManager`` of a
folder, which have no run. Nothing in a file can be executed, and nothing is used before its digest has matched.
:mod:`mltrain.checkpoint.packed` describes the format.
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
"""Version of the format. Version 1 had ``about.json`` beside its members and can still be read."""

_FORMAT = "mltrain checkpoint file"
_LISTED = 10
_NO_DATE = datetime(1980, 1, 1, tzinfo=UTC)
"""The earliest date of a ZIP archive, used instead of the current time so that equal states make equal files."""


@dataclass(frozen=True)
class FileOrigin:
    """The origin that a file records: run, checkpoint and project.

    Attributes:
        run_id: of the run. If ``None``, a loop without a run wrote the file.
        checkpoint: the name of the checkpoint in that run.
        project: the trained project.
        complete: whether the file holds a whole checkpoint rather than weights alone.
    """

    run_id: str | None
    checkpoint: str | None
    project: str | None
    complete: bool


def write(file: Path, state: Mapping[str, Any]) -> None:
    """Write a state of tensors and plain values.

    The file is replaced as a whole, so its name always refers to a complete checkpoint.

    Raises:
        UnsupportedValue: the state holds another kind of value; the message names the path to it.
        StorageError: the disk refuses.
    """
    from mltrain.checkpoint import codec
    from mltrain.checkpoint.snapshot import HostBuffers, snapshot

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
    """Write a run's committed checkpoint together with its origin.

    Args:
        file: replaced as a whole.
        manifest: of the checkpoint.
        files: all its files, verified.
        project: the trained project.

    Raises:
        StorageError: the disk refuses.
    """
    with _staging(file, manifest.id) as staging:
        for name, content in files.items():
            staging.write(name, [bytes(content)])
        staging.describe({"format": _FORMAT, "version": VERSION, "project": project})
        staging.commit(manifest, file)


def read(file: Path, device: "torch.device | None" = None) -> dict[str, Any]:
    """Return the state in a file.

    Its tensors are on ``device``, or on the CPU if that is ``None``.

    Raises:
        NoCheckpoint: there is no such file.
        DamagedCheckpoint: it is not a checkpoint file, has a later version, or was changed.
    """
    from mltrain.checkpoint import codec

    return codec.decode(members(file, lambda name: name.startswith(("model", "state"))), device)


def manifest_of(file: Path) -> Manifest | None:
    """Return the manifest in a file.

    Returns ``None`` for a version 1 file without a run. Raises the same errors as :func:`read`.
    """
    if FILE_NAME not in _names(file):
        return None
    return Manifest.from_json(bytes(read_member(file, FILE_NAME, MAX_BYTES)))


def params_of(file: Path) -> dict[str, Any] | None:
    """Return the configuration that a checkpoint was trained with.

    Returns ``None`` if it was saved without a configuration. Raises the same errors as :func:`read`.
    """
    content = members(file, PARAMS.__eq__).get(PARAMS)
    if content is None:
        return None
    try:
        params = json.loads(content)
    except ValueError as error:
        raise DamagedCheckpoint(f"{file}: {PARAMS} is not valid JSON: {error}.") from None
    return dict(params) if isinstance(params, Mapping) else None


def origin_of(file: Path) -> FileOrigin | None:
    """Return a file's origin, reading only its header and manifest.

    Returns ``None`` if another program wrote the file.

    Raises:
        NoCheckpoint: there is no such file.
        DamagedCheckpoint: it is a checkpoint file that is truncated or has a later version.
    """
    from mltrain.checkpoint import tensor_file

    if not file.is_file():
        raise NoCheckpoint(f"There is no checkpoint {file}.{hints_for_missing(file)}")
    if not is_packed(file):
        stamp = tensor_file.stamp_of(file)
        if stamp is None:
            return None
        return FileOrigin(stamp.get("run_id"), stamp.get("checkpoint"), stamp.get("project"), complete=False)
    about, manifest = _about(file), manifest_of(file)
    project = about.get("project")
    if manifest is None or manifest.run_id == UNTRACKED:
        return FileOrigin(None, None, None, complete=True)
    return FileOrigin(manifest.run_id, manifest.name, project if isinstance(project, str) else None, complete=True)


def members(file: Path, wanted: Callable[[str], bool]) -> dict[str, bytearray]:
    """Return a checkpoint's wanted files, each verified.

    Raises the same errors as :func:`read`.
    """
    names, manifest = _names(file), manifest_of(file)
    if manifest is not None:
        listed = {name: (entry.size, entry.sha256) for name, entry in manifest.files.items()}
    else:
        files: Mapping[str, Any] = _about(file).get("files", {})
        listed = {name: (int(entry["size"]), str(entry["sha256"])) for name, entry in files.items()}
    if names - {FILE_NAME} != listed.keys():
        raise DamagedCheckpoint(
            f"{file} has other files than it lists. Expected {sorted(listed)}, got {sorted(names - {FILE_NAME})}."
        )
    contents = {}
    for name, (size, digest) in listed.items():
        if wanted(name):
            content = read_member(file, name, size)
            if hashlib.sha256(content).hexdigest() != digest:
                raise DamagedCheckpoint(
                    f"{file}: {name} has another SHA-256 than when it was written. Try: an older copy of the file."
                )
            contents[name] = content
    return contents


def hints_for_missing(file: Path) -> str:
    """Return hints for a missing file.

    They are sentences with the nearest name and the files of its folder, newest first.
    """
    if not file.parent.is_dir():
        return f" Its folder {file.parent} does not exist either."
    files = [other for other in file.parent.iterdir() if other.is_file()]
    names = [other.name for other in sorted(files, key=lambda one: one.stat().st_mtime_ns, reverse=True)]
    if not names:
        return ""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{nearest(file.name, names)} Files in {file.parent.resolve()}: {', '.join(names[:_LISTED])}{more}."


def _staging(file: Path, identity: CheckpointId) -> PackedStaging:
    make_folder(file.parent)
    return PackedStaging(file.parent, identity)


def _count(state: Mapping[str, Any], name: str) -> int:
    """Return a state's step or epoch counter, or 0."""
    progress = state.get("progress")
    value = (progress if isinstance(progress, Mapping) else state).get(name)
    return value if type(value) is int and 0 <= value <= LARGEST_COUNT else 0


def _names(file: Path) -> set[str]:
    try:
        packed = is_packed(file)
        names = set(member_names(file)) if packed else set()
    except FileNotFoundError:
        raise NoCheckpoint(f"There is no checkpoint {file}.{hints_for_missing(file)}") from None
    except OSError as error:
        raise DamagedCheckpoint(f"{file} cannot be read: {error.strerror or error}.") from None
    if not packed:
        raise DamagedCheckpoint(f"{file} is not a checkpoint file, or is damaged.{_foreign(file)}")
    _about(file)
    return names


def _about(file: Path) -> dict[str, Any]:
    """Return a file's description, empty if it has none.

    A manager's file has a manifest but no description.

    Raises:
        DamagedCheckpoint: it has a later version, or cannot be read.
    """
    try:
        about = json.loads(read_member(file, ABOUT, MOST_ABOUT))
        version = about["version"]
        if about["format"] != _FORMAT or not all(isinstance(one, dict) for one in about.get("files", {}).values()):
            raise ValueError("it has another format")
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCheckpoint(
            f"{file} is not a checkpoint file: its {ABOUT} cannot be read: {error!r:.200}."
        ) from None
    if version not in (1, 2):
        raise DamagedCheckpoint(
            f"{file} has version {version!r:.20}. Expected version 1 or 2. Try: the version of mltrain that wrote it."
        )
    return dict(about)


def _foreign(file: Path) -> str:
    if file.suffix in (".pth", ".pt", ".ckpt"):
        return " If another program wrote it, import it as the first checkpoint of a run: mltrain import FILE."
    return ""
