"""Lists, verifies, fetches and removes a run's stored checkpoints."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mltrain.checkpoint.folder import file_name
from mltrain.checkpoint.manifest import FILE_NAME, MAX_BYTES, CheckpointId, Manifest, names_of_shards
from mltrain.checkpoint.staging import Spool, StreamedUpload, assign_run_id
from mltrain.checkpoint.verified_files import Arrived, Problem, VerifiedFiles
from mltrain.errors import DamagedCheckpoint, StorageError
from mltrain.store.artifacts import Artifacts, in_parallel
from mltrain.store.names import CHECKPOINTS
from mltrain.store.removal import discard_staged

if TYPE_CHECKING:
    import torch

    from mltrain.checkpoint.shards import Assembly

log = logging.getLogger(__name__)

PARAMS = "params.json"
"""The checkpoint file with the configuration of the training."""

Damaged = Callable[[CheckpointId, DamagedCheckpoint], None]
"""Called with each damaged checkpoint."""


def warn_damaged(identity: CheckpointId, error: DamagedCheckpoint) -> None:
    """Log that a checkpoint is damaged."""
    log.warning("Checkpoint %s is damaged and is skipped: %s", identity.name, error)


@dataclass(frozen=True)
class _Read:
    """A manifest, with its file's size and SHA-256."""

    size: int
    digest: bytes
    manifest: Manifest


@dataclass(frozen=True)
class Survey:
    """Committed manifests, oldest first, and uncommitted folders, newest first."""

    manifests: tuple[Manifest, ...]
    uncommitted: tuple[CheckpointId, ...]


