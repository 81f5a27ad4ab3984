"""A checkpoint as one uncompressed ZIP file, manifest last.

The members are the files of a checkpoint folder (``mltrain/data/model.safetensors``, ``mltrain/data/state.json``, …), so
``unzip`` takes it apart, and the manifest's digests apply. A file that a training exports describes the project in
``mltrain/about.json``. Version 1 had its members at the top level, beside ``about.json``; such files can still be read.
"""

import hashlib
import json
import os
import secrets
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mltrain.checkpoint.manifest import CheckpointId, FileEntry
from mltrain.checkpoint.staging import Staging
from mltrain.errors import DamagedCheckpoint
from mltrain.store.artifacts import Received, unwatched
from mltrain.store.durable import place_file, refused
from mltrain.store.local import open_safely, read_hashed
from mltrain.store.removal import discard_temporary

ABOUT = "about.json"
"""The member that describes the file in addition to its manifest."""
MOST_ABOUT = 2**20

_TOP = "mltrain/"
_MEMBERS = f"{_TOP}data/"
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_UNREADABLE = (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError, EOFError, OverflowError)


def is_packed(file: Path) -> bool | None:
    """Return whether a file begins as a packed checkpoint.

    Returns ``None`` for a file that neither torch nor mltrain writes.

    Raises:
        OSError: it cannot be read.
    """
    with file.open("rb") as opened:
        begin = opened.read(64)
    if begin[30:].startswith((_TOP.encode(), ABOUT.encode())):
        return True
    return False if begin.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04")) else None


def member_names(file: Path) -> list[str]:
    """Return the names of the files of a packed checkpoint.

    Raises:
        DamagedCheckpoint: it is truncated, or is not a packed checkpoint.
        OSError: it cannot be read.
    """
    try:
        with file.open("rb") as opened, zipfile.ZipFile(opened) as archive:
            names = [name for name in archive.namelist() if name not in (ABOUT, _TOP + ABOUT)]
            return [name.removeprefix(_MEMBERS) for name in names]
    except _UNREADABLE as error:
        raise DamagedCheckpoint(f"{file.name} is not a complete checkpoint: {error}") from None


def read_member(file: Path, name: str, most: int, received: Received = unwatched) -> bytearray:
    """Return a packed checkpoint's file, at most ``most`` bytes.

    The caller checks its digest. ``received`` is called with the bytes of each piece.

    Raises:
        FileNotFoundError: the checkpoint has no such file, or there is no checkpoint.
        DamagedCheckpoint: the file is larger or truncated, or the checkpoint is not a packed one.
    """
    try:
        with open(file, "rb", opener=open_safely) as opened, zipfile.ZipFile(opened) as archive:
            info = _found(archive, name)
            if info is None:
                raise FileNotFoundError(name)
            if info.compress_type != zipfile.ZIP_STORED:
                raise DamagedCheckpoint(f"{name} in {file.name} is compressed. Expected an uncompressed member.")
            if info.file_size > most:
                raise DamagedCheckpoint(f"{name} in {file.name} has {info.file_size} bytes. Expected at most {most}.")
            if not 0 <= info.header_offset < os.fstat(opened.fileno()).st_size:
                raise DamagedCheckpoint(f"{name} in {file.name} is not where the ZIP directory says.")
            opened.seek(info.header_offset)
            magic, length, extra = _LOCAL_HEADER.unpack(opened.read(_LOCAL_HEADER.size))
            opened.seek(length + extra, os.SEEK_CUR)
            content = read_hashed(opened, info.file_size, received) if magic == b"PK\x03\x04" else None
            if content is None:
                raise DamagedCheckpoint(f"{name} in {file.name} is truncated.")
            return content
    except _UNREADABLE as error:
        raise DamagedCheckpoint(f"{file.name} is not a complete checkpoint: {error}") from None


def _found(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo | None:
    version_1 = ABOUT in archive.NameToInfo
    return archive.NameToInfo.get(name if version_1 else _TOP + name if name == ABOUT else _MEMBERS + name)


class PackedStaging(Staging):
    """A packed checkpoint being written.

    Leaving the block without :meth:`commit` removes it.

    Args:
        folder: receives the file.
        identity: of the checkpoint.
    """

    def __init__(self, folder: Path, identity: CheckpointId) -> None:
        super().__init__(folder)
        self._temporary = folder / f".{identity.name}.{secrets.token_hex(4)}.tmp"
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        try:
            file = self._opened.enter_context(self._temporary.open("xb"))
            self._archive = self._opened.enter_context(zipfile.ZipFile(file, "w", zipfile.ZIP_STORED))
        except OSError as error:
            raise refused(self.folder, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._committed:
            with suppress(OSError, ValueError):
                self._opened.close()
            with suppress(OSError):
                discard_temporary(self._temporary)

    def write(self, name: str, content: Iterable[bytes | memoryview], *, cached: bool = True) -> None:
        """Write and hash a file; see :meth:`Staging.write`.

        It always goes through the system's cache.
        """
        self.files[name] = self._written(_MEMBERS + name, content)

    def describe(self, about: Mapping[str, Any]) -> None:
        """Write :data:`ABOUT`, which is not a checkpoint file."""
        self._written(_TOP + ABOUT, [json.dumps(about, indent=1).encode()])

    def _written(self, path: str, content: Iterable[bytes | memoryview]) -> FileEntry:
        digest, size = hashlib.sha256(), 0
        described = zipfile.ZipInfo(path)
        described.external_attr = 0o644 << 16  # readable when unzip extracts it
        try:
            with self._archive.open(described, "w", force_zip64=True) as member:
                for piece in content:
                    digest.update(piece)
                    size += member.write(piece)
        except OSError as error:
            raise refused(self._temporary, error) from error
        return FileEntry(size=size, sha256=digest.hexdigest())

    def _place(self, target: Path, guard: Callable[[], None]) -> None:
        try:
            self._opened.close()
        except OSError as error:
            raise refused(self._temporary, error) from error
        place_file(self._temporary, target, guard)
