"""Stored checkpoints, damage to them, and watched uploads."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mltrain.checkpoint.manifest import Manifest
from mltrain.checkpoint.publishing import publish, stage
from mltrain.checkpoint.staging import Spool
from mltrain.checkpoint.store import CheckpointStore
from mltrain.store.remote import RemoteArtifacts
from tests.support.places import Files
from tests.support.runs import RUN_ID, manifest_of, snapshot_of, state_at

EXTRA = {"params.json": b'{"lr": 0.1}', "history.csv": b"epoch\n1\n"}


def again(store: CheckpointStore) -> CheckpointStore:
    """Return another process's view of the checkpoints, without staged copies."""
    return CheckpointStore(RUN_ID, store.artifacts)


def committed(store: CheckpointStore, step: int, attempt: int = 1, **more: Any) -> Manifest:
    manifest = stage(store, snapshot_of(state_at(step)), manifest_of(step, attempt, **more), EXTRA)
    publish(store, manifest)
    return manifest


class Watched(LocalArtifactRepository):
    """MLflow's repository of a folder; notes what is done, and fails or loses bytes when told to."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.done: list[str] = []
        self.fails_at = 0
        self.loses = 0

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        self.done.append(Path(local_file).name)
        if len(self.done) == self.fails_at:
            raise PermissionError("403")
        super().log_artifact(local_file, artifact_path)
        if self.loses:
            target = Path(self.artifact_dir) / (artifact_path or "") / Path(local_file).name
            target.write_bytes(target.read_bytes()[: -self.loses])


def elsewhere(tmp_path: Path) -> tuple[CheckpointStore, Watched]:
    repository = Watched(tmp_path / "artifacts")
    (tmp_path / "artifacts").mkdir()
    return CheckpointStore(RUN_ID, RemoteArtifacts(repository), Spool(tmp_path / "spool")), repository


def folder_of(tmp_path: Path, manifest: Manifest) -> Path:
    return tmp_path / "artifacts" / "checkpoints" / manifest.name


def path_of(manifest: Manifest, name: str) -> str:
    return f"checkpoints/{manifest.name}/{name}"


def change(files: Files, path: str, changed: Callable[[bytes], bytes]) -> None:
    files.write(path, changed(files.read(path)))


def replace_by_folder(files: Files, path: str) -> None:
    files.drop(path)
    files.write(f"{path}/inside", b"x")


def replace_by_pickle(files: Files, path: str) -> None:
    pickled = io.BytesIO()
    torch.save({"a": 1}, pickled)
    files.write(path, pickled.getvalue())


DAMAGES: dict[str, Callable[[Files, str], object]] = {
    "truncated": lambda files, path: change(files, path, lambda content: content[:-1]),
    "extended": lambda files, path: change(files, path, lambda content: content + b"\0"),
    "emptied": lambda files, path: change(files, path, lambda content: b""),
    "zeroed": lambda files, path: change(files, path, lambda content: bytes(len(content))),
    "reversed": lambda files, path: change(files, path, lambda content: content[::-1]),
    "missing": lambda files, path: files.drop(path),
    "a folder": replace_by_folder,
    "a pickle": replace_by_pickle,
}
