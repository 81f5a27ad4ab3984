"""Where the artifacts of a run can be, for tests: the door that mltrain goes through, and a way behind its back."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mltrain.store.artifacts import Artifacts
from mltrain.store.local import LocalArtifacts
from mltrain.store.opening import open_artifacts
from mltrain.store.remote import RemoteArtifacts
from tests.support.servers import BucketServer, TrackingServer


class Files(Protocol):
    """The files behind a store, for reading and damage."""

    def all(self) -> dict[str, bytes]:
        """Return every file by its path."""
        ...

    def read(self, path: str) -> bytes: ...

    def write(self, path: str, content: bytes) -> None: ...

    def drop(self, path: str) -> None: ...


@dataclass(frozen=True)
class FolderFiles:
    root: Path

    def all(self) -> dict[str, bytes]:
        files = [path for path in self.root.rglob("*") if path.is_file()]
        return {path.relative_to(self.root).as_posix(): path.read_bytes() for path in sorted(files)}

    def read(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def write(self, path: str, content: bytes) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_bytes(content)

    def drop(self, path: str) -> None:
        place = self.root / path
        shutil.rmtree(place) if place.is_dir() else place.unlink()


@dataclass(frozen=True)
class BucketFiles:
    client: Any
    bucket: str
    prefix: str

    def all(self) -> dict[str, bytes]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=f"{self.prefix}/")
        keys = sorted(found["Key"] for page in pages for found in page.get("Contents", []))
        return {key.removeprefix(f"{self.prefix}/"): self._content(key) for key in keys}

    def _content(self, key: str) -> bytes:
        return bytes(self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read())

    def read(self, path: str) -> bytes:
        return self._content(f"{self.prefix}/{path}")

    def write(self, path: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=f"{self.prefix}/{path}", Body=content)

    def drop(self, path: str) -> None:
        self.client.delete_object(Bucket=self.bucket, Key=f"{self.prefix}/{path}")


@dataclass(frozen=True)
class Place:
    """Artifacts of a run: ``opened`` as mltrain sees them, ``files`` as the storage does.

    Attributes:
        kind: ``folder``, ``behind``, ``server`` or ``bucket``.
        beside: the files of everything that shares the storage, other runs included.
    """

    kind: str
    opened: Callable[[], Artifacts]
    files: Files
    beside: Files
    uri: str = ""

    @property
    def is_remote(self) -> bool:
        return self.kind != "folder"


def folder(root: Path) -> Place:
    """A folder of this machine."""
    root.mkdir(parents=True, exist_ok=True)
    return Place("folder", lambda: LocalArtifacts(root), FolderFiles(root), FolderFiles(root.parent), str(root))


def behind(root: Path, repository: Callable[[str], LocalArtifactRepository] = LocalArtifactRepository) -> Place:
    """A local folder, reached through MLflow's repository like remote storage."""
    root.mkdir(parents=True, exist_ok=True)
    kept = repository(str(root))
    return Place("behind", lambda: RemoteArtifacts(kept), FolderFiles(root), FolderFiles(root.parent))


def server(tracking: TrackingServer, path: str) -> Place:
    """Behind an MLflow server that hands artifacts on."""
    root = tracking.folder / "artifacts"
    uri = f"mlflow-artifacts:/{path}"
    files, beside = (FolderFiles(root / part) for part in (path, path.split("/")[0]))
    return Place("server", lambda: open_artifacts(uri, tracking.uri), files, beside, uri)


def bucket(store: BucketServer, prefix: str) -> Place:
    """In a bucket."""
    client, uri = store.client(), f"s3://{store.bucket}/{prefix}"
    files, beside = (BucketFiles(client, store.bucket, path) for path in (prefix, prefix.split("/")[0]))
    return Place("bucket", lambda: open_artifacts(uri, "sqlite://"), files, beside, uri)
