"""Local staging: checkpoints are written here, made durable, and renamed into place. Only this module fsyncs and renames.

A checkpoint is staged in a folder with a name of its own (``step-…-a….<random>.tmp``), every file is flushed to the disk,
the manifest is written last, the folder is flushed, renamed, and its parent flushed. Whatever instant the power fails,
there is either the complete checkpoint or something that does not look like one.
"""

import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from mltrain.checkpoint.manifest import FILE_NAME, CheckpointId, FileEntry, Manifest
from mltrain.errors import StorageError
from mltrain.tracking.artifacts import discard_staged, discard_temporary, is_litter

_PROBE = re.compile(r"\.probe\.[0-9a-f]{8}\.tmp", re.ASCII)


class Spool:
    """A folder for staged checkpoints of one run.

    Raises:
        StorageError: the folder cannot be made or written to.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            _make_folder(root)
        except OSError as error:
            raise _refused(root, error) from error

    def staging(self, identity: CheckpointId) -> "Staging":
        """Begin to stage a checkpoint."""
        return Staging(self.root / f"{identity.name}.{secrets.token_hex(4)}.tmp")

    def complete(self) -> list[Path]:
        """Return the folders of checkpoints that are committed here, in the order of their names."""
        try:
            return sorted(f for f in self.root.iterdir() if CheckpointId.parse(f.name) and (f / FILE_NAME).is_file())
        except OSError as error:
            raise StorageError(f"{self.root} cannot be listed: {error.strerror}. Check that disk.") from error

    def discard_litter(self) -> int:
        """Remove what interrupted stagings left; only for who holds the run. Return how many there were."""
        try:
            litter = [folder for folder in self.root.iterdir() if is_litter(folder)]
        except OSError as error:
            raise StorageError(f"{self.root} cannot be listed: {error.strerror}. Check that disk.") from error
        for folder in litter:
            discard_staged(folder)
        return len(litter)


class Staging:
    """A checkpoint being written. Leaving the block without :meth:`commit` removes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, FileEntry] = {}
        self._committed = False

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir()
        except OSError as error:
            raise _refused(self.folder.parent, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._committed:
            discard_staged(self.folder)

    def write(self, name: str, content: Iterable[bytes | memoryview]) -> FileEntry:
        """Write a file, hash it on the way and flush it to the disk.

        Raises:
            StorageError: the disk is full or fails.
        """
        digest, size = hashlib.sha256(), 0
        try:
            with (self.folder / name).open("xb", buffering=0) as file:
                for piece in content:
                    digest.update(piece)
                    size += _write_all(file.fileno(), piece)
                os.fsync(file.fileno())
        except OSError as error:
            raise _refused(self.folder / name, error) from error
        self.files[name] = FileEntry(size=size, sha256=digest.hexdigest())
        return self.files[name]

    def commit(self, manifest: Manifest, target: Path, guard: Callable[[], None] = lambda: None) -> Path:
        """Write the manifest, make everything durable, and rename the folder to ``target``.

        Args:
            manifest: of the checkpoint.
            target: where it becomes visible.
            guard: called last before that; what it raises, this raises.

        Raises:
            StorageError: the disk is full or fails, or ``target`` exists.
        """
        self.write(FILE_NAME, [manifest.to_json()])
        del self.files[FILE_NAME]
        try:
            _fsync_folder(self.folder)
            _make_folder(target.parent)
            guard()
            _rename_folder(self.folder, target)
        except OSError as error:
            raise _refused(target, error) from error
        try:
            _fsync_folder(target.parent)
        except OSError as error:
            # It has its name, but whether that outlives a power cut nobody knows, and a second flush would not tell: the
            # system forgets what it failed to write. So it goes, and is written anew.
            with suppress(StorageError):
                discard_staged(target)
            raise _refused(target, error) from error
        self._committed = True
        return target


def probe(folder: Path) -> None:
    """Make sure that files in a folder can be written and made durable, and that the folder itself is.

    What an earlier one left that was killed is removed; one of somebody who is at it just now is not missed by him.

    Raises:
        StorageError: they cannot: it is read-only, full, not allowed, or fails.
    """
    try:
        _make_folder(folder)
        for above in (folder, *folder.absolute().parents):
            with suppress(OSError):  # what others made of the way to it may be theirs
                _fsync_folder(above)
    except OSError as error:
        raise _refused(folder, error) from error
    temporary = folder / f".probe.{secrets.token_hex(4)}.tmp"
    try:
        for left in [file for file in folder.iterdir() if _PROBE.fullmatch(file.name)]:
            with suppress(OSError):  # of somebody else
                discard_temporary(left)
        with temporary.open("xb") as file:
            file.write(b"probe")
            file.flush()
            os.fsync(file.fileno())
        discard_temporary(temporary)
    except OSError as error:
        with suppress(OSError):
            discard_temporary(temporary)
        raise _refused(folder, error) from error


def readdressed(folder: Path, run_id: str) -> Manifest:
    """Write the true id of a run into the manifest of a checkpoint that was staged before the run had one; return it.

    Raises:
        StorageError: the disk refuses.
        DamagedCheckpoint: the manifest is not as it was written.
    """
    content = (folder / FILE_NAME).read_bytes()
    manifest = Manifest.from_json(content, name=folder.name).model_copy(update={"run_id": run_id})
    replace_file(folder / FILE_NAME, manifest.to_json())
    return manifest


def replace_file(target: Path, content: bytes) -> None:
    """Write a small file so that its name always stands for a complete content.

    Raises:
        StorageError: the disk is full or fails.
    """
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        _make_folder(target.parent)
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
        _fsync_folder(target.parent)
    except OSError as error:
        with suppress(OSError):
            discard_temporary(temporary)
        raise _refused(target, error) from error


def set_aside(path: Path, *, beside: Sequence[str] = ()) -> Path:
    """Rename something damaged, so that it is kept for people; return where it is now.

    Args:
        path: of a file or folder.
        beside: ends of the names of files that belong to it, and go with it.

    Raises:
        StorageError: the disk refuses.
    """
    aside = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}")
    put_back(path, aside, beside=beside)
    return aside


