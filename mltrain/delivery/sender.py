"""Delivers the journal in batches, with original timestamps and retries.

MLflow stores a point that comes twice with the same timestamp once, so a batch whose answer was lost is simply sent again.
"""

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_when_event_set

from mltrain.delivery.journal import Journal, StoredItem, StoredPoint
from mltrain.delivery.sending_process import POINTS_A_BATCH, POLL_SECONDS, SenderProcess, send_points
from mltrain.errors import RunHeld, RunNotFound, StorageError, TrackingError
from mltrain.ownership.lease import HEARTBEAT_SECONDS
from mltrain.store.artifacts import Artifacts
from mltrain.store.removal import discard_sent
from mltrain.store.retry import FullJitter, is_transient
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.connection import Backoff, Refusal

log = logging.getLogger(__name__)

_ITEMS_A_BATCH = 100
_WARN_SECONDS = 60.0


class Destination(Protocol):
    """The run that a sender delivers to."""

    @property
    def artifacts(self) -> Artifacts:
        """The artifact store for files and pictures."""
        ...

    def created(self) -> str:
        """Return the run's id; create the run first if necessary, and raise if that fails."""
        ...


class Fence(Protocol):
    """Whether this process may still write to the run; :class:`mltrain.ownership.lease.Lease` is one."""

    gone: str | None
    """Message that somebody deleted the run. If ``None``, nobody did."""

    def keep(self) -> bool:
        """Return whether this process holds the run."""
        ...


