"""Tags and parameters of mltrain in MLflow, and their forms.

A name that ends in ``_PREFIX`` is completed as its docstring describes. The strings are an on-disk format and never change.
MLflow's pages hide tags that begin with ``mlflow.``, but that prefix is reserved for MLflow itself.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mltrain.checkpoint.manifest import Manifest
from mltrain.checkpoint.retention import Mode

MLFLOW_PARENT = "mlflow.parentRunId"
"""MLflow's tag of a run that is nested under another one: the parent's id."""

NAMESPACE = "mltrain."
"""Prefix of every tag and parameter below; only mltrain writes such names."""

# Identity of the run, written by the process that creates or opens it.
PROJECT_TAG = "mltrain.project"
"""The trained project; written with the configuration, before the first step."""
PIPELINE_TAG = "mltrain.pipeline"
"""On the runs of a pipeline and its stages: the pipeline's name."""
STAGE_TAG = "mltrain.stage"
"""On the run of a stage: the stage's name."""
STAGE_INPUTS_TAG = "mltrain.stage.inputs"
"""On the run of a stage: JSON of its inputs from other stages, by key."""
STAGE_RECIPE_TAG = "mltrain.stage.recipe"
"""On the run of a stage: JSON with the fingerprints of its code and data."""
STAGE_RETIRED_TAG = "mltrain.stage.retired"
"""On the run of a stage: ``cleared`` once ``mltrain pipeline --clear`` has begun to remove it."""
REQUEST_ID_TAG = "mltrain.birth"
"""Idempotency key of the request that creates the run; the run's folder on its host has this name until then."""
RUN_KEY_TAG = "mltrain.run_key"
"""The run key, as a tag. Also a parameter, once no other run can have the same key."""
FORKED_FROM_TAG = "mltrain.forked_from"
"""The run, or run and checkpoint, that a forked run started from."""
IMPORTED_TAG = "mltrain.imported"
"""Name of the file that ``mltrain import`` imported as the first checkpoint."""
LAUNCHER_OF_TAG = "mltrain.launcher_of"
"""On the empty run of ``mlflow run``: the id of the run that is resumed instead."""
LAUNCHER_TAG = "mltrain.launcher"
"""On the empty run of ``mlflow run``: JSON that identifies the process of ``mlflow run``."""

# Lease and final status. The lease holder writes these; for a dead holder the reaper and ``mltrain sync`` do.
ATTEMPT_PREFIX = "mltrain.attempt."
"""Parameter with the attempt's number: JSON of the process that claimed it. Write-once, so it is the fencing token."""
HOLDER_TAG = "mltrain.holder"
"""JSON of the attempt and process that hold the lease."""
HEARTBEAT_TAG = "mltrain.heartbeat"
"""``<attempt>.<count>``; the heartbeat thread changes it every few seconds, and an orderly end removes it."""
STATUS_TAG = "mltrain.status"
"""``running``, ``finished``, ``failed`` or ``stopped``."""
ENDED_PREFIX = "mltrain.ended."
"""With the attempt's number: its final status. Unlike :data:`STATUS_TAG`, only the attempt's own process writes it.

A resume removes the tags of earlier attempts, which ``attempts.json`` keeps.
"""
ONLY_LOCAL_TAG = "mltrain.newest_only_local"
"""Name and host of the newest checkpoint while it is not in the artifact store."""
WHEN_SENT_TAG = "mltrain.status_when_sent"
"""With :data:`ONLY_LOCAL_TAG`: the :data:`STATUS_TAG` to set once ``mltrain sync`` has uploaded that checkpoint."""

# Progress of the run, written by the training.
RESUMED_FROM_TAG = "mltrain.resumed_from"
"""Name of the checkpoint that the latest attempt resumed from."""
REWOUND_PREFIX = "mltrain.rewound."
"""With the attempt's number: the step it resumed from, if the previous attempt had gone further."""
CHANGED_PREFIX = "mltrain.changed."
"""With the attempt's number: JSON of the changed settings, each with its old and new value."""
WRITTEN_TAG = "mltrain.data.written"
"""JSON of the files that the training wrote into its data folders."""
POINTS_LEFT_OUT_TAG = "mltrain.points_left_out"
"""Number of metric points that were lost permanently."""
PICTURES_LEFT_OUT_TAG = "mltrain.pictures_left_out"
"""Number of pictures that were not finished within the grace period."""

