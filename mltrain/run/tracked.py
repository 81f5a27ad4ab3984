"""A run that this process writes to: what is recorded of it, and how it ends.

How a run is created, adopted, resumed stands in :mod:`mltrain.run.opening`; who may write in
:mod:`mltrain.ownership.attempts` and :mod:`mltrain.ownership.lease`.
"""

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock

from mltrain.checkpoint.manifest import CheckpointId, Point
from mltrain.checkpoint.ports import Status
from mltrain.compat.private import latest_points
from mltrain.delivery.creation import Registration
from mltrain.delivery.deduplication import Delivered, delivered_beyond
from mltrain.delivery.journal import Journal
from mltrain.delivery.media import Gallery
from mltrain.delivery.sender import Sender
from mltrain.delivery.sending_process import Courier
from mltrain.delivery.system_metrics import SYSTEM_KEYS, SYSTEM_SECONDS, SystemMonitor
from mltrain.errors import MltrainError, RunHeld, StorageError
from mltrain.history import History
from mltrain.ownership import launcher as launchers
from mltrain.ownership.attempts import (
    ATTEMPTS_FILE,
    CONFIG_FILE,
    Attempt,
    claim_attempt,
    conclude,
    ending_tags,
    forget_only_local,
    holder_tags,
    only_local_tags,
    said_of,
)
from mltrain.ownership.launcher import Launcher
from mltrain.ownership.lease import Lease
from mltrain.ownership.run_folder import grace_seconds, home_of, record_address, remember_home
from mltrain.redaction import redacted, redacted_tree
from mltrain.run.removal_log import Removals
from mltrain.store.artifacts import Artifacts
from mltrain.store.deferred import LateArtifacts
from mltrain.store.durable import replace_file
from mltrain.store.names import STAGING
from mltrain.store.opening import open_artifacts
from mltrain.store.retry import may_pass
from mltrain.tracking import names, registry
from mltrain.tracking.client import TrackingClient, tags_of
from mltrain.tracking.names import Names
from mltrain.tracking.tags import (
    CHANGED_PREFIX,
    ENDED_PREFIX,
    LATEST_TAG,
    PICTURES_LEFT_OUT_TAG,
    PIN_PREFIX,
    POINTS_LEFT_OUT_TAG,
    PROJECT_TAG,
    REMOVED_TAG,
    REWOUND_PREFIX,
)

log = logging.getLogger(__name__)


_MOST_PENDING = 100_000
_MOST_NAMED = 10
_ANSWER_SECONDS = 3.0
"""For so long after the end of its grace a process waits for the answer to its last question."""
_LONGEST_TAG = 5000
_LONGEST_PARAMETER = 6000
"""What MLflow takes; the whole value is in the configuration among the artifacts."""


