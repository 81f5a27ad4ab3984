"""A whole training: from a project and a request to a run that is closed with its true status."""

import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mltrain import device as devices
from mltrain.checkpoint.manifest import Manifest
from mltrain.checkpoint.policies import Best, Latest
from mltrain.checkpoint.policy_text import parse
from mltrain.checkpoint.ports import Status
from mltrain.checkpoint.retention import Policy
from mltrain.checkpoint.store import CheckpointStore
from mltrain.commands.result import NOT_KEPT, STOPPED, STOPPED_STAGED, Display, Outcome, Silence
from mltrain.commands.resume_source import Origin, Origins
from mltrain.commands.train_request import Request, Resolved
from mltrain.config import Config
from mltrain.delivery.images import note
from mltrain.errors import ConfigError, MltrainError, NonFiniteLoss, RunNotFound, UsageError
from mltrain.manager import CheckpointManager
from mltrain.ownership import launcher as launchers
from mltrain.ownership.attempts import recorded_config
from mltrain.ownership.launcher import Launcher
from mltrain.ownership.reaper import close_if_left
from mltrain.ownership.run_folder import grace_seconds, refuse_unwritable_home
from mltrain.provenance import fingerprint
from mltrain.provenance.written import Watch, units_of
from mltrain.redaction import remember_environment
from mltrain.rng import Rng, seed_everything
from mltrain.run import opening
from mltrain.run.tracked import TrackedRun
from mltrain.signals import StopRequest
from mltrain.store.artifacts import refuse_unwritable
from mltrain.store.durable import replace_file
from mltrain.task import Task, check_schedule
from mltrain.tracking.client import TRAINING_RETRY_SECONDS, TrackingClient, connect, location, tags_of
from mltrain.tracking.tags import FORKED_FROM_TAG, RESUMED_FROM_TAG, REWOUND_PREFIX, WRITTEN_TAG
from mltrain.trainer.loop import Trainer

log = logging.getLogger(__name__)

_RETRY_SECONDS = 2.0


def train(request: Request, display: Display | None = None, stop: StopRequest | None = None) -> Outcome:
    """Train what is requested, and close the run with its true status.

    Args:
        request: what is wanted.
        display: shows it.
        stop: installed by the caller, who trains several things one after the other; none: one of its own.

    Raises:
        MltrainError: what cannot be done; the run, if there is one by then, is closed as FAILED.
    """
    remember_environment()
    if stop is not None:
        return _Session(request, display or Silence(), stop, connect(retry_seconds=TRAINING_RETRY_SECONDS), None).run()
    launcher = launchers.detect(os.environ)
    with StopRequest(launcher_pid=launcher.pid if launcher is not None else None) as stop:
        return _Session(
            request, display or Silence(), stop, connect(retry_seconds=TRAINING_RETRY_SECONDS), launcher
        ).run()


@dataclass(frozen=True)
class _Prepared:
    """A training that can begin once its run is open: nothing was claimed, created or changed for it.

    Attributes:
        origin: what the state comes from.
        trainer: with the task built and the state put back.
        code: fingerprint of the project's code.
        data: fingerprints of the data.
        changed: keys of the configuration that differ from the checkpoint's, with both values.
        random_numbers: the state of all generators with which training begins.
    """

    origin: Origin
    trainer: Trainer
    code: Mapping[str, str]
    data: Mapping[str, str]
    changed: Mapping[str, tuple[str, str]]
    random_numbers: Mapping[str, Any]


