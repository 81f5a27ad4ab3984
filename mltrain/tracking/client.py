"""The tracking server behind typed methods: short time-outs, retries, and errors by what can be done about them."""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay

from mltrain.compat import private, rest, rest_entities
from mltrain.compat.database import READS, DatabaseReader, Unreadable, database_of, uri_of_environment
from mltrain.compat.rest import RestClient
from mltrain.errors import RunNotFound, TrackingError
from mltrain.redaction import redacted, redacted_uri, remember_environment
from mltrain.store.retry import FullJitter

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, LoggedModel, Metric, Run
    from mlflow.entities.model_registry import ModelVersion

RUN_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
TRAINING_RETRY_SECONDS = 30.0
"""For how many seconds a training or a pipeline retries what it cannot begin without."""
_PAGE = 1000
"""Entries that one request of a search asks for."""
_RUNS_AT_ONCE = 100
"""Runs that one request names."""
_AT_ONCE = 8
"""Requests for curves, or for runs by their ids, that are under way at once."""
_PAGES_AT_ONCE = 4
"""Pages of a search that are under way at once: as many as an MLflow server has workers by default."""


@dataclass(frozen=True)
class TrackingClient:
    """A tracking server or database.

    Every method raises :class:`~mltrain.errors.RunNotFound` for what does not exist and :class:`Refusal`, a
    :class:`~mltrain.errors.TrackingError`, for every other failure. All but those that create something retry failures that
    may pass.

    Attributes:
        uri: of the server or database.
        client: an ``MlflowClient``.
        retry_seconds: for how many seconds a method retries; 0 for one try.
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
        """Whether it is a server, and not a database or a folder that this process reads and writes itself."""
        return self.uri.startswith(("http://", "https://", "databricks"))

    def run(self, run_id: str) -> "Run":
        """Return a run that is not deleted.

        Raises:
            RunNotFound: The id is malformed, or no run has it, or that run is deleted.
            TrackingError: The server does not answer.
        """
        if not RUN_ID.fullmatch(run_id):
            raise RunNotFound(
                f"{run_id!r:.80} is not the id of a run: 32 hexadecimal digits were expected. "
                "List the runs with: mltrain runs"
            )
        run = self.get_run(run_id)
        if run.info.lifecycle_stage != "active":
            raise RunNotFound(f"Run {run_id} is deleted. Restore it in the MLflow UI, or choose another: mltrain runs")
        return run

    def get_run(self, run_id: str) -> "Run":
        """Return a run, deleted or not."""
        run: Run = self._retried(self.client.get_run, run_id)
        return run

    def runs(self, run_ids: Sequence[str]) -> "list[Run]":
        """Return runs that are not deleted, in the order of their ids, by a request for each hundred of them, several at once.

        Raises:
            RunNotFound: As :meth:`run` does, of the first that is missing.
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
        """Yield the active runs that a query finds, newest first, and request further pages as they are needed."""
        return self._paged(self.client.search_runs, list(experiment_ids), filter_string=query, max_results=page)

    def search_runs_ahead(self, experiment_ids: Iterable[str], query: str) -> Iterator["Run"]:
        """Yield the active runs that a query finds, newest first, for a caller that needs many.

        A server takes milliseconds to describe a run. So after the first page of 250 several are requested at once, where the
        tokens of pages tell how.
        """
        known, size = list(experiment_ids), _PAGE // _PAGES_AT_ONCE

        def page(token: str | None) -> Any:
            return self._retried(
                self.client.search_runs, known, filter_string=query, max_results=size, page_token=token
            )

        found, whole = 0, True
        tokens: Sequence[str | None] = [None]
        with ThreadPoolExecutor(_PAGES_AT_ONCE, thread_name_prefix="mltrain-runs") as readers:
            while tokens:
                token = None
                for answer in readers.map(page, tokens):
                    yield from answer
                    found, token, whole = found + len(answer), answer.token, whole and len(answer) == size
                    if not token:
                        break  # pages behind the last one are empty
                tokens = private.page_tokens(token, found, size, _PAGES_AT_ONCE if whole else 1) if token else ()

    def create_run(self, experiment_id: str, start_time: int, tags: Mapping[str, str], name: str) -> "Run":
        """Create a run, with one try: a request whose response is lost may have created it."""
        run: Run = self._tried(self.client.create_run, experiment_id, start_time, tags, name)
        return run

    def update_run(self, run_id: str, **changed: str) -> None:
        """Set ``status`` or ``name`` of a run."""
        self._retried(self.client.update_run, run_id, **changed)

    def set_terminated(self, run_id: str, *status_and_end: Any) -> None:
        """Set the final status of a run and, as a second argument, its end in milliseconds since 1970."""
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
        """Log a parameter, which can be written once; the same value may be sent again."""
        self._retried(self.client.log_param, run_id, key, value)

    def log_params(self, run_id: str, params: Iterable[tuple[str, str]]) -> None:
        """Log parameters, key and value, in one request."""
        param = self._entities.Param
        self._retried(self.client.log_batch, run_id, params=[param(key, value) for key, value in params])

    def log_points(self, run_id: str, points: Iterable[tuple[str, float, int, int]]) -> None:
        """Log metric points in one request: key, value, milliseconds since 1970, and step of each."""
        if self.uri.startswith(("http://", "https://")):
            client = self.client.made() if isinstance(self.client, DeferredClient) else self.client
            self._retried(private.log_points, client, run_id, list(points))
            return
        metric = private.entities().Metric
        self._retried(self.client.log_batch, run_id, metrics=[metric(*point) for point in points])

    def log_datasets(self, run_id: str, datasets: Iterable[Mapping[str, str]]) -> None:
        """Log the datasets that a run reads: ``name``, ``digest``, ``place``, ``context`` and ``type`` of each."""
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
        """Return step and value of a metric's points; see :func:`mltrain.compat.private.points_between`."""

        def found() -> list[tuple[int, float]]:
            client = self.client.made() if isinstance(self.client, DeferredClient) else self.client
            return private.points_between(client, self.uri, run_id, key, first, last)

        points: list[tuple[int, float]] = self._retried(found)
        return points

    def curves(self, run_ids: Sequence[str], keys: Sequence[str]) -> dict[tuple[str, str], list[tuple[int, float]]]:
        """Return step and value of metrics' points in the order of their steps, by the id of the run and the key.

        A database that :class:`~mltrain.compat.database.DatabaseReader` reads answers with one query; else there is a
        request for each key and each hundred runs, and MLflow samples a curve of more than 2,000 points.
        """
        if isinstance(self.client, DeferredClient) and self.client.reader is not None:
            with suppress(Unreadable):
                return self.client.reader.curves(run_ids, keys)
        client = self.client.made() if isinstance(self.client, DeferredClient) else self.client
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
        """Create an experiment, with one try, and return its id."""
        return str(self._tried(self.client.create_experiment, name))

    def search_experiments(self, *, page: int = _PAGE) -> Iterator["Experiment"]:
        """Yield all active experiments."""
        return self._paged(self.client.search_experiments, max_results=page)

    def search_logged_models(self, experiment_id: str, query: str) -> Iterator["LoggedModel"]:
        """Yield the LoggedModels of an experiment that a query finds."""
        return self._paged(self.client.search_logged_models, experiment_ids=[experiment_id], filter_string=query)

    def history(self, run_id: str, key: str) -> "list[Metric]":
        """Return all points of a metric, with their timestamps."""
        return list(self._retried(self.client.get_metric_history, run_id, key))

    def create_logged_model(self, experiment_id: str, name: str, run_id: str, tags: Mapping[str, str]) -> "LoggedModel":
        """Create a LoggedModel of a run, with one try; it is pending until it is finalized."""
        model: LoggedModel = self._tried(
            self.client.create_logged_model, experiment_id, name=name, source_run_id=run_id, tags=dict(tags)
        )
        return model

    def log_model_artifacts(self, model_id: str, folder: str) -> None:
        """Upload the files of a folder as those of a LoggedModel."""
        self._retried(self.client.log_model_artifacts, model_id, folder)

    def log_model_metrics(self, run_id: str, model_id: str, step: int, points: Mapping[str, tuple[float, int]]) -> None:
        """Log metrics, a value and milliseconds since 1970 each, of a LoggedModel at a step, and that the run made it there."""
        from mlflow.entities import LoggedModelOutput, Metric

        client = self.client.of_mlflow() if isinstance(self.client, DeferredClient) else self.client
        metrics = [Metric(key, value, when, step, model_id=model_id) for key, (value, when) in points.items()]
        self._retried(client.log_batch, run_id, metrics=metrics)
        self._retried(client.log_outputs, run_id, [LoggedModelOutput(model_id, step)])

    def finalize_logged_model(self, model_id: str) -> None:
        """Call a LoggedModel ready."""
        self._retried(self.client.finalize_logged_model, model_id, "READY")

    def create_model_version(self, name: str, source: str, run_id: str, model_id: str) -> int:
        """Create a version of a registered model, and the model if need be; return the version's number."""
        try:
            self._tried(self.client.create_registered_model, name)
        except Refusal as error:
            if getattr(error.__cause__, "error_code", None) != "RESOURCE_ALREADY_EXISTS":
                raise
        version = self._tried(self.client.create_model_version, name, source, run_id=run_id, model_id=model_id)
        return int(version.version)

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Give an alias of a registered model to one of its versions."""
        self._retried(self.client.set_registered_model_alias, name, alias, str(version))

    def delete_logged_model(self, model_id: str) -> None:
        """Delete a LoggedModel."""
        self._retried(self.client.delete_logged_model, model_id)

    def search_model_versions(self, query: str) -> Iterator["ModelVersion"]:
        """Yield the versions of registered models that a query finds."""
        return self._paged(self.client.search_model_versions, query, max_results=_PAGE)

    @property
    def _entities(self) -> Any:
        """What the client takes, by the names of ``mlflow.entities``."""
        client = self._retried(self.client.made) if isinstance(self.client, DeferredClient) else self.client
        if isinstance(client, RestClient):
            return rest_entities.ENTITIES
        return private.entities()

    def _paged(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Iterator[Any]:
        token: str | None = None
        while True:
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
        """Call MLflow's client once and translate what it raises."""
        try:
            return function(*arguments, **named)
        except Exception as error:  # noqa: BLE001 - HTTP and database clients raise what they like
            translated = self._translated(error)
            raise translated from (None if isinstance(translated, RunNotFound) else error)

    def _translated(self, error: Any) -> "RunNotFound | Refusal":
        if "database is locked" in str(error) and not self.is_server:
            return Refusal(f"The database {self.shown} is locked: another process writes to it, or its disk is slow.")
        if not private.is_mlflow_error(error):
            return Refusal(f"{self.shown} does not answer: {type(error).__name__}: {first_line(error)}")
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return RunNotFound(
                f"Not found in {self.shown}: {first_line(error)} "
                "Is MLFLOW_TRACKING_URI the one of the training? List the runs with: mltrain runs"
            )
        status = error.get_http_status_code()
        return Refusal(
            f"{self.shown} refused: {first_line(error)}{_REMEDIES.get(status, '')}",
            permanent=_is_permanent(error),
            denied=status in (401, 403, 404),
            wait=private.retry_after(error),
        )


