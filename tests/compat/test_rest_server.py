"""A plain server gets the requests that MLflow sends; every other server is left to MLflow."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from mlflow import MlflowClient

from mltrain.compat.rest import RestClient
from mltrain.compat.rest_server import CLIENT_DEFAULTS, is_plain
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.connection import Refusal

PLAIN = """
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from mltrain.compat.rest_server import is_plain, set_client_defaults, _has_plugins
import os
os.environ.update(MLFLOW_HTTP_REQUEST_TIMEOUT="", MLFLOW_TRACKING_INSECURE_TLS="", MLFLOW_TRACKING_AUTH="")
set_client_defaults()
assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "20", "an empty variable counts as unset"
assert not {"MLFLOW_TRACKING_INSECURE_TLS", "MLFLOW_TRACKING_AUTH"} & os.environ.keys()
U = "http://127.0.0.1:5000"
def plain(uri=U, **environment):
    os.environ.update(environment)
    try:
        return is_plain(uri)
    finally:
        for name in environment:
            del os.environ[name]
assert plain() and plain("https://host/prefix")
assert plain(MLFLOW_TRACKING_USERNAME="me", MLFLOW_TRACKING_PASSWORD="x", MLFLOW_TRACKING_URI=U, MLFLOW_RUN_ID="1")
assert plain(MLFLOW_DISABLE_TELEMETRY="1") and plain(_MLFLOW_TELEMETRY_SESSION_ID="of a parent that imported MLflow")
assert plain(MLFLOW_TRACKING_SERVER_CERT_PATH="/ca.pem") and plain(MLFLOW_TRACKING_INSECURE_TLS="true")
assert not plain(MLFLOW_TRACKING_SERVER_CERT_PATH="/ca.pem", MLFLOW_TRACKING_INSECURE_TLS="true")
for uri in ("sqlite:///mlflow.db", "databricks", "postgresql://host/db", "file:///runs", "uc:http://host"):
    assert not plain(uri), uri
for name in ("MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4", "MLFLOW_TRACKING_CLIENT_CERT_PATH", "MLFLOW_WORKSPACE",
             "MLFLOW_REGISTRY_URI", "MLFLOW_ACTIVE_MODEL_ID", "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "DATABRICKS_HOST",
             "MLFLOW_SOMETHING_NEW"):
    assert not plain(**{name: "true"}), name
os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "3"
assert not plain()
os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
file = Path("~/.mlflow/credentials").expanduser()
file.parent.mkdir(parents=True)
file.write_text("[mlflow]")
assert not plain()
file.unlink()
import importlib.metadata
entry_points = importlib.metadata.entry_points
for group, name, changes in (("mlflow.request_header_provider", "any", True), ("mlflow.tracking_store", "http", True),
                    ("mlflow.artifact_repository", "mlflow-artifacts", True), ("mlflow.tracking_store", "mine", False),
                    ("mlflow.artifact_repository", "s3", False), ("mlflow.deployments", "http", False)):
    importlib.metadata.entry_points = lambda: EntryPoints([EntryPoint(name, "package", group)])
    _has_plugins.cache_clear()
    assert plain() is not changes, (group, name)
importlib.metadata.entry_points = entry_points
_has_plugins.cache_clear()
assert plain() and "mlflow" not in sys.modules
import mlflow
assert not plain()
"""


def test_only_a_plain_server_is_asked_without_mlflow(tmp_path: Path) -> None:
    assert not is_plain("http://127.0.0.1:5000"), "MLflow has been imported here"
    prefixes = ("MLFLOW_", "_MLFLOW_", "DATABRICKS_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    subprocess.run([sys.executable, "-c", PLAIN], check=True, env={**environment, "HOME": str(tmp_path)}, timeout=120)


class Recording(BaseHTTPRequestHandler):
    """Records requests, and asks the client to retry later."""

    seen: ClassVar[list[dict[str, str]]] = []

    def do_GET(self) -> None:
        self.seen.append(dict(self.headers))
        content = json.dumps({"error_code": "TEMPORARILY_UNAVAILABLE", "message": "later"}).encode()
        self.send_response(503)
        self.send_header("Retry-After", "7")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.mark.parametrize(
    "access",
    [
        {},
        {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "pa:ss"},
        {"MLFLOW_TRACKING_TOKEN": "token"},
        {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_TOKEN": "token"},
    ],
)
def test_a_request_has_the_headers_of_mlflow_and_its_error_the_seconds_to_wait(
    access: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**CLIENT_DEFAULTS, **access}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Recording, "seen", [])
    with HTTPServer(("127.0.0.1", 0), Recording) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{server.server_port}"
        for client in (RestClient(place), MlflowClient(place)):
            with pytest.raises(Refusal) as raised:
                TrackingClient(place, client).get_run("a" * 32)
            assert (raised.value.permanent, raised.value.wait) == (False, 7.0)
        server.shutdown()
    own, theirs = (
        {name: value for name, value in seen.items() if name.startswith(("Authorization", "User-Agent", "X-"))}
        for seen in (Recording.seen[0], Recording.seen[-1])
    )
    assert own == theirs
