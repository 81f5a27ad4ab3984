"""Finds the run of a pipeline and the runs of its stages."""

import os
from typing import Any

from mltrain.errors import RunNotFound, UsageError
from mltrain.pipeline import Pipeline
from mltrain.run.preparation import user
from mltrain.run.run_ids import full_id
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.tags import PIPELINE_TAG, STAGE_RETIRED_TAG, STAGE_TAG

PARENT_TAG = "mlflow.parentRunId"


def newest_parent(server: TrackingClient, pipeline: Pipeline, experiment_id: str) -> Any | None:
    """Return this user's newest run of a pipeline in an experiment, or ``None``."""
    found = server.search_runs(
        [experiment_id],
        f"tags.`{PIPELINE_TAG}` = '{pipeline.name}' and tags.`mlflow.user` = '{user()}'",
    )
    return next((run for run in found if STAGE_TAG not in run.data.tags), None)


def parent_of(server: TrackingClient, run_id: str) -> Any:
    """Return a pipeline's run by its id or by the id of a stage's run.

    Raises:
        RunNotFound: the id is neither.
    """
    run = server.run(full_id(server, run_id))
    if STAGE_TAG in run.data.tags and PARENT_TAG in run.data.tags:
        run = server.run(run.data.tags[PARENT_TAG])
    if PIPELINE_TAG not in run.data.tags:
        raise RunNotFound(f"Run {run_id} is not the run of a pipeline, nor of a stage of one. List them: mltrain runs")
    return run


def children(server: TrackingClient, parent: Any, stage: str) -> list[Any]:
    """Return the runs of a stage under a pipeline's run, newest first."""
    found = server.search_runs(
        [parent.info.experiment_id],
        f"tags.`{PARENT_TAG}` = '{parent.info.run_id}' and tags.`{STAGE_TAG}` = '{stage}'",
    )
    return [run for run in found if STAGE_RETIRED_TAG not in run.data.tags]


def experiment_id(server: TrackingClient, name: str | None) -> str | None:
    """Return the id of the requested experiment, or ``None`` if it does not exist yet."""
    name = name or os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if not name:
        return os.environ.get("MLFLOW_EXPERIMENT_ID") or "0"
    found = server.once.find_experiment(name)
    return str(found.experiment_id) if found is not None else None


def chosen_parent(server: TrackingClient, pipeline: Pipeline, run: str | None, experiment: str | None) -> Any | None:
    """Return the requested run of a pipeline, else the newest.

    ``None`` means that there is no run, or that ``run`` is ``new``.

    Raises:
        RunNotFound: the id is not that of a pipeline's run.
        UsageError: the run belongs to another pipeline.
    """
    if run == "new":
        return None
    if run is None:
        identity = experiment_id(server, experiment)
        return newest_parent(server, pipeline, identity) if identity is not None else None
    parent = parent_of(server, run)
    name = parent.data.tags[PIPELINE_TAG]
    if name != pipeline.name:
        raise UsageError(f"Run {run} belongs to the pipeline {name!r}. Expected a run of {pipeline.name!r}.")
    return parent
