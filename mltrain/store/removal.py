"""Removes files from the disks of this machine.

No other module of mltrain deletes. Only files and folders with known names are removed, never an arbitrary path. A checkpoint
loses its manifest before its data, so a crash leaves nothing that looks like a checkpoint.
"""

import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from mltrain.errors import StorageError
from mltrain.store.names import (
    CACHED,
    MANIFEST,
    MODEL,
    OUTBOX,
    OUTPUT,
    OUTPUT_RECORD,
    PACKED,
    RESTORED,
    STAGED,
    TEMPORARY,
    UNSETTLED,
)

if sys.platform != "win32":
    import fcntl

DEAD_SECONDS = 3600.0
"""A temporary file of an unused run that is older than this many seconds counts as abandoned."""


def output_name(name: str) -> str:
    """Return a stage output's name if it is valid.

    Raises:
        StorageError: it is not such a name.
    """
    if not OUTPUT.fullmatch(name):
        raise StorageError(f"{name!r:.80} is not the name of an output; nothing was removed.")
    return name


def refuse_unless_model(place: str, model_id: str) -> None:
    """Raise an error unless a path holds a LoggedModel's files.

    Raises:
        StorageError: it is another path.
    """
    place = place.rstrip("/")
    if not MODEL.fullmatch(model_id) or not place.endswith(f"/models/{model_id}/artifacts") or ".." in place:
        raise StorageError(f"{place} does not hold the files of the LoggedModel {model_id!r:.80}; nothing was removed.")


def is_half_staged(folder: Path) -> bool:
    """Whether this is a half-staged checkpoint."""
    return (
        STAGED.fullmatch(folder.name) is not None and folder.suffix == ".tmp" and stat.S_ISDIR(folder.lstat().st_mode)
    )


def discard_staged(folder: Path) -> None:
    """Remove a staged checkpoint, complete or not, manifest first."""
    remove_flat(folder, STAGED)


def discard_restored(folder: Path) -> None:
    """Remove a folder written for another trainer, and nothing else."""
    remove_flat(folder, RESTORED)


def discard_temporary(file: Path) -> None:
    """Remove a temporary file, and nothing else."""
    if not TEMPORARY.fullmatch(file.name):
        raise StorageError(f"{file} is not a temporary file; it was not removed.")
    file.unlink(missing_ok=True)


def mark_in_use(file: BinaryIO) -> None:
    """Protect an open temporary file from :func:`discard_abandoned`."""
    if sys.platform != "win32":
        with suppress(OSError):  # a filesystem without locks, where nothing is removed
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


def discard_abandoned(file: Path) -> None:
    """Remove a temporary file that no process has in use; see :func:`mark_in_use`."""
    with suppress(OSError), file.open("r+b") as opened:  # it may belong to another user, or be gone
        if sys.platform != "win32":
            fcntl.flock(opened.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            discard_temporary(file)
    if sys.platform == "win32":
        with suppress(OSError):  # Windows removes no open file
            discard_temporary(file)


def discard_packed(file: Path) -> None:
    """Remove a packed checkpoint, and nothing else.

    Raises:
        StorageError: it has another name, or the disk refuses.
    """
    if not PACKED.fullmatch(file.name):
        raise StorageError(f"{file.name!r} is not the name of a checkpoint; nothing was removed.")
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{file} could not be removed: {error.strerror or error}") from error


def discard_sent(file: Path) -> None:
    """Remove an uploaded picture from the outbox, and nothing else."""
    if OUTBOX not in (file.parent.name, file.parent.parent.name) or ".." in file.parts:
        raise StorageError(f"{file} is not in an outbox; it was not removed.")
    file.unlink(missing_ok=True)


def discard_unsettled(home: Path) -> None:
    """Remove the mark of a run without its status."""
    (home / UNSETTLED).unlink(missing_ok=True)


def discard_cached(folder: Path, file: Path) -> None:
    """Remove a stray file from a cached output.

    The output is a folder that is named by a SHA-256.
    """
    inside = file.relative_to(folder).parts if file.is_relative_to(folder) else ()
    if not CACHED.fullmatch(folder.name) or not inside or ".." in inside:
        raise StorageError(f"{file} is not in a cached output; it was not removed.")
    if any(parent.is_symlink() for parent in file.parents if parent.is_relative_to(folder)):
        raise StorageError(f"{file} is reached through a link; it was not removed.")
    file.unlink(missing_ok=True)


def discard_received(folder: Path) -> None:
    """Remove old temporary folders of killed downloads."""
    with suppress(OSError):
        for abandoned in folder.glob("mltrain-*"):
            newest = max(path.lstat().st_mtime for path in (abandoned, *abandoned.iterdir()))
            if not abandoned.is_symlink() and time.time() - newest > DEAD_SECONDS:
                shutil.rmtree(abandoned)  # does not follow links


def discard_empty(folders: Iterable[Path]) -> None:
    """Remove the folders that are empty, in the given order."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def remove_tree(folder: Path) -> None:
    """Remove a folder of plain files and folders.

    A link is removed, never its target.
    """
    try:
        if not stat.S_ISDIR(folder.lstat().st_mode):
            raise StorageError(f"{folder} is not a folder; nothing was removed.")
        (folder / OUTPUT_RECORD).unlink(missing_ok=True)
        for current, folders, names in os.walk(folder, topdown=False, followlinks=False):
            for name in names:
                (Path(current) / name).unlink(missing_ok=True)
            for name in folders:
                path = Path(current) / name
                if path.is_symlink():
                    path.unlink()
                else:
                    path.rmdir()
        folder.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"{folder.name} could not be removed completely: {error}") from error


def remove_flat(folder: Path, pattern: re.Pattern[str]) -> None:
    """Remove a flat checkpoint folder, its manifest first.

    Raises:
        StorageError: it has another name, is not a folder, or the disk refuses.
    """
    if not pattern.fullmatch(folder.name):
        raise StorageError(f"{folder.name!r} is not the name of a checkpoint; nothing was removed.")
    try:
        if not stat.S_ISDIR(folder.lstat().st_mode):
            raise StorageError(f"{folder} is not a folder; nothing was removed.")
        (folder / MANIFEST).unlink(missing_ok=True)
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    Path(entry.path).unlink(missing_ok=True)
        folder.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"{folder.name} could not be removed completely: {error}") from error
