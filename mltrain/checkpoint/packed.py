"""A checkpoint as one file: a ZIP archive of its files, stored and not compressed, the manifest last.

The members are those of a checkpoint folder (``mltrain/data/model.safetensors``, ``mltrain/data/state.json``, …), so ``unzip``
takes it apart, and every digest of the manifest counts here as well. A file that a training exports says in
``mltrain/about.json`` what was trained. Files of the first form had their members at the top, beside ``about.json``; they are
read as ever.
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

from mltrain.checkpoint.manifest import FILE_NAME, CheckpointId, FileEntry, Manifest
from mltrain.checkpoint.staging import Staging
from mltrain.errors import DamagedCheckpoint
from mltrain.store.durable import place_file, refused
from mltrain.store.local import open_safely
from mltrain.store.removal import discard_temporary

ABOUT = "about.json"
"""What a file says of itself beside its manifest."""
MOST_ABOUT = 2**20

_TOP = "mltrain/"
_MEMBERS = f"{_TOP}data/"
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_UNREADABLE = (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError, EOFError, OverflowError)


def is_packed(file: Path) -> bool | None:
    """Return whether a file begins as a packed checkpoint; ``None`` if it begins as nothing that torch or mltrain write.

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
        DamagedCheckpoint: it is cut short, or is no such file.
        OSError: it cannot be read.
    """
    try:
        with file.open("rb") as opened, zipfile.ZipFile(opened) as archive:
            names = [name for name in archive.namelist() if name not in (ABOUT, _TOP + ABOUT)]
            return [name.removeprefix(_MEMBERS) for name in names]
    except _UNREADABLE as error:
        raise DamagedCheckpoint(f"{file.name} is not a complete checkpoint: {error}") from None


def read_member(file: Path, name: str, most: int) -> bytearray:
    """Return the content of one file of a packed checkpoint, of at most ``most`` bytes. Its digest is the caller's to check.

    Raises:
        FileNotFoundError: the checkpoint has no such file, or there is no checkpoint.
        DamagedCheckpoint: it is larger, is cut short, or is no such file.
    """
    try:
        with open(file, "rb", opener=open_safely) as opened, zipfile.ZipFile(opened) as archive:
            info = _found(archive, name)
            if info is None:
                raise FileNotFoundError(name)
            if info.compress_type != zipfile.ZIP_STORED:
                raise DamagedCheckpoint(f"{name} in {file.name} is compressed, and checkpoints are not.")
            if info.file_size > most:
                raise DamagedCheckpoint(
                    f"{name} in {file.name} has {info.file_size} bytes; at most {most} were expected."
                )
            if not 0 <= info.header_offset < os.fstat(opened.fileno()).st_size:
                raise DamagedCheckpoint(f"{name} in {file.name} is not where its directory says.")
            opened.seek(info.header_offset)
            magic, length, extra = _LOCAL_HEADER.unpack(opened.read(_LOCAL_HEADER.size))
            opened.seek(length + extra, os.SEEK_CUR)
            content = bytearray(info.file_size)
            if magic != b"PK\x03\x04" or opened.readinto(content) != info.file_size:
                raise DamagedCheckpoint(f"{name} in {file.name} is cut short.")
            return content
    except _UNREADABLE as error:
        raise DamagedCheckpoint(f"{file.name} is not a complete checkpoint: {error}") from None


def _found(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo | None:
    first_form = ABOUT in archive.NameToInfo
    return archive.NameToInfo.get(name if first_form else _TOP + name if name == ABOUT else _MEMBERS + name)


class PackedStaging(Staging):
    """A packed checkpoint being written. Leaving the block without :meth:`commit` removes it.

    Args:
        folder: that receives it.
        identity: of the checkpoint.
        named: returns the name of its file, once its manifest is complete.
    """

    def __init__(self, folder: Path, identity: CheckpointId, named: Callable[[Manifest], str]) -> None:
        super().__init__(folder)
        self._temporary = folder / f".{identity.name}.{secrets.token_hex(4)}.tmp"
        self._named = named
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

    def write(self, name: str, content: Iterable[bytes | memoryview], *, cached: bool = True) -> FileEntry:
        """Write a file and hash it on the way, through the cache in any case; see :meth:`Staging.write`."""
        self.files[name] = self._written(_MEMBERS + name, content)
        return self.files[name]

    def describe(self, about: Mapping[str, Any]) -> None:
        """Write :data:`ABOUT`, which is no file of the checkpoint."""
        self._written(_TOP + ABOUT, [json.dumps(about, indent=1).encode()])

    def _written(self, path: str, content: Iterable[bytes | memoryview]) -> FileEntry:
        digest, size = hashlib.sha256(), 0
        described = zipfile.ZipInfo(path)
        described.external_attr = 0o644 << 16  # what unzip makes of it may be read
        try:
            with self._archive.open(described, "w", force_zip64=True) as member:
                for piece in content:
                    digest.update(piece)
                    size += member.write(piece)
        except OSError as error:
            raise refused(self._temporary, error) from error
        return FileEntry(size=size, sha256=digest.hexdigest())

    def commit(self, manifest: Manifest, target: Path, guard: Callable[[], None] = lambda: None) -> Path:
        """Write the manifest, make the file durable, and give it its name; see :meth:`Staging.commit`.

        Args:
            manifest: of the checkpoint.
            target: where a folder would become visible; a packed checkpoint has a name of its own.
            guard: called last before that; what it raises, this raises.
        """
        self.write(FILE_NAME, [manifest.to_json()])
        del self.files[FILE_NAME]
        place = self.folder / self._named(manifest)
        try:
            self._opened.close()
        except OSError as error:
            raise refused(self._temporary, error) from error
        place_file(self._temporary, place, guard)
        self._committed = True
        return place
