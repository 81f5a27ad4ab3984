"""Artifacts served by a plain MLflow server, without importing MLflow.

Requests that such a server refuses, and files that MLflow may send in parts, go to MLflow's own artifact repository: it also
handles servers that only presign URLs of their storage, and its errors explain the refusal.
"""

import hashlib
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from mltrain.compat.private import part_opener
from mltrain.compat.rest_server import Server, is_plain
from mltrain.store.artifacts import Hashed, Received

if TYPE_CHECKING:
    import requests

ROOT = "/api/2.0/mlflow-artifacts/artifacts"
_UPLOAD_HEADERS = {"Content-Type": "application/octet-stream"}
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})

T = TypeVar("T")


class _Refused(Exception):
    """The server refuses a request permanently."""


class ServerArtifacts:
    """A plain server's artifacts with MLflow's repository methods.

    Only the methods that mltrain needs exist. Each raises the errors of ``requests`` for a transient status or a missing
    artifact, and :class:`~mltrain.compat.rest_server.RestError` without a response.

    Args:
        tracking_uri: of the server.
        path: of the artifacts below the server's artifact root.
        other: opens MLflow's own repository of the same artifacts.
        most_at_once: MLflow's client may send files of at least this many bytes in parts.
    """

    def __init__(
        self, tracking_uri: str, path: str, other: Callable[[], Any], *, most_at_once: int = 500 * 1024**2
    ) -> None:
        self.artifact_uri = f"{tracking_uri.rstrip('/')}{ROOT}/{path}"
        self._server, self._path = Server(tracking_uri), path
        self._open_other, self._other = other, None
        self._most_at_once = most_at_once

    def list_artifacts(self, path: str | None = None) -> list[Any]:
        """Return path, size and kind of a folder's entries."""

        def listed() -> list[Any]:
            response = self._request("GET", ROOT, params={"path": posixpath.join(self._path, path or "").rstrip("/")})
            found = [
                SimpleNamespace(
                    path=posixpath.join(path or "", entry["path"]),
                    is_dir=bool(entry["is_dir"]),
                    file_size=int(entry["file_size"]) if "file_size" in entry else None,
                )
                for entry in response.json().get("files", ())
            ]
            if path and [(one.path, one.is_dir) for one in found] == [
                (posixpath.join(path, posixpath.basename(path)), False)
            ]:
                return []  # the server's response for the path of a file
            return found

        return self._done(listed, lambda other: other.list_artifacts(path))

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        """Upload one file into a folder."""
        file = Path(local_file)

        def sent() -> None:
            if file.stat().st_size >= self._most_at_once:
                raise _Refused
            with file.open("rb") as content:
                self._request("PUT", self._place(artifact_path or "", file.name), data=content, headers=_UPLOAD_HEADERS)

        self._done(sent, lambda other: other.log_artifact(local_file, artifact_path))

    def send(self, path: str, content: Iterable[memoryview]) -> None:
        """Upload sized content in one try, without MLflow's fallback.

        Raises:
            NotImplementedError: the server accepts only files.
        """
        try:
            if self._other is not None or len(content) >= self._most_at_once:  # type: ignore[arg-type]
                raise _Refused
            self._request("PUT", self._place(path), data=content, headers=_UPLOAD_HEADERS)
        except _Refused:
            raise NotImplementedError(f"{path} can only be uploaded as a file") from None

    def delete_artifacts(self, artifact_path: str) -> None:
        """Delete a file or a folder."""
        self._done(
            lambda: self._request("DELETE", self._place(artifact_path)),
            lambda other: other.delete_artifacts(artifact_path),
        )

    def content(self, path: str, most: int, received: Received, piece_size: int) -> Hashed:
        """Return a file's content, at most ``most`` bytes, requested once.

        ``received`` is called with the bytes of each piece, which are at most ``piece_size``.

        Raises:
            ValueError: the file is larger.
        """
        if self._other is not None:
            raise NotImplementedError(f"{path} is read by MLflow's own repository")
        response = self._request("GET", self._place(path), headers={"Accept-Encoding": "identity"}, stream=True)
        content, digest = Hashed(), hashlib.sha256()
        with response:
            for piece in response.iter_content(piece_size):
                content += piece
                digest.update(piece)
                if len(content) > most:
                    raise ValueError(f"{path} has more than {most} bytes")
                received(len(piece))
        content.sha256 = digest.hexdigest()
        return content

    def open_part(self, path: str, first: int, last: int, piece_size: int) -> tuple[bool, Iterator[bytes]]:
        """Request a byte range; see :data:`~mltrain.compat.private.PartOpener`."""

        def opened() -> tuple[bool, Iterator[bytes]]:
            headers = {"Range": f"bytes={first}-{last - 1}", "Accept-Encoding": "identity"}
            response = self._request("GET", self._place(path), headers=headers, stream=True)
            return response.status_code == 206, response.iter_content(piece_size)

        def through_mlflow(other: Any) -> tuple[bool, Iterator[bytes]]:
            open_part = part_opener(other)
            assert open_part is not None, "MLflow's repository of a server's artifacts opens parts"
            return open_part(path, first, last, piece_size)

        return self._done(opened, through_mlflow)

    def _place(self, *parts: str) -> str:
        return posixpath.join(ROOT, self._path, *parts)

    def _request(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, **named: Any
    ) -> "requests.Response":
        response = self._server.send(method, path, headers, **named)
        if response.status_code < 400:
            return response
        if response.status_code != 404 and response.status_code not in _TRANSIENT:
            raise _Refused
        import requests

        raise requests.HTTPError(
            f"{response.status_code} {response.reason} for {response.url}. Response text: {response.text}",
            response=response,
        )

    def _done(self, own: Callable[[], T], other: Callable[[Any], T]) -> T:
        if self._other is None:
            try:
                return own()
            except _Refused:
                self._other = self._open_other()
        return other(self._other)


def artifacts_of_server(artifact_uri: str, tracking_uri: str, other: Callable[[], Any]) -> ServerArtifacts | None:
    """Return a plain server's artifacts, ``None`` for other stores.

    Args:
        artifact_uri: of a run or a model.
        tracking_uri: of the server.
        other: opens MLflow's own repository of the same artifacts.
    """
    found = urlsplit(artifact_uri)
    path = found.path.strip("/")
    if found.scheme != "mlflow-artifacts" or found.netloc or found.query or not path or not is_plain(tracking_uri):
        return None
    return ServerArtifacts(tracking_uri, path, other)
