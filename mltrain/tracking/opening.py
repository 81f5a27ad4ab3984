"""Opening a run to write to it: created, adopted from ``mlflow run``, or resumed by its id.

Resume number n is claimed by the parameter ``mltrain.attempt.<n>``: parameters are write-once, so of several processes
exactly one wins. n is the fencing number: a writer that sees a higher one stops sending, publishing and pruning.
"""

import logging
import socket
import sys
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mltrain import fingerprint
from mltrain.errors import MltrainError, RunNotFound
from mltrain.tracking import launcher as launchers
from mltrain.tracking.artifacts import open_artifacts
from mltrain.tracking.attempts import (
    HOLDER_TAG,
    ONLY_LOCAL_TAG,
    Attempt,
    await_lease,
    claim_attempt,
    forget_only_local,
    holder_tags,
    is_alive,
    last_attempt,
    recorded_attempts,
)
from mltrain.tracking.birth import Birth, Registration, recorded_birth
from mltrain.tracking.home import home_of, known_home, locked
from mltrain.tracking.launcher import Launcher
from mltrain.tracking.lease import HEARTBEAT_SECONDS
from mltrain.tracking.left import publish_left
from mltrain.tracking.retry import FullJitter
from mltrain.tracking.run import TrackedRun, age_of
from mltrain.tracking.server import RUN_ID, Refusal, Server, connect, tags_of

log = logging.getLogger(__name__)

_SERVER_SECONDS, _DATABASE_SECONDS, _ERROR_SECONDS = 5.0, 9.0, 2.0
"""How long a training waits for its run: for a silent server, for a silent database (which may have to be made), and for
one that answers with errors."""


def create(
    server: Server,
    experiment: str | None,
    name: str | None,
    project: str,
    tags: Mapping[str, str],
    *,
    late: bool = False,
    seconds: float = 60.0,
) -> TrackedRun:
    """Create a run.

    Args:
        server: where.
        experiment: its name; none: MLflow's choice.
        name: of the run; none: a made-up one.
        project: what is trained.
        tags: to begin with.
        late: whether a server that does not answer may create it later, while the training goes on.
        seconds: how long to wait at most for a server or a database (which may have to be made) that is silent.

    Raises:
        RunNotFound: the experiment is deleted.
        TrackingError: the server refuses, or does not answer and ``late`` is not set.
    """
    # A name of our own: MLflow's would be drawn from Python's global random numbers, which belong to the training.
    name = name or f"{project.rsplit('/', 1)[-1].removesuffix('.py')}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    birth = Birth(experiment, name, {**_own_tags(project), **tags})
    registration = Registration(server, birth)
    try:
        info = _registered(server, registration, seconds)
    except Refusal as error:
        if not late or error.permanent:
            raise
        return _unborn(server, registration, error)
    return TrackedRun(server, [Attempt(1)], locked(home_of(server, info.run_id), info.run_id, take_over=False), info)


def adopt(server: Server, launcher: Launcher, name: str | None, project: str, tags: Mapping[str, str]) -> TrackedRun:
    """Make the run of the ``mlflow run`` that started this process the run of a new training."""
    run = server.run(launcher.run_id)
    if name is not None:
        server.insist(server.client.update_run, run.info.run_id, name=name)
    own = {key: value for key, value in _own_tags(project).items() if key != "mlflow.source.name"}
    _set_tags(server, run.info.run_id, {**own, **tags})
    info = server.run(launcher.run_id).info
    lock = locked(home_of(server, info.run_id), info.run_id, take_over=False)
    return TrackedRun(server, [Attempt(1)], lock, info, launcher=launcher, age=age_of(run))


def resume(server: Server, run_id: str, *, take_over: bool, launcher: Launcher | None) -> TrackedRun:
    """Continue a run as its next attempt.

    Raises:
        RunNotFound: there is no such run.
        RunHeld: another process is writing to it, or claimed it at the same moment.
        TrackingError: the server does not answer.
    """
    run_id = created_as(server, run_id)
    run = server.run(run_id)
    if not take_over:
        await_lease(server, run)
    home = home_of(server, run_id)
    lock = locked(home, run_id, take_over)
    try:
        ordinal = last_attempt(run.data.params) + 1
        claim_attempt(server, run_id, ordinal)
        server.insist(server.client.update_run, run_id, status="RUNNING")
        _set_tags(server, run_id, holder_tags(ordinal))
        _warn_of_newer_elsewhere(run)
        forget_only_local(server, run_id, tags_of(run))
        if launcher is not None:
            launchers.nest(server, launcher, run_id)
        launchers.repair(server, run_id, run.info.experiment_id)
        artifacts = open_artifacts(run.info.artifact_uri, server.uri)
        attempts = [*recorded_attempts(artifacts, ordinal - 1), Attempt(ordinal)]
        if artifacts.local_root is not None:
            # Staged elsewhere than beside the artifacts, because it was not known then where these would be.
            publish_left(run_id, home, artifacts, {})
        opened = TrackedRun(server, attempts, lock, run.info, home=home, launcher=launcher, age=age_of(run))
    except BaseException:
        lock.release()
        raise
    if take_over and is_alive(server, run) is not False:
        opened.settle(HEARTBEAT_SECONDS + 1.0)
    return opened


