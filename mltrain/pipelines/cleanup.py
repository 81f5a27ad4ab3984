"""Clears the user's own runs of stages."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from mltrain.checkpoint.manifest import CheckpointId
from mltrain.checkpoint.staging import Spool
from mltrain.checkpoint.store import CheckpointStore
from mltrain.errors import RunHeld, UsageError
from mltrain.ownership.run_folder import known_home
from mltrain.pipeline import Pipeline
from mltrain.pipelines.pipeline_run import children
from mltrain.run.listing import LIVE, state
from mltrain.run.preparation import user
from mltrain.store.names import OUTPUTS
from mltrain.store.opening import open_artifacts
from mltrain.store.removal import discard_staged
from mltrain.tracking import registry
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.tags import STAGE_RETIRED_TAG, pins_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clearing:
    """What clearing removes from a stage's run.

    Attributes:
        stage: name of the stage.
        run_id: the run's id. The run is deleted (and can be restored in the MLflow UI) unless a checkpoint of it is kept.
        name: name of the run.
        checkpoints: checkpoints to remove permanently.
        outputs: outputs to remove permanently, by attempt.
        bytes: size of the checkpoints in bytes.
        kept: pinned and registered checkpoints, with the reasons.
    """

    stage: str
    run_id: str
    name: str
    checkpoints: tuple[CheckpointId, ...] = ()
    outputs: tuple[str, ...] = ()
    bytes: int = 0
    kept: Mapping[CheckpointId, str] = field(default_factory=dict)


def plan_clearing(server: TrackingClient, pipeline: Pipeline, parent: Any, stages: Collection[str]) -> list[Clearing]:
    """Return what clearing removes from the runs of some stages.

    Raises:
        RunHeld: a run is being trained.
        UsageError: a run, or the pipeline's run, belongs to another user.
    """
    runs = [
        (stage.name, run)
        for stage in pipeline.stages
        if stage.name in stages
        for run in reversed(children(server, parent, stage.name))
    ]
    for run in (parent, *(run for _, run in runs)) if runs else ():
        owner = run.data.tags.get("mlflow.user", "nobody")
        if owner != user():
            raise UsageError(
                f"Run {run.info.run_id} belongs to {owner!r}, and only its owner can clear it. Try: --run new, which begins "
                "your own pipeline run"
            )
    for name, run in runs:
        if state(server, run) in LIVE:
            raise RunHeld(f"The stage {name!r} is being trained (run {run.info.run_id}). Nothing was cleared.")
    return [_planned(server, name, run) for name, run in runs]


def _planned(server: TrackingClient, stage: str, run: Any) -> Clearing:
    run_id = run.info.run_id
    artifacts = open_artifacts(run.info.artifact_uri, server.uri)
    store = CheckpointStore(run_id, artifacts)
    models = registry.made_models(server, run_id, run.info.experiment_id)
    reasons = dict.fromkeys(registry.in_use(server, run_id, models), "registered") | {
        name: f"pinned: {why}" for name, why in pins_of(run).items()
    }
    names = store.names()
    sizes = {manifest.id: manifest.size for manifest in store.manifests(damaged=lambda identity, error: None)}
    going = tuple(identity for identity in names if identity.name not in reasons)
    return Clearing(
        stage,
        run_id,
        run.info.run_name,
        going,
        tuple(entry.name for entry in artifacts.entries(OUTPUTS) if entry.is_dir),
        sum(sizes.get(identity, 0) for identity in going),
        {identity: reasons[identity.name] for identity in names if identity.name in reasons},
    )


def clear(server: TrackingClient, clearing: Clearing) -> None:
    """Remove what was planned; delete a run without kept checkpoints.

    Raises:
        RunHeld: another process has resumed the run in the meantime.
        StorageError: the store refuses a removal.
    """
    run = server.run(clearing.run_id)
    if state(server, run) in LIVE:
        raise RunHeld(f"Run {clearing.run_id} was resumed in the meantime. Nothing more was cleared.")
    artifacts = open_artifacts(run.info.artifact_uri, server.uri)
    models = registry.made_models(server, clearing.run_id, run.info.experiment_id)
    for identity in clearing.checkpoints:
        artifacts.remove_checkpoint(identity.name)
        registry.remove_models(server, models, identity.name)
    for name in clearing.outputs:
        artifacts.remove_output(name)
    staging = known_home(server, clearing.run_id) / "staging"
    if staging.is_dir():
        for folder in Spool(staging).complete():
            discard_staged(folder)
    if clearing.kept:
        server.once.set_tag(clearing.run_id, STAGE_RETIRED_TAG, "cleared")
    else:
        server.once.delete_run(clearing.run_id)