class CheckpointStore:
    """The checkpoints of one run in its artifact store.

    Args:
        run_id: of the run; a manifest that names another run counts as damaged.
        artifacts: of the run.
        spool: where checkpoints are staged. If the artifacts are on this machine, staging is beside them and a commit is
            one rename; for a remote store the staged copy is uploaded and stays until the next commit. If ``None``, the
            checkpoints can only be read.
        formerly: the provisional id of a run that was created offline; staged checkpoints may still name it.
        folder: for messages, the folder of checkpoints without a run. If ``None``, messages name the run.
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
        self.run_id = run_id
        """The id of the run, provisional until it is created."""
        self._formerly = formerly
        self._folder = folder
        self._known: dict[CheckpointId, _Read] = {}
        self._assembled: tuple[Manifest, Assembly] | None = None

    @property
    def title(self) -> str:
        """The store's name in messages: the run, folder or file."""
        place = self._folder
        return f"run {self.run_id}" if place is None else f"{'file' if place.is_file() else 'folder'} {place}"

    @property
    def remedy(self) -> str:
        """Advice for the case that no checkpoint is usable."""
        if self._folder is None:
            return f"Try: mltrain verify {self.run_id}"
        return f"The log names the damage of each. Try: remove or replace these files in {self._folder}."

    def watch(self, arrived: Arrived) -> None:
        """Call ``arrived`` for each later piece, perhaps in several threads."""
        self._files.arrived = arrived

    def adopt(self, run_id: str) -> None:
        """Replace the run's provisional id by its final one."""
        self._formerly, self.run_id = self.run_id, run_id

    def discard_staged(self, identity: CheckpointId) -> None:
        """Remove a remote checkpoint's staged copy, its manifest first.

        Raises:
            StorageError: the disk refuses.
        """
        if self.artifacts.local_root is None:
            discard_staged(self.local_folder(identity))

    def staged(self) -> list[Manifest]:
        """Return complete staged checkpoints; a local store has none."""
        if self.artifacts.local_root is not None or self.spool is None:
            return []
        found = []
        for folder in self.spool.complete():
            try:
                manifest = Manifest.from_json((folder / FILE_NAME).read_bytes(), name=folder.name)
                found.append(Manifest.from_json(self.named(manifest).to_json(), run_id=self.run_id, name=folder.name))
            except (OSError, DamagedCheckpoint) as error:
                log.warning("The staged checkpoint %s is not usable: %s", folder.name, error)
        return found

    def streamed(self, identity: CheckpointId) -> StreamedUpload:
        """Return a checkpoint's upload from memory, idle if unsupported."""
        send = self.artifacts.sender(f"{CHECKPOINTS}/{identity.name}")
        return StreamedUpload(send, self.local_folder(identity)) if send is not None else StreamedUpload()

    def is_whole(self, staged: Manifest) -> bool:
        """Whether a staged checkpoint's files can all be read here."""
        return not staged.shards or self._files.has_all(staged, lambda: self.assembly(staged).files())

    def committed(self, manifest: Manifest) -> None:
        """Remember an uploaded manifest, which saves a later download."""
        content = manifest.to_json()
        self._known[manifest.id] = _Read(len(content), hashlib.sha256(content).digest(), manifest)

    def named(self, staged: Manifest) -> Manifest:
        """Give a staged manifest the run's id, on disk too."""
        return assign_run_id(self.local_folder(staged.id), self.run_id) if staged.run_id == self._formerly else staged

    def names(self) -> list[CheckpointId]:
        """Return all checkpoint folders' identities, newest first, committed or not."""
        found = [CheckpointId.parse(one.name) for one in self.artifacts.entries(CHECKPOINTS) if one.is_dir]
        return sorted((identity for identity in found if identity), key=lambda identity: identity.order, reverse=True)

    def manifest(self, identity: CheckpointId) -> Manifest | None:
        """Return a checkpoint's manifest, ``None`` if it is uncommitted.

        Raises:
            DamagedCheckpoint: the manifest was changed.
        """
        # Remembered manifests save parsing and downloads; only the store knows whether they still exist.
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
            run_id = self.run_id if self._folder is None else None  # a folder may hold exports of several runs
            known = _Read(len(content), digest, Manifest.from_json(content, run_id=run_id, name=identity.name))
        self._known[identity] = known
        return known.manifest

    def survey(self, *, damaged: Damaged = warn_damaged, remembered: bool = False) -> Survey:
        """List all checkpoint folders' manifests; report and skip damaged ones.

        Args:
            damaged: called with each damaged checkpoint.
            remembered: whether to trust a manifest that was read or uploaded before while its folder is still listed.
                Manifests do not change, so the process that holds the run needs one request for any number of
                checkpoints.
        """
        manifests, uncommitted, names = [], [], self.names()
        memory = {name: self._known[name].manifest for name in names if remembered and name in self._known}
        unread = [name for name in names if name not in memory]
        found = map(self._read, unread) if self.artifacts.local_root is not None else in_parallel(self._read, unread)
        read = dict(zip(unread, found, strict=True))
        for identity in names:
            one = memory.get(identity) or read[identity]
            if isinstance(one, DamagedCheckpoint):
                damaged(identity, one)
            elif one is None:
                uncommitted.append(identity)
            else:
                manifests.append(one)
        before = self._known
        self._known = {one.id: before[one.id] for one in manifests if one.id in before}
        return Survey(tuple(manifests[::-1]), tuple(uncommitted))

    def manifests(self, *, damaged: Damaged = warn_damaged) -> list[Manifest]:
        """Return all committed manifests, oldest first; damaged ones are reported."""
        return list(self.survey(damaged=damaged).manifests)

    def _read(self, identity: CheckpointId) -> Manifest | DamagedCheckpoint | None:
        try:
            return self.manifest(identity)
        except DamagedCheckpoint as error:
            return error

    def problems(self, manifest: Manifest) -> list[Problem]:
        """Compare every file with its digest and return the problems."""
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
        """Return a sharded checkpoint's assembly, having read only part files.

        Raises:
            DamagedCheckpoint: a part file is missing or changed.
        """
        from mltrain.checkpoint.shards import Assembly

        if self._assembled is None or self._assembled[0] != manifest:
            self._assembled = manifest, Assembly(manifest, lambda *file: self._files.read(manifest, *file))
        return self._assembled[1]

    def sizes(self, manifest: Manifest) -> dict[str, int]:
        """Return the files that :meth:`fetch` returns, with sizes in bytes."""
        sizes = {name: entry.size for name, entry in manifest.files.items()}
        if manifest.shards:
            sizes = {name: size for name, size in sizes.items() if name not in names_of_shards(manifest)}
            sizes |= self.assembly(manifest).sizes()
        return sizes

    def fetch(self, manifest: Manifest, *, only: Callable[[str], bool] = lambda name: True) -> dict[str, bytearray]:
        """Read a checkpoint's files into memory, all verified first.

        A sharded checkpoint yields the whole files of :meth:`sizes`, reassembled from its pieces.

        Raises:
            DamagedCheckpoint: a file is missing or changed.
        """
        wanted = sorted(name for name in self.sizes(manifest) if only(name))
        stored = [name for name in wanted if name in manifest.files and name not in names_of_shards(manifest)]
        received = in_parallel(lambda name: self._files.read(manifest, name, manifest.files[name]), stored)
        files = dict(zip(stored, received, strict=True))
        return {name: files[name] if name in files else self.assembly(manifest).content(name) for name in wanted}

    def fetch_unsharded(self, manifest: Manifest) -> dict[str, bytearray]:
        """Read a sharded state's files without pieces; see :meth:`fetch`."""
        own = [name for name in sorted(manifest.files) if name.startswith(("model", "state"))]
        return {name: self._files.read(manifest, name, manifest.files[name]) for name in own}

    def load(self, manifest: Manifest, device: "torch.device | None" = None) -> dict[str, Any]:
        """Return a checkpoint's parts on a device, all verified first.

        Raises:
            DamagedCheckpoint: it differs from its commit.
        """
        from mltrain.checkpoint.codec import decode

        return decode(self.fetch(manifest, only=lambda name: name.startswith(("model", "state"))), device)

    def remove(self, identity: CheckpointId) -> None:
        """Remove a checkpoint from the store, its manifest first.

        Raises:
            StorageError: the store refuses.
        """
        self._known.pop(identity, None)
        self.artifacts.remove_checkpoint(identity.name)

    def target(self, manifest: Manifest) -> Path:
        """Return the path of a checkpoint after its commit here."""
        return self.local_folder(manifest.id) if self._folder is None else self._folder / file_name(manifest)

    def local_folder(self, identity: CheckpointId) -> Path:
        """Return a checkpoint's folder, staged or in a local store."""
        if self.artifacts.local_root is not None:
            return self.artifacts.local_root / CHECKPOINTS / identity.name
        assert self.spool is not None
        return self.spool.root / identity.name