def _warn_of_newer_elsewhere(run: Any) -> None:
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


def open_run(run_id: str | None = None) -> TrackedRun:
    """Write to a run from a loop of one's own: the one given, else the active MLflow run, else a new one.

    Raises:
        RunNotFound, RunHeld, TrackingError: it cannot be written to.
    """
    server = connect(patience=10.0)
    import mlflow

    active = mlflow.active_run()
    script = Path(sys.argv[0]) if sys.argv[0] else Path("loop")
    if run_id is None and active is None:
        run = create(server, None, None, script.stem or "loop", {})
    else:
        identity = run_id or active.info.run_id
        known = server.run(identity)
        if HOLDER_TAG in known.data.tags:
            run = resume(server, identity, take_over=False, launcher=None)
        else:
            _set_tags(server, identity, holder_tags(1))
            lock = locked(home_of(server, identity), identity, take_over=False)
            run = TrackedRun(server, [Attempt(1)], lock, known.info, age=age_of(known))
        run.owned = active is None or active.info.run_id != identity
    if script.is_file():
        run.attempt.code = fingerprint.code(script)
    return run


def created_as(server: Server, run_id: str) -> str:
    """Return the id that MLflow gave to a run; what a run went by before that is understood as well.

    Raises:
        RunNotFound: it began on this machine and has not been created yet.
    """
    home = known_home(server, run_id) if RUN_ID.fullmatch(run_id) else None
    birth = recorded_birth(home) if home is not None and home.name == run_id else None
    if birth is None:
        return run_id
    if birth.run_id is None:
        raise RunNotFound(
            f"{run_id} was trained here while the tracking server could not be reached, and is no run yet. "
            "Create it, and send what is waiting, with: mltrain sync"
        )
    return birth.run_id


def soon(server: Server) -> float:
    """Return the seconds that a training waits for its run before it begins without."""
    return _SERVER_SECONDS if server.uri.startswith(("http://", "https://")) else _DATABASE_SECONDS


def _registered(server: Server, registration: Registration, seconds: float) -> Any:
    """Create the run, but wait no longer than so. A call that hangs goes on in the background."""
    found: list[Any] = []
    over = threading.Event()
    waits = FullJitter(multiplier=0.2, max=1)

    def register() -> None:
        failures, deadline = 0, time.monotonic() + _ERROR_SECONDS
        while not over.is_set():
            try:
                found.append(registration.info())
                break
            except (MltrainError, OSError) as error:
                failures += 1
                passing = isinstance(error, Refusal) and not error.permanent
                if not passing or time.monotonic() > deadline:
                    found.append(error)
                    break
            over.wait(waits.seconds(failures))
        over.set()

    threading.Thread(target=register, name="mltrain-birth", daemon=True).start()
    if not over.wait(seconds):
        over.set()
        raise Refusal(f"{server.shown} did not answer within {seconds:.0f} seconds.")
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def _unborn(server: Server, registration: Registration, why: Refusal) -> TrackedRun:
    birth = registration.birth
    home = home_of(server, birth.id)
    birth.save(home)
    log.warning(
        "Training begins at once, although there is no run yet: %s It is recorded in %s until the server answers, and the "
        "run is created then. (--require-tracking makes this an error.)",
        why,
        home,
    )
    return TrackedRun(server, [Attempt(1)], locked(home, birth.id, take_over=False), registration, home=home)


def _set_tags(server: Server, run_id: str, tags: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    server.insist(server.client.log_batch, run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def user() -> str:
    """Return who trains here, as runs are marked; the host's name where the user has none."""
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return socket.gethostname()


def _own_tags(project: str) -> dict[str, str]:
    return {"mlflow.user": user(), "mlflow.source.name": project, "mlflow.source.type": "LOCAL", **holder_tags(1)}
