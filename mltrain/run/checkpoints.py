"""The checkpoints of a run, opened for reading."""

from mltrain.checkpoint.manifest import CheckpointId, now
from mltrain.checkpoint.reader import CheckpointReader
from mltrain.checkpoint.retention import Context
from mltrain.checkpoint.store import CheckpointStore
from mltrain.run.tracked import pins_of
from mltrain.tracking.client import TrackingClient, connect
from mltrain.tracking.places import artifacts_of
from mltrain.tracking.tags import meaning_of_best


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