# Checkpoints. The checkpoint manager writes these after a commit or a removal; users write pins.
RETENTION_TAG = "mltrain.retention"
"""The retention policy as text."""
LATEST_TAG = "mltrain.latest"
"""Name of the newest committed checkpoint; absent before the first commit."""
BEST_TAG = "mltrain.best"
"""Name of the best committed checkpoint."""
AT_BEST_TAG = "mltrain.at_best"
"""JSON of the best checkpoint: ``checkpoint``, ``epoch``, ``step``, ``metrics``. Lists of runs read it.

The name is short because MLflow's pages cut keys of more than 15 characters if the value is long.
"""
BEST_BY_TAG = "mltrain.best_by"
"""``min`` or ``max``, a space, and the metric that ranks checkpoints."""
BEST_METRIC_TAG = "mltrain.best_metric"
"""Of version 0.1: the metric that ranks checkpoints."""
BEST_MODE_TAG = "mltrain.best_mode"
"""Of version 0.1: whether smaller (``min``) or larger (``max``) values of that metric are better."""
PIN_PREFIX = "mltrain.pin."
"""With a checkpoint's name: why it is never removed. ``mltrain pin`` and forks write it."""
DROPPED_PREFIX = "mltrain.dropped."
"""With a checkpoint's name: the rule that removed it from staging without an upload."""
DAMAGED_PREFIX = "mltrain.damaged."
"""With a checkpoint's name: its damage."""
REMOVED_TAG = "mltrain.removed"
"""Number and total bytes of the checkpoints that retention has removed."""
MADE_FROM_TAG = "mltrain.checkpoint"
"""On a LoggedModel, written by users: name of its source checkpoint."""


def best_by(metric: str, mode: Mode) -> str:
    """Return the text of :data:`BEST_BY_TAG`."""
    return f"{mode} {metric}"


def declared_best(tags: Mapping[str, str]) -> tuple[str, Mode] | None:
    """Return the metric and mode that rank checkpoints.

    Returns ``None`` if the tags name no metric.
    """
    mode, _, metric = tags.get(BEST_BY_TAG, "").partition(" ")
    if not metric:
        mode, metric = tags.get(BEST_MODE_TAG, "min"), tags.get(BEST_METRIC_TAG, "")
    return (metric, "max" if mode == "max" else "min") if metric else None


def meaning_of_best(run: Any) -> tuple[str, Mode]:
    """Return the metric and mode that rank a run's checkpoints.

    Without tags these are ``val/loss`` and ``min``.
    """
    return declared_best(run.data.tags) or ("val/loss", "min")


@dataclass(frozen=True)
class BestValues:
    """The metrics of a run's best checkpoint.

    Attributes:
        epoch: of the checkpoint.
        step: of the checkpoint.
        metrics: from its manifest and its notes.
    """

    epoch: int
    step: int
    metrics: Mapping[str, float]


def best_tags(manifest: Manifest) -> dict[str, str]:
    """Return the tags for a run's best checkpoint."""
    content = {
        "checkpoint": manifest.name,
        "epoch": manifest.epoch,
        "step": manifest.step,
        "metrics": dict(manifest.metrics),
    }
    text = json.dumps(content)
    return {BEST_TAG: manifest.name, AT_BEST_TAG: text if len(text) <= 8000 else "{}"}  # MLflow accepts no more


def best_values(run: Any) -> BestValues | None:
    """Return a run's best checkpoint metrics, without a request.

    Returns:
        ``None`` if the tags lack them: the run has no best checkpoint, an earlier version of mltrain wrote its tags, or
        the metrics are too long for a tag. The manifest of the checkpoint has them then.
    """
    try:
        content = json.loads(run.data.tags[AT_BEST_TAG])
        if content["checkpoint"] != run.data.tags[BEST_TAG]:
            return None  # an earlier version of mltrain resumed the run
        metrics = {str(key): float(value) for key, value in content["metrics"].items()}
        return BestValues(int(content["epoch"]), int(content["step"]), metrics)
    except (KeyError, ValueError, TypeError, AttributeError):
        return None


def pins_of(run: Any) -> dict[str, str]:
    """Return a run's pinned checkpoints, each with its reason."""
    tags = run.data.tags
    return {key.removeprefix(PIN_PREFIX): why for key, why in tags.items() if key.startswith(PIN_PREFIX)}
