"""The folder on this host where a run is staged, journalled and locked."""

import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import platformdirs
import psutil

from mltrain import process
from mltrain.checkpoint.spool import replace_file
from mltrain.errors import RunHeld, StorageError
from mltrain.tracking.server import RUN_ID, Server

_HOLDER_FILE = "holder.json"
_RECORD_SECONDS = 2.0
_OF_ONE_KERNEL = frozenset(
    ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "overlay", "apfs", "hfs", "ntfs", "refs")
)
"""Filesystems whose locks are known to be released when their holder ends; on those of a network or a host this is not sure."""


def homes(server: Server) -> Path:
    """Return the folder that holds the homes of all runs of a tracking store on this host."""
    base = os.environ.get("MLTRAIN_HOME") or platformdirs.user_state_dir("mltrain", appauthor=False)
    return Path(base).expanduser() / uuid.uuid5(uuid.NAMESPACE_URL, server.uri).hex[:12]


def home_of(server: Server, run_id: str) -> Path:
    """Return the folder on this host for staging, journal and log of a run.

    Raises:
        StorageError: it cannot be made.
    """
    return _made(homes(server) / _name_of(server, run_id))


def outputs_home(server: Server) -> Path:
    """Return the folder on this host that holds copies of what stages of pipelines handed on, by their digests.

    Raises:
        StorageError: it cannot be made.
    """
    return _made(homes(server) / "outputs")


def _name_of(server: Server, run_id: str) -> str:
    """Return what a run's home is called: where it was written to before it was created, by what it went by then."""
    with suppress(OSError, ValueError):
        earlier = (homes(server) / f"{run_id}.home").read_text(encoding="ascii")
        return earlier if RUN_ID.fullmatch(earlier) else run_id
    return run_id


def _made(home: Path) -> Path:
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{home} cannot be made: {error.strerror}. Set MLTRAIN_HOME to a folder that is writable."
        ) from error
    return home


def remember_home(server: Server, run_id: str, home: Path) -> None:
    """Let a run be found in the home that it had before it was created.

    Raises:
        StorageError: the disk refuses.
    """
    replace_file(homes(server) / f"{run_id}.home", home.name.encode("ascii"))


def locked(home: Path, run_id: str, take_over: bool) -> filelock.BaseFileLock:
    """Take the lock that the one writer of a run has on this host.

    Raises:
        RunHeld: another process has it, and it is not to be taken over.
        StorageError: it cannot be made.
    """
    lock = filelock.FileLock(home / "lock")
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
        replace_file(home / _HOLDER_FILE, json.dumps(process.own()).encode())
    return lock


@contextmanager
def lock_if_here(server: Server, run_id: str) -> Iterator[None]:
    """Hold the lock of a run's writer, where the run was ever written to from this host.

    Raises:
        RunHeld: somebody here is writing to it, or sending what was left behind.
    """
    lock = filelock.FileLock(homes(server) / _name_of(server, run_id) / "lock")
    if not Path(lock.lock_file).parent.is_dir():
        yield
        return
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise RunHeld(f"Run {run_id} is being written by another process on this machine.") from None
    try:
        yield
    finally:
        lock.release()


def was_left(server: Server, run_id: str, holder: Mapping[str, Any]) -> bool:
    """Whether a process that wrote to a run from this home has ended: then the kernel has released its lock.

    This holds for processes of other containers and of earlier boots as well, but only where the lock is on a disk that one
    kernel has for itself.
    """
    home = homes(server) / _name_of(server, run_id)
    try:
        if not process.same(json.loads((home / _HOLDER_FILE).read_text(encoding="utf-8")), holder):
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
            if process.is_alive(holder) is not False:
                return f"process {int(holder['pid'])}"
        time.sleep(0.05)
    return "another process"


def grace_seconds() -> float:
    """Return how long the end of a process may take, from ``MLTRAIN_GRACE_SECONDS`` (default 25)."""
    try:
        return max(0.0, float(os.environ.get("MLTRAIN_GRACE_SECONDS", "25")))
    except ValueError:
        return 25.0
