"""The tracking server, as mltrain speaks to it: short time-outs, errors by what can be done about them."""

import os
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mltrain.errors import RunNotFound, TrackingError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# MLflow's defaults hold a call for four minutes when the server is gone. Here the sender repeats, and says so meanwhile.
_CLIENT_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",  # would draw from Python's global random numbers
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # said once, at the start
    "MLFLOW_TRUNCATE_LONG_VALUES": "true",
}

RUN_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)


@dataclass(frozen=True)
class Server:
    """A tracking server or database, by its URI."""

    uri: str
    client: "MlflowClient"

    def run(self, run_id: str) -> "Run":
        """Return a run.

        Raises:
            RunNotFound: there is none of this id, or it is deleted.
            TrackingError: the server does not answer.
        """
        if not RUN_ID.fullmatch(run_id):
            raise RunNotFound(
                f"{run_id!r:.80} is not the id of a run: 32 hexadecimal digits were expected. "
                "List the runs with: mltrain runs"
            )
        run = self.call(self.client.get_run, run_id)
        if run.info.lifecycle_stage != "active":
            raise RunNotFound(f"Run {run_id} is deleted. Restore it in the MLflow UI, or choose another: mltrain runs")
        return run

    def call(self, function: Any, *arguments: Any, **named: Any) -> Any:
        """Call the client and translate what it raises.

        Raises:
            RunNotFound: what was asked for does not exist.
            TrackingError: everything else that goes wrong; ``permanent`` says whether repeating is useless.
        """
        from mlflow.exceptions import MlflowException

        try:
            return function(*arguments, **named)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise RunNotFound(
                    f"The tracking store {self.shown} has it not: {first_line(error)} "
                    "Is MLFLOW_TRACKING_URI the one of the training? List the runs with: mltrain runs"
                ) from None
            raise Refusal(f"{self.shown} refused: {first_line(error)}", permanent=_is_permanent(error)) from error
        except Exception as error:  # HTTP and database clients raise what they like
            raise Refusal(f"{self.shown} does not answer: {type(error).__name__}: {first_line(error)}") from error

    @property
    def shown(self) -> str:
        """The URI without user name and password."""
        return redacted_uri(self.uri)


class Refusal(TrackingError):
    """A call that failed; ``permanent`` when repeating it is useless."""

    def __init__(self, message: str, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.permanent = permanent


def connect(uri: str | None = None) -> Server:
    """Return the tracking server at ``uri``; none: the one that the environment names, or MLflow's default.

    Raises:
        TrackingError: the URI is not usable.
    """
    for name, value in _CLIENT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        uri = uri or mlflow.get_tracking_uri()
        return Server(uri, mlflow.MlflowClient(uri))
    except MlflowException as error:
        raise Refusal(
            f"MLflow cannot use the tracking URI: {first_line(error)} Set MLFLOW_TRACKING_URI, for example to "
            "sqlite:///mlflow.db or http://127.0.0.1:5000.",
            permanent=True,
        ) from error


def places(server: Server, experiment_id: str, run_id: str) -> str:
    """Say where runs are kept and how to look at this one."""
    if server.uri.startswith(("http://", "https://")):
        page = f"#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"
        return f"Runs are kept at {server.shown}\nLook at this one: {server.shown.rstrip('/')}/{page}"
    return (
        f"Runs are kept in {server.shown}, seen from {Path.cwd()}.\n"
        f"Look at them with: mlflow ui --backend-store-uri {server.shown}"
    )


def redacted_uri(uri: str) -> str:
    """Return a URI without user name, password and query."""
    parsed = urllib.parse.urlsplit(uri)
    if "@" not in parsed.netloc and not parsed.query:
        return uri
    return parsed._replace(netloc=parsed.netloc.rpartition("@")[2], query="").geturl()


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, cut to a readable length."""
    lines = str(error).strip().splitlines()
    return lines[0][:500] if lines else type(error).__name__


def tags_of(run: "Run") -> Mapping[str, str]:
    """Return the tags of a run."""
    return dict(run.data.tags)


def _is_permanent(error: Any) -> bool:
    status = error.get_http_status_code()
    return 400 <= status < 500 and status not in (408, 425, 429) and error.error_code != "TEMPORARILY_UNAVAILABLE"