class Sender:
    """Delivers the journal of a run on a thread.

    Args:
        server: tracking server that gets the run.
        run: destination of the records.
        journal: with the records.
        fence: asked before every request; once the run is lost, nothing more is sent.
        process: sends points when they arrive fast. If ``None``, this process always sends them.
        held_seconds: pause for a kind of record that the server does not let this user send.
        held_at_the_end_seconds: the same pause while the sender drains.
    """

    def __init__(
        self,
        server: TrackingClient,
        run: Destination,
        journal: Journal,
        fence: Fence,
        process: SenderProcess | None = None,
        *,
        held_seconds: float = 60.0,
        held_at_the_end_seconds: float = 5.0,
    ) -> None:
        self._server = server.once  # the sender retries by itself
        self._run = run
        self._run_id = ""
        self._journal = journal
        self._fence = fence
        self._gone: str | None = None
        self._process = process
        self._stop = threading.Event()
        self._give_up = threading.Event()
        self._held_seconds, self._held_at_the_end_seconds = held_seconds, held_at_the_end_seconds
        self._held: dict[str, float] = {}
        """For each paused kind of record the time at which it is tried again."""
        self._between = FullJitter(multiplier=0.5, max=HEARTBEAT_SECONDS)
        self._warned_at = -math.inf
        self.trouble: str | None = None
        """Why the last delivery failed. ``None`` if it succeeded."""
        self._thread = threading.Thread(target=self._work, name="mltrain-sender", daemon=True)
        self._thread.start()

    def drain(self, seconds: float) -> bool:
        """Deliver the backlog within a timeout; return whether it succeeded.

        Paused kinds of records, and those of a deleted run, are tried again until then.
        """
        deadline = time.monotonic() + seconds
        self._journal.flush()
        self.release()
        self._stop.set()
        self._journal.arrived.set()
        self._thread.join(max(0.0, deadline - time.monotonic()))
        self._give_up.set()
        if self._process is not None:
            self._process.close()
        self._thread.join(2.0)
        return not self._thread.is_alive() and self._journal.unsent() == 0

    def release(self) -> None:
        """Try paused kinds of records again at once."""
        self._held = {}

    def _work(self) -> None:
        failures = 0
        while not self._give_up.is_set():
            stopping = self._stop.is_set()
            try:
                self._run_id = self._run_id or self._run.created()
                self._require_hold()
                sent = self._deliver_once()
                failures = 0
                if not self._held:
                    self.trouble = None
            except RunHeld:
                return
            except Exception as error:  # noqa: BLE001 - no error may end the thread and lose the backlog
                self._note(error)
                failures += 1
                self._give_up.wait(self._between.seconds(failures))
                continue
            if not sent and stopping:
                if not self._held:
                    return
                self._give_up.wait(POLL_SECONDS)
            elif not sent:
                starting = self._process is not None and self._process.starting
                self._journal.arrived.wait(POLL_SECONDS if starting else HEARTBEAT_SECONDS)
                self._journal.arrived.clear()

    def _require_hold(self) -> None:
        held, gone = self._fence.keep(), self._fence.gone
        if gone is not None and self.trouble != gone:
            log.warning("%s", gone)
            self.trouble = gone
        if gone is None and self._gone is not None:
            log.warning("Run %s was restored; its backlog is sent.", self._run_id)
            self.release()
        self._gone = gone
        if not held:
            raise RunHeld("Another process has taken the run over.")

    def _deliver_once(self) -> bool:
        """Deliver one batch of each kind; return whether anything was delivered or parked."""
        sent = False
        if self._may_send("point"):
            sent |= self._deliver_points()
        items = self._journal.unsent_items(_ITEMS_A_BATCH)
        for kind, send in (("param", self._send_params), ("tag", self._send_tags)):
            batch = [item for item in items if item.kind == kind]
            if batch and self._may_send(kind):
                sent |= self._deliver(kind, batch, send)
        for item in items:
            if item.kind not in ("param", "tag") and self._may_send(item.kind):
                sent |= self._deliver(item.kind, [item], self._send_item, tries=1)
        return sent

    def _deliver_points(self) -> bool:
        if self._process is not None:
            waiting = self._journal.unsent_points_up_to(POINTS_A_BATCH)
            delivery = self._process.deliver(self._run_id, waiting) if waiting else "fallback"
            if delivery == "sent":
                return True
            if delivery == "wait" and not self._stop.is_set():
                return False
        points = self._journal.unsent_points(POINTS_A_BATCH)
        return bool(points) and self._deliver("point", points, self._send_points)

    def _may_send(self, kind: str) -> bool:
        if self._held.get(kind, 0.0) > time.monotonic():
            return False
        self._held.pop(kind, None)
        return True

    def _deliver(
        self, kind: str, batch: Sequence[Any], send: Callable[[Sequence[Any]], None], *, tries: float = math.inf
    ) -> bool:
        """Send a batch with retries.

        A permanently refused batch is bisected, and the refused entry is parked.

        If the server refuses the sender rather than the batch, or the run is deleted, this kind of record is paused. Files
        are tried once a round, because the artifact store has retried for a minute by then, and points must not wait.

        Returns:
            Whether anything was delivered or parked.
        """
        try:
            Retrying(
                retry=retry_if_exception(_may_pass),
                wait=Backoff(multiplier=0.5, max=30),
                stop=stop_when_event_set(self._give_up) | stop_after_attempt(tries),  # type: ignore[arg-type] # infinity is meant
                sleep=self._pause,
                before=lambda _: self._require_hold(),
                before_sleep=lambda state: self._note(state.outcome.exception() if state.outcome else None),
                reraise=True,
            )(send, batch)
        except (Refusal, RunNotFound, StorageError, OSError, ValueError) as error:
            if _may_pass(error):
                raise
            if self._refuses_sender(error):
                seconds = self._held_at_the_end_seconds if self._stop.is_set() else self._held_seconds
                self._held[kind] = time.monotonic() + seconds
                self._note(error)
                return False
            if len(batch) > 1:
                self._deliver(kind, batch[: len(batch) // 2], send)
                self._deliver(kind, batch[len(batch) // 2 :], send)
                return True
            entry = batch[0]
            log.warning("%s stays in the journal, because the server refused it: %s", entry.key, error)
            self._journal.park(batch)
            return True
        self._journal.mark_sent(batch)
        return True

    def _refuses_sender(self, error: BaseException) -> bool:
        """Whether an error concerns sender or run, not the batch."""
        if isinstance(error, RunNotFound) or (isinstance(error, Refusal) and error.denied):
            return True
        if not isinstance(error, Refusal):
            return False
        try:
            run = self._server.get_run(self._run_id)
        except (TrackingError, RunNotFound):
            return True
        return bool(run.info.lifecycle_stage != "active")

    def _send_points(self, points: Sequence[StoredPoint]) -> None:
        send_points(self._server, self._run_id, points)

    def _send_params(self, items: Sequence[StoredItem]) -> None:
        self._server.log_params(self._run_id, [(item.key, item.value) for item in items])

    def _send_tags(self, items: Sequence[StoredItem]) -> None:
        self._server.set_tags(self._run_id, {item.key: item.value for item in items})

    def _send_item(self, items: Sequence[StoredItem]) -> None:
        (item,) = items
        if item.kind == "inputs":
            self._server.log_datasets(self._run_id, json.loads(item.value))
        elif item.kind == "file":
            self._run.artifacts.upload(Path(item.value), item.key)
        else:
            for path, folder in json.loads(item.value)["files"]:
                if Path(path).exists():  # otherwise an earlier try has sent it
                    self._run.artifacts.upload(Path(path), folder)
                    discard_sent(Path(path))

    def _pause(self, seconds: float) -> None:
        self._give_up.wait(seconds)

    def _note(self, error: BaseException | None) -> None:
        message = str(error)
        now = time.monotonic()
        # An outage has many messages: log the first, one a minute, and each new one that no retry can help.
        lasting = isinstance(error, Refusal) and error.permanent and self.trouble != message
        if self.trouble is None or lasting or now - self._warned_at > _WARN_SECONDS:
            self._warned_at = now
            log.warning("Tracking server unavailable; buffering on this disk until it is back. %s", message)
        self.trouble = message


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, Refusal):
        return not error.permanent
    if isinstance(error, StorageError):
        return error.__cause__ is None or is_transient(error.__cause__)
    return isinstance(error, TrackingError)
