"""Reads checkpoint files and compares each with its digest."""

import logging
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass

from mltrain.checkpoint.manifest import CheckpointId, FileEntry, Manifest
from mltrain.checkpoint.staging import Spool
from mltrain.errors import DamagedCheckpoint, StorageError
from mltrain.store.artifacts import Artifacts, CountedOnce, sha256_of
from mltrain.store.local import LocalArtifacts
from mltrain.store.names import CHECKPOINTS

log = logging.getLogger(__name__)

Arrived = Callable[[Manifest, int], object]
"""Called with a checkpoint, and the number of bytes of each piece of its files that is read."""


@dataclass(frozen=True)
class Problem:
    """A damaged file of a checkpoint and its damage."""

    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


class _Stopped(BaseException):
    """Ends a read after an error of the caller's function.

    It is no ``Exception``, so that nothing on its way takes it for a fault of the store, which is retried or counts as damage.
    """

    def __init__(self, error: Exception) -> None:
        self.error = error


class _Stopping:
    """Calls a function until it raises; the error ends the read in each of its threads."""

    def __init__(self, arrived: Arrived, manifest: Manifest) -> None:
        self._arrived, self._manifest = arrived, manifest
        self._error: Exception | None = None

    def __call__(self, count: int) -> None:
        if self._error is None:
            try:
                self._arrived(self._manifest, count)
                return
            except Exception as error:  # noqa: BLE001 - whatever the caller's function raises
                self._error = error
        raise _Stopped(self._error)


class VerifiedFiles:
    """The verified files of one run's checkpoints.

    Args:
        artifacts: of the run.
        spool: holds staged checkpoints; an intact staged copy is read instead of a download.

    Attributes:
        arrived: called with the bytes of each piece that is read, perhaps in several threads. Its errors end the read.
    """

    def __init__(self, artifacts: Artifacts, spool: Spool | None) -> None:
        self._artifacts = artifacts
        self._spool = spool
        self.arrived: Arrived = lambda manifest, count: None

    def read(self, manifest: Manifest, name: str, entry: FileEntry) -> bytearray:
        """Return a checkpoint file's content, verified against its digest.

        Raises:
            DamagedCheckpoint: it is missing, or differs from the committed content.
            StorageError: the store does not answer.
        """
        try:
            return self._read(manifest, name, entry, CountedOnce(_Stopping(self.arrived, manifest)))
        except _Stopped as stopped:
            error = stopped.error
        raise error

    def _read(self, manifest: Manifest, name: str, entry: FileEntry, received: CountedOnce) -> bytearray:
        staged = self._from_staging(manifest.id, name, entry, received)
        if staged is not None:
            return staged
        received.begins_again()
        try:
            content = self._artifacts.read(f"{CHECKPOINTS}/{manifest.name}/{name}", entry.size, received)
        except (FileNotFoundError, NotADirectoryError):
            raise DamagedCheckpoint(f"{name} of {manifest.name} is missing.") from None
        except StorageError:
            raise
        except OSError as error:
            raise DamagedCheckpoint(f"{name} of {manifest.name} cannot be read: {error.strerror or error}.") from None
        if len(content) != entry.size:
            raise DamagedCheckpoint(f"{name} of {manifest.name} has {len(content)} bytes; {entry.size} were committed.")
        if sha256_of(content) != entry.sha256:
            raise DamagedCheckpoint(f"{name} of {manifest.name} has another SHA-256 than at its commit.")
        return content

    def has_all(self, staged: Manifest, pieces: Callable[[], Collection[str]]) -> bool:
        """Whether a staged checkpoint's files can all be read here.

        They may be in the store or staged on this machine. Missing files are logged as a warning.

        Args:
            staged: its manifest.
            pieces: returns the names of the files with its pieces, or raises :class:`DamagedCheckpoint`.
        """
        assert self._spool is not None
        found = {entry.name for entry in self._artifacts.entries(f"{CHECKPOINTS}/{staged.name}")}
        found |= {file.name for file in (self._spool.root / staged.name).iterdir()}
        with suppress(DamagedCheckpoint):
            if staged.files.keys() | set(pieces()) <= found:
                return True
        log.warning(
            "Checkpoint %s is staged on several machines; some of its files are neither here nor in the artifact store. To "
            "resume from it, run mltrain sync on each machine first.",
            staged.name,
        )
        return False

    def _from_staging(
        self, identity: CheckpointId, name: str, entry: FileEntry, received: CountedOnce
    ) -> bytearray | None:
        """Return an intact staged copy of a file, or ``None``."""
        if self._artifacts.local_root is not None or self._spool is None:
            return None
        try:
            content = LocalArtifacts(self._spool.root).read(f"{identity.name}/{name}", entry.size, received)
        except (OSError, DamagedCheckpoint):
            return None
        return content if sha256_of(content) == entry.sha256 else None
