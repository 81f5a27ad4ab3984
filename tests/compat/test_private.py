"""MLflow still has the private names that mltrain uses."""

import inspect
import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import mlflow.environment_variables
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.server.handlers import get_endpoints
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository
from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository
from mlflow.store.tracking.rest_store import RestStore

from mltrain.compat import private
from mltrain.compat.rest_server import CLIENT_DEFAULTS
from tests.support.database import fresh_database


@pytest.fixture
def client(tmp_path: Path) -> MlflowClient:
    return MlflowClient(fresh_database(tmp_path / "mlflow.db", tmp_path / "mlruns"))


@pytest.fixture
def run_id(client: MlflowClient) -> str:
    run_id = str(client.create_run("0").info.run_id)
    client.log_batch(run_id, metrics=[Metric("loss", 2.0 * step, 1_700_000_000_000 + step, step) for step in range(20)])
    return run_id


@pytest.mark.parametrize("name", sorted(CLIENT_DEFAULTS))
def test_mlflow_reads_the_environment_variable(name: str) -> None:
    assert name in vars(mlflow.environment_variables)


def test_a_run_has_its_latest_points_with_their_steps(client: MlflowClient, run_id: str) -> None:
    assert [(point.key, point.step) for point in private.latest_points(client.get_run(run_id))] == [("loss", 19)]


def test_a_database_returns_the_points_between_two_steps(client: MlflowClient, run_id: str) -> None:
    found = private.points(client, "sqlite:///", [run_id], "loss", 3, 5)
    assert sorted(found) == [(run_id, (3, 6.0)), (run_id, (4, 8.0)), (run_id, (5, 10.0))]


def test_a_server_has_the_endpoint_for_the_points_between_two_steps() -> None:
    assert private.INTERVAL_ENDPOINT in {path for path, _, methods in get_endpoints() if "GET" in methods}
    store = MlflowClient("http://127.0.0.1:1")._tracking_client.store
    assert isinstance(store, RestStore)
    assert callable(store.get_host_creds)


class Recording(BaseHTTPRequestHandler):
    """A server that takes points and keeps them."""

    bodies: ClassVar[list[Any]] = []

    def do_POST(self) -> None:
        self.bodies.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def test_points_are_sent_as_mlflow_sends_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CLIENT_DEFAULTS.items():
        monkeypatch.setenv(name, value)
    points = [("loss", 0.1, 1_700_000_000_000, 1), ("größe/x", -1e300, 1, -(2**62)), ("zero", 0.0, 0, 0)]
    points += [("odd", value, 5, 2**53 + 1) for value in (math.nan, math.inf, -math.inf)]
    with HTTPServer(("127.0.0.1", 0), Recording) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = MlflowClient(f"http://127.0.0.1:{server.server_port}")
        client.log_batch("0" * 32, metrics=[Metric(*point) for point in points])
        private.log_points(client, "0" * 32, points)
        server.shutdown()
    (path, theirs), (own_path, ours) = Recording.bodies
    assert own_path == path == private.BATCH_ENDPOINT
    assert ours == {key: value for key, value in theirs.items() if value}


@pytest.mark.parametrize("kind", [MlflowArtifactsRepository, HttpArtifactRepository, S3ArtifactRepository])
def test_an_artifact_repository_downloads_one_file(kind: type) -> None:
    assert list(inspect.signature(kind._download_file).parameters) == ["self", "remote_file_path", "local_path"]  # type: ignore[attr-defined]


def test_an_artifact_repository_opens_parts_of_a_file() -> None:
    server = HttpArtifactRepository("http://127.0.0.1:1/store")
    assert private.part_opener(server) is not None
    assert server._host_creds.host == "http://127.0.0.1:1/store"
    bucket = S3ArtifactRepository("s3://bucket/root")
    assert private.part_opener(bucket) is not None
    assert bucket.parse_s3_compliant_uri("s3://bucket/root") == ("bucket", "root")
    assert bucket._bucket_owner_params == {}
    assert callable(bucket._get_s3_client)
    assert private.part_opener(object()) is None