class DeferredClient:
    """An ``MlflowClient`` created at its first use: creating one asks a database for its tables, which may be locked.

    A plain server is asked by a :class:`~mltrain.compat.rest.RestClient`, without MLflow, for all that this one can do.

    Args:
        uri: of the server or database.
        reader: what is asked before the client is created.
    """

    def __init__(self, uri: str, reader: DatabaseReader | None = None) -> None:
        self._uri = uri
        self.reader = reader
        self._made: MlflowClient | RestClient | None = None
        self._of_mlflow: MlflowClient | None = None

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            if self.reader is not None and self._made is None and name in READS:
                with suppress(Unreadable):
                    return getattr(self.reader, name)(*arguments, **named)
            client = self.made()
            return getattr(client if hasattr(client, name) else self.of_mlflow(), name)(*arguments, **named)

        return call

    def made(self) -> "MlflowClient | RestClient":
        """Return the client that is asked first, and create it if need be."""
        if self._made is None:
            self._made = rest.client_of(self._uri, private.CLIENT_DEFAULTS) or self.of_mlflow()
        return self._made

    def of_mlflow(self) -> "MlflowClient":
        """Return MLflow's own client, and create it if need be."""
        if self._of_mlflow is None:
            from mlflow import MlflowClient

            self._of_mlflow = MlflowClient(self._uri)
        return self._of_mlflow


