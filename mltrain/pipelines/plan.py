"""What a pipeline's run was asked for: recorded in the run, and resolved from a request."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mltrain.config import Config
from mltrain.errors import MltrainError, RunNotFound
from mltrain.ownership.attempts import recorded_config
from mltrain.pipeline import Pipeline
from mltrain.pipelines.pipeline_run import children, chosen_parent
from mltrain.pipelines.request import PipelineRequest
from mltrain.run.checkpoints import checkpoints_of, trained_config
from mltrain.run.run_ids import full_id
from mltrain.store.opening import UnusableArtifacts
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.places import artifacts_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What a pipeline's run records of its request.

    Attributes:
        configs: for each stage its resolved configuration.
        used: for each stage that ``--use`` replaces, the run in its place.
    """

    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    used: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return plain values, for ``config.json`` of the pipeline's run."""
        return {"stages": dict(self.configs), "used": dict(self.used)}


def recorded_plan(server: TrackingClient, pipeline: Pipeline, parent: Any) -> Plan:
    """Return the recorded plan; rebuild a missing or damaged one from the stages' runs.

    Raises:
        StorageError: the artifacts of the run and of all its stages are out of reach.
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
                recorded = trained_config(checkpoints_of(server, run))
            except MltrainError:
                continue
            found[stage.name] = {**recorded, **dict.fromkeys(stage.needs)}
            break
    if unusable is not None and not found:
        raise unusable
    log.warning(
        "The record of pipeline run %s is missing or damaged. It is rebuilt from the runs of its stages (%s). Repeat --use for "
        "every stage that was given.",
        parent.info.run_id,
        ", ".join(found) or "there are none, so the defaults apply",
    )
    return Plan(found)


@dataclass(frozen=True)
class Planned:
    """A request, resolved against the pipeline's run.

    Attributes:
        parent: the pipeline's run. If ``None``, the pipeline has not run yet.
        configs: the configuration of each stage.
        plan: what the run records.
    """

    parent: Any | None
    configs: Mapping[str, Config]
    plan: Plan


def planned(server: TrackingClient, request: PipelineRequest) -> Planned:
    """Return the run that a request means, and each stage's configuration.

    Raises:
        RunNotFound: the id is not that of a pipeline's run.
        UsageError: the run belongs to another pipeline, or the configuration is invalid.
    """
    pipeline, overrides = request.located.pipeline, dict(request.overrides)
    parent = chosen_parent(server, pipeline, request.run, overrides.pop("experiment", None))
    before = recorded_plan(server, pipeline, parent) if parent is not None else Plan()
    if request.only is not None:
        overrides = {pipeline.within(request.only, key): value for key, value in overrides.items()}
    configs = pipeline.configs(files=request.files, preset=request.preset, overrides=overrides, base=before.configs)
    chosen = {name: full_id(server, run) for name, run in request.use.items()}
    used = {name: run for name, run in {**before.used, **chosen}.items() if name not in request.again}
    return Planned(parent, configs, Plan({name: config.resolved() for name, config in configs.items()}, used))
