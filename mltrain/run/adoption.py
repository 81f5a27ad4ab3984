"""Living with the run that ``mlflow run`` has made: adopted by a new training, hidden while another run is resumed."""

import logging
from collections.abc import Mapping
from typing import Any

from mltrain.errors import MltrainError, RunNotFound, UsageError, sentence
from mltrain.ownership import launcher as launchers
from mltrain.ownership.attempts import (
    STATUS_OF,
    Attempt,
    claim_attempt,
)
from mltrain.ownership.host_lock import take_lock
from mltrain.ownership.launcher import ENTRY_POINT, Launcher
from mltrain.ownership.run_folder import home_of, refuse_unwritable_home
from mltrain.redaction import redacted
from mltrain.run.ending import Opened
from mltrain.run.key import confirm, give_up
from mltrain.run.naming import renamed
from mltrain.run.preparation import own_tags, writable_artifacts_of
from mltrain.run.tracked import TrackedRun, age_of
from mltrain.store.opening import open_artifacts
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.tags import HOLDER_TAG, NAMESPACE, PROJECT_TAG, RUN_KEY_TAG, STATUS_TAG

log = logging.getLogger(__name__)


def adopt(
    server: TrackingClient,
    launcher: Launcher,
    name: str | None,
    project: str,
    tags: Mapping[str, str],
    *,
    otherwise: str,
) -> TrackedRun:
    """Make the empty run that ``MLFLOW_RUN_ID`` names the run of a new training.

    Args:
        server: where it is.
        launcher: the ``mlflow run`` that made it.
        name: that the user wants for it.
        project: what is trained.
        tags: further tags.
        otherwise: its name where the user chose none and MLflow made one up.

    Raises:
        RunNotFound, UsageError: see :func:`adoptable`.
        RunHeld: another process has adopted it at this moment, or has begun the run of the run key in ``tags``.
        StorageError: this host has no place for the run's home.
    """
    run = adoptable(server, launcher)
    refuse_unwritable_home(server)
    info = run.info
    lock = take_lock(home_of(server, info.run_id), info.run_id, take_over=False)
    try:
        if RUN_KEY_TAG in tags:
            _take_key(server, info.run_id, tags[RUN_KEY_TAG])
        claim_attempt(server, info.run_id, 1)  # of workers that were started with the same id, one has the run
        new_name = renamed(info.run_name, name, otherwise)
        if new_name is not None:
            server.update_run(info.run_id, name=redacted(new_name))
        if info.status != "RUNNING":
            server.update_run(info.run_id, status="RUNNING")
        own = {key: value for key, value in own_tags(project).items() if key != "mlflow.source.name"}
        server.set_tags(info.run_id, {**own, **tags})
        info = server.run(info.run_id).info
        return TrackedRun(server, [Attempt(1)], lock, info, opened=Opened(launcher=launcher, age=age_of(run)))
    except BaseException:
        lock.release()
        raise


def _take_key(server: TrackingClient, run_id: str, key: str) -> None:
    server.set_tag(run_id, RUN_KEY_TAG, key)
    try:
        confirm(server, run_id, key)
    except MltrainError:
        give_up(server, run_id)  # its launcher still needs the run
        raise


def adoptable(server: TrackingClient, launcher: Launcher) -> Any:
    """Return the run that ``MLFLOW_RUN_ID`` names, which a new training may have if nothing was recorded in it.

    Raises:
        RunNotFound: there is no such run.
        UsageError: the run holds a training, or what another program recorded.
    """
    try:
        run = server.run(launcher.run_id)
    except RunNotFound as error:
        raise RunNotFound(
            f"MLFLOW_RUN_ID is set to {launcher.run_id!r:.80}. {sentence(str(error))} Or unset MLFLOW_RUN_ID."
        ) from None
    recorded = _recorded_in(server, run)
    if recorded is None:
        writable_artifacts_of(server, run)
        return run
    if HOLDER_TAG in run.data.tags or PROJECT_TAG in run.data.tags:
        remedy = f"continue it with: mltrain train --resume-run {launcher.run_id}; or unset MLFLOW_RUN_ID for a new run"
    else:
        remedy = "env -u MLFLOW_RUN_ID mltrain train …, which creates a run"
    status: Any = STATUS_OF.get(run.data.tags.get(STATUS_TAG, ""))
    if launcher.pid is not None and status is not None:
        launchers.after(server, launcher.pid, run.info.run_id, status)  # mlflow run --run-id will call it FAILED
    raise UsageError(
        f"MLFLOW_RUN_ID names the run {launcher.run_id}, which holds {recorded}. Expected a run in which nothing was "
        f"recorded but parameters. Try: {remedy}."
    )


def beside(server: TrackingClient, launcher: Launcher | None, run_id: str) -> Launcher | None:
    """Return the launcher whose own, empty run is to be hidden while another run is resumed, or ``None``.

    A run in which something was recorded is left as it is, and so is one that ``mlflow run`` did not make.
    """
    if launcher is None or launcher.run_id == run_id:
        return launcher
    try:
        run = server.run(launcher.run_id)
    except RunNotFound:
        log.warning("MLFLOW_RUN_ID names no run of this tracking store (%.80s); it is ignored.", launcher.run_id)
        return None
    recorded = _recorded_in(server, run)
    if recorded is not None:
        log.warning("MLFLOW_RUN_ID names the run %s, which holds %s; it is ignored.", launcher.run_id, recorded)
        return None
    return launcher if launcher.pid is not None or ENTRY_POINT in run.data.tags else None


def _recorded_in(server: TrackingClient, run: Any) -> str | None:
    """Describe what a run holds besides foreign parameters and tags, or return ``None``."""
    tags, project = run.data.tags, run.data.tags.get(PROJECT_TAG)
    if project:
        return f"a training of the project {project!r}"
    if any(key.startswith(NAMESPACE) for key in (*tags, *run.data.params)):
        return "checkpoints or records of mltrain"
    if run.data.metrics:
        return f"metrics ({', '.join(sorted(run.data.metrics)[:3])} …)"
    found = open_artifacts(run.info.artifact_uri, server.uri).entries()
    return f"artifacts ({', '.join(sorted(entry.name for entry in found)[:3])} …)" if found else None
