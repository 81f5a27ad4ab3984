"""A whole training: from a project and a request to a run that is closed with its true status."""

import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from mltrain.commands import keyed
from mltrain.commands.checks import policy_of, refuse_unusable, warn_without_effect
from mltrain.commands.ending import Ending, describe
from mltrain.commands.export import Export
from mltrain.commands.following import Follower, joined
from mltrain.commands.logged_model import log_models
from mltrain.commands.preparation import Preparation, Prepared
from mltrain.commands.ranks import Alone, refuse_several
from mltrain.commands.result import Display, Outcome
from mltrain.commands.resume_word import in_full
from mltrain.commands.train_request import Request, request_of
from mltrain.errors import MltrainError, RunNotFound
from mltrain.manager import CheckpointManager
from mltrain.ownership import launcher as launchers
from mltrain.ownership.attempts import recorded_config
from mltrain.ownership.launcher import Launcher
from mltrain.ownership.reaper import close_if_dead
from mltrain.ownership.run_folder import grace_seconds
from mltrain.project import Project
from mltrain.provenance import fingerprint
from mltrain.redaction import remember_environment
from mltrain.rng import Rng
from mltrain.run import adoption, opening
from mltrain.run.key import confirm
from mltrain.run.naming import experiment_for, run_name
from mltrain.run.preparation import soon
from mltrain.run.tracked import TrackedRun
from mltrain.signals import StopRequest
from mltrain.tracking.client import TRAINING_RETRY_SECONDS, TrackingClient, connect
from mltrain.tracking.places import location
from mltrain.tracking.tags import FORKED_FROM_TAG, IMPORTED_TAG, RESUMED_FROM_TAG, REWOUND_PREFIX

log = logging.getLogger(__name__)


def train(project: str | Path | Project | None = None, **words: Any) -> Outcome:
    """Train a project as an MLflow run, and return how the training ended.

    >>> mltrain.train("my_project.py", lr=3e-4, name="first")
    >>> mltrain.train(resume_run="4f1c...", epochs=60)

    Args:
        project: a registered name, a file, a folder, or a project itself. If ``None``, the one that the resumed run recorded.
        **words: keys of the project's configuration, and options of ``mltrain train``: ``name`` of a new run, ``config`` (a
            file, or several), ``preset``, ``resume_run``, ``resume_from``, ``fork_run``, ``run_key``, ``take_over``,
            ``allow_change``, ``require_tracking``.

    Raises:
        UsageError: a word is neither an option nor a key.
        MltrainError: the training cannot be done; the run, if there is one by then, is closed as FAILED.
    """
    return run_training(request_of(project, words))


def run_training(request: Request, display: Display | None = None, stop: StopRequest | None = None) -> Outcome:
    """Train what is requested, and close the run with its true status.

    Args:
        request: what is wanted.
        display: shows the training. If ``None``, nothing is shown.
        stop: installed by a caller that trains several things one after the other. If ``None``, one is installed.

    Raises:
        MltrainError: the training cannot be done; the run, if there is one by then, is closed as FAILED.
    """
    remember_environment()
    server = connect(retry_seconds=TRAINING_RETRY_SECONDS)
    if stop is not None:
        refuse_several("A pipeline")
        return _Session(in_full(request, server), display or Display(), stop, server, None, Alone()).run()
    launcher = launchers.detect(os.environ)
    with StopRequest(launcher_pid=launchers.watched(launcher, os.environ)) as stop, joined(os.environ) as ranks:
        if isinstance(ranks, Follower):
            return ranks.follow(request.project, stop)
        display, request = display or Display(), in_full(request, server)
        if request.run_key is not None:
            request, run = keyed.continued(request, server, launcher)
            if run is not None and keyed.is_complete(run):
                return ranks.end(keyed.complete(server, run, launcher, display))
        return ranks.end(_Session(request, display, stop, server, launcher, ranks).run())


