"""Uploads the checkpoints that earlier processes staged on this machine."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mltrain.checkpoint.publishing import PartsMissing, publish
from mltrain.checkpoint.staging import Spool
from mltrain.checkpoint.store import CheckpointStore
from mltrain.store.artifacts import Artifacts, DeferredArtifacts


@dataclass(frozen=True)
class Uploaded:
    """The result of uploading staged checkpoints.

    Attributes:
        uploaded: names of the committed ones.
        dropped: number of those that a later attempt replaces.
        waiting: which files the newest checkpoint still needs from other machines. Empty if it is complete.
    """

    uploaded: tuple[str, ...] = ()
    dropped: int = 0
    waiting: str = ""


def has_backlog(home: Path) -> bool:
    """Whether a run's folder has a complete staged checkpoint."""
    staging = home / "staging"
    return staging.is_dir() and bool(Spool(staging).complete())


def publish_backlog(run_id: str, home: Path, artifacts: Artifacts, ends: Mapping[int, int]) -> Uploaded:
    """Upload staged checkpoints newer than the newest commit.

    Args:
        run_id: of the run.
        home: folder of the run on this host.
        artifacts: of the run.
        ends: for every attempt before the last, the step at which the next one branched off.

    Raises:
        StorageError: the artifact store fails.
    """
    if not has_backlog(home):
        return Uploaded()
    store = CheckpointStore(run_id, DeferredArtifacts(artifacts), Spool(home / "staging"), formerly=home.name)
    newest = max((manifest.id.order for manifest in store.manifests()), default=(0, 0))
    uploaded, dropped, waiting = [], 0, ""
    for manifest in store.staged():
        if manifest.step > ends.get(manifest.id.attempt, manifest.step):
            dropped += 1
            store.discard_staged(manifest.id)
        elif manifest.id.order > newest:
            try:
                publish(store, manifest)
            except PartsMissing as error:
                waiting = str(error)
            else:
                uploaded.append(manifest.name)
                waiting = ""
    return Uploaded(tuple(uploaded), dropped, waiting)
