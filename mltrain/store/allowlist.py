"""Artifact URIs that point elsewhere.

A run's artifact URI comes from the tracking server. A server on another machine has no business naming folders of this
one, where mltrain would write and delete, or hosts that would be sent what is meant for it.
"""

import ipaddress
import os
import urllib.parse

from mltrain.errors import StorageError
from mltrain.provenance import fingerprint
from mltrain.redaction import redacted_uri

ALLOWED = "MLTRAIN_ALLOW_ARTIFACTS"
"""Environment variable: prefixes of further artifact URIs, separated by commas."""

_OBJECT_STORES = frozenset({"s3", "gs", "wasb", "wasbs", "abfs", "abfss", "r2", "oss", "b2", "dbfs", "hdfs", "viewfs"})


class UnusableArtifacts(StorageError):
    """Artifacts at a place that cannot be used from here, however often it is tried."""


def refuse_elsewhere(artifact_uri: str, tracking_uri: str) -> None:
    """Refuse an artifact URI that a tracking server may not name.

    Raises:
        UnusableArtifacts: it is a folder of this machine and the server is on another one, a host that is not the server's,
            or of a kind that is not known.
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
        f"The tracking server {redacted_uri(tracking_uri)} wants artifacts to go to {redacted_uri(artifact_uri)}, which is "
        f"neither an object store nor the server itself. If that is right, allow it: {ALLOWED}={redacted_uri(artifact_uri)}"
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
