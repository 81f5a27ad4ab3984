"""The public face of checkpoints, for any training loop."""

import atexit
import logging
import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
from pydantic import ValidationError

from mltrain.checkpoint import retention
from mltrain.checkpoint.late_copy import LateCopy
from mltrain.checkpoint.lineage import ancestry_after, current_line
from mltrain.checkpoint.manifest import LARGEST_COUNT, CheckpointId, Kind, Manifest, is_extra_file, now
from mltrain.checkpoint.ports import Run, Status
from mltrain.checkpoint.pruner import Pruner
from mltrain.checkpoint.reader import BEST_POINTER, CheckpointReader
from mltrain.checkpoint.retention import Best, Budget, Context, Latest, Mode, Policy
from mltrain.checkpoint.staging import Spool
from mltrain.checkpoint.store import CheckpointStore, Survey
from mltrain.checkpoint.writer import Writer
from mltrain.errors import (
    DamagedCheckpoint,
    MltrainError,
    NoCheckpoint,
    NonFiniteLoss,
    RunHeld,
    UsageError,
    nearest,
)
from mltrain.provenance import fingerprint
from mltrain.steps import floats
from mltrain.store.durable import probe
from mltrain.tracking.tags import (
    BEST_METRIC_TAG,
    BEST_MODE_TAG,
    BEST_TAG,
    DAMAGED_PREFIX,
    DROPPED_PREFIX,
    LATEST_TAG,
    RETENTION_TAG,
)

log = logging.getLogger(__name__)


T = TypeVar("T")

_REMEMBERED = 8
_DEFAULT_METRIC = "val/loss"

_Key = tuple[str, int] | None
"""What the caller counted a checkpoint by: its step or its epoch."""

Committed = Callable[[Manifest, Manifest | None, CheckpointStore], None]
"""Told in the background after each commit: the new checkpoint, the best one, and where they are."""


