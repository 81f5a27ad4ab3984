"""Opens the artifacts at a URI if they are permitted.

A run's artifact URI comes from the tracking server. A server on another machine must not name folders of this machine, where
mltrain would write and delete, or hosts that would receive data meant for the server.
"""

import importlib.util
import ipaddress
import os
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from mltrain.errors import StorageError
from mltrain.provenance import fingerprint
from mltrain.redaction import first_line, redacted_uri
from mltrain.store.artifacts import Artifacts, DeferredArtifacts
from mltrain.store.local import LocalArtifacts
from mltrain.store.remote import RemoteArtifacts
from mltrain.store.server_artifacts import artifacts_of_server

ALLOWED = "MLTRAIN_ALLOW_ARTIFACTS"
"""Environment variable with further allowed prefixes of artifact URIs, separated by commas."""

_OBJECT_STORES = frozenset({"s3", "gs", "wasb", "wasbs", "abfs", "abfss", "r2", "oss", "b2", "dbfs", "hdfs", "viewfs"})

_CLIENTS = {
    "s3": ("boto3", "boto3"),
    "r2": ("boto3", "boto3"),
    "b2": ("boto3", "boto3"),
    "gs": ("google.cloud.storage", "google-cloud-storage"),
    "wasbs": ("azure.storage.blob", "azure-storage-blob azure-identity"),
    "abfss": ("azure.storage.filedatalake", "azure-storage-file-datalake azure-identity"),
    "hdfs": ("pyarrow", "pyarrow"),
    "viewfs": ("pyarrow", "pyarrow"),
    "sftp": ("paramiko", "paramiko"),
}
"""Scheme to the module that MLflow needs for such a store, and the packages to install."""


class UnusableArtifacts(StorageError):
    """Artifacts that retries cannot make usable from this machine."""


@dataclass(frozen=True)
class Address:
    """A remote artifact store's address, for peer processes to open.

    It may contain credentials.
    """

    artifact_uri: str = field(repr=False)
    tracking_uri: str = field(repr=False)

    @classmethod
    def of(cls, artifacts: Artifacts) -> Self | None:
        """Return the address of opened artifacts.

        Returns ``None`` for a folder and for a run that is not created yet.
        """
        found = artifacts.target if isinstance(artifacts, DeferredArtifacts) else artifacts
        if not isinstance(found, RemoteArtifacts) or found.uris is None:
            return None
        return cls(*found.uris)

    def open(self) -> Artifacts:
        """Return the artifacts there; see :func:`open_artifacts`."""
        return open_artifacts(self.artifact_uri, self.tracking_uri)


def open_artifacts(artifact_uri: str, tracking_uri: str) -> Artifacts:
    """Return the artifacts at a run's artifact URI.

    Raises:
        UnusableArtifacts: the server may not name this URI, or it cannot be reached from this machine.
    """
    refuse_forbidden_uri(artifact_uri, tracking_uri)
    parsed = urllib.parse.urlparse(artifact_uri)
    if parsed.scheme == "file":
        return LocalArtifacts(Path(urllib.request.url2pathname(parsed.path)))
    if parsed.scheme == "" or (len(parsed.scheme) == 1 and os.name == "nt"):  # C:\ is a drive, not a scheme
        return LocalArtifacts(Path(artifact_uri))
    place, store = redacted_uri(artifact_uri), redacted_uri(tracking_uri)
    if parsed.scheme == "mlflow-artifacts" and not tracking_uri.startswith(("http://", "https://")):
        raise UnusableArtifacts(
            f"Artifacts at {place} can only be reached through the MLflow server that created this experiment. Expected its "
            f"address as tracking URI, got {store}. Try: MLFLOW_TRACKING_URI=http://HOST:PORT; or train in another "
            "experiment, created with: mlflow experiments create --experiment-name NAME --artifact-location FOLDER"
        )
    module, packages = _CLIENTS.get(parsed.scheme, ("", ""))
    if module and not _is_installed(module):
        raise UnusableArtifacts(
            f"Artifacts at {place} cannot be reached: the module {module} is not installed. Try: pip install {packages}"
        )

    def of_mlflow() -> Any:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        return get_artifact_repository(artifact_uri, tracking_uri=tracking_uri)

    try:
        repository = artifacts_of_server(artifact_uri, tracking_uri, of_mlflow) or of_mlflow()
        return RemoteArtifacts(repository, uris=(artifact_uri, tracking_uri))
    except Exception as error:  # each kind of store raises its own errors
        raise UnusableArtifacts(
            f"Artifacts at {place} cannot be reached with the tracking URI {store}: {type(error).__name__}: "
            f"{first_line(error)} Expected a folder, an MLflow server or an object store "
            "whose client is installed. Try: mltrain doctor"
        ) from error


def refuse_forbidden_uri(artifact_uri: str, tracking_uri: str) -> None:
    """Refuse a URI that a tracking server may not name.

    Raises:
        UnusableArtifacts: the server is on another machine, and the URI is a folder of this machine, another host, or of
            an unknown kind.
    """
    artifacts, tracking = urllib.parse.urlsplit(artifact_uri), urllib.parse.urlsplit(tracking_uri)
    if tracking.scheme not in ("http", "https") or _is_here(tracking.hostname):
        return
    if artifacts.scheme in _OBJECT_STORES:
        return
    if artifacts.scheme in ("mlflow-artifacts", "http", "https") and artifacts.hostname in (None, tracking.hostname):
        return
    allowed = [prefix.strip() for prefix in os.environ.get(ALLOWED, "").split(",") if prefix.strip()]
    if any(_is_below(artifact_uri, prefix) for prefix in allowed):
        return
    raise UnusableArtifacts(
        f"The tracking server {redacted_uri(tracking_uri)} stores artifacts at {redacted_uri(artifact_uri)}. Expected an "
        f"object store or the server itself. Try, if you trust it: {ALLOWED}={redacted_uri(artifact_uri)}"
    )


def _is_here(host: str | None) -> bool:
    if host is None or host in ("localhost", fingerprint.host()):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_below(uri: str, prefix: str) -> bool:
    place = prefix.rstrip("/")
    return ".." not in urllib.parse.unquote(uri).split("/") and (uri == place or uri.startswith(place + "/"))


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
