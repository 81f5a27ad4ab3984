"""Attempts: who wrote to a run and when, who holds it now, and whether that one still lives."""

import json
import logging
import os
import re
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from mltrain.errors import CheckpointError, MltrainError, RunHeld, RunNotFound, StorageError
from mltrain.ownership import liveness
from mltrain.ownership.host_lock import has_ended
from mltrain.provenance import fingerprint
from mltrain.store.artifacts import Artifacts
from mltrain.tracking.client import Refusal, TrackingClient, tags_of
from mltrain.tracking.tags import (
    ATTEMPT_PREFIX,
    ENDED_PREFIX,
    HEARTBEAT_TAG,
    HOLDER_TAG,
    ONLY_LOCAL_TAG,
    STATUS_TAG,
    WHEN_SENT_TAG,
)

log = logging.getLogger(__name__)

LEASE_SECONDS = 60.0
"""How long a holder that cannot be seen from here may be silent before it counts as dead."""

CONFIG_FILE = "config.json"
ATTEMPTS_FILE = "attempts.json"
STATUS_OF = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
"""MLflow's status for what :data:`STATUS_TAG` says of a run that has ended."""
_CONCLUDING_TRIES = 5
_CLAIM = re.compile(re.escape(ATTEMPT_PREFIX) + r"(\d{1,6})", re.ASCII)


@dataclass
class Attempt:
    """One start or resume of a run, as it is recorded."""

    ordinal: int
    host: str = field(default_factory=fingerprint.host)
    boot: str = field(default_factory=liveness.boot)
    pid: int = field(default_factory=os.getpid)
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    resumed_from: str | None = None
    changed: dict[str, tuple[str, str]] = field(default_factory=dict)
    code: dict[str, str] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    ended: str | None = None
    why: str | None = None
    withdrawn: bool = False
    """Whether it ended before it began to train, and overtook nothing."""


def recorded_config(artifacts: Artifacts) -> dict[str, Any]:
    """Return what :meth:`TrackedRun.record_start` recorded: ``project`` and ``config``.

    Raises:
        RunNotFound: nothing was recorded: this is not a run of mltrain, or it was killed before it began.
        StorageError: the artifact store does not answer.
    """
    try:
        content = json.loads(artifacts.read(CONFIG_FILE, 2**20))
        if isinstance(content, dict) and isinstance(content.get("config"), dict):
            return content
    except StorageError:
        raise
    except (OSError, ValueError, CheckpointError):
        pass
    raise RunNotFound(
        f"The run has no readable {CONFIG_FILE} among its artifacts: it is not a training of mltrain, or it was killed "
        "before it had recorded anything. Start a new one with: mltrain train PROJECT"
    )


def recorded_attempts(artifacts: Artifacts, last: int) -> list[Attempt]:
    """Return attempts 1 to ``last``; those whose record is missing or damaged with nothing but their ordinals."""
    found: dict[int, Attempt] = {}
    try:
        for raw in json.loads(artifacts.read(ATTEMPTS_FILE, 2**24))["attempts"]:
            known = {name: raw[name] for name in Attempt.__dataclass_fields__ if name in raw}
            found[int(raw["ordinal"])] = Attempt(**known)
    except (OSError, ValueError, KeyError, TypeError, CheckpointError):
        log.info("The record of earlier attempts is missing or damaged; it begins anew.")
    blank = {"host": "", "boot": "", "pid": 0, "started": ""}
    return [found.get(ordinal) or Attempt(ordinal, **blank) for ordinal in range(1, last + 1)]  # type: ignore[arg-type]


def is_overtaken(artifacts: Artifacts, ordinal: int) -> bool:
    """Whether a later attempt is recorded that began to train; for processes that do not ask the tracking server.

    Raises:
        StorageError: the artifact store does not answer.
    """
    try:
        recorded = json.loads(artifacts.read(ATTEMPTS_FILE, 2**24))["attempts"]
        return any(int(one["ordinal"]) > ordinal and not one.get("withdrawn") for one in recorded)
    except StorageError:
        raise
    except (OSError, ValueError, KeyError, TypeError, CheckpointError):
        return False  # nothing is recorded


def last_attempt(params: Mapping[str, str]) -> int:
    """Return the ordinal of the newest attempt that a run's parameters tell of."""
    return max((int(match[1]) for key in params if (match := _CLAIM.fullmatch(key))), default=1)


def holder_of(run: Any) -> dict[str, Any]:
    """Return who holds a run, as its last claim and its tag tell: attempt, host, boot, pid; nothing when they do not.

    The claim is made before the tag is set: who has claimed the run is about to write to it.
    """
    tagged = _parsed(tags_of(run).get(HOLDER_TAG, "{}"))
    claimed = _parsed(run.data.params.get(f"{ATTEMPT_PREFIX}{last_attempt(run.data.params)}", "{}"))
    return claimed if claimed.get("attempt", 0) > tagged.get("attempt", 0) else tagged


def _parsed(text: str) -> dict[str, Any]:
    try:
        holder = json.loads(text)
        return holder if isinstance(holder, dict) and isinstance(holder.get("attempt", 0), int) else {}
    except ValueError:
        return {}


def is_held(run: Any) -> bool:
    """Whether a run says that somebody writes to it, or has been claimed and not been written to yet."""
    tagged = _parsed(tags_of(run).get(HOLDER_TAG, "{}"))
    return tags_of(run).get(STATUS_TAG) == "running" or holder_of(run).get("attempt", 0) > tagged.get("attempt", 0)