class CheckpointManager:
    """Durable checkpoints of any training loop, as artifacts of an MLflow run.

    >>> manager = CheckpointManager(max_to_keep=3)
    >>> state = manager.load_latest_checkpoint()          # None: start afresh
    >>> manager.save_epoch_checkpoint({"model": net.state_dict(), "epoch": epoch}, epoch)

    A state is a dictionary of tensors and plain values; the manager does not care what is inside. Saving copies it and
    returns; the rest happens in the background, and :meth:`close` (or the end of a ``with`` block) waits for it.

    Args:
        run: the id of a run to continue; none: the active MLflow run, else a new one.
        device: where loaded tensors go.
        max_to_keep: how many of the newest checkpoints stay; the best one stays too.
        policy: which ones stay, in place of ``max_to_keep``.
        metric: the metric that decides which one is best, where the caller does not declare it.
        mode: whether less (``min``) or more (``max``) of it is better.
        committed: see :data:`Committed`.
        staging_gigabytes: how much may wait on this disk (in units of 10**9 bytes) for an artifact store elsewhere. What
            does not fit is removed by the policy, the least valuable first; the newest always stays.

    Raises:
        UsageError: an argument is invalid; no run was created or opened.
        RunNotFound, RunHeld, TrackingError, StorageError: the run cannot be written to.
    """

    def __init__(
        self,
        run: "str | Run | None" = None,
        *,
        device: str | torch.device = "cpu",
        max_to_keep: int = 5,
        policy: Policy | None = None,
        metric: str = _DEFAULT_METRIC,
        mode: Mode = "min",
        committed: Committed | None = None,
        staging_gigabytes: float = 20.0,
    ) -> None:
        self.device = usable_device(device)
        if policy is None:
            _whole("max_to_keep", max_to_keep, 1)
            policy = Latest(max_to_keep) | Best(1)
        self.policy: Policy = _valid_policy(policy)
        _refuse_unless(isinstance(metric, str) and metric != "", "metric", metric, "the name of a metric")
        _refuse_unless(mode in ("min", "max"), "mode", mode, "'min' or 'max'")
        _refuse_unless(committed is None or callable(committed), "committed", committed, "a function or None")
        _refuse_unless(
            _is_number(staging_gigabytes) and staging_gigabytes > 0,
            "staging_gigabytes",
            staging_gigabytes,
            "a size above 0",
        )
        _refuse_unless(
            run is None or isinstance(run, str) or callable(getattr(run, "begin_attempt", None)),
            "run",
            run,
            "the id of a run",
        )
        self._metric = metric
        self._staging_budget = Budget(gigabytes=staging_gigabytes, of=self.policy)
        self._on_commit = committed
        self._saved: list[tuple[Manifest, _Key]] = []  # the last few of the present line
        self._steps: set[int] = set()  # those that this attempt has saved
        self._unread: tuple[Manifest, ...] | None = None  # the newest that nobody loaded; None before anybody looked
        self.resumed_from: Manifest | None = None
        self._damaged: set[CheckpointId] = set()
        self._cut_short: set[CheckpointId] = set()
        self._missed: set[str] = set()
        self._closed = False
        if run is None or isinstance(run, str):
            from mltrain.run.opening import open_run

            opened = open_run(run)
            try:
                self._begin(opened, metric, mode)
            except BaseException as error:
                opened.withdraw(f"{type(error).__name__}: {error}"[:500])
                raise
        else:
            self._begin(run, metric, mode)

    def _begin(self, run: Run, metric: str, mode: Mode) -> None:
        """Prepare staging and the background threads for a run that is open."""
        self.run: Run = run
        spool = Spool(run.staging)
        for folder in (spool.root, run.artifacts.local_root):
            if folder is not None:
                probe(folder)  # before anything is trained, and not at the first checkpoint
        self.store = CheckpointStore(run.id, run.artifacts, spool, worth=self._worth_uploading)
        self._reader = CheckpointReader(self.store, Context(now(), {}, metric, mode), self._note_damage)
        litter = spool.discard_litter()
        if litter:
            log.info("Removed %d unfinished checkpoint(s) that an interrupted process left in %s", litter, spool.root)
        self._pruner = Pruner(run, self.store, self.policy)
        self._writer = Writer(self.store, self._after_commit, self._overflow)
        self.store.guard = self._guard
        run.when_known(self._known)
        run.set_tag(BEST_METRIC_TAG, metric)
        run.set_tag(BEST_MODE_TAG, mode)
        run.set_tag(RETENTION_TAG, str(self.policy))
        atexit.register(self._left)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close("FINISHED" if kind is None else "KILLED" if kind is KeyboardInterrupt else "FAILED")

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
        late: LateCopy | None = None,
    ) -> CheckpointId:
        """Save a state. Two saves of the same step make one checkpoint; otherwise steps grow.

        Only :meth:`load` goes back: saving a step after that which this process has been at before, or a smaller one, rolls
        the run back to the loaded state. What was saved beyond it is abandoned, and a new attempt begins. A run that has
        checkpoints and is continued without a load goes on from the newest of them.

        Args:
            state: names to tensors and plain values, nested as you like.
            step: optimizer steps done; none: ``state["step"]`` or ``state["global_step"]``, else the epoch, else the
                next number.
            epoch: epochs done; none: ``state["epoch"]``, else that of the checkpoint before.
            metrics: measured at this step.
            kind: ``epoch``, ``step`` or ``interrupted``.
            best: whether the caller declares it the best so far.
            extra: further small files of the checkpoint, name to content.
            data: fingerprint of the data.
            late: says what of the state may be copied under the next forward and backward; none: nothing.

        Returns:
            Its identity.

        Raises:
            UnsupportedValue: the state holds something that is not plain data; the message names the path to it.
            UsageError: a further file has a name that no file of a checkpoint can have; a step, an epoch, a metric or a kind
                is none; or the step, or the epoch where no step is given, goes back without a load. Nothing is removed then.
            RunHeld: another process has taken the run over.
        """
        for name in extra or {}:
            if not is_extra_file(name):
                raise UsageError(
                    f"{name!r:.80} cannot name a further file of a checkpoint: lower-case letters, digits, _ and - were "
                    "expected, ending in .json, .csv or .safetensors, and not beginning with model, state or manifest."
                )
        step = _count("step", step) if step is not None else _counter(state, "step", "global_step")
        epoch = _count("epoch", epoch) if epoch is not None else _counter(state, "epoch")
        key = ("step", step) if step is not None else ("epoch", epoch) if epoch is not None else None
        while self._saved and self._writer.lost(self._saved[-1][0].id):
            self._saved.pop()
        last, last_key = self._saved[-1] if self._saved else (None, None)
        if last is not None and ((key is not None and key == last_key and kind != "interrupted") or step == last.step):
            self._declare(last, {name: float(value) for name, value in (metrics or {}).items()}, best)
            return last.id
        before = last or self._continued(key)
        if before is not None:
            _refuse_going_back(key, before)
        last_step = before.step if before is not None else 0
        if step is None:
            step = epoch if epoch is not None and epoch > last_step else last_step + 1
        if self._was_beyond(step):
            self.run.begin_attempt(before.id if before is not None else None)
            self._steps.clear()
        try:
            manifest = Manifest(
                run_id=self.run.id,
                id=CheckpointId(attempt=self.run.ordinal, step=step),
                kind=kind,
                epoch=epoch if epoch is not None else (before.epoch if before is not None else 0),
                parent=before.id if before is not None else None,
                ancestry=ancestry_after(self.resumed_from),
                metrics=floats(metrics or {}, "save(metrics=)"),
                best=best,
                parts=tuple(str(name) for name in state),
                files={},
                created=now(),
                versions=fingerprint.versions(),
                code=dict(self.run.code),
                data=dict(data or {}),
            )
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise UsageError(f"{place}={first['input']!r:.80} cannot be saved: {first['msg']}.") from None

        if extra is None and not best:  # a trainer, which adds files, knows itself which epochs it evaluates
            self._name_what_is_missing(manifest.metrics)
        line = [earlier.id for earlier, _ in self._saved]
        origin = self.resumed_from.id if self.resumed_from is not None else None

        def complete(manifest: Manifest) -> Manifest:
            # By now it is known whether the one before could be kept.
            parent = next((one for one in reversed(line) if not self._writer.lost(one)), origin)
            return manifest.model_copy(update={"parent": parent, "pending": tuple(self.run.pending(step))})

        self._writer.submit(state, manifest, extra or {}, complete, late)
        self._saved = [*self._saved[-_REMEMBERED:], (manifest, key)]
        self._steps.add(step)
        return manifest.id

    def save_epoch_checkpoint(
        self, state: Mapping[str, Any], epoch: int, metrics: Mapping[str, float] | None = None
    ) -> CheckpointId:
        """Save the state at the end of an epoch; see :meth:`save`."""
        return self.save(state, epoch=epoch, metrics=metrics, kind="epoch")

    def save_best_model(
        self, state: Mapping[str, Any], metric: float | Mapping[str, float], epoch: int | None = None
    ) -> CheckpointId:
        """Declare a state the best so far, with its metric; where its epoch or step has just been saved, that checkpoint."""
        metrics = metric if isinstance(metric, Mapping) else {self._metric: float(metric)}
        known = epoch if epoch is not None else _counter(state, "epoch")
        return self.save(state, epoch=epoch, metrics=metrics, kind="epoch" if known is not None else "step", best=True)

    def save_interrupt_checkpoint(self, state: Mapping[str, Any]) -> CheckpointId:
        """Save the state of a training that is being interrupted; it is the first choice of the next load."""
        return self.save(state, kind="interrupted")

    def load(self, which: str = "latest") -> dict[str, Any] | None:
        """Load a state, verified, onto the manager's device; the next save continues from it.

        Args:
            which: ``latest``, ``best``, ``interrupted``, ``epoch:N``, ``step:N``, or the name of a checkpoint.
                For ``latest`` and ``best`` a damaged one is said and the one before it is used.

        Returns:
            The state as it was saved, or none when there is no ``latest``, ``best`` or ``interrupted``.

        Raises:
            NoCheckpoint: there is none of this name, epoch or step (the message lists those there are), or all that
                there are are damaged.
        """
        return self._load(which, self._reader.load)

    def load_configured(self, which: str = "latest") -> tuple[dict[str, Any], Mapping[str, Any] | None] | None:
        """Load a state and the configuration beside it, both verified before a checkpoint is chosen; see :meth:`load`.

        The configuration is ``None`` where a checkpoint was imported without one.
        """
        return self._load(which, self._reader.load_configured)

    def go_on_from(self, manifest: Manifest, damaged: Mapping[CheckpointId, DamagedCheckpoint] | None = None) -> None:
        """Let the next save continue from a checkpoint that was read already.

        Args:
            manifest: of the checkpoint.
            damaged: the checkpoints that were found damaged on the way to it.
        """
        for identity, error in (damaged or {}).items():
            self._note_damage(identity, error)
        self.resumed_from, self._saved = manifest, []
        self.run.deliver_pending(manifest.pending)
        log.info("Loaded %s (%s) of run %s", manifest.title, manifest.name, self.run.id)

    def matching(self, which: str) -> list[Manifest]:
        """Return the checkpoints that a word may mean, the first choice first."""
        return self._reader.matching(which)

    def peek(self, which: str = "latest") -> dict[str, Any] | None:
        """Return a state, verified, and change nothing: the next save continues from where it would have.

        Raises:
            NoCheckpoint: all that there are are damaged.
        """
        self.wait(60)
        return self._reader.load(which, self.device)[1] if self._reader.matching(which) else None

    def load_latest_checkpoint(self) -> dict[str, Any] | None:
        """Load the newest state: an interrupted one where that is newest, else the newest epoch; none: there is none."""
        return self.load("latest")

    def load_best_model(self) -> dict[str, Any] | None:
        """Load the best state, or none when there is none."""
        return self.load("best")

    def checkpoints(self) -> list[Manifest]:
        """Return all committed checkpoints of the run, oldest first, those of abandoned lines included."""
        return self._reader.all()

    def best(self) -> Manifest | None:
        """Return the best checkpoint of the current line, or none."""
        return next(iter(self._reader.matching("best")), None)

    def wait(self, seconds: float = math.inf) -> bool:
        """Wait until everything saved is committed in the artifact store; return whether it is."""
        return self._writer.drain(min(seconds, 10**7))

    def close(self, status: Status = "FINISHED") -> None:
        """Wait until everything saved is committed, and let go of the run.

        A process that ends without it still completes what it saved, and its run is KILLED. So is a run whose newest
        checkpoint the artifact store does not take: its tag ``mltrain.newest_only_local`` names the host that has it, and
        ``mltrain sync`` there sends it and sets the status.

        Args:
            status: of the run, where the manager opened it; an active MLflow run's status is not touched.

        Raises:
            StorageError: the newest checkpoint could not be kept anywhere.
            NonFiniteLoss: the weights or optimizer state that were saved last are not finite; the run is FAILED then.
        """
        if self._closed:
            return
        self._closed = True
        if not self.wait():
            self.retry()
            self.wait()
        failure, only_local = self._writer.failure, self.only_local
        self.abandon()
        if only_local is not None:
            self.run.mark_only_local(only_local.name, status)
            log.warning(
                "The newest checkpoint, %s, is on this machine only: the artifact store did not take it. Send it with: "
                "mltrain sync",
                only_local.name,
            )
        if status == "FINISHED" and isinstance(failure, NonFiniteLoss):
            status = "FAILED"
        elif status == "FINISHED" and (failure is not None or only_local is not None):
            status = "KILLED"
        self.run.detach(status)
        if failure is not None:
            raise failure

    def settle(self, seconds: float) -> None:
        """Wait until what was saved is complete on this disk, or given up, for at most so long."""
        self._writer.settle(seconds)

    def retry(self) -> None:
        """Try again, in the background, to upload what could not be uploaded."""
        self._writer.retry()

    def abandon(self) -> None:
        """Stop the background threads without waiting; what is complete in staging stays there."""
        atexit.unregister(self._left)
        self._writer.close()

    @property
    def only_local(self) -> Manifest | None:
        """The newest checkpoint of this attempt where the artifact store does not have it, else ``None``."""
        staged, committed = self.newest_staged, self.newest_committed
        return staged if staged is not None and (committed is None or committed.id != staged.id) else None

    def publish_resumed(self) -> bool:
        """Upload the checkpoint that was loaded where it is on this machine only; return whether the store has it now."""
        loaded = self.resumed_from
        if loaded is None or loaded.run_id != self.store.run_id or loaded.id not in {m.id for m in self.store.staged()}:
            return True
        try:
            if self.store.manifest(loaded.id) is None:
                self.store.publish(loaded)
        except MltrainError as error:
            log.error("Checkpoint %s is complete on this disk, but could not be uploaded: %s", loaded.name, error)
            return False
        return True

    def _left(self) -> None:
        """The process ends without :meth:`close`. The threads have been waited for by the interpreter."""
        if self.only_local is not None:
            self.run.mark_only_local(self.only_local.name, "KILLED")
        self.run.detach("KILLED")

    @property
    def newest_committed(self) -> Manifest | None:
        """The newest checkpoint of this attempt that is in the artifact store."""
        return self._writer.newest_committed

    @property
    def newest_staged(self) -> Manifest | None:
        """The newest checkpoint of this attempt that is complete on this disk or in the artifact store."""
        return self._writer.newest_staged

    @property
    def failure(self) -> MltrainError | None:
        """Why the newest checkpoint was not kept, if so.

        It is a :class:`~mltrain.errors.NonFiniteLoss` where its weights or optimizer state are not finite. It is known once
        :meth:`wait` has returned, and None again as soon as a later checkpoint is complete on this disk.
        """
        return self._writer.failure

    @property
    def idle(self) -> bool:
        """Whether nothing is being written or uploaded: what is not committed by now waits for another try."""
        return self._writer.idle

    def context(self) -> Context:
        """Return what policies may ask: the time, pins, what best means.

        What this attempt has found damaged is pinned: its weights may be intact, and somebody may want to look.
        """
        pins = dict.fromkeys(self._damaged, "found damaged by the present attempt")
        pins |= {identity: why for name, why in self.run.pins().items() if (identity := CheckpointId.parse(name))}
        return replace(self._reader.context, pins=pins)

    def _load(self, which: str, load: Callable[[str, torch.device], tuple[Manifest, T]]) -> T | None:
        self._writer.settle()
        if which in ("latest", "best", "interrupted") and not self._reader.matching(which):
            if self._damaged and not self._reader.all():
                raise NoCheckpoint(
                    f"None of the checkpoints of run {self.run.id} is usable. "
                    f"See what is wrong with: mltrain verify {self.run.id}"
                )
            self._unread = () if which == "latest" else self._unread
            return None
        manifest, loaded = load(which, self.device)
        self.go_on_from(manifest)
        return loaded

    def _continued(self, key: _Key) -> Manifest | None:
        """Return the checkpoint that the first save continues from: the loaded one, else the newest that the run has."""
        if self.resumed_from is None and self._unread is None and self.run.ordinal > 1:
            # An earlier attempt may have left some. Not to look would abandon them all.
            self._unread = tuple(self._reader.matching("latest")[:1])
        for newest in self._unread or () if self.resumed_from is None else ():
            _refuse_going_back(key, newest, least=1, unread=True)
            self.resumed_from = newest
        return self.resumed_from

    def _name_what_is_missing(self, metrics: Mapping[str, float]) -> None:
        """Name, once each, the metrics that decide what is best or kept, and that are not among those of a save."""
        # What nobody asked for may be absent: then the caller declares the best, or there is none.
        wanted = retention.metrics_of(self.policy) | ({self._metric} if self._metric != _DEFAULT_METRIC else set())
        for name in sorted(wanted - metrics.keys() - self._missed if metrics else ()):
            self._missed.add(name)
            log.warning(
                "The metric %r, which decides what is best or kept, is not among those that were saved: %s.%s",
                name,
                f"{', '.join(metrics)}"[:500],
                nearest(name, metrics),
            )

    def _was_beyond(self, step: int) -> bool:
        """Whether this attempt has saved this step or a later one already."""
        ordinal = self.run.ordinal
        return any(
            saved >= step and not self._writer.lost(CheckpointId(attempt=ordinal, step=saved)) for saved in self._steps
        )

    def _overflow(self, staged: list[Manifest]) -> list[tuple[Manifest, str]]:
        """Return which staged checkpoints have to go when all of them are larger than the budget."""
        if sum(manifest.size for manifest in staged) <= self._staging_budget.gigabytes * 1e9:
            return []
        keep = {staged[-1].id, *([self.resumed_from.id] if self.resumed_from is not None else [])}
        # The context without pins: a server that does not answer is why staging is full.
        removals = retention.plan(self._reader.noted(staged), self._staging_budget, self._reader.context, keep)
        for removal in removals:
            self.run.set_tag(f"{DROPPED_PREFIX}{removal.manifest.name}", removal.rule)
        return [(removal.manifest, removal.rule) for removal in removals]

    def _worth_uploading(self, manifests: Sequence[Manifest]) -> Collection[CheckpointId]:
        """Return what the policy would keep of these: an outage or a kill must not cost the best."""
        line, context = current_line(self._reader.noted(manifests)), self._reader.context
        best = retention.best_of(line, context)
        return self.policy.keep(line, context) | ({best.id} if best is not None else set())

    def _guard(self) -> None:
        if not self.run.holds():
            raise RunHeld("Another process has taken this run over; this one commits nothing more.")

    def _known(self) -> None:
        """The run exists: what was staged before it did can be uploaded, under its true id."""
        if self.store.run_id != self.run.id:
            self.store.formerly, self.store.run_id = self.store.run_id, self.run.id
            self._writer.retry()

    def _declare(self, manifest: Manifest, metrics: Mapping[str, float], best: bool) -> None:
        """Record what a later save of the same step says of its checkpoint, whose manifest does not change any more."""
        if self._reader.note(manifest, metrics, best=best):
            self._writer.run(self._record_notes)

    def _record_notes(self) -> None:
        if not self.run.holds():
            return
        committed = self._reader.noted(self.store.survey(damaged=self._note_damage, remembered=True).manifests)
        self.run.write_json(BEST_POINTER, self._reader.notes_for_json(committed))
        self._announce_best(committed)

    def _announce_best(self, committed: Sequence[Manifest]) -> Manifest | None:
        best = retention.best_of(current_line(committed), self._reader.context)
        if best is not None:
            self.run.set_tag(BEST_TAG, best.name)
        return best

    def _note_damage(self, identity: CheckpointId, error: DamagedCheckpoint) -> None:
        if identity in self._damaged or identity in self._cut_short:
            return
        if error.torn and not self._was_announced(identity):
            self._cut_short.add(identity)
            log.warning(
                "Checkpoint %s was never committed: the writing of its manifest was interrupted.", identity.name
            )
            return
        log.warning("Checkpoint %s is damaged and left aside: %s", identity.name, error)
        self._damaged.add(identity)
        self.run.set_tag(f"{DAMAGED_PREFIX}{identity.name}", str(error))

    def _was_announced(self, identity: CheckpointId) -> bool:
        """Whether a checkpoint, or a later one, was said to be committed: then a manifest cut short is damage."""
        newest = CheckpointId.parse(self.run.announced or "")
        return newest is not None and identity.order <= newest.order

    def _after_commit(self, manifest: Manifest) -> None:
        if self.run.overtaken:
            return
        self.run.set_tag(LATEST_TAG, manifest.name)
        held = self.run.holds(certainly=True)
        # One look for all that follows. What this process has read or written before is not asked for again.
        survey = self.store.survey(damaged=self._note_damage, remembered=True)
        gone: set[CheckpointId] = set()
        try:
            gone = {removal.manifest.id for removal in self._prune(survey)} if held else gone
        except MltrainError as error:  # what else follows from a commit must not wait for a server to come back
            log.warning("Old checkpoints stay for now: %s", error)
        best = self._announce_best(self._reader.noted(m for m in survey.manifests if m.id not in gone))
        if self._on_commit is not None:
            self._on_commit(manifest, best, self.store)

    def prune(self) -> list[retention.Removal]:
        """Remove what the policy does not keep, and record it. Called after every commit."""
        if not self.run.holds(certainly=True):
            return []
        return self._prune(self.store.survey(damaged=self._note_damage))

    def _prune(self, survey: Survey) -> list[retention.Removal]:
        survey = replace(survey, manifests=tuple(self._reader.noted(survey.manifests)))
        origin = self.resumed_from.id if self.resumed_from is not None and self.newest_committed is None else None
        return self._pruner.prune(survey, self.context(), origin, self.newest_committed)