class StorageOnly(BaseHTTPRequestHandler):
    """A server that signs addresses of its storage. It sends no artifact itself, as MLflow 3.18 may; one port serves
    both.
    """

    content = bytes(range(256)) * 40

    def do_GET(self) -> None:
        answer: bytes | None = None
        begin, _, end = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        if self.path.startswith("/api/2.0/mlflow-artifacts/presigned/0/run/artifacts/file.bin"):
            url = f"http://127.0.0.1:{self.server.server_address[1]}/storage?signature=1"
            answer = json.dumps({"url": url, "headers": {"X-Signed": "yes"}, "file_size": len(self.content)}).encode()
        elif self.path == "/storage?signature=1" and self.headers.get("X-Signed") == "yes":
            answer = self.content[int(begin) : int(end) + 1]
        self.send_response(403 if answer is None else 206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(len(answer or b"")))
        self.end_headers()
        self.wfile.write(answer or b"")

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def test_parts_come_from_the_storage_where_the_server_sends_nothing_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CLIENT_DEFAULTS.items():
        monkeypatch.setenv(name, value)
    with HTTPServer(("127.0.0.1", 0), StorageOnly) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        repository = HttpArtifactRepository(
            f"http://127.0.0.1:{server.server_port}/api/2.0/mlflow-artifacts/artifacts/0/run/artifacts"
        )
        open_part = private.part_opener(repository)
        assert open_part is not None
        with pytest.raises(Exception, match="403"):
            open_part("file.bin", 100, 400, 250)
        monkeypatch.setattr(repository, "_is_artifacts_presigned_only", lambda: True, raising=False)  # from 3.18 on
        assert private.is_presigned_only(repository)
        is_part, pieces = open_part("file.bin", 100, 400, 250)
        assert (is_part, list(pieces)) == (True, [StorageOnly.content[100:350], StorageOnly.content[350:400]])
        server.shutdown()
    assert not private.is_presigned_only(object())


class Receiving(BaseHTTPRequestHandler):
    """A server that keeps the artifacts and headers it receives."""

    came: ClassVar[dict[str, tuple[bytes, dict[str, str]]]] = {}
    status = 200

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.came[self.path] = content, {name: self.headers[name] for name in ("Content-Type", "Transfer-Encoding")}
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


class Blocks:
    """Content in blocks whose memory is reused after each."""

    def __len__(self) -> int:
        return 3 * 1000

    def __iter__(self) -> Iterator[memoryview]:
        block = bytearray(1000)
        for number in range(3):
            block[:] = bytes([number]) * 1000
            yield memoryview(block)


def test_a_content_is_sent_to_a_server_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CLIENT_DEFAULTS.items():
        monkeypatch.setenv(name, value)
    with HTTPServer(("127.0.0.1", 0), Receiving) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        repository = HttpArtifactRepository(f"http://127.0.0.1:{server.server_port}/store")
        send = private.content_sender(repository)
        assert send is not None
        send("folder/model.safetensors", Blocks())
        expected = b"".join(bytes([number]) * 1000 for number in range(3))
        sent_as = {"Content-Type": "application/octet-stream", "Transfer-Encoding": None}
        assert Receiving.came == {"/store/folder/model.safetensors": (expected, sent_as)}
        monkeypatch.setattr(Receiving, "status", 507)
        with pytest.raises(Exception, match="507"):
            send("folder/model.safetensors", Blocks())
        server.shutdown()


def test_only_a_server_that_takes_all_bytes_itself_is_sent_contents(monkeypatch: pytest.MonkeyPatch) -> None:
    assert private.content_sender(object()) is None
    monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "true")
    assert private.content_sender(HttpArtifactRepository("http://127.0.0.1:1/store")) is None


class Busy(BaseHTTPRequestHandler):
    """A server that asks to come back later."""

    wait = "7"

    def do_GET(self) -> None:
        self.send_response(429)
        self.send_header("Retry-After", self.wait)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, value in CLIENT_DEFAULTS.items():
        monkeypatch.setenv(name, value)
    with HTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(("wait", "seconds"), [("7", 7.0), ("3600", private.LONGEST_WAIT), ("Fri, 31 Dec 1999", 0.0)])
def test_the_seconds_that_a_server_asks_to_wait_are_found(
    wait: str, seconds: float, busy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Busy, "wait", wait)
    with pytest.raises(MlflowException) as raised:
        MlflowClient(busy).get_run("a" * 32)
    assert private.retry_after(raised.value) == seconds


def test_tokens_of_pages_are_those_of_mlflow_or_one_by_one() -> None:
    from mlflow.utils.search_utils import SearchUtils

    def made(offset: int) -> str:
        return str(SearchUtils.create_page_token(offset), "ascii")

    assert private.page_tokens(made(500), 500, 250, 3) == [made(500), made(750), made(1000)]
    assert private.page_tokens("opaque", 250, 250, 3) == ["opaque"]
