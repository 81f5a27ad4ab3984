"""Holding a run: renewing the lease, and noticing that somebody else has taken it over."""

import logging
import threading
import time
from typing import Any

from mltrain.errors import MltrainError
from mltrain.tracking.attempts import HEARTBEAT_TAG, last_attempt
from mltrain.tracking.server import Server

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0
_TICK_SECONDS = 0.5
_ASLEEP_SECONDS = 3.0
_ENDED = ("FINISHED", "FAILED", "KILLED")


class Lease:
    """The hold of one attempt on a run.

    A process that was stopped for a while may wake up to find its run taken over. A thread of the lease ticks; where the
    ticks have a gap, nothing is known any more until the server has been asked again.

    Args:
        server: where the run is.
        ordinal: of this attempt; a higher one means that it is overtaken.
    """

    def __init__(self, server: Server, ordinal: int) -> None:
        self.overtaken = threading.Event()
        self.gone: str | None = None
        """What has happened to the run, where somebody deleted it."""
        self._server = server
        self._ordinal = ordinal
        self._run_id: str | None = None
        self._beats = 0
        self._confirmed = time.monotonic()
        self._beat = 0.0
        self._tick = time.monotonic()
        self._in_doubt = False
        self._closed = threading.Event()
        self._asking = threading.Lock()
        threading.Thread(target=self._watch, name="mltrain-lease", daemon=True).start()

    def begin(self, run_id: str) -> None:
        """The run exists, and this attempt holds it."""
        self._confirmed = time.monotonic()
        self._run_id = run_id

    def follow(self, ordinal: int) -> None:
        """The run goes on under a later attempt of this process."""
        self._ordinal = ordinal

    def keep(self) -> bool:
        """Renew the lease when it is time to; return whether this attempt holds the run.

        Raises:
            TrackingError: the server does not answer.
        """
        now = time.monotonic()
        if not self.overtaken.is_set() and (self._doubtful() or now - self._confirmed > HEARTBEAT_SECONDS):
            self._confirm()
        if not self.overtaken.is_set() and self._run_id is not None and now - self._beat > HEARTBEAT_SECONDS:
            self._beat = now
            self._beats += 1
            beat = f"{self._ordinal}.{self._beats}"
            if self.gone is None:
                self._server.call(self._server.client.set_tag, self._run_id, HEARTBEAT_TAG, beat)
        return not self.overtaken.is_set()

    def holds(self, *, certainly: bool = False) -> bool:
        """Whether this attempt still holds the run; asks the server only where the process seems to have been asleep.

        Args:
            certainly: a server that does not answer then means no.
        """
        if not self.overtaken.is_set() and self._doubtful():
            try:
                self._confirm()
            except MltrainError:
                return not certainly
        return not self.overtaken.is_set()

    def close(self) -> None:
        """Watch no more."""
        self._closed.set()

    def _confirm(self) -> None:
        with self._asking:
            asked = time.monotonic()
            if self._run_id is not None:
                run = self._server.call(self._server.client.get_run, self._run_id)
                if last_attempt(run.data.params) > self._ordinal:
                    self.overtaken.set()
                self._look_after(run)
            self._confirmed, self._in_doubt = asked, False

    def _look_after(self, run: Any) -> None:
        deleted = run.info.lifecycle_stage != "active"
        if deleted and self.gone is None:
            self.gone = (
                f"Run {self._run_id} was deleted. Training goes on, and what it would record is kept on this disk. "
                "Restore the run in the MLflow UI; what waits is sent then, or by: mltrain sync"
            )
        elif not deleted:
            self.gone = None
            if run.info.status in _ENDED and not self._closed.is_set() and not self.overtaken.is_set():
                log.warning("Somebody set the run to %s; it is running, and set to that again.", run.info.status)
                self._server.call(self._server.client.update_run, self._run_id, status="RUNNING")

    def _doubtful(self) -> bool:
        return self._in_doubt or time.monotonic() - self._tick > _ASLEEP_SECONDS

    def _watch(self) -> None:
        while not self._closed.wait(_TICK_SECONDS):
            now = time.monotonic()
            if now - self._tick > _ASLEEP_SECONDS:
                self._in_doubt = True  # before the tick, so that nobody in between believes that all is well
            self._tick = now
