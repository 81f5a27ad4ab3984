"""Opens checkpoints of a run, folder or file for reading."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mltrain.checkpoint.folder import FolderArtifacts
from mltrain.checkpoint.manifest import UNTRACKED, CheckpointId, Manifest, now
from mltrain.checkpoint.reader import CheckpointReader, configuration
from mltrain.checkpoint.retention import Context
from mltrain.checkpoint.staging import Spool
from mltrain.checkpoint.store import CheckpointStore
from mltrain.errors import MltrainError, NoCheckpoint, UsageError
from mltrain.ownership.attempts import recorded_config
from mltrain.ownership.run_folder import known_home
from mltrain.run.naming import full_id
from mltrain.tracking.client import TrackingClient, connect_to_read
from mltrain.tracking.run_artifacts import artifacts_of
from mltrain.tracking.tags import meaning_of_best, pins_of


def open_checkpoints(word: str, server: TrackingClient | None = None) -> CheckpointReader:
    """Open checkpoints for reading.

    Args:
        word: the id of a run or a prefix of it; without ``server`` also a folder of checkpoint files, or one such file.
        server: that has the run. If ``None``, the one that the environment names.

    Raises:
        RunNotFound, TrackingError: the run cannot be reached.
        NoCheckpoint: there is no checkpoint in the folder.
        UsageError: there is no such file or folder, or another program wrote the files.
    """
    if server is None and (os.path.exists(word) or "/" in word or os.sep in word):  # noqa: PTH110 - no error if too long
        return checkpoints_in(Path(word))
    server = server or connect_to_read()
    return checkpoints_of(server, server.run(full_id(server, word)))


def checkpoints_in(place: Path) -> CheckpointReader:
    """Open the checkpoints of a folder or file for reading. Raises as :func:`open_checkpoints`."""
    if not place.exists():
        raise UsageError(
            f"There is no file and no folder {place}. Expected one of them, or the id of a run. Try: mltrain runs"
        )
    folder = place if place.is_dir() else place.parent
    artifacts = FolderArtifacts(folder, None if place.is_dir() else place.name)
    if not artifacts.files():
        raise NoCheckpoint(
            f"{place} holds no checkpoint. Expected files such as best_model.pth or checkpoint_epoch_1.pth. "
            "Try: CheckpointManager(save_dir=…), or a training with export=full"
        )
    return CheckpointReader(CheckpointStore(UNTRACKED, artifacts, folder=place), Context(now()))


def checkpoints_of(server: TrackingClient, run: Any) -> CheckpointReader:
    """Open the checkpoints of a run (MLflow's description) for reading."""
    artifacts = artifacts_of(server, run)
    metric, mode = meaning_of_best(run)
    pins = {identity: why for name, why in pins_of(run).items() if (identity := CheckpointId.parse(name))}
    return CheckpointReader(CheckpointStore(run.info.run_id, artifacts), Context(now(), pins, metric, mode))


def store_with_staged(server: TrackingClient, run: Any) -> CheckpointStore:
    """Return a run's checkpoints, with those staged on this machine."""
    artifacts, staging = artifacts_of(server, run), known_home(server, run.info.run_id) / "staging"
    spool = Spool(staging) if artifacts.local_root is None and staging.is_dir() else None
    return CheckpointStore(run.info.run_id, artifacts, spool)


def trained_config(checkpoints: CheckpointReader, which: str = "latest") -> dict[str, Any]:
    """Return the configuration that a run trained with.

    It comes from the checkpoint, because a resume may have changed the configuration that was recorded at the start. If no
    checkpoint has a readable one, it is the recorded one.

    Args:
        checkpoints: of the run.
        which: the checkpoint; see :meth:`CheckpointReader.matching`.

    Raises:
        RunNotFound: the run has no configuration.
        StorageError: the artifacts cannot be reached.
    """
    return config_of(checkpoints, checkpoints.matching(which))


def config_of(checkpoints: CheckpointReader, candidates: Iterable[Manifest]) -> dict[str, Any]:
    """Return the first configuration in these checkpoints; see :func:`trained_config`."""
    for manifest in candidates:
        with suppress(MltrainError):
            config = configuration(checkpoints.store, manifest)
            if config is not None:
                return dict(config)
    return dict(recorded_config(checkpoints.store.artifacts)["config"])
