"""Finds the runs of a pipeline and its stages."""

from typing import Any

from mltrain.delivery.creation import existing_experiment
from mltrain.errors import RunNotFound, UsageError
from mltrain.pipeline import Pipeline
from mltrain.run.naming import experiment_for, full_id
from mltrain.run.preparation import user
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.tags import MLFLOW_PARENT, PIPELINE_TAG, STAGE_RETIRED_TAG, STAGE_TAG


def parent_of(server: TrackingClient, run_id: str) -> Any:
    """Return a pipeline's run by its or a stage's id.

    Raises:
        RunNotFound: the id is neither.
    """
    run = server.run(full_id(server, run_id))
    if STAGE_TAG in run.data.tags and MLFLOW_PARENT in run.data.tags:
        run = server.run(run.data.tags[MLFLOW_PARENT])
    if PIPELINE_TAG not in run.data.tags:
        raise RunNotFound(
            f"Run {run_id} belongs to no pipeline. Expected the run of a pipeline or of a stage. Try: mltrain runs"
        )
    return run


def children(server: TrackingClient, parent: Any, stage: str) -> list[Any]:
    """Return a stage's runs under a pipeline's run, newest first."""
    found = server.search_runs(
        [parent.info.experiment_id],
        f"tags.`{MLFLOW_PARENT}` = '{parent.info.run_id}' and tags.`{STAGE_TAG}` = '{stage}'",
    )
    return [run for run in found if STAGE_RETIRED_TAG not in run.data.tags]


def _newest_parent(server: TrackingClient, pipeline: Pipeline, experiment: str | None) -> Any | None:
    """Return this user's newest run of a pipeline, if any.

    If ``experiment`` is ``None``, the search includes MLflow's default one, where ``mlflow run`` creates its runs.
    """
    wanted = experiment_for(pipeline.name, experiment)
    default = "0" if wanted is not None and experiment is None else None
    identities = [one for one in (existing_experiment(server.once, wanted), default) if one is not None]
    query = f"tags.`{PIPELINE_TAG}` = '{pipeline.name}' and tags.`mlflow.user` = '{user()}'"
    found = server.search_runs(identities, query) if identities else []
    return next((run for run in found if STAGE_TAG not in run.data.tags), None)


def chosen_parent(server: TrackingClient, pipeline: Pipeline, run: str | None, experiment: str | None) -> Any | None:
    """Return the requested run of a pipeline, or the newest.

    Returns ``None`` before the pipeline's first run, or if ``run`` is ``new``.

    Raises:
        RunNotFound: the id is not that of a pipeline's run.
        UsageError: the run belongs to another pipeline.
    """
    if run == "new":
        return None
    if run is None:
        return _newest_parent(server, pipeline, experiment)
    parent = parent_of(server, run)
    name = parent.data.tags[PIPELINE_TAG]
    if name != pipeline.name:
        raise UsageError(f"Run {run} belongs to the pipeline {name!r}. Expected a run of {pipeline.name!r}.")
    return parent
