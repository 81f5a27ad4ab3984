"""The life of a run: created, adopted or resumed; attempts, one writer at a time, status, what is recorded.

Every start or resume is an attempt with an ordinal. Resume number n is claimed by the parameter ``mltrain.attempt.<n>``:
parameters are write-once, so of several processes exactly one wins. n is the fencing number: a writer that sees a
higher one stops sending, publishing and pruning.
"""

import copy
import json
import logging
import math
import os
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import filelock
import psutil

from mltrain import fingerprint
from mltrain.checkpoint.manifest import CheckpointId, Point
from mltrain.errors import RunHeld, RunNotFound, StorageError
from mltrain.history import CsvLog, History, learning_curves
from mltrain.tracking import launcher as launchers
from mltrain.tracking import registry
from mltrain.tracking.artifacts import OUTBOX, STAGING, Artifacts, open_artifacts
from mltrain.tracking.attempts import (
    ATTEMPTS_FILE,
    CONFIG_FILE,
    HEARTBEAT_TAG,
    HOLDER_TAG,
    STATUS_TAG,
    Attempt,
    await_lease,
    holder_tags,
    last_attempt,
    recorded_attempts,
)
from mltrain.tracking.home import grace_seconds, home_of, locked
from mltrain.tracking.images import as_image, save_for_ui, ui_identity, ui_stem
from mltrain.tracking.journal import Journal
from mltrain.tracking.launcher import Launcher
from mltrain.tracking.records import REMOVED_TAG, append_removals
from mltrain.tracking.sender import Sender
from mltrain.tracking.server import Refusal, Server, connect, tags_of

log = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]

SYSTEM_SECONDS = 15.0
"""How often the use of CPU and memory is recorded; the step of such a point is the run's age in seconds."""
_MOST_PENDING = 100_000
_STATUS_WORDS: Mapping[str, str] = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "stopped"}
LOG_FILE = "log.csv"
CURVES_FILE = "learning_curves.png"
PROJECT_TAG = "mltrain.project"
PIPELINE_TAG = "mltrain.pipeline"
"""On the run of a pipeline and on those of its stages: the pipeline's name."""
STAGE_TAG = "mltrain.stage"
"""On the run of a stage: the stage's name."""
PIN_TAG = "mltrain.pin."


