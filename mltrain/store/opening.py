"""Opens the artifacts at a URI: which kind of store it is, and whether it can be used from here."""

import importlib.util
import os
import urllib.parse
import urllib.request
from pathlib import Path

from mltrain.redaction import redacted, redacted_uri
from mltrain.store.allowlist import UnusableArtifacts, refuse_elsewhere
from mltrain.store.artifacts import Artifacts
from mltrain.store.local import LocalArtifacts
from mltrain.store.remote import BucketArtifacts, RemoteArtifacts

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
"""For a scheme the module that MLflow needs to reach such a store, and what to install for it."""


def open_artifacts(artifact_uri: str, tracking_uri: str) -> Artifacts:
    """Return the artifacts at a run's artifact URI.

    Raises:
        UnusableArtifacts: the URI points elsewhere than a server of this URI may say, or cannot be reached from here.
    """
    refuse_elsewhere(artifact_uri, tracking_uri)
    parsed = urllib.parse.urlparse(artifact_uri)
    if parsed.scheme == "file":
        return LocalArtifacts(Path(urllib.request.url2pathname(parsed.path)))
    if parsed.scheme == "" or (len(parsed.scheme) == 1 and os.name == "nt"):  # C:\ is a drive and not a scheme
        return LocalArtifacts(Path(artifact_uri))
    place, store = redacted_uri(artifact_uri), redacted_uri(tracking_uri)
    if parsed.scheme == "mlflow-artifacts" and not tracking_uri.startswith(("http://", "https://")):
        raise UnusableArtifacts(
            f"Artifacts at {place} can only be reached through the MLflow server that made this experiment, and the "
            f"tracking URI is {store}. Expected the server's address. Try: MLFLOW_TRACKING_URI=http://HOST:PORT; or train in "
            "another experiment, made with: mlflow experiments create --experiment-name NAME --artifact-location FOLDER"
        )
    module, packages = _CLIENTS.get(parsed.scheme, ("", ""))
    if module and not _is_installed(module):
        raise UnusableArtifacts(
            f"Artifacts at {place} cannot be reached: the module {module} is not installed. Try: pip install {packages}"
        )
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    kind = BucketArtifacts if parsed.scheme == "s3" else RemoteArtifacts
    try:
        return kind(get_artifact_repository(artifact_uri, tracking_uri=tracking_uri))
    except Exception as error:  # each kind of store has errors of its own
        lines = redacted(str(error)).strip().splitlines()
        raise UnusableArtifacts(
            f"Artifacts at {place} cannot be reached with the tracking URI {store}: {type(error).__name__}: "
            f"{lines[0][:300] if lines else ''} Expected a folder, an MLflow server or an object store whose client is "
            "installed. Try: mltrain doctor"
        ) from error


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
