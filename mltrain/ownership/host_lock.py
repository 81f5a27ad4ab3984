"""Limits a run to one writer on this host."""

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock

from mltrain.errors import RunHeld, StorageError
from mltrain.ownership import liveness
from mltrain.ownership.run_folder import known_home
from mltrain.store.durable import replace_file, set_aside
from mltrain.store.folders import filesystem_of
from mltrain.tracking.client import TrackingClient

log = logging.getLogger(__name__)

_HOLDER_FILE = "holder.json"
_RECORD_SECONDS = 2.0
_LOCAL_FILESYSTEMS = frozenset(
    ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "overlay", "apfs", "hfs", "ntfs", "refs")
)
"""Filesystems that surely release a lock when its holder ends; those shared over a network or with a host may not."""


def lock_file(file: Path) -> filelock.BaseFileLock:
    """Return a file lock that is not acquired yet.

    A folder or broken link in the place of the file is renamed first.

    Raises:
        StorageError: the disk refuses.
    """
    if file.is_dir() or (file.is_symlink() and not file.exists()):
        log.warning(
            "%s is not a file. It was renamed to %s, and a new file takes its place.", file, set_aside(file).name
        )
    return filelock.FileLock(file)


def take_lock(home: Path, run_id: str, take_over: bool) -> filelock.BaseFileLock:
    """Acquire the lock of a run's writer on this host.

    Args:
        home: folder of the run.
        run_id: of the run.
        take_over: whether to go on without the lock if another process has it.

    Raises:
        RunHeld: another process has the lock, and ``take_over`` is false.
        StorageError: the lock file cannot be created.
    """
    lock = lock_file(home / "lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if not take_over:
            holder = _recorded_holder(home)
            name = f"process {holder['pid']}" if holder else "another process"
            raise RunHeld(
                f"Run {run_id} is being written by {name} on this machine. Expected one writer. "
                f"Try: {liveness.advice(holder)}"
            ) from None
    except OSError as error:
        raise StorageError(
            f"{lock.lock_file} cannot be created: {error.strerror}. Expected a writable folder. Try: MLTRAIN_HOME=FOLDER"
        ) from error
    with suppress(StorageError):
        replace_file(home / _HOLDER_FILE, json.dumps(liveness.own()).encode())
    return lock


@contextmanager
def lock_if_here(server: TrackingClient, run_id: str) -> Iterator[None]:
    """Hold a run's lock if it has a folder here.

    Raises:
        RunHeld: a process on this host writes to the run, or sends its backlog.
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
    """Whether a holder on this host has released its lock.

    The kernel releases the lock when the process ends, also one of another container or an earlier boot. ``False`` if the
    filesystem does not guarantee that.
    """
    home = known_home(server, run_id)
    try:
        if not liveness.same(json.loads((home / _HOLDER_FILE).read_text(encoding="utf-8")), holder):
            return False
        if filesystem_of(home) not in _LOCAL_FILESYSTEMS:
            return False
        with filelock.FileLock(home / "lock", timeout=0):
            return True
    except (OSError, ValueError, AttributeError):  # filelock.Timeout is an OSError, too
        return False


def _recorded_holder(home: Path) -> Mapping[str, Any]:
    """Return the holder's identity, empty if it is unknown.

    The record is read again while it is still that of the previous holder.
    """
    deadline = time.monotonic() + _RECORD_SECONDS
    while time.monotonic() < deadline:
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            holder: Any = json.loads((home / _HOLDER_FILE).read_text(encoding="utf-8"))
            if liveness.is_alive(holder) is not False:
                return {**holder, "pid": int(holder["pid"])}
        time.sleep(0.05)
    return {}
