"""The checkpoints of one run in its artifact store: list, verify, fetch, remove."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mltrain.checkpoint.manifest import FILE_NAME, MAX_BYTES, CheckpointId, Manifest, names_of_shards
from mltrain.checkpoint.staging import Spool, assign_run_id
from mltrain.checkpoint.verified_files import Problem, VerifiedFiles
from mltrain.errors import CheckpointError, DamagedCheckpoint, StorageError
from mltrain.store.artifacts import Artifacts, in_parallel
from mltrain.store.names import CHECKPOINTS
from mltrain.store.removal import discard_staged

if TYPE_CHECKING:
    import torch

    from mltrain.checkpoint.shards import Assembly

log = logging.getLogger(__name__)

PARAMS = "params.json"
"""The file of a checkpoint that holds the configuration it was trained with."""


@dataclass(frozen=True)
class _Read:
    """A manifest that was read: size and SHA-256 of its file, and what it says."""

    size: int
    digest: bytes
    manifest: Manifest


@dataclass(frozen=True)
class Survey:
    """What is in a store: committed manifests, oldest first, and the folders that have none, newest first."""

    manifests: tuple[Manifest, ...]
    uncommitted: tuple[CheckpointId, ...]


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        run_id: the run; a manifest that names another one is damaged.
        artifacts: of the run.
        spool: where checkpoints are staged. Where the artifacts are on this machine, staging is beside them, and a
            commit is one rename; for another store the staged copy is uploaded and stays until the next commit.
            If ``None``, the checkpoints can only be read.
        formerly: the provisional id of the run, if it was created offline; staged checkpoints may still name it.
        folder: that holds checkpoints of no run, for messages. If ``None``, messages name the run.
    """

    def __init__(
        self,
        run_id: str,
        artifacts: Artifacts,
        spool: Spool | None = None,
        *,
        formerly: str | None = None,
        folder: Path | None = None,
    ) -> None:
        self.artifacts = artifacts
        self.spool = spool
        self._files = VerifiedFiles(artifacts, spool)
        self._run_id = run_id
        self._formerly = formerly
        self._folder = folder
        self._known: dict[CheckpointId, _Read] = {}
        self._assembled: tuple[Manifest, Assembly] | None = None

    @property
    def run_id(self) -> str:
        """The id of the run; a provisional one until the run is created."""
        return self._run_id

    @property
    def title(self) -> str:
        """The name in messages: ``run …``, or the folder or file."""
        place = self._folder
        return f"run {self.run_id}" if place is None else f"{'file' if place.is_file() else 'folder'} {place}"

    @property
    def remedy(self) -> str:
        """Advice to the user where no checkpoint is usable."""
        if self._folder is None:
            return f"See what is wrong with: mltrain verify {self.run_id}"
        return f"The log names what is wrong with each. Try: remove or replace these files in {self._folder}."

    def adopt(self, run_id: str) -> None:
        """Continue under the id that the tracking server gave the run; checkpoints staged under the provisional id stay."""
        self._formerly, self._run_id = self._run_id, run_id

    def discard_staged(self, identity: CheckpointId) -> None:
        """Remove the staged copy of a checkpoint, its manifest first; a store on this machine has none.

        Raises:
            StorageError: the disk does not allow it.
        """
        if self.artifacts.local_root is None:
            discard_staged(self.place(identity))

    def staged(self) -> list[Manifest]:
        """Return what is complete in local staging; for a store on this machine, nothing."""
        if self.artifacts.local_root is not None or self.spool is None:
            return []
        found = []
        for folder in self.spool.complete():
            try:
                content = (folder / FILE_NAME).read_bytes()
                manifest = Manifest.from_json(content, name=folder.name)
                found.append(Manifest.from_json(self.named(manifest).to_json(), run_id=self.run_id, name=folder.name))
            except (OSError, DamagedCheckpoint) as error:
                log.warning("The staged checkpoint %s is not usable: %s", folder.name, error)
        return found

    def is_whole(self, staged: Manifest) -> bool:
        """Whether a staged checkpoint can be read here: of a sharded one other machines may have staged the rest."""
        return not staged.shards or self._files.has_all(staged, lambda: self.assembly(staged).files())

    def committed(self, manifest: Manifest) -> None:
        """Remember a manifest that this process uploaded, so that it is not downloaded again."""
        content = manifest.to_json()
        self._known[manifest.id] = _Read(len(content), hashlib.sha256(content).digest(), manifest)

    def named(self, staged: Manifest) -> Manifest:
        """Return a staged manifest under the id that the run has; the provisional one is replaced on the disk."""
        return assign_run_id(self.place(staged.id), self.run_id) if staged.run_id == self._formerly else staged

    def names(self) -> list[CheckpointId]:
        """Return the identities of all checkpoint folders in the store, newest first, committed or not."""
        found = [CheckpointId.parse(one.name) for one in self.artifacts.entries(CHECKPOINTS) if one.is_dir]
        return sorted((identity for identity in found if identity), key=lambda identity: identity.order, reverse=True)

    def manifest(self, identity: CheckpointId) -> Manifest | None:
        """Return the manifest of a checkpoint, or ``None`` if it is not committed.

        Raises:
            DamagedCheckpoint: it is not as it was written.
        """
        # The memory saves parsing and downloads. Whether the manifest still exists, only the store knows.
        known, folder = self._known.pop(identity, None), f"{CHECKPOINTS}/{identity.name}"
        try:
            if known is not None and self.artifacts.local_root is None:
                size = next((entry.size for entry in self.artifacts.entries(folder) if entry.name == FILE_NAME), None)
                if size is None:
                    return None
                if size == known.size:
                    self._known[identity] = known
                    return known.manifest
            content = bytes(self.artifacts.read(f"{folder}/{FILE_NAME}", MAX_BYTES))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except StorageError:
            raise
        except OSError as error:
            raise DamagedCheckpoint(f"the manifest of {identity.name} cannot be read: {error}") from None
        digest = hashlib.sha256(content).digest()
        if known is None or known.digest != digest:
            run_id = self.run_id if self._folder is None else None  # a folder may hold what runs exported
            known = _Read(len(content), digest, Manifest.from_json(content, run_id=run_id, name=identity.name))
        self._known[identity] = known
        return known.manifest

    def survey(
        self,
        *,
        damaged: Callable[[CheckpointId, DamagedCheckpoint], None] | None = None,
        remembered: bool = False,
    ) -> "Survey":
        """Look at all checkpoint folders of the store; damaged manifests are reported and left out.

        Args:
            damaged: called with each that is damaged; if ``None``, it is logged.
            remembered: whether a manifest that was read or uploaded before is taken from memory where its folder is still
                listed. Manifests do not change, so that is for the process that holds the run: one request, however many
                checkpoints there are.
        """
        manifests, uncommitted, names = [], [], self.names()
        memory = {name: self._known[name].manifest for name in names if remembered and name in self._known}
        read = dict(self._read([name for name in names if name not in memory]))
        for identity in names:
            found = memory.get(identity) or read[identity]
            if isinstance(found, DamagedCheckpoint):
                (damaged or warn_damaged)(identity, found)
            elif found is None:
                uncommitted.append(identity)
            else:
                manifests.append(found)
        before = self._known
        self._known = {one.id: before[one.id] for one in manifests if one.id in before}
        return Survey(tuple(manifests[::-1]), tuple(uncommitted))

    def manifests(self, *, damaged: Callable[[CheckpointId, DamagedCheckpoint], None] | None = None) -> list[Manifest]:
        """Return the manifests of all committed checkpoints, oldest first; damaged ones are reported and left out."""
        return list(self.survey(damaged=damaged).manifests)

    def _read(
        self, names: Sequence[CheckpointId]
    ) -> Iterable[tuple[CheckpointId, Manifest | DamagedCheckpoint | None]]:
        def read(identity: CheckpointId) -> Manifest | DamagedCheckpoint | None:
            try:
                return self.manifest(identity)
            except DamagedCheckpoint as error:
                return error

        found = map(read, names) if self.artifacts.local_root is not None else in_parallel(read, names)
        return zip(names, found, strict=True)

    def problems(self, manifest: Manifest) -> list[Problem]:
        """Compare every file of a checkpoint with its digest, and return what is wrong."""
        files, found = dict(manifest.files), []
        try:
            files |= self.assembly(manifest).files() if manifest.shards else {}
        except DamagedCheckpoint as error:
            found.append(Problem("part files", str(error)))
        for name, entry in sorted(files.items()):
            try:
                self._files.read(manifest, name, entry)
            except DamagedCheckpoint as error:
                found.append(Problem(name, str(error)))
        return found

    def assembly(self, manifest: Manifest) -> "Assembly":
        """Return the assembly of a sharded checkpoint's whole tensors; it reads only the part files yet.

        Raises:
            DamagedCheckpoint: they are missing, or not what was committed.
        """
        from mltrain.checkpoint.shards import Assembly

        if self._assembled is None or self._assembled[0] != manifest:
            self._assembled = manifest, Assembly(manifest, lambda *file: self._files.read(manifest, *file))
        return self._assembled[1]

    def sizes(self, manifest: Manifest) -> dict[str, int]:
        """Return the files that :meth:`fetch` can return, with their sizes in bytes: those of a sharded checkpoint whole."""
        sizes = {name: entry.size for name, entry in manifest.files.items()}
        if manifest.shards:
            sizes = {name: size for name, size in sizes.items() if name not in names_of_shards(manifest)}
            sizes |= self.assembly(manifest).sizes()
        return sizes

    def fetch(self, manifest: Manifest, *, only: Callable[[str], bool] = lambda name: True) -> dict[str, bytearray]:
        """Receive the files of a checkpoint into memory, every one verified before any is returned.

        Of a sharded one these are the whole files that :meth:`sizes` lists, put together from its pieces.

        Raises:
            DamagedCheckpoint: a file is missing, or is not what was committed.
        """
        wanted = sorted(name for name in self.sizes(manifest) if only(name))
        there = [name for name in wanted if name in manifest.files and name not in names_of_shards(manifest)]
        entries = manifest.files
        received = in_parallel(lambda name: self._files.read(manifest, name, entries[name]), there)
        files = dict(zip(there, received, strict=True))
        return {name: files[name] if name in files else self.assembly(manifest).content(name) for name in wanted}

    def fetch_unsharded(self, manifest: Manifest, *, only: Callable[[str], bool]) -> dict[str, bytearray]:
        """Receive those files of a sharded checkpoint that hold no pieces, as they were committed; see :meth:`fetch`."""
        wanted = [name for name in sorted(manifest.files) if only(name) and name not in manifest.shards]
        return {name: self._files.read(manifest, name, manifest.files[name]) for name in wanted}

    def load(self, manifest: Manifest, device: "torch.device | None" = None) -> dict[str, Any]:
        """Return the parts of a checkpoint on a device, verified before anything is deserialised.

        Raises:
            DamagedCheckpoint: it is not what was committed.
        """
        from mltrain.checkpoint.codec import decode

        return decode(self.fetch(manifest, only=lambda name: name.startswith(("model", "state"))), device)

    def remove(self, identity: CheckpointId) -> None:
        """Remove a checkpoint from the store, its manifest first.

        Raises:
            StorageError: the store does not allow it.
        """
        self._known.pop(identity, None)
        self.artifacts.remove_checkpoint(identity.name)

    def place(self, identity: CheckpointId) -> Path:
        """Return the folder on this machine where a checkpoint is staged: its final one for a store on this machine."""
        if self.artifacts.local_root is not None:
            return self.artifacts.local_root / CHECKPOINTS / identity.name
        assert self.spool is not None
        return self.spool.root / identity.name


def warn_damaged(identity: CheckpointId, error: CheckpointError) -> None:
    """Log that a checkpoint is damaged."""
    log.warning("Checkpoint %s is damaged and left aside: %s", identity.name, error)
