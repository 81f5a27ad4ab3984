"""Journal, media and sender of a run's records."""

import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from mltrain.checkpoint.manifest import Point
from mltrain.delivery.creation import RunIdentity
from mltrain.delivery.deduplication import Delivered, delivered_beyond
from mltrain.delivery.journal import Journal
from mltrain.delivery.media import MediaWriter
from mltrain.delivery.sender import Sender
from mltrain.delivery.sending_process import SenderProcess
from mltrain.delivery.system_metrics import SystemMonitor
from mltrain.errors import StorageError, counted
from mltrain.ownership.lease import Lease
from mltrain.redaction import redacted
from mltrain.tracking import names
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.names import Names
from mltrain.tracking.tags import PICTURES_LEFT_OUT_TAG

log = logging.getLogger(__name__)

_MOST_PENDING = 100_000
_MOST_NAMED = 10
_LONGEST_TAG = 5000


class Outbox:
    """Buffers a run's records without waiting, and delivers them.

    Args:
        server: tracking server that gets the run.
        run: the run; the sender creates it if necessary.
        journal: of this attempt, on this host.
        lease: asked before every request.
        age: seconds since the run began, for the steps of the system metrics.

    Attributes:
        journal: of undelivered records.
        media: makes pictures and tables.
        sender: delivers the journal.
    """

    def __init__(self, server: TrackingClient, run: RunIdentity, journal: Journal, lease: Lease, age: int) -> None:
        self._server = server
        self._run = run
        self._age, self._opened_at = age, time.monotonic()
        self._settled_at = -math.inf
        self._warned_of_pending = False
        self._delivered = Delivered()
        self._metric_names = Names("metric", names.key)
        self.journal = journal
        self._early: list[tuple[Mapping[str, float], int, int]] | None = []
        """System metrics from before the first metric of the training, with steps and times; then ``None``."""
        self._recording = threading.Lock()
        self.media = MediaWriter(run.home, journal)
        # A training recomputes the unsent points of earlier attempts, or gets them with its checkpoint. Sending them too would
        # race with reading which points the server has.
        journal.hold_earlier()
        self.sender = Sender(server, run, journal, lease, SenderProcess(journal.path, server.uri))
        self._monitor = SystemMonitor(self._record_system)

    def log_metrics(self, values: Mapping[str, float], step: int, *, compared: bool = True) -> None:
        """Log a step's metric points without waiting for the server.

        Args:
            values: name to value. A name that MLflow does not accept is translated, see :mod:`mltrain.tracking.names`.
            step: optimizer steps done.
            compared: whether a value that was delivered before must be the same now; false for wall-clock values.
        """
        values = self._metric_names.translated(values)
        if self._delivered.points:
            values = self._delivered.new(values, step, compared)
        if values:
            self.journal.log_metrics(values, step, time.time_ns())
        if self._early is not None:
            self._record_early()

    def set_tag(self, key: str, value: str) -> None:
        """Set a tag without waiting for the server."""
        self.journal.log_item("tag", key, redacted(value)[:_LONGEST_TAG])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags without waiting for the server."""
        for key, value in tags.items():
            self.set_tag(key, value)

    def log_file(self, file: Path) -> None:
        """Upload a file without waiting; replace one of its name.

        The file must exist until it is sent.
        """
        self.journal.log_item("file", "", str(file))

    def pending(self, step: int) -> list[Point]:
        """Return unacknowledged metric points up to ``step``, for its checkpoint.

        These are at most the 100,000 oldest; a warning is logged if there are more.
        """
        self.journal.flush()
        try:
            waiting = self.journal.unsent_points(_MOST_PENDING, step)
        except StorageError as error:
            log.warning("The checkpoint at step %d carries no metric points: %s", step, error)
            return []
        if len(waiting) == _MOST_PENDING and not self._warned_of_pending:
            self._warned_of_pending = True
            log.warning(
                "More than %d metric points wait for the tracking server. Checkpoints carry the oldest of them; the rest "
                "is only in %s. Try: resume on this machine, or run mltrain sync on it first.",
                _MOST_PENDING,
                self._run.home,
            )
        return [Point(key=p.key, step=p.step, value=p.value, timestamp=p.timestamp) for p in waiting]

    def deliver_pending(self, points: Sequence[Point]) -> None:
        """Send a checkpoint's points again; MLflow stores each once.

        They keep their original timestamps, by which MLflow recognises them.
        """
        self.journal.add_points((p.key, p.step, p.value, p.timestamp) for p in points)

    def settle(self, seconds: float) -> None:
        """Set how long the previous writer may still write.

        The points of a process whose run was taken over are read after that time.
        """
        self._settled_at = time.monotonic() + seconds

    def continue_exactly_after(self, step: int, earlier_attempts: Sequence[int]) -> None:
        """Skip points beyond ``step`` that the server already has; an exact resume computes the same."""
        time.sleep(max(0.0, self._settled_at - time.monotonic()))
        # This attempt makes the later pictures of earlier attempts again.
        self.journal.drop_beyond(dict.fromkeys(earlier_attempts, step))
        self._delivered = delivered_beyond(self._server, self._server.run(self._run.id), step)
        self.media.skip_delivered(self._run.artifacts, step)

    def stop_recording(self, deadline: float) -> None:
        """Stop system metrics; finish pictures within half the remaining time."""
        self._monitor.close()
        self._record_early()
        unmade = self.media.close(max(0.0, deadline - time.monotonic()) / 2)
        if unmade:
            log.warning(
                "%s not made before the end of the grace period: %s. Try: a larger MLTRAIN_GRACE_SECONDS",
                counted(len(unmade), "picture"),
                ", ".join(unmade[:_MOST_NAMED]) + (", …" if len(unmade) > _MOST_NAMED else ""),
            )
            self.set_tag(PICTURES_LEFT_OUT_TAG, str(len(unmade)))

    def close(self) -> None:
        """Close the journal; ``mltrain sync`` can send the rest of it."""
        self._monitor.close()
        with suppress(StorageError):  # sync does it then
            self.journal.unpark()
        self.journal.close()

    def _record_system(self, metrics: Mapping[str, float]) -> None:
        # By the monotonic clock, so that no two of these points have the same step.
        age = self._age + int(time.monotonic() - self._opened_at)
        with self._recording:
            if self._early is None:
                self.journal.log_metrics(metrics, age, time.time_ns())
            else:
                self._early.append((metrics, age, time.time_ns()))

    def _record_early(self) -> None:
        """Record the first system metrics after the training's first metric.

        MLflow's pages draw the metric that was recorded first.
        """
        with self._recording:
            early, self._early = self._early or [], None
            for metrics, step, when in early:
                self.journal.log_metrics(metrics, step, when)
