"""The run of a pipeline: found again, with what it recorded and with the runs of its stages."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mltrain.errors import MltrainError, RunNotFound, UsageError
from mltrain.ownership.attempts import recorded_config
from mltrain.pipeline import Pipeline
from mltrain.run.opening import user
from mltrain.store.allowlist import UnusableArtifacts
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.places import artifacts_of
from mltrain.tracking.tags import PIPELINE_TAG, STAGE_RETIRED_TAG, STAGE_TAG

log = logging.getLogger(__name__)

PARENT_TAG = "mlflow.parentRunId"


@dataclass(frozen=True)
class Plan:
    """What a pipeline's run was asked for.

    Attributes:
        configs: for each stage its resolved configuration.
        used: stages that are given, with the runs in their places.
    """

    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    used: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return plain values, for ``config.json`` of the pipeline's run."""
        return {"stages": dict(self.configs), "used": dict(self.used)}


def recorded_plan(server: TrackingClient, pipeline: Pipeline, parent: Any) -> Plan:
    """Return what was asked for; where the record is missing or damaged, what the runs of the stages tell of it.

    Raises:
        StorageError: neither its artifacts nor those of any stage can be reached.
    """
    unusable: UnusableArtifacts | None
    try:
        config = recorded_config(artifacts_of(server, parent))["config"]
        names = {stage.name for stage in pipeline.stages}
        stages = {name: dict(one) for name, one in config["stages"].items() if name in names}
        return Plan(stages, {str(name): str(run) for name, run in config["used"].items() if name in names})
    except UnusableArtifacts as error:
        unusable = error
    except (RunNotFound, KeyError, TypeError, ValueError, AttributeError):
        unusable = None
    found: dict[str, Mapping[str, Any]] = {}
    for stage in pipeline.stages:
        for run in children(server, parent, stage.name):
            try:
                recorded = recorded_config(artifacts_of(server, run))["config"]
            except MltrainError:
                continue
            found[stage.name] = {**recorded, **dict.fromkeys(stage.needs)}
            break
    if unusable is not None and not found:
        raise unusable
    log.warning(
        "The record of pipeline run %s is missing or damaged; it is rebuilt from the runs of its stages (%s). Stages that "
        "were given with --use have to be given again.",
        parent.info.run_id,
        ", ".join(found) or "there are none, so the defaults count",
    )
    return Plan(found)


def newest_parent(server: TrackingClient, pipeline: Pipeline, experiment_id: str) -> Any | None:
    """Return the newest run of a pipeline in an experiment by this user, or none."""
    found = server.search_runs(
        [experiment_id],
        f"tags.`{PIPELINE_TAG}` = '{pipeline.name}' and tags.`mlflow.user` = '{user()}'",
    )
    return next((run for run in found if STAGE_TAG not in run.data.tags), None)


def parent_of(server: TrackingClient, run_id: str) -> Any:
    """Return a pipeline's run, given its id or that of the run of one of its stages.

    Raises:
        RunNotFound: it is neither.
    """
    run = server.run(run_id)
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
    """Return the id of the experiment that is meant, or none where it does not exist yet."""
    name = name or os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if not name:
        return os.environ.get("MLFLOW_EXPERIMENT_ID") or "0"
    found = server.once.find_experiment(name)
    return str(found.experiment_id) if found is not None else None


def chosen_parent(server: TrackingClient, pipeline: Pipeline, run: str | None, experiment: str | None) -> Any | None:
    """Return the pipeline's run that is meant: by its id or a stage's; else the newest; none: there is none, or ``new``.

    Raises:
        RunNotFound: the id is not that of a pipeline's run.
        UsageError: it is the run of another pipeline.
    """
    if run == "new":
        return None
    if run is None:
        identity = experiment_id(server, experiment)
        return newest_parent(server, pipeline, identity) if identity is not None else None
    parent = parent_of(server, run)
    name = parent.data.tags[PIPELINE_TAG]
    if name != pipeline.name:
        raise UsageError(f"Run {run} is of the pipeline {name!r}, not of {pipeline.name!r}.")
    return parent