class _Session:
    """One attempt, from the request to the closed run: first all that can be refused, then the run, then the training."""

    def __init__(
        self, request: Request, display: Display, stop: StopRequest, server: TrackingClient, launcher: Launcher | None
    ) -> None:
        self._request = request
        self._display = display
        self._stop = stop
        self._server = server
        self._launcher = launcher
        self._manager: CheckpointManager | None = None
        self._watch: Watch | None = None
        self._resolved = Resolved(request, server)
        self._project, self._config = self._resolved.project, self._resolved.config
        self._origins = Origins(server, request)
        self._began = False
        stop.on_usr1 = self._config.on_usr1

    def run(self) -> Outcome:
        try:
            return self._run()
        finally:
            if self._watch is not None:
                self._watch.close()

    def _run(self) -> Outcome:
        try:
            known = self._known()
            if known is not None:
                self._display.resuming(known.info.run_id)
            refuse_unusable(self._config, self._server)
            prepared = self._prepared(known)
        except KeyboardInterrupt:
            if self._request.resume_run is None:
                raise
            why = "stopped before the first step"
            with suppress(MltrainError):
                close_if_left(self._server, self._request.resume_run)  # this process does not hold it, and nobody does
            return Outcome(self._request.resume_run, self._stop.exit_code, why, None, None, {})
        run = self._opened()
        try:
            return self._trained(run, prepared)
        except KeyboardInterrupt:
            run.close("KILLED", f"stopped by {self._stop.reason} before the first step", grace_seconds())
            return Outcome(run.id, self._stop.exit_code, "stopped before the first step", None, None, {})
        except BaseException as error:
            deadline = time.monotonic() + grace_seconds()
            self._settle()
            # A run that was resumed in vain is left with the status that it had.
            status = "FAILED" if self._began else run.ending.opened.earlier or "FAILED"
            why = f"{type(error).__name__}: {error}"[:500]
            run.close(status, why, max(1.0, deadline - time.monotonic()))
            if not isinstance(error, MltrainError):
                first = "" if run.known else "mltrain sync, then "
                error.add_note(
                    f"Run {run.id} is {status}; what it committed is intact: {first}mltrain train --resume-run {run.id}"
                )
            raise

    def _known(self) -> Any | None:
        """Return MLflow's description of the run that is resumed, and refuse a run that cannot be had."""
        if self._request.resume_run is not None:
            return opening.resumable(self._server, self._request.resume_run, take_over=self._request.take_over)
        if self._launcher is not None:
            found = opening.adoptable(self._server, self._launcher)
            wanted = self._config.experiment
            experiment = self._server.get_experiment(found.info.experiment_id).name
            if wanted is not None and wanted != experiment:
                log.warning(
                    "experiment=%s is not used: the run that MLFLOW_RUN_ID names is in the experiment %s.",
                    wanted,
                    experiment,
                )
        return None

    def _prepared(self, known: Any | None) -> _Prepared:
        """Choose and verify the origin, build the task, compare code and data, and put the state back."""
        config = self._config
        code = fingerprint.code(self._project.place)
        origin = self._origins.choose(known, config.best_metric, config.best_mode)
        changed: Mapping[str, tuple[str, str]] = {}
        if origin.own is not None and origin.params is not None:
            config = self._config = self._resolved.config_over(origin.params)
            refuse_unusable(config, self._server)
        if origin.params is not None:
            changed = config.changes_from(origin.params)
        written = self._written()
        task, data = self._built(written)
        allowed = self._request.allow_change
        origin.check(code, data, config.data_places(), units_of(written), allow_change=allowed)
        nowhere: Any = None  # nothing is recorded or saved before the run is open
        trainer = Trainer(task, config, nowhere, nowhere, self._stop, data=data)
        if origin.parts is not None:
            imported = origin.manifest is not None and origin.manifest.kind == "imported"
            matters = {key: both for key, both in changed.items() if type(config).affects_training(key)}
            trainer.restore(origin.parts, imported=imported, changed=matters)
        else:
            seed_everything(config.seed)
        return _Prepared(origin, trainer, code, data, changed, Rng().state_dict())

    def _announced(self, run: TrackedRun) -> None:
        """Record what is trained, and then say what the run's id is: who has the id can resume it."""
        try:
            self._recorded(run)
        except KeyboardInterrupt:
            self._recorded(run)  # a request to stop interrupts once, and the run that it leaves can be resumed
            raise
        finally:
            run.when_known(
                lambda: self._display.opened(run, location(self._server, run.identity.experiment_id, run.id))
            )

    def _recorded(self, run: TrackedRun) -> None:
        if self._request.resume_run is None or self._unrecorded(run):
            run.record_start(self._config.resolved(), self._config.flattened(), self._project.name)

    def _settle(self) -> None:
        """Let a checkpoint that is being written become complete, before an error ends the process."""
        if self._manager is not None:
            self._manager.wait(grace_seconds())
            self._manager.abandon()

    def _unrecorded(self, run: TrackedRun) -> bool:
        """Whether a run, whose configuration is prescribed, was killed before it had recorded one."""
        if self._request.config is None:
            return False
        try:
            recorded_config(run.artifacts)
        except RunNotFound:
            return True
        return False

    def _opened(self) -> TrackedRun:
        request = self._request
        if request.resume_run is not None:
            return opening.resume(
                self._server, request.resume_run, take_over=request.take_over, launcher=self._launcher
            )
        tags = dict(request.tags)
        if request.parent is not None:
            tags["mlflow.parentRunId"] = request.parent
        if request.fork_run is not None:
            tags |= {"mlflow.parentRunId": request.fork_run, FORKED_FROM_TAG: request.fork_run}
        name, word = self._config.run_name, self._project.name
        if self._launcher is not None:
            return opening.adopt(self._server, self._launcher, name, word, tags)
        late, seconds = not request.require_tracking, opening.soon(self._server)
        return opening.create(self._server, self._config.experiment, name, word, tags, late=late, seconds=seconds)

    def _built(self, written: str) -> tuple[Task, dict[str, str]]:
        """Build the task, reproducibly, and take the fingerprint of its data, without what an earlier attempt wrote there."""
        config, places = self._config, self._config.data_places()
        devices.set_up(config.num_threads, config.deterministic, config.device)
        if self._watch is not None:
            self._watch.close()
        self._watch = watch = Watch(places, written)

        def began() -> dict[str, str]:
            found = fingerprint.contents_by_name(places)
            start = watch.began({name: contents for name, contents in found.items() if contents is not None})
            return {name: fingerprint.digest_of(start.get(name)) for name in found}

        # What the first build unpacks is data. Later it is compared as it was left, before it is built again.
        before = None if self._request.resume_run is None and self._request.fork_run is None else began()
        seed_everything(config.seed)
        task: Any = self._project.build(config)
        if not isinstance(task, Task):
            raise UsageError(
                f"build() of the project {self._project.name!r} returned a {type(task).__name__}. Expected an mltrain.Task."
            )
        check_schedule(task, config)
        return task, began() if before is None else before

    def _written(self) -> str:
        """Return what earlier attempts, or the run that this one branches from, wrote into the places of the data."""
        source = self._request.resume_run or self._request.fork_run
        if source is None:
            return ""
        return str(tags_of(self._server.run(opening.created_as(self._server, source))).get(WRITTEN_TAG, ""))

    def _trained(self, run: TrackedRun, prepared: _Prepared) -> Outcome:
        manager = CheckpointManager(
            run,
            policy=policy_of(self._config),
            metric=self._config.best_metric,
            mode=self._config.best_mode,
            committed=self._committed,
            staging_gigabytes=self._config.staging_gigabytes,
        )
        self._manager = manager
        self._announced(run)
        if not self._origins.is_current(prepared.origin, manager):
            prepared = self._prepared(self._server.run(run.id))  # another process has saved or pruned meanwhile
        config, origin, trainer = self._config, prepared.origin, prepared.trainer
        if origin.own is not None:
            manager.continue_from(origin.own, origin.damaged)
            run.set_tag(RESUMED_FROM_TAG, origin.own.name)
        self._origins.hold(origin, run)
        run.attempt.changed = dict(prepared.changed) if origin.own is not None else {}
        run.attempt.resumed_from = origin.manifest.name if origin.manifest is not None else None
        run.attempt.versions, run.attempt.code = fingerprint.versions(), dict(prepared.code)
        run.attempt.data = dict(prepared.data)
        trainer.attach(run, manager)
        if self._request.resume_run is not None:
            self._continue(run, trainer, origin)
        run.record.attempt()
        run.record.data(config.data_places())
        if self._watch is not None:
            self._watch.tell(lambda text: run.set_tag(WRITTEN_TAG, text))
        self._note(run, None)
        Rng().load_state_dict(prepared.random_numbers)  # opening the run may have drawn some
        return self._looped(run, manager, trainer, origin)

    def _continue(self, run: TrackedRun, trainer: Trainer, origin: Origin) -> None:
        """Make the record go on without a seam where this is an exact continuation."""
        step = trainer.progress.step
        rolled_back = origin.manifest is not None and self._request.resume_from not in ("latest", "interrupted")
        matters = [key for key in run.attempt.changed if type(self._config).affects_training(key)]
        if not rolled_back and not matters:
            run.continue_exactly_after(step)
            trainer.show()
        else:
            log.warning(
                "From step %d on new values are recorded beside those that the run may have there already (%s): MLflow deletes "
                "no points. For a curve of its own use --fork-run %s.",
                step,
                f"changed: {', '.join(matters)}" if matters else f"rolled back to {origin}",
                run.id,
            )
            run.set_tag(f"{REWOUND_PREFIX}{run.attempt.ordinal}", str(step))

    def _looped(self, run: TrackedRun, manager: CheckpointManager, trainer: Trainer, origin: Origin) -> Outcome:
        first_step = trainer.progress.step
        self._began = True
        self._display.began(trainer, str(origin))
        self._stop.finish_steps()
        for _ in trainer.steps():
            self._display.stepped(trainer)
            if self._watch is not None:
                self._watch.look()
        if self._stop.requested and trainer.progress.step == first_step and not trainer.done:
            raise KeyboardInterrupt
        return self._closed(run, manager, trainer, origin)

    def _closed(self, run: TrackedRun, manager: CheckpointManager, trainer: Trainer, origin: Origin) -> Outcome:
        stopped = not trainer.done
        deadline = time.monotonic() + grace_seconds()
        self._display.waiting("writing and uploading checkpoints")
        self._upload(manager, lambda: stopped or run.trouble is not None, deadline)
        if isinstance(manager.failure, NonFiniteLoss):
            raise manager.failure
        step = trainer.progress.step
        committer = manager.committer
        committed = committer.newest_committed is not None and committer.newest_committed.step == step
        staged = committer.newest_staged is not None and committer.newest_staged.step == step
        resumed_here = not trainer.unsaved and committer.newest_staged is None and manager.failure is None
        newest = committer.newest_staged or origin.own
        if resumed_here and origin.own is not None and not self._stop.hurry.is_set():
            staged = not committer.upload_again(origin.own)
            resumed_here = not staged
        in_store = committed or resumed_here
        # Where the store has not taken the newest, it is not asked for the best either: it may not answer.
        best = self._best(manager) if in_store or run.artifacts.local_root is not None else None
        manager.abandon()
        code, why = 0, "all epochs done"
        if trainer.stopping.exhausted:
            why = f"no improvement of {trainer.stopping.metric} in {trainer.stopping.patience} evaluations"
        if stopped:
            code, why = STOPPED if in_store else STOPPED_STAGED, f"stopped by {self._stop.reason}"
        if not (in_store or staged):
            code, why = (
                NOT_KEPT,
                f"the last checkpoint could not be kept: {manager.failure or 'it was not written in time'}",
            )
        only_local = newest if staged and not in_store else None
        if only_local is not None:
            run.mark_only_local(only_local.name, "KILLED" if stopped else "FINISHED")
            why += "; the newest checkpoint is on this machine only"
        run.outbox.finish_epochs(trainer.history)
        self._note(run, best)
        left = deadline - time.monotonic() if stopped or run.trouble is not None else grace_seconds()
        grace = 0.0 if self._stop.hurry.is_set() else max(1.0, left)
        # FINISHED means that the store has it all; what is not there yet can be resumed, or sent by mltrain sync.
        status: Status = "FINISHED" if in_store and not stopped else "KILLED"
        delivered = run.close(status, why, grace, interrupted=lambda: self._stop.requested)
        run.require_hold()
        if code == 0 and only_local is not None and run.ending.closed:
            code = STOPPED_STAGED  # where the tracking server is away as well, the training has done all that it could
        if code in (0, STOPPED) and run.ending.lost:
            code = NOT_KEPT
        row = trainer.history.rows[-1] if trainer.history.rows else {}
        outcome = Outcome(
            run.id,
            code,
            why,
            newest if only_local is not None else committer.newest_staged,
            best,
            row,
            delivered,
            run.known,
            run.trouble,
            only_local is not None,
            run.ending.lost,
        )
        self._display.ended(outcome)
        return outcome

    def _upload(self, manager: CheckpointManager, troubled: Callable[[], bool], deadline: float) -> None:
        """Wait until everything is committed; once there is trouble, no longer than until the deadline.

        Who is in a hurry waits for this disk only: what is complete there can be resumed from.
        """
        tried = time.monotonic()
        while not manager.wait(0.2) and not self._stop.hurry.is_set():
            now = time.monotonic()
            if (troubled() or manager.committer.idle) and now > deadline:
                return
            if manager.committer.idle and now - tried > _RETRY_SECONDS:
                tried = now
                manager.committer.retry()
        manager.committer.settle(max(0.0, deadline - time.monotonic()))

    def _best(self, manager: CheckpointManager) -> Manifest | None:
        try:
            return manager.best()
        except MltrainError:
            return None

    def _note(self, run: TrackedRun, best: Manifest | None) -> None:
        said = None
        if best is not None and self._config.best_metric in best.metrics:
            said = f"{self._config.best_metric} {best.metrics[self._config.best_metric]:.5g} at {best.title}"
        run.set_tag("mlflow.note.content", note(self._project.name, run.id, said, run.hold.attempts))

    def _committed(self, manifest: Manifest, best: Manifest | None, store: CheckpointStore) -> None:
        """After a commit: release what this run began from, and copy weights to where the user wants them."""
        self._origins.release()
        folder = self._config.model_save_path
        if folder is not None:
            copy_weights(store, manifest, folder, "latest")
            if best is not None and best.id == manifest.id:
                copy_weights(store, manifest, folder, "best")


