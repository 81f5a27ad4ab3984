"""The lock that makes one process of this host the writer of a run."""

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import psutil

from mltrain.errors import RunHeld, StorageError
from mltrain.ownership import liveness
from mltrain.ownership.run_folder import known_home
from mltrain.store.durable import replace_file, set_aside
from mltrain.tracking.client import TrackingClient

log = logging.getLogger(__name__)

_HOLDER_FILE = "holder.json"
_RECORD_SECONDS = 2.0
_OF_ONE_KERNEL = frozenset(
    ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "overlay", "apfs", "hfs", "ntfs", "refs")
)
"""Filesystems whose locks are known to be released when their holder ends; on those of a network or a host this is not sure."""


def lock_file(file: Path) -> filelock.BaseFileLock:
    """Return a lock on this host, not taken; what is in its place and no file is set aside.

    Raises:
        StorageError: the disk refuses.
    """
    if file.is_dir() or (file.is_symlink() and not file.exists()):
        log.warning("%s is no file. It is kept as %s, and a new one takes its place.", file, set_aside(file).name)
    return filelock.FileLock(file)


def take_lock(home: Path, run_id: str, take_over: bool) -> filelock.BaseFileLock:
    """Take the lock that the one writer of a run has on this host.

    Raises:
        RunHeld: another process has it, and it is not to be taken over.
        StorageError: it cannot be made.
    """
    lock = lock_file(home / "lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if not take_over:
            holder = _recorded_holder(home)
            raise RunHeld(
                f"Run {run_id} is being written by {holder} on this machine. "
                "Stop that one first, or take the run over with --take-over."
            ) from None
    except OSError as error:
        raise StorageError(
            f"{lock.lock_file} cannot be made: {error.strerror}. Set MLTRAIN_HOME to a folder that is writable."
        ) from error
    with suppress(StorageError):
        replace_file(home / _HOLDER_FILE, json.dumps(liveness.own()).encode())
    return lock


@contextmanager
def lock_if_here(server: TrackingClient, run_id: str) -> Iterator[None]:
    """Hold the lock of a run's writer, where the run was ever written to from this host.

    Raises:
        RunHeld: somebody here is writing to it, or sending what was left behind.
    """
    home = known_home(server, run_id)
    if not home.is_dir():
        yield
        return
    lock = lock_file(home / "lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise RunHeld(f"Run {run_id} is being written by another process on this machine.") from None
    try:
        yield
    finally:
        lock.release()


def has_ended(server: TrackingClient, run_id: str, holder: Mapping[str, Any]) -> bool:
    """Whether a process that wrote to a run from this home has ended: then the kernel has released its lock.

    This holds for processes of other containers and of earlier boots as well, but only where the lock is on a disk that one
    kernel has for itself.
    """
    home = known_home(server, run_id)
    try:
        if not liveness.same(json.loads((home / _HOLDER_FILE).read_text(encoding="utf-8")), holder):
            return False
        if _filesystem(home) not in _OF_ONE_KERNEL:
            return False
        with filelock.FileLock(home / "lock", timeout=0):
            return True
    except (OSError, ValueError, AttributeError):  # a lock that is held is an OSError, too
        return False


def _filesystem(place: Path) -> str:
    mounts = [mount for mount in psutil.disk_partitions(all=True) if place.resolve().is_relative_to(mount.mountpoint)]
    return max(mounts, key=lambda mount: len(mount.mountpoint)).fstype.lower() if mounts else ""


def _recorded_holder(home: Path) -> str:
    """Name the holder; where it has taken the lock this instant, the record may still be of the one before it."""
    deadline = time.monotonic() + _RECORD_SECONDS
    while time.monotonic() < deadline:
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            holder: Any = json.loads((home / _HOLDER_FILE).read_text(encoding="utf-8"))
            if liveness.is_alive(holder) is not False:
                return f"process {int(holder['pid'])}"
        time.sleep(0.05)
    return "another process"
