"""A folder's committer, and a store that delays uploads."""

import threading
from pathlib import Path
from typing import Any

from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mltrain.checkpoint.committer import Committer
from mltrain.checkpoint.manifest import Manifest, now
from mltrain.checkpoint.policies import Latest
from mltrain.checkpoint.pruner import Damage
from mltrain.checkpoint.reader import CheckpointReader
from mltrain.checkpoint.retention import Context
from mltrain.checkpoint.settings import Settings
from mltrain.checkpoint.snapshot import HostBuffers, snapshot
from mltrain.checkpoint.staging import Spool
from mltrain.checkpoint.store import CheckpointStore
from tests.support.runs import RUN_ID, FolderRun, manifest_of, state_at


class Gate(LocalArtifactRepository):
    """An artifact store with a gate and a refused path."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        super().__init__(str(folder))
        self.open = threading.Event()
        self.reached = threading.Event()
        self.refuses = ""

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        self.reached.set()
        assert self.open.wait(60)
        if self.refuses and self.refuses in str(artifact_path):
            raise PermissionError("403 Forbidden")
        super().log_artifact(local_file, artifact_path)


class Bench:
    """A committer, and the steps that it announced as committed."""

    def __init__(self, run: FolderRun, disk_retry_seconds: float = 0) -> None:
        self.run = run
        self.store = CheckpointStore(RUN_ID, run.artifacts, Spool(run.staging))
        self.committed: list[int] = []
        damage = Damage(run)
        reader = CheckpointReader(self.store, Context(now()), damage.note)
        self.committer = Committer(run, reader, Settings(Latest(100)), damage, disk_retry_seconds)
        self.committer.when_committed(lambda manifest, best, store: self.announced(manifest))
        self._buffers = HostBuffers()

    def announced(self, manifest: Manifest) -> None:
        self.committed.append(manifest.step)

    def save(self, step: int, **more: Any) -> None:
        self.put(step, state_at(step, **more))

    def put(self, step: int, state: Any) -> None:
        self.committer.make_way()
        self.committer.commit(snapshot(state, self._buffers), manifest_of(step), {"params.json": b"{}"})

    def settled(self) -> bool:
        return self.committer.wait(60)


def steps(manifests: list[Manifest]) -> list[int]:
    return [manifest.step for manifest in manifests]
