"""The run, checkpoints and curves of another engine's training."""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
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
from mltrain.signals import StopRequest, Terminated
from mltrain.tracking.tags import REWOUND_PREFIX

log = logging.getLogger(__name__)


class Training:
    """One training of another engine, recorded in an MLflow run.

    The constructor checks ``state`` and the existing checkpoints before it creates or claims the run, and prints the run's id
    once the run is created. Points beyond the origin that an earlier attempt recorded are not recorded twice. From
    construction until :meth:`end`, :attr:`stop` records requests to stop.

    Args:
        origin: the checkpoint that the training continues. If ``None``, a new training begins.
        run_id: id of a run without checkpoints, for a new training. If ``None``, the active MLflow run or a new run is used.
        save_dir: folder for the checkpoints of a new training. If ``None``, they become artifacts of the run.
        settings: retention policy, and metric of the best checkpoint. If ``None``, the newest five and the best one stay.
        state: the state at the start, to check that a checkpoint can hold it.
        parameters: parameters of the run, name to text. Those that the run already has do not change.

    Attributes:
        manager: saves the checkpoints.
        run: records metrics and parameters. ``None`` if the checkpoints go to a folder.
        stop: records requests to stop.
        saved_step: step of the newest save. Before the first save it is the origin's step, or -1 in a new training.

    Raises:
        KeyboardInterrupt, SystemExit: a signal arrived while the run was opened, as in :meth:`leave`. The run is withdrawn.
        UnsupportedValue: ``state`` contains a value that is neither a tensor nor plain data.
        UsageError: there is no origin, but the active run or the folder has checkpoints; or an argument is invalid.
        RunHeld: another process writes to the run, or has saved to it since the origin was read.
        RunNotFound: the run does not exist.
        TrackingError: the tracking server does not answer, and the training continues a run.
        StorageError: the artifact store or the disk refuses to write.
    """

    def __init__(
        self,
        origin: Origin | None = None,
        *,
        run_id: str | None = None,
        save_dir: str | Path | None = None,
        settings: Settings | None = None,
        state: Mapping[str, Any] | None = None,
        parameters: Mapping[str, str] | None = None,
    ) -> None:
        flatten(state or {})
        remember_environment()
        if origin is None and run_id is None:
            refuse_checkpoints(save_dir)
        elif origin is not None and origin.address.is_folder:
            save_dir = origin.address.location
        elif origin is not None:
            run_id, save_dir = origin.address.location, None
        settings = settings if settings is not None else Settings(newest_and_best(5))
        self.stop, self._ended = StopRequest(), False
        with ExitStack() as opening:
            opening.enter_context(self.stop)  # a request during the opening raises, and withdraws the run
            try:
                self.manager = CheckpointManager(
                    run_id, save_dir=save_dir, policy=settings.policy, metric=settings.metric, mode=settings.mode
                )
                self.run = self.manager.run if isinstance(self.manager.run, TrackedRun) else None
                self.saved_step = origin.manifest.step if origin is not None else -1
                try:
                    if origin is not None:
                        self._continue(origin)
                    if self.run is not None:
                        self.run.record_parameters(parameters or {})
                except BaseException as error:
                    self._withdraw(f"{type(error).__name__}: {error}"[:500])
                    raise
            except Terminated as stopped:
                raise SystemExit(stopped.exit_code) from stopped
            self.stop.finish_steps()
            opening.pop_all()
        self.manager.run.when_known(self._announce)

    @property
    def location(self) -> str:
        """Id of the run, provisional until it is created; or the folder."""
        return self.manager.store.title.partition(" ")[2]

    def _announce(self) -> None:
        print(f"{'run_id' if self.run is not None else 'save_dir'}={self.location}", flush=True)

    def log(self, values: Mapping[str, float], step: int, *, timing_suffixes: tuple[str, ...] = ()) -> None:
        """Record the metric points of a step, each once.

        A training that saves to a folder records nothing.

        Args:
            values: name to value.
            step: counted like the saved steps. A checkpoint includes the points up to its step; a resume repeats later ones.
            timing_suffixes: name endings of metrics that measure time, whose values may differ when a step is repeated.
        """
        if self.run is not None and values:
            timed = {key: value for key, value in values.items() if timing_suffixes and key.endswith(timing_suffixes)}
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
        """Copy a state, and commit it in the background.

        Args:
            state: part names to tensors (any dtype and device) and plain values.
            step: optimizer steps done.
            epoch: epochs done.
            metrics: metrics measured at this step.
            kind: ``epoch``, ``step`` or ``interrupted``.
            evaluated: whether to log a warning if ``metrics`` lacks the metric of the best checkpoint.

        Raises:
            UnsupportedValue: ``state`` contains a value that is neither a tensor nor plain data.
            UsageError: a metric is not a real number, or ``step`` is lower than that of an earlier save.
            RunHeld: another process has taken the run over.
        """
        extra: dict[str, bytes] | None = None if evaluated else {}
        identity = self.manager.save(state, step=step, epoch=epoch, metrics=metrics, kind=kind, extra=extra)
        self.saved_step = step
        return identity

    def leave(self) -> NoReturn:
        """Close the run after a stop request, then exit.

        Raises:
            KeyboardInterrupt: the signal was SIGINT.
            SystemExit: another signal; the exit code is 128 + the number of SIGTERM.
        """
        error = KeyboardInterrupt() if self.stop.reason == "SIGINT" else SystemExit(self.stop.exit_code)
        self.end(error)  # now, while a second SIGINT still ends the wait for the store: engines ignore it later
        raise error

    def end(self, error: BaseException | None = None) -> None:
        """Wait until all checkpoints are committed, and close the run.

        A second request to stop ends the wait. If the store or the tracking server is unavailable, or an ``error`` ended the
        training, the wait ends after ``MLTRAIN_GRACE_SECONDS``; ``mltrain sync`` sends the rest later.

        Args:
            error: the exception that ended the training. If ``None``, the training is complete.

        Raises:
            MltrainError: the newest checkpoint was not committed. If there is an ``error``, this one is only logged, so that the
                caller can raise ``error``.
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
        """Continue checkpoints and curves from the origin."""
        newer = {manifest.id for manifest in self.manager.reader.all()} - origin.known
        if newer:
            raise RunHeld(
                f"Another process has saved {', '.join(one.name for one in sorted(newer, key=lambda one: one.order))} of "
                f"{self.manager.store.title} since this one read it. Expected one process per run. Try: the same command again "
                "once the other process has ended."
            )
        self.manager.continue_from(origin.manifest, origin.damaged)
        if self.run is None:
            return
        step = origin.manifest.step
        if origin.rolls_back:
            log.warning(
                "Rolled back to %s. MLflow deletes no points: from step %d on, curves may show old values beside the new ones.",
                origin.manifest.name,
                step,
            )
            self.run.set_tag(f"{REWOUND_PREFIX}{self.run.ordinal}", str(step))
        else:
            self.run.continue_exactly_after(step - 1)  # an engine may log again at the step that it resumes from
        self.run.record_origin(origin.manifest.id)

    def _withdraw(self, why: str) -> None:
        self.manager.abandon()
        if self.run is not None:
            self.run.withdraw(why)
        else:
            self.manager.run.detach("KILLED")


class Recorder:
    """Base of the callbacks that record an engine's trainings."""

    run_id: str | None = None
    """Id of the run (or the folder) of the newest training. ``None`` before the first one."""
    _training: Training | None = None
    _newest_metrics: tuple[int, dict[str, float]] = (-1, {})
    """The newest step with metrics, and those of that step."""

    def _measure(self, step: int, values: Mapping[str, float]) -> None:
        """Keep the metrics of a step for its checkpoint."""
        self._newest_metrics = step, {**self._measured_at(step), **values}

    def _measured_at(self, step: int) -> dict[str, float]:
        return self._newest_metrics[1] if self._newest_metrics[0] == step else {}

    def _end(self, error: BaseException | None) -> None:
        """Close the run if it is open: FINISHED if ``error`` is ``None``."""
        training, self._training = self._training, None
        if training is not None:
            try:
                training.end(error)
            finally:
                self.run_id = training.location  # the run may have been created meanwhile


def status_of(error: BaseException | None) -> Status:
    """Return the status of a run after its training.

    Args:
        error: the exception that ended the training. If ``None``, the training is complete.
    """
    if error is None:
        return "FINISHED"
    return "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"


def record_late(run_id: str, points: Sequence[tuple[Mapping[str, float], int]]) -> None:
    """Record late metric points, and keep the run's status.

    Args:
        run_id: id of the run.
        points: metrics (name to value), each with its step.

    Raises:
        RunHeld: another process writes to the run.
        TrackingError: the tracking server does not answer.
    """
    run = open_run(run_id)
    for values, step in points:
        run.log_metrics(values, step)
    run.detach(run.ending.opened.earlier or "FINISHED")


def refuse_ranks(size: int, engine: str) -> None:
    """Refuse a training in several processes.

    Args:
        size: number of processes.
        engine: name of the engine, for the message.

    Raises:
        UsageError: ``size`` is more than 1.
    """
    if size > 1:
        raise UsageError(
            f"{engine} trains in {size} processes, and a checkpoint of mltrain would hold the state of one of them. Expected a "
            "single process. Try: one device; or mltrain train under torchrun (docs/distributed.md)."
        )
