"""Closes a manager: awaits commits and records the run's status."""

import atexit
import logging
import sys
import threading
import time
from collections.abc import Callable
from functools import cache

from mltrain.checkpoint.committer import Committer
from mltrain.checkpoint.ports import Run, Status
from mltrain.errors import MltrainError, NonFiniteLoss

log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0
"""Time between two tries of a failed upload."""

_POLL_SECONDS = 0.2


def await_store(
    committer: Committer,
    deadline: float,
    hurry: threading.Event,
    in_trouble: Callable[[], bool] = lambda: False,
    retry_seconds: float = RETRY_SECONDS,
) -> None:
    """Wait until every saved checkpoint is committed.

    The deadline applies only while there is trouble, the store refuses, or nothing is under way.

    Args:
        committer: runs the commits.
        deadline: on the monotonic clock, in seconds.
        hurry: ends the wait for the store; a checkpoint that is complete on this disk can be resumed from.
        in_trouble: returns whether the training was stopped or the tracking server is unavailable.
        retry_seconds: time between two tries of a failed upload.
    """
    tried = time.monotonic()
    while not committer.wait(_POLL_SECONDS) and not hurry.wait(_POLL_SECONDS if committer.idle else 0.0):
        now = time.monotonic()
        if (in_trouble() or committer.idle or committer.refused) and now > deadline:
            return
        if committer.idle and now - tried > retry_seconds:
            tried = now
            committer.retry()
    committer.settle(max(0.0, deadline - time.monotonic()))


@cache
def _exit_began() -> float:
    """Return when the first manager began to wait at exit.

    The managers of a process share one grace period, for the creation of their runs and for their records. The time is on
    the monotonic clock.
    """
    return time.monotonic()


_interrupted = threading.Event()
"""Set by Ctrl+C during that wait, which ends it for all managers of the process."""


class Closing:
    """Closes a manager's run once, by interpreter exit at latest.

    Args:
        run: is released.
        committer: runs the commits.
        exit_grace: seconds for which an exiting interpreter waits for the runs of all its managers.
        retry_seconds: time between two tries of a failed upload.
    """

    def __init__(self, run: Run, committer: Committer, exit_grace: float, retry_seconds: float = RETRY_SECONDS) -> None:
        self._run = run
        self._committer = committer
        self._exit_grace = exit_grace
        self._retry_seconds = retry_seconds
        self._closed = False
        self._created = threading.Event()
        run.when_known(self._created.set)  # after the committer has adopted the run's id
        self._raised_before = getattr(sys, "last_value", None)
        atexit.register(self._process_ends)

    def close(self, status: Status, grace: float | None) -> None:
        """Wait for the commits and release the run.

        A forked process does neither. See :meth:`mltrain.CheckpointManager.close`.

        Args:
            status: of the run if it was opened for the manager.
            grace: seconds to wait for a store that refuses. If ``None``, only writes to this disk are waited for.
        """
        if self._closed or self._committer.is_forked:
            return
        self._closed = True
        if grace is not None:
            deadline = time.monotonic() + grace
            await_store(self._committer, deadline, threading.Event(), retry_seconds=self._retry_seconds)
        self._committer.settle()
        self._release(status)

    def abandon(self) -> None:
        """Stop the background threads without waiting.

        Checkpoints that are complete in staging stay there.
        """
        atexit.unregister(self._process_ends)
        self._committer.close()

    def _release(self, status: Status, grace: float | None = None) -> None:
        """Release the run, then raise the newest checkpoint's failure."""
        failure, only_local = self._committer.failure, self._committer.only_local
        self.abandon()
        if only_local is not None:
            self._run.mark_only_local(only_local.name, status)
            log.warning(
                "The newest checkpoint, %s, is on this machine only: it could not be uploaded to the artifact store. Try: "
                "mltrain sync",
                only_local.name,
            )
        if status == "FINISHED" and isinstance(failure, NonFiniteLoss):
            status = "FAILED"
        elif status == "FINISHED" and (failure is not None or only_local is not None):
            status = "KILLED"
        self._run.detach(status, grace)
        if failure is not None:
            raise failure

    def _process_ends(self) -> None:
        """Close a run that is still open at interpreter exit.

        The interpreter has waited for the threads before.
        """
        if self._committer.is_forked:
            return
        raised = getattr(sys, "last_value", None)  # set if an exception ended the script, not by sys.exit()
        staged = self._committer.newest_staged
        if raised is not None and raised is not self._raised_before:
            status: Status = "KILLED" if isinstance(raised, KeyboardInterrupt) else "FAILED"
        elif staged is not None and staged.kind == "interrupted":
            status = "KILLED"
        else:
            status = "FINISHED"
        try:
            self._release(status, self._grace_after_upload(_exit_began() + self._exit_grace))
        except MltrainError as error:
            log.error("%s", error)  # also recorded in the run's status; no caller is left to catch it

    def _grace_after_upload(self, deadline: float) -> float:
        """Upload the newest checkpoint once its run is created.

        A store that refused the checkpoint is not tried again.

        Args:
            deadline: of all managers of the process, on the monotonic clock, in seconds.

        Returns:
            The seconds left to deliver records.
        """
        left = max(0.0, deadline - time.monotonic())
        if not self._closed and self._committer.only_local is not None:
            try:
                if _interrupted.is_set() or not self._created.wait(left):
                    return 0.0
                left = max(0.0, deadline - time.monotonic())  # now, because the upload has no deadline
                if not self._committer.refused:
                    self._committer.retry()
            except KeyboardInterrupt:
                _interrupted.set()
                return 0.0
        return left
