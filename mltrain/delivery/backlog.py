"""Checkpoints that are complete in a run's home on this host and not in its artifact store yet."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mltrain.checkpoint.publishing import publish
from mltrain.checkpoint.staging import Spool
from mltrain.checkpoint.store import CheckpointStore
from mltrain.store.artifacts import Artifacts, DeferredArtifacts
from mltrain.store.removal import discard_staged


@dataclass(frozen=True)
class Uploaded:
    """What became of staged checkpoints: the names of those uploaded, and how many a later attempt had overtaken."""

    uploaded: tuple[str, ...] = ()
    dropped: int = 0


def has_backlog(home: Path) -> bool:
    """Whether anything complete is staged in a run's home."""
    staging = home / "staging"
    return staging.is_dir() and bool(Spool(staging).complete())


def publish_backlog(run_id: str, home: Path, artifacts: Artifacts, ends: Mapping[int, int]) -> Uploaded:
    """Upload what is staged and newer than the newest commit.

    Args:
        run_id: of the run.
        home: of the run on this host.
        artifacts: of the run.
        ends: for every attempt that a later one overtook, the step up to which it counts.

    Raises:
        StorageError: the artifact store refuses.
    """
    if not has_backlog(home):
        return Uploaded()
    spool = Spool(home / "staging")
    store = CheckpointStore(run_id, DeferredArtifacts(artifacts), spool, formerly=home.name)
    newest = max((manifest.id.order for manifest in store.manifests()), default=(0, 0))
    uploaded, dropped = [], 0
    for manifest in store.staged():
        if manifest.step > ends.get(manifest.id.attempt, manifest.step):
            dropped += 1
            discard_staged(spool.root / manifest.name)
        elif manifest.id.order > newest:
            publish(store, manifest)
            uploaded.append(manifest.name)
    return Uploaded(tuple(uploaded), dropped)
