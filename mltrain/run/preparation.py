"""What is looked up before a run is opened: its true id, its status, its place, and who trains."""

import logging
import socket
from typing import Any

from mltrain.compat.database import database_of
from mltrain.delivery.creation import recorded_spec
from mltrain.errors import RunNotFound
from mltrain.ownership.attempts import holder_tags
from mltrain.ownership.run_folder import known_home
from mltrain.provenance import fingerprint
from mltrain.store.artifacts import Artifacts, refuse_unwritable
from mltrain.tracking.client import RUN_ID, TrackingClient, tags_of
from mltrain.tracking.places import artifacts_of
from mltrain.tracking.tags import ONLY_LOCAL_TAG

log = logging.getLogger(__name__)

_SERVER_SECONDS, _DATABASE_SECONDS, _NEW_DATABASE_SECONDS = 5.0, 9.0, 60.0


def created_as(server: TrackingClient, run_id: str) -> str:
    """Return the id that MLflow gave to a run; what a run went by before that is understood as well.

    Raises:
        RunNotFound: it began on this machine and has not been created yet.
    """
    home = known_home(server, run_id) if RUN_ID.fullmatch(run_id) else None
    spec = recorded_spec(home) if home is not None and home.name == run_id else None
    if spec is None:
        return run_id
    if spec.run_id is None:
        raise RunNotFound(
            f"{run_id} was trained here while the tracking store could not be reached, and is no run yet. "
            "Create it, and send what is waiting, with: mltrain sync"
        )
    return spec.run_id


def ended_as(run: Any) -> Any:
    """Return the status of a run that has ended, else ``None``."""
    return run.info.status if run.info.status in ("FINISHED", "FAILED", "KILLED") else None


def writable_artifacts_of(server: TrackingClient, run: Any) -> Artifacts:
    """Return the artifacts of a run; refuse those of this machine that cannot be written.

    Raises:
        UnusableArtifacts: they are not where the run says.
        StorageError: they cannot be written, or the artifact store does not answer.
    """
    artifacts = artifacts_of(server, run)
    if artifacts.local_root is not None:
        refuse_unwritable(artifacts.local_root, "Mount it for writing, or give this user the right to write there.")
    return artifacts


def user() -> str:
    """Return who trains here, as runs are marked; the host's name where the user has none."""
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return socket.gethostname()


def own_tags(project: str) -> dict[str, str]:
    """Return the tags that a run has from the start: user, source, and this process as its holder."""
    return {"mlflow.user": user(), "mlflow.source.name": project, "mlflow.source.type": "LOCAL", **holder_tags(1)}


def warn_of_newer_on_another_host(run: Any) -> None:
    """Warn where the run's newest checkpoint is on another host only."""
    checkpoint, _, host = tags_of(run).get(ONLY_LOCAL_TAG, "").partition(" on ")
    if host and host != fingerprint.host():
        log.warning(
            "The newest checkpoint of this run, %s, is on %s only, and this resume continues from an older one. To use it, "
            "run mltrain sync on %s before you resume.",
            checkpoint,
            host,
            host,
        )


def soon(server: TrackingClient) -> float:
    """Return the seconds that a training waits for its run before it begins without.

    MLflow makes the tables of a new database for many seconds, and that ends; of a database that is there, who knows.
    """
    if server.is_server:
        return _SERVER_SECONDS
    file = database_of(server.uri)
    return _DATABASE_SECONDS if file is None or file.exists() else _NEW_DATABASE_SECONDS
