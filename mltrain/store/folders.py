"""Folders of this host: mltrain's own, writability, and filesystem."""

import os
import tempfile
from pathlib import Path

import platformdirs
import psutil

from mltrain.errors import StorageError, UsageError


def refuse_unwritable(folder: Path, remedy: str) -> None:
    """Raise an error for a folder that cannot be written.

    Nothing is created but a temporary file without a name: permissions alone do not show that ``/proc`` takes no files.

    Raises:
        StorageError: the path, or its nearest existing parent, is not a folder or takes no files.
    """
    place = next(above for above in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(above))
    if not place.is_dir():
        raise StorageError(f"{folder} cannot be written: {place} is not a folder. {remedy}")
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {place}: {error.strerror or error}. {remedy}") from error


def state_folder() -> Path:
    """Return mltrain's base folder on this host.

    It is ``MLTRAIN_HOME``, or the user's state folder.
    """
    base = os.environ.get("MLTRAIN_HOME") or platformdirs.user_state_dir("mltrain", appauthor=False)
    return expanded(base)


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return a path with ``~`` replaced by the home folder.

    Raises:
        UsageError: that user has no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(
            f"{str(path)!r:.80} is not a valid path: {error} Expected ~ alone, or ~ with the name of a user."
        ) from None


def filesystem_of(folder: Path) -> str:
    """Return the filesystem type of a folder, in lower case."""
    place = Path(os.path.realpath(folder))
    mounts = [mount for mount in psutil.disk_partitions(all=True) if place.is_relative_to(mount.mountpoint)]
    return max(mounts, key=lambda mount: len(mount.mountpoint)).fstype.lower() if mounts else "unknown filesystem"
