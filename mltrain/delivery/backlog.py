"""Uploads the checkpoints that earlier processes staged on this machine."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mltrain.checkpoint.manifest import CheckpointId
from mltrain.checkpoint.publishing import PartsMissing, publish
from mltrain.checkpoint.staging import Spool
from mltrain.checkpoint.store import CheckpointStore
from mltrain.errors import StorageError
from mltrain.store.artifacts import Artifacts, DeferredArtifacts
from mltrain.store.retry import is_transient

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Uploaded:
    """The result of uploading staged checkpoints.

    Attributes:
        uploaded: names of the committed ones.
        dropped: number of those that a later attempt replaces.
        waiting: which files the newest checkpoint still needs from other machines. Empty if it is complete.
        failure: why the newest checkpoint is still to be uploaded. ``None`` if nothing failed.
    """

    uploaded: tuple[str, ...] = ()
    dropped: int = 0
    waiting: str = ""
    failure: OSError | None = None


def newest_staged(home: Path) -> CheckpointId | None:
    """Return the newest complete checkpoint staged in a run's folder."""
    staging = home / "staging"
    found = [CheckpointId.parse(folder.name) for folder in Spool(staging).complete()] if staging.is_dir() else []
    return max(filter(None, found), key=lambda identity: identity.order, default=None)


def publish_backlog(run_id: str, home: Path, artifacts: Artifacts, ends: Mapping[int, int]) -> Uploaded:
    """Upload staged checkpoints newer than the newest commit.

    One that is permanently refused is skipped, with a warning.

    Args:
        run_id: of the run.
        home: folder of the run on this host.
        artifacts: of the run.
        ends: for every attempt before the last, the step at which the next one branched off.
    """
    if newest_staged(home) is None:
        return Uploaded()
    uploaded: list[str] = []
    dropped, waiting, failure = 0, "", None
    try:
        store = CheckpointStore(run_id, DeferredArtifacts(artifacts), Spool(home / "staging"), formerly=home.name)
        newest = max((manifest.id.order for manifest in store.manifests()), default=(0, 0))
        for manifest in sorted(store.staged(), key=lambda staged: staged.id.order):
            if manifest.step > ends.get(manifest.id.attempt, manifest.step):
                dropped += 1
                store.discard_staged(manifest.id)
            elif manifest.id.order > newest:
                try:
                    publish(store, manifest)
                except PartsMissing as error:
                    waiting = str(error)
                except OSError as error:
                    if isinstance(error, StorageError) and (error.__cause__ is None or is_transient(error.__cause__)):
                        raise
                    failure = error
                    log.warning("Checkpoint %s could not be uploaded: %s", manifest.name, error)
                else:
                    uploaded.append(manifest.name)
                    waiting, failure = "", None
    except OSError as error:
        failure = error
    return Uploaded(tuple(uploaded), dropped, waiting, failure)
