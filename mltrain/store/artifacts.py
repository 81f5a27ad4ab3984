"""The interface of a run's artifact store, local or remote.

MLflow does not validate paths when it deletes: an empty path removes all artifacts of a run, and ``../`` reaches other runs.
Every path is therefore validated here, and removal takes a checkpoint's name, never a path.
"""

import hashlib
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from mltrain.errors import DamagedCheckpoint, StorageError
from mltrain.store.names import COMPONENT
from mltrain.store.removal import DEAD_SECONDS

PARALLEL_FILES = 4
"""Files that are sent or received in parallel."""


@dataclass(frozen=True)
class Entry:
    """An entry of an artifact folder.

    ``size`` is in bytes, or ``None`` for a folder.
    """

    name: str
    is_dir: bool
    size: int | None


class Hashed(bytearray):
    """Content that was hashed while it arrived.

    Do not change it.

    Attributes:
        sha256: its SHA-256 in hexadecimal digits.
    """

    sha256: str


def sha256_of(content: bytes | bytearray) -> str:
    """Return the hexadecimal SHA-256 of content.

    :class:`Hashed` content is not hashed again.
    """
    return content.sha256 if isinstance(content, Hashed) else hashlib.sha256(content).hexdigest()


Received = Callable[[int], object]
"""Called with the number of bytes of each piece that arrives."""


def unwatched(count: int) -> None:
    """Take note of no piece."""


class CountedOnce:
    """Counts a file's bytes once, though they are read again.

    Args:
        received: called with the bytes that no earlier try has brought.
    """

    def __init__(self, received: Received) -> None:
        self._received = received
        self._now = self._most = 0
        self._counting = threading.Lock()

    def begins_again(self) -> None:
        """Note that the file is read from its start."""
        self._now = 0

    def __call__(self, count: int) -> None:
        """Count a piece."""
        with self._counting:
            self._now += count
            new = self._now - self._most
            self._most = max(self._most, self._now)
        if new > 0:
            self._received(new)


Send = Callable[[str, Iterable[memoryview]], None]
"""Uploads sized content under a name in one try; raises the errors of the store's client."""


class Artifacts(Protocol):
    """The artifacts of one run."""

    local_root: Path | None
    """Their folder on this machine, or ``None`` for a remote store."""

    def entries(self, folder: str = "") -> list[Entry]:
        """Return a folder's entries; a missing folder has none.

        Links and unusual names are left out.
        """
        ...

    def upload(self, file: Path, folder: str = "") -> None:
        """Upload a file into a folder and verify its size.

        It keeps its name and replaces an existing file.
        """
        ...

    def upload_all(self, files: Sequence[Path], folder: str, sent: Collection[str] = ()) -> None:
        """Upload files in any order, then check all sizes.

        Args:
            files: on this machine.
            folder: receives the files.
            sent: names of the files that :meth:`sender` uploaded; they are sent again if a size differs.
        """
        ...

    def sender(self, folder: str) -> Send | None:
        """Return a function that uploads content from memory.

        Returns ``None`` if the store accepts only files.
        """
        ...

    def read(self, path: str, most: int, received: Received = unwatched) -> bytearray:
        """Return a file's content of at most ``most`` bytes.

        It is :class:`Hashed` if it was hashed on arrival. ``received`` is called in the threads that receive it; for a store
        that supports only downloads to files, after the download.

        Raises:
            FileNotFoundError: the file does not exist.
            DamagedCheckpoint: the file is larger.
        """
        ...

    def remove_checkpoint(self, name: str) -> None:
        """Remove a checkpoint by its directory name, manifest first.

        A missing checkpoint is not an error.
        """
        ...

    def remove_model(self, model_id: str) -> None:
        """Remove all files, which must be those of this LoggedModel.

        Raises:
            StorageError: these are not a LoggedModel's artifacts, or the store refuses.
        """
        ...

    def remove_output(self, name: str) -> None:
        """Remove the output of a stage's attempt, its record first.

        A missing output is not an error.
        """
        ...

    def unfinished(self, untouched: float = 0.0) -> list[str]:
        """Return files left by interrupted writers.

        These are temporary files of MLflow's uploads that are older than ``untouched`` seconds, and half-staged checkpoints.
        """
        ...

    def remove_unfinished(self, untouched: float = DEAD_SECONDS) -> int:
        """Remove files left by interrupted writers; return their number.

        No process may be writing to the run.
        """
        ...


