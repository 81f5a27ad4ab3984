"""Runs a training from the request to the closed run."""

import logging
import os
import signal
import threading
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mltrain.commands.beginning import Beginning
from mltrain.commands.checks import policy_of, refuse_unusable, warn_without_effect
from mltrain.commands.ending import Ending
from mltrain.commands.export import Export
from mltrain.commands.following import Follower, process_role
from mltrain.commands.logged_model import log_models
from mltrain.commands.preparation import Preparation, Prepared
from mltrain.commands.ranks import Alone, refuse_several
from mltrain.commands.result import Display, Outcome
from mltrain.commands.resume_target import resolve_target
from mltrain.commands.train_request import Request, request_of
from mltrain.commands.wanted_run import WantedRun, complete, continued, is_complete
from mltrain.errors import MltrainError
from mltrain.manager import CheckpointManager
from mltrain.ownership import launcher as launchers
from mltrain.ownership.launcher import Launcher
from mltrain.ownership.reaper import close_if_dead
from mltrain.ownership.run_folder import grace_seconds
from mltrain.project import Project
from mltrain.redaction import remember_environment
from mltrain.rng import Rng
from mltrain.run.tracked import TrackedRun
from mltrain.signals import StopRequest
from mltrain.tracking.client import TRAINING_RETRY_SECONDS, TrackingClient, connect

log = logging.getLogger(__name__)


def train(project: str | Path | Project | None = None, **words: Any) -> Outcome:
    """Train a project as an MLflow run; return the outcome.

    >>> mltrain.train("my_project.py", lr=3e-4, name="first")
    >>> mltrain.train(resume_run="4f1c...", epochs=60)

    Args:
        project: a registered name, a file, a folder, or a project itself. If ``None``, the one that the resumed run recorded.
        **words: keys of the project's configuration, and options of ``mltrain train``: ``name`` of a new run, ``config`` (a
            file, or several), ``preset``, ``resume_run``, ``resume_from``, ``fork_run``, ``run_key``, ``take_over``,
            ``allow_change``, ``require_tracking``.

    Raises:
        UsageError: an argument is neither an option nor a key.
        MltrainError: the training failed; its run, if already open, is closed as FAILED.
    """
    return run_training(request_of(project, words))


def run_training(request: Request, display: Display | None = None, stop: StopRequest | None = None) -> Outcome:
    """Train as requested, and close the run.

    Args:
        request: the request to train.
        display: shows the training. If ``None``, nothing is shown.
        stop: a request to stop shared by several trainings in a row. If ``None``, a new one is installed.

    Raises:
        MltrainError: the training failed; its run, if already open, is closed as FAILED.
    """
    remember_environment()
    server = connect(retry_seconds=TRAINING_RETRY_SECONDS)
    if stop is not None:
        refuse_several()
        return _Session(resolve_target(request, server), display or Display(), stop, server, None, Alone()).run()
    launcher = launchers.detect(os.environ)
    with StopRequest(launcher_pid=launchers.watched(launcher, os.environ)) as stop, process_role(os.environ) as ranks:
        if isinstance(ranks, Follower):
            return ranks.follow(request.project, stop)
        display, request = display or Display(), resolve_target(request, server)
        if request.run_key is not None:
            request, run = continued(request, server, launcher)
            if run is not None and is_complete(run):
                return ranks.end(complete(server, run, launcher, display))
        return ranks.end(_Session(request, display, stop, server, launcher, ranks).run())


