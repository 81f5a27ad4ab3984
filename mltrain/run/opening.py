"""Opens runs for writing: new, adopted or resumed ones.

A process claims attempt n with the parameter ``mltrain.attempt.<n>``. Parameters are write-once, so of several processes
exactly one wins. n is the fencing token: a writer that sees a higher one stops sending, publishing and pruning.
"""

import logging
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mltrain.delivery.backlog import publish_backlog
from mltrain.delivery.creation import RunCreation, RunSpec
from mltrain.errors import MltrainError, UsageError
from mltrain.ownership import launcher as launchers
from mltrain.ownership.attempts import (
    OUTCOME_OF,
    Attempt,
    await_lease,
    claim_attempt,
    forget_endings,
    held_by_another,
    holder_tags,
    is_alive,
    is_held,
    last_attempt,
    recorded_attempts,
)
from mltrain.ownership.host_lock import take_lock
from mltrain.ownership.launcher import Launcher
from mltrain.ownership.lease import HEARTBEAT_SECONDS
from mltrain.ownership.run_folder import home_of, refuse_unwritable_places
from mltrain.provenance import fingerprint
from mltrain.run.adoption import nestable
from mltrain.run.ending import Opened
from mltrain.run.key import confirm
from mltrain.run.naming import full_id, run_name
from mltrain.run.preparation import (
    creation_seconds,
    final_status,
    newest_is_elsewhere,
    own_tags,
    writable_artifacts_of,
)
from mltrain.run.tracked import TrackedRun, age_of
from mltrain.store.artifacts import Artifacts
from mltrain.store.retry import FullJitter
from mltrain.tracking.client import TrackingClient, active_run_id, connect
from mltrain.tracking.connection import Refusal
from mltrain.tracking.tags import HOLDER_TAG, PROJECT_TAG, RUN_KEY_TAG, STATUS_TAG

log = logging.getLogger(__name__)

_CREATED_ANYWAY_SECONDS, _ERROR_SECONDS = 9.0, 2.0
"""How long to wait for a run under creation after an interrupt, and for a server that responds with errors."""


def create(
    server: TrackingClient,
    experiment: str | None,
    name: str | None,
    project: str,
    tags: Mapping[str, str],
    *,
    may_defer: bool = False,
    seconds: float = 60.0,
) -> TrackedRun:
    """Create a run.

    Args:
        server: tracking server that gets the run.
        experiment: its name. If ``None``, MLflow's default.
        name: of the run. If ``None``, the project and the time.
        project: name of the project.
        tags: initial tags.
        may_defer: whether the run may be created later, during the training, if the server does not answer.
        seconds: timeout for a server, or for a database whose tables may have to be created.

    Raises:
        RunNotFound: the experiment is deleted.
        RunHeld: ``tags`` has a run key, and another process has just begun the run of this key.
        StorageError: the run's folder on this host cannot be created.
        TrackingError: the server refuses, or does not answer and ``may_defer`` is false.
    """
    refuse_unwritable_places(server)
    spec = RunSpec(experiment, name or run_name(project), {**own_tags(project), **tags})
    creation = RunCreation(server, spec)
    try:
        info = _created_within(server, creation, seconds)
    except Refusal as error:
        if not may_defer or error.permanent:
            raise
        return _created_later(server, creation, error)
    lock = None
    try:
        lock = take_lock(home_of(server, info.run_id), info.run_id, take_over=False)
        if RUN_KEY_TAG in tags:
            confirm(server, info.run_id, tags[RUN_KEY_TAG])
        return TrackedRun(server, [Attempt(1)], lock, info, Opened(created=True))
    except BaseException:
        if lock is not None:
            lock.release()
        with suppress(MltrainError):
            server.once.delete_run(info.run_id)
        raise


def resumable(server: TrackingClient, run_id: str, *, take_over: bool) -> Any:
    """Return a run that can be resumed. Nothing is awaited or changed.

    Raises:
        RunNotFound: there is no such run.
        RunHeld: a process of this machine is writing to it.
        StorageError: the run's folder on this host cannot be created.
    """
    run = server.run(full_id(server, run_id))
    if not take_over and is_held(run) and is_alive(server, run):
        raise held_by_another(run)
    refuse_unwritable_places(server)
    writable_artifacts_of(server, run)
    return run


def resume(server: TrackingClient, run_id: str, *, take_over: bool, launcher: Launcher | None) -> TrackedRun:
    """Continue a run as its next attempt.

    Args:
        server: tracking server that has the run.
        run_id: of the run, its provisional id, or the first digits of one of them.
        take_over: whether to continue although another process holds the run.
        launcher: the ``mlflow run`` that started this process. ``None`` if the user started it directly.

    Raises:
        RunNotFound: there is no such run.
        RunHeld: another process is writing to it, or has just claimed it.
        StorageError: the run's artifacts are missing or cannot be written.
        TrackingError: the server does not answer.
    """
    run = server.run(full_id(server, run_id))
    refuse_unwritable_places(server)
    artifacts = writable_artifacts_of(server, run)
    return _continued(server, run, artifacts, take_over, nestable(server, launcher, run.info.run_id), owned=True)