class TrackedRun:
    """A run that this process is writing to. Made by :func:`create`, :func:`adopt` and :func:`resume`.

    Attributes:
        id: of the run.
        attempt: this process's attempt.
        attempts: all attempts up to this one.
        artifacts: of the run.
        home: the folder on this host for staging, journal and log.
    """

    def __init__(
        self, server: Server, info: Any, attempts: list[Attempt], launcher: Launcher | None, lock: filelock.BaseFileLock
    ) -> None:
        self.server = server
        self.id: str = info.run_id
        self.name: str = info.run_name
        self.experiment_id: str = info.experiment_id
        self.attempts = attempts
        self.attempt = attempts[-1]
        self.launcher = launcher
        self.artifacts: Artifacts = open_artifacts(info.artifact_uri, server.uri)
        self.home = home_of(server, self.id)
        self.journal = Journal(self.home / "journal.sqlite", self.attempt.ordinal)
        self.owned = True
        """Whether this process decides about the run's status."""
        self._lock = lock
        self._beats = 0
        self._looked = -math.inf
        self._began: int = info.start_time
        self._delivered: dict[tuple[str, int], float] = {}
        self._delivered_images: set[tuple[str, int]] = set()
        self._differing: set[str] = set()
        self._pictures = ThreadPoolExecutor(1, thread_name_prefix="mltrain-pictures")
        self._log: CsvLog | None = None
        self._drawn = -math.inf
        # What an earlier attempt left unsent is recomputed, or comes back with the checkpoint; sending it as well would
        # race with finding out what the server has.
        self.journal.drop_overtaken(0, 0)
        self.sender = Sender(server, self.id, self.journal, self.artifacts, self._beat)

    @property
    def overtaken(self) -> bool:
        """Whether another process has taken the run over."""
        return self.sender.overtaken.is_set()

    @property
    def announced(self) -> str | None:
        """The name of the newest checkpoint that the run was told is committed."""
        return tags_of(self.server.run(self.id)).get("mltrain.latest")

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
        self.attempt = following  # before it is claimed, or the heartbeat would take it for somebody else's
        claim_attempt(self.server, self.id, following.ordinal)
        self.journal.attempt = following.ordinal
        for key, value in holder_tags(following.ordinal).items():
            self.set_tag(key, value)
        self.set_tag(f"mltrain.rewound.{following.ordinal}", str(resumed_from.step if resumed_from is not None else 0))
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
        """Return the metric points up to ``step`` that the server has not acknowledged, for the checkpoint at that step."""
        self.journal.flush()
        waiting = self.journal.unsent_points(_MOST_PENDING, step)
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
        self.set_tag(REMOVED_TAG, append_removals(self.artifacts, records))

    def record_start(self, config: Mapping[str, Any], parameters: Mapping[str, str], project: str) -> None:
        """Record what the run is: configuration as an artifact, parameters, project. Once, before the first step.

        Raises:
            StorageError: the artifact store refuses.
        """
        self.write_json(CONFIG_FILE, {"schema": 1, "project": project, "config": config})
        held = self.server.run(self.id).data.params  # an adopted run holds the launcher's, quoted
        for key, value in parameters.items():
            if key not in held:
                self.journal.log_item("param", key, value)
        self.set_tag(PROJECT_TAG, project)

    def record_attempt(self) -> None:
        """Write the list of attempts, this one last, and what changed in it."""
        self.write_json(ATTEMPTS_FILE, {"schema": 1, "attempts": [asdict(attempt) for attempt in self.attempts]})
        if self.attempt.changed:
            changes = {key: list(change) for key, change in self.attempt.changed.items()}
            self.set_tag(f"mltrain.changed.{self.attempt.ordinal}", json.dumps(changes))
        if self.attempt.code.get("commit"):
            self.set_tag("mlflow.source.git.commit", self.attempt.code["commit"])

    def record_data(self, places: Mapping[str, Path]) -> None:
        """Record where the data lay and what their fingerprints were, as datasets that the UI shows and compares."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(
                Dataset(name, self.attempt.data[name][:36], "local", json.dumps({"uri": str(place)})),
                [InputTag("mlflow.data.context", "evaluation" if name.startswith(("val", "test")) else "training")],
            )
            for name, place in places.items()
            if name in self.attempt.data
        ]
        if inputs:
            self.server.call(self.server.client.log_inputs, self.id, inputs)

    def write_json(self, name: str, content: Any) -> None:
        """Put a small JSON file among the artifacts, now."""
        with tempfile.TemporaryDirectory(prefix="mltrain-") as folder:
            file = Path(folder) / name
            file.write_text(json.dumps(content, indent=1, default=str), encoding="utf-8")
            self.artifacts.upload(file)

    def continue_exactly_after(self, step: int) -> None:
        """Let points beyond ``step`` pass that the server already has: in an exact continuation (key, step) is identity."""
        run = self.server.run(self.id)
        for latest in run.data._metric_objs:  # the public mapping has the values without their steps
            if latest.step > step:
                history = self.server.call(self.server.client.get_metric_history, self.id, latest.key)
                self._delivered.update({(p.key, p.step): p.value for p in history if p.step > step})
        self._delivered_images = {(key, number) for key, number in _image_names(self.artifacts) if number > step}

    def log_metrics(self, values: Mapping[str, float], step: int, *, compared: bool = True) -> None:
        """Log metric points of one step; never waits for the server.

        Args:
            values: name to value.
            step: optimizer steps done.
            compared: whether a value that was delivered before has to be the same now; wall-clock values need not be.
        """
        if self._delivered:
            values = {key: value for key, value in values.items() if not self._known(key, step, value, compared)}
        if values:
            self.journal.log_metrics(values, step, time.time_ns() // 1_000_000)

    def set_tag(self, key: str, value: str) -> None:
        """Set a tag; never waits for the server."""
        self.journal.log_item("tag", key, value[:5000])

    def log_file(self, file: Path, folder: str = "") -> None:
        """Upload a file, replacing one of its name; never waits. The file has to stay until it is sent."""
        self.journal.log_item("file", folder, str(file))

    def log_pictures(self, pictures: Mapping[str, Any], step: int, epoch: int) -> None:
        """Log pictures that the UI scrolls by step, and as files in a folder of the epoch; never waits for the server.

        The picture ``inference/A_to_B`` of epoch 5 is the file ``inference/epoch_0005/A_to_B.jpg`` among the artifacts.
        Encoding them is left to the background as well.
        """
        timestamp = time.time_ns() // 1_000_000
        for name, picture in pictures.items():
            if (name, step) not in self._delivered_images:
                kept = picture if hasattr(picture, "savefig") else as_image(picture)
                self._in_background(self._encode, name, kept, step, epoch, timestamp)

    def log_epoch(self, history: History) -> None:
        """Update the CSV log, and the learning curves unless they were drawn less than a minute ago."""
        if self._log is None:
            self._log = CsvLog(self.home / LOG_FILE, history)
        self._log.update()
        self.log_file(self._log.path)
        if time.monotonic() - self._drawn > 60:
            self._drawn = time.monotonic()
            self._in_background(self._draw, copy.deepcopy(history))

    def finish_epochs(self, history: History) -> None:
        """Draw the learning curves once more, with all epochs."""
        if history.rows:
            self._in_background(self._draw, history)

    def _in_background(self, job: Callable[..., None], *arguments: Any) -> None:
        def guarded() -> None:
            try:
                job(*arguments)
            except OSError as error:
                log.warning("A picture could not be kept: %s", error)
            except Exception:
                log.exception("A picture could not be made")

        self._pictures.submit(guarded)

    def _draw(self, history: History) -> None:
        file = self.home / CURVES_FILE
        learning_curves(history).savefig(file, dpi=110)
        self.log_file(file)

    def _encode(self, name: str, picture: Any, step: int, epoch: int, timestamp: int) -> None:
        outbox = self.home / OUTBOX
        outbox.mkdir(exist_ok=True)
        image = as_image(picture)
        identifier = uuid.uuid5(uuid.NAMESPACE_URL, f"{self.id}/{name}/{step}")
        paths = [
            (str(path), "images") for path in save_for_ui(image, outbox, ui_stem(name, step, timestamp, identifier))
        ]
        group, _, rest = name.rpartition("/")
        folder = f"{group or 'pictures'}/epoch_{epoch:04d}"
        plain = outbox / folder.replace("/", "-") / f"{rest}.jpg"
        plain.parent.mkdir(exist_ok=True)
        image.save(plain, quality=95)
        paths.append((str(plain), folder))
        self.journal.log_item("image", name, json.dumps({"files": paths}))
        self.set_tag("mlflow.loggedImages", "True")

    def detach(self, status: Status) -> None:
        """Deliver what is left and let go of the run; its status is the caller's affair unless it was opened here."""
        if self.owned:
            self.close(status, "closed", grace_seconds())
            return
        self._pictures.shutdown()
        self.set_tag(STATUS_TAG, "finished")
        self.sender.drain(grace_seconds())
        self.journal.close()
        self._lock.release()

    def close(self, status: Status, why: str, grace: float, *, interrupted: bool = False) -> bool:
        """Deliver what is left within ``grace`` seconds, set the status, let go of the run.

        Args:
            status: of the run.
            why: the attempt ended.
            grace: seconds.
            interrupted: whether somebody asked to stop; a launcher that was asked, too, calls any run FAILED then.

        Returns:
            Whether everything was delivered. What was not waits on this disk for ``mltrain sync``.
        """
        self.attempt.ended = datetime.now(UTC).isoformat(timespec="seconds")
        self.attempt.why = why
        delivered = False
        self._pictures.shutdown()
        if not self.overtaken:
            self.set_tag(STATUS_TAG, _STATUS_WORDS[status])
            delivered = self.sender.drain(grace)
            # A store that takes no files keeps nobody from saying to the server how the run ended.
            if not self.overtaken and (delivered or not self.journal.unsent_points(1)):
                delivered = self._finish(status) and delivered
        self.journal.close()
        self._lock.release()
        launcher = self.launcher
        own = launcher is not None and launcher.run_id == self.id
        if own and launcher is not None and launcher.pid is not None and (interrupted or status != "FINISHED"):
            launchers.after(self.server, launcher.pid, self.id, status)  # the launcher will call it FAILED
        return delivered

    def _finish(self, status: Status) -> bool:
        try:
            self.record_attempt_end()
        except StorageError as error:
            log.warning("The end of this attempt could not be recorded: %s", error)
        try:
            self.server.call(self.server.client.set_tag, self.id, STATUS_TAG, _STATUS_WORDS[status])
            self.server.call(self.server.client.set_terminated, self.id, status)
        except (Refusal, RunNotFound) as error:
            log.warning("The run's status could not be set: %s", error)
            return False
        return True

    def record_attempt_end(self) -> None:
        """Write the list of attempts again, with the end of this one."""
        self.write_json(ATTEMPTS_FILE, {"schema": 1, "attempts": [asdict(attempt) for attempt in self.attempts]})

    def _known(self, key: str, step: int, value: float, compared: bool) -> bool:
        if (key, step) not in self._delivered:
            return False
        before = self._delivered[(key, step)]
        same = before == value or (before != before and value != value)
        if compared and not same and key not in self._differing:
            self._differing.add(key)
            log.warning(
                "%s at step %d is %r now and was %r before: this resume is not exact.", key, step, value, before
            )
        return True

    def _beat(self) -> bool:
        """Renew the lease; return False when a later attempt holds the run."""
        self._beats += 1
        params = self.server.call(self.server.client.get_run, self.id).data.params
        if last_attempt(params) > self.attempt.ordinal:
            return False
        self.server.call(self.server.client.set_tag, self.id, HEARTBEAT_TAG, f"{self.attempt.ordinal}.{self._beats}")
        if time.monotonic() - self._looked >= SYSTEM_SECONDS:
            self._looked = time.monotonic()
            now = time.time_ns() // 1_000_000
            self.journal.log_metrics(system_metrics(), (now - self._began) // 1000, now)
        return True


def create(
    server: Server, experiment: str | None, name: str | None, project: str, tags: Mapping[str, str]
) -> TrackedRun:
    """Create a run.

    Raises:
        TrackingError: the server does not answer or refuses.
    """
    experiment_id = _experiment_id(server, experiment)
    # A name of our own: MLflow's would be drawn from Python's global random numbers, which belong to the training.
    name = name or f"{project.rsplit('/', 1)[-1].removesuffix('.py')}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    run = server.call(server.client.create_run, experiment_id, run_name=name, tags={**_own_tags(project), **tags})
    return _opened(server, run.info, [Attempt(1)], None)


def adopt(server: Server, launcher: Launcher, name: str | None, project: str, tags: Mapping[str, str]) -> TrackedRun:
    """Make the run of the ``mlflow run`` that started this process the run of a new training."""
    run = server.run(launcher.run_id)
    if name is not None:
        server.call(server.client.update_run, run.info.run_id, name=name)
    for key, value in {**_own_tags(project), **tags}.items():
        if key != "mlflow.source.name":
            server.call(server.client.set_tag, run.info.run_id, key, value)
    return _opened(server, server.run(launcher.run_id).info, [Attempt(1)], launcher)


def resume(server: Server, run_id: str, *, take_over: bool, launcher: Launcher | None) -> TrackedRun:
    """Continue a run as its next attempt.

    Raises:
        RunNotFound: there is no such run.
        RunHeld: another process is writing to it, or claimed it at the same moment.
        TrackingError: the server does not answer.
    """
    run = server.run(run_id)
    if not take_over:
        await_lease(server, run)
    lock = locked(server, run_id, take_over)
    ordinal = last_attempt(run.data.params) + 1
    try:
        claim_attempt(server, run_id, ordinal)
    except (Refusal, RunHeld):
        lock.release()
        raise
    client = server.client
    server.call(client.update_run, run_id, status="RUNNING")
    for key, value in holder_tags(ordinal).items():
        server.call(client.set_tag, run_id, key, value)
    if launcher is not None:
        launchers.nest(server, launcher, run_id)
    launchers.repair(server, run_id, run.info.experiment_id)
    attempts = [*recorded_attempts(open_artifacts(run.info.artifact_uri, server.uri), ordinal - 1), Attempt(ordinal)]
    return TrackedRun(server, run.info, attempts, launcher, lock)


def claim_attempt(server: Server, run_id: str, ordinal: int) -> None:
    """Claim an attempt of a run: parameters are write-once, so of several processes one wins.

    Raises:
        RunHeld: another process was quicker.
        TrackingError: the server does not answer.
    """
    claim = f"{fingerprint.host()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
    try:
        server.call(server.client.log_param, run_id, f"mltrain.attempt.{ordinal}", claim)
    except Refusal as error:
        if "Changing param values" in str(error.__cause__ or error):
            raise RunHeld(
                f"Run {run_id} was claimed by another process at this moment. See who with: mltrain runs --json"
            ) from None
        raise


def open_run(run_id: str | None = None) -> TrackedRun:
    """Write to a run from a loop of one's own: the one given, else the active MLflow run, else a new one.

    Raises:
        RunNotFound, RunHeld, TrackingError: it cannot be written to.
    """
    server = connect()
    import mlflow

    active = mlflow.active_run()
    script = Path(sys.argv[0]) if sys.argv[0] else Path("loop")
    if run_id is None and active is None:
        run = create(server, None, None, script.stem or "loop", {})
    else:
        identity = run_id or active.info.run_id
        known = server.run(identity)
        if HOLDER_TAG in known.data.tags:
            run = resume(server, identity, take_over=False, launcher=None)
        else:
            for key, value in holder_tags(1).items():
                server.call(server.client.set_tag, identity, key, value)
            run = _opened(server, known.info, [Attempt(1)], None)
        run.owned = active is None or active.info.run_id != identity
    if script.is_file():
        run.attempt.code = fingerprint.code(script)
    return run


def pins_of(run: Any) -> dict[str, str]:
    """Return the names of a run's pinned checkpoints with the reasons."""
    return {key.removeprefix(PIN_TAG): why for key, why in tags_of(run).items() if key.startswith(PIN_TAG)}


def _opened(server: Server, info: Any, attempts: list[Attempt], launcher: Launcher | None) -> TrackedRun:
    return TrackedRun(server, info, attempts, launcher, locked(server, info.run_id, take_over=False))


def system_metrics() -> dict[str, float]:
    """Return what this machine is doing, under the names that MLflow's page of system metrics knows."""
    memory, own = psutil.virtual_memory(), psutil.Process().memory_info().rss
    return {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": memory.used / 1e6,
        "system/system_memory_usage_percentage": memory.percent,
        "system/process_memory_megabytes": own / 1e6,
    }


def _experiment_id(server: Server, name: str | None) -> str:
    name = name or os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if not name:
        return os.environ.get("MLFLOW_EXPERIMENT_ID") or "0"
    found = server.call(server.client.get_experiment_by_name, name)
    if found is not None:
        if found.lifecycle_stage != "active":
            raise RunNotFound(
                f"The experiment {name!r} is deleted. Restore it in the MLflow UI, or choose another name."
            )
        return str(found.experiment_id)
    return str(server.call(server.client.create_experiment, name))


def user() -> str:
    """Return who trains here, as runs are marked; the host's name where the user has none."""
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return socket.gethostname()


def _own_tags(project: str) -> dict[str, str]:
    return {"mlflow.user": user(), "mlflow.source.name": project, "mlflow.source.type": "LOCAL", **holder_tags(1)}


def _image_names(artifacts: Artifacts) -> set[tuple[str, int]]:
    return {identity for entry in artifacts.entries("images") if (identity := ui_identity(entry.name))}
