"""Holds a run: attempt, host lock, heartbeats, takeover detection."""

import itertools
import logging
import math
import threading
import time
from datetime import UTC, datetime
from typing import Any

import filelock

from mltrain.errors import MltrainError, RunHeld
from mltrain.ownership.attempts import LEASE_SECONDS, OUTCOME_OF, Attempt, claim_attempt, conclude, last_attempt
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.tags import HEARTBEAT_TAG, STATUS_TAG

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0
_TICK_SECONDS = 0.5
_ASLEEP_SECONDS = 3.0
_MARGIN_SECONDS = 10.0
"""So long before its lease runs out, a holder whose heartbeats fail asks the server before it writes."""
_MAX_PENDING = 3
"""How many heartbeats may wait for an answer at once, so that a hanging connection does not delay the next one."""
_EARLY = 0.8
"""Factor on the interval: a heartbeat reads the run too, so just before the sender would do it."""


class Lease:
    """The lease of one attempt on a run.

    One thread only sends heartbeats, so no upload, sender or training step delays them. A second thread ticks, to notice
    that this process was suspended. After a suspension, or when no heartbeat was delivered for almost the length of the
    lease, another process may have taken the run over; then the holder asks the server before it writes.

    Args:
        server: tracking server that has the run.
        ordinal: of this attempt; if a higher one is claimed, another process has taken the run over.
        beat_seconds: between two heartbeats.
        lease_seconds: without a heartbeat, after which other processes take the holder for dead.

    Attributes:
        overtaken: set once another process has taken the run over.
    """

    def __init__(
        self,
        server: TrackingClient,
        ordinal: int,
        *,
        beat_seconds: float = HEARTBEAT_SECONDS,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self.overtaken = threading.Event()
        self.gone: str | None = None
        """Message that somebody deleted the run. If ``None``, nobody did."""
        self._server = server.once  # the next heartbeat is the retry
        self._ordinal = ordinal
        self._beat_seconds = beat_seconds
        self._doubt_seconds = max(beat_seconds, lease_seconds - _MARGIN_SECONDS)
        self._run_id: str | None = None
        self._beats = itertools.count(1)
        self._confirmed = self._delivered = self._tick = time.monotonic()
        self._doubted = self._failed = -math.inf
        """When this process last noticed a suspension, and when a request to the server last failed."""
        self._ending = False
        self._closed = threading.Event()
        self._setting = threading.Lock()
        """Held while the status of the run is corrected."""
        threading.Thread(target=self._watch, name="mltrain-lease", daemon=True).start()
        threading.Thread(target=self._beat_regularly, name="mltrain-heartbeat", daemon=True).start()

    def begin(self, run_id: str) -> None:
        """Start heartbeats for a run that this attempt now holds."""
        self._confirmed = self._delivered = time.monotonic()
        self._run_id = run_id

    def follow(self, ordinal: int) -> None:
        """Continue under a later attempt of this process."""
        self._ordinal = ordinal

    def keep(self) -> bool:
        """Return whether this attempt holds the run.

        The server's answer is at most two heartbeats old.

        Raises:
            TrackingError: the server does not answer.
        """
        if not self.overtaken.is_set() and (self._doubtful() or self._age() > self._beat_seconds):
            self._ask()
        return not self.overtaken.is_set()

    def holds(self, *, certainly: bool = False) -> bool:
        """Whether this attempt still holds the run.

        Asks the server only after a suspension of this process, and while heartbeats cannot be delivered.

        Args:
            certainly: whether a server that does not answer means no.
        """
        if not self.overtaken.is_set() and self._doubtful():
            if time.monotonic() - self._failed < self._beat_seconds:
                return not certainly  # it was asked a moment ago
            try:
                self._ask()
            except MltrainError:
                return not certainly
        return not self.overtaken.is_set()

    def end(self, seconds: float) -> None:
        """Stop correcting the status; the holder sets the final one.

        Heartbeats continue.

        Args:
            seconds: to wait for a correction that is under way.
        """
        self._ending = True
        if self._setting.acquire(timeout=seconds):
            self._setting.release()

    def close(self) -> None:
        """Stop both threads."""
        self._ending = True
        self._closed.set()

    def _age(self) -> float:
        return time.monotonic() - self._confirmed

    def _doubtful(self) -> bool:
        now = time.monotonic()
        asleep = self._doubted > self._confirmed or now - self._tick > _ASLEEP_SECONDS
        silent = self._run_id is not None and now - self._delivered > self._doubt_seconds
        return asleep or (silent and self._age() > self._beat_seconds)

    def _ask(self) -> Any:
        """Ask the server for the holder; return the run if created."""
        asked, run = time.monotonic(), None
        if self._run_id is not None:
            try:
                run = self._server.get_run(self._run_id)
            except MltrainError:
                self._failed = time.monotonic()
                raise
            if last_attempt(run.data.params) > self._ordinal:
                self.overtaken.set()
        if asked >= self._confirmed:  # otherwise a later request was answered first
            self._confirmed = asked
            self.gone = _gone(run)
        return run

    def _beat_regularly(self) -> None:
        pending: list[threading.Thread] = []
        while not self._closed.wait(_EARLY * self._beat_seconds):
            pending = [thread for thread in pending if thread.is_alive()]
            if self._run_id is None or len(pending) >= _MAX_PENDING:
                continue
            beat = threading.Thread(target=self._beat, name="mltrain-beat", daemon=True)
            try:
                beat.start()
                pending.append(beat)
            except RuntimeError:  # the interpreter is ending and starts no more threads
                self._beat()

    def _beat(self) -> None:
        try:
            run = self._ask()
            self._correct_status(run)
            if self.overtaken.is_set() or self.gone is not None or self._closed.is_set() or self._doubtful():
                return
            sent, beat = time.monotonic(), f"{self._ordinal}.{next(self._beats)}"
            self._server.set_tag(run.info.run_id, HEARTBEAT_TAG, beat)
            self._delivered = max(self._delivered, sent)
        except MltrainError as error:
            log.debug("A heartbeat was not delivered: %s", error)

    def _correct_status(self, run: Any) -> None:
        """Undo another process's change of the run's status."""
        with self._setting:
            tagged = run.data.tags.get(STATUS_TAG, "running")
            if self._ending or self.overtaken.is_set() or self.gone is not None:
                return
            if run.info.status not in OUTCOME_OF and tagged == "running":
                return
            log.warning(
                "Somebody set the run to %s although it is running; it is set to RUNNING again.", run.info.status
            )
            conclude(self._server, run.info.run_id, self._ordinal, "running")

    def _watch(self) -> None:
        while not self._closed.wait(_TICK_SECONDS):
            now = time.monotonic()
            if now - self._tick > _ASLEEP_SECONDS:
                self._doubted = now  # before the tick, so that no check in between misses the suspension
            self._tick = now


def _gone(run: Any) -> str | None:
    if run is None or run.info.lifecycle_stage == "active":
        return None
    return (
        f"Run {run.info.run_id} was deleted. Training goes on, and its records are buffered on this disk. "
        "Try: restore the run in the MLflow UI; the backlog is sent then, or with: mltrain sync"
    )


class Hold:
    """Right of this process to be the run's only writer.

    Args:
        server: tracking server that has the run.
        attempts: all attempts up to this process's.
        lock: of the run on this host, acquired.

    Attributes:
        attempts: all attempts up to this process's current one.
        lease: on the run.
    """

    def __init__(self, server: TrackingClient, attempts: list[Attempt], lock: filelock.BaseFileLock) -> None:
        self._server = server
        self._lock = lock
        self.attempts = attempts
        self.lease = Lease(server, attempts[-1].ordinal)

    @property
    def attempt(self) -> Attempt:
        """The current attempt."""
        return self.attempts[-1]

    @property
    def overtaken(self) -> bool:
        """Whether another process has taken the run over."""
        return self.lease.overtaken.is_set()

    def require(self) -> None:
        """Raise :class:`~mltrain.errors.RunHeld` if another process has taken the run over."""
        if self.overtaken:
            raise RunHeld("Another process has taken this run over; this one ends without writing anything more.")

    def begin_attempt(self, run_id: str, resumed_from: str | None) -> Attempt:
        """Claim the next attempt after a rollback by this process.

        Raises:
            RunHeld: another process has just claimed it.
            TrackingError: the server does not answer.
        """
        now = self.attempt
        self.end_attempt("rolled back")
        following = Attempt(
            now.ordinal + 1, resumed_from=resumed_from, code=now.code, data=now.data, versions=now.versions
        )
        self.attempts.append(following)
        self.lease.follow(following.ordinal)  # before the claim, or the heartbeat would take it for a takeover
        try:
            claim_attempt(self._server, run_id, following.ordinal)
        except RunHeld:
            self.lease.overtaken.set()  # so this process writes nothing under the other one's attempt
            raise
        return following

    def end_attempt(self, why: str) -> None:
        """Record when and why the current attempt ended."""
        self.attempt.ended, self.attempt.why = datetime.now(UTC).isoformat(timespec="seconds"), why

    def release(self) -> None:
        """Stop heartbeats and release the lock."""
        self.lease.close()
        self._lock.release()
