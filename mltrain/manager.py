"""The checkpoint manager for any training loop."""

import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self, get_args
from weakref import WeakValueDictionary

import torch

from mltrain.checkpoint import retention
from mltrain.checkpoint.closing import Closing
from mltrain.checkpoint.committer import Committed, Committer
from mltrain.checkpoint.drafts import Count, Drafts, ExpectedMetrics
from mltrain.checkpoint.folder import BEST_MODEL, EPOCH_PREFIX, INTERRUPTED, FolderSpool
from mltrain.checkpoint.manifest import CheckpointId, Kind, Manifest, now
from mltrain.checkpoint.ports import Run, Status
from mltrain.checkpoint.pruner import Damage
from mltrain.checkpoint.reader import CheckpointReader, first_usable
from mltrain.checkpoint.retention import Context, Mode, Policy
from mltrain.checkpoint.settings import DEFAULT_METRIC, Settings, newest_and_best, refuse_unless, run_or_folder
from mltrain.checkpoint.snapshot import prepare, refuse_unless_state
from mltrain.checkpoint.staging import Spool
from mltrain.checkpoint.store import CheckpointStore
from mltrain.device import usable
from mltrain.errors import DamagedCheckpoint, MltrainError, NoCheckpoint, UsageError, counted
from mltrain.metrics import floats
from mltrain.ownership.run_folder import grace_seconds
from mltrain.store.durable import probe
from mltrain.tracking.tags import BEST_BY_TAG, RETENTION_TAG, best_by

log = logging.getLogger(__name__)

_IN_FOLDERS: "WeakValueDictionary[Path, Closing]" = WeakValueDictionary()
"""For each folder open in this process the closing of its manager; it survives a manager that was never closed."""


