"""A run that is a folder: all that a checkpoint manager asks of a run, without a tracking server."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mltrain.checkpoint.manifest import CheckpointId, Manifest, Point, now
from mltrain.checkpoint.snapshot import HostBuffers, Snapshot, snapshot
from mltrain.checkpoint.staging import Spool
from mltrain.checkpoint.store import CheckpointStore
from mltrain.manager import CheckpointManager
from mltrain.store.artifacts import Artifacts
from tests.support import places
from tests.support.places import Place

RUN_ID = "0123456789abcdef0123456789abcdef"


class FolderRun:
    """An attempt of a run with its artifacts at ``place``. A folder of this machine by default."""

    def __init__(self, folder: Path, ordinal: int = 1, place: Place | None = None) -> None:
        self.id = RUN_ID
        self.folder = folder
        self.place = place or places.folder(folder / "artifacts")
        self.artifacts: Artifacts = self.place.opened()
        self.staging = folder / f"staging-of-{'the remote' if self.place.is_remote else 'here'}"
        self.ordinal = ordinal
        self.overtaken = False
        self.code: Mapping[str, str] = {"commit": "0" * 40}
        self.tags: dict[str, str] = {}
        self.attempts: list[str] = []
        self.origins: list[str] = []
        self.removals: list[Mapping[str, Any]] = []
        self.pinned: dict[str, str] = {}
        self.used: list[str] = []
        self.without_models: list[str] = []
        self.points: list[Point] = []
        self.status: str | None = None
        self.only_local: tuple[str, str] | None = None

    @property
    def announced(self) -> str | None:
        return self.tags.get("mltrain.latest")

    def announce_latest(self, checkpoint: str) -> None:
        self.tags["mltrain.latest"] = checkpoint

    def announce_best(self, best: Manifest) -> None:
        self.tags["mltrain.best"] = best.name

    def report_damaged(self, checkpoint: str, what: str) -> None:
        self.tags[f"mltrain.damaged.{checkpoint}"] = what

    def report_dropped(self, checkpoint: str, rule: str) -> None:
        self.tags[f"mltrain.dropped.{checkpoint}"] = rule

    def record_origin(self, checkpoint: CheckpointId | None) -> None:
        self.origins.append(checkpoint.name if checkpoint is not None else "the start")

    def begin_attempt(self, resumed_from: CheckpointId | None) -> None:
        self.ordinal += 1
        self.attempts.append(resumed_from.name if resumed_from is not None else "the start")

    def holds(self, *, certainly: bool = False) -> bool:
        return not self.overtaken

    def when_known(self, listener: Callable[[], None]) -> None:
        listener()

    def deliver_pending(self, points: Sequence[Point]) -> None:
        """Nobody is there to deliver them to."""

    def pending(self, step: int) -> Sequence[Point]:
        return [point for point in self.points if point.step <= step]

    def pins(self) -> Mapping[str, str]:
        return self.pinned

    def in_use(self) -> Sequence[str]:
        return self.used

    def remove_models(self, checkpoint: str) -> None:
        self.without_models.append(checkpoint)

    def set_tag(self, key: str, value: str) -> None:
        self.tags[key] = value

    def write_json(self, name: str, content: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / name
        file.write_text(json.dumps(content))
        self.artifacts.upload(file)

    def record_removals(self, records: Sequence[Mapping[str, Any]]) -> None:
        self.removals += records

    def mark_only_local(self, checkpoint: str, status: str) -> None:
        self.only_local = (checkpoint, status)

    def detach(self, status: str, grace: float | None = None) -> None:
        self.status = status

    def next_attempt(self) -> "FolderRun":
        following = FolderRun(self.folder, self.ordinal + 1, self.place)
        following.tags = self.tags
        return following

    def manager(self, **options: Any) -> CheckpointManager:
        return CheckpointManager(self, **options)


def state_at(epoch: int, **more: Any) -> dict[str, Any]:
    """Return a state that tells its epoch."""
    return {"model": {"weight": torch.full((4,), float(epoch)), "bias": torch.zeros(2)}, "epoch": epoch, **more}


def snapshot_of(state: Mapping[str, Any]) -> Snapshot:
    return snapshot(state, HostBuffers())


def manifest_of(
    step: int = 1,
    attempt: int = 1,
    kind: str = "epoch",
    *,
    epoch: int | None = None,
    parent: CheckpointId | None = None,
    ancestry: Sequence[CheckpointId] = (),
    metrics: Mapping[str, float] | None = None,
    best: bool = False,
    size: int = 0,
    **more: Any,
) -> Manifest:
    files = {"model.safetensors": {"size": size, "sha256": "0" * 64}} if size else {}
    return Manifest.model_validate(
        {
            "run_id": RUN_ID,
            "id": CheckpointId(attempt=attempt, step=step),
            "kind": kind,
            "epoch": step if epoch is None else epoch,
            "parent": parent,
            "ancestry": tuple(ancestry),
            "metrics": dict(metrics or {}),
            "best": best,
            "parts": ("model",),
            "files": files,
            "created": now(),
            **more,
        }
    )


def store_in(folder: Path, place: Place | None = None) -> CheckpointStore:
    run = FolderRun(folder, place=place)
    return CheckpointStore(RUN_ID, run.artifacts, Spool(run.staging))


def epochs(manager: CheckpointManager) -> list[int]:
    return [manifest.epoch for manifest in manager.checkpoints()]


def train(manager: CheckpointManager, first: int, last: int, loss: Callable[[int], float] | None = None) -> None:
    for epoch in range(first, last + 1):
        metrics = {"val/loss": loss(epoch)} if loss is not None else None
        manager.save_epoch_checkpoint(state_at(epoch), epoch, metrics)
    assert manager.wait(60)


def cut_short(run: FolderRun, step: int) -> None:
    """Remove the manifest, as if the process died before it."""
    run.place.files.drop(f"checkpoints/step-{step:09d}-a01/manifest.json")


NET = {"model": {"weight": torch.ones(3)}}


def saved(manager: CheckpointManager, state: dict[str, Any] | None = None, **named: Any) -> None:
    manager.save({**NET, **(state or {})}, **named)


def without_staging(run: FolderRun) -> FolderRun:
    """Return the next attempt as on another machine: what was staged here is not there."""
    other = run.next_attempt()
    other.staging = other.folder / "another machine"
    return other
