"""Ends a run: delivers the backlog, sets the status, releases the hold."""

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
from mltrain.ownership.attempts import OUTCOME_OF, conclude, ending_tags, forget_only_local, only_local_tags
from mltrain.ownership.launcher import Launcher
from mltrain.ownership.lease import Hold
from mltrain.ownership.run_folder import grace_seconds
from mltrain.run.record import Record
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.tags import ENDED_PREFIX, HEARTBEAT_TAG, POINTS_LEFT_OUT_TAG

log = logging.getLogger(__name__)

_ANSWER_SECONDS = 3.0
"""How long a process waits for its last response after the grace period."""


@dataclass(frozen=True)
class Opened:
    """How a run was opened.

    Attributes:
        created: whether this process created it.
        earlier: its final status before. If ``None``, it had not ended.
        launcher: the ``mlflow run`` that started this process. ``None`` if the user started it directly.
        owned: whether this process sets the run's final status.
        age: seconds since the run began, for the steps of the system metrics.
        elsewhere: whether only another host has the newest checkpoint.
    """

    created: bool = False
    earlier: Status | None = None
    launcher: Launcher | None = None
    owned: bool = True
    age: int = 0
    elsewhere: bool = False


class Ending:
    """Ends a run.

    Args:
        server: tracking server that has the run.
        run: the run.
        hold: of this process.
        outbox: delivers the backlog.
        record: writes how the attempt ended.
        opened: how the run was opened.

    Attributes:
        opened: how the run was opened.
        lost: after :meth:`close`, the number of records that are neither on the server nor on this disk.
        closed: after :meth:`close`, whether the run's status is set on the server.
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
        """Whether the newest checkpoint may still be on one host only."""
        self._delivered: bool | None = None
        """Whether everything was delivered. ``None`` until the run is closed."""
        self.lost, self.closed = 0, False

    def mark_only_local(self, checkpoint: str, status: Status) -> None:
        """Record that the newest checkpoint is on this host only.

        Args:
            checkpoint: its name.
            status: final status of the run once ``mltrain sync`` has uploaded the checkpoint.
        """
        self._only_local = True
        self._outbox.set_tags(only_local_tags(checkpoint, OUTCOME_OF[status]))

    def detach(self, status: Status, grace: float | None = None) -> None:
        """Deliver the backlog and release the run; set its status if this process owns it.

        Args:
            status: of the run.
            grace: seconds. If ``None``, ``MLTRAIN_GRACE_SECONDS`` applies.
        """
        grace = grace_seconds() if grace is None else grace
        if self.opened.owned:
            self.close(status, "closed", grace)
            return
        deadline = time.monotonic() + grace
        self._stop_recording(deadline)
        if not self._hold.overtaken:
            self._tag_ending(status)
            self._outbox.sender.drain(max(0.0, deadline - time.monotonic()))
            self._report_lost()
        self._release()

    def close(self, status: Status, why: str, grace: float, *, interrupted: Callable[[], bool] = lambda: False) -> bool:
        """Deliver the backlog, set the status, release the run.

        Args:
            status: of the run.
            why: the attempt ended.
            grace: seconds.
            interrupted: called last; returns whether a stop was requested. A launcher with the same request sets any run to
                FAILED.

        Returns:
            Whether everything was delivered. The rest is on this disk for ``mltrain sync``, except what is :attr:`lost`.
        """
        if self._delivered is not None:
            return self._delivered
        deadline = time.monotonic() + grace
        self._hold.end_attempt(why)
        if self._hold.attempt.ordinal > 1 and not self._record.begun:
            self._hold.attempt.withdrawn = True  # it only read, so it replaces nothing
            if self.opened.elsewhere:
                self._only_local, status = True, self.opened.earlier or "KILLED"
        self._stop_recording(deadline)
        delivered = False
        if not self._hold.overtaken:
            delivered = self._deliver(status, deadline)
            if self.lost and status == "FINISHED" and self._outbox.journal.unsent():
                # A resume can restore the points that a checkpoint carries, so the run is not complete.
                status = "KILLED"
                self._tag_ending(status)  # after the entries above, for mltrain sync
                self._set_status(status, max(2.0, deadline - time.monotonic()))
            # Set the status even if the artifact store fails.
            if delivered or (self._run.known and not self._outbox.journal.unsent_points(1)):
                self.closed = self._set_status(status, max(2.0, deadline - time.monotonic()))
            delivered = delivered and self.closed and self._outbox.journal.parked() == 0 and not self.lost
        self._delivered = delivered
        launcher, run_id = self.opened.launcher, self._run.id
        adopted = not self._hold.overtaken and launcher is not None and launcher.run_id == run_id
        self._release()
        # A launcher that was interrupted as well sets the run to FAILED.
        if adopted and launcher is not None and launcher.pid is not None and (interrupted() or status != "FINISHED"):
            launchers.after(self._server, launcher.pid, run_id, status, self._hold.attempt.ordinal)
        return delivered

    def withdraw(self, why: str) -> None:
        """Undo the opening: delete a created run, restore another's status."""
        self._hold.attempt.withdrawn = self._only_local = True
        if self.opened.owned:
            self.close(self.opened.earlier or "KILLED", why, grace_seconds())
        else:
            self.detach("KILLED")
        if self.opened.created:
            with suppress(MltrainError):
                self._server.once.delete_run(self._run.id)

    def _stop_recording(self, deadline: float) -> None:
        """Finish pictures and system metrics; stop correcting the status."""
        self._outbox.stop_recording(deadline)
        self._hold.lease.end(max(0.0, deadline - time.monotonic()))

    def _deliver(self, status: Status, deadline: float) -> bool:
        if self._outbox.journal.left_out:
            self._outbox.set_tag(POINTS_LEFT_OUT_TAG, str(self._outbox.journal.left_out))
        try:
            self._record.queue_attempts()
        except StorageError as error:
            log.warning("The end of this attempt could not be recorded in attempts.json: %s", error)
        self._tag_ending(status)
        delivered = self._outbox.sender.drain(max(0.0, deadline - time.monotonic()))
        self._report_lost()
        return delivered

    def _tag_ending(self, status: Status) -> None:
        self._outbox.set_tags(ending_tags(self._hold.attempt.ordinal, OUTCOME_OF[status]))

    def _report_lost(self) -> None:
        self.lost = self._outbox.journal.lost()
        if self.lost:
            log.error(
                "%d records (metric points, tags or files) are lost: neither the tracking server nor this disk accepted them. "
                "A resume restores the points that its checkpoint carries.",
                self.lost,
            )

    def _release(self) -> None:
        self._hold.lease.close()
        self._outbox.close()
        self._hold.release()

    def _set_status(self, status: Status, seconds: float) -> bool:
        """Set the status, with a timeout for a silent server."""
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
        ordinal, ended = self._hold.attempt.ordinal, OUTCOME_OF[status]
        try:
            if not self._hold.lease.holds(certainly=True):
                return False
            self._run.delete_duplicates()
            server.set_tag(run_id, f"{ENDED_PREFIX}{ordinal}", ended)
            if not conclude(server, run_id, ordinal, ended):
                self._hold.lease.overtaken.set()
                return False
            # A checkpoint of an earlier attempt that is only on a host is outdated or uploaded by now.
            if not self._only_local:
                forget_only_local(server, run_id, server.run(run_id).data.tags)
        except MltrainError as error:
            log.warning("The run's status could not be set: %s", error)
            return False
        return True

    def _forget_heartbeat(self) -> None:
        """Remove the heartbeat's tag; it does no harm if that fails."""
        self._hold.lease.close()
        with suppress(MltrainError):
            self._server.once.delete_tag(self._run.id, HEARTBEAT_TAG)
