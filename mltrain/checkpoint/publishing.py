"""The two halves of a commit: to this disk, and from there to the artifact store."""

import logging
from collections.abc import Callable, Mapping, Sequence

from mltrain.checkpoint.codec import LARGEST_FILE, EncodedFile, encode
from mltrain.checkpoint.manifest import FILE_NAME, Manifest
from mltrain.checkpoint.snapshot import Snapshot
from mltrain.checkpoint.store import CheckpointStore
from mltrain.errors import StorageError
from mltrain.store.names import CHECKPOINTS
from mltrain.store.retry import may_pass

log = logging.getLogger(__name__)


def stage(
    store: CheckpointStore,
    snapshot: Snapshot,
    manifest: Manifest,
    extra: Mapping[str, bytes],
    require_lease: Callable[[], None] = lambda: None,
    *,
    largest_file: int = LARGEST_FILE,
) -> Manifest:
    """Write a snapshot to the disk and return its manifest, completed with files and tensors.

    Where the artifacts are on this machine, this commits it.

    Args:
        store: that the checkpoint is for.
        snapshot: of the state.
        manifest: without files and tensors.
        extra: further small files.
        require_lease: called last before the checkpoint gets its name; what it raises, this raises.
        largest_file: bytes that a file of weights may have.

    Raises:
        StorageError: the disk refuses.
    """
    encoded = encode(snapshot, largest_file=largest_file)
    if store.spool is None:
        raise StorageError("These checkpoints were opened to be read only.")
    with store.spool.staging(manifest.id) as staging:
        for file in (*encoded.files, *(EncodedFile(name, [content]) for name, content in extra.items())):
            staging.write(file.name, file.content)
        complete = manifest.model_copy(
            update={
                "files": dict(staging.files),
                "tensors": dict(encoded.tensors),
                "aliases": dict(encoded.aliases),
            }
        )
        staging.commit(complete, store.place(manifest.id), require_lease)
    return complete


def publish(
    store: CheckpointStore,
    manifest: Manifest,
    backlog: Sequence[Manifest] = (),
    require_lease: Callable[[], None] = lambda: None,
) -> None:
    """Upload a staged checkpoint file by file, the manifest last; then drop earlier staged copies.

    A store on this machine has it already.

    Args:
        store: that receives the checkpoint.
        manifest: of the checkpoint.
        backlog: earlier ones that go first: what is older than a commit is never uploaded.
        require_lease: called before each manifest is uploaded; what it raises, this raises.

    Raises:
        StorageError: the artifact store refuses, or does not answer for a while. The staged copy stays.
    """
    if store.artifacts.local_root is not None:
        return
    require_lease()
    for earlier in backlog:
        try:
            _upload(store, earlier, require_lease)
        except (StorageError, FileNotFoundError) as error:
            if isinstance(error, StorageError) and (error.__cause__ is None or may_pass(error.__cause__)):
                raise
            log.warning("Checkpoint %s could not be uploaded and is left out: %s", earlier.name, error)
    _upload(store, manifest, require_lease)
    for earlier in store.staged():
        if earlier.id.order < manifest.id.order:
            store.discard_staged(earlier.id)


def _upload(store: CheckpointStore, manifest: Manifest, require_lease: Callable[[], None]) -> None:
    staged, folder, manifest = store.place(manifest.id), f"{CHECKPOINTS}/{manifest.name}", store.named(manifest)
    # The data are checked right before the manifest is uploaded: another process may remove a folder that has none.
    store.artifacts.upload_all([staged / name for name in sorted(manifest.files)], folder)
    require_lease()
    store.artifacts.upload(staged / FILE_NAME, folder)
    store.committed(manifest)
