"""A client of MLflow's REST API without importing MLflow.

The import takes more than a second. Only a plain server is accessed this way (see :func:`mltrain.compat.rest_server.is_plain`);
all others go through MLflow's own client.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

from mltrain.compat.database import Page
from mltrain.compat.rest_server import RestError, Server

_API = "/api/2.0/mlflow"
_AT_ONCE = 100
"""Most parameters, and most tags, of one request."""


class Pair(NamedTuple):
    """A tag or a parameter."""

    key: str
    value: str


class Dataset(NamedTuple):
    """An input dataset with the field names of MLflow's entity."""

    name: str
    digest: str
    source_type: str
    source: str


class DatasetInput(NamedTuple):
    """A dataset with the tags of its use."""

    dataset: Dataset
    tags: list[Pair]


ENTITIES = SimpleNamespace(RunTag=Pair, Param=Pair, Dataset=Dataset, DatasetInput=DatasetInput, InputTag=Pair)
"""Argument types of :class:`RestClient`, named as in ``mlflow.entities``."""


class RestClient:
    """The ``MlflowClient`` methods that mltrain needs, for a plain server.

    Each raises :class:`RestError`, and returns objects with the attributes of MLflow's entities that mltrain reads. Only the
    methods that a training and lists of runs need exist.

    Args:
        uri: of the server.
    """

    def __init__(self, uri: str) -> None:
        self._server = Server(uri)

    def ask(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        """Send a REST request and return the decoded response.

        Parameters that are ``None`` are left out.

        Raises:
            RestError: the server refuses or does not answer.
        """
        given = {key: value for key, value in content.items() if value is not None}
        response = self._server.send(method, path, **{"params" if method == "GET" else "json": given})
        try:
            answer = json.loads(response.text.strip() or "{}") if response.text.strip() != "200 OK" else {}
        except ValueError:
            answer = None
        if response.status_code == 200 and isinstance(answer, dict):
            return answer
        code = "ENDPOINT_NOT_FOUND" if response.status_code == 404 else "INTERNAL_ERROR"
        if not isinstance(answer, dict):
            why = f"failed with error code {response.status_code} != 200. Response body: '{response.text}'"
            raise RestError(f"API request to endpoint {path} {why}", code, response.status_code)
        code = str(answer.get("error_code", code))
        raise RestError(f"{code}: {answer.get('message', f'Response: {answer}')}", code, response.status_code)

    def get_run(self, run_id: str) -> Any:
        """Return a run, deleted or not."""
        return _run(self.ask("GET", f"{_API}/runs/get", run_uuid=run_id, run_id=run_id)["run"])

    def search_runs(
        self,
        experiment_ids: Sequence[str],
        filter_string: str = "",
        max_results: int = 1000,
        page_token: str | None = None,
    ) -> Page:
        """Return a page of the matching active runs, newest first."""
        return self._page(
            *("POST", "runs", _run),
            experiment_ids=[str(one) for one in experiment_ids],
            filter=filter_string,
            run_view_type="ACTIVE_ONLY",
            max_results=max_results,
            page_token=page_token,
        )

    def create_run(self, experiment_id: str, start_time: int, tags: Mapping[str, str], run_name: str) -> Any:
        """Create and return a run."""
        answer = self.ask(
            *("POST", f"{_API}/runs/create"),
            experiment_id=str(experiment_id),
            user_id=tags.get("mlflow.user", "unknown"),
            start_time=start_time,
            tags=_pairs(Pair(*tag) for tag in tags.items()),
            run_name=run_name,
        )
        return _run(answer["run"])

    def update_run(self, run_id: str, status: str | None = None, name: str | None = None) -> None:
        """Set a run's status or name, leaving its end unchanged."""
        status = status or self.get_run(run_id).info.status
        self.ask("POST", f"{_API}/runs/update", run_uuid=run_id, run_id=run_id, status=status, run_name=name)

    def set_terminated(self, run_id: str, status: str | None = None, end_time: int | None = None) -> None:
        """Set a run's final status and end.

        If the end is ``None``, it is now.
        """
        self.ask(
            *("POST", f"{_API}/runs/update"),
            run_uuid=run_id,
            run_id=run_id,
            status=status or "FINISHED",
            end_time=end_time or int(time.time() * 1000),
        )

    def delete_run(self, run_id: str) -> None:
        """Move a run to MLflow's trash."""
        self.ask("POST", f"{_API}/runs/delete", run_id=run_id)

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        """Set one tag of a run."""
        self.ask("POST", f"{_API}/runs/set-tag", run_uuid=run_id, run_id=run_id, key=key, value=str(value))

    def delete_tag(self, run_id: str, key: str) -> None:
        """Delete one tag of a run."""
        self.ask("POST", f"{_API}/runs/delete-tag", run_id=run_id, key=key)

    def log_param(self, run_id: str, key: str, value: str) -> None:
        """Log a parameter; parameters are write-once."""
        self.ask("POST", f"{_API}/runs/log-parameter", run_uuid=run_id, run_id=run_id, key=key, value=str(value))

    def log_batch(self, run_id: str, params: Sequence[Pair] = (), tags: Sequence[Pair] = ()) -> None:
        """Log parameters and tags in as few requests as possible."""
        for begin in range(0, max(len(params), len(tags)), _AT_ONCE):
            part = slice(begin, begin + _AT_ONCE)
            sent = {"params": _pairs(params[part]), "tags": _pairs(tags[part])}
            self.ask("POST", f"{_API}/runs/log-batch", run_id=run_id, **{k: v for k, v in sent.items() if v})

    def log_inputs(self, run_id: str, datasets: Sequence[DatasetInput]) -> None:
        """Log a run's input datasets."""
        sent = [{"dataset": one.dataset._asdict(), "tags": _pairs(one.tags)} for one in datasets]
        self.ask("POST", f"{_API}/runs/log-inputs", run_id=run_id, datasets=sent)

    def get_metric_history(self, run_id: str, key: str) -> list[Any]:
        """Return all points of a metric."""
        answer = self.ask("GET", f"{_API}/metrics/get-history", run_uuid=run_id, run_id=run_id, metric_key=key)
        return [_point(point) for point in answer.get("metrics", ())]

    def get_experiment(self, experiment_id: str) -> Any:
        """Return an experiment, deleted or not."""
        return _experiment(self.ask("GET", f"{_API}/experiments/get", experiment_id=str(experiment_id))["experiment"])

    def get_experiment_by_name(self, name: str) -> Any | None:
        """Return an experiment, deleted or not, or ``None``."""
        try:
            answer = self.ask("GET", f"{_API}/experiments/get-by-name", experiment_name=name)
        except RestError as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return _experiment(answer["experiment"])

    def create_experiment(self, name: str) -> str:
        """Create an experiment and return its id."""
        return str(self.ask("POST", f"{_API}/experiments/create", name=name)["experiment_id"])

    def search_experiments(self, max_results: int = 1000, page_token: str | None = None) -> Page:
        """Return a page of the active experiments."""
        return self._page(
            *("POST", "experiments", _experiment),
            view_type="ACTIVE_ONLY",
            max_results=max_results,
            page_token=page_token,
        )

    def search_logged_models(
        self, experiment_ids: Sequence[str], filter_string: str, page_token: str | None = None
    ) -> Page:
        """Return a page of the matching LoggedModels of experiments."""
        return self._page(
            *("POST", "logged-models", _logged_model, "models"),
            experiment_ids=list(experiment_ids),
            filter=filter_string,
            page_token=page_token,
        )

    def search_model_versions(self, filter_string: str, max_results: int, page_token: str | None = None) -> Page:
        """Return a page of the matching registered model versions."""
        return self._page(
            *("GET", "model-versions", _model_version, "model_versions"),
            filter=filter_string,
            max_results=max_results,
            page_token=page_token,
        )

    def _page(self, method: str, kind: str, made: Callable[[Any], Any], key: str | None = None, **content: Any) -> Page:
        answer = self.ask(method, f"{_API}/{kind}/search", **content)
        return Page(map(made, answer.get(key or kind, ())), answer.get("next_page_token") or None)


def _mapping(pairs: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return key-value pairs as a dictionary."""
    return {pair["key"]: pair.get("value", "") for pair in pairs}


def _pairs(pairs: Iterable[Pair]) -> list[dict[str, str]]:
    """Return tags or parameters as JSON objects."""
    return [{"key": pair.key, "value": str(pair.value)} for pair in pairs]


def _point(raw: Mapping[str, Any]) -> SimpleNamespace:
    """Return a point of a metric."""
    numbers = {"timestamp": int(raw.get("timestamp", 0)), "step": int(raw.get("step", 0))}
    return SimpleNamespace(key=raw["key"], value=float(raw.get("value", 0.0)), **numbers)


def _run(raw: Mapping[str, Any]) -> SimpleNamespace:
    """Return a run."""
    known, data = raw["info"], raw.get("data", {})
    words = ("run_name", "experiment_id", "user_id", "status", "lifecycle_stage", "artifact_uri")
    times = {name: int(known[name]) if known.get(name) else None for name in ("start_time", "end_time")}
    points = [_point(one) for one in data.get("metrics", ())]
    return SimpleNamespace(
        info=SimpleNamespace(run_id=known["run_id"], **{word: known.get(word) for word in words}, **times),
        data=SimpleNamespace(
            tags=_mapping(data.get("tags", ())),
            params=_mapping(data.get("params", ())),
            metrics={point.key: point.value for point in points},
            _metric_objs=points,
        ),
    )


def _experiment(raw: Mapping[str, Any]) -> SimpleNamespace:
    """Return an experiment."""
    words = ("name", "artifact_location", "lifecycle_stage")
    return SimpleNamespace(
        experiment_id=str(raw["experiment_id"]),
        **{word: raw.get(word) for word in words},
        tags=_mapping(raw.get("tags", ())),
    )


def _logged_model(raw: Mapping[str, Any]) -> SimpleNamespace:
    """Return a LoggedModel.

    Its status has the client's spelling, such as ``READY``.
    """
    info = raw["info"]
    return SimpleNamespace(
        model_id=info["model_id"],
        name=info.get("name"),
        status=str(info.get("status", "")).removeprefix("LOGGED_MODEL_"),
        artifact_location=info.get("artifact_uri"),
        tags=_mapping(info.get("tags", ())),
    )


def _model_version(raw: Mapping[str, Any]) -> SimpleNamespace:
    """Return a registered model's version."""
    words = ("name", "version", "source", "run_id")
    return SimpleNamespace(**{word: raw.get(word) for word in words})
