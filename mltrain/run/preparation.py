"""Look-ups before a run is opened: its id, status, artifacts, and user."""

import logging
import socket
from typing import Any

from mltrain.compat.database import database_of
from mltrain.delivery.creation import recorded_spec
from mltrain.errors import RunNotFound
from mltrain.ownership.attempts import OUTCOME_OF, holder_tags
from mltrain.ownership.run_folder import known_home
from mltrain.provenance import fingerprint
from mltrain.store.artifacts import Artifacts
from mltrain.store.folders import refuse_unwritable
from mltrain.tracking.client import RUN_ID, TrackingClient
from mltrain.tracking.run_artifacts import artifacts_of
from mltrain.tracking.tags import ONLY_LOCAL_TAG

log = logging.getLogger(__name__)

_SERVER_SECONDS, _DATABASE_SECONDS, _NEW_DATABASE_SECONDS = 5.0, 9.0, 60.0


def created_as(server: TrackingClient, run_id: str) -> str:
    """Return MLflow's id for a run's own or provisional id.

    Raises:
        RunNotFound: the run began on this machine and has not been created yet.
    """
    home = known_home(server, run_id) if RUN_ID.fullmatch(run_id) else None
    spec = recorded_spec(home) if home is not None and home.name == run_id else None
    if spec is None:
        return run_id
    if spec.run_id is None:
        raise RunNotFound(
            f"{run_id} is not a run yet: it was trained here while the tracking server was unavailable. Try: mltrain sync"
        )
    return spec.run_id


def final_status(run: Any) -> Any:
    """Return an ended run's status. ``None`` of any other run."""
    return run.info.status if run.info.status in OUTCOME_OF else None


def writable_artifacts_of(server: TrackingClient, run: Any) -> Artifacts:
    """Return a run's artifacts; refuse unwritable ones of this machine.

    Raises:
        UnusableArtifacts: the artifacts are missing.
        StorageError: they cannot be written, or the artifact store does not answer.
    """
    artifacts = artifacts_of(server, run)
    if artifacts.local_root is not None:
        refuse_unwritable(artifacts.local_root, "Try: mount it for writing, or give this user write permission")
    return artifacts


def user() -> str:
    """Return the user's name; the host's if unknown."""
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return socket.gethostname()


def own_tags(project: str) -> dict[str, str]:
    """Return a run's initial tags: user, source, holder."""
    return {"mlflow.user": user(), "mlflow.source.name": project, "mlflow.source.type": "LOCAL", **holder_tags(1)}


def newest_is_elsewhere(run: Any) -> bool:
    """Whether only another host has the newest checkpoint; warns of it."""
    checkpoint, _, host = run.data.tags.get(ONLY_LOCAL_TAG, "").partition(" on ")
    elsewhere = bool(host) and host != fingerprint.host()
    if elsewhere:
        log.warning(
            "The newest checkpoint of this run, %s, is only on %s; this resume continues from an older one. Try: mltrain sync "
            "on %s, then resume",
            checkpoint,
            host,
            host,
        )
    return elsewhere


def creation_seconds(server: TrackingClient) -> float:
    """Return the seconds that a training waits for its run.

    Then it begins without one. It waits longer for a new database, because MLflow takes many seconds to create its tables.
    """
    if server.is_server:
        return _SERVER_SECONDS
    file = database_of(server.uri)
    return _DATABASE_SECONDS if file is None or file.exists() else _NEW_DATABASE_SECONDS
