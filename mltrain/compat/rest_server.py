"""Sends requests to an MLflow server without importing MLflow.

The import takes more than a second. Only a plain server is accessed this way (see :func:`is_plain`); for all others MLflow
sends the requests.
"""

import importlib.metadata
import os
import sys
from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import requests

# With MLflow's defaults, a call blocks for four minutes without a server and sleeps for any Retry-After. mltrain has its
# own retries, which can be stopped.
CLIENT_DEFAULTS: Mapping[str, str] = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",  # would draw from Python's global random numbers
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # mltrain prints it once, at the start
    "MLFLOW_TRUNCATE_LONG_VALUES": "true",
}
TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_CREDENTIALS = Path("~/.mlflow/credentials")
_WITHOUT_EFFECT = frozenset(
    {
        "MLFLOW_TRACKING_URI",
        "MLFLOW_TRACKING_USERNAME",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        "MLFLOW_TRACKING_INSECURE_TLS",
        "MLFLOW_TRACKING_SERVER_CERT_PATH",
        "MLFLOW_EXPERIMENT_NAME",
        "MLFLOW_EXPERIMENT_ID",
        "MLFLOW_RUN_ID",
        "MLFLOW_DISABLE_TELEMETRY",
        "_MLFLOW_TELEMETRY_SESSION_ID",  # of a parent process that imported MLflow
        TIMEOUT,
    }
)
"""MLflow environment variables that this module supports or that do not affect requests."""
_PLUGINS = {
    "mlflow.request_header_provider": None,
    "mlflow.tracking_store": ("http", "https"),
    "mlflow.model_registry_store": ("http", "https"),
    "mlflow.artifact_repository": ("mlflow-artifacts",),
}
"""Entry point groups that change MLflow's requests, with the relevant schemes. If ``None``, every entry is relevant."""


class RestError(Exception):
    """A failed request, with the attributes of an ``MlflowException``.

    Args:
        message: describes the failure.
        error_code: MLflow's error code.
        status: of the HTTP response; 500 without a response.
    """

    def __init__(self, message: str, error_code: str = "INTERNAL_ERROR", status: int = 500) -> None:
        super().__init__(message)
        self.error_code = error_code
        self._status = status

    def get_http_status_code(self) -> int:
        """Return the status of the HTTP response."""
        return self._status


def set_client_defaults() -> None:
    """Set mltrain's defaults for MLflow's unset environment variables.

    An empty one counts as unset, as compose files and launchers pass them; MLflow would fail on it at every request.
    """
    for name in [name for name, value in os.environ.items() if name.startswith("MLFLOW_") and not value]:
        del os.environ[name]
    for name, value in CLIENT_DEFAULTS.items():
        os.environ.setdefault(name, value)


def is_plain(uri: str) -> bool:
    """Whether this module can send requests in MLflow's place.

    MLflow would send the same requests and has not been imported.
    """
    if "mlflow" in sys.modules or not uri.startswith(("http://", "https://")):
        return False
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS") and os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"):
        return False  # MLflow rejects the combination with its own error
    for name, value in os.environ.items():
        named = name.startswith(("MLFLOW_", "_MLFLOW_", "DATABRICKS_"))
        if named and name not in _WITHOUT_EFFECT and CLIENT_DEFAULTS.get(name) != value:
            return False
    return not _CREDENTIALS.expanduser().exists() and not _has_plugins()


@lru_cache(maxsize=1)
def _has_plugins() -> bool:
    found = importlib.metadata.entry_points()
    return any(
        schemes is None or one.name in schemes
        for group, schemes in _PLUGINS.items()
        for one in found.select(group=group)
    )


@lru_cache(maxsize=1)
def _session(process: int) -> "requests.Session":
    import requests

    return requests.Session()


class Server:
    """Sends requests to a server over this process's open connections.

    Args:
        uri: of the server.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")

    @cached_property
    def _headers(self) -> Mapping[str, str]:
        version = importlib.metadata.version("mlflow")
        return {"User-Agent": f"mlflow-python-client/{version}", "X-MLflow-Client-Version": version}

    def send(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, **named: Any
    ) -> "requests.Response":
        """Send one request and return the response, whatever its status.

        Args:
            method: of HTTP.
            path: appended to the server's URI.
            headers: additional ones.
            **named: further arguments for ``requests``.

        Raises:
            RestError: no response arrived.
        """
        sent = {**self._headers, **(headers or {})}
        user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
        token, certificate = os.environ.get("MLFLOW_TRACKING_TOKEN"), os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH")
        if user and password:
            import base64

            sent["Authorization"] = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        elif token:
            sent["Authorization"] = f"Bearer {token}"
        if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
            named["verify"] = False
        elif certificate:
            named["verify"] = certificate
        address, timeout = f"{self.uri}{path}", float(os.environ.get(TIMEOUT, "20"))
        try:
            return _session(os.getpid()).request(method, address, headers=sent, timeout=timeout, **named)
        except Exception as error:
            raise RestError(f"API request to {address} failed with exception {error}") from error
