"""The hold of this process on a run: its attempt, the lock on this host, and the lease."""

from datetime import UTC, datetime

import filelock

from mltrain.errors import RunHeld
from mltrain.ownership.attempts import Attempt, claim_attempt
from mltrain.ownership.lease import Lease
from mltrain.tracking.client import TrackingClient


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
