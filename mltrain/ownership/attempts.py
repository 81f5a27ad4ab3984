"""Attempts of a run: records, claims, and the current holder."""

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
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.connection import Refusal
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
"""After so long without a heartbeat, a holder that this machine cannot see counts as dead."""

CONFIG_FILE = "config.json"
ATTEMPTS_FILE = "attempts.json"
STATUS_OF = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
"""MLflow's status for each final value of :data:`STATUS_TAG`."""
OUTCOME_OF = {status: outcome for outcome, status in STATUS_OF.items()}
"""The final value of :data:`STATUS_TAG` for each of MLflow's final statuses."""
_CONCLUDING_TRIES = 5
_CLAIM = re.compile(re.escape(ATTEMPT_PREFIX) + r"(\d{1,6})", re.ASCII)


@dataclass
class Attempt:
    """The record of one start or resume of a run."""

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
    """Whether the attempt ended before it trained or saved, so it replaces nothing of earlier ones."""


def recorded_config(artifacts: Artifacts) -> dict[str, Any]:
    """Return the ``project`` and ``config`` that :meth:`TrackedRun.record_start` recorded.

    Raises:
        RunNotFound: the run has no such record: mltrain did not train it, or it was killed before it began.
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
        f"The run has no readable {CONFIG_FILE} among its artifacts. Expected a training of mltrain that was not killed "
        "before it recorded its configuration. Try: mltrain train PROJECT"
    )


def recorded_attempts(artifacts: Artifacts, last: int) -> list[Attempt]:
    """Return attempts 1 to ``last``; one without an intact record has only its ordinal.

    Raises:
        StorageError: the artifact store does not answer.
    """
    found: dict[int, Attempt] = {}
    try:
        for raw in json.loads(artifacts.read(ATTEMPTS_FILE, 2**24))["attempts"]:
            known = {name: raw[name] for name in Attempt.__dataclass_fields__ if name in raw}
            found[int(raw["ordinal"])] = Attempt(**known)
    except StorageError:
        raise  # not a missing record, which a resume would replace
    except (OSError, ValueError, KeyError, TypeError, CheckpointError):
        log.info("The record of earlier attempts is missing or damaged; a new record begins.")
    blank = {"host": "", "boot": "", "pid": 0, "started": ""}
    return [found.get(ordinal) or Attempt(ordinal, **blank) for ordinal in range(1, last + 1)]  # type: ignore[arg-type]


def is_overtaken(artifacts: Artifacts, ordinal: int) -> bool:
    """Whether ``attempts.json`` records a later attempt that began to train.

    For ranks that send no requests to the tracking server.

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
    """Return the newest attempt's ordinal from a run's parameters."""
    return max((int(match[1]) for key in params if (match := _CLAIM.fullmatch(key))), default=1)


def holder_of(run: Any) -> dict[str, Any]:
    """Return a run's holder from its last claim or tag.

    A process claims a run before it sets the tag, so a claim with a higher attempt than the tag counts.

    Returns:
        ``attempt``, ``host``, ``boot`` and ``pid``, among others; empty if the run records no holder.
    """
    tagged = _parsed(run.data.tags.get(HOLDER_TAG, "{}"))
    claimed = _parsed(run.data.params.get(f"{ATTEMPT_PREFIX}{last_attempt(run.data.params)}", "{}"))
    return claimed if claimed.get("attempt", 0) > tagged.get("attempt", 0) else tagged


def _parsed(text: str) -> dict[str, Any]:
    try:
        holder = json.loads(text)
        return holder if isinstance(holder, dict) and isinstance(holder.get("attempt", 0), int) else {}
    except ValueError:
        return {}


def is_held(run: Any) -> bool:
    """Whether a run is tagged running, or newly claimed."""
    tagged = _parsed(run.data.tags.get(HOLDER_TAG, "{}"))
    claimed = holder_of(run).get("attempt", 0) > tagged.get("attempt", 0)
    return bool(claimed or run.data.tags.get(STATUS_TAG) == "running")


def named(holder: Mapping[str, Any]) -> str:
    """Return a holder's name for messages."""
    return f"process {holder.get('pid')} on {holder.get('host')} (attempt {holder.get('attempt')})"


def is_alive(server: TrackingClient, run: Any) -> bool | None:
    """Whether the process that holds a run is alive.

    Returns:
        ``None`` if this machine cannot know; then only the heartbeat of the run shows it.
    """
    holder = holder_of(run)
    alive = liveness.is_alive(holder)
    return False if alive is None and has_ended(server, run.info.run_id, holder) else alive


