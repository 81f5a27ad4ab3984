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
from typing import Any

from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_when_event_set

from mltrain.errors import RunNotFound, StorageError, TrackingError
from mltrain.tracking.artifacts import Artifacts, discard_sent
from mltrain.tracking.journal import Journal, StoredItem, StoredPoint
from mltrain.tracking.persistence import may_pass
from mltrain.tracking.retry import FullJitter
from mltrain.tracking.server import Refusal, Server

log = logging.getLogger(__name__)

_POINTS_A_BATCH = 1000
_ITEMS_A_BATCH = 100
HEARTBEAT_SECONDS = 5.0


class Sender:
    """Delivers what the journal of a run holds, on a thread of its own.

    Args:
        server: where the run is.
        run_id: the run.
        journal: what to deliver.
        artifacts: where files and images go.
        heartbeat: called every few seconds between deliveries; returns False when this writer has been overtaken,
            after which nothing is sent any more.
    """

    def __init__(
        self, server: Server, run_id: str, journal: Journal, artifacts: Artifacts, heartbeat: Callable[[], bool]
    ) -> None:
        self._server = server
        self._run_id = run_id
        self._journal = journal
        self._artifacts = artifacts
        self._heartbeat = heartbeat
        self._stop = threading.Event()
        self._give_up = threading.Event()
        self.overtaken = threading.Event()
        self.trouble: str | None = None
        """Why the last delivery failed, if it did."""
        self._thread = threading.Thread(target=self._run, name="mltrain-sender", daemon=True)
        self._thread.start()

    def drain(self, seconds: float) -> bool:
        """Deliver what is left for at most so long; return whether everything is delivered."""
        self._journal.flush()
        self._stop.set()
        self._journal.arrived.set()
        self._thread.join(seconds)
        self._give_up.set()
        self._thread.join(2.0)
        return not self._thread.is_alive() and self._journal.unsent() == 0

    def _run(self) -> None:
        beat = 0.0
        while not self.overtaken.is_set():
            stopping = self._stop.is_set()
            try:
                if not stopping and time.monotonic() - beat >= HEARTBEAT_SECONDS:
                    beat = time.monotonic()
                    if not self._heartbeat():
                        self.overtaken.set()
                        return
                sent = self._deliver_once()
                self.trouble = None
            except Exception as error:  # noqa: BLE001 - nothing that happens here may end the thread and lose the rest
                self._note(error)
                sent = False
                self._give_up.wait(HEARTBEAT_SECONDS)
            if self._give_up.is_set() or (stopping and not sent and self.trouble is None):
                return
            if not sent and not stopping:
                self._journal.arrived.wait(HEARTBEAT_SECONDS)
                self._journal.arrived.clear()

    def _deliver_once(self) -> bool:
        """Deliver one batch of each kind; return whether there was anything."""
        points = self._journal.unsent_points(_POINTS_A_BATCH)
        if points:
            self._deliver(points, self._send_points)
        items = self._journal.unsent_items(_ITEMS_A_BATCH)
        for kind, send in (("param", self._send_params), ("tag", self._send_tags)):
            batch = [item for item in items if item.kind == kind]
            if batch:
                self._deliver(batch, send)
        for item in items:
            if item.kind == "file":
                self._deliver([item], self._send_file, tries=1)
            elif item.kind == "image":
                self._deliver([item], self._send_image, tries=1)
        return bool(points or items)

    def _deliver(self, batch: Sequence[Any], send: Callable[[Sequence[Any]], None], *, tries: float = math.inf) -> None:
        """Send a batch until it is there; halve it when it is refused for good, and park the one that is refused.

        Files are tried once a round, because the artifact store has been asked for a minute by then, and points must not
        wait for it.
        """
        try:
            Retrying(
                retry=retry_if_exception(_may_pass),
                wait=FullJitter(multiplier=0.5, max=30),
                stop=stop_when_event_set(self._give_up) | stop_after_attempt(tries),  # type: ignore[arg-type] # infinity is meant
                sleep=self._pause,
                before_sleep=lambda state: self._note(state.outcome.exception() if state.outcome else None),
                reraise=True,
            )(send, batch)
        except (Refusal, RunNotFound, StorageError, OSError, ValueError) as error:
            if _may_pass(error):
                raise
            if len(batch) > 1:
                self._deliver(batch[: len(batch) // 2], send)
                self._deliver(batch[len(batch) // 2 :], send)
                return
            entry = batch[0]
            log.warning("%s is kept in the journal only, because it was refused: %s", entry.key, error)
            self._journal.park(batch)
            return
        self._journal.mark_sent(batch)

    def _send_points(self, points: Sequence[StoredPoint]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(point.key, point.value, point.timestamp, point.step) for point in points]
        self._server.call(self._server.client.log_batch, self._run_id, metrics=metrics)

    def _send_params(self, items: Sequence[StoredItem]) -> None:
        from mlflow.entities import Param

        self._server.call(
            self._server.client.log_batch, self._run_id, params=[Param(item.key, item.value) for item in items]
        )

    def _send_tags(self, items: Sequence[StoredItem]) -> None:
        from mlflow.entities import RunTag

        latest = {item.key: item.value for item in items}
        self._server.call(
            self._server.client.log_batch, self._run_id, tags=[RunTag(key, value) for key, value in latest.items()]
        )

    def _send_file(self, items: Sequence[StoredItem]) -> None:
        for item in items:
            self._artifacts.upload(Path(item.value), item.key)

    def _send_image(self, items: Sequence[StoredItem]) -> None:
        for item in items:
            for path, folder in json.loads(item.value)["files"]:
                if Path(path).exists():  # else an earlier try got this far
                    self._artifacts.upload(Path(path), folder)
                    discard_sent(Path(path))

    def _pause(self, seconds: float) -> None:
        self._give_up.wait(seconds)

    def _note(self, error: BaseException | None) -> None:
        message = str(error)
        if self.trouble != message:
            log.warning("Nothing is lost, but it has to wait on this disk: %s", message)
        self.trouble = message


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, Refusal):
        return not error.permanent
    if isinstance(error, StorageError):
        return error.__cause__ is None or may_pass(error.__cause__)
    return isinstance(error, TrackingError)