def _continued(
    server: TrackingClient, run: Any, artifacts: Artifacts, take_over: bool, launcher: Launcher | None, owned: bool
) -> TrackedRun:
    """Claim the next attempt of a run just read."""
    run_id = run.info.run_id
    if not take_over:
        await_lease(server, run)
    home = home_of(server, run_id)
    lock, claimed = take_lock(home, run_id, take_over), False
    try:
        ordinal = last_attempt(run.data.params) + 1
        # A claim cannot be undone, so the record is read first. It misses no attempt: one that began since has this ordinal.
        attempts = [*recorded_attempts(artifacts, ordinal - 1), Attempt(ordinal)]
        claim_attempt(server, run_id, ordinal)
        claimed = True
        server.update_run(run_id, status="RUNNING")
        server.set_tags(run_id, holder_tags(ordinal))
        elsewhere = newest_is_elsewhere(run)
        if launcher is not None:
            launchers.nest(server, launcher, run_id)
        launchers.repair(server, run_id, run.info.experiment_id)
        if artifacts.local_root is not None:
            # A run that was created late is staged in its folder, not beside its artifacts.
            failure = publish_backlog(run_id, home, artifacts, {}).failure
            if failure is not None:
                raise failure
        forget_endings(server, run_id, run.data.tags)
        opened = TrackedRun(
            server,
            attempts,
            lock,
            run.info,
            Opened(False, final_status(run), launcher, owned, age_of(run), elsewhere),
        )
    except BaseException:
        if claimed:
            with suppress(MltrainError):
                _restore_status(server, run)
        lock.release()
        raise
    if take_over and is_alive(server, run) is not False:
        opened.outbox.settle(HEARTBEAT_SECONDS + 1.0)
    return opened


def open_run(run_id: str | None = None) -> TrackedRun:
    """Open a run for a custom loop.

    If the server does not answer, a new run has a provisional id, and is created as soon as the server does.

    Args:
        run_id: of the run. If ``None``, the active MLflow run, or else a new one.

    Raises:
        UsageError: the active run holds a training of a project, which ``mltrain train`` continues.
        RunNotFound, RunHeld, TrackingError: the run cannot be written to.
    """
    server = connect(retry_seconds=10.0)
    active = active_run_id()
    script = Path(sys.argv[0]) if sys.argv[0] else Path("loop")
    if run_id is None and active is None:
        run = create(server, None, None, script.stem or "loop", {}, may_defer=True, seconds=creation_seconds(server))
    else:
        identity = full_id(server, str(active if run_id is None else run_id))
        known = server.run(identity)
        project = known.data.tags.get(PROJECT_TAG)
        if run_id is None and project:
            raise UsageError(
                f"The active MLflow run {identity} holds a training of the project {project!r}. Expected a run of this "
                f"loop. Try: mltrain train --resume-run {identity}; or CheckpointManager({identity!r}), to continue it "
                "from this loop"
            )
        refuse_unwritable_places(server)
        artifacts = writable_artifacts_of(server, known)
        if HOLDER_TAG in known.data.tags:
            run = _continued(server, known, artifacts, False, None, owned=active != identity)
        else:
            lock = take_lock(home_of(server, identity), identity, take_over=False)
            try:
                server.set_tags(identity, holder_tags(1))
                opened = Opened(earlier=final_status(known), owned=active != identity, age=age_of(known))
                run = TrackedRun(server, [Attempt(1)], lock, known.info, opened)
            except BaseException:
                lock.release()
                raise
    if script.is_file():
        run.attempt.code = fingerprint.code(script)
    return run


def _restore_status(server: TrackingClient, run: Any) -> None:
    """Restore a run's status from before the claim. KILLED if it had not ended."""
    status = final_status(run) or "KILLED"
    server.once.set_tag(run.info.run_id, STATUS_TAG, run.data.tags.get(STATUS_TAG, OUTCOME_OF[status]))
    server.once.set_terminated(run.info.run_id, status, run.info.end_time)


def _created_within(server: TrackingClient, creation: RunCreation, seconds: float) -> Any:
    """Create the run within a timeout; a call that hangs goes on in the background."""
    found: list[Any] = []
    over = threading.Event()
    waits = FullJitter(multiplier=0.2, max=1)

    def register() -> None:
        failures, deadline = 0, time.monotonic() + _ERROR_SECONDS
        while not over.is_set():
            try:
                found.append(creation.info())
                break
            except (MltrainError, OSError) as error:
                failures += 1
                passing = isinstance(error, Refusal) and not error.permanent
                if not passing or time.monotonic() > deadline:
                    found.append(error)
                    break
            over.wait(waits.seconds(failures))
        over.set()

    thread = threading.Thread(target=register, name="mltrain-creation", daemon=True)
    try:
        thread.start()
        answered = over.wait(seconds)
    except BaseException:  # a request to stop: delete the run that the server may still create
        over.set()
        with suppress(MltrainError, AttributeError, IndexError, RuntimeError):  # there may be neither run nor thread
            thread.join(_CREATED_ANYWAY_SECONDS)
            server.once.delete_run(found[0].run_id)
        raise
    if not answered:
        over.set()
        slow = "" if server.is_server else ": another process may be writing to the database, or its disk is slow"
        raise Refusal(f"{server.shown} did not answer within {seconds:.0f} seconds{slow}.")
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def _created_later(server: TrackingClient, creation: RunCreation, why: Refusal) -> TrackedRun:
    spec = creation.spec
    home = home_of(server, spec.id)
    spec.save(home)
    log.warning(
        "Training begins although there is no run yet: %s Its records are buffered in %s, and the run is created once the "
        "tracking server answers.",
        why,
        home,
    )
    return TrackedRun(server, [Attempt(1)], take_lock(home, spec.id, take_over=False), creation)