class _Session:
    """One attempt, from the request to the closed run: first all that can be refused, then the run, then the training."""

    def __init__(
        self,
        request: Request,
        display: Display,
        stop: StopRequest,
        server: TrackingClient,
        launcher: Launcher | None,
        ranks: Alone,
    ) -> None:
        self._request = request
        self._display = display
        self._stop = stop
        self._server = server
        self._launcher = launcher
        self._ranks = ranks
        self._preparation = Preparation(request, server, stop, ranks)
        self._manager: CheckpointManager | None = None
        self._began = False
        stop.on_usr1 = self._preparation.config.on_usr1

    def run(self) -> Outcome:
        try:
            return self._run()
        finally:
            self._preparation.close()

    def _run(self) -> Outcome:
        try:
            known = self._known()
            if known is not None:
                self._display.resuming(known.info.run_id)
            refuse_unusable(self._preparation.config, self._server)
            warn_without_effect(self._preparation.config)
            prepared = self._preparation.prepare(known)
        except KeyboardInterrupt:
            if self._request.resume_run is None:
                raise
            with suppress(MltrainError):
                close_if_dead(self._server, self._request.resume_run)  # no process holds it
            return self._stopped_early(self._request.resume_run)
        run = self._opened(prepared)
        try:
            return self._trained(run, prepared)
        except KeyboardInterrupt:
            run.close("KILLED", f"stopped by {self._stop.reason} before the first step", grace_seconds())
            return self._stopped_early(run.id)
        except BaseException as error:
            self._failed(run, error)
            raise

    def _stopped_early(self, run_id: str) -> Outcome:
        return Outcome(run_id, self._stop.exit_code, "stopped before the first step", None, None, {})

    def _failed(self, run: TrackedRun, error: BaseException) -> None:
        """Let a checkpoint that is being written become complete, and close the run with the error."""
        deadline = time.monotonic() + grace_seconds()
        if self._manager is not None:
            self._manager.wait(grace_seconds())
            self._manager.abandon()
        # A resume that never began leaves the earlier status.
        status = "FAILED" if self._began else run.ending.opened.earlier or "FAILED"
        why = f"{type(error).__name__}: {error}"[:500]
        run.close(status, why, max(1.0, deadline - time.monotonic()))
        if not isinstance(error, MltrainError):
            first = "" if run.known else "mltrain sync, then "
            error.add_note(
                f"Run {run.id} is {status}; what it committed is intact: {first}mltrain train --resume-run {run.id}"
            )

    def _known(self) -> Any | None:
        """Return MLflow's description of the run that is resumed, and refuse a run that cannot be had."""
        if self._request.resume_run is not None:
            return opening.resumable(self._server, self._request.resume_run, take_over=self._request.take_over)
        if self._launcher is not None:
            found = adoption.adoptable(self._server, self._launcher)
            wanted = self._preparation.config.experiment
            experiment = self._server.get_experiment(found.info.experiment_id).name
            if wanted is not None and wanted != experiment:
                log.warning(
                    "experiment=%s is not used: the run that MLFLOW_RUN_ID names is in the experiment %s.",
                    wanted,
                    experiment,
                )
        return None

    def _opened(self, prepared: Prepared) -> TrackedRun:
        """Open the run: resume it, adopt the one that ``mlflow run`` created, or create one."""
        request = self._request
        if request.resume_run is not None:
            if request.run_key is not None:
                confirm(self._server, request.resume_run, request.run_key)
            return opening.resume(
                self._server, request.resume_run, take_over=request.take_over, launcher=self._launcher
            )
        tags = dict(request.tags)
        if request.parent is not None:
            tags["mlflow.parentRunId"] = request.parent
        if request.fork_run is not None:
            tags |= {"mlflow.parentRunId": request.fork_run, FORKED_FROM_TAG: request.fork_run}
        if request.resume_file is not None:
            tags[IMPORTED_TAG] = request.resume_file.name
        name, project = prepared.config.run_name, self._preparation.project.name
        telling = run_name(project, request.preset, request.overrides)
        if self._launcher is not None:
            return adoption.adopt(self._server, self._launcher, name, project, tags, otherwise=telling)
        return opening.create(
            self._server,
            experiment_for(project, prepared.config.experiment),
            name or telling,
            project,
            tags,
            may_defer=not request.require_tracking and request.run_key is None,
            seconds=soon(self._server),
        )

    def _trained(self, run: TrackedRun, prepared: Prepared) -> Outcome:
        """Record what is trained, train it, and close the run."""
        config = prepared.config
        manager = self._manager = CheckpointManager(
            run,
            policy=policy_of(config, prepared.trainer.task.policy),
            metric=config.best_metric,
            mode=config.best_mode,
            staging_gigabytes=config.staging_gigabytes,
        )
        if config.model_save_path is not None or config.checkpoint_path is not None:
            manager.when_committed(Export(config, self._preparation.project.name))
        self._announce(run, prepared)
        if not self._preparation.origins.is_current(prepared.origin, manager):
            # Another process has saved or pruned meanwhile.
            prepared = self._preparation.prepare(self._server.run(run.id))
        self._record(run, manager, prepared)
        Rng().load_state_dict(prepared.random_numbers)  # opening the run may have drawn some
        self._save_origin(manager, prepared)
        self._loop(prepared)
        project = self._preparation.project.name
        outcome = Ending(run, manager, prepared, self._stop, self._display, project).outcome()
        if config.logged_models != "none" and outcome.exit_code == 0 and outcome.delivered:
            with suppress(KeyboardInterrupt):  # the training itself is done and closed
                log_models(self._server, run.id, prepared.trainer.task, project, config.logged_models)
        return outcome

    def _announce(self, run: TrackedRun, prepared: Prepared) -> None:
        """Record the configuration, and only then announce the run's id: from then on the run can be resumed."""
        config, project = prepared.config, self._preparation.project.name

        def record() -> None:
            if self._request.resume_run is None or self._unrecorded(run, prepared):
                run.record_start(config.resolved(), config.recorded(), project)

        try:
            record()
        except KeyboardInterrupt:
            record()  # a request to stop interrupts once, and the run that it leaves can be resumed
            raise
        finally:
            run.when_known(
                lambda: self._display.opened(run, location(self._server, run.identity.experiment_id, run.id))
            )

    def _unrecorded(self, run: TrackedRun, prepared: Prepared) -> bool:
        """Whether a run has recorded no configuration: a prescribed one was killed before, or it was imported without."""
        if self._request.config is None and (prepared.origin.own is None or prepared.origin.params is not None):
            return False
        try:
            return not recorded_config(run.artifacts).get("project")
        except RunNotFound:
            return True

    def _record(self, run: TrackedRun, manager: CheckpointManager, prepared: Prepared) -> None:
        """Record what this attempt begins from, and record and save in the run from now on."""
        origin, trainer, attempt = prepared.origin, prepared.trainer, run.attempt
        if origin.own is not None:
            manager.continue_from(origin.own, origin.damaged)
            run.set_tag(RESUMED_FROM_TAG, origin.own.name)
        self._preparation.origins.hold(origin, run, manager)
        attempt.changed = dict(prepared.changed) if origin.own is not None else {}
        attempt.resumed_from = origin.manifest.name if origin.manifest is not None else None
        attempt.versions, attempt.code = fingerprint.versions(), dict(prepared.code)
        attempt.data = dict(prepared.data)
        trainer.attach(run, self._ranks.saver(manager, trainer), self._preparation.origins.source(origin))
        if self._request.resume_run is not None:
            self._continue(run, prepared)
        run.record.attempt()
        run.record.data(prepared.config.data_places(), prepared.config.sample_data())
        self._preparation.record_writes(run)
        describe(run, self._preparation.project.name, prepared.config.best_metric, None)

    def _save_origin(self, manager: CheckpointManager, prepared: Prepared) -> None:
        """Save what a new run takes from a file, so that from then on the run's id is enough to resume."""
        origin, trainer = prepared.origin, prepared.trainer
        if origin.file is None or origin.own is not None:
            return
        if origin.manifest is None or origin.parts is None:
            trainer.save("imported")
            return
        manifest = origin.manifest
        manager.save(  # as it is read, and not as the trainer has it, whose generators of random numbers go on from here
            origin.parts,
            step=manifest.step,
            epoch=manifest.epoch,
            metrics=manifest.metrics,
            kind="step" if manifest.kind == "interrupted" else manifest.kind,
            extra=trainer.described(),
            data=dict(prepared.data),
        )

    def _continue(self, run: TrackedRun, prepared: Prepared) -> None:
        """Continue the run's curves: without a seam after an exact resume, else with a tag that names the step."""
        origin, step = prepared.origin, prepared.trainer.progress.step
        named = origin.manifest is not None and self._request.resume_from not in ("latest", "interrupted")
        rolled_back = named or origin.superseded
        matters = prepared.changes_that_matter if origin.own is not None else {}
        if not rolled_back and not matters:
            run.continue_exactly_after(step)
            self._ranks.show(prepared.trainer)
            return
        log.warning(
            "From step %d on new values are recorded beside those that the run may have there already (%s): MLflow deletes "
            "no points. For a curve of its own use --fork-run %s.",
            step,
            f"changed: {', '.join(matters)}" if matters else f"rolled back to {origin}",
            run.id,
        )
        run.set_tag(f"{REWOUND_PREFIX}{run.attempt.ordinal}", str(step))

    def _loop(self, prepared: Prepared) -> None:
        trainer = prepared.trainer
        first_step = trainer.progress.step
        self._ranks.begin()
        self._began = True
        self._display.began(trainer, str(prepared.origin))
        self._stop.finish_steps()
        for _ in trainer.steps():
            self._display.stepped(trainer)
            self._preparation.look()
        if self._stop.requested and trainer.progress.step == first_step and not trainer.done:
            raise KeyboardInterrupt
