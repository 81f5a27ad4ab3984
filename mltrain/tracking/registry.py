"""References to a run's checkpoints: registered models and LoggedModels.

A LoggedModel belongs to a checkpoint if its source run is the checkpoint's run and its tag ``mltrain.checkpoint`` names the
checkpoint. It is removed together with the checkpoint, unless a version of a registered model was made from either: then both
stay.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mltrain.store.names import CHECKPOINT
from mltrain.store.opening import open_artifacts
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.connection import Refusal
from mltrain.tracking.tags import MADE_FROM_TAG

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

_PAGE = 1000
"""Versions per page of a search."""


@dataclass(frozen=True)
class MadeModel:
    """A LoggedModel made from a checkpoint."""

    model_id: str
    checkpoint: str
    location: str


def made_models(server: TrackingClient, run_id: str, experiment_id: str) -> list[MadeModel]:
    """Return the LoggedModels made from a run's checkpoints.

    Raises:
        TrackingError: the server does not answer.
    """
    try:
        found = list(logged_models(server.once, experiment_id, run_id))
    except Refusal as error:
        if getattr(error.__cause__, "error_code", None) == "ENDPOINT_NOT_FOUND":
            return []  # an old server without LoggedModels
        raise
    return [
        MadeModel(model.model_id, model.tags[MADE_FROM_TAG], model.artifact_location)
        for model in found
        if CHECKPOINT.fullmatch(model.tags.get(MADE_FROM_TAG, ""))
    ]


def in_use(server: TrackingClient, run_id: str, made: Iterable[MadeModel]) -> set[str]:
    """Return a run's checkpoints with registered model versions.

    The versions may come from a checkpoint directly or through a LoggedModel. Aliases point at versions, so their targets are
    included.

    Args:
        server: has the run.
        run_id: its id.
        made: its LoggedModels, see :func:`made_models`.

    Raises:
        TrackingError: the server does not answer.
    """
    sources = _sources(server, f"run_id = '{run_id}'") + _sources(server, f"source_path LIKE '%{run_id}%'")
    names = {match[0] for source in sources if (match := CHECKPOINT.search(source))}
    for model in made:
        if model.checkpoint not in names and _sources(server, f"source_path LIKE '%{model.model_id}%'"):
            names.add(model.checkpoint)
    return names


def remove_models(server: TrackingClient, models: Iterable[MadeModel], checkpoint: str) -> None:
    """Remove the LoggedModels made from a checkpoint.

    Their files go first, so that an interrupted removal can be repeated.

    Raises:
        StorageError, TrackingError: the store or the server refuses.
    """
    for model in models:
        if model.checkpoint == checkpoint:
            open_artifacts(model.location, server.uri).remove_model(model.model_id)
            delete_logged_model(server, model.model_id)


def logged_models(server: TrackingClient, experiment_id: str, run_id: str) -> "Iterator[LoggedModel]":
    """Yield the LoggedModels of a run."""
    query = f"source_run_id = '{run_id}'"
    return server.paged(server.client.search_logged_models, experiment_ids=[experiment_id], filter_string=query)


def delete_logged_model(server: TrackingClient, model_id: str) -> None:
    """Delete a LoggedModel, in one try."""
    server.tried(server.client.delete_logged_model, model_id)


def model_versions(server: TrackingClient, query: str) -> "Iterator[ModelVersion]":
    """Yield the versions of registered models that match a query."""
    return server.paged(server.client.search_model_versions, query, max_results=_PAGE)


def _sources(server: TrackingClient, query: str) -> list[str]:
    return [str(version.source) for version in model_versions(server.once, query)]