@dataclass
class _Session:
    """One attempt: first every check, then run and training."""

    request: Request
    display: Display
    stop: StopRequest
    server: TrackingClient
    launcher: Launcher | None
    ranks: Alone
    manager: CheckpointManager | None = None
    began: bool = False

    def __post_init__(self) -> None:
        self._wanted = WantedRun(self.request, self.server, self.launcher)
        self._preparation = Preparation(self.request, self.server, self.stop, self.ranks)
        self.stop.on_usr1 = self._preparation.config.on_usr1

    def run(self) -> Outcome:
        with closing(self._preparation):
            return self._run()

    def _run(self) -> Outcome:
        try:
            known = self._wanted.known(self._preparation.config.experiment)
            if known is not None:
                self.display.resuming(known.info.run_id)
            refuse_unusable(self._preparation.config, self.server)
            warn_without_effect(self._preparation.config)
            prepared = self._preparation.prepare(known)
        except KeyboardInterrupt:
            if self.request.resume_run is None:
                raise
            with suppress(MltrainError):
                close_if_dead(self.server, self.request.resume_run)  # no process holds it
            return self._stopped_early(self.request.resume_run)
        run = self._wanted.open(self._preparation.project.name, prepared.config)
        try:
            return self._trained(run, prepared)
        except KeyboardInterrupt:
            run.close("KILLED", f"stopped by {self.stop.reason} before the first step", grace_seconds())
            return self._stopped_early(run.id)
        except BaseException as error:
            self._failed(run, error)
            raise

    def _stopped_early(self, run_id: str) -> Outcome:
        return Outcome(run_id, self.stop.exit_code, "stopped before the first step")

    def _failed(self, run: TrackedRun, error: BaseException) -> None:
        """Finish the pending checkpoint, and close the failed run.

        Torch's handler of SIGCHLD would raise the death of a loader's worker again, in the middle of it.
        """
        torchs = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if _may_set_child_handler() else None
        try:
            self._close_failed(run, error)
        finally:
            if torchs is not None:
                signal.signal(signal.SIGCHLD, torchs)

    def _close_failed(self, run: TrackedRun, error: BaseException) -> None:
        """Close the run with its error."""
        deadline = time.monotonic() + grace_seconds()
        if self.manager is not None:
            self.manager.wait(grace_seconds())
            self.manager.abandon()
        # A resume that failed before training keeps the earlier status.
        status = "FAILED" if self.began else run.ending.opened.earlier or "FAILED"
        why = f"{type(error).__name__}: {error}"[:500]
        run.close(status, why, max(1.0, deadline - time.monotonic()))
        if not isinstance(error, MltrainError):
            first = "" if run.known else "mltrain sync, then "
            error.add_note(
                f"Run {run.id} is {status}; its checkpoints are intact. Try: {first}mltrain train --resume-run {run.id}"
            )

    def _trained(self, run: TrackedRun, prepared: Prepared) -> Outcome:
        """Record the training, train, and close the run."""
        config = prepared.config
        manager = self.manager = CheckpointManager(
            run,
            policy=policy_of(config, prepared.trainer.task.policy),
            metric=config.best_metric,
            mode=config.best_mode,
            staging_gigabytes=config.staging_gigabytes,
        )
        if config.model_save_path is not None or config.checkpoint_path is not None:
            manager.when_committed(Export(config, self._preparation.project.name))
        beginning = Beginning(self.request, run, manager, self._preparation, self.ranks)
        beginning.announce(prepared, self.display)
        if not self._preparation.origins.is_current(prepared.origin, manager):
            # Another process has saved or pruned in the meantime.
            prepared = self._preparation.prepare(self.server.run(run.id))
        beginning.record(prepared)
        Rng().load_state_dict(prepared.random_numbers)  # opening the run may have drawn random numbers
        beginning.save_origin(prepared)
        self._loop(prepared)
        project = self._preparation.project.name
        outcome = Ending(run, manager, prepared, self.stop, self.display, project).outcome()
        if config.logged_models != "none" and outcome.exit_code == 0 and outcome.delivered:
            with suppress(KeyboardInterrupt):  # the run is already closed
                log_models(self.server, run.id, prepared.trainer.task, project, config.logged_models)
        return outcome

    def _loop(self, prepared: Prepared) -> None:
        trainer = prepared.trainer
        first_step = trainer.progress.step
        self.ranks.begin()
        self.began = True
        self.display.began(trainer, str(prepared.origin))
        self.stop.finish_steps()
        for _ in trainer.steps():
            self.display.stepped(trainer)
            self._preparation.look()
        if self.stop.requested and trainer.progress.step == first_step and not trainer.done:
            raise KeyboardInterrupt


def _may_set_child_handler() -> bool:
    """Whether this process and thread have a handler of SIGCHLD."""
    return hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
