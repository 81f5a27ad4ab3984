"""Commits checkpoints from host memory to the artifact store.

One thread writes to this disk, which frees the copy in memory, and another uploads. They are threads because processes would
need a second copy of the state, and the slow calls release the interpreter's lock (``benchmarks/stall.py``).
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from mltrain.checkpoint import retention
from mltrain.checkpoint.finite import refuse_nonfinite
from mltrain.checkpoint.late_copy import PendingCopies
from mltrain.checkpoint.manifest import CheckpointId, Manifest, current_line
from mltrain.checkpoint.notes import NOTES_FILE
from mltrain.checkpoint.ports import Peers, Run
from mltrain.checkpoint.pruner import Damage, Pruner
from mltrain.checkpoint.publishing import Backlog, publish, stage, upload_again
from mltrain.checkpoint.reader import CheckpointReader
from mltrain.checkpoint.settings import Settings
from mltrain.checkpoint.snapshot import Snapshot
from mltrain.checkpoint.staging import StreamedUpload
from mltrain.checkpoint.store import CheckpointStore
from mltrain.checkpoint.worker import Worker, logged
from mltrain.errors import MltrainError, RunHeld, StorageError
from mltrain.store.artifacts import NoRunYet

log = logging.getLogger(__name__)

Committed = Callable[[Manifest, Manifest | None, CheckpointStore], None]
"""Called in the background after each commit with the new checkpoint, the best one, and the store that holds them."""

_TRIES_BEFORE_BACKOFF = 2
_LONGEST_BACKOFF_SECONDS = 5.0


class Committer:
    """Commits the checkpoints of one run, one at a time.

    Args:
        run: owns the checkpoints.
        reader: of the run's checkpoints; its store receives the new ones.
        settings: the policy and the staging budget.
        damage: receives the damaged checkpoints that a commit finds.
        disk_retry_seconds: how long a write that this disk refuses is retried, unless a newer checkpoint supersedes it.
    """

    def __init__(
        self,
        run: Run,
        reader: CheckpointReader,
        settings: Settings,
        damage: Damage,
        disk_retry_seconds: float = 30.0,
    ) -> None:
        self._run = run
        self._reader, self._store = reader, reader.store
        self._backlog = Backlog(run, reader, settings.policy, settings.staging_gigabytes)
        self._pruner = Pruner(run, reader, settings.policy, damage)
        self._damage = damage
        self._listeners: list[Committed] = []
        self._disk_retry_seconds = disk_retry_seconds
        self._disk = Worker("mltrain-disk")
        self._uploads = Worker("mltrain-store")
        self._pending_copies = PendingCopies()
        self._stream = StreamedUpload()
        self._peers: Peers | None = None  # of the newest sharded snapshot
        self._pruning = threading.Lock()
        self._give_way = threading.Event()
        self.lost: set[CheckpointId] = set()  # saved, but kept nowhere
        self.newest_committed: Manifest | None = None
        self.newest_staged: Manifest | None = None
        self.refused = False  # whether the last upload failed
        self.failure: MltrainError | None = None
        """Why the newest checkpoint was not kept, until a later one is on this disk. ``NonFiniteLoss``: it is not finite."""
        run.when_known(self._run_created)

    def when_committed(self, listener: Committed) -> None:
        """Call a function in the background after each commit."""
        self._listeners.append(listener)

    def commit(self, snapshot: Snapshot, draft: Manifest, extra: Mapping[str, bytes]) -> None:
        """Commit a snapshot in the background.

        Args:
            snapshot: of the state. The previous one is already on this disk or given up; see :meth:`make_way`.
            draft: its manifest, without files and tensors.
            extra: additional small files of the checkpoint.
        """
        self._pending_copies = snapshot.pending_copies
        if not snapshot.pending_copies:
            snapshot.pending_copies.confirm()
        self.lost.discard(draft.id)
        self._disk.do(lambda: self._commit_to_disk(snapshot, draft, dict(extra)))

    def _commit_to_disk(self, snapshot: Snapshot, draft: Manifest, extra: Mapping[str, bytes]) -> None:
        began = time.monotonic()
        try:
            free = self._uploads.idle and self._backlog.newest is None and not self.refused and self._run.holds()
            whole = free and snapshot.pieces is None  # and no earlier checkpoint waits for its upload
            self._stream = stream = self._store.streamed(draft.id) if whole else StreamedUpload()
            snapshot.pending_copies.complete(lambda: self._uploads.refuses)
            refuse_nonfinite(snapshot, draft)
            staged = self._stage(snapshot, draft, extra)
            self._peers = snapshot.pieces.peers if snapshot.pieces is not None else self._peers
        except Exception as error:  # noqa: BLE001 - no error stops the training
            self._stream.abandon()
            self._give_up(draft, error)
            return
        finally:
            snapshot.end()
        self.failure, self.newest_staged = None, staged
        size, took = staged.size / 1e6, time.monotonic() - began
        log.info("Saved %s (%s, %.1f MB) in %.2f s", staged.title, staged.name, size, took)
        self._backlog.add(staged)
        self._uploads.do(lambda: self._commit_to_store(staged, stream))
        try:
            self._backlog.trim(staged)
        except MltrainError as error:
            log.warning("Staging exceeds its budget: %s", error)

    def _commit_to_store(self, staged: Manifest, stream: StreamedUpload) -> None:
        with self._backlog.uploading(staged) as waits:
            if not waits:
                return  # trimmed from staging
            try:
                earlier = self._backlog.worth_uploading_before(staged)
                publish(self._store, staged, earlier, self._require_lease, self._peers, stream.sent())
                self.refused = False
            except StorageError as error:
                self.refused = not isinstance(error, NoRunYet)
                # The delay of the run's creation was already logged when training began.
                log.log(
                    logging.INFO if isinstance(error, NoRunYet) else logging.ERROR,
                    "Checkpoint %s is complete on this disk, but could not be uploaded: %s The next checkpoint, or mltrain sync, "
                    "tries again.",
                    staged.name,
                    error,
                )
                return
        self._backlog.committed(staged)
        self.newest_committed = staged
        if self._run.overtaken:
            return
        self._run.announce_latest(staged.name)
        held = self._run.holds(certainly=True)
        with self._pruning:
            # One survey serves all steps below; it reads no manifest that this process has read or written before.
            # The best is announced before any removal: no policy removes it.
            survey = self._store.survey(damaged=self._damage.note, remembered=True)
            committed = self._reader.notes.over(survey.manifests)
            best = self._announce_best(committed)
            try:
                if held:
                    self._pruner.prune(committed, survey.uncommitted, staged)
            except MltrainError as error:  # an unavailable server must not block the rest of a commit
                log.warning("Older checkpoints were not removed: %s", error)
        for listener in self._listeners:
            logged(partial(listener, staged, best, self._store))

    def _stage(self, snapshot: Snapshot, draft: Manifest, extra: Mapping[str, bytes]) -> Manifest:
        """Write a snapshot to this disk, with retries."""
        deadline, tries, pause = time.monotonic() + self._disk_retry_seconds, 0, 0.5
        while True:
            tries += 1
            try:
                manifest = draft.model_copy(update={"pending": tuple(self._run.pending(draft.step))})
                return stage(self._store, snapshot, manifest, extra, self._require_lease, stream=self._stream)
            except StorageError as error:
                self._stream.abandon()
                self.failure = error  # the incomplete write has been removed
                log.error("A checkpoint could not be written (try %d): %s", tries, error)
                if tries >= _TRIES_BEFORE_BACKOFF:
                    if time.monotonic() >= deadline or self._give_way.wait(min(pause, deadline - time.monotonic())):
                        raise
                    pause = min(2 * pause, _LONGEST_BACKOFF_SECONDS)

    def _give_up(self, draft: Manifest, error: Exception) -> None:
        self.lost.add(draft.id)
        if isinstance(error, RunHeld):
            log.warning("%s", error)
        elif isinstance(error, MltrainError):
            self.failure = error
        else:
            log.exception("A checkpoint could not be written")
            self.failure = StorageError(f"A checkpoint could not be written: {type(error).__name__}: {error}")
        log.error("%s was not kept. Training continues, and older checkpoints were not touched. %s", draft.title, error)

    def _require_lease(self) -> None:
        if not self._run.holds():
            raise RunHeld("Another process has taken over this run; this one commits nothing more.")

    def _announce_best(self, committed: Sequence[Manifest]) -> Manifest | None:
        best = retention.best_of(current_line(committed), self._reader.notes.context)
        if best is not None:
            self._run.announce_best(best)
        return best

    def prune(self, origin: CheckpointId | None) -> list[retention.Removal]:
        """Remove checkpoints the policy drops; ``origin`` stays until a commit."""
        if not self._run.holds(certainly=True):
            return []
        with self._pruning:  # includes the survey, so that no thread removes a checkpoint twice
            newest, survey = self.newest_committed, self._store.survey(damaged=self._damage.note)
            committed = self._reader.notes.over(survey.manifests)
            return self._pruner.prune(committed, survey.uncommitted, newest, origin if newest is None else None)

    def declare(self, manifest: Manifest, metrics: Mapping[str, float], *, best: bool) -> None:
        """Add metrics to a saved checkpoint, or declare it best."""
        if self._reader.notes.add(manifest, metrics, best=best):
            self._disk.do(lambda: self._uploads.do(self._record_notes))  # after earlier saves

    def _record_notes(self) -> None:
        if not self._run.holds():
            return
        committed = self._reader.notes.over(self._store.survey(damaged=self._damage.note, remembered=True).manifests)
        self._run.write_json(NOTES_FILE, self._reader.notes.to_json(committed))
        self._announce_best(committed)

    def _run_created(self) -> None:
        """Upload checkpoints staged under a provisional id, unless at exit."""
        if self._store.run_id != self._run.id:
            self._store.adopt(self._run.id)
            if not self._uploads.refuses:  # otherwise it would delay this thread, which delivers records
                self._uploads.do(self._upload_newest)  # the current upload may still fail for lack of a run

    def upload_again(self, manifest: Manifest) -> bool:
        """Upload an earlier process's staged checkpoint; return whether it is stored."""
        return upload_again(self._store, manifest, self._require_lease)

    @property
    def only_local(self) -> Manifest | None:
        """The newest checkpoint of this attempt unless it is uploaded."""
        staged, committed = self.newest_staged, self.newest_committed
        return staged if staged is not None and (committed is None or committed.id != staged.id) else None

    @property
    def idle(self) -> bool:
        """Whether nothing is under way; a failed upload may still wait."""
        return self._disk.idle and self._uploads.idle

    def make_way(self) -> None:
        """Wait until the current snapshot is on this disk.

        If the disk refuses it, it is given up: memory holds one snapshot at a time, and the next one is newer. Call it on the
        training's thread.
        """
        self._give_way.set()
        self.settle()
        self._give_way.clear()
        self._stream.release()  # the next snapshot reuses the memory of this one

    def settle(self, seconds: float | None = None) -> None:
        """Wait until each saved checkpoint is on disk or abandoned.

        Args:
            seconds: maximum wait. If ``None``, it waits without limit.
        """
        self._pending_copies.confirm()
        self._disk.wait(seconds)

    def wait(self, seconds: float = math.inf) -> bool:
        """Wait until all saved checkpoints are stored; return whether they are."""
        seconds = min(seconds, threading.TIMEOUT_MAX)
        self._pending_copies.confirm()
        deadline = time.monotonic() + seconds
        done = self._disk.wait(seconds) and self._uploads.wait(max(0.0, deadline - time.monotonic()))
        return done and self._backlog.newest is None

    def retry(self) -> None:
        """Retry the newest failed upload in the background."""
        if self.idle:
            self._uploads.do(self._upload_newest)

    def _upload_newest(self) -> None:
        if (newest := self._backlog.newest) is not None:
            self._commit_to_store(newest, StreamedUpload())

    @property
    def is_forked(self) -> bool:
        """Whether this process is a fork of the committer's own."""
        return self._disk.is_forked

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._disk.closed

    def close(self) -> None:
        """Take no more work and abandon the current commit."""
        self._pending_copies.confirm()
        self._give_way.set()
        self._stream.abandon()
        self._disk.close()
        self._uploads.close()
        if self._peers is not None:
            self._peers.stop()
