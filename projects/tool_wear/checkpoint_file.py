"""A whole checkpoint in one file, for training without a tracking server.

The file is an uncompressed ZIP archive: ``about.json`` with format, versions, and size and SHA-256 of every other member; the
members are those of any checkpoint of mltrain (``model.safetensors``, ``state.safetensors``, ``state.json``; see
:mod:`mltrain.checkpoint.codec`). Nothing in it can be executed, and nothing is read before all digests have matched.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mltrain.checkpoint import codec
from mltrain.checkpoint.snapshot import HostBuffers, snapshot
from mltrain.errors import DamagedCheckpoint, NoCheckpoint
from mltrain.provenance import fingerprint
from mltrain.store.durable import replace_file

FORMAT = "mltrain checkpoint file"
VERSION = 1

_ABOUT = "about.json"
_MOST_ABOUT = 2**20


def write(file: Path, state: Mapping[str, Any]) -> None:
    """Write a state of tensors and plain values. The file's name always stands for a complete checkpoint.

    Raises:
        UnsupportedValue: the state holds something else; the message names the path to it.
        StorageError: the disk refuses.
    """
    encoded = codec.encode(snapshot(state, HostBuffers()))
    members = {member.name: b"".join(member.content) for member in encoded.files}
    about = {
        "format": FORMAT,
        "version": VERSION,
        "versions": fingerprint.versions(),
        "files": {
            name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in members.items()
        },
    }
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        # A ZipInfo of its own has a fixed date, so that equal states make equal files.
        for name, content in {_ABOUT: json.dumps(about, indent=1).encode(), **members}.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    replace_file(file, stream.getvalue())


def read(file: Path, device: torch.device | None = None) -> dict[str, Any]:
    """Return the state that :func:`write` wrote, its tensors on ``device`` (the CPU if ``None``).

    Raises:
        NoCheckpoint: there is no such file.
        DamagedCheckpoint: it is not a checkpoint file, of a later version, or not as it was written.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = {entry.filename: archive.read(entry) for entry in _plain(archive, file)}
    except FileNotFoundError:
        raise NoCheckpoint(f"There is no checkpoint {file}.{_beside(file)}") from None
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise DamagedCheckpoint(f"{file} is not a checkpoint file, or is damaged: {error}.{_foreign(file)}") from None
    about = _about(file, members.pop(_ABOUT, b""))
    listed = about["files"]
    if listed.keys() != members.keys():
        raise DamagedCheckpoint(f"{file} holds {sorted(members)}, and should hold {sorted(listed)}.")
    for name, content in members.items():
        if hashlib.sha256(content).hexdigest() != listed[name].get("sha256"):
            raise DamagedCheckpoint(
                f"{file}: {name} is not as it was written; its SHA-256 is another. Use an older copy."
            )
    return codec.decode(members, device)


def _plain(archive: zipfile.ZipFile, file: Path) -> list[zipfile.ZipInfo]:
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


def _beside(file: Path) -> str:
    if not file.parent.is_dir():
        return f" There is no folder {file.parent} either."
    names = sorted(other.name for other in file.parent.iterdir() if other.is_file())[:10]
    return f" In {file.parent.resolve()} there are: {', '.join(names)}." if names else ""
