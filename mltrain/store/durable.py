"""Files that survive a power cut.

No other module of mltrain flushes or renames. A file or folder is written under a temporary name, flushed and renamed, and then
its parent folder is flushed. A power failure at any moment leaves either the old content or the new one under the name.
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

from mltrain.errors import StorageError
from mltrain.store.direct import write_cached, write_direct
from mltrain.store.removal import discard_staged, discard_temporary, mark_in_use

_PROBE = re.compile(r"\.probe\.[0-9a-f]{8}\.tmp", re.ASCII)


def write_file(file: Path, content: Iterable[bytes | memoryview], *, cached: bool = True) -> tuple[int, str]:
    """Write, hash and flush a new file.

    Returns its size in bytes and its SHA-256.

    Args:
        file: to write.
        content: in pieces.
        cached: whether the file is read soon. If not, most of a large file bypasses the page cache where the filesystem
            supports that, which takes a third of the processor time.

    Raises:
        StorageError: the disk is full or fails, or the file exists.
    """
    digest, write = hashlib.sha256(), write_cached if cached else write_direct
    with _refusing(file), file.open("xb", buffering=0) as opened:
        size = write(opened.fileno(), content, digest.update)
        os.fsync(opened.fileno())
    return size, digest.hexdigest()


def rename_folder(folder: Path, target: Path, guard: Callable[[], None]) -> None:
    """Flush a folder and rename it with its content.

    Args:
        folder: its files have been flushed already.
        target: the final path, which must not exist; on another filesystem the folder is copied.
        guard: called right before the rename; its errors are raised.

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
        # The renamed folder may not survive a power cut, and a second flush would not tell: the system forgets failed
        # writes. So it is removed, to be written again.
        with suppress(StorageError):
            discard_staged(target)
        raise refused(target, error) from error


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, each of them flushed.

    Raises:
        StorageError: the disk refuses.
    """
    with _refusing(folder):
        _make_folder(folder)


def probe(folder: Path) -> None:
    """Check that a folder takes durable files.

    The file of an earlier probe that was killed is removed. Probes may run at the same time.

    Raises:
        StorageError: the folder is read-only, full or forbidden, or its disk fails.
    """
    try:
        _make_folder(folder)
        for above in (folder, *folder.absolute().parents):
            with suppress(OSError):  # a parent may belong to another user
                _fsync_folder(above)
    except OSError as error:
        raise refused(folder, error) from error
    temporary = folder / f".probe.{secrets.token_hex(4)}.tmp"
    try:
        for earlier in [file for file in folder.iterdir() if _PROBE.fullmatch(file.name)]:
            with suppress(OSError):  # it may belong to another user
                discard_temporary(earlier)
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
    """Write a small file atomically.

    Its name always refers to a complete content.

    Raises:
        StorageError: the disk is full or fails.
    """
    with replacing(target) as write:
        write(content)


@contextmanager
def replacing(target: Path) -> Iterator[Callable[[bytes | bytearray], None]]:
    """Yield a function that writes the next content of ``target``.

    The file is replaced after the block; its name always refers to a complete content. Errors of the block are raised.

    Raises:
        StorageError: the disk is full or fails.
    """
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")

    def write(content: bytes | bytearray) -> None:
        with _refusing(target):
            write_cached(file.fileno(), [memoryview(content)], lambda piece: None)
            os.fsync(file.fileno())

    try:
        with _refusing(target):
            _make_folder(target.parent)
            file = temporary.open("xb", buffering=0)
        with file:
            mark_in_use(file)
            yield write
            with _refusing(target):
                if os.name != "posix":
                    file.close()  # Windows renames no open file
                temporary.replace(target)
                _fsync_folder(target.parent)
    except BaseException:
        with suppress(OSError):
            discard_temporary(temporary)
        raise


def place_file(file: Path, target: Path, guard: Callable[[], None] = lambda: None) -> None:
    """Flush a file and rename it, replacing an existing file.

    Args:
        file: complete and closed, beside ``target``.
        target: the final path.
        guard: called right before the rename; its errors are raised.

    Raises:
        StorageError: the disk is full or fails.
    """
    with _refusing(target):
        _fsync(file, os.O_RDWR)
        guard()
        file.replace(target)
        _fsync_folder(target.parent)


def link_or_copy(file: Path, target: Path) -> None:
    """Give a file a second name, replacing an existing file.

    It is a hard link, or a copy on a filesystem without hard links.

    Raises:
        StorageError: the disk is full or fails.
    """
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            os.link(file, temporary)
        except OSError:  # no hard links here; any other fault fails the copy as well
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
    """Rename a file or folder to keep it for inspection.

    Returns its new path.

    Args:
        path: of a file or folder.
        why: a word for its new name.
        beside: suffixes of companion files that are renamed with it.

    Raises:
        StorageError: the disk refuses.
    """
    aside = path.with_name(f"{path.name}.{why}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}")
    put_back(path, aside, beside=beside)
    return aside


def put_back(aside: Path, path: Path, *, beside: Sequence[str] = ()) -> None:
    """Restore the name of a file that was set aside.

    An existing file is replaced.

    Raises:
        StorageError: the disk refuses.
    """
    with _refusing(path):
        aside.replace(path)
        for end in beside:
            source = aside.with_name(aside.name + end)
            if os.path.lexists(source):
                source.replace(path.with_name(path.name + end))


def _rename_folder(source: Path, target: Path) -> None:
    if target.exists():
        raise FileExistsError(errno.EEXIST, "a checkpoint of this attempt and step exists already", str(target))
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # Across filesystems: copy beside the target first, so that the rename stays within one.
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
    """Create a folder and its parents, each of them flushed."""
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


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise refused(path, error) from error


def refused(path: Path, error: OSError) -> StorageError:
    """Return the error for a failed write, with advice."""
    advice = {
        errno.ENOSPC: "Free some space on that disk; older checkpoints were not touched.",
        errno.EDQUOT: "Free some of your quota; older checkpoints were not touched.",
        errno.EROFS: "Mount it writable, or set MLTRAIN_HOME to a writable folder.",
        errno.EACCES: "Give this user write permission, or set MLTRAIN_HOME to a writable folder.",
    }.get(error.errno or 0, "Check that disk; older checkpoints were not touched.")
    return StorageError(f"{path} could not be written: {error.strerror or error}. {advice}")
