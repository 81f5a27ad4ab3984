"""The end of a manager: wait for what was saved, let go of the run, and say in its status what became of it."""

import atexit
import logging
import sys
import threading
import time
from collections.abc import Callable

from mltrain.checkpoint.committer import Committer
from mltrain.checkpoint.ports import Run, Status
from mltrain.errors import MltrainError, NonFiniteLoss

log = logging.getLogger(__name__)

_LOOK_SECONDS, _RETRY_SECONDS = 0.2, 2.0


def await_store(
    committer: Committer, deadline: float, hurry: threading.Event, in_trouble: Callable[[], bool] = lambda: False
) -> None:
    """Wait until everything saved is committed; once there is trouble or the store refuses, no longer than until the deadline.

    Args:
        committer: has the commits under way.
        deadline: on the monotonic clock, in seconds.
        hurry: ends the wait for the store; what is complete on this disk can be resumed from.
        in_trouble: whether the training was stopped, or the tracking server is away.
    """
    tried = time.monotonic()
    while not committer.wait(_LOOK_SECONDS) and not hurry.is_set():
        now = time.monotonic()
        if (in_trouble() or committer.idle or committer.refused) and now > deadline:
            return
        if committer.idle and now - tried > _RETRY_SECONDS:
            tried = now
            committer.retry()
    committer.settle(max(0.0, deadline - time.monotonic()))


class Closing:
    """Closes the run of a manager once: when it is asked to, or else when the interpreter ends.

    Args:
        run: is let go of.
        committer: has the commits under way.
    """

    def __init__(self, run: Run, committer: Committer) -> None:
        self._run = run
        self._committer = committer
        self._closed = False
        self._raised_before = getattr(sys, "last_value", None)
        atexit.register(self._process_ends)

    def close(self, status: Status, grace: float | None) -> None:
        """Wait for the commits and let go of the run; see :meth:`mltrain.CheckpointManager.close`.

        Args:
            status: of the run, where it was opened for the manager.
            grace: seconds to wait at least for a store that refuses. If ``None``, only this disk is waited for.
        """
        if self._closed:
            return
        self._closed = True
        if grace is not None:
            await_store(self._committer, time.monotonic() + grace, threading.Event())
        self._committer.settle()
        self._let_go(status)

    def abandon(self) -> None:
        """Stop the background threads without waiting; what is complete in staging stays there."""
        atexit.unregister(self._process_ends)
        self._committer.close()

    def _let_go(self, status: Status) -> None:
        """Close the run as it is now, and raise why the newest checkpoint was not kept, if so."""
        failure, only_local = self._committer.failure, self._committer.only_local
        self.abandon()
        if only_local is not None:
            self._run.mark_only_local(only_local.name, status)
            log.warning(
                "The newest checkpoint, %s, is on this machine only: the artifact store did not take it. Send it with: "
                "mltrain sync",
                only_local.name,
            )
        if status == "FINISHED" and isinstance(failure, NonFiniteLoss):
            status = "FAILED"
        elif status == "FINISHED" and (failure is not None or only_local is not None):
            status = "KILLED"
        self._run.detach(status)
        if failure is not None:
            raise failure

    def _process_ends(self) -> None:
        """Close the run where nobody has. The interpreter has waited for the threads."""
        raised = getattr(sys, "last_value", None)  # set where an exception ended the script, and not by sys.exit()
        staged = self._committer.newest_staged
        if raised is not None and raised is not self._raised_before:
            status: Status = "KILLED" if isinstance(raised, KeyboardInterrupt) else "FAILED"
        elif staged is not None and staged.kind == "interrupted":
            status = "KILLED"
        else:
            status = "FINISHED"
        try:
            self._let_go(status)
        except MltrainError as error:
            log.error("%s", error)  # the status of the run says it as well; nobody could catch it here
