"""The tracking server, as mltrain speaks to it: short time-outs, errors by what can be done about them."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay

from mltrain.errors import RunNotFound, TrackingError
from mltrain.redaction import redacted, redacted_uri, remember_environment
from mltrain.store.retry import FullJitter

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# MLflow's defaults hold a call for four minutes when the server is gone, and sleep for as long as a Retry-After says. Here
# whoever calls repeats, and can stop.
_CLIENT_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",  # would draw from Python's global random numbers
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # said once, at the start
    "MLFLOW_TRUNCATE_LONG_VALUES": "true",
}

RUN_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
TRAINING_PATIENCE = 30.0
"""For how many seconds a question is repeated that a training or a pipeline cannot begin without."""
LONGEST_WAIT = 60.0
"""A server that asks for more patience than so many seconds is asked again all the same."""


@dataclass(frozen=True)
class Server:
    """A tracking server or database, by its URI; ``patience``: for how many seconds :meth:`insist` repeats."""

    uri: str
    client: Any
    patience: float = 0.0

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
        run = self.insist(self.client.get_run, run_id)
        if run.info.lifecycle_stage != "active":
            raise RunNotFound(f"Run {run_id} is deleted. Restore it in the MLflow UI, or choose another: mltrain runs")
        return run

    def insist(self, function: Any, *arguments: Any, **named: Any) -> Any:
        """Call the client, again and again while what goes wrong may pass; only for what may be repeated.

        Raises:
            RunNotFound: what was asked for does not exist.
            TrackingError: it went wrong for longer than this server's ``patience``, or for good.
        """
        return Retrying(
            stop=stop_after_delay(self.patience),
            wait=Patience(multiplier=0.2, max=5),
            retry=retry_if_exception(lambda error: isinstance(error, Refusal) and not error.permanent),
            reraise=True,
        )(self.call, function, *arguments, **named)

    def call(self, function: Any, *arguments: Any, **named: Any) -> Any:
        """Call the client once and translate what it raises.

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
            status = error.get_http_status_code()
            raise Refusal(
                f"{self.shown} refused: {first_line(error)}{_REMEDIES.get(status, '')}",
                permanent=_is_permanent(error),
                denied=status in (401, 403, 404),
                wait=_asked_to_wait(error),
            ) from error
        except Exception as error:  # HTTP and database clients raise what they like
            raise Refusal(f"{self.shown} does not answer: {type(error).__name__}: {first_line(error)}") from error

    @property
    def shown(self) -> str:
        """The URI without user name and password."""
        return redacted_uri(self.uri)


class LateClient:
    """An ``MlflowClient`` that is made when it is used: making one asks a database for its tables, which may be locked."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._made: MlflowClient | None = None

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            return getattr(self.made(), name)(*arguments, **named)

        return call

    def made(self) -> "MlflowClient":
        """Return the client itself; raises whatever its making raises."""
        if self._made is None:
            from mlflow import MlflowClient

            self._made = MlflowClient(self._uri)
        return self._made


class Refusal(TrackingError):
    """A call that failed.

    Attributes:
        permanent: repeating it is useless.
        denied: whoever asked may not; what was to be sent is nothing wrong with.
        wait: the seconds that the server asked to wait for.
    """

    def __init__(self, message: str, *, permanent: bool = False, denied: bool = False, wait: float = 0.0) -> None:
        super().__init__(message)
        self.permanent = permanent
        self.denied = denied
        self.wait = wait


class Patience(FullJitter):
    """Full jitter, but not before the server said that it wants to be asked again."""

    def __call__(self, retry_state: RetryCallState) -> float:
        """Return the seconds to wait before the next try."""
        error = retry_state.outcome.exception() if retry_state.outcome is not None else None
        return super().__call__(retry_state) + (error.wait if isinstance(error, Refusal) else 0.0)


_REMEDIES = {
    401: " Give MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN.",
    403: " Ask for the right to write there, or check user and token of MLFLOW_TRACKING_*.",
    404: " Is MLFLOW_TRACKING_URI the address of an MLflow server?",
}


def connect(uri: str | None = None, *, patience: float = 5.0) -> Server:
    """Return the tracking server at ``uri``; none: the one that the environment names, or MLflow's default.

    Args:
        uri: of the tracking server.
        patience: for how many seconds :meth:`Server.insist` repeats a call.

    Raises:
        TrackingError: the URI is not usable.
    """
    remember_environment()
    for name, value in _CLIENT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        uri = uri or mlflow.get_tracking_uri()
        remember_environment({"MLFLOW_TRACKING_URI": uri})  # it may have been set otherwise
        return Server(uri, LateClient(uri), patience)
    except MlflowException as error:
        raise Refusal(
            f"MLflow cannot use the tracking URI: {first_line(error)} Set MLFLOW_TRACKING_URI, for example to "
            "sqlite:///mlflow.db or http://127.0.0.1:5000.",
            permanent=True,
        ) from error


def paged(ask: Callable[..., Any], function: Any, *arguments: Any, **named: Any) -> Iterator[Any]:
    """Yield all that a search finds, page by page, as long as somebody takes them.

    Args:
        ask: :meth:`Server.call` or :meth:`Server.insist`.
        function: of the client, with ``page_token``.
        arguments: of the function.
        named: of the function.

    Raises:
        TrackingError: the server does not answer.
    """
    token: str | None = None
    while True:
        page = ask(function, *arguments, page_token=token, **named)
        yield from page
        token = page.token
        if not token:
            return


def places(server: Server, experiment_id: str, run_id: str) -> str:
    """Say where runs are kept and how to look at this one."""
    if server.uri.startswith(("http://", "https://")):
        page = f"#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"
        return f"Runs are kept at {server.shown}\nLook at this one: {server.shown.rstrip('/')}/{page}"
    return (
        f"Runs are kept in {server.shown}, seen from {Path.cwd()}.\n"
        f"Look at them with: mlflow ui --backend-store-uri {server.shown}"
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, cut to a readable length."""
    lines = redacted(str(error)).strip().splitlines()
    return lines[0][:500] if lines else type(error).__name__


def tags_of(run: "Run") -> Mapping[str, str]:
    """Return the tags of a run."""
    return dict(run.data.tags)


def _is_permanent(error: Any) -> bool:
    status = error.get_http_status_code()
    return 400 <= status < 500 and status not in (408, 425, 429) and error.error_code != "TEMPORARILY_UNAVAILABLE"


def _asked_to_wait(error: BaseException | None) -> float:
    """Return the seconds of an answer's Retry-After, within reason.

    MLflow's errors leave the headers out; the answer itself is still there, in one of the frames that raised.
    """
    while error is not None:
        trace = error.__traceback__
        while trace is not None:
            headers = getattr(trace.tb_frame.f_locals.get("response"), "headers", None)
            if isinstance(headers, Mapping) and "Retry-After" in headers:
                try:
                    return min(LONGEST_WAIT, max(0.0, float(headers["Retry-After"])))
                except ValueError:
                    return 0.0  # a date: whose clock is right is not known
            trace = trace.tb_next
        error = error.__cause__ or error.__context__
    return 0.0
