"""Every tag and parameter that mltrain writes to MLflow: the data model of a run.

A name that ends in ``_PREFIX`` is completed by what its line says. The strings are a format: they never change. MLflow's pages
hide tags that begin with ``mlflow.``, but that name is reserved for MLflow itself.
"""

from collections.abc import Mapping
from typing import Any

from mltrain.checkpoint.retention import Mode

NAMESPACE = "mltrain."
"""Every tag and parameter below begins with it; no program but mltrain writes such names."""

# What the run is. The process that creates or opens the run writes these.
PROJECT_TAG = "mltrain.project"
"""The project that is trained; written with the configuration, before the first step."""
PIPELINE_TAG = "mltrain.pipeline"
"""On the run of a pipeline and on those of its stages: the pipeline's name."""
STAGE_TAG = "mltrain.stage"
"""On the run of a stage: the stage's name."""
STAGE_INPUTS_TAG = "mltrain.stage.inputs"
"""On the run of a stage: JSON of the outputs that the pipeline gave it, by key."""
STAGE_RECIPE_TAG = "mltrain.stage.recipe"
"""On the run of a stage: JSON of the fingerprints of its code and data."""
STAGE_RETIRED_TAG = "mltrain.stage.retired"
"""On the run of a stage: ``cleared`` once ``mltrain pipeline --clear`` has begun to remove it."""
REQUEST_ID_TAG = "mltrain.birth"
"""Idempotency key of the request that creates the run; the run's folder on its host has this name until then."""
RUN_KEY_TAG = "mltrain.run_key"
"""Tag of a run that was begun with a run key, and parameter: the key, once it is certain that no other run has it."""
FORKED_FROM_TAG = "mltrain.forked_from"
"""Run, or run and checkpoint, whose weights and state a new run began with."""
IMPORTED_TAG = "mltrain.imported"
"""Name of the file that ``mltrain import`` made the first checkpoint from."""
LAUNCHER_OF_TAG = "mltrain.launcher_of"
"""On the empty run of ``mlflow run``: the id of the run that is resumed in its place."""
LAUNCHER_TAG = "mltrain.launcher"
"""On the empty run of ``mlflow run``: JSON that identifies the process of ``mlflow run``."""

# Who holds the run, and how it ended. The holder writes these, and the reaper and ``mltrain sync`` for a dead holder.
ATTEMPT_PREFIX = "mltrain.attempt."
"""Parameter, followed by an attempt's number: JSON of the process that claimed it. Parameters are write-once: the fence."""
HOLDER_TAG = "mltrain.holder"
"""JSON of the attempt and process that hold the run."""
HEARTBEAT_TAG = "mltrain.heartbeat"
"""``<attempt>.<count>``; the holder's heartbeat thread changes it every few seconds, and an orderly end removes it."""
STATUS_TAG = "mltrain.status"
"""``running``, ``finished``, ``failed`` or ``stopped``."""
ENDED_PREFIX = "mltrain.ended."
"""Followed by an attempt's number: how it ended. Unlike :data:`STATUS_TAG` only the attempt's own process writes it.

A resume removes those of earlier attempts, which ``attempts.json`` records.
"""
ONLY_LOCAL_TAG = "mltrain.newest_only_local"
"""While the newest checkpoint is not in the artifact store: its name and the host that has it."""
WHEN_SENT_TAG = "mltrain.status_when_sent"
"""Beside :data:`ONLY_LOCAL_TAG`: what :data:`STATUS_TAG` becomes when ``mltrain sync`` has sent that checkpoint."""

# How the run went on. The training writes these.
RESUMED_FROM_TAG = "mltrain.resumed_from"
"""Name of the checkpoint from which the latest attempt continued."""
REWOUND_PREFIX = "mltrain.rewound."
"""Followed by an attempt's number: the step from which it continued, where the attempt before it went further."""
CHANGED_PREFIX = "mltrain.changed."
"""Followed by an attempt's number: JSON of the settings that changed, each with its old and new value."""
WRITTEN_TAG = "mltrain.data.written"
"""JSON of what the training wrote into the folders of its data."""
POINTS_LEFT_OUT_TAG = "mltrain.points_left_out"
"""How many metric points the run has lost for good."""
PICTURES_LEFT_OUT_TAG = "mltrain.pictures_left_out"
"""How many pictures were not made before the end of the grace."""

# Checkpoints. The checkpoint manager writes these after a commit or a removal, users write pins.
RETENTION_TAG = "mltrain.retention"
"""The retention policy as text."""
LATEST_TAG = "mltrain.latest"
"""Name of the newest committed checkpoint; a run has it only after a commit."""
BEST_TAG = "mltrain.best"
"""Name of the best committed checkpoint."""
AT_BEST_TAG = "mltrain.at_best"
"""JSON of what that checkpoint measured: ``checkpoint``, ``epoch``, ``step``, ``metrics``. Lists of runs read it.

MLflow's pages cut the key of a tag with a long value where it has more than 15 characters.
"""
BEST_BY_TAG = "mltrain.best_by"
"""``min`` or ``max``, a blank, and the metric by which checkpoints are compared."""
BEST_METRIC_TAG = "mltrain.best_metric"
"""Of version 0.1: the metric by which checkpoints are compared."""
BEST_MODE_TAG = "mltrain.best_mode"
"""Of version 0.1: whether less (``min``) or more (``max``) of that metric is better."""
PIN_PREFIX = "mltrain.pin."
"""Followed by a checkpoint's name: why it is never removed. ``mltrain pin`` and forks write it."""
DROPPED_PREFIX = "mltrain.dropped."
"""Followed by a checkpoint's name: the rule by which it was removed from staging without an upload."""
DAMAGED_PREFIX = "mltrain.damaged."
"""Followed by a checkpoint's name: why it cannot be read."""
REMOVED_TAG = "mltrain.removed"
"""How many checkpoints retention has removed, and their bytes."""
MADE_FROM_TAG = "mltrain.checkpoint"
"""On a LoggedModel, written by users: name of the checkpoint from which it was made."""


def best_by(metric: str, mode: Mode) -> str:
    """Return the text of :data:`BEST_BY_TAG`."""
    return f"{mode} {metric}"


def declared_best(tags: Mapping[str, str]) -> tuple[str, Mode] | None:
    """Return the metric that decides which checkpoint is best, and its direction; ``None`` if the tags tell of none."""
    mode, _, metric = tags.get(BEST_BY_TAG, "").partition(" ")
    if not metric:
        mode, metric = tags.get(BEST_MODE_TAG, "min"), tags.get(BEST_METRIC_TAG, "")
    return (metric, "max" if mode == "max" else "min") if metric else None


def meaning_of_best(run: Any) -> tuple[str, Mode]:
    """Return the metric that decides which checkpoint of a run is best, and whether less or more of it is better."""
    return declared_best(run.data.tags) or ("val/loss", "min")


def pins_of(run: Any) -> dict[str, str]:
    """Return the names of a run's pinned checkpoints with the reasons."""
    tags = run.data.tags
    return {key.removeprefix(PIN_PREFIX): why for key, why in tags.items() if key.startswith(PIN_PREFIX)}