class TrackedRun:
    """A run that this process is writing to. Made by the functions of :mod:`mltrain.run.opening`.

    Args:
        server: where the run is.
        attempts: all attempts up to this one.
        lock: on this host, taken.
        known: MLflow's description of the run; or how it is to be created, while the training goes on.
        home: the folder on this host for staging, journal and log; none: that of the run.
        launcher: the ``mlflow run`` that this process was started by.
        age: seconds since the run began, for the steps of what the machine does.
        created: whether this process created the run.
        earlier: the status with which the run had ended before this process opened it, if it had.

    Attributes:
        id: of the run; until it is created, what it goes by on this host.
        attempt: this process's attempt.
        attempts: all attempts up to this one.
        artifacts: of the run.
        home: the folder on this host for staging, journal and log.
        owned: whether this process decides about the run's status.
        lost: after :meth:`close`, how many records neither the server nor this disk has taken.
        closed: after :meth:`close`, whether the server has taken the run's status.
    """

    def __init__(
        self,
        server: TrackingClient,
        attempts: list[Attempt],
        lock: filelock.BaseFileLock,
        known: Any,
        *,
        home: Path | None = None,
        launcher: Launcher | None = None,
        age: int = 0,
        created: bool = False,
        earlier: Status | None = None,
    ) -> None:
        self.server = server
        self.earlier = earlier
        self._created = created
        self.attempts = attempts
        self.attempt = attempts[-1]
        self.launcher = launcher
        self.owned = True
        self.lost, self.closed = 0, False
        self._only_local = False
        self._lock = lock
        self._listeners: list[Callable[[], None]] = []
        self._known = threading.Event()
        self._naming = threading.Lock()
        self._registration = known if isinstance(known, Registration) else None
        self.artifacts: Artifacts
        self.experiment_id = ""
        self._age, self._opened_at = age, time.monotonic()
        self._closed: bool | None = None
        """Once it is closed, whether everything was delivered."""
        self._settled_at = -math.inf
        self._said_pending = False
        self._gone: str | None = None
        self._delivered = Delivered()
        self._metric_names = Names("metric", names.key)
        if self._registration is not None:
            self.id, self.name = self._registration.birth.id, self._registration.birth.name
            self.artifacts = LateArtifacts()
        else:
            self.id, self.name, self.experiment_id = known.run_id, known.run_name, known.experiment_id
            self.artifacts = open_artifacts(known.artifact_uri, server.uri)
            self._known.set()
        self._removals = Removals(self.artifacts)
        self.home = home or home_of(server, self.id)
        record_address(server, self.home)
        # Who takes a run over on the same host leaves its journal to the process that still has it open.
        mine = "journal.sqlite" if lock.is_locked else f"journal-a{self.attempt.ordinal:02d}.sqlite"
        self.journal = Journal(self.home / mine, self.attempt.ordinal)
        self.lease = Lease(server, self.attempt.ordinal)  # has a thread, so after what a disk may refuse
        if self.known:
            self.lease.begin(self.id)
        courier = Courier(self.home / mine, server.uri)
        self._gallery = Gallery(self.home, self.journal)
        # What an earlier attempt left unsent is recomputed, or comes back with the checkpoint; sending it as well would
        # race with finding out what the server has.
        self.journal.drop_overtaken(0, 0)
        self.sender = Sender(server, self._identity, self.journal, self.artifacts, self._keep, courier)
        self._monitor = SystemMonitor(self._record_system)

    @property
    def known(self) -> bool:
        """Whether the run exists in the tracking store, as far as this process knows."""
        return self._known.is_set()

    def when_known(self, listener: Callable[[], None]) -> None:
        """Call somebody as soon as the run exists: now, or from a thread in the background."""
        with self._naming:
            if not self.known:
                self._listeners.append(listener)
                return
        listener()

    @property
    def overtaken(self) -> bool:
        """Whether another process has taken the run over."""
        return self.lease.overtaken.is_set()

    def require_hold(self) -> None:
        """Raise what ends a process whose run another one has taken over.

        Raises:
            RunHeld: it was.
        """
        if self.overtaken:
            raise RunHeld("Another process has taken this run over; this one ends without writing anything more.")

    def holds(self, *, certainly: bool = False) -> bool:
        """Whether this process still holds the run; asks the server where this process was stopped for a while."""
        return self.lease.holds(certainly=certainly)

    @property
    def trouble(self) -> str | None:
        """Why the tracking server does not take what is sent, if so."""
        return self.sender.trouble

    @property
    def announced(self) -> str | None:
        """The name of the newest checkpoint that the run was told is committed."""
        return tags_of(self.server.run(self.id)).get(LATEST_TAG) if self.known else None

    def begin_attempt(self, resumed_from: CheckpointId | None) -> None:
        """Go on as the next attempt: this process has rolled the run back to a checkpoint.

        Raises:
            RunHeld: another process has claimed it at this moment.
            TrackingError: the server does not answer.
        """
        self.attempt.ended, self.attempt.why = datetime.now(UTC).isoformat(timespec="seconds"), "rolled back"
        now = self.attempt
        following = Attempt(
            now.ordinal + 1,
            resumed_from=resumed_from.name if resumed_from is not None else None,
            code=now.code,
            data=now.data,
            versions=now.versions,
        )
        self.attempts.append(following)
        self.attempt = following
        self.lease.follow(following.ordinal)  # before it is claimed, or the heartbeat would take it for somebody else's
        try:
            claim_attempt(self.server, self.id, following.ordinal)
        except RunHeld:
            self.lease.overtaken.set()  # the number is another's, and nothing is written in its name
            raise
        self.journal.attempt = following.ordinal
        for key, value in holder_tags(following.ordinal).items():
            self.set_tag(key, value)
        self.set_tag(f"{REWOUND_PREFIX}{following.ordinal}", str(resumed_from.step if resumed_from is not None else 0))
        self.record_attempt()

    @property
    def staging(self) -> Path:
        """Where checkpoints are staged: beside the artifacts where these are on this machine."""
        local = self.artifacts.local_root
        return local.parent / STAGING if local is not None else self.home / "staging"

    @property
    def ordinal(self) -> int:
        """The ordinal of this attempt."""
        return self.attempt.ordinal

    @property
    def code(self) -> Mapping[str, str]:
        """The fingerprint of the code that runs."""
        return self.attempt.code

    def pending(self, step: int) -> list[Point]:
        """Return the metric points up to ``step`` that the server has not acknowledged, for the checkpoint at that step.

        At most 100,000, the oldest; where more wait, it is said that the rest is on this disk only.
        """
        self.journal.flush()
        try:
            waiting = self.journal.unsent_points(_MOST_PENDING, step)
        except StorageError as error:
            log.warning("The checkpoint at step %d carries no metric points: %s", step, error)
            return []
        if len(waiting) == _MOST_PENDING and not self._said_pending:
            self._said_pending = True
            log.warning(
                "More than %d metric points wait for the tracking server. Checkpoints carry the oldest of them; the rest "
                "is in %s only: resume on this machine, or run mltrain sync on it first.",
                _MOST_PENDING,
                self.home,
            )
        return [Point(key=p.key, step=p.step, value=p.value, timestamp=p.timestamp) for p in waiting]

    def deliver_pending(self, points: Sequence[Point]) -> None:
        """Send the points that a checkpoint carried, with their original timestamps, which MLflow collapses."""
        self.journal.add_points((p.key, p.step, p.value, p.timestamp) for p in points)

    def pins(self) -> dict[str, str]:
        """Return the names of pinned checkpoints with the reasons."""
        return pins_of(self.server.run(self.id))

    def in_use(self) -> set[str]:
        """Return the names of checkpoints that registered model versions were made from."""
        return registry.in_use(self.server, self.id, self.experiment_id)

    def remove_models(self, checkpoint: str) -> None:
        """Remove the LoggedModels that were made from a checkpoint."""
        models = registry.made_models(self.server, self.id, self.experiment_id)
        registry.remove_models(self.server, models, checkpoint)

    def record_removals(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Add lines to ``retention.jsonl`` among the artifacts, and to the tag that sums it up."""
        self.set_tag(REMOVED_TAG, self._removals.append(records))

    def record_start(self, config: Mapping[str, Any], parameters: Mapping[str, str], project: str) -> None:
        """Record what the run is: configuration as an artifact, parameters, project. Once, before the first step.

        Raises:
            StorageError: the artifact store refuses.
        """
        self.write_json(CONFIG_FILE, {"schema": 1, "project": project, "config": config})
        # An adopted run holds the launcher's parameters, quoted.
        held = self.server.run(self.id).data.params if self.launcher is not None else {}
        for key, value in Names("parameter", names.key).translated(parameters).items():
            if key not in held:
                self.journal.log_item("param", key, redacted(value)[:_LONGEST_PARAMETER])
        self.set_tag(PROJECT_TAG, project)

    def record_attempt(self) -> None:
        """Write the list of attempts, this one last, and what changed in it."""
        self.write_json(ATTEMPTS_FILE, self._attempts_as_json())
        if self.attempt.changed:
            changes = {key: list(change) for key, change in self.attempt.changed.items()}
            self.set_tag(f"{CHANGED_PREFIX}{self.attempt.ordinal}", json.dumps(redacted_tree(changes)))
        if self.attempt.code.get("commit"):
            self.set_tag("mlflow.source.git.commit", self.attempt.code["commit"])

    def record_data(self, places: Mapping[str, Path]) -> None:
        """Record where the data lay and what their fingerprints were, as datasets that the UI shows and compares."""
        inputs = [
            {
                "name": name,
                "digest": self.attempt.data[name][:36],
                "place": redacted(str(place)),
                "context": "evaluation" if name.startswith(("val", "test")) else "training",
            }
            for name, place in places.items()
            if name in self.attempt.data
        ]
        if inputs:
            self.journal.log_item("inputs", "datasets", json.dumps(inputs))

    def write_json(self, name: str, content: Any) -> None:
        """Put a small JSON file among the artifacts: now, or as soon as the artifact store can be reached.

        Raises:
            StorageError: the artifact store refuses for good, or this disk does.
        """
        file = self._written(name, content)
        if self.known and (self.artifacts.local_root is not None or self.trouble is None):
            try:
                self.artifacts.upload(file)
                return
            except StorageError as error:
                if self.artifacts.local_root is not None or not may_pass(error.__cause__ or error):
                    raise
        self.log_file(file)

    def continue_exactly_after(self, step: int) -> None:
        """Let points beyond ``step`` pass that the server already has: in an exact continuation (key, step) is identity."""
        time.sleep(max(0.0, self._settled_at - time.monotonic()))
        # Pictures that an earlier attempt left unsent here are made anew from there on.
        self.journal.drop_beyond({attempt.ordinal: step for attempt in self.attempts[:-1]})
        self._delivered = delivered_beyond(self.server, self.server.run(self.id), step)
        self._gallery.let_pass(self.artifacts, step)

    def settle(self, seconds: float) -> None:
        """Somebody who was overtaken may write for so long until it notices; what it has written is read after that."""
        self._settled_at = time.monotonic() + seconds

    def log_metrics(self, values: Mapping[str, float], step: int, *, compared: bool = True) -> None:
        """Log metric points of one step; never waits for the server.

        Args:
            values: name to value. A name that MLflow does not accept is translated, see :mod:`mltrain.tracking.names`.
            step: optimizer steps done.
            compared: whether a value that was delivered before has to be the same now; wall-clock values need not be.
        """
        values = self._metric_names.translated(values)
        if self._delivered.points:
            values = self._delivered.new(values, step, compared)
        if values:
            self.journal.log_metrics(values, step, time.time_ns())

    def set_tag(self, key: str, value: str) -> None:
        """Set a tag; never waits for the server."""
        self.journal.log_item("tag", key, redacted(value)[:_LONGEST_TAG])

    def log_file(self, file: Path, folder: str = "") -> None:
        """Upload a file, replacing one of its name; never waits. The file has to stay until it is sent."""
        self.journal.log_item("file", folder, str(file))

    def log_pictures(self, pictures: Mapping[str, Any], step: int, epoch: int) -> None:
        """Log pictures that the UI scrolls by step, and as files in a folder of the epoch; never waits for the server.

        The picture ``inference/A_to_B`` of epoch 5 is the file ``inference/epoch_0005/A_to_B.jpg`` among the artifacts.
        Encoding them is left to the background as well.
        """
        self._gallery.log_pictures(pictures, step, epoch)

    def log_epoch(self, history: History) -> None:
        """Update the CSV log, and the learning curves unless they were drawn less than a minute ago."""
        self._gallery.log_epoch(history)

    def finish_epochs(self, history: History) -> None:
        """Draw the learning curves once more, with all epochs."""
        self._gallery.finish_epochs(history)

    def mark_only_local(self, checkpoint: str, status: Status) -> None:
        """Record that the newest checkpoint is on this host only.

        Args:
            checkpoint: its name.
            status: that the run gets when ``mltrain sync`` has sent it.
        """
        self._only_local = True
        for key, value in only_local_tags(checkpoint, said_of(status)).items():
            self.set_tag(key, value)

    def detach(self, status: Status) -> None:
        """Deliver what is left and let go of the run; its status is the caller's affair unless it was opened here."""
        if self.owned:
            self.close(status, "closed", grace_seconds())
            return
        deadline = time.monotonic() + grace_seconds()
        self._stop_recording(deadline)
        if not self.overtaken:
            self._say(ended=said_of(status))
            self.sender.drain(max(0.0, deadline - time.monotonic()))
            self._report_lost()
        self._let_go()

    def close(self, status: Status, why: str, grace: float, *, interrupted: Callable[[], bool] = lambda: False) -> bool:
        """Deliver what is left within ``grace`` seconds, set the status, let go of the run.

        Args:
            status: of the run.
            why: the attempt ended.
            grace: seconds.
            interrupted: tells at the very end whether somebody has asked to stop; a launcher that was asked, too, calls any
                run FAILED then.

        Returns:
            Whether everything was delivered. What was not waits on this disk for ``mltrain sync``, but for what is
            :attr:`lost`.
        """
        if self._closed is not None:
            return self._closed
        deadline = time.monotonic() + grace
        self.attempt.ended = datetime.now(UTC).isoformat(timespec="seconds")
        self.attempt.why = why
        self._stop_recording(deadline)
        delivered = False
        if not self.overtaken:
            if self.journal.left_out:
                self.set_tag(POINTS_LEFT_OUT_TAG, str(self.journal.left_out))
            try:
                self.log_file(self._written(ATTEMPTS_FILE, self._attempts_as_json()))
            except StorageError as error:
                log.warning("The record of attempts does not say how this one ended: %s", error)
            self._say(ended=said_of(status))
            delivered = self.sender.drain(max(0.0, deadline - time.monotonic()))
            self._report_lost()
            if self.lost and status == "FINISHED" and self.journal.unsent():
                # A resume brings back what a checkpoint carries; so the run is not said to be complete.
                status = "KILLED"
                self._say(ended=said_of(status))  # after what is journalled above, for mltrain sync
                self._finished_within(status, max(2.0, deadline - time.monotonic()))
            # A store that takes no files keeps nobody from saying to the server how the run ended.
            if delivered or (self.known and not self.journal.unsent_points(1)):
                self.closed = self._finished_within(status, max(2.0, deadline - time.monotonic()))
            delivered = delivered and self.closed and self.journal.parked() == 0 and not self.lost
        self._closed = delivered
        launcher = None if self.overtaken or self.launcher is None or self.launcher.run_id != self.id else self.launcher
        self._let_go()
        if launcher is not None and launcher.pid is not None and (interrupted() or status != "FINISHED"):
            launchers.after(
                self.server, launcher.pid, self.id, status, self.ordinal
            )  # the launcher will call it FAILED
        return delivered

    def withdraw(self, why: str) -> None:
        """Let go of a run that was opened in vain: delete one that this process created, give another its status back."""
        self.attempt.withdrawn = True
        if self.owned:
            self.close(self.earlier or "KILLED", why, grace_seconds())
        else:
            self.detach("KILLED")
        if self._created:
            with suppress(MltrainError):
                self.server.once.delete_run(self.id)

    def _say(self, *, ended: str) -> None:
        for key, value in ending_tags(self.ordinal, ended).items():
            self.set_tag(key, value)

    def _stop_recording(self, deadline: float) -> None:
        """Make the last pictures, for at most half of the time that is left, and leave the status to this process."""
        self._monitor.close()
        left = self._gallery.close(max(0.0, deadline - time.monotonic()) / 2)
        if left:
            log.warning(
                "%d pictures were not made before the end of the grace, and are lost: %s. MLTRAIN_GRACE_SECONDS gives them "
                "more time.",
                len(left),
                ", ".join(left[:_MOST_NAMED]) + (", …" if len(left) > _MOST_NAMED else ""),
            )
            self.set_tag(PICTURES_LEFT_OUT_TAG, str(len(left)))
        self.lease.end(max(0.0, deadline - time.monotonic()))

    def _report_lost(self) -> None:
        self.lost = self.journal.lost()
        if self.lost:
            log.error(
                "%d records (metric points, tags or files) are lost: neither the tracking server nor this disk took them. A "
                "resume records again what its checkpoint carries of the points.",
                self.lost,
            )

    def _let_go(self) -> None:
        self._monitor.close()
        self.lease.close()
        self.journal.close()
        self._lock.release()

    def _finished_within(self, status: Status, seconds: float) -> bool:
        """Set the status; a server that accepts the question and never answers does not hold the process any longer."""
        done: list[bool] = []
        thread = threading.Thread(
            target=lambda: done.append(self._finished(status, seconds)), name="mltrain-status", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # the interpreter is ending and starts no more threads
            return self._finished(status, seconds)
        thread.join(seconds + _ANSWER_SECONDS)
        return done == [True]

    def _finished(self, status: Status, seconds: float) -> bool:
        server = replace(self.server, retry_seconds=seconds)
        try:
            if not self.holds(certainly=True):
                return False
            if self._registration is not None:
                self._registration.discard_doubles()
            server.set_tag(self.id, f"{ENDED_PREFIX}{self.ordinal}", said_of(status))
            if not conclude(server, self.id, self.ordinal, said_of(status)):
                self.lease.overtaken.set()
                return False
            # What an earlier attempt left on a host is overtaken by this one, or sent.
            if not self._only_local and not self.attempt.withdrawn:
                forget_only_local(server, self.id, tags_of(server.run(self.id)))
        except MltrainError as error:
            log.warning("The run's status could not be set: %s", error)
            return False
        return True

    def _attempts_as_json(self) -> dict[str, Any]:
        return {"schema": 1, "attempts": [asdict(attempt) for attempt in self.attempts]}

    def _written(self, name: str, content: Any) -> Path:
        file = self.home / name
        replace_file(file, json.dumps(redacted_tree(content), indent=1, default=str).encode())
        return file

    def _identity(self) -> str:
        """Return the run's id, and create the run if it could not be created at first. Called by the sender."""
        if not self.known and self._registration is not None:
            info = self._registration.info()
            self._registration.discard_doubles()
            artifacts = open_artifacts(info.artifact_uri, self.server.uri)
            remember_home(info.run_id, self.home)
            replace(self._registration.birth, run_id=info.run_id).save(self.home)
            with self._naming:
                if isinstance(self.artifacts, LateArtifacts):
                    self.artifacts.target = artifacts
                self.id, self.experiment_id = info.run_id, info.experiment_id
                self.lease.begin(self.id)
                self._known.set()
                listeners, self._listeners = self._listeners, []
            for listener in listeners:
                listener()
        return self.id

    def _keep(self) -> bool:
        """Return whether this process holds the run. Called by the sender before every request."""
        held, gone = self.lease.keep(), self.lease.gone
        if gone is not None and self.sender.trouble != gone:
            log.warning("%s", gone)
            self.sender.trouble = gone
        if gone is None and self._gone is not None:
            log.warning("Run %s was restored; what waited for it is sent.", self.id)
            self.sender.release()
        self._gone = gone
        return held

    def _record_system(self, metrics: Mapping[str, float]) -> None:
        # The age by a clock that never jumps, so that no two of these points have the same step.
        age = self._age + int(time.monotonic() - self._opened_at)
        self.journal.log_metrics(metrics, age, time.time_ns())


def age_of(run: Any) -> int:
    """Return how many seconds old a run is, beyond all steps at which the state of its machine was recorded."""
    recorded = [int(latest.step) for latest in latest_points(run) if latest.key in SYSTEM_KEYS]
    by_clock = (time.time_ns() // 1_000_000 - (run.info.start_time or 0)) // 1000
    return max(0, by_clock, *(step + int(SYSTEM_SECONDS) for step in recorded))


def pins_of(run: Any) -> dict[str, str]:
    """Return the names of a run's pinned checkpoints with the reasons."""
    return {key.removeprefix(PIN_PREFIX): why for key, why in tags_of(run).items() if key.startswith(PIN_PREFIX)}
