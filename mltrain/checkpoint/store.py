"""The checkpoints of one run in its artifact store: commit, list, verify, fetch, remove."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from mltrain.checkpoint.codec import LARGEST_FILE, EncodedFile, decode, encode
from mltrain.checkpoint.manifest import FILE_NAME, MAX_BYTES, CheckpointId, FileEntry, Manifest
from mltrain.checkpoint.snapshot import Snapshot
from mltrain.checkpoint.staging import Spool, readdressed
from mltrain.errors import CheckpointError, DamagedCheckpoint, NoCheckpoint, StorageError
from mltrain.store.artifacts import Artifacts, side_by_side
from mltrain.store.local import LocalArtifacts
from mltrain.store.names import CHECKPOINTS
from mltrain.store.removal import discard_staged
from mltrain.store.retry import may_pass

log = logging.getLogger(__name__)

PARAMS = "params.json"
"""The file of a checkpoint that holds the configuration it was trained with."""

R = TypeVar("R")


@dataclass(frozen=True)
class Problem:
    """Something wrong with a checkpoint: which file, and what."""

    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


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
            commit is one rename; elsewhere the staged copy is uploaded and stays until a later one is committed.
            If ``None``, the checkpoints can only be read.
        formerly: the provisional id of the run, if it was created offline; staged checkpoints may still name it.
        largest_file: bytes that a file of weights may have.
    """

    def __init__(
        self,
        run_id: str,
        artifacts: Artifacts,
        spool: Spool | None = None,
        *,
        formerly: str | None = None,
        largest_file: int = LARGEST_FILE,
    ) -> None:
        self.artifacts = artifacts
        self.spool = spool
        self._run_id = run_id
        self._formerly = formerly
        self._largest_file = largest_file
        self._known: dict[CheckpointId, _Read] = {}

    @property
    def run_id(self) -> str:
        """The id of the run; a provisional one until the run is created."""
        return self._run_id

    def adopt(self, run_id: str) -> None:
        """Go on under the id that the tracking server gave the run; what is staged under the provisional one is kept."""
        self._formerly, self._run_id = self._run_id, run_id

    def stage(
        self,
        snapshot: Snapshot,
        manifest: Manifest,
        extra: Mapping[str, bytes],
        require_lease: Callable[[], None] = lambda: None,
    ) -> Manifest:
        """Write a snapshot to the disk and return its manifest, completed with files and tensors.

        Where the artifacts are on this machine, this commits it.

        Args:
            snapshot: of the state.
            manifest: without files and tensors.
            extra: further small files.
            require_lease: called last before the checkpoint gets its name; what it raises, this raises.

        Raises:
            StorageError: the disk refuses.
        """
        encoded = encode(snapshot, largest_file=self._largest_file)
        if self.spool is None:
            raise StorageError("These checkpoints were opened to be read only.")
        with self.spool.staging(manifest.id) as staging:
            for file in (*encoded.files, *(EncodedFile(name, [content]) for name, content in extra.items())):
                staging.write(file.name, file.content)
            complete = manifest.model_copy(
                update={
                    "files": dict(staging.files),
                    "tensors": dict(encoded.tensors),
                    "aliases": dict(encoded.aliases),
                }
            )
            staging.commit(complete, self._place(manifest.id), require_lease)
        return complete

    def publish(
        self,
        manifest: Manifest,
        backlog: Sequence[Manifest] = (),
        require_lease: Callable[[], None] = lambda: None,
    ) -> None:
        """Upload a staged checkpoint file by file, the manifest last; then drop earlier staged copies.

        A store on this machine has it already.

        Args:
            manifest: of the checkpoint.
            backlog: earlier ones that go first: what is older than a commit is never uploaded.
            require_lease: called before each manifest is uploaded; what it raises, this raises.

        Raises:
            StorageError: the artifact store refuses, or does not answer for a while. The staged copy stays.
        """
        if self.artifacts.local_root is not None:
            return
        require_lease()
        for earlier in backlog:
            try:
                self._upload(earlier, require_lease)
            except (StorageError, FileNotFoundError) as error:
                if isinstance(error, StorageError) and (error.__cause__ is None or may_pass(error.__cause__)):
                    raise
                log.warning("Checkpoint %s could not be uploaded and is left out: %s", earlier.name, error)
        self._upload(manifest, require_lease)
        for earlier in self.staged():
            if earlier.id.order < manifest.id.order:
                self.discard_staged(earlier.id)

    def discard_staged(self, identity: CheckpointId) -> None:
        """Remove the staged copy of a checkpoint, its manifest first; a store on this machine has none.

        Raises:
            StorageError: the disk does not allow it.
        """
        if self.artifacts.local_root is None:
            discard_staged(self._place(identity))

    def _upload(self, manifest: Manifest, require_lease: Callable[[], None]) -> None:
        staged, folder = self._place(manifest.id), f"{CHECKPOINTS}/{manifest.name}"
        if manifest.run_id == self._formerly:
            manifest = readdressed(staged, self.run_id)
        # That all data are there is looked at last before the manifest says so: somebody may remove what has none.
        self.artifacts.upload_all([staged / name for name in sorted(manifest.files)], folder)
        require_lease()
        self.artifacts.upload(staged / FILE_NAME, folder)
        content = manifest.to_json()
        self._known[manifest.id] = _Read(len(content), hashlib.sha256(content).digest(), manifest)

    def staged(self) -> list[Manifest]:
        """Return what is complete in local staging; for a store on this machine, nothing."""
        if self.artifacts.local_root is not None or self.spool is None:
            return []
        found = []
        for folder in self.spool.complete():
            try:
                content = (folder / FILE_NAME).read_bytes()
                manifest = Manifest.from_json(content, name=folder.name)
                if manifest.run_id == self._formerly:
                    manifest = readdressed(folder, self.run_id)
                found.append(Manifest.from_json(manifest.to_json(), run_id=self.run_id, name=folder.name))
            except (OSError, DamagedCheckpoint) as error:
                log.warning("The staged checkpoint %s is not usable: %s", folder.name, error)
        return found

    def names(self) -> list[CheckpointId]:
        """Return the identities of all checkpoint folders in the store, newest first, committed or not."""
        entries = self.artifacts.entries(CHECKPOINTS)
        found = [CheckpointId.parse(entry.name) for entry in entries if entry.is_dir]
        return sorted((identity for identity in found if identity), key=lambda identity: identity.order, reverse=True)

    def manifest(self, identity: CheckpointId) -> Manifest | None:
        """Return the manifest of a committed checkpoint, or none when there is none.

        Raises:
            DamagedCheckpoint: it is not as it was written.
        """
        # What was read before spares only the parsing here, and the download elsewhere: whether there is a manifest, the
        # store alone can say.
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
            known = _Read(len(content), digest, Manifest.from_json(content, run_id=self.run_id, name=identity.name))
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
                (damaged or _warn)(identity, found)
            elif found is None:
                uncommitted.append(identity)
            else:
                manifests.append(found)
        before = self._known
        self._known = {manifest.id: before[manifest.id] for manifest in manifests if manifest.id in before}
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

        here = self.artifacts.local_root is not None
        return zip(names, [read(name) for name in names] if here else side_by_side(read, names), strict=True)

    def problems(self, manifest: Manifest) -> list[Problem]:
        """Compare every file of a checkpoint with its digest, and return what is wrong."""
        found = []
        for name in sorted(manifest.files):
            try:
                self._received(manifest, name)
            except DamagedCheckpoint as error:
                found.append(Problem(name, str(error)))
        return found

    def fetch(self, manifest: Manifest, *, only: Callable[[str], bool] = lambda name: True) -> dict[str, bytearray]:
        """Receive the files of a checkpoint into memory, every one verified before any is returned.

        Raises:
            DamagedCheckpoint: a file is missing, or is not what was committed.
        """
        wanted = sorted(name for name in manifest.files if only(name))
        return dict(zip(wanted, side_by_side(lambda name: self._received(manifest, name), wanted), strict=True))

    def load(self, manifest: Manifest, device: torch.device | None = None) -> dict[str, Any]:
        """Return the parts of a checkpoint on a device, verified before anything is deserialised.

        Raises:
            DamagedCheckpoint: it is not what was committed.
        """
        return decode(self.fetch(manifest, only=lambda name: name.startswith(("model", "state"))), device)

    def configured(
        self, manifest: Manifest, device: torch.device | None = None
    ) -> tuple[dict[str, Any], Mapping[str, Any] | None]:
        """Return the parts of a checkpoint and its configuration, both verified; None where it has no configuration.

        Raises:
            DamagedCheckpoint: it is not what was committed, or its configuration is none.
        """
        files = self.fetch(manifest, only=lambda name: name.startswith(("model", "state")) or name == PARAMS)
        content = files.pop(PARAMS, None)
        try:
            params = json.loads(content) if content is not None else None
        except (ValueError, RecursionError) as error:
            raise DamagedCheckpoint(f"{PARAMS} of {manifest.name} is not valid JSON: {error}") from None
        if not isinstance(params, Mapping | None):
            raise DamagedCheckpoint(
                f"{PARAMS} of {manifest.name} holds a {type(params).__name__}, not a configuration."
            )
        return decode(files, device), params

    def newest_usable(
        self,
        candidates: Iterable[Manifest],
        damaged: Callable[[CheckpointId, DamagedCheckpoint], None] | None = None,
        device: torch.device | None = None,
    ) -> tuple[Manifest, dict[str, Any]]:
        """Return the first of the candidates that is intact, with its parts; report each that is not.

        Raises:
            NoCheckpoint: none is.
        """
        return self.first_usable(candidates, lambda manifest: self.load(manifest, device), damaged)

    def first_usable(
        self,
        candidates: Iterable[Manifest],
        read: Callable[[Manifest], R],
        damaged: Callable[[CheckpointId, DamagedCheckpoint], None] | None = None,
    ) -> tuple[Manifest, R]:
        """Return the first of the candidates that can be read, with what was read; report each that cannot.

        Args:
            candidates: the first choice first.
            read: reads all that the caller wants of one, verified.
            damaged: called with each that is not intact; if ``None``, it is logged.

        Raises:
            NoCheckpoint: none can.
        """
        tried = 0
        for manifest in candidates:
            tried += 1
            try:
                return manifest, read(manifest)
            except DamagedCheckpoint as error:
                (damaged or _warn)(manifest.id, error)
        raise NoCheckpoint(
            f"None of the {tried} checkpoints asked for of run {self.run_id} is usable. "
            f"See what is wrong with: mltrain verify {self.run_id}"
        )

    def uncommitted(self) -> list[CheckpointId]:
        """Return the checkpoint folders without a manifest: being written, or left by a process that died."""
        return list(self.survey().uncommitted)

    def remove(self, identity: CheckpointId) -> None:
        """Remove a checkpoint from the store, its manifest first.

        Raises:
            StorageError: the store does not allow it.
        """
        self._known.pop(identity, None)
        self.artifacts.remove_checkpoint(identity.name)

    def _place(self, identity: CheckpointId) -> Path:
        if self.artifacts.local_root is not None:
            return self.artifacts.local_root / CHECKPOINTS / identity.name
        assert self.spool is not None
        return self.spool.root / identity.name

    def _received(self, manifest: Manifest, name: str) -> bytearray:
        entry = manifest.files[name]
        staged = self._from_staging(manifest.id, name, entry)
        if staged is not None:
            return staged
        try:
            content = self.artifacts.read(f"{CHECKPOINTS}/{manifest.name}/{name}", entry.size)
        except (FileNotFoundError, NotADirectoryError):
            raise DamagedCheckpoint(f"{name} of {manifest.name} is missing.") from None
        except StorageError:
            raise
        except OSError as error:
            raise DamagedCheckpoint(f"{name} of {manifest.name} cannot be read: {error.strerror or error}.") from None
        if len(content) != entry.size:
            raise DamagedCheckpoint(f"{name} of {manifest.name} has {len(content)} bytes; {entry.size} were committed.")
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise DamagedCheckpoint(f"{name} of {manifest.name} has another SHA-256 than when it was committed.")
        return content

    def _from_staging(self, identity: CheckpointId, name: str, entry: FileEntry) -> bytearray | None:
        """Return the staged copy of a file where there is an intact one: it need not be downloaded then."""
        if self.artifacts.local_root is not None or self.spool is None:
            return None
        try:
            content = LocalArtifacts(self.spool.root).read(f"{identity.name}/{name}", entry.size)
        except (OSError, DamagedCheckpoint):
            return None
        return content if hashlib.sha256(content).hexdigest() == entry.sha256 else None


def _warn(identity: CheckpointId, error: CheckpointError) -> None:
    log.warning("Checkpoint %s is damaged and left aside: %s", identity.name, error)