def put_back(aside: Path, path: Path, *, beside: Sequence[str] = ()) -> None:
    """Give what was set aside its name back, in place of whatever has that name now.

    Raises:
        StorageError: the disk refuses.
    """
    try:
        aside.replace(path)
        for end in beside:
            source = aside.with_name(aside.name + end)
            if os.path.lexists(source):
                source.replace(path.with_name(path.name + end))
    except OSError as error:
        raise _refused(path, error) from error


def _write_all(descriptor: int, piece: bytes | memoryview) -> int:
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    return len(piece)


def _rename_folder(source: Path, target: Path) -> None:
    if target.exists():
        raise FileExistsError(errno.EEXIST, "a checkpoint of this attempt and step exists already", str(target))
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # Another filesystem: copy beside the target first, so that the rename is within one.
        beside = target.parent / source.name
        try:
            shutil.copytree(source, beside)
            for file in beside.iterdir():
                _fsync(file, os.O_RDWR)
            _fsync_folder(beside)
            beside.rename(target)
        except OSError:
            discard_staged(beside)
            raise
        discard_staged(source)


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, each of them durable."""
    made = []
    for place in (folder, *folder.parents):
        if place.exists():
            break
        made.append(place)
    folder.mkdir(parents=True, exist_ok=True)
    for place in reversed(made):
        _fsync_folder(place.parent)


def _fsync_folder(folder: Path) -> None:
    if os.name == "posix":  # Windows neither needs nor allows it
        _fsync(folder, os.O_RDONLY)


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refused(path: Path, error: OSError) -> StorageError:
    advice = {
        errno.ENOSPC: "Free some space on that disk; older checkpoints were not touched.",
        errno.EDQUOT: "Free some of your quota; older checkpoints were not touched.",
        errno.EROFS: "Mount it writable, or set MLTRAIN_HOME to a folder that is.",
        errno.EACCES: "Give this user the right to write there, or set MLTRAIN_HOME to a folder that it may write.",
    }.get(error.errno or 0, "Check that disk; older checkpoints were not touched.")
    return StorageError(f"{path} could not be written: {error.strerror or error}. {advice}")
