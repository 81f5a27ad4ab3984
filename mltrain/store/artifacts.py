"""What mltrain asks of the artifact store of a run, whichever kind it is.

MLflow validates nothing when it deletes: an empty path removes all artifacts of a run, and ``../`` reaches other runs. So
every path is validated here, and removal takes the name of a checkpoint, never a path.
"""

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import platformdirs

from mltrain.errors import StorageError
from mltrain.store.removal import DEAD_SECONDS

PARALLEL_FILES = 4
"""Files that are sent or received at the same time."""


@dataclass(frozen=True)
class Entry:
    """Something in a folder of artifacts; ``size`` in bytes, none for a folder."""

    name: str
    is_dir: bool
    size: int | None


class Hashed(bytearray):
    """A content that was hashed while it arrived; not to be changed.

    Attributes:
        sha256: its SHA-256 in hexadecimal digits.
    """

    sha256: str


def sha256_of(content: bytes | bytearray) -> str:
    """Return the SHA-256 of a content, in hexadecimal digits; one that was hashed on its way is not hashed again."""
    return content.sha256 if isinstance(content, Hashed) else hashlib.sha256(content).hexdigest()


Send = Callable[[str, Iterable[memoryview]], None]
"""Puts a content, which knows its ``len``, under a name; one try, which raises whatever the store's client does."""


class Artifacts(Protocol):
    """The artifacts of one run."""

    local_root: Path | None
    """Where they are on this machine, if they are."""

    def entries(self, folder: str = "") -> list[Entry]:
        """Return what a folder holds; a missing folder holds nothing. Links and strange names are left out."""
        ...

    def upload(self, file: Path, folder: str = "") -> None:
        """Put a file into a folder under its own name, replacing it, and check its size there."""
        ...

    def upload_all(self, files: Sequence[Path], folder: str, sent: Collection[str] = ()) -> None:
        """Put files into a folder, in any order, and when all are there check all their sizes.

        Args:
            files: of this machine.
            folder: that they are put into.
            sent: names of those that :meth:`sender` put there; they are sent again if their sizes differ.
        """
        ...

    def sender(self, folder: str) -> Send | None:
        """Return what puts contents from memory into a folder; ``None`` where only files can be uploaded."""
        ...

    def read(self, path: str, most: int) -> bytearray:
        """Return the content of a file of at most ``most`` bytes; :class:`Hashed` where it was hashed on its way.

        Raises:
            FileNotFoundError: there is no such file.
            DamagedCheckpoint: it is larger.
        """
        ...

    def remove_checkpoint(self, name: str) -> None:
        """Remove the checkpoint of this directory name, its manifest first. One that is gone already is no error."""
        ...

    def remove_model(self, model_id: str) -> None:
        """Remove all files, which have to be those of this LoggedModel.

        Raises:
            StorageError: this is not where a LoggedModel's files are, or the store does not allow it.
        """
        ...

    def remove_output(self, name: str) -> None:
        """Remove what an attempt of a stage made, its record first. What is gone already is no error."""
        ...

    def unfinished(self, untouched: float = 0.0) -> list[str]:
        """Return what interrupted writers left, untouched for so many seconds.

        Temporary files of MLflow's uploads, and half-staged checkpoints.
        """
        ...

    def remove_unfinished(self, untouched: float = DEAD_SECONDS) -> int:
        """Remove these, and return how many there were. Only for a run that nobody writes to."""
        ...


class NoRunYet(StorageError):
    """The run waits to be created; until then this disk has its artifacts."""


class DeferredArtifacts:
    """Artifacts whose place becomes known later; see :class:`Artifacts`.

    Checkpoints are staged in the run's folder and uploaded file by file, even if the store proves to be on this machine.
    """

    def __init__(self, target: Artifacts | None = None) -> None:
        self.local_root: Path | None = None
        self.target = target

    def entries(self, folder: str = "") -> list[Entry]:
        """See :class:`Artifacts`."""
        return [] if self.target is None else self.target.entries(folder)

    def upload(self, file: Path, folder: str = "") -> None:
        """See :class:`Artifacts`."""
        self._there().upload(file, folder)

    def upload_all(self, files: Sequence[Path], folder: str, sent: Collection[str] = ()) -> None:
        """See :class:`Artifacts`."""
        self._there().upload_all(files, folder, sent)

    def sender(self, folder: str) -> Send | None:
        """See :class:`Artifacts`."""
        return None if self.target is None else self.target.sender(folder)

    def read(self, path: str, most: int) -> bytearray:
        """See :class:`Artifacts`."""
        if self.target is None:
            raise FileNotFoundError(path)
        return self.target.read(path, most)

    def remove_checkpoint(self, name: str) -> None:
        """See :class:`Artifacts`."""
        self._there().remove_checkpoint(name)

    def remove_output(self, name: str) -> None:
        """See :class:`Artifacts`."""
        self._there().remove_output(name)

    def remove_model(self, model_id: str) -> None:
        """See :class:`Artifacts`."""
        self._there().remove_model(model_id)

    def unfinished(self, untouched: float = 0.0) -> list[str]:
        """See :class:`Artifacts`."""
        return [] if self.target is None else self.target.unfinished(untouched)

    def remove_unfinished(self, untouched: float = DEAD_SECONDS) -> int:
        """See :class:`Artifacts`."""
        return 0 if self.target is None else self.target.remove_unfinished(untouched)

    def _there(self) -> Artifacts:
        if self.target is None:
            raise NoRunYet("The run has not been created yet, so it has no artifact store.")
        return self.target


T = TypeVar("T")
R = TypeVar("R")


def in_parallel(job: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Do something with each of some items, a few at a time, and return the results in their order."""
    if len(items) < 2:
        return [job(item) for item in items]
    with ThreadPoolExecutor(PARALLEL_FILES, thread_name_prefix="mltrain-files") as pool:
        try:
            results = pool.map(job, items)
        except RuntimeError:  # the interpreter is ending, and starts no more threads: this one is waited for
            return [job(item) for item in items]
        return list(results)


def refuse_unwritable(folder: Path, remedy: str) -> None:
    """Refuse a folder that cannot be made or written to, without making it.

    Raises:
        StorageError: the folder, or the nearest one above it that exists, is no folder or is not writable.
    """
    place = next(above for above in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(above))
    if not place.is_dir():
        raise StorageError(f"{folder} cannot be written: {place} is not a folder. {remedy}")
    if not os.access(place, os.W_OK | os.X_OK):
        raise StorageError(f"{folder} cannot be written: this user has no right to write to {place}. {remedy}")


def state_folder() -> Path:
    """Return the folder on this host below which mltrain keeps everything: ``MLTRAIN_HOME``, or the user's state folder."""
    base = os.environ.get("MLTRAIN_HOME") or platformdirs.user_state_dir("mltrain", appauthor=False)
    return Path(base).expanduser()
