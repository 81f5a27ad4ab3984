"""The files of checkpoints, each compared with its digest when it is read."""

import logging
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass

from mltrain.checkpoint.manifest import CheckpointId, FileEntry, Manifest
from mltrain.checkpoint.staging import Spool
from mltrain.errors import DamagedCheckpoint, StorageError
from mltrain.store.artifacts import Artifacts, sha256_of
from mltrain.store.local import LocalArtifacts
from mltrain.store.names import CHECKPOINTS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Problem:
    """Something wrong with a checkpoint: which file, and what."""

    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


class VerifiedFiles:
    """The files of the checkpoints of one run.

    Args:
        artifacts: of the run.
        spool: where checkpoints are staged; an intact staged copy need not be downloaded.
    """

    def __init__(self, artifacts: Artifacts, spool: Spool | None) -> None:
        self._artifacts = artifacts
        self._spool = spool

    def read(self, manifest: Manifest, name: str, entry: FileEntry) -> bytearray:
        """Return the content of a file of a checkpoint, equal to what was committed.

        Raises:
            DamagedCheckpoint: it is missing, or is not what was committed.
            StorageError: the store does not answer.
        """
        staged = self._from_staging(manifest.id, name, entry)
        if staged is not None:
            return staged
        try:
            content = self._artifacts.read(f"{CHECKPOINTS}/{manifest.name}/{name}", entry.size)
        except (FileNotFoundError, NotADirectoryError):
            raise DamagedCheckpoint(f"{name} of {manifest.name} is missing.") from None
        except StorageError:
            raise
        except OSError as error:
            raise DamagedCheckpoint(f"{name} of {manifest.name} cannot be read: {error.strerror or error}.") from None
        if len(content) != entry.size:
            raise DamagedCheckpoint(f"{name} of {manifest.name} has {len(content)} bytes; {entry.size} were committed.")
        if sha256_of(content) != entry.sha256:
            raise DamagedCheckpoint(f"{name} of {manifest.name} has another SHA-256 than when it was committed.")
        return content

    def has_all(self, staged: Manifest, pieces: Callable[[], Collection[str]]) -> bool:
        """Whether a staged checkpoint's files are all in the store or staged here; logs a warning where they are not.

        Args:
            staged: its manifest.
            pieces: returns the names of its files of pieces, or raises :class:`DamagedCheckpoint`.
        """
        assert self._spool is not None
        there = {entry.name for entry in self._artifacts.entries(f"{CHECKPOINTS}/{staged.name}")}
        there |= {file.name for file in (self._spool.root / staged.name).iterdir()}
        with suppress(DamagedCheckpoint):
            if staged.files.keys() | set(pieces()) <= there:
                return True
        log.warning(
            "Checkpoint %s is staged on several machines, and its files are not all here or in the artifact store. To go on "
            "from it, run mltrain sync on each of them first.",
            staged.name,
        )
        return False

    def _from_staging(self, identity: CheckpointId, name: str, entry: FileEntry) -> bytearray | None:
        """Return the staged copy of a file where there is an intact one: it need not be downloaded then."""
        if self._artifacts.local_root is not None or self._spool is None:
            return None
        try:
            content = LocalArtifacts(self._spool.root).read(f"{identity.name}/{name}", entry.size)
        except (OSError, DamagedCheckpoint):
            return None
        return content if sha256_of(content) == entry.sha256 else None