def validated(path: str) -> str:
    """Return a relative artifact path if it is valid.

    Raises:
        StorageError: it is empty or absolute, or a component is ``..`` or has control or other unusual characters.
    """
    if not path or not all(COMPONENT.fullmatch(part) for part in path.split("/")):
        raise StorageError(f"{path!r:.200} is not an artifact path. Expected plain names joined by /.")
    return path


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turn errors of a store's client into :class:`StorageError`."""
    try:
        yield
    except (StorageError, DamagedCheckpoint, FileNotFoundError):
        raise
    except NotImplementedError as error:
        raise StorageError("This kind of artifact store does not support that.") from error
    except Exception as error:
        raise StorageError(
            f"The artifact store does not answer as it should: {type(error).__name__}: {error}"
        ) from error


class NoRunYet(StorageError):
    """The run is not created; this disk holds its artifacts."""


class DeferredArtifacts:
    """Artifacts whose location becomes known later; see :class:`Artifacts`.

    Checkpoints are staged in the run's folder and uploaded file by file, even if the store turns out to be on this machine.
    """

    def __init__(self, target: Artifacts | None = None) -> None:
        self.local_root: Path | None = None
        self.target = target

    def entries(self, folder: str = "") -> list[Entry]:
        """See :class:`Artifacts`."""
        return [] if self.target is None else self.target.entries(folder)

    def upload(self, file: Path, folder: str = "") -> None:
        """See :class:`Artifacts`."""
        self._require_target().upload(file, folder)

    def upload_all(self, files: Sequence[Path], folder: str, sent: Collection[str] = ()) -> None:
        """See :class:`Artifacts`."""
        self._require_target().upload_all(files, folder, sent)

    def sender(self, folder: str) -> Send | None:
        """See :class:`Artifacts`."""
        return None if self.target is None else self.target.sender(folder)

    def read(self, path: str, most: int, received: Received = unwatched) -> bytearray:
        """See :class:`Artifacts`."""
        if self.target is None:
            raise FileNotFoundError(path)
        return self.target.read(path, most, received)

    def remove_checkpoint(self, name: str) -> None:
        """See :class:`Artifacts`."""
        self._require_target().remove_checkpoint(name)

    def remove_output(self, name: str) -> None:
        """See :class:`Artifacts`."""
        self._require_target().remove_output(name)

    def remove_model(self, model_id: str) -> None:
        """See :class:`Artifacts`."""
        self._require_target().remove_model(model_id)

    def unfinished(self, untouched: float = 0.0) -> list[str]:
        """See :class:`Artifacts`."""
        return [] if self.target is None else self.target.unfinished(untouched)

    def remove_unfinished(self, untouched: float = DEAD_SECONDS) -> int:
        """See :class:`Artifacts`."""
        return 0 if self.target is None else self.target.remove_unfinished(untouched)

    def _require_target(self) -> Artifacts:
        if self.target is None:
            raise NoRunYet("The run has not been created yet, so it has no artifact store.")
        return self.target


T = TypeVar("T")
R = TypeVar("R")


def in_parallel(job: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Run a job per item in parallel; return ordered results."""
    if len(items) < 2:
        return [job(item) for item in items]
    with ThreadPoolExecutor(PARALLEL_FILES, thread_name_prefix="mltrain-files") as pool:
        try:
            results = pool.map(job, items)
        except RuntimeError:  # the interpreter is exiting and starts no more threads, but waits for this one
            return [job(item) for item in items]
        return list(results)
