"""Delivers the journal to the tracking server: in batches, with the original timestamps, again and again until it is there.

MLflow collapses a point that comes twice with the same timestamp, so a batch whose answer was lost is simply repeated.
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
from mltrain.delivery.sending_process import LOOK_SECONDS, POINTS_A_BATCH, SenderProcess, send_points
from mltrain.errors import RunHeld, RunNotFound, StorageError, TrackingError
from mltrain.ownership.lease import HEARTBEAT_SECONDS
from mltrain.store.artifacts import Artifacts
from mltrain.store.removal import discard_sent
from mltrain.store.retry import FullJitter, is_transient
from mltrain.tracking.client import Backoff, Refusal, TrackingClient

log = logging.getLogger(__name__)

_ITEMS_A_BATCH = 100
_SAY_SECONDS = 60.0


class Destination(Protocol):
    """The run that a sender delivers to."""

    @property
    def artifacts(self) -> Artifacts:
        """Where files and pictures go."""
        ...

    def created(self) -> str:
        """Return the run's id, and create the run if need be; raise while that is not possible."""
        ...


class Fence(Protocol):
    """Tells whether this process may still write to the run; :class:`mltrain.ownership.lease.Lease` is one."""

    gone: str | None
    """What has happened to the run, where somebody deleted it."""

    def keep(self) -> bool:
        """Return whether this process holds the run."""
        ...