def named(holder: Mapping[str, Any]) -> str:
    """Name a holder for people."""
    return f"process {holder.get('pid')} on {holder.get('host')} (attempt {holder.get('attempt')})"


def is_alive(server: TrackingClient, run: Any) -> bool | None:
    """Whether the process that holds a run is alive, as far as that can be known from this machine.

    Returns:
        ``None`` where it cannot be known; then the heartbeat of the run tells.
    """
    holder = holder_of(run)
    alive = liveness.is_alive(holder)
    return False if alive is None and has_ended(server, run.info.run_id, holder) else alive


def await_lease(server: TrackingClient, run: Any) -> None:
    """Return when the run's holder is gone: where that cannot be seen, when its heartbeat did not change for the lease."""
    if not is_held(run):
        return
    holder = holder_of(run)
    alive = is_alive(server, run)
    who = named(holder)
    held = RunHeld(
        f"Run {run.info.run_id} is being written by {who}. Stop that one first, or take the run over with --take-over."
    )
    if alive:
        raise held
    if alive is False:
        return
    print(f"The run was held by {who}; waiting {LEASE_SECONDS:.0f} s for a sign of life …", file=sys.stderr, flush=True)
    beat = tags_of(run).get(HEARTBEAT_TAG)
    deadline = time.monotonic() + LEASE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(1.0)
        now = server.run(run.info.run_id)
        if not is_held(now):
            return  # it has ended, and its heartbeat is removed
        if tags_of(now).get(HEARTBEAT_TAG) != beat:
            raise held


def only_local_tags(checkpoint: str, when_sent: str) -> dict[str, str]:
    """Return the tags of a run that has ended, and whose newest checkpoint is on this host only."""
    return {ONLY_LOCAL_TAG: f"{checkpoint} on {fingerprint.host()}", WHEN_SENT_TAG: when_sent}


def forget_only_local(server: TrackingClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Remove the tags of :func:`only_local_tags` where they are set."""
    for key in (ONLY_LOCAL_TAG, WHEN_SENT_TAG):
        if key in tags:
            with suppress(RunNotFound):  # an earlier try got this far
                server.delete_tag(run_id, key)


def forget_endings(server: TrackingClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Remove the tags that tell how earlier attempts ended: ``attempts.json`` records it, and only the last one counts."""
    for key in tags:
        if key.startswith(ENDED_PREFIX):
            with suppress(MltrainError):  # it stays for the next resume
                server.once.delete_tag(run_id, key)


def own_hold(ordinal: int) -> str:
    """Return what says that this process holds a run as its attempt number ``ordinal``."""
    return json.dumps({"attempt": ordinal, **liveness.own()})


def claim_attempt(server: TrackingClient, run_id: str, ordinal: int) -> None:
    """Claim an attempt of a run: parameters are write-once, so of several processes exactly one wins.

    Raises:
        RunHeld: another process was quicker.
        TrackingError: the server does not answer.
    """
    try:
        # Repeated with the same value where an answer is lost; no other process has the same.
        server.log_param(run_id, f"{ATTEMPT_PREFIX}{ordinal}", own_hold(ordinal))
    except Refusal as error:
        if "Changing param values" not in str(error.__cause__ or error):
            raise
        raise RunHeld(
            f"Run {run_id} was claimed at this moment by {named(holder_of(server.run(run_id)))}. "
            "Stop that one first, or take the run over with --take-over."
        ) from None


def holder_tags(ordinal: int) -> dict[str, str]:
    """Return the tags by which a run says that this process holds it."""
    return {HOLDER_TAG: own_hold(ordinal), STATUS_TAG: "running", HEARTBEAT_TAG: f"{ordinal}.0"}


def said_of(status: str) -> str:
    """Return what :data:`STATUS_TAG` says of a run that ended with one of MLflow's statuses."""
    return next(said for said, known in STATUS_OF.items() if known == status)


def ending_tags(ordinal: int, said: str) -> dict[str, str]:
    """Return the tags by which the holder says how its attempt ended."""
    return {f"{ENDED_PREFIX}{ordinal}": said, STATUS_TAG: said}


def conclude(server: TrackingClient, run_id: str, ordinal: int, said: str) -> bool:
    """Set the state of a run as of an attempt that the caller need not hold, but never over a later attempt's.

    MLflow cannot tie a write to what was read before it. So the run is read again after every write, until it says what is
    true: that its last attempt is the one that was meant, or what that last attempt itself says. Where a resume came in
    between, this puts its state back.

    Args:
        server: where the run is.
        run_id: of the run.
        ordinal: of the attempt.
        said: a key of :data:`STATUS_OF`, or ``running``; what the attempt itself has said comes first.

    Returns:
        Whether the attempt is the last one of the run.

    Raises:
        RunNotFound, TrackingError: the run cannot be read or written.
    """
    wrote = False
    for _ in range(_CONCLUDING_TRIES):
        run = server.run(run_id)
        last = last_attempt(run.data.params)
        if last != ordinal and not wrote:
            return False
        true = tags_of(run).get(f"{ENDED_PREFIX}{last}") or (said if last == ordinal else "running")
        status = STATUS_OF.get(true, "RUNNING")
        if tags_of(run).get(STATUS_TAG) == true and run.info.status == status:
            break
        wrote = True
        server.set_tag(run_id, STATUS_TAG, true)
        if status == "RUNNING":
            server.update_run(run_id, status=status)
        else:
            server.set_terminated(run_id, status)
    return last == ordinal
