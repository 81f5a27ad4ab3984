"""Received files are verified; the remote store is not trusted."""

import errno
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from mlflow.entities import FileInfo
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mltrain.errors import StorageError
from mltrain.store.artifacts import Hashed, sha256_of
from mltrain.store.remote import RemoteArtifacts
from tests.support.folders import tree


class Receiving(LocalArtifactRepository):  # type: ignore[misc] # MLflow has no types
    """A store that records reception folders. It may report a wrong size, or meet a full disk."""

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
    with pytest.raises(StorageError, match=f"{2**60} free bytes in {home}"):
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


CONTENT = bytes(range(256)) * 40
"""10,240 bytes."""


class Serving(BaseHTTPRequestHandler):
    """Serves one file below ``/store/``: parts of it or only the whole, and at first with a fault, as the test says."""

    parts = True
    fault: ClassVar[list[str]] = []
    asked: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        self.asked.append(wanted)
        if self.path != "/store/folder/file":
            self.send_error(404)
            return
        first, last = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
        body = CONTENT[first : last + 1] if self.parts else CONTENT
        fault = self.fault.pop() if self.fault else ""
        self.send_response(503 if fault == "busy" else 206 if self.parts else 200)
        self.send_header("Content-Length", str(len(body) if fault != "short" else len(body) - 7))
        self.end_headers()
        if fault == "other bytes":
            body = bytes(byte ^ 1 for byte in body)
        self.wfile.write(body[:-7] if fault in ("short", "broken off", "other bytes") else body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


class Listed(HttpArtifactRepository):  # type: ignore[misc] # MLflow has no types
    """A server's artifacts, of which one is listed."""

    def list_artifacts(self, path: str | None = None) -> Any:
        return [FileInfo(f"{path}/{name}", is_dir=False, file_size=len(CONTENT)) for name in ("file", "removed")]


@pytest.fixture
def serving(home: Path) -> Iterator[Listed]:
    Serving.parts, Serving.fault, Serving.asked = True, [], []
    with ThreadingHTTPServer(("127.0.0.1", 0), Serving) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Listed(f"http://127.0.0.1:{server.server_port}/store")
        server.shutdown()


@pytest.mark.parametrize("part", [1000, 5120, len(CONTENT), 2**20])
def test_a_server_sends_a_file_in_parts_into_memory(part: int, serving: Listed, home: Path) -> None:
    pieces: list[int] = []
    content = RemoteArtifacts(serving, part=part).read("folder/file", 2**20, pieces.append)
    assert content == CONTENT
    assert isinstance(content, Hashed)
    assert sum(pieces) == len(CONTENT)
    assert content.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert len(Serving.asked) == len(pieces) == -(-len(CONTENT) // part)
    assert tree(home) == {}


@pytest.mark.parametrize("parts", [True, False])
def test_the_pieces_of_a_part_are_counted_as_they_arrive(parts: bool, serving: Listed) -> None:
    Serving.parts = parts
    pieces: list[int] = []
    RemoteArtifacts(serving, part=4000, piece=500).read("folder/file", 2**20, pieces.append)
    assert max(pieces) == 500
    assert sum(pieces) == len(CONTENT)


def test_the_parts_of_a_file_are_received_beside_each_other(home: Path) -> None:
    """Waiting for the first part would lengthen every resume."""
    others = threading.Event()

    class Holding(Serving):
        def do_GET(self) -> None:
            if self.headers["Range"] == "bytes=0-999":
                self.send_response(206)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(CONTENT[:1000] if others.wait(20) else b"")
                return
            others.set()
            super().do_GET()

    with ThreadingHTTPServer(("127.0.0.1", 0), Holding) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        content = RemoteArtifacts(Listed(f"http://127.0.0.1:{server.server_port}/store"), part=1000).read(
            "folder/file", 2**20
        )
        server.shutdown()
    assert others.is_set()
    assert content == CONTENT


def test_a_server_that_sends_no_parts_is_asked_once(serving: Listed) -> None:
    Serving.parts = False
    assert RemoteArtifacts(serving, part=1000).read("folder/file", 2**20) == CONTENT
    assert len(Serving.asked) == 1


@pytest.mark.parametrize("parts", [True, False])
@pytest.mark.parametrize("fault", ["busy", "short", "broken off", "other bytes"])
def test_a_part_that_comes_otherwise_is_asked_for_again(fault: str, parts: bool, serving: Listed) -> None:
    Serving.parts, Serving.fault = parts, [fault, fault]
    pieces: list[int] = []
    artifacts = RemoteArtifacts(serving, part=4000, piece=500)  # small pieces: those before the fault arrive
    content = artifacts.read("folder/file", 2**20, pieces.append)
    assert content == CONTENT
    assert sum(pieces) == len(CONTENT)  # what came twice counts once
    assert sha256_of(content) == hashlib.sha256(CONTENT).hexdigest()  # of what is there, and not of what came first
    assert len(Serving.asked) == (5 if parts else 3)


def test_a_file_is_hashed_while_it_arrives(serving: Listed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashing only at the end would lengthen every resume."""
    hashed: list[int] = []

    class Hash:
        def update(self, piece: memoryview) -> None:
            hashed.append(len(piece))

        def hexdigest(self) -> str:
            return "the digest"

    monkeypatch.setattr(hashlib, "sha256", Hash)
    content = RemoteArtifacts(serving, part=2**20, piece=1000).read("folder/file", 2**20)
    assert sha256_of(content) == "the digest"
    assert sum(hashed) == len(CONTENT)
    assert max(hashed) <= 1000


def test_a_file_that_is_gone_is_not_asked_for_again(serving: Listed) -> None:
    with pytest.raises(FileNotFoundError):
        RemoteArtifacts(serving).read("folder/removed", 2**20)
    assert len(Serving.asked) == 1
