"""The folder on this host where a run is staged, journalled and locked."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import platformdirs

from mltrain.errors import RunHeld, StorageError
from mltrain.tracking.server import Server


def home_of(server: Server, run_id: str) -> Path:
    """Return the folder on this host for staging, journal and log of a run.

    Raises:
        StorageError: it cannot be made.
    """
    return _made(server, run_id)


def outputs_home(server: Server) -> Path:
    """Return the folder on this host that holds copies of what stages of pipelines handed on, by their digests.

    Raises:
        StorageError: it cannot be made.
    """
    return _made(server, "outputs")


def _made(server: Server, name: str) -> Path:
    home = _base(server) / name
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{home} cannot be made: {error.strerror}. Set MLTRAIN_HOME to a folder that is writable."
        ) from error
    return home


def _base(server: Server) -> Path:
    base = os.environ.get("MLTRAIN_HOME") or platformdirs.user_state_dir("mltrain", appauthor=False)
    return Path(base).expanduser() / uuid.uuid5(uuid.NAMESPACE_URL, server.uri).hex[:12]


def locked(server: Server, run_id: str, take_over: bool) -> filelock.BaseFileLock:
    """Take the lock that the one writer of a run has on this host.

    Raises:
        RunHeld: another process has it, and it is not to be taken over.
        StorageError: it cannot be made.
    """
    lock = filelock.FileLock(home_of(server, run_id) / "lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if not take_over:
            raise RunHeld(
                f"Run {run_id} is being written by another process on this machine. "
                "Stop that one first, or take the run over with --take-over."
            ) from None
    except OSError as error:
        raise StorageError(
            f"{lock.lock_file} cannot be made: {error.strerror}. Set MLTRAIN_HOME to a folder that is writable."
        ) from error
    return lock


@contextmanager
def lock_if_here(server: Server, run_id: str) -> Iterator[None]:
    """Hold the lock of a run's writer, where the run was ever written to from this host.

    Raises:
        RunHeld: somebody here is writing to it, or sending what was left behind.
    """
    lock = filelock.FileLock(_base(server) / run_id / "lock")
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


def grace_seconds() -> float:
    """Return how long the end of a process may take, from ``MLTRAIN_GRACE_SECONDS`` (default 25)."""
    try:
        return max(0.0, float(os.environ.get("MLTRAIN_GRACE_SECONDS", "25")))
    except ValueError:
        return 25.0
