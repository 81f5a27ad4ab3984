"""A whole checkpoint in one file, which needs no tracking server.

The file is an uncompressed ZIP archive: ``about.json`` with format, versions, and size and SHA-256 of every other member; the
members are those of any checkpoint (``model.safetensors``, ``state.safetensors``, ``state.json``; see
:mod:`mltrain.checkpoint.codec`), and where a run wrote it, its manifest and further files. Nothing in it can be executed, and
nothing is read before its digest has matched.
"""

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mltrain.checkpoint import codec
from mltrain.checkpoint.host_memory import HostBuffers
from mltrain.checkpoint.manifest import FILE_NAME, Manifest
from mltrain.checkpoint.snapshot import snapshot
from mltrain.checkpoint.store import PARAMS
from mltrain.errors import DamagedCheckpoint, NoCheckpoint
from mltrain.provenance import fingerprint
from mltrain.store.durable import replacing

FORMAT = "mltrain checkpoint file"
VERSION = 1

_ABOUT = "about.json"
_MOST_ABOUT = 2**20


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
    encoded = codec.encode(snapshot(state, HostBuffers()))
    _write(file, {member.name: b"".join(member.content) for member in encoded.files}, {})


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
    about = {"run_id": manifest.run_id, "checkpoint": manifest.name, "project": project}
    _write(file, {**files, FILE_NAME: manifest.to_json()}, about)


def read(file: Path, device: torch.device | None = None) -> dict[str, Any]:
    """Return the state in a file, its tensors on ``device`` (the CPU if ``None``).

    Raises:
        NoCheckpoint: there is no such file.
        DamagedCheckpoint: it is not a checkpoint file, of a later version, or not as it was written.
    """
    return codec.decode(members(file, lambda name: name.startswith(("model", "state"))), device)


def manifest_of(file: Path) -> Manifest | None:
    """Return the manifest in a file; ``None`` if no run wrote it. Raises as :func:`read` does."""
    content = members(file, FILE_NAME.__eq__).get(FILE_NAME)
    return Manifest.from_json(content) if content is not None else None


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
        DamagedCheckpoint: it is a checkpoint file whose ``about.json`` cannot be read, or of a later version.
    """
    if not file.is_file():
        raise NoCheckpoint(f"There is no checkpoint {file}.{beside(file)}")
    try:
        with zipfile.ZipFile(file) as archive:
            if _ABOUT not in archive.namelist():
                return None
            about = _about(file, archive.read(_ABOUT))
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError):
        stamp = codec.stamp_of(file)
        if stamp is None:
            return None
        return Written(stamp.get("run_id"), stamp.get("checkpoint"), stamp.get("project"), complete=False)
    run_id, checkpoint, project = (
        text if isinstance(text := about.get(name), str) else None for name in ("run_id", "checkpoint", "project")
    )
    return Written(run_id, checkpoint, project, complete=True)


def members(file: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, bytes]:
    """Return the wanted members of a file, each verified. Raises as :func:`read` does."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = {entry.filename: entry for entry in _plain(archive, file)}
            about = _about(file, archive.read(entries.pop(_ABOUT)) if _ABOUT in entries else b"")
            contents = {name: archive.read(entry) for name, entry in entries.items() if wanted(name)}
    except FileNotFoundError:
        raise NoCheckpoint(f"There is no checkpoint {file}.{beside(file)}") from None
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise DamagedCheckpoint(f"{file} is not a checkpoint file, or is damaged: {error}.{_foreign(file)}") from None
    listed = about["files"]
    if listed.keys() != entries.keys():
        raise DamagedCheckpoint(f"{file} holds {sorted(entries)}, and should hold {sorted(listed)}.")
    for name, content in contents.items():
        if hashlib.sha256(content).hexdigest() != listed[name].get("sha256"):
            raise DamagedCheckpoint(
                f"{file}: {name} is not as it was written; its SHA-256 is another. Use an older copy."
            )
    return contents


def beside(file: Path) -> str:
    """Return a sentence that lists what is in the folder of a file that is missing."""
    if not file.parent.is_dir():
        return f" There is no folder {file.parent} either."
    names = sorted(other.name for other in file.parent.iterdir() if other.is_file())[:10]
    return f" In {file.parent.resolve()} there are: {', '.join(names)}." if names else ""


def _write(file: Path, contents: Mapping[str, bytes | bytearray], about: Mapping[str, str]) -> None:
    described = {
        "format": FORMAT,
        "version": VERSION,
        **about,
        "versions": fingerprint.versions(),
        "files": {
            name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in contents.items()
        },
    }
    with replacing(file) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        # A ZipInfo of its own has a fixed date, so that equal states make equal files.
        for name, content in {_ABOUT: json.dumps(described, indent=1).encode(), **contents}.items():
            archive.writestr(zipfile.ZipInfo(name), bytes(content))


def _plain(archive: zipfile.ZipFile, file: Path) -> Iterable[zipfile.ZipInfo]:
    entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size for entry in entries):
        raise DamagedCheckpoint(f"{file} is not a checkpoint file: its members are compressed.{_foreign(file)}")
    return entries


def _about(file: Path, content: bytes) -> dict[str, Any]:
    try:
        about = json.loads(content[:_MOST_ABOUT])
        known = about["format"] == FORMAT and all(isinstance(entry, dict) for entry in about["files"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        known = False
    if not known:
        raise DamagedCheckpoint(f"{file} is not a checkpoint file: it has no readable {_ABOUT}.{_foreign(file)}")
    if about.get("version") != VERSION:
        raise DamagedCheckpoint(
            f"{file} is of version {about.get('version')!r:.20}, and version {VERSION} is read here. "
            "Use the version of this software that wrote it."
        )
    return dict(about)


def _foreign(file: Path) -> str:
    if file.suffix in (".pth", ".pt", ".ckpt"):
        return " If another program wrote it, make it the start of a run: mltrain import FILE."
    return ""
