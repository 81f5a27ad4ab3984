"""Stages and uploads checkpoints, with a backlog in between."""

import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from mltrain.checkpoint import retention
from mltrain.checkpoint.codec import LARGEST_FILE, EncodedFile, encode
from mltrain.checkpoint.manifest import FILE_NAME, SCHEMA, SHARDED_SCHEMA, CheckpointId, Manifest, current_line
from mltrain.checkpoint.policies import Budget
from mltrain.checkpoint.ports import Peers, Run
from mltrain.checkpoint.reader import CheckpointReader
from mltrain.checkpoint.retention import Policy
from mltrain.checkpoint.shards import Part, staged_files
from mltrain.checkpoint.snapshot import Snapshot
from mltrain.checkpoint.staging import StreamedUpload
from mltrain.checkpoint.store import CheckpointStore
from mltrain.errors import DamagedCheckpoint, MltrainError, StorageError, UsageError, shortened
from mltrain.store.artifacts import in_parallel, sha256_of
from mltrain.store.names import CHECKPOINTS
from mltrain.store.retry import is_transient

log = logging.getLogger(__name__)


def stage(
    store: CheckpointStore,
    snapshot: Snapshot,
    manifest: Manifest,
    extra: Mapping[str, bytes],
    require_lease: Callable[[], None] = lambda: None,
    *,
    largest_file: int = LARGEST_FILE,
    stream: StreamedUpload | None = None,
) -> Manifest:
    """Write a snapshot to disk and return its complete manifest.

    If the artifact store is a folder on this machine, this commits the checkpoint.

    Args:
        store: receives the checkpoint.
        snapshot: of the state.
        manifest: without files and tensors.
        extra: additional small files.
        require_lease: called right before the rename; its errors are raised.
        largest_file: most bytes of a file, unless a single tensor is larger.
        stream: uploads the files while they are written. If ``None``, they are uploaded later.

    Raises:
        StorageError: the disk refuses.
    """
    encoded = encode(snapshot, largest_file=largest_file)
    if store.spool is None:
        raise StorageError("These checkpoints were opened read-only.")
    files = (*encoded.files, *(EncodedFile.of(name, content) for name, content in extra.items()))
    # The page cache is bypassed unless an upload reads the files soon: the checkpoint may stay here, or be sent from memory.
    streams = stream is not None and stream.begin(files)
    with store.spool.staging(manifest.id) as staging:
        for file in files:
            staging.write(file.name, file.content, cached=store.artifacts.local_root is None and not streams)
        parts = snapshot.pieces.write(staging.folder) if snapshot.pieces is not None else {}
        staging.files.update({name: entry for name, (entry, _) in parts.items()})
        complete = manifest.model_copy(
            update={
                "schema_version": SHARDED_SCHEMA if parts else SCHEMA,
                "files": dict(staging.files),
                "tensors": dict(encoded.tensors),
                "aliases": dict(encoded.aliases),
                "shards": {name: size for name, (_, size) in parts.items()},
            }
        )
        commit = partial(staging.commit, complete, store.target(manifest), require_lease)
        if snapshot.pieces is not None:
            snapshot.pieces.complete(complete, commit)
        else:
            commit()
    return complete


class PartsMissing(StorageError):
    """A sharded checkpoint with files missing from other machines."""


