"""mltrain and MLflow receive the same artifacts from a server. MLflow gets the requests that the server refuses."""

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from mltrain.compat.rest_server import Server
from mltrain.errors import DamagedCheckpoint
from mltrain.store.artifacts import Received
from mltrain.store.remote import RemoteArtifacts
from mltrain.store.server_artifacts import ServerArtifacts
from tests.support.servers import TrackingServer


@pytest.fixture
def uri(tracking_server: TrackingServer) -> str:
    return tracking_server.uri


def test_artifacts_are_those_of_mlflow(uri: str, tmp_path: Path) -> None:
    theirs = MlflowClient(uri)
    run_id = theirs.create_run("0").info.run_id
    path = theirs.get_run(run_id).info.artifact_uri.removeprefix("mlflow-artifacts:").strip("/")
    repository = ServerArtifacts(uri, path, lambda: pytest.fail("MLflow's own repository is not needed"))
    artifacts = RemoteArtifacts(repository, part=1000)
    content = os.urandom(4500)
    for name in ("a.bin", "b.bin"):
        (tmp_path / name).write_bytes(content)
    artifacts.upload_all([tmp_path / "a.bin", tmp_path / "b.bin"], "folder/deep")
    artifacts.upload(tmp_path / "a.bin")
    send = artifacts.sender("folder/sent")
    assert send is not None
    send("c.bin", Streamed(content))
    artifacts.upload_all([tmp_path / "b.bin"], "folder/sent")
    assert bytes(artifacts.read("folder/sent/c.bin", 5000)) == content
    for folder in (None, "folder", "folder/deep", "folder/sent", "a.bin", "nothing"):
        listed = [
            {(one.path, one.is_dir, one.file_size) for one in listing(folder)}
            for listing in (repository.list_artifacts, lambda path: theirs.list_artifacts(run_id, path))
        ]
        assert listed[0] == listed[1]
    assert bytes(artifacts.read("folder/deep/a.bin", 5000)) == content
    with pytest.raises(FileNotFoundError):
        artifacts.read("folder/none.bin", 10)
    with pytest.raises(DamagedCheckpoint, match="has 4500 bytes"):
        artifacts.read("folder/deep/a.bin", 4499)
    repository.delete_artifacts("folder")
    assert [one.path for one in theirs.list_artifacts(run_id)] == ["a.bin"]


def test_a_small_file_takes_one_request(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = ServerArtifacts(uri, "0/small/artifacts", lambda: pytest.fail("MLflow's own repository is not needed"))
    (tmp_path / "a.json").write_bytes(b"{}")
    artifacts, sent = RemoteArtifacts(repository), []
    artifacts.upload(tmp_path / "a.json", "folder")
    send = Server.send
    monkeypatch.setattr(Server, "send", lambda *call, **named: sent.append(call[1:]) or send(*call, **named))
    assert artifacts.read("folder/a.json", 10) == b"{}"
    assert [method for method, *_ in sent] == ["GET"]


def test_a_small_file_is_counted_while_it_arrives_and_once(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = ServerArtifacts(
        uri, "0/counted/artifacts", lambda: pytest.fail("MLflow's own repository is not needed")
    )
    (tmp_path / "a.bin").write_bytes(bytes(4500))
    artifacts = RemoteArtifacts(repository, piece=1000)
    artifacts.upload(tmp_path / "a.bin", "folder")
    pieces: list[int] = []
    artifacts.read("folder/a.bin", 5000, pieces.append)
    assert pieces == [1000] * 4 + [500]

    def breaks_off(path: str, most: int, received: Received, piece_size: int) -> bytearray:
        received(1700)
        raise ConnectionError("broken off")

    monkeypatch.setattr(repository, "content", breaks_off)
    pieces.clear()
    artifacts.read("folder/a.bin", 5000, pieces.append)
    assert sum(pieces) == 4500


class Streamed:
    """A content in pieces."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __len__(self) -> int:
        return len(self._content)

    def __iter__(self) -> Iterator[memoryview]:
        view = memoryview(self._content)
        return (view[begin : begin + 1000] for begin in range(0, len(view), 1000))


class Refusing(BaseHTTPRequestHandler):
    """A server that sends and takes no artifact itself."""

    def do_GET(self) -> None:
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


class Theirs:
    """Stands for MLflow's own repository."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def list_artifacts(self, path: str | None) -> list[Any]:
        self.asked.append("list")
        return []

    def log_artifact(self, file: str, path: str | None) -> None:
        self.asked.append("log")


def test_what_a_server_refuses_and_what_goes_in_parts_is_left_to_mlflow(tmp_path: Path, uri: str) -> None:
    file = tmp_path / "file.bin"
    file.write_bytes(b"content")
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        theirs = Theirs()
        repository = ServerArtifacts(f"http://127.0.0.1:{server.server_port}", "0/run/artifacts", lambda: theirs)
        assert repository.list_artifacts("folder") == []
        repository.log_artifact(str(file), "folder")
        assert theirs.asked == ["list", "log"]
        server.shutdown()
    large = Theirs()
    ServerArtifacts(uri, "0/large", lambda: large, most_at_once=7).log_artifact(str(file))
    assert large.asked == ["log"]
    for refusing in (repository, ServerArtifacts(uri, "0/large", lambda: large, most_at_once=7)):
        with pytest.raises(NotImplementedError):
            refusing.send("folder/c.bin", Streamed(b"1234567"))
