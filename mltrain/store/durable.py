"""Files that survive a power cut: flushed, and visible under their names only when they are complete.

Nothing else in mltrain flushes or renames. A file or folder is written under a temporary name, flushed, renamed, and then the
folder that holds it is flushed. Whatever instant the power fails, the name stands for the old content or for the new one.
"""

import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from mltrain.errors import StorageError
from mltrain.store.direct import write_cached, write_direct
from mltrain.store.removal import discard_staged, discard_temporary

_PROBE = re.compile(r"\.probe\.[0-9a-f]{8}\.tmp", re.ASCII)


def write_file(file: Path, content: Iterable[bytes | memoryview], *, cached: bool = True) -> tuple[int, str]:
    """Write a new file, hash it on the way and flush it to the disk; return its size in bytes and its SHA-256.

    Args:
        file: to write.
        content: in pieces.
        cached: whether somebody reads it soon. Otherwise most of a large file goes past the system's cache, where the
            filesystem allows that: it takes a third of the processor time.

    Raises:
        StorageError: the disk is full or fails, or the file exists.
    """
    digest, write = hashlib.sha256(), write_cached if cached else write_direct
    try:
        with file.open("xb", buffering=0) as opened:
            size = write(opened.fileno(), content, digest.update)
            os.fsync(opened.fileno())
    except OSError as error:
        raise refused(file, error) from error
    return size, digest.hexdigest()


def rename_folder(folder: Path, target: Path, guard: Callable[[], None]) -> None:
    """Make a folder durable, and give it its final name at once with all that is in it.

    Args:
        folder: whose files have been flushed.
        target: its name, which nothing has yet; on another filesystem it is copied.
        guard: called last before that; what it raises, this raises.

    Raises:
        StorageError: the disk is full or fails, or ``target`` exists.
    """
    try:
        _fsync_folder(folder)
        _make_folder(target.parent)
        guard()
        _rename_folder(folder, target)
    except OSError as error:
        raise refused(target, error) from error
    try:
        _fsync_folder(target.parent)
    except OSError as error:
        # It has its name, but whether that outlives a power cut nobody knows, and a second flush would not tell: the
        # system forgets what it failed to write. So it goes, and is written anew.
        with suppress(StorageError):
            discard_staged(target)
        raise refused(target, error) from error


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, each of them durable.

    Raises:
        StorageError: the disk refuses.
    """
    try:
        _make_folder(folder)
    except OSError as error:
        raise refused(folder, error) from error


def probe(folder: Path) -> None:
    """Make sure that files in a folder can be written and made durable, and that the folder itself is.

    The file of an earlier probe that was killed is removed; a probe that runs at the same time does not miss its file.

    Raises:
        StorageError: they cannot: it is read-only, full, not allowed, or fails.
    """
    try:
        _make_folder(folder)
        for above in (folder, *folder.absolute().parents):
            with suppress(OSError):  # what others made of the way to it may be theirs
                _fsync_folder(above)
    except OSError as error:
        raise refused(folder, error) from error
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
        raise refused(folder, error) from error


def replace_file(target: Path, content: bytes) -> None:
    """Write a small file so that its name always stands for a complete content.

    Raises:
        StorageError: the disk is full or fails.
    """
    with replacing(target) as file:
        file.write(content)


@contextmanager
def replacing(target: Path) -> Iterator[BinaryIO]:
    """Yield a new file that takes a name once its block has ended, so that the name always stands for a complete content.

    Raises:
        StorageError: the disk is full or fails.
    """
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        _make_folder(target.parent)
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
        _fsync_folder(target.parent)
    except BaseException as error:
        with suppress(OSError):
            discard_temporary(temporary)
        if isinstance(error, OSError):
            raise refused(target, error) from error
        raise


def place_file(file: Path, target: Path, guard: Callable[[], None] = lambda: None) -> None:
    """Make a file durable and give it its final name, in place of whatever file has that name.

    Args:
        file: complete and closed, beside ``target``.
        target: its name.
        guard: called last before that; what it raises, this raises.

    Raises:
        StorageError: the disk is full or fails.
    """
    try:
        _fsync(file, os.O_RDWR)
        guard()
        file.replace(target)
        _fsync_folder(target.parent)
    except OSError as error:
        raise refused(target, error) from error


def link_or_copy(file: Path, target: Path) -> None:
    """Let a second name beside a file stand for its content, at once: by a hard link, or by a copy where there are none.

    Raises:
        StorageError: the disk is full or fails.
    """
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            os.link(file, temporary)
        except OSError:  # a filesystem without hard links; what else is wrong stops the copy as well
            shutil.copyfile(file, temporary)
            _fsync(temporary, os.O_RDWR)
        temporary.replace(target)
        _fsync_folder(target.parent)
    except OSError as error:
        raise refused(target, error) from error
    finally:
        with suppress(OSError):
            discard_temporary(temporary)


def set_aside(path: Path, why: str = "damaged", *, beside: Sequence[str] = ()) -> Path:
    """Rename something, so that it is kept for people; return where it is now.

    Args:
        path: of a file or folder.
        why: a word for its new name.
        beside: ends of the names of files that belong to it, and go with it.

    Raises:
        StorageError: the disk refuses.
    """
    aside = path.with_name(f"{path.name}.{why}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}")
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
        raise refused(path, error) from error


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


def refused(path: Path, error: OSError) -> StorageError:
    """Return the error that names what a disk refused, and what helps."""
    advice = {
        errno.ENOSPC: "Free some space on that disk; older checkpoints were not touched.",
        errno.EDQUOT: "Free some of your quota; older checkpoints were not touched.",
        errno.EROFS: "Mount it writable, or set MLTRAIN_HOME to a folder that is.",
        errno.EACCES: "Give this user the right to write there, or set MLTRAIN_HOME to a folder that it may write.",
    }.get(error.errno or 0, "Check that disk; older checkpoints were not touched.")
    return StorageError(f"{path} could not be written: {error.strerror or error}. {advice}")
