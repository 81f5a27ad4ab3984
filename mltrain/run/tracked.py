"""A run being written: hold, outbox, record and ending.

:mod:`mltrain.run.opening` creates, adopts and resumes runs.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock

from mltrain.checkpoint.manifest import CheckpointId, Manifest
from mltrain.checkpoint.pruner import Removals
from mltrain.compat.private import latest_points
from mltrain.delivery.creation import RunIdentity
from mltrain.delivery.journal import Journal
from mltrain.delivery.outbox import Outbox
from mltrain.delivery.system_metrics import SYSTEM_KEYS, SYSTEM_SECONDS
from mltrain.errors import StorageError
from mltrain.ownership.attempts import Attempt, holder_tags
from mltrain.ownership.lease import Hold
from mltrain.run.ending import Ending, Opened
from mltrain.run.record import Record
from mltrain.tracking import registry
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.tags import (
    DAMAGED_PREFIX,
    DROPPED_PREFIX,
    LATEST_TAG,
    REMOVED_TAG,
    RESUMED_FROM_TAG,
    REWOUND_PREFIX,
    best_tags,
    pins_of,
)

log = logging.getLogger(__name__)


class TrackedRun:
    """A run that this process writes to.

    Functions of :mod:`mltrain.run.opening` open it.

    Checkpoint managers and trainers call the methods of the outbox, the record and the ending on it, under the same names.

    Args:
        server: tracking server that has the run.
        attempts: all attempts up to this process's.
        lock: of the run on this host, acquired.
        run: MLflow's description of the run, or its creation, which goes on in the background.
        opened: how the run was opened.

    Attributes:
        identity: its id, name, artifacts and folder.
        hold: the right of this process to be the only writer.
        outbox: buffers and delivers records.
        record: writes configuration, parameters, attempts and data.
        ending: closes the run.
    """

    def __init__(
        self,
        server: TrackingClient,
        attempts: list[Attempt],
        lock: filelock.BaseFileLock,
        run: Any,
        opened: Opened | None = None,
    ) -> None:
        opened, ordinal = opened or Opened(), attempts[-1].ordinal
        self.server = server
        self.identity = identity = RunIdentity(server, run)
        self.artifacts, self.home = identity.artifacts, identity.home
        self._removals, self._launched = Removals(self.artifacts), opened.launcher is not None
        # After a takeover on the same host the previous holder may still have the journal open, so this one is new.
        journal = Journal(
            self.home / ("journal.sqlite" if lock.is_locked else f"journal-a{ordinal:02d}.sqlite"), ordinal
        )
        self.hold = hold = Hold(server, attempts, lock)  # starts threads, so after all that a failing disk can stop
        identity.when_known(lambda: hold.lease.begin(identity.id))
        self.outbox = outbox = Outbox(server, identity, journal, hold.lease, opened.age)
        self.record = record = Record(identity, hold, outbox)
        self.ending = ending = Ending(server, identity, hold, outbox, record, opened)
        self.when_known, self.holds, self.require_hold = identity.when_known, hold.lease.holds, hold.require
        self.log_pictures, self.log_epoch = outbox.media.log_pictures, outbox.media.log_epoch
        self.log_metrics, self.set_tag, self.log_file = outbox.log_metrics, outbox.set_tag, outbox.log_file
        self.pending, self.deliver_pending = outbox.pending, outbox.deliver_pending
        self.write_json, self.mark_only_local = record.write_json, ending.mark_only_local
        self.close, self.detach, self.withdraw = ending.close, ending.detach, ending.withdraw

    @property
    def id(self) -> str:
        """Id of the run; until it is created, its provisional id."""
        return self.identity.id

    @property
    def known(self) -> bool:
        """Whether this process knows that the run is created."""
        return self.identity.known

    @property
    def staging(self) -> Path:
        """Where checkpoints are staged."""
        return self.identity.staging

    @property
    def attempt(self) -> Attempt:
        """The current attempt of this process."""
        return self.hold.attempt

    @property
    def ordinal(self) -> int:
        """The ordinal of the current attempt."""
        return self.hold.attempt.ordinal

    @property
    def code(self) -> Mapping[str, str]:
        """The fingerprint of the code that runs."""
        return self.hold.attempt.code

    @property
    def overtaken(self) -> bool:
        """Whether another process has taken the run over."""
        return self.hold.overtaken

    @property
    def trouble(self) -> str | None:
        """Why the last delivery failed. ``None`` if it succeeded."""
        return self.outbox.sender.trouble

    @property
    def announced(self) -> str | None:
        """Name of the newest commit in the run's tags. ``None`` before the first."""
        return self.server.run(self.id).data.tags.get(LATEST_TAG) if self.known else None

    def announce_latest(self, checkpoint: str) -> None:
        """Record the name of the newest commit."""
        self.set_tag(LATEST_TAG, checkpoint)

    def announce_best(self, best: Manifest) -> None:
        """Record the best checkpoint and its metrics."""
        self.outbox.set_tags(best_tags(best))

    def report_damaged(self, checkpoint: str, what: str) -> None:
        """Record that a checkpoint is damaged, and how."""
        self.set_tag(f"{DAMAGED_PREFIX}{checkpoint}", what)

    def report_dropped(self, checkpoint: str, rule: str) -> None:
        """Record the rule that dropped a checkpoint before its upload."""
        self.set_tag(f"{DROPPED_PREFIX}{checkpoint}", rule)

    def record_origin(self, checkpoint: CheckpointId | None) -> None:
        """Record from which checkpoint this attempt trains.

        A first attempt records it when it ends. Nothing is recorded twice, nor if another process has taken the run over: its
        attempt is on record.
        """
        if self.record.begun or (self.ordinal == 1 and checkpoint is None) or not self.holds():
            return
        if checkpoint is not None:
            self.attempt.resumed_from = checkpoint.name
            self.set_tag(RESUMED_FROM_TAG, checkpoint.name)
        try:
            self.record.attempt(wait=False)
        except StorageError as error:
            log.warning("The beginning of this attempt could not be recorded in attempts.json: %s", error)

    def begin_attempt(self, resumed_from: CheckpointId | None) -> None:
        """Begin the next attempt, after a rollback by this process.

        Raises:
            RunHeld: another process has just claimed it.
            TrackingError: the server does not answer.
        """
        ordinal = self.hold.begin_attempt(self.id, resumed_from.name if resumed_from is not None else None).ordinal
        self.outbox.journal.attempt = ordinal
        step = str(resumed_from.step if resumed_from is not None else 0)
        self.outbox.set_tags({**holder_tags(ordinal), f"{REWOUND_PREFIX}{ordinal}": step})
        self.record.attempt()

    def record_start(self, config: Mapping[str, Any], parameters: Mapping[str, str], project: str) -> None:
        """Record configuration, parameters and project, once, before the first step; see :meth:`Record.start`."""
        held = self.server.run(self.id).data.params if self._launched else {}
        self.record.start(config, parameters, project, held)

    def record_parameters(self, parameters: Mapping[str, str]) -> None:
        """Record the parameters that the run does not have yet.

        Raises:
            TrackingError: the server does not answer.
        """
        if parameters:
            self.record.parameters(parameters, self.server.run(self.id).data.params if self.known else {})

    def continue_exactly_after(self, step: int) -> None:
        """Skip points beyond ``step`` that the server already has; see :meth:`Outbox.continue_exactly_after`."""
        self.outbox.continue_exactly_after(step, [attempt.ordinal for attempt in self.hold.attempts[:-1]])

    def pins(self) -> dict[str, str]:
        """Return the names of pinned checkpoints with the reasons."""
        return pins_of(self.server.run(self.id))

    def in_use(self) -> set[str]:
        """Return the names of checkpoints with registered model versions."""
        return registry.in_use(self.server, self.id, self._made_models())

    def remove_models(self, checkpoint: str) -> None:
        """Remove the LoggedModels that were made from a checkpoint."""
        registry.remove_models(self.server, self._made_models(), checkpoint)

    def _made_models(self) -> list[registry.MadeModel]:
        return registry.made_models(self.server, self.id, self.identity.experiment_id)

    def record_removals(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append to the artifact ``retention.jsonl``, and tag its totals."""
        self.set_tag(REMOVED_TAG, self._removals.append(records))


def age_of(run: Any) -> int:
    """Return the age of a run in seconds.

    It is larger than the step of any recorded system metric.
    """
    recorded = [int(latest.step) for latest in latest_points(run) if latest.key in SYSTEM_KEYS]
    by_clock = (time.time_ns() // 1_000_000 - (run.info.start_time or 0)) // 1000
    return max(0, by_clock, *(step + int(SYSTEM_SECONDS) for step in recorded))