def copy_weights(store: CheckpointStore, manifest: Manifest, folder: Path, stem: str) -> list[Path]:
    """Copy a checkpoint's weights, verified, to ``<stem>.safetensors`` in a folder (numbered where they are split).

    Raises:
        DamagedCheckpoint, StorageError: they are not as committed, or cannot be written.
    """
    weights = store.fetch(manifest, only=lambda name: name.startswith("model"))
    paths = [folder / name.replace("model", stem, 1) for name in weights]
    for path, content in zip(paths, weights.values(), strict=True):
        replace_file(path, bytes(content))
    return paths


def policy_of(config: Config) -> Policy:
    """Return the retention policy that a configuration means.

    Raises:
        ConfigError: its expression cannot be read.
    """
    if config.retention is not None:
        return parse(config.retention)
    return Latest(1 if config.checkpoint_mode == "latest" else config.max_to_keep) | Best(1)


def refuse_unusable(config: Config, server: TrackingClient) -> None:
    """Refuse what a configuration asks of this machine and cannot have, before a run is opened for it.

    Raises:
        ConfigError: a value is out of bounds, this machine lacks the device, or the retention policy cannot be read.
        StorageError: a folder that is written to cannot be.
    """
    try:
        # A project that declares a key anew, for a default of its own, does not take its bounds away.
        Config.model_validate({name: getattr(config, name) for name in Config.model_fields if hasattr(config, name)})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(
            f"{first['loc'][0]}={first['input']!r:.80} is not accepted: {first['msg'].lower()}."
        ) from None
    policy_of(config)
    devices.chosen(config.device)
    refuse_unwritable_home(server)
    if config.model_save_path is not None:
        refuse_unwritable(config.model_save_path, "Give another folder as model_save_path=FOLDER.")
