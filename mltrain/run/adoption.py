"""Adopts or nests the run that ``mlflow run`` creates."""

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
from mltrain.ownership.run_folder import home_of, refuse_unwritable_places
from mltrain.redaction import redacted
from mltrain.run.ending import Opened
from mltrain.run.key import confirm, release
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
    fallback: str,
) -> TrackedRun:
    """Adopt the empty run of ``MLFLOW_RUN_ID`` for a new training.

    Args:
        server: tracking server that has the run.
        launcher: the ``mlflow run`` that created it.
        name: the user's name for it. If ``None``, the user chose none.
        project: name of the project.
        tags: further tags.
        fallback: replaces a name that MLflow generated, if the user chose none.

    Raises:
        RunNotFound, UsageError: see :func:`adoptable`.
        RunHeld: another process has just adopted it, or has begun the run of the run key in ``tags``.
        StorageError: the run's folder on this host cannot be created.
    """
    run = adoptable(server, launcher)
    refuse_unwritable_places(server)
    info = run.info
    lock = take_lock(home_of(server, info.run_id), info.run_id, take_over=False)
    try:
        if RUN_KEY_TAG in tags:
            _take_key(server, info.run_id, tags[RUN_KEY_TAG])
        claim_attempt(server, info.run_id, 1)  # of several processes started with this id, one gets the run
        new_name = renamed(info.run_name, name, fallback)
        if new_name is not None:
            server.update_run(info.run_id, name=redacted(new_name))
        if info.status != "RUNNING":
            server.update_run(info.run_id, status="RUNNING")
        own = {key: value for key, value in own_tags(project).items() if key != "mlflow.source.name"}
        server.set_tags(info.run_id, {**own, **tags})
        info = server.run(info.run_id).info
        return TrackedRun(server, [Attempt(1)], lock, info, Opened(launcher=launcher, age=age_of(run)))
    except BaseException:
        lock.release()
        raise


def _take_key(server: TrackingClient, run_id: str, key: str) -> None:
    server.set_tag(run_id, RUN_KEY_TAG, key)
    try:
        confirm(server, run_id, key)
    except MltrainError:
        release(server, run_id)  # and keep the run, which its launcher still needs
        raise


def adoptable(server: TrackingClient, launcher: Launcher) -> Any:
    """Return the run that ``MLFLOW_RUN_ID`` names, if it is empty.

    Raises:
        RunNotFound: there is no such run.
        UsageError: the run holds a training, or records of another program.
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
        launchers.after(server, launcher.pid, run.info.run_id, status)  # mlflow run --run-id will set it to FAILED
    raise UsageError(
        f"MLFLOW_RUN_ID names the run {launcher.run_id}, which holds {recorded}. Expected a run with nothing but "
        f"parameters. Try: {remedy}."
    )


def nestable(server: TrackingClient, launcher: Launcher | None, run_id: str) -> Launcher | None:
    """Return the launcher if its run can be nested.

    Its run must be empty and created by ``mlflow run``. Any other run is not changed, and ``None`` is returned.
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
    """Describe a run's content. ``None`` if it has only foreign parameters and tags."""
    tags, project = run.data.tags, run.data.tags.get(PROJECT_TAG)
    if project:
        return f"a training of the project {project!r}"
    if any(key.startswith(NAMESPACE) for key in (*tags, *run.data.params)):
        return "checkpoints or records of mltrain"
    if run.data.metrics:
        return f"metrics ({', '.join(sorted(run.data.metrics)[:3])} …)"
    found = open_artifacts(run.info.artifact_uri, server.uri).entries()
    return f"artifacts ({', '.join(sorted(entry.name for entry in found)[:3])} …)" if found else None
