"""A connection to the tracking server: its client, retries, pages.

Its errors separate transient from permanent failures.
"""

import os
import re
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay

from mltrain.compat import private
from mltrain.compat.database import READS, DatabaseReader, Unreadable, database_of
from mltrain.compat.rest import RestClient
from mltrain.compat.rest_server import TIMEOUT, is_plain
from mltrain.errors import RunNotFound, TrackingError, sentence
from mltrain.redaction import first_line, redacted, redacted_uri
from mltrain.store.retry import FullJitter

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class Connection:
    """Requests to a tracking server or database.

    Attributes:
        uri: of the server or database.
        client: an ``MlflowClient``.
        retry_seconds: how long a request is retried; 0 for a single try.
    """

    uri: str
    client: Any
    retry_seconds: float = 0.0

    @property
    def once(self) -> Self:
        """The same connection without retries."""
        return replace(self, retry_seconds=0.0)

    @property
    def shown(self) -> str:
        """The URI without user name and password."""
        return redacted_uri(self.uri)

    @property
    def is_server(self) -> bool:
        """Whether a server answers, not a local database or folder."""
        return self.uri.startswith(("http://", "https://", "databricks"))

    @property
    def missing_database(self) -> Path | None:
        """The SQLite file if it does not exist yet: MLflow would create it to read from it."""
        file = database_of(self.uri)
        return file if file is not None and not os.path.lexists(file) else None

    @property
    def preferred(self) -> Any:
        """The client that serves a request first, created if needed."""
        return self.client.preferred() if isinstance(self.client, DeferredClient) else self.client

    def paged(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Iterator[Any]:
        """Yield all pages' entities; none from a missing database."""
        token: str | None = None
        while self.missing_database is None:
            page = self.retried(function, *arguments, page_token=token, **named)
            yield from page
            token = page.token
            if not token:
                return

    def retried(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Call a client's method, with retries after transient failures.

        Raises:
            RunNotFound, Refusal: as for :meth:`tried`.
        """
        return Retrying(
            stop=stop_after_delay(self.retry_seconds),
            wait=Backoff(multiplier=0.2, max=5),
            retry=retry_if_exception(lambda error: isinstance(error, Refusal) and not error.permanent),
            reraise=True,
        )(self.tried, function, *arguments, **named)

    def tried(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Call a method of the client once.

        Raises:
            RunNotFound: the entity does not exist.
            Refusal: any other failure.
        """
        try:
            return function(*arguments, **named)
        except Exception as error:  # noqa: BLE001 - HTTP and database clients raise many types
            translated = self._translated(error)
            raise translated from (None if isinstance(translated, RunNotFound) else error)

    def _translated(self, error: Any) -> "RunNotFound | Refusal":
        if "database is locked" in str(error) and not self.is_server:
            return Refusal(f"The database {self.shown} is locked: another process writes to it, or its disk is slow.")
        if not private.is_mlflow_error(error):
            return Refusal(f"{self.shown} does not answer: {type(error).__name__}: {first_line(error)}")
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return RunNotFound(
                f"Not found in {self.shown}: {first_line(error).rstrip('.')}. "
                "Is MLFLOW_TRACKING_URI the one of the training? List the runs with: mltrain runs"
            )
        status, reason = error.get_http_status_code(), _silent(error)
        return Refusal(
            f"{self.shown} refused: {first_line(error)}{_REMEDIES.get(status, '')}"
            if reason is None
            else f"{self.shown} does not answer: {reason}. Try: start the server, or correct MLFLOW_TRACKING_URI.",
            permanent=_is_permanent(error),
            denied=status in (401, 403, 404),
            wait=private.retry_after(error),
        )


def checked(uri: str) -> str:
    """Return a tracking URI.

    Raises:
        Refusal: it is no URI, or a server's address without its scheme, which MLflow would take for a folder; or the timeout
            of MLflow's requests is not positive.
    """
    try:
        urllib.parse.urlsplit(uri)
        wrong = "" if uri.strip() else "it is blank"
    except ValueError as error:
        wrong = str(error)
    if re.fullmatch(r"(?!file:)[\w.-]+:\d+(/\S*)?", uri):
        wrong = f"it has no scheme. Expected http://{uri} or https://{uri}"
    if wrong:
        raise Refusal(
            f"MLflow cannot use the tracking URI {redacted(uri)!r}: {sentence(wrong)} Set MLFLOW_TRACKING_URI, for example "
            "to sqlite:///mlflow.db or http://127.0.0.1:5000.",
            permanent=True,
        )
    timeout = os.environ.get(TIMEOUT, "20")
    if not (re.fullmatch(r"\s*\+?(\d+\.?\d*|\.\d+)\s*", timeout) and float(timeout) > 0):
        raise Refusal(f"{TIMEOUT}={timeout!r} is invalid. Expected a number of seconds above 0.", permanent=True)
    return uri


class DeferredClient:
    """An ``MlflowClient`` created at its first use.

    Creating one queries the tables of a database, which may be locked. A plain server is accessed through
    :class:`~mltrain.compat.rest.RestClient`, without MLflow, as far as that one's methods go.

    Args:
        uri: of the server or database.
        reader: reads the database before the client is created. If ``None``, the client reads.
    """

    def __init__(self, uri: str, reader: DatabaseReader | None = None) -> None:
        self._uri = uri
        self.reader = reader
        self._created: MlflowClient | RestClient | None = None
        self._mlflow_client: MlflowClient | None = None

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            if self.reader is not None and self._created is None and name in READS:
                with suppress(Unreadable):
                    return getattr(self.reader, name)(*arguments, **named)
            client = self.preferred()
            return getattr(client if hasattr(client, name) else self.mlflow_client(), name)(*arguments, **named)

        return call

    def preferred(self) -> "MlflowClient | RestClient":
        """Return the preferred client, creating it if needed."""
        if self._created is None:
            self._created = RestClient(self._uri) if is_plain(self._uri) else self.mlflow_client()
        return self._created

    def mlflow_client(self) -> "MlflowClient":
        """Return MLflow's own client, creating it if needed."""
        if self._mlflow_client is None:
            from mlflow import MlflowClient

            self._mlflow_client = MlflowClient(self._uri)
        return self._mlflow_client


class Refusal(TrackingError):
    """A request that failed.

    Attributes:
        permanent: Whether the same request fails again.
        denied: Whether the server refuses this user or URI rather than the content of the request.
        wait: Seconds to wait before a retry, as the server requests.
    """

    def __init__(self, message: str, *, permanent: bool = False, denied: bool = False, wait: float = 0.0) -> None:
        super().__init__(message)
        self.permanent = permanent
        self.denied = denied
        self.wait = wait


class Backoff(FullJitter):
    """Full jitter on top of the server's requested wait."""

    def __call__(self, retry_state: RetryCallState) -> float:
        """Return the seconds to wait before the next try."""
        error = retry_state.outcome.exception() if retry_state.outcome is not None else None
        return super().__call__(retry_state) + (error.wait if isinstance(error, Refusal) else 0.0)


_REASONS = re.compile(
    r"(?<=\] )[A-Z][\w ]+|[Rr]ead timed out|too many \d+ error responses|certificate verify failed: [\w -]+"
)
"""Why a connection failed, within the text of ``requests``."""

_REMEDIES = {
    401: " Try: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN.",
    403: " Try: ask for write permission, or check the user and token in MLFLOW_TRACKING_*.",
    404: " Is MLFLOW_TRACKING_URI the address of an MLflow server?",
}


def _silent(error: BaseException) -> str | None:
    """Return why no answer came, or ``None`` if one came.

    The reason is in the system's words if they can be found.
    """
    _, silent, cause = str(error).partition("failed with exception ")
    if not silent:
        return None
    found = _REASONS.findall(redacted(cause))
    return str(found[-1]).strip() if found else first_line(cause.strip() or error).rstrip(".")


def _is_permanent(error: Any) -> bool:
    status = error.get_http_status_code()
    return 400 <= status < 500 and status not in (408, 425, 429) and error.error_code != "TEMPORARILY_UNAVAILABLE"
