"""The checkpoints of a run, opened for reading."""

from typing import Any

from mltrain.checkpoint.manifest import CheckpointId, now
from mltrain.checkpoint.reader import CheckpointReader
from mltrain.checkpoint.retention import Context, Mode
from mltrain.checkpoint.store import CheckpointStore
from mltrain.run.tracked import pins_of
from mltrain.tracking.client import TrackingClient, connect
from mltrain.tracking.places import artifacts_of
from mltrain.tracking.tags import BEST_METRIC_TAG, BEST_MODE_TAG


def open_checkpoints(run_id: str, server: TrackingClient | None = None) -> CheckpointReader:
    """Open the checkpoints of a run for reading.

    Raises:
        RunNotFound, TrackingError: the run cannot be reached.
    """
    server = server or connect()
    run = server.run(run_id)
    artifacts = artifacts_of(server, run)
    metric, mode = meaning_of_best(run)
    pins = {identity: why for name, why in pins_of(run).items() if (identity := CheckpointId.parse(name))}
    return CheckpointReader(CheckpointStore(run_id, artifacts), Context(now(), pins, metric, mode))


def meaning_of_best(run: Any) -> tuple[str, Mode]:
    """Return the metric that decides which checkpoint of a run is best, and whether less or more of it is better."""
    tags = run.data.tags
    return tags.get(BEST_METRIC_TAG, "val/loss"), "max" if tags.get(BEST_MODE_TAG) == "max" else "min"
