"""How a run ends: what waits is delivered, the status is set, the hold is released."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from mltrain.checkpoint.ports import Status
from mltrain.delivery.creation import RunIdentity
from mltrain.delivery.outbox import Outbox
from mltrain.errors import MltrainError, StorageError
from mltrain.ownership import launcher as launchers
from mltrain.ownership.attempts import conclude, ending_tags, forget_only_local, only_local_tags, outcome_of
from mltrain.ownership.launcher import Launcher
from mltrain.ownership.lease import Hold
from mltrain.ownership.run_folder import grace_seconds
from mltrain.run.record import Record
from mltrain.tracking.client import TrackingClient, tags_of
from mltrain.tracking.tags import ENDED_PREFIX, HEARTBEAT_TAG, POINTS_LEFT_OUT_TAG

log = logging.getLogger(__name__)

_ANSWER_SECONDS = 3.0
"""For so long after the end of its grace a process waits for the answer to its last question."""


@dataclass(frozen=True)
class Opened:
    """How a run came to this process.

    Attributes:
        created: whether this process created it.
        earlier: the status with which it had ended before, if it had.
        launcher: the ``mlflow run`` that started this process.
        owned: whether this process decides about the run's status.
        age: seconds since the run began, for the steps of the system metrics.
    """

    created: bool = False
    earlier: Status | None = None
    launcher: Launcher | None = None
    owned: bool = True
    age: int = 0


class Ending:
    """Ends a run.

    Args:
        server: where the run is.
        run: which run.
        hold: of this process.
        outbox: delivers what waits.
        record: writes how the attempt ended.
        opened: how the run came to this process.

    Attributes:
        opened: how the run came to this process.
        lost: after :meth:`close`, how many records neither the server nor this disk has taken.
        closed: after :meth:`close`, whether the server has taken the run's status.
    """

    def __init__(
        self, server: TrackingClient, run: RunIdentity, hold: Hold, outbox: Outbox, record: Record, opened: Opened
    ) -> None:
        self._server = server
        self._run = run
        self._hold = hold
        self._outbox = outbox
        self._record = record
        self.opened = opened
        self._only_local = False
        self._delivered: bool | None = None
        """Once it is closed, whether everything was delivered."""
        self.lost, self.closed = 0, False

    def mark_only_local(self, checkpoint: str, status: Status) -> None:
        """Record that the newest checkpoint is on this host only.

        Args:
            checkpoint: its name.
            status: that the run gets when ``mltrain sync`` has sent it.
        """
        self._only_local = True
        self._outbox.set_tags(only_local_tags(checkpoint, outcome_of(status)))

    def detach(self, status: Status) -> None:
        """Deliver what waits and release the run; set its status only where it was opened by this process."""
        if self.opened.owned:
            self.close(status, "closed", grace_seconds())
            return
        deadline = time.monotonic() + grace_seconds()
        self._stop_recording(deadline)
        if not self._hold.overtaken:
            self._tag_ending(status)
            self._outbox.sender.drain(max(0.0, deadline - time.monotonic()))
            self._report_lost()
        self._release()

    def close(self, status: Status, why: str, grace: float, *, interrupted: Callable[[], bool] = lambda: False) -> bool:
        """Deliver what waits within ``grace`` seconds, set the status, release the run.

        Args:
            status: of the run.
            why: the attempt ended.
            grace: seconds.
            interrupted: tells at the very end whether a stop was requested; a launcher that gets the same request calls any
                run FAILED then.

        Returns:
            Whether everything was delivered. What was not waits on this disk for ``mltrain sync``, but for what is
            :attr:`lost`.
        """
        if self._delivered is not None:
            return self._delivered
        deadline = time.monotonic() + grace
        self._hold.end_attempt(why)
        self._stop_recording(deadline)
        delivered = False
        if not self._hold.overtaken:
            delivered = self._deliver(status, deadline)
            if self.lost and status == "FINISHED" and self._outbox.journal.unsent():
                # A resume brings back what a checkpoint carries, so the run does not count as complete.
                status = "KILLED"
                self._tag_ending(status)  # after what is journalled above, for mltrain sync
                self._set_status(status, max(2.0, deadline - time.monotonic()))
            # The server learns how the run ended even where the artifact store takes no files.
            if delivered or (self._run.known and not self._outbox.journal.unsent_points(1)):
                self.closed = self._set_status(status, max(2.0, deadline - time.monotonic()))
            delivered = delivered and self.closed and self._outbox.journal.parked() == 0 and not self.lost
        self._delivered = delivered
        launcher, run_id = self.opened.launcher, self._run.id
        adopted = not self._hold.overtaken and launcher is not None and launcher.run_id == run_id
        self._release()
        # A launcher that was interrupted as well will call the run FAILED.
        if adopted and launcher is not None and launcher.pid is not None and (interrupted() or status != "FINISHED"):
            launchers.after(self._server, launcher.pid, run_id, status, self._hold.attempt.ordinal)
        return delivered

    def withdraw(self, why: str) -> None:
        """Undo the opening: delete a run that this process created, restore the status of another."""
        self._hold.attempt.withdrawn = True
        if self.opened.owned:
            self.close(self.opened.earlier or "KILLED", why, grace_seconds())
        else:
            self.detach("KILLED")
        if self.opened.created:
            with suppress(MltrainError):
                self._server.once.delete_run(self._run.id)

    def _stop_recording(self, deadline: float) -> None:
        """Make the last pictures, and leave the status to this thread."""
        self._outbox.stop_recording(deadline)
        self._hold.lease.end(max(0.0, deadline - time.monotonic()))

    def _deliver(self, status: Status, deadline: float) -> bool:
        if self._outbox.journal.left_out:
            self._outbox.set_tag(POINTS_LEFT_OUT_TAG, str(self._outbox.journal.left_out))
        try:
            self._record.queue_attempts()
        except StorageError as error:
            log.warning("The record of attempts does not say how this one ended: %s", error)
        self._tag_ending(status)
        delivered = self._outbox.sender.drain(max(0.0, deadline - time.monotonic()))
        self._report_lost()
        return delivered

    def _tag_ending(self, status: Status) -> None:
        self._outbox.set_tags(ending_tags(self._hold.attempt.ordinal, outcome_of(status)))

    def _report_lost(self) -> None:
        self.lost = self._outbox.journal.lost()
        if self.lost:
            log.error(
                "%d records (metric points, tags or files) are lost: neither the tracking store nor this disk took them. A "
                "resume records again what its checkpoint carries of the points.",
                self.lost,
            )

    def _release(self) -> None:
        self._hold.lease.close()
        self._outbox.close()
        self._hold.release()

    def _set_status(self, status: Status, seconds: float) -> bool:
        """Set the status; a server that accepts the request and never answers does not hold the process any longer."""
        done: list[bool] = []

        def set_status() -> None:
            done.append(self._status_is_set(status, seconds))
            if done == [True]:
                self._forget_heartbeat()

        thread = threading.Thread(target=set_status, name="mltrain-status", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is ending and starts no more threads
            return self._status_is_set(status, seconds)
        thread.join(seconds + _ANSWER_SECONDS)
        return done == [True]

    def _status_is_set(self, status: Status, seconds: float) -> bool:
        server, run_id = replace(self._server, retry_seconds=seconds), self._run.id
        ordinal, ended = self._hold.attempt.ordinal, outcome_of(status)
        try:
            if not self._hold.lease.holds(certainly=True):
                return False
            self._run.delete_duplicates()
            server.set_tag(run_id, f"{ENDED_PREFIX}{ordinal}", ended)
            if not conclude(server, run_id, ordinal, ended):
                self._hold.lease.overtaken.set()
                return False
            # What an earlier attempt left on a host is overtaken by this one, or sent.
            if not self._only_local and not self._hold.attempt.withdrawn:
                forget_only_local(server, run_id, tags_of(server.run(run_id)))
        except MltrainError as error:
            log.warning("The run's status could not be set: %s", error)
            return False
        return True

    def _forget_heartbeat(self) -> None:
        """Remove the tag of a heart that beats no more; one that stays does no harm, because nobody asks for it."""
        self._hold.lease.close()
        with suppress(MltrainError):
            self._server.once.delete_tag(self._run.id, HEARTBEAT_TAG)
