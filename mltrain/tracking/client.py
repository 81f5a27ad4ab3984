"""A typed client of the tracking server.

It has short time-outs, retries, and errors that separate transient from permanent failures.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay

from mltrain.compat import private, rest, rest_entities
from mltrain.compat.database import READS, DatabaseReader, Unreadable, database_of, uri_of_environment
from mltrain.compat.rest import RestClient
from mltrain.errors import RunNotFound, TrackingError, sentence
from mltrain.redaction import redacted, redacted_uri, remember_environment
from mltrain.store.retry import FullJitter

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, LoggedModel, Metric, Run
    from mlflow.entities.model_registry import ModelVersion

RUN_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
TRAINING_RETRY_SECONDS = 30.0
"""Seconds for which a training or pipeline retries the requests that it needs to start."""
_PAGE = 1000
"""Entries per page of a search."""
_RUNS_AT_ONCE = 100
"""Runs per request by ids."""
_AT_ONCE = 8
"""Parallel requests for curves, or for runs by ids."""
_PAGES_AT_ONCE = 4
"""Parallel requests for pages of a search: an MLflow server's default number of workers."""


@dataclass(frozen=True)
class TrackingClient:
    """A tracking server or database.

    Every method raises :class:`~mltrain.errors.RunNotFound` for a missing entity and :class:`Refusal`, a
    :class:`~mltrain.errors.TrackingError`, for every other failure. All methods retry transient failures, except those that
    create something.

    Attributes:
        uri: of the server or database.
        client: an ``MlflowClient``.
        retry_seconds: how long a method retries; 0 for a single try.
    """

    uri: str
    client: Any
    retry_seconds: float = 0.0

    @property
    def once(self) -> "TrackingClient":
        """The same client without retries."""
        return replace(self, retry_seconds=0.0)

    @property
    def shown(self) -> str:
        """The URI without user name and password."""
        return redacted_uri(self.uri)

    @property
    def is_server(self) -> bool:
        """Whether a server answers, not a local database or folder."""
        return self.uri.startswith(("http://", "https://", "databricks"))

    def run(self, run_id: str) -> "Run":
        """Return a run that is not deleted.

        Raises:
            RunNotFound: The id is malformed, or the run does not exist or is deleted.
            TrackingError: The server does not answer.
        """
        if not RUN_ID.fullmatch(run_id):
            raise RunNotFound(
                f"{run_id!r:.80} is not the id of a run. Expected 32 hexadecimal digits. Try: mltrain runs"
            )
        run = self.get_run(run_id)
        if run.info.lifecycle_stage != "active":
            raise RunNotFound(f"Run {run_id} is deleted. Restore it in the MLflow UI, or choose another: mltrain runs")
        return run

    def get_run(self, run_id: str) -> "Run":
        """Return a run, deleted or not.

        Raises:
            RunNotFound: No run has this id. MLflow would create a missing database to look there.
        """
        file = self._missing_database
        if file is not None:
            raise RunNotFound(
                f"Not found in {self.shown}: run {run_id}, because {file.absolute()} does not exist. "
                "Is MLFLOW_TRACKING_URI that of the training?"
            )
        run: Run = self._retried(self.client.get_run, run_id)
        return run

    def runs(self, run_ids: Sequence[str]) -> "list[Run]":
        """Return undeleted runs in the order of their ids, in parallel requests.

        Raises:
            RunNotFound: A run is missing; see :meth:`run`.
            TrackingError: The server does not answer.
        """
        experiments = [experiment.experiment_id for experiment in self.search_experiments()]
        known = [run_id for run_id in dict.fromkeys(run_ids) if RUN_ID.fullmatch(run_id)]

        def searched(begin: int) -> "list[Run]":
            named = ", ".join(f"'{run_id}'" for run_id in known[begin : begin + _RUNS_AT_ONCE])
            return list(self.search_runs(experiments, f"attributes.run_id IN ({named})"))

        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="mltrain-runs") as readers:
            answers = readers.map(searched, range(0, len(known), _RUNS_AT_ONCE))
            found = {run.info.run_id: run for answer in answers for run in answer}
        return [found.get(run_id) or self.run(run_id) for run_id in run_ids]

    def search_runs(self, experiment_ids: Iterable[str], query: str, *, page: int = _PAGE) -> Iterator["Run"]:
        """Yield a query's active runs, newest first, page by page."""
        return self._paged(self.client.search_runs, list(experiment_ids), filter_string=query, max_results=page)

    def search_runs_ahead(self, experiment_ids: Iterable[str], query: str) -> Iterator["Run"]:
        """Yield many active runs of a query, newest first.

        A server takes milliseconds to describe a run, so after the first page of 250 runs several pages are requested in
        parallel if their page tokens can be predicted.
        """
        known, size = list(experiment_ids), _PAGE // _PAGES_AT_ONCE

        def page(token: str | None) -> Any:
            return self._retried(
                self.client.search_runs, known, filter_string=query, max_results=size, page_token=token
            )

        found, whole = 0, True
        tokens: Sequence[str | None] = [None] if self._missing_database is None else []
        with ThreadPoolExecutor(_PAGES_AT_ONCE, thread_name_prefix="mltrain-runs") as readers:
            while tokens:
                token = None
                for answer in readers.map(page, tokens):
                    yield from answer
                    found, token, whole = found + len(answer), answer.token, whole and len(answer) == size
                    if not token:
                        break  # pages after the last one are empty
                tokens = private.page_tokens(token, found, size, _PAGES_AT_ONCE if whole else 1) if token else ()

    def create_run(self, experiment_id: str, start_time: int, tags: Mapping[str, str], name: str) -> "Run":
        """Create a run in one try, because a retry could duplicate it."""
        run: Run = self._tried(self.client.create_run, experiment_id, start_time, tags, name)
        return run

    def update_run(self, run_id: str, **changed: str) -> None:
        """Set ``status`` or ``name`` of a run."""
        self._retried(self.client.update_run, run_id, **changed)

    def set_terminated(self, run_id: str, *status_and_end: Any) -> None:
        """Set a run's final status and end (milliseconds since 1970)."""
        self._retried(self.client.set_terminated, run_id, *status_and_end)

    def delete_run(self, run_id: str) -> None:
        """Move a run to MLflow's trash."""
        self._retried(self.client.delete_run, run_id)

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        """Set one tag of a run."""
        self._retried(self.client.set_tag, run_id, key, value)

    def delete_tag(self, run_id: str, key: str) -> None:
        """Delete one tag of a run."""
        self._retried(self.client.delete_tag, run_id, key)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run in one request."""
        tag = self._entities.RunTag
        self._retried(self.client.log_batch, run_id, tags=[tag(key, value) for key, value in tags.items()])

    def log_param(self, run_id: str, key: str, value: str) -> None:
        """Log a write-once parameter; the same value may be repeated."""
        self._retried(self.client.log_param, run_id, key, value)

    def log_params(self, run_id: str, params: Iterable[tuple[str, str]]) -> None:
        """Log parameters, key and value, in one request."""
        param = self._entities.Param
        self._retried(self.client.log_batch, run_id, params=[param(key, value) for key, value in params])

    def log_points(self, run_id: str, points: Iterable[tuple[str, float, int, int]]) -> None:
        """Log points (key, value, milliseconds since 1970, step) in one request."""
        if self.uri.startswith(("http://", "https://")):
            self._retried(private.log_points, self._preferred, run_id, list(points))
            return
        metric = private.entities().Metric
        self._retried(self.client.log_batch, run_id, metrics=[metric(*point) for point in points])

    def log_datasets(self, run_id: str, datasets: Iterable[Mapping[str, str]]) -> None:
        """Log input datasets: ``name``, ``digest``, ``place``, ``context``, ``type``."""
        made = self._entities
        inputs = [
            made.DatasetInput(
                made.Dataset(raw["name"], raw["digest"], raw.get("type", "local"), json.dumps({"uri": raw["place"]})),
                [made.InputTag("mlflow.data.context", raw["context"])],
            )
            for raw in datasets
        ]
        self._retried(self.client.log_inputs, run_id, inputs)

    def points_between(self, run_id: str, key: str, first: int, last: int) -> list[tuple[int, float]]:
        """See :func:`mltrain.compat.private.points_between`."""

        def found() -> list[tuple[int, float]]:
            return private.points_between(self._preferred, self.uri, run_id, key, first, last)

        points: list[tuple[int, float]] = self._retried(found)
        return points

    def curves(self, run_ids: Sequence[str], keys: Sequence[str]) -> dict[tuple[str, str], list[tuple[int, float]]]:
        """Return metric curves (steps, values) by run id and key.

        A curve is in the order of its steps. A database that :class:`~mltrain.compat.database.DatabaseReader` can read takes
        one query. All others take a request per key and hundred runs, and MLflow samples curves of more than 2,000 points.
        """
        if isinstance(self.client, DeferredClient) and self.client.reader is not None:
            with suppress(Unreadable):
                return self.client.reader.curves(run_ids, keys)
        client = self._preferred
        starts = range(0, len(run_ids), private.MOST_RUNS)
        asked = [(key, list(run_ids[begin : begin + private.MOST_RUNS])) for key in keys for begin in starts]

        def answered(one: tuple[str, list[str]]) -> dict[tuple[str, str], list[tuple[int, float]]]:
            key, ids = one
            points = self._retried(private.points_of_runs, client, self.uri, ids, key)
            return {(run_id, key): sorted(found, key=itemgetter(0)) for run_id, found in points.items()}

        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="mltrain-curves") as readers:
            return {one: points for found in readers.map(answered, asked) for one, points in found.items()}

    def get_experiment(self, experiment_id: str) -> "Experiment":
        """Return an experiment by its id."""
        experiment: Experiment = self._retried(self.client.get_experiment, experiment_id)
        return experiment

    def find_experiment(self, name: str) -> "Experiment | None":
        """Return an experiment by its name, or ``None``."""
        found: Experiment | None = self._retried(self.client.get_experiment_by_name, name)
        return found

    def experiment_id(self, name: str) -> str:
        """Return the id of an experiment.

        Raises:
            RunNotFound: No experiment has this name.
            TrackingError: The server does not answer.
        """
        found = self.find_experiment(name)
        if found is None:
            raise RunNotFound(f"There is no experiment {name!r}.")
        return str(found.experiment_id)

    def create_experiment(self, name: str) -> str:
        """Create an experiment in one try and return its id."""
        return str(self._tried(self.client.create_experiment, name))

    def search_experiments(self, *, page: int = _PAGE) -> Iterator["Experiment"]:
        """Yield all active experiments."""
        return self._paged(self.client.search_experiments, max_results=page)

    def search_logged_models(self, experiment_id: str, query: str) -> Iterator["LoggedModel"]:
        """Yield the LoggedModels of an experiment that match a query."""
        return self._paged(self.client.search_logged_models, experiment_ids=[experiment_id], filter_string=query)

    def history(self, run_id: str, key: str) -> "list[Metric]":
        """Return all points of a metric, with their timestamps."""
        return list(self._retried(self.client.get_metric_history, run_id, key))

    def create_logged_model(self, experiment_id: str, name: str, run_id: str, tags: Mapping[str, str]) -> "LoggedModel":
        """Create a run's LoggedModel in one try, pending until it is finalized."""
        model: LoggedModel = self._tried(
            self.client.create_logged_model, experiment_id, name=name, source_run_id=run_id, tags=dict(tags)
        )
        return model

    def log_model_artifacts(self, model_id: str, folder: str) -> None:
        """Upload a folder's files to a LoggedModel."""
        self._retried(self.client.log_model_artifacts, model_id, folder)

    def log_model_metrics(self, run_id: str, model_id: str, step: int, points: Mapping[str, tuple[float, int]]) -> None:
        """Log a LoggedModel's metrics at a step of its run.

        Each has a value and milliseconds since 1970. The model becomes an output of the run at that step.
        """
        from mlflow.entities import LoggedModelOutput, Metric

        client = self.client.mlflow_client() if isinstance(self.client, DeferredClient) else self.client
        metrics = [Metric(key, value, when, step, model_id=model_id) for key, (value, when) in points.items()]
        self._retried(client.log_batch, run_id, metrics=metrics)
        self._retried(client.log_outputs, run_id, [LoggedModelOutput(model_id, step)])

    def finalize_logged_model(self, model_id: str) -> None:
        """Mark a LoggedModel as ready."""
        self._retried(self.client.finalize_logged_model, model_id, "READY")

    def create_model_version(self, name: str, source: str, run_id: str, model_id: str) -> int:
        """Create a version, and its registered model if needed; return its number."""
        try:
            self._tried(self.client.create_registered_model, name)
        except Refusal as error:
            if getattr(error.__cause__, "error_code", None) != "RESOURCE_ALREADY_EXISTS":
                raise
        version = self._tried(self.client.create_model_version, name, source, run_id=run_id, model_id=model_id)
        return int(version.version)

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Point a registered model's alias at a version."""
        self._retried(self.client.set_registered_model_alias, name, alias, str(version))

    def delete_logged_model(self, model_id: str) -> None:
        """Delete a LoggedModel."""
        self._retried(self.client.delete_logged_model, model_id)

    def search_model_versions(self, query: str) -> Iterator["ModelVersion"]:
        """Yield the versions of registered models that match a query."""
        return self._paged(self.client.search_model_versions, query, max_results=_PAGE)

    @property
    def _missing_database(self) -> Path | None:
        """The SQLite file if it does not exist yet: MLflow would create it to read from it."""
        file = database_of(self.uri)
        return file if file is not None and not os.path.lexists(file) else None

    @property
    def _entities(self) -> Any:
        """The client's entity classes, named as in ``mlflow.entities``."""
        client = self._retried(lambda: self._preferred)
        return rest_entities.ENTITIES if isinstance(client, RestClient) else private.entities()

    @property
    def _preferred(self) -> Any:
        """The client that serves a request first, created if needed."""
        return self.client.preferred() if isinstance(self.client, DeferredClient) else self.client

    def _paged(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Iterator[Any]:
        token: str | None = None
        while self._missing_database is None:
            page = self._retried(function, *arguments, page_token=token, **named)
            yield from page
            token = page.token
            if not token:
                return

    def _retried(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        return Retrying(
            stop=stop_after_delay(self.retry_seconds),
            wait=Backoff(multiplier=0.2, max=5),
            retry=retry_if_exception(lambda error: isinstance(error, Refusal) and not error.permanent),
            reraise=True,
        )(self._tried, function, *arguments, **named)

    def _tried(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Call MLflow's client once and translate its errors."""
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
            self._created = rest.client_of(self._uri, private.CLIENT_DEFAULTS) or self.mlflow_client()
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


def connect(uri: str | None = None, *, retry_seconds: float = 5.0) -> TrackingClient:
    """Return a client of a tracking server.

    Args:
        uri: of the server. If ``None``, the environment's URI applies, or MLflow's default.
        retry_seconds: how long its methods retry.

    Raises:
        TrackingError: MLflow cannot use the URI.
    """
    remember_environment()
    private.set_client_defaults()
    try:
        uri = uri or uri_of_environment() or private.uri_of_mlflow()
        remember_environment({"MLFLOW_TRACKING_URI": uri})  # the program may have set it through MLflow
        return TrackingClient(uri, DeferredClient(uri), retry_seconds)
    except Exception as error:
        if not private.is_mlflow_error(error):
            raise
        raise Refusal(
            f"MLflow cannot use the tracking URI: {first_line(error)} Set MLFLOW_TRACKING_URI, for example to "
            "sqlite:///mlflow.db or http://127.0.0.1:5000.",
            permanent=True,
        ) from error


def connect_to_read() -> TrackingClient:
    """Return a client for a read-only command.

    It reads a SQLite database without MLflow, whose import takes seconds.

    Raises:
        TrackingError: MLflow cannot use the URI.
    """
    uri = uri_of_environment()
    file = database_of(uri) if uri is not None else None
    if uri is None or file is None:
        return connect()
    remember_environment({"MLFLOW_TRACKING_URI": uri})
    private.set_client_defaults()
    return TrackingClient(uri, DeferredClient(uri, DatabaseReader(file)), retry_seconds=5.0)


def active_run_id() -> str | None:
    """Return the fluent interface's active run id, or ``None``."""
    mlflow = sys.modules.get("mlflow")
    active = mlflow.active_run() if mlflow is not None else None  # without the import, no run is active
    return str(active.info.run_id) if active is not None else None


def first_line(error: BaseException) -> str:
    """Return an error's first line as a sentence, at most 500 characters."""
    lines = redacted(str(error)).strip().splitlines()
    return sentence(lines[0][:500].rstrip() if lines else type(error).__name__)


def _silent(error: BaseException) -> str | None:
    """Return why no answer came, in the system's words if they can be found; ``None`` if one came."""
    _, silent, cause = str(error).partition("failed with exception ")
    if not silent:
        return None
    found = _REASONS.findall(redacted(cause))
    return str(found[-1]).strip() if found else redacted(cause).strip().splitlines()[0][:300].rstrip(".")


def tags_of(run: "Run") -> Mapping[str, str]:
    """Return the tags of a run."""
    return dict(run.data.tags)


def _is_permanent(error: Any) -> bool:
    status = error.get_http_status_code()
    return 400 <= status < 500 and status not in (408, 425, 429) and error.error_code != "TEMPORARILY_UNAVAILABLE"
