"""A training that another engine runs: its run, checkpoints and curves, and how it ends."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mltrain.adapters.origin import Origin, refuse_checkpoints
from mltrain.checkpoint.closing import await_store
from mltrain.checkpoint.manifest import CheckpointId, Kind
from mltrain.checkpoint.ports import Status
from mltrain.checkpoint.pytree import flatten
from mltrain.checkpoint.settings import Settings, newest_and_best
from mltrain.errors import MltrainError, RunHeld, UsageError
from mltrain.manager import CheckpointManager
from mltrain.ownership.run_folder import grace_seconds
from mltrain.redaction import remember_environment
from mltrain.run.opening import open_run
from mltrain.run.tracked import TrackedRun
from mltrain.signals import StopRequest
from mltrain.tracking.tags import RESUMED_FROM_TAG, REWOUND_PREFIX

log = logging.getLogger(__name__)


class Training:
    """One training of another engine, and the run that it writes to.

    What can be refused is refused before the run is created or claimed; its id is printed as soon as there is one. Points that
    an earlier attempt has recorded beyond the origin are not recorded again. From its construction to :meth:`end`, requests to
    stop wait in :attr:`stop`.

    Args:
        origin: the checkpoint that the training continues. If ``None``, it begins.
        run_id: of a run without checkpoints to begin in. If ``None``, the active MLflow run or a new one.
        save_dir: a folder that holds the checkpoints of a new training, in place of a run.
        kept: which checkpoints stay, and which one is best. If ``None``, the newest five and the best one.
        state: the state at the beginning; what cannot be saved of it is refused.
        parameters: of the run, name to text; those that the run has already stay as they are.

    Attributes:
        manager: saves.
        run: takes metrics and parameters; ``None`` in a folder.
        stop: requests to stop.
        saved_step: the step of the newest save; before the first, that of the origin, or -1.

    Raises:
        UnsupportedValue: ``state`` holds something that is neither a tensor nor plain data.
        UsageError: the active run or the folder has checkpoints, and there is no origin; or an argument is invalid.
        RunHeld: another process writes to the run, or has saved since the origin was read.
        RunNotFound, TrackingError, StorageError: the run cannot be written to.
    """

    def __init__(
        self,
        origin: Origin | None = None,
        *,
        run_id: str | None = None,
        save_dir: str | Path | None = None,
        kept: Settings | None = None,
        state: Mapping[str, Any] | None = None,
        parameters: Mapping[str, str] | None = None,
    ) -> None:
        flatten(state or {})
        remember_environment()
        if origin is None and run_id is None:
            refuse_checkpoints(save_dir)
        elif origin is not None and origin.address.is_folder:
            save_dir = origin.address.place
        elif origin is not None:
            run_id, save_dir = origin.address.place, None
        kept = kept if kept is not None else Settings(newest_and_best(5))
        self.manager = CheckpointManager(
            run_id, save_dir=save_dir, policy=kept.policy, metric=kept.metric, mode=kept.mode
        )
        self.run = self.manager.run if isinstance(self.manager.run, TrackedRun) else None
        self.saved_step = origin.manifest.step if origin is not None else -1
        self.stop = StopRequest()
        self._ended = False
        try:
            if origin is not None:
                self._continue(origin)
            if self.run is not None:
                self.run.record_parameters(parameters or {})
        except BaseException as error:
            self._withdraw(f"{type(error).__name__}: {error}"[:500])
            raise
        self.stop.__enter__()
        self.stop.finish_steps()
        self.manager.run.when_known(self._announce)

    @property
    def place(self) -> str:
        """Id of the run, provisional until there is one; without tracking, the folder."""
        return self.manager.store.title.partition(" ")[2]

    def _announce(self) -> None:
        print(f"{'run_id' if self.run is not None else 'save_dir'}={self.place}", flush=True)

    def log(self, values: Mapping[str, float], step: int, *, clock: tuple[str, ...] = ()) -> None:
        """Record metric points of one step, once each; without tracking, nothing.

        Args:
            values: name to value.
            step: on the axis of the saved steps: points up to a checkpoint's step belong to it, later ones are made again.
            clock: ends of the names whose values tell the time, so that a repeated step may have other ones.
        """
        if self.run is not None and values:
            timed = {key: value for key, value in values.items() if clock and key.endswith(clock)}
            self.run.log_metrics({key: value for key, value in values.items() if key not in timed}, step)
            self.run.log_metrics(timed, step, compared=False)

    def save(
        self,
        state: Mapping[str, Any],
        step: int,
        epoch: int,
        metrics: Mapping[str, float] | None = None,
        kind: Kind = "step",
        *,
        evaluated: bool = True,
    ) -> CheckpointId:
        """Copy a state, and commit it in the background; see :meth:`mltrain.CheckpointManager.save`.

        Args:
            state: names to tensors and plain values.
            step: optimizer steps done.
            epoch: epochs done.
            metrics: measured at this step.
            kind: ``epoch``, ``step`` or ``interrupted``.
            evaluated: whether a warning should say if the metric that decides which checkpoint is best is missing.
        """
        extra: dict[str, bytes] | None = None if evaluated else {}
        identity = self.manager.save(state, step=step, epoch=epoch, metrics=metrics, kind=kind, extra=extra)
        self.saved_step = step
        return identity

    def leave(self) -> NoReturn:
        """Close the run at a request to stop, and raise what ends the process.

        Raises:
            KeyboardInterrupt: at SIGINT.
            SystemExit: at another signal, with 128 + the number of SIGTERM.
        """
        error = KeyboardInterrupt() if self.stop.reason == "SIGINT" else SystemExit(self.stop.exit_code)
        self.end(error)  # before an engine ignores SIGINT: a second one ends the wait for the store
        raise error

    def end(self, error: BaseException | None = None) -> None:
        """Wait until everything saved is committed, and close the run with its true status.

        A second request to stop ends the wait for the store. Where the store or the server is away, or there is an ``error``,
        the wait ends after ``MLTRAIN_GRACE_SECONDS``, and what is on this disk is sent by ``mltrain sync``.

        Args:
            error: that ended the training. If ``None``, the training is complete.

        Raises:
            MltrainError: the newest checkpoint could not be kept. With an ``error`` it is logged, so that the caller can raise
                the error.
        """
        if self._ended:
            return
        self._ended = True
        try:
            deadline = time.monotonic() + grace_seconds()
            await_store(
                self.manager.committer, deadline, self.stop.hurry, lambda: error is not None or self._in_trouble
            )
            self.manager.close(status_of(error), wait=False)
        except MltrainError as failure:
            if error is None:
                raise
            log.error("%s", failure)
        finally:
            self.stop.__exit__(None, None, None)

    @property
    def _in_trouble(self) -> bool:
        return self.run is not None and self.run.trouble is not None

    def _continue(self, origin: Origin) -> None:
        """Let saves and curves go on from the origin."""
        newer = {manifest.id for manifest in self.manager.reader.all()} - origin.known
        if newer:
            raise RunHeld(
                f"Another process has saved {', '.join(one.name for one in sorted(newer, key=lambda one: one.order))} of "
                f"{self.manager.store.title} meanwhile. Expected one that continues it. Try: the same command again, once that "
                "one has ended."
            )
        self.manager.continue_from(origin.manifest, origin.damaged)
        if self.run is None:
            return
        step = origin.manifest.step
        self.run.set_tag(RESUMED_FROM_TAG, origin.manifest.name)
        self.run.attempt.resumed_from = origin.manifest.name
        if origin.rolls_back:
            log.warning(
                "From step %d on new values are recorded beside those that the run may have there already (rolled back to "
                "%s): MLflow deletes no points.",
                step,
                origin.manifest.name,
            )
            self.run.set_tag(f"{REWOUND_PREFIX}{self.run.ordinal}", str(step))
        else:
            self.run.continue_exactly_after(step - 1)  # an engine may log once more at the step that it resumes
        self.run.record.attempt()

    def _withdraw(self, why: str) -> None:
        self.manager.abandon()
        if self.run is not None:
            self.run.withdraw(why)
        else:
            self.manager.run.detach("KILLED")


def status_of(error: BaseException | None) -> Status:
    """Return the status of a run whose training an exception ended, or nothing did."""
    if error is None:
        return "FINISHED"
    return "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"


def record_late(run_id: str, points: Sequence[tuple[Mapping[str, float], int]]) -> None:
    """Record points in a run whose training has ended, and leave its status as it was.

    Args:
        run_id: of the run.
        points: values by name, and their step.

    Raises:
        RunHeld: another process writes to the run.
        TrackingError: the server does not answer.
    """
    run = open_run(run_id)
    for values, step in points:
        run.log_metrics(values, step)
    run.detach(run.ending.opened.earlier or "FINISHED")


def refuse_ranks(size: int, engine: str) -> None:
    """Refuse a training that several processes share.

    Raises:
        UsageError: there are several.
    """
    if size > 1:
        raise UsageError(
            f"{engine} trains in {size} processes, and a checkpoint of mltrain would hold the state of one of them. Expected a "
            "single process. Try: one device; or mltrain train under torchrun, see docs/distributed.md."
        )
