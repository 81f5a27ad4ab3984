"""Uploads the last checkpoints, and closes the run."""

import time
from dataclasses import dataclass

from mltrain.checkpoint.closing import await_store
from mltrain.checkpoint.manifest import Manifest
from mltrain.checkpoint.ports import Status
from mltrain.commands.preparation import Prepared
from mltrain.commands.result import NOT_KEPT, STOPPED, STOPPED_STAGED, Display, Outcome
from mltrain.errors import MltrainError, NonFiniteLoss
from mltrain.manager import CheckpointManager
from mltrain.ownership.run_folder import grace_seconds
from mltrain.run.description import evaluation_options, note
from mltrain.run.tracked import TrackedRun
from mltrain.signals import StopRequest
from mltrain.trainer.loop import Trainer


@dataclass(frozen=True)
class _Kept:
    """Where the last state of a training is kept.

    Attributes:
        in_store: whether the artifact store has it.
        staged: whether this machine has it.
        newest: the newest checkpoint that was staged, or the one the training resumed from.
    """

    in_store: bool
    staged: bool
    newest: Manifest | None


@dataclass(frozen=True)
class Ending:
    """Ends a training that is done or was stopped.

    Attributes:
        run: the run to close.
        manager: writes and uploads the last checkpoints.
        prepared: has the trainer, and the checkpoint that it began from.
        stop: whether and why the training was stopped.
        display: shows the wait and the outcome.
        project: name of the project, for the run's description.
    """

    run: TrackedRun
    manager: CheckpointManager
    prepared: Prepared
    stop: StopRequest
    display: Display
    project: str

    @property
    def _stopped(self) -> bool:
        return not self.prepared.trainer.done

    def outcome(self) -> Outcome:
        """Wait for the last checkpoints, and close the run.

        Raises:
            NonFiniteLoss: the last state is not finite and was not kept.
            RunHeld: another process has taken the run over.
        """
        run, manager = self.run, self.manager
        deadline = time.monotonic() + grace_seconds()
        self.display.waiting("writing and uploading checkpoints")
        await_store(manager.committer, deadline, self.stop.hurry, lambda: self._in_trouble)
        if isinstance(manager.failure, NonFiniteLoss):
            raise manager.failure
        kept = self._kept()
        # A remote store that did not take the newest checkpoint may not answer, so do not ask it for the best one.
        best = self._best() if kept.in_store or run.artifacts.local_root is not None else None
        manager.abandon()
        code, why = self._verdict(kept)
        only_local = kept.newest if kept.staged and not kept.in_store else None
        if only_local is not None:
            run.mark_only_local(only_local.name, "KILLED" if self._stopped else "FINISHED")
            why += "; the newest checkpoint is on this machine only"
        run.outbox.media.finish_epochs(self.prepared.trainer.history)
        describe(run, self.project, self.prepared.trainer, best)
        delivered = self._closed(kept, why, deadline)
        if code == 0 and only_local is not None and run.ending.closed:
            code = STOPPED_STAGED  # with the tracking server down as well, mltrain sync finishes the run
        if code in (0, STOPPED) and run.ending.lost:
            code = NOT_KEPT
        rows = self.prepared.trainer.history.rows
        outcome = Outcome(
            run_id=run.id,
            exit_code=code,
            why=why,
            newest=only_local or manager.committer.newest_staged,
            best=best,
            metrics=rows[-1] if rows else {},
            delivered=delivered,
            known=run.known,
            trouble=run.trouble,
            only_local=only_local is not None,
            lost=run.ending.lost,
        )
        self.display.ended(outcome)
        return outcome

    @property
    def _in_trouble(self) -> bool:
        return self._stopped or self.run.trouble is not None

    def _kept(self) -> _Kept:
        """Return where the last state is kept, uploading if necessary."""
        committer, step, resumed = self.manager.committer, self.prepared.trainer.progress.step, self.prepared.origin.own
        committed = committer.newest_committed is not None and committer.newest_committed.step == step
        staged = committer.newest_staged is not None and committer.newest_staged.step == step
        resumed_here = (
            not self.prepared.trainer.unsaved and committer.newest_staged is None and self.manager.failure is None
        )
        newest = committer.newest_staged or resumed
        if resumed_here and resumed is not None and not self.stop.hurry.is_set():
            staged = not committer.upload_again(resumed)
            resumed_here = not staged
        return _Kept(committed or resumed_here, staged, newest)

    def _verdict(self, kept: _Kept) -> tuple[int, str]:
        """Return the exit code and why the training ended."""
        stopping = self.prepared.trainer.stopping
        if not (kept.in_store or kept.staged):
            failure = self.manager.failure or "it was not written in time"
            return NOT_KEPT, f"the last checkpoint could not be kept: {failure}"
        if self._stopped:
            return STOPPED if kept.in_store else STOPPED_STAGED, f"stopped by {self.stop.reason}"
        if stopping.exhausted:
            return 0, f"no improvement of {stopping.metric} in {stopping.patience} evaluations"
        return 0, "all epochs done"

    def _closed(self, kept: _Kept, why: str, deadline: float) -> bool:
        """Close the run; return whether the tracking server has everything."""
        left = deadline - time.monotonic() if self._in_trouble else grace_seconds()
        grace = 0.0 if self.stop.hurry.is_set() else max(1.0, left)
        # FINISHED promises that the store has everything; a KILLED run can be resumed, or completed by mltrain sync.
        status: Status = "FINISHED" if kept.in_store and not self._stopped else "KILLED"
        delivered = self.run.close(status, why, grace, interrupted=lambda: self.stop.requested)
        self.run.require_hold()
        return delivered

    def _best(self) -> Manifest | None:
        try:
            return self.manager.best()
        except MltrainError:
            return None


def describe(run: TrackedRun, project: str, trainer: Trainer, best: Manifest | None) -> None:
    """Set the run's description in MLflow's UI."""
    metric, value = trainer.config.best_metric, None
    if best is not None and metric in best.metrics:
        value = f"{metric} {best.metrics[metric]:.5g} at {best.title}"
    evaluation = evaluation_options(trainer.task)
    run.set_tag("mlflow.note.content", note(project, run.id, value, run.hold.attempts, evaluation))