class Backlog:
    """The staged checkpoints that one process still has to upload.

    Args:
        run: owns the checkpoints.
        reader: of the run's checkpoints.
        policy: decides which of them are worth an upload.
        gigabytes: most that may be staged, in units of 10**9 bytes.
    """

    def __init__(self, run: Run, reader: CheckpointReader, policy: Policy, gigabytes: float) -> None:
        self._run = run
        self._reader = reader
        self._policy = policy
        self._budget = Budget(gigabytes=gigabytes, of=policy)
        self._lock = threading.Lock()
        self._waiting: dict[CheckpointId, Manifest] = {}
        self._uploading: CheckpointId | None = None
        self._committed = (0, 0)

    @property
    def newest(self) -> Manifest | None:
        """The newest waiting checkpoint, or ``None``."""
        with self._lock:
            return max(self._waiting.values(), key=lambda manifest: manifest.id.order, default=None)

    def add(self, manifest: Manifest) -> None:
        """Add a checkpoint that is complete on this disk."""
        with self._lock:
            self._waiting[manifest.id] = manifest

    @contextmanager
    def uploading(self, manifest: Manifest) -> Iterator[bool]:
        """Protect a checkpoint from :meth:`trim` during its upload.

        Yields whether it is still waiting.
        """
        with self._lock:
            waits = manifest.id in self._waiting
            self._uploading = manifest.id if waits else None
        try:
            yield waits
        finally:
            self._uploading = None

    def committed(self, manifest: Manifest) -> None:
        """Drop an uploaded checkpoint and all older ones."""
        with self._lock:
            self._waiting = {one: m for one, m in self._waiting.items() if one.order > manifest.id.order}
            self._committed = manifest.id.order

    def worth_uploading_before(self, manifest: Manifest) -> list[Manifest]:
        """Return staged checkpoints to upload first, oldest first.

        These are the ones that the policy would keep, and the best, which must survive an outage or a kill; all of them if the
        policy fails. A checkpoint older than a commit is never uploaded.
        """
        waiting = [one for one in self._reader.store.staged() if self._committed < one.id.order < manifest.id.order]
        if not waiting:
            return []
        committed = self._reader.store.survey(remembered=True).manifests
        newest = max((one.id.order for one in committed), default=(0, 0))
        waiting = sorted((one for one in waiting if one.id.order > newest), key=lambda one: one.id.order)
        if not waiting:
            return []
        line, context = (
            current_line(self._reader.notes.over([*committed, *waiting, manifest])),
            self._reader.notes.context,
        )
        best = retention.best_of(line, context)
        try:
            wanted = retention.kept_by(self._policy, line, context)
        except UsageError as error:
            log.warning("%s", error)
            return waiting
        return [one for one in waiting if one.id in wanted or (best is not None and one.id == best.id)]

    def trim(self, newest: Manifest) -> None:
        """Remove the least valuable staged checkpoints beyond the budget.

        The newest stays, and so does the checkpoint that the attempt continues from.
        """
        staged = self._reader.store.staged()
        if sum(manifest.size for manifest in staged) <= self._budget.gigabytes * 1e9:
            return
        keep = {newest.id, *newest.ancestry[-1:]}
        # Without pins, because staging fills up while the server is unavailable.
        for removal in retention.plan(self._reader.notes.over(staged), self._budget, self._reader.notes.context, keep):
            manifest = removal.manifest
            with self._lock:
                if manifest.id == self._uploading:
                    continue
                self._waiting.pop(manifest.id, None)
            self._run.report_dropped(manifest.name, removal.rule)
            self._reader.store.discard_staged(manifest.id)
            log.warning(
                "Staging is full: %s (%s) was removed from this disk before it could be uploaded: %s.",
                manifest.title,
                manifest.name,
                removal.rule,
            )


