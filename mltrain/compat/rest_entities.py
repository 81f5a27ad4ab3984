"""Converts entities between MLflow's REST JSON and Python objects."""

from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple


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


def mapping(pairs: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return key-value pairs as a dictionary."""
    return {pair["key"]: pair.get("value", "") for pair in pairs}


def pairs(pairs: Iterable[Pair]) -> list[dict[str, str]]:
    """Return tags or parameters as JSON objects."""
    return [{"key": pair.key, "value": str(pair.value)} for pair in pairs]


def point(raw: Mapping[str, Any]) -> SimpleNamespace:
    """Return a point of a metric."""
    numbers = {"timestamp": int(raw.get("timestamp", 0)), "step": int(raw.get("step", 0))}
    return SimpleNamespace(key=raw["key"], value=float(raw.get("value", 0.0)), **numbers)


def run(raw: Mapping[str, Any]) -> SimpleNamespace:
    """Return a run."""
    known, data = raw["info"], raw.get("data", {})
    words = ("run_name", "experiment_id", "user_id", "status", "lifecycle_stage", "artifact_uri")
    times = {name: int(known[name]) if known.get(name) else None for name in ("start_time", "end_time")}
    points = [point(one) for one in data.get("metrics", ())]
    return SimpleNamespace(
        info=SimpleNamespace(run_id=known["run_id"], **{word: known.get(word) for word in words}, **times),
        data=SimpleNamespace(
            tags=mapping(data.get("tags", ())),
            params=mapping(data.get("params", ())),
            metrics={point.key: point.value for point in points},
            _metric_objs=points,
        ),
    )


def experiment(raw: Mapping[str, Any]) -> SimpleNamespace:
    """Return an experiment."""
    words = ("name", "artifact_location", "lifecycle_stage")
    return SimpleNamespace(
        experiment_id=str(raw["experiment_id"]),
        **{word: raw.get(word) for word in words},
        tags=mapping(raw.get("tags", ())),
    )


def logged_model(raw: Mapping[str, Any]) -> SimpleNamespace:
    """Return a LoggedModel.

    Its status has the client's spelling, such as ``READY``.
    """
    info = raw["info"]
    return SimpleNamespace(
        model_id=info["model_id"],
        name=info.get("name"),
        status=str(info.get("status", "")).removeprefix("LOGGED_MODEL_"),
        artifact_location=info.get("artifact_uri"),
        tags=mapping(info.get("tags", ())),
    )


def model_version(raw: Mapping[str, Any]) -> SimpleNamespace:
    """Return a registered model's version."""
    words = ("name", "version", "source", "run_id")
    return SimpleNamespace(**{word: raw.get(word) for word in words})