def _refuse_going_back(key: _Key, before: Manifest, *, least: int = 0, unread: bool = False) -> None:
    """Refuse a step, or an epoch that is counted by, that is not beyond a checkpoint by at least so many."""
    if key is None:
        return
    word, number = key
    newest = before.step if word == "step" else before.epoch
    if number < newest + least:
        raise UsageError(
            f"{word} {number} cannot be saved after {word} {newest} ({before.name}). Expected {word}s that grow over the whole "
            f"run, got {number}{' without a load' if unread else ''}; nothing was removed. Try: load_latest_checkpoint() before "
            f"the first save to continue, load('{word}:N') to go back, or {word}= with a number that never starts again."
        )


def _counter(state: Mapping[str, Any], *names: str) -> int | None:
    """Return the first of these entries of a state that is a whole number: Python's, NumPy's or a tensor's."""
    for name in names:
        value = state.get(name)
        if isinstance(value, bool):
            continue
        try:
            operator.index(value)  # type: ignore[arg-type] # whether it is one is the question
        except (TypeError, ValueError):
            continue
        return _count(name, value)
    return None


def _count(name: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except (TypeError, ValueError):
        number = -1
    if isinstance(value, bool) or not 0 <= number <= LARGEST_COUNT:
        # Python refuses to spell numbers of thousands of digits.
        said = f"{value!r:.80}" if number.bit_length() < 1024 else f"a number of {number.bit_length()} bits"
        raise UsageError(f"{name}: {said} cannot be saved; a whole number from 0 to {LARGEST_COUNT} was expected.")
    return number


def usable_device(device: str | torch.device) -> torch.device:
    """Return a device that tensors can be put on here.

    Raises:
        UsageError: torch knows no such device, or this machine does not have it.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError, ValueError, NotImplementedError) as error:
        lines = str(error).splitlines()
        raise UsageError(
            f"device={device!r:.80} is not usable here: {lines[0][:200] if lines else type(error).__name__} "
            "Expected a device of this machine. Try: device='cpu'."
        ) from None
    return found


def _valid_policy(policy: Any) -> Policy:
    _refuse_unless(
        not isinstance(policy, type) and callable(getattr(policy, "keep", None)),
        "policy",
        policy,
        "Latest(3) | Best(1)",
    )
    return policy  # type: ignore[no-any-return] # what has keep() is one


def _whole(name: str, value: Any, least: int) -> None:
    is_whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
    _refuse_unless(is_whole, name, value, f"a whole number of at least {least}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _refuse_unless(valid: bool, name: str, value: Any, expected: str) -> None:
    if not valid:
        raise UsageError(f"{name}={value!r:.80} is invalid. Expected {expected}.")