class Sender:
    """Delivers what the journal of a run holds, on a thread of its own.

    Args:
        server: where the run is.
        run: which run.
        journal: what to deliver.
        fence: asked before every request. Once it says no, nothing is sent any more.
        process: sends points where they come fast. If ``None``, they are always sent from here.
        held_seconds: for how long nothing of a kind is sent that the server does not let this user send.
        held_at_the_end_seconds: the same once the sender drains.
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
        """Until when nothing of a kind is sent."""
        self._between = FullJitter(multiplier=0.5, max=HEARTBEAT_SECONDS)
        self._said = -math.inf
        self.trouble: str | None = None
        """Why the last delivery failed, if it did."""
        self._thread = threading.Thread(target=self._work, name="mltrain-sender", daemon=True)
        self._thread.start()

    def drain(self, seconds: float) -> bool:
        """Deliver what is left for at most so long; return whether everything is delivered.

        What the server refused because of who sends it, or because the run was deleted, is tried again until then.
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
        """Try at once what was held back: why it was refused may be over."""
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
            except Exception as error:  # noqa: BLE001 - nothing that happens here may end the thread and lose the rest
                self._note(error)
                failures += 1
                self._give_up.wait(self._between.seconds(failures))
                continue
            if not sent and stopping:
                if not self._held:
                    return
                self._give_up.wait(LOOK_SECONDS)
            elif not sent:
                starting = self._process is not None and self._process.starting
                self._journal.arrived.wait(LOOK_SECONDS if starting else HEARTBEAT_SECONDS)
                self._journal.arrived.clear()

    def _require_hold(self) -> None:
        held, gone = self._fence.keep(), self._fence.gone
        if gone is not None and self.trouble != gone:
            log.warning("%s", gone)
            self.trouble = gone
        if gone is None and self._gone is not None:
            log.warning("Run %s was restored; what waited for it is sent.", self._run_id)
            self.release()
        self._gone = gone
        if not held:
            raise RunHeld("Another process has taken the run over.")

    def _deliver_once(self) -> bool:
        """Deliver one batch of each kind; return whether anything was delivered or set aside."""
        sent = False
        if self._may("point"):
            sent |= self._deliver_points()
        items = self._journal.unsent_items(_ITEMS_A_BATCH)
        for kind, send in (("param", self._send_params), ("tag", self._send_tags)):
            batch = [item for item in items if item.kind == kind]
            if batch and self._may(kind):
                sent |= self._deliver(kind, batch, send)
        for item in items:
            if item.kind not in ("param", "tag") and self._may(item.kind):
                sent |= self._deliver(item.kind, [item], self._sends[item.kind], tries=1)
        return sent

    def _deliver_points(self) -> bool:
        if self._process is not None:
            waiting = self._journal.unsent_points_up_to(POINTS_A_BATCH)
            sent_by = self._process.deliver(self._run_id, waiting) if waiting else "otherwise"
            if sent_by == "sent":
                return True
            if sent_by == "later" and not self._stop.is_set():
                return False
        points = self._journal.unsent_points(POINTS_A_BATCH)
        return bool(points) and self._deliver("point", points, self._send_points)

    def _may(self, kind: str) -> bool:
        if self._held.get(kind, 0.0) > time.monotonic():
            return False
        self._held.pop(kind, None)
        return True

    def _deliver(
        self, kind: str, batch: Sequence[Any], send: Callable[[Sequence[Any]], None], *, tries: float = math.inf
    ) -> bool:
        """Send a batch until it is there; halve it when it is refused for good, and park the one that is refused.

        If the server refuses the sender instead of the batch, or the run is gone, all batches of its kind wait.
        Files are tried once a round, because the artifact store has been asked for a minute by then, and points must not wait.

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
            if self._is_barred(error):
                seconds = self._held_at_the_end_seconds if self._stop.is_set() else self._held_seconds
                self._held[kind] = time.monotonic() + seconds
                self._note(error)
                return False
            if len(batch) > 1:
                self._deliver(kind, batch[: len(batch) // 2], send)
                self._deliver(kind, batch[len(batch) // 2 :], send)
                return True
            entry = batch[0]
            log.warning("%s is kept in the journal only, because it was refused: %s", entry.key, error)
            self._journal.park(batch)
            return True
        self._journal.mark_sent(batch)
        return True

    def _is_barred(self, error: BaseException) -> bool:
        """Whether a refusal has nothing to do with what was sent."""
        if isinstance(error, RunNotFound) or (isinstance(error, Refusal) and error.denied):
            return True
        if not isinstance(error, Refusal):
            return False
        try:
            run = self._server.get_run(self._run_id)
        except TrackingError:
            return True
        except RunNotFound:
            return True
        return bool(run.info.lifecycle_stage != "active")

    @property
    def _sends(self) -> dict[str, Callable[[Sequence[Any]], None]]:
        return {"file": self._send_file, "image": self._send_image, "inputs": self._send_inputs}

    def _send_points(self, points: Sequence[StoredPoint]) -> None:
        send_points(self._server, self._run_id, points)

    def _send_params(self, items: Sequence[StoredItem]) -> None:
        self._server.log_params(self._run_id, [(item.key, item.value) for item in items])

    def _send_tags(self, items: Sequence[StoredItem]) -> None:
        self._server.set_tags(self._run_id, {item.key: item.value for item in items})

    def _send_inputs(self, items: Sequence[StoredItem]) -> None:
        for item in items:
            self._server.log_datasets(self._run_id, json.loads(item.value))

    def _send_file(self, items: Sequence[StoredItem]) -> None:
        for item in items:
            self._run.artifacts.upload(Path(item.value), item.key)

    def _send_image(self, items: Sequence[StoredItem]) -> None:
        for item in items:
            for path, folder in json.loads(item.value)["files"]:
                if Path(path).exists():  # else an earlier try got this far
                    self._run.artifacts.upload(Path(path), folder)
                    discard_sent(Path(path))

    def _pause(self, seconds: float) -> None:
        self._give_up.wait(seconds)

    def _note(self, error: BaseException | None) -> None:
        message = str(error)
        now = time.monotonic()
        # An outage has many messages. One of them is news; so is one that no waiting will help.
        lasting = isinstance(error, Refusal) and error.permanent and self.trouble != message
        if self.trouble is None or lasting or now - self._said > _SAY_SECONDS:
            self._said = now
            log.warning(
                "The tracking store is not available; what is recorded waits on this disk until it is. %s", message
            )
        self.trouble = message


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, Refusal):
        return not error.permanent
    if isinstance(error, StorageError):
        return error.__cause__ is None or is_transient(error.__cause__)
    return isinstance(error, TrackingError)