class CheckpointManager:
    """Durable checkpoints of any training loop: artifacts of an MLflow run, or files in a folder.

    >>> manager = CheckpointManager(max_to_keep=3)                              # of the active run, or of a new one
    >>> manager = CheckpointManager(save_dir="./checkpoints", max_to_keep=3)    # in a folder, without any tracking
    >>> state = manager.load_latest_checkpoint()          # None means to start afresh
    >>> manager.save_epoch_checkpoint({"model": net.state_dict(), "epoch": epoch}, epoch)

    A state is a dictionary of any tensors and plain values. Saving copies it and returns; threads in the background do the rest,
    and :meth:`close` (or the end of a ``with`` block) waits for them.

    In a folder, an epoch is ``checkpoint_epoch_N.pth``, an interrupted state ``interrupt_checkpoint.pth``, and ``best_model.pth``
    is a second name of the best one. Each file is a ZIP archive of safetensors, JSON and a manifest with digests.

    Args:
        run: the id of a run to continue, or a folder (a ``Path``, or a text with a slash). If ``None``, ``save_dir``, otherwise
            the active MLflow run, otherwise a new one.
        device: where loaded tensors go.
        max_to_keep: number of newest checkpoints to keep; the best one stays too.
        save_dir: a folder for the checkpoints; the manager then opens no run and does not import MLflow.
        policy: the retention policy, instead of ``max_to_keep``.
        metric: the metric that decides which checkpoint is best, unless the caller declares it.
        mode: whether a lower (``min``) or higher (``max``) value is better.
        staging_gigabytes: how much may wait on this disk (in units of 10**9 bytes) for a remote artifact store. Beyond that the
            policy removes the least valuable checkpoints first; the newest always stays.

    Raises:
        UsageError: an argument is invalid, or the folder holds files of other programs; no run was created or opened.
        RunNotFound, RunHeld, TrackingError, StorageError: the run cannot be written to.
    """

    BEST_MODEL_NAME: ClassVar[str] = BEST_MODEL
    EPOCH_CKPT_PREFIX: ClassVar[str] = EPOCH_PREFIX
    INTERRUPT_CKPT_NAME: ClassVar[str] = INTERRUPTED

    def __init__(
        self,
        run: "str | Path | Run | None" = None,
        device: str | torch.device = "cpu",
        max_to_keep: int = 5,
        *,
        save_dir: str | os.PathLike[str] | None = None,
        policy: Policy | None = None,
        metric: str = DEFAULT_METRIC,
        mode: Mode = "min",
        staging_gigabytes: float = 20.0,
    ) -> None:
        self.device = usable(device)
        settings = Settings(newest_and_best(max_to_keep) if policy is None else policy, metric, mode, staging_gigabytes)
        run, folder = run_or_folder(run, save_dir)
        self._metric = metric
        if folder is not None:
            from mltrain.run.untracked import UntrackedRun

            if folder in _IN_FOLDERS:
                _IN_FOLDERS.pop(folder).close("FINISHED", grace_seconds())  # completes its saves
            self._begin(UntrackedRun(folder, max_to_keep if policy is None else None), settings, folder)
            _IN_FOLDERS[folder] = self._closing
        elif run is None or isinstance(run, str):
            from mltrain.run.opening import open_run

            opened = open_run(run)
            try:
                self._begin(opened, settings)
            except BaseException as error:
                opened.withdraw(f"{type(error).__name__}: {error}"[:500])
                raise
        else:
            self._begin(run, settings)

    def _begin(self, run: Run, settings: Settings, folder: Path | None = None) -> None:
        """Prepare staging and background threads for an open run."""
        self.run: Run = run
        spool = Spool(run.staging) if folder is None else FolderSpool(folder)
        for written in (spool.root, run.artifacts.local_root):
            if written is not None:
                probe(written)  # fails before the training, not at the first checkpoint
        self.store = CheckpointStore(run.id, run.artifacts, spool, folder=folder)
        self._damage = Damage(run)
        self.reader = CheckpointReader(
            self.store, Context(now(), {}, settings.metric, settings.mode), self._damage.note
        )
        unfinished = spool.discard_unfinished()
        if unfinished:
            log.info(
                "Removed %s that an interrupted process left in %s",
                counted(unfinished, "unfinished checkpoint"),
                spool.root,
            )
        self.committer = Committer(run, self.reader, settings, self._damage)
        self._drafts = Drafts(run, self.reader, self.committer, ExpectedMetrics(settings))
        run.set_tag(BEST_BY_TAG, best_by(settings.metric, settings.mode))
        run.set_tag(RETENTION_TAG, str(settings.policy))
        self._closing = Closing(run, self.committer, grace_seconds())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        succeeded = error is None or (isinstance(error, SystemExit) and error.code in (None, 0))
        self.close("FINISHED" if succeeded else "KILLED" if kind is KeyboardInterrupt else "FAILED")

    def save(
        self,
        state: Mapping[str, Any],
        *,
        step: int | None = None,
        epoch: int | None = None,
        metrics: Mapping[str, float] | None = None,
        kind: Kind = "step",
        best: bool = False,
        extra: Mapping[str, bytes] | None = None,
        data: Mapping[str, str] | None = None,
    ) -> CheckpointId:
        """Save a state. Two saves of the same step make one checkpoint; otherwise steps grow.

        Only :meth:`load` goes back. If a save follows whose step this process has reached before, the run rolls
        back to the loaded state: later checkpoints are abandoned, and a new attempt begins. A run that has
        checkpoints and is continued without a load continues from the newest one.

        Args:
            state: names to tensors and plain values, arbitrarily nested; with :class:`LateCopy` some of it is copied later.
            step: optimizer steps done. If ``None``, ``state["step"]`` or ``state["global_step"]``, otherwise the epoch,
                otherwise the next number.
            epoch: epochs done. If ``None``, ``state["epoch"]``, otherwise that of the previous checkpoint.
            metrics: measured at this step.
            kind: ``epoch``, ``step`` or ``interrupted``.
            best: whether the caller declares this state the best so far.
            extra: further small files of the checkpoint, name to content.
            data: fingerprint of the data.

        Returns:
            The identity of the checkpoint.

        Raises:
            UnsupportedValue: the state holds something that is not plain data; the message names the path to it.
            UsageError: the state is not a dictionary; the name of a further file, a step, an epoch, a metric or a kind is
                invalid; the step, or without one the epoch, goes back without a load; or the manager is closed, or this
                process was forked from its own. Nothing is removed.
            RunHeld: another process has taken the run over.
        """
        if self.committer.closed:
            raise UsageError(
                f"The manager of {self.store.title} is closed and saves nothing more. Expected a save before close(). "
                f"Try: another CheckpointManager of {self.store.title}, which continues it."
            )
        self._refuse_fork("save")
        refuse_unless_state(state)
        count, measured = Count.of(state, step, epoch), floats(metrics or {}, "save(metrics=)")
        return self._drafts.save(state, count, kind, measured, best=best, extra=extra, data=data or {})

    def prepare(self, state: Mapping[str, Any]) -> None:
        """Allocate host memory in the background for such states.

        Without it the first save allocates the memory, which takes several times as long as the copy. Call it once, after the
        first ``optimizer.step()``, when the optimizer has its state; :class:`~mltrain.Trainer` does.

        Args:
            state: as for :meth:`save`, with any values.

        Raises:
            UnsupportedValue: the state holds something that is not plain data.
            UsageError: the state is not a dictionary.
        """
        refuse_unless_state(state)
        prepare(state, self._drafts.buffers)

    def save_epoch_checkpoint(
        self, state: Mapping[str, Any], epoch: int, metrics: Mapping[str, float] | None = None
    ) -> CheckpointId:
        """Save the state at the end of an epoch; see :meth:`save`."""
        return self.save(state, epoch=epoch, metrics=metrics, kind="epoch")

    def save_best_model(
        self, state: Mapping[str, Any], metric: float | Mapping[str, float], epoch: int | None = None
    ) -> CheckpointId:
        """Declare a state the best so far, with its metric.

        If its epoch or step has just been saved, this marks that checkpoint instead of saving again.
        """
        refuse_unless_state(state)
        metrics = metric if isinstance(metric, Mapping) else floats({self._metric: metric}, "save_best_model(metric=)")
        kind: Kind = "step" if Count.of(state, None, epoch).epoch is None else "epoch"
        return self.save(state, epoch=epoch, metrics=metrics, kind=kind, best=True)

    def save_interrupt_checkpoint(self, state: Mapping[str, Any]) -> CheckpointId:
        """Save an interrupted state, which the next load prefers."""
        return self.save(state, kind="interrupted")

    def load(self, which: str = "latest") -> dict[str, Any] | None:
        """Load a state, verified, onto the manager's device; the next save continues from it.

        In a process that was forked from the manager's own it reads, and no later save continues from it.

        Args:
            which: ``latest``, ``best``, ``interrupted``, ``epoch:N``, ``step:N``, or the name of a checkpoint. A damaged
                ``latest`` or ``best`` is reported and the previous intact one is used.

        Returns:
            The saved state, or ``None`` if there is no ``latest``, ``best`` or ``interrupted``. In a module that a
            :class:`~mltrain.Trainer` saved, the text ``lazy`` stands for each tensor of a lazy layer that no forward has used.

        Raises:
            NoCheckpoint: no checkpoint has this name, epoch or step (the message lists those of the run), or all are damaged.
        """
        found = self.read(which)
        if self.committer.is_forked:
            return found[1] if found is not None else None
        if found is None:
            if which == "latest":
                self._drafts.begin_afresh()
            return None
        self.continue_from(found[0])
        return found[1]

    def read(self, which: str = "latest") -> tuple[Manifest, dict[str, Any]] | None:
        """Return a verified checkpoint without continuing from it; see :meth:`load`."""
        self.committer.settle()
        found = self.reader.find(which, self.device)
        if found is not None:
            return found
        if which not in ("latest", "best", "interrupted"):
            raise NoCheckpoint(self.reader.no_match_message(which))
        if self._damage and not self.reader.all():
            raise NoCheckpoint(f"None of the checkpoints of {self.store.title} is usable. {self.store.remedy}")
        return None

    def continue_from(
        self, manifest: Manifest, damaged: Mapping[CheckpointId, DamagedCheckpoint] | None = None
    ) -> None:
        """Let the next save continue from a checkpoint; record ``damaged`` ones.

        Raises:
            UsageError: this process was forked from the manager's own.
        """
        self._refuse_fork("continue from a checkpoint")
        for identity, error in (damaged or {}).items():
            self._damage.note(identity, error)
        self._drafts.continue_from(manifest)
        self.run.deliver_pending(manifest.pending)
        log.info("Loaded %s (%s) of %s", manifest.title, manifest.name, self.store.title)

    def peek(self, which: str = "latest") -> dict[str, Any] | None:
        """Return a verified state, without continuing from it.

        After a load, ``latest`` is the loaded checkpoint until a later state on its line is committed.

        Raises:
            NoCheckpoint: every checkpoint is damaged.
        """
        self.wait(60)
        candidates = self._drafts.line() if which == "latest" else self.reader.matching(which)
        if not candidates:
            return None
        return first_usable(self.store, candidates, lambda one: self.store.load(one, self.device), self._damage.note)[1]

    def load_latest_checkpoint(self) -> dict[str, Any] | None:
        """Load the newest state, including an interrupted one; return ``None`` without one."""
        return self.load("latest")

    def load_best_model(self) -> dict[str, Any] | None:
        """Load the best state; return ``None`` if the run has no best checkpoint."""
        return self.load("best")

    def checkpoints(self) -> list[Manifest]:
        """Return all committed checkpoints, oldest first, including abandoned lines."""
        return self.reader.all()

    def best(self) -> Manifest | None:
        """Return the best checkpoint of the current line, or ``None``."""
        return next(iter(self.reader.matching("best")), None)

    def when_committed(self, listener: Committed) -> None:
        """Call a function in the background after each commit.

        Its arguments are the new checkpoint, the best one, and the store. Listeners are called in order of registration; the
        error of one is logged, and the others are called.

        Raises:
            UsageError: the listener is not a function, or this process was forked from the manager's own.
        """
        self._refuse_fork("register a listener")
        refuse_unless(callable(listener), "listener", listener, "a function")
        self.committer.when_committed(listener)

    def prune(self) -> list[retention.Removal]:
        """Remove checkpoints that the policy drops; record the removals.

        Every commit does this.

        Raises:
            UsageError: the policy failed, or this process was forked from the manager's own.
        """
        self._refuse_fork("prune")
        origin = self._drafts.origin
        return self.committer.prune(origin.id if origin is not None else None)

    @property
    def failure(self) -> MltrainError | None:
        """The error that prevented the newest checkpoint, or ``None``.

        It is a :class:`~mltrain.errors.NonFiniteLoss` if its weights or optimizer state are not finite. It is known once
        :meth:`wait` has returned, and ``None`` again as soon as a later checkpoint is complete on this disk.
        """
        return self.committer.failure

    def wait(self, seconds: float = math.inf) -> bool:
        """Wait until all saves are committed; return whether they are."""
        return self.committer.wait(seconds)

    def close(self, status: Status = "FINISHED", *, wait: bool = True) -> None:
        """Wait until all saves are committed, and release the run.

        If a script ends without ``close()``, the manager completes the saves and sets the run's status: FINISHED, FAILED after
        an exception, KILLED after a ``KeyboardInterrupt`` or if the last save was an interrupted one. It waits
        ``MLTRAIN_GRACE_SECONDS`` for a run that is not created yet. If the artifact store refuses the newest checkpoint, the
        run is KILLED: the tag ``mltrain.newest_only_local`` names the host that has it, and ``mltrain sync`` there uploads it
        and sets the status.

        Args:
            status: of the run, if the manager opened it; the status of an active MLflow run does not change.
            wait: whether to wait for the artifact store: as long as it accepts data, and ``MLTRAIN_GRACE_SECONDS`` if it
                refuses. If false, ``mltrain sync`` sends the rest.

        Raises:
            UsageError: ``status`` is none of them; the manager stays open.
            StorageError: the newest checkpoint could not be stored anywhere.
            NonFiniteLoss: the last saved weights or optimizer state are not finite; the run is then FAILED.
        """
        refuse_unless(status in get_args(Status), "status", status, "FINISHED, FAILED or KILLED")
        self._closing.close(status, grace_seconds() if wait else None)

    def abandon(self) -> None:
        """Stop the background threads without waiting; complete staged checkpoints stay."""
        self._closing.abandon()

    def _refuse_fork(self, what: str) -> None:
        if self.committer.is_forked:
            raise UsageError(
                f"The manager of {self.store.title} cannot {what} in a process that was forked from its own. Expected the "
                "process that created it. Try: call it there"
            )
