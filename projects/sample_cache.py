"""Sample data, written once to the user's cache folder."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import platformdirs
from filelock import FileLock

from mltrain.errors import DataError


def cache_folder() -> Path:
    """Return ``$MLTRAIN_CACHE``, or the user's cache folder on this platform."""
    return Path(os.environ.get("MLTRAIN_CACHE") or platformdirs.user_cache_dir("mltrain"))


def write_once(cache: Path, name: str, write: Callable[[Path], None]) -> Path:
    """Return the folder ``cache/name``; ``write`` fills it once.

    The folder appears complete or not at all: it is filled under another name and renamed. A lock lets one process
    write while others wait, so any unfinished folder found under the lock was left by a process that died.

    Args:
        cache: the folder of all sample data; created if it is missing.
        name: of the data set, with a number that changes when its files do. Older folders are ignored.
        write: fills an empty folder with the data set.

    Raises:
        DataError: the cache cannot be written to.
    """
    folder = cache / name
    if folder.is_dir():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f".{name}.lock"):
            if not folder.is_dir():
                for abandoned in cache.glob(f".{name}.partial-*"):
                    shutil.rmtree(abandoned)
                _fill(folder, Path(tempfile.mkdtemp(prefix=f".{name}.partial-", dir=cache)), write)
    except OSError as error:
        raise DataError(
            f"The sample data cannot be written to {folder}: {error.strerror or error}. "
            "Name another folder in the environment variable MLTRAIN_CACHE, or train on data of your own."
        ) from error
    return folder


def _fill(folder: Path, unfinished: Path, write: Callable[[Path], None]) -> None:
    try:
        write(unfinished)
        unfinished.chmod(0o755)  # mkdtemp makes it private; the cache may be shared
        unfinished.replace(folder)
    except BaseException:
        shutil.rmtree(unfinished)
        raise
