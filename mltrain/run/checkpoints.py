"""The checkpoints of a run, opened for reading."""

import json
from collections.abc import Mapping
from typing import Any

from mltrain.checkpoint.manifest import CheckpointId, now
from mltrain.checkpoint.reader import CheckpointReader
from mltrain.checkpoint.retention import Context
from mltrain.checkpoint.store import PARAMS, CheckpointStore
from mltrain.errors import MltrainError
from mltrain.ownership.attempts import recorded_config
from mltrain.run.run_ids import full_id
from mltrain.tracking.client import TrackingClient, connect_to_read
from mltrain.tracking.places import artifacts_of
from mltrain.tracking.tags import meaning_of_best, pins_of


def open_checkpoints(run_id: str, server: TrackingClient | None = None) -> CheckpointReader:
    """Open the checkpoints of a run, named by its id or a prefix of it, for reading.

    Raises:
        RunNotFound, TrackingError: the run cannot be reached.
    """
    server = server or connect_to_read()
    return checkpoints_of(server, server.run(full_id(server, run_id)))


def checkpoints_of(server: TrackingClient, run: Any) -> CheckpointReader:
    """Return the checkpoints of a run that MLflow describes, for reading."""
    artifacts = artifacts_of(server, run)
    metric, mode = meaning_of_best(run)
    pins = {identity: why for name, why in pins_of(run).items() if (identity := CheckpointId.parse(name))}
    return CheckpointReader(CheckpointStore(run.info.run_id, artifacts), Context(now(), pins, metric, mode))


def trained_config(checkpoints: CheckpointReader, which: str = "latest") -> dict[str, Any]:
    """Return the configuration that a run trained with.

    It is that of the checkpoint, because a resume may have changed what the run recorded at its start. A run whose
    checkpoints have none that can be read has that of its start.

    Args:
        checkpoints: of the run.
        which: the checkpoint; see :meth:`CheckpointReader.matching`.

    Raises:
        RunNotFound: nothing was recorded.
        StorageError: the artifacts are out of reach.
    """
    for manifest in checkpoints.matching(which):
        try:
            config = json.loads(checkpoints.store.fetch(manifest, only=PARAMS.__eq__)[PARAMS])
        except (MltrainError, KeyError, ValueError):
            continue
        if isinstance(config, Mapping):
            return dict(config)
    return dict(recorded_config(checkpoints.store.artifacts)["config"])