def publish(
    store: CheckpointStore,
    manifest: Manifest,
    backlog: Sequence[Manifest] = (),
    require_lease: Callable[[], None] = lambda: None,
    peers: Peers | None = None,
    sent: Collection[str] = (),
) -> None:
    """Upload a staged checkpoint, its manifest last.

    Earlier staged copies are removed afterwards. Nothing is uploaded if the store is on this machine. Each machine uploads the
    files that its processes have staged of a sharded checkpoint, data before part files; the manifest follows once the store
    has the parts of all machines.

    Args:
        store: that receives the checkpoint.
        manifest: of the checkpoint.
        backlog: earlier checkpoints to upload first; none is uploaded after a newer commit.
        require_lease: called before the data, the part files and the manifest of each checkpoint; its errors are raised.
        peers: the other processes of this training, if they upload their own files.
        sent: names of this checkpoint's files that were uploaded while they were staged.

    Raises:
        StorageError: the artifact store refuses or stays unavailable. The staged copy stays.
        PartsMissing: other machines have not uploaded their files. The staged copy stays.
    """
    if store.artifacts.local_root is not None:
        return
    for earlier in backlog:
        try:
            _upload(store, earlier, require_lease, peers)
        except (StorageError, FileNotFoundError) as error:
            ours = isinstance(error, StorageError) and not isinstance(error, PartsMissing)
            if ours and (error.__cause__ is None or is_transient(error.__cause__)):
                raise
            log.warning("Checkpoint %s could not be uploaded and is skipped: %s", earlier.name, error)
    _upload(store, manifest, require_lease, peers, sent)
    for earlier in store.staged():
        if earlier.id.order < manifest.id.order:
            store.discard_staged(earlier.id)


def upload_again(store: CheckpointStore, manifest: Manifest, require_lease: Callable[[], None]) -> bool:
    """Upload a checkpoint that an earlier process staged.

    Returns whether the store has it now.
    """
    if manifest.run_id != store.run_id or manifest.id not in {one.id for one in store.staged()}:
        return True
    try:
        if store.manifest(manifest.id) is None:
            publish(store, manifest, (), require_lease)
    except MltrainError as error:
        log.error("Checkpoint %s is complete on this disk, but could not be uploaded: %s", manifest.name, error)
        return False
    return True


def _upload(
    store: CheckpointStore,
    manifest: Manifest,
    require_lease: Callable[[], None],
    peers: Peers | None,
    sent: Collection[str] = (),
) -> None:
    staged, folder, manifest = store.local_folder(manifest.id), f"{CHECKPOINTS}/{manifest.name}", store.named(manifest)
    peers = peers if peers is not None and peers.expects(manifest) else None
    data, parts = staged_files(staged, manifest, 0 if peers is not None else None)
    # Data are checked right before the manifest follows: another process may remove a folder without a manifest.
    for names in filter(None, (data, parts)):
        require_lease()
        store.artifacts.upload_all([staged / name for name in names], folder, sent)
    if peers is not None:
        peers.wait(manifest)
    if manifest.shards:
        _refuse_without_parts(store, manifest)
    require_lease()
    store.artifacts.upload(staged / FILE_NAME, folder)
    store.committed(manifest)


def _refuse_without_parts(store: CheckpointStore, manifest: Manifest) -> None:
    """Raise an error unless the store has every part's files.

    Raises:
        PartsMissing: files are missing; the message names the first ones.
        StorageError: a part file in the store differs from the staged one.
    """
    folder = f"{CHECKPOINTS}/{manifest.name}"
    stored = {entry.name: entry.size for entry in store.artifacts.entries(folder)}
    wanted = {name: entry.size for name, entry in manifest.files.items()}

    def listed(name: str) -> dict[str, int]:
        content = store.artifacts.read(f"{folder}/{name}", manifest.files[name].size)
        if sha256_of(content) != manifest.files[name].sha256:
            raise StorageError(f"{name} of {manifest.name} has another SHA-256 in the artifact store than in staging.")
        return {file: entry.size for file, entry in Part.from_json(content, name).files.items()}

    try:
        for files in in_parallel(listed, sorted(name for name in manifest.shards if name in stored)):
            wanted |= files
    except DamagedCheckpoint as error:
        raise StorageError(f"{manifest.name} cannot be committed: {error}") from error
    missing = sorted(name for name, size in wanted.items() if stored.get(name) != size)
    if missing:
        raise PartsMissing(
            f"{manifest.name} is incomplete in the artifact store: {shortened(missing, 3)} did not arrive. Expected the files "
            "of all machines that trained it. Try: mltrain sync on each of them"
        )