class Refusal(TrackingError):
    """A request that failed.

    Attributes:
        permanent: Whether the same request fails again.
        denied: Whether the server refuses this user or URI rather than the content of the request.
        wait: Seconds that the server asks to wait before a retry.
    """

    def __init__(self, message: str, *, permanent: bool = False, denied: bool = False, wait: float = 0.0) -> None:
        super().__init__(message)
        self.permanent = permanent
        self.denied = denied
        self.wait = wait


class Backoff(FullJitter):
    """Full jitter on top of the wait that the server asks for."""

    def __call__(self, retry_state: RetryCallState) -> float:
        """Return the seconds to wait before the next try."""
        error = retry_state.outcome.exception() if retry_state.outcome is not None else None
        return super().__call__(retry_state) + (error.wait if isinstance(error, Refusal) else 0.0)


_REMEDIES = {
    401: " Give MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN.",
    403: " Ask for the right to write there, or check user and token of MLFLOW_TRACKING_*.",
    404: " Is MLFLOW_TRACKING_URI the address of an MLflow server?",
}


def connect(uri: str | None = None, *, retry_seconds: float = 5.0) -> TrackingClient:
    """Return a client of a tracking server.

    Args:
        uri: of the server. If ``None``, the one that the environment names, or MLflow's default.
        retry_seconds: for how many seconds its methods retry.

    Raises:
        TrackingError: MLflow cannot use the URI.
    """
    remember_environment()
    private.set_client_defaults()
    try:
        uri = uri or uri_of_environment() or private.uri_of_mlflow()
        remember_environment({"MLFLOW_TRACKING_URI": uri})  # it may have been set otherwise
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
    """Return a client for a command that only reads.

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
    """Return the id of the run that is active in MLflow's fluent interface, or ``None``."""
    mlflow = sys.modules.get("mlflow")
    active = mlflow.active_run() if mlflow is not None else None  # a program that has not imported it has begun no run
    return str(active.info.run_id) if active is not None else None


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
