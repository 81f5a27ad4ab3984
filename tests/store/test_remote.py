"""A file of a remote store is received on this disk, and what is there is not believed."""

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import FileInfo
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mltrain.errors import StorageError
from mltrain.store.remote import RemoteArtifacts
from tests.support.folders import tree


class Receiving(LocalArtifactRepository):  # type: ignore[misc] # MLflow has no types
    """A store that notes where a file is received, and may be larger than it is, or meet a full disk there."""

    def __init__(self, root: Path, size: int | None = None, error: Exception | None = None) -> None:
        super().__init__(str(root))
        (root / "file").write_bytes(b"content")
        self.places: list[Path] = []
        self._size = size
        self._error = error

    def list_artifacts(self, path: str | None = None) -> Any:
        return [FileInfo(info.path, info.is_dir, self._size or info.file_size) for info in super().list_artifacts(path)]

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        self.places.append(Path(local_path))
        if self._error is not None:
            raise self._error
        super()._download_file(remote_file_path, local_path)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLTRAIN_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_file_is_received_below_the_home_and_leaves_nothing_there(root: Path, home: Path) -> None:
    repository = Receiving(root)
    assert RemoteArtifacts(repository).read("file", 100) == b"content"
    (place,) = repository.places
    assert place.is_relative_to(home)
    assert tree(home / "received") == {}


def wrapped(error: Exception) -> Exception:
    outer = RuntimeError("the download failed")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space"), wrapped(OSError(errno.EROFS, "Read-only"))])
def test_a_full_disk_is_named_and_not_taken_for_the_store(error: Exception, root: Path, home: Path) -> None:
    repository = Receiving(root, error=error)
    with pytest.raises(StorageError, match="MLTRAIN_HOME") as refused:
        RemoteArtifacts(repository).read("file", 100)
    assert str(home / "received") in str(refused.value)
    assert "store" not in str(refused.value)
    assert len(repository.places) == 1


def test_what_no_disk_has_room_for_is_refused_before_it_is_received(root: Path, home: Path) -> None:
    repository = Receiving(root, size=2**60)
    with pytest.raises(StorageError, match=f"{2**60} bytes of room in {home}"):
        RemoteArtifacts(repository).read("file", 2**61)
    assert repository.places == []


def test_a_home_that_cannot_be_made_is_replaced_by_the_temporary_folder(root: Path, home: Path) -> None:
    home.write_text("a file")
    assert RemoteArtifacts(Receiving(root)).read("file", 100) == b"content"


def test_what_killed_processes_had_received_is_removed_once_it_is_old(root: Path, home: Path) -> None:
    for name, age in {"mltrain-old": 7200.0, "mltrain-new": 60.0}.items():
        (home / "received" / name).mkdir(parents=True)
        (home / "received" / name / "part").write_text("half")
        for path in (home / "received" / name / "part", home / "received" / name):
            os.utime(path, (time.time() - age,) * 2)
    RemoteArtifacts(Receiving(root)).read("file", 100)
    assert sorted(tree(home / "received")) == ["mltrain-new", "mltrain-new/part"]


def test_strange_names_of_a_remote_listing_are_left_out(root: Path) -> None:
    from mlflow.entities import FileInfo

    class Strange(LocalArtifactRepository):
        def list_artifacts(self, path: str | None = None) -> Any:
            return [FileInfo(f"{path}/{name}", False, 1) for name in ("fine", "..", "a\nb", ".hidden", "x%2e")]

    assert [entry.name for entry in RemoteArtifacts(Strange(str(root))).entries("folder")] == ["fine"]