def held_by_another(run: Any) -> RunHeld:
    """Return the error for a run of another writer."""
    return RunHeld(
        f"Run {run.info.run_id} is being written by {named(holder_of(run))}. Expected one writer. "
        f"Try: {liveness.advice(holder_of(run))}"
    )


def await_lease(server: TrackingClient, run: Any) -> None:
    """Return once the run's holder is gone.

    A holder that this machine cannot see is gone when its heartbeat has not changed for :data:`LEASE_SECONDS`.

    Raises:
        RunHeld: the holder is alive.
        RunNotFound, TrackingError: the run cannot be read.
    """
    if not is_held(run):
        return
    alive = is_alive(server, run)
    if alive:
        raise held_by_another(run)
    if alive is False:
        return
    who = named(holder_of(run))
    print(f"The run was held by {who}; waiting {LEASE_SECONDS:.0f} s for a heartbeat …", file=sys.stderr, flush=True)
    beat = run.data.tags.get(HEARTBEAT_TAG)
    deadline = time.monotonic() + LEASE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(1.0)
        now = server.run(run.info.run_id)
        if not is_held(now):
            return  # it has ended, and its heartbeat is removed
        if now.data.tags.get(HEARTBEAT_TAG) != beat:
            raise held_by_another(run)


def only_local_tags(checkpoint: str, when_sent: str) -> dict[str, str]:
    """Return an ended run's tags. Its newest checkpoint is only on this host."""
    return {ONLY_LOCAL_TAG: f"{checkpoint} on {fingerprint.host()}", WHEN_SENT_TAG: when_sent}


def forget_only_local(server: TrackingClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Remove the tags of :func:`only_local_tags` where they are set."""
    for key in (key for key in (ONLY_LOCAL_TAG, WHEN_SENT_TAG) if key in tags):
        with suppress(RunNotFound):  # an earlier try got this far
            server.delete_tag(run_id, key)


def forget_endings(server: TrackingClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Remove the outcome tags of earlier attempts; ``attempts.json`` has them."""
    for key in (key for key in tags if key.startswith(ENDED_PREFIX)):
        with suppress(MltrainError):  # it stays for the next resume
            server.once.delete_tag(run_id, key)


def _claim(ordinal: int) -> str:
    """Return this process's claim of an attempt, as JSON."""
    return json.dumps({"attempt": ordinal, **liveness.own()})


def claim_attempt(server: TrackingClient, run_id: str, ordinal: int) -> None:
    """Claim an attempt of a run for this process.

    Parameters are write-once, so of several processes exactly one wins.

    Raises:
        RunHeld: another process claimed it first.
        TrackingError: the server does not answer.
    """
    try:
        # A retry after a lost answer writes the same value, and no other process has that value.
        server.log_param(run_id, f"{ATTEMPT_PREFIX}{ordinal}", _claim(ordinal))
    except Refusal as error:
        if "Changing param values" not in str(error.__cause__ or error):
            raise
        raise RunHeld(
            f"Run {run_id} was just claimed by {named(holder_of(server.run(run_id)))}. Expected one writer. "
            "Try: stop that process, or --take-over"
        ) from None


def holder_tags(ordinal: int) -> dict[str, str]:
    """Return the tags that mark this process as run holder."""
    return {HOLDER_TAG: _claim(ordinal), STATUS_TAG: "running", HEARTBEAT_TAG: f"{ordinal}.0"}


def ending_tags(ordinal: int, outcome: str) -> dict[str, str]:
    """Return the tags that record the outcome of an attempt."""
    return {f"{ENDED_PREFIX}{ordinal}": outcome, STATUS_TAG: outcome}


def conclude(server: TrackingClient, run_id: str, ordinal: int, outcome: str) -> bool:
    """Set a run's status to an attempt's outcome.

    Nothing is changed if a later attempt has begun. The caller need not hold the run. MLflow has no conditional writes, so this
    reads the run again after every write, until its status is that of its last attempt. If a resume came in between, this
    restores the status that the resume set.

    Args:
        server: tracking server that has the run.
        run_id: of the run.
        ordinal: of the attempt.
        outcome: a key of :data:`STATUS_OF`, or ``running``. An outcome that the attempt recorded itself takes precedence.

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
        expected = run.data.tags.get(f"{ENDED_PREFIX}{last}") or (outcome if last == ordinal else "running")
        status = STATUS_OF.get(expected, "RUNNING")
        if run.data.tags.get(STATUS_TAG) == expected and run.info.status == status:
            break
        wrote = True
        server.set_tag(run_id, STATUS_TAG, expected)
        if status == "RUNNING":
            server.update_run(run_id, status=status)
        else:
            server.set_terminated(run_id, status)
    return last == ordinal
