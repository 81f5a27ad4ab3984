"""A typed client of the tracking server, and its connection."""

import json
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from mltrain.compat import private
from mltrain.compat.database import DatabaseReader, Unreadable, database_of, uri_of_environment
from mltrain.compat.rest import ENTITIES, RestClient
from mltrain.compat.rest_server import set_client_defaults
from mltrain.errors import RunNotFound
from mltrain.redaction import first_line, remember_environment
from mltrain.tracking.connection import Connection, DeferredClient, Refusal, checked

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Metric, Run

RUN_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
TRAINING_RETRY_SECONDS = 30.0
"""Seconds for which a training or pipeline retries the requests that it needs to start."""
_PAGE = 1000
"""Entries per page of a search."""
_RUNS_AT_ONCE = 100
"""Runs per request, if several are requested in parallel."""
_AT_ONCE = 8
"""Parallel requests for curves, or for runs by ids."""
_PAGES_AT_ONCE = 4
"""Parallel requests for pages of a search: an MLflow server's default number of workers."""


class TrackingClient(Connection):
    """The requests to a tracking server or database, typed.

    Every method raises :class:`~mltrain.errors.RunNotFound` for a missing entity and
    :class:`~mltrain.tracking.connection.Refusal`, a :class:`~mltrain.errors.TrackingError`, for every other failure. All methods
    retry transient failures, except those that create something.
    """

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
        file = self.missing_database
        if file is not None:
            raise RunNotFound(
                f"Not found in {self.shown}: run {run_id}, because {file.absolute()} does not exist. "
                "Is MLFLOW_TRACKING_URI that of the training?"
            )
        run: Run = self.retried(self.client.get_run, run_id)
        return run

    def runs(self, run_ids: Sequence[str]) -> "list[Run]":
        """Return undeleted runs in the order of their ids.

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
        return self.paged(self.client.search_runs, list(experiment_ids), filter_string=query, max_results=page)

    def search_runs_ahead(self, experiment_ids: Iterable[str], query: str) -> Iterator["Run"]:
        """Yield many active runs of a query, newest first.

        A server takes milliseconds to describe a run, so several pages are always requested if their tokens can be predicted.
        """
        known, size, ahead, found = list(experiment_ids), _RUNS_AT_ONCE, _PAGES_AT_ONCE, 0

        def page(token: str | None) -> Any:
            return self.retried(self.client.search_runs, known, filter_string=query, max_results=size, page_token=token)

        if self.missing_database is not None:
            return
        with ThreadPoolExecutor(_PAGES_AT_ONCE, thread_name_prefix="mltrain-runs") as readers:
            requested = deque([readers.submit(page, None)])
            while requested:
                answer = requested.popleft().result()
                yield from answer
                found += len(answer)
                if not answer.token:
                    break  # pages after the last one are empty
                if len(answer) < size:  # the server's pages are smaller: the next ones begin elsewhere
                    ahead = 1
                    requested.clear()
                tokens = private.page_tokens(answer.token, found, size, ahead)[len(requested) :]
                requested.extend(readers.submit(page, token) for token in tokens)

    def create_run(self, experiment_id: str, start_time: int, tags: Mapping[str, str], name: str) -> "Run":
        """Create a run in one try; a retry could duplicate it."""
        run: Run = self.tried(self.client.create_run, experiment_id, start_time, tags, name)
        return run

    def update_run(self, run_id: str, **changed: str) -> None:
        """Set ``status`` or ``name`` of a run."""
        self.retried(self.client.update_run, run_id, **changed)

    def set_terminated(self, run_id: str, *status_and_end: Any) -> None:
        """Set a run's final status and end (milliseconds since 1970)."""
        self.retried(self.client.set_terminated, run_id, *status_and_end)

    def delete_run(self, run_id: str) -> None:
        """Move a run to MLflow's trash."""
        self.retried(self.client.delete_run, run_id)

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        """Set one tag of a run."""
        self.retried(self.client.set_tag, run_id, key, value)

    def delete_tag(self, run_id: str, key: str) -> None:
        """Delete one tag of a run."""
        self.retried(self.client.delete_tag, run_id, key)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run in one request."""
        tag = self._entities.RunTag
        self.retried(self.client.log_batch, run_id, tags=[tag(key, value) for key, value in tags.items()])

    def log_param(self, run_id: str, key: str, value: str) -> None:
        """Log a write-once parameter; the same value may be repeated."""
        self.retried(self.client.log_param, run_id, key, value)

    def log_params(self, run_id: str, params: Iterable[tuple[str, str]]) -> None:
        """Log parameters, key and value, in one request."""
        param = self._entities.Param
        self.retried(self.client.log_batch, run_id, params=[param(key, value) for key, value in params])

    def log_points(self, run_id: str, points: Iterable[tuple[str, float, int, int]]) -> None:
        """Log points (key, value, milliseconds since 1970, step) in one request."""
        if self.uri.startswith(("http://", "https://")):
            self.retried(private.log_points, self.preferred, run_id, list(points))
            return
        metric = private.entities().Metric
        self.retried(self.client.log_batch, run_id, metrics=[metric(*point) for point in points])

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
        self.retried(self.client.log_inputs, run_id, inputs)

    def points_between(self, run_id: str, key: str, first: int, last: int) -> list[tuple[int, float]]:
        """Return a metric's steps and values between two steps; see :func:`mltrain.compat.private.points`."""
        found = self.retried(lambda: private.points(self.preferred, self.uri, [run_id], key, first, last))
        return [point for _, point in found]

    def curves(self, run_ids: Sequence[str], keys: Sequence[str]) -> dict[tuple[str, str], list[tuple[int, float]]]:
        """Return metric curves (steps, values) by run id and key.

        A curve is in the order of its steps. A database that :class:`~mltrain.compat.database.DatabaseReader` can read takes
        one query. All others take a request per key and hundred runs, and MLflow samples curves of more than 2,000 points.
        """
        if isinstance(self.client, DeferredClient) and self.client.reader is not None:
            with suppress(Unreadable):
                return self.client.reader.curves(run_ids, keys)
        client = self.preferred
        starts = range(0, len(run_ids), private.MOST_RUNS)
        asked = [(key, list(run_ids[begin : begin + private.MOST_RUNS])) for key in keys for begin in starts]

        def answered(one: tuple[str, list[str]]) -> list[tuple[str, str, tuple[int, float]]]:
            return [(one[0], *point) for point in self.retried(private.points, client, self.uri, one[1], one[0])]

        curves: dict[tuple[str, str], list[tuple[int, float]]] = {}
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="mltrain-curves") as readers:
            for key, run_id, point in chain.from_iterable(readers.map(answered, asked)):
                curves.setdefault((run_id, key), []).append(point)
        return {one: sorted(points, key=itemgetter(0)) for one, points in curves.items()}

    def get_experiment(self, experiment_id: str) -> "Experiment":
        """Return an experiment by its id."""
        experiment: Experiment = self.retried(self.client.get_experiment, experiment_id)
        return experiment

    def find_experiment(self, name: str) -> "Experiment | None":
        """Return an experiment by its name, or ``None``."""
        found: Experiment | None = self.retried(self.client.get_experiment_by_name, name)
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
        return str(self.tried(self.client.create_experiment, name))

    def search_experiments(self, *, page: int = _PAGE) -> Iterator["Experiment"]:
        """Yield all active experiments."""
        return self.paged(self.client.search_experiments, max_results=page)

    def history(self, run_id: str, key: str) -> "list[Metric]":
        """Return all points of a metric, with their timestamps."""
        return list(self.retried(self.client.get_metric_history, run_id, key))

    @property
    def _entities(self) -> Any:
        """The client's entity classes, named as in ``mlflow.entities``."""
        client = self.retried(lambda: self.preferred)
        return ENTITIES if isinstance(client, RestClient) else private.entities()


def connect(uri: str | None = None, *, retry_seconds: float = 5.0) -> TrackingClient:
    """Return a client of a tracking server.

    Args:
        uri: of the server. If ``None``, the environment's URI applies, or MLflow's default.
        retry_seconds: how long its methods retry.

    Raises:
        TrackingError: MLflow cannot use the URI.
    """
    remember_environment()
    set_client_defaults()
    try:
        uri = checked(uri or uri_of_environment() or private.uri_of_mlflow())
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
    set_client_defaults()
    return TrackingClient(uri, DeferredClient(uri, DatabaseReader(file)), retry_seconds=5.0)


def active_run_id() -> str | None:
    """Return the fluent interface's active run id, or ``None``."""
    mlflow = sys.modules.get("mlflow")
    active = mlflow.active_run() if mlflow is not None else None  # without the import, no run is active
    return str(active.info.run_id) if active is not None else None
