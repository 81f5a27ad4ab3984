"""Holding a run: its attempt, the lock on this host, heartbeats, and noticing that another process has taken the run over."""

import itertools
import logging
import math
import threading
import time
from datetime import UTC, datetime
from typing import Any

import filelock

from mltrain.errors import MltrainError, RunHeld
from mltrain.ownership.attempts import LEASE_SECONDS, Attempt, claim_attempt, conclude, last_attempt
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.tags import HEARTBEAT_TAG, STATUS_TAG

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0
_TICK_SECONDS = 0.5
_ASLEEP_SECONDS = 3.0
_MARGIN_SECONDS = 10.0
"""So long before others may take the run for abandoned its holder begins to doubt."""
_MOST_HANGING = 3
"""So many heartbeats may wait for an answer at once; a connection that hangs does not hold up the next one."""
_BEFORE_IT_IS_DUE = 0.8
"""A heartbeat also asks who holds the run, just before the sender would."""
_ENDED = ("FINISHED", "FAILED", "KILLED")


class Lease:
    """The hold of one attempt on a run.

    A thread of the lease sends heartbeats and does nothing else, so uploads, the sender and the training may take as long as
    they like. A second thread ticks: a process that was stopped for a while may wake up to find its run taken over, and so may
    one whose heartbeats were not delivered for almost as long as the lease. Then the holder asks the server before it writes.

    Args:
        server: where the run is.
        ordinal: of this attempt; a higher one means that it is overtaken.
        beat_seconds: between two heartbeats.
        lease_seconds: after which others take a silent holder for dead.
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
        """What has happened to the run, where somebody deleted it."""
        self._server = server.once  # the next heartbeat is the next try
        self._ordinal = ordinal
        self._beat_seconds = beat_seconds
        self._doubt_seconds = max(beat_seconds, lease_seconds - _MARGIN_SECONDS)
        self._run_id: str | None = None
        self._beats = itertools.count(1)
        self._confirmed = self._delivered = self._tick = time.monotonic()
        self._doubted = self._failed = -math.inf
        """When this process was last found to have been asleep, and when a request to the server last failed."""
        self._ending = False
        self._closed = threading.Event()
        self._setting = threading.Lock()
        """Held while the status of the run is put right."""
        threading.Thread(target=self._watch, name="mltrain-lease", daemon=True).start()
        threading.Thread(target=self._beat_regularly, name="mltrain-heartbeat", daemon=True).start()

    def begin(self, run_id: str) -> None:
        """The run exists, and this attempt holds it."""
        self._confirmed = self._delivered = time.monotonic()
        self._run_id = run_id

    def follow(self, ordinal: int) -> None:
        """The run goes on under a later attempt of this process."""
        self._ordinal = ordinal

    def keep(self) -> bool:
        """Return whether this attempt holds the run, by an answer of the server that is at most two heartbeats old.

        Raises:
            TrackingError: the server does not answer.
        """
        if not self.overtaken.is_set() and (self._doubtful() or self._age() > self._beat_seconds):
            self._ask()
        return not self.overtaken.is_set()

    def holds(self, *, certainly: bool = False) -> bool:
        """Whether this attempt still holds the run; asks the server only where there is doubt.

        There is doubt after the process has been asleep, and while heartbeats cannot be delivered.

        Args:
            certainly: a server that does not answer then means no.
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
        """Leave the status of the run to its holder, who sets how it ended; heartbeats go on.

        Args:
            seconds: for which a request that sets the status at this moment is waited for.
        """
        self._ending = True
        if self._setting.acquire(timeout=seconds):
            self._setting.release()

    def close(self) -> None:
        """Watch no more, and send no more heartbeats."""
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
        """Ask the server who holds the run, and return the run, if it exists."""
        asked, run = time.monotonic(), None
        if self._run_id is not None:
            try:
                run = self._server.get_run(self._run_id)
            except MltrainError:
                self._failed = time.monotonic()
                raise
            if last_attempt(run.data.params) > self._ordinal:
                self.overtaken.set()
        if asked >= self._confirmed:  # else a later question has been answered already
            self._confirmed = asked
            self.gone = _gone(run)
        return run

    def _beat_regularly(self) -> None:
        hanging: list[threading.Thread] = []
        while not self._closed.wait(_BEFORE_IT_IS_DUE * self._beat_seconds):
            hanging = [thread for thread in hanging if thread.is_alive()]
            if self._run_id is None or len(hanging) >= _MOST_HANGING:
                continue
            beat = threading.Thread(target=self._beat, name="mltrain-beat", daemon=True)
            try:
                beat.start()
                hanging.append(beat)
            except RuntimeError:  # the interpreter is ending and starts no more threads
                self._beat()

    def _beat(self) -> None:
        try:
            run = self._ask()
            self._put_right(run)
            if self.overtaken.is_set() or self.gone is not None or self._closed.is_set() or self._doubtful():
                return
            sent, beat = time.monotonic(), f"{self._ordinal}.{next(self._beats)}"
            self._server.set_tag(run.info.run_id, HEARTBEAT_TAG, beat)
            self._delivered = max(self._delivered, sent)
        except MltrainError as error:
            log.debug("A heartbeat was not delivered: %s", error)

    def _put_right(self, run: Any) -> None:
        """Set a run to running again that somebody else has set to something else."""
        with self._setting:
            said = run.data.tags.get(STATUS_TAG, "running")
            if self._ending or self.overtaken.is_set() or self.gone is not None:
                return
            if run.info.status not in _ENDED and said == "running":
                return
            log.warning("Somebody set the run to %s; it is running, and set to that again.", run.info.status)
            conclude(self._server, run.info.run_id, self._ordinal, "running")

    def _watch(self) -> None:
        while not self._closed.wait(_TICK_SECONDS):
            now = time.monotonic()
            if now - self._tick > _ASLEEP_SECONDS:
                self._doubted = now  # before the tick, so that nobody in between believes that all is well
            self._tick = now


def _gone(run: Any) -> str | None:
    if run is None or run.info.lifecycle_stage == "active":
        return None
    return (
        f"Run {run.info.run_id} was deleted. Training goes on, and what it would record is kept on this disk. "
        "Restore the run in the MLflow UI; what waits is sent then, or by: mltrain sync"
    )


class Hold:
    """What makes this process the one writer of a run.

    Args:
        server: where the run is.
        attempts: all attempts up to this process's.
        lock: of the run on this host, taken.

    Attributes:
        attempts: all attempts up to this process's current one.
        lease: tells whether another process has taken the run over.
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
        """Claim the next attempt of the run for this process, which has rolled it back to a checkpoint.

        Raises:
            RunHeld: Another process has claimed it at this moment.
            TrackingError: The server does not answer.
        """
        now = self.attempt
        self.end_attempt("rolled back")
        following = Attempt(
            now.ordinal + 1, resumed_from=resumed_from, code=now.code, data=now.data, versions=now.versions
        )
        self.attempts.append(following)
        self.lease.follow(following.ordinal)  # before the claim, or the heartbeat would take it for another process's
        try:
            claim_attempt(self._server, run_id, following.ordinal)
        except RunHeld:
            self.lease.overtaken.set()  # the number is another process's, and nothing is written in its name
            raise
        return following

    def end_attempt(self, why: str) -> None:
        """Note when and why the current attempt ended."""
        self.attempt.ended, self.attempt.why = datetime.now(UTC).isoformat(timespec="seconds"), why

    def release(self) -> None:
        """Send no more heartbeats and release the lock."""
        self.lease.close()
        self._lock.release()
