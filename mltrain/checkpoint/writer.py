"""The background writer: the training waits for a copy into host memory, and for nothing else but a busy local disk.

Two threads, because two things are waited for: the local disk, which frees the host copy, and the artifact store, which
reads what was staged. Threads and not processes: hashing, writing and uploading release the interpreter's lock, and a
process would need a second copy of the state (``benchmarks/stall.py`` measures what the training loses by it).
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from mltrain.checkpoint.finite import nonfinite
from mltrain.checkpoint.late_copy import LateCopy, Rest
from mltrain.checkpoint.manifest import CheckpointId, Manifest
from mltrain.checkpoint.snapshot import HostBuffers, Snapshot, snapshot
from mltrain.checkpoint.store import CheckpointStore
from mltrain.errors import MltrainError, NonFiniteLoss, RunHeld, StorageError, shortened

log = logging.getLogger(__name__)

PATIENCE = 30.0
"""For so many seconds a checkpoint that the disk refuses is tried again, unless a newer one takes its place before."""

_TRIES_AT_ONCE = 2
_LONGEST_PAUSE = 5.0
_LOOK_SECONDS = 0.5

Complete = Callable[[Manifest], Manifest]

Overflow = Callable[[list[Manifest]], list[tuple[Manifest, str]]]
"""Asked which of the staged checkpoints have to go, and by which rule, when they no longer fit into their budget."""


class Writer:
    """Writes checkpoints in the background, one after the other.

    Args:
        store: where they go.
        committed: called in the background after each commit, with its manifest; prunes, sets hints.
        overflow: see :data:`Overflow`; none: staging has no budget.
        patience: see :data:`PATIENCE`.
    """

    def __init__(
        self,
        store: CheckpointStore,
        committed: Callable[[Manifest], None],
        overflow: Overflow | None = None,
        patience: float | None = None,
    ) -> None:
        self._store = store
        self._committed = committed
        self._overflow = overflow
        self._patience = PATIENCE if patience is None else patience
        self._buffers = HostBuffers()
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="mltrain-disk")
        self._net = ThreadPoolExecutor(1, thread_name_prefix="mltrain-store")
        self._rest = Rest()
        self._staging: Future[None] | None = None
        self._give_way = threading.Event()
        self._jobs: list[Future[None]] = []
        self._lock = threading.Lock()
        self._waiting: dict[str, Manifest] = {}
        self._publishing: str | None = None
        self._lost: set[CheckpointId] = set()
        self._closed = False
        self.newest_committed: Manifest | None = None
        self.newest_staged: Manifest | None = None
        self.failure: MltrainError | None = None
        """Why the newest checkpoint was not kept: :class:`NonFiniteLoss` where its weights or optimizer state are not finite.

        None as soon as a later one is complete on the local disk. Known once :meth:`settle` has returned.
        """

    def submit(
        self,
        state: Mapping[str, Any],
        manifest: Manifest,
        extra: Mapping[str, bytes],
        complete: Complete = lambda manifest: manifest,
        late: LateCopy | None = None,
    ) -> None:
        """Copy a state and write it in the background.

        Args:
            state: of tensors and plain values; may change as soon as this returns, but for what ``late`` names.
            manifest: without files and tensors.
            extra: further small files.
            complete: adds to the manifest what is known only when it is written; called in the background for each try.
            late: says what may be copied later than now.

        Raises:
            UnsupportedValue: the state holds something else; the message names the path to it.
        """
        self._give_way.set()  # what waits for a disk to recover is older than this
        self.settle()  # the one host copy may still be on its way to the local disk
        self._give_way.clear()
        copied = snapshot(state, self._buffers, late)
        self._rest = copied.rest
        if not copied.rest.left:
            copied.rest.confirm()
        self._lost.discard(manifest.id)
        staging = self._disk.submit(self._stage, copied, manifest, complete, dict(extra))
        self._staging = staging
        with self._lock:
            self._jobs = [job for job in self._jobs if not job.done()] + [staging]

    def run(self, job: Callable[[], None]) -> None:
        """Do something in the background after what has been submitted so far has been staged and published."""
        with suppress(RuntimeError):  # it is closed
            self._disk.submit(lambda: self._later(job))

    def settle(self, seconds: float | None = None) -> None:
        """Wait until what was submitted is on the local disk, or is given up; for the thread that trains.

        Args:
            seconds: to wait at most. If ``None``, there is no limit.
        """
        self._rest.confirm()
        if self._staging is not None:
            with suppress(TimeoutError):
                self._staging.result(seconds)

    def retry(self) -> None:
        """Try again, in the background, to upload the newest checkpoint that could not be uploaded."""
        waiting = list(self._waiting.values())
        if waiting and self.idle:
            newest = max(waiting, key=lambda manifest: manifest.id.order)
            self._later(lambda: self._publish(newest))

    def drain(self, seconds: float) -> bool:
        """Wait for everything submitted, for at most so long; return whether it is all committed. For the thread that trains."""
        self._rest.confirm()
        deadline = time.monotonic() + seconds
        for pool in (self._disk, self._net):
            try:
                marker = pool.submit(lambda: None)
            except RuntimeError:  # it is closed, or the interpreter is ending: nothing more comes
                break
            try:
                marker.result(max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                return False
        return not self._waiting

    def close(self) -> None:
        """Take no more work; what is under way is abandoned where it stands, complete in staging or invisible."""
        self._rest.confirm()
        self._closed = True
        self._give_way.set()
        self._disk.shutdown(wait=False, cancel_futures=True)
        self._net.shutdown(wait=False, cancel_futures=True)

    @property
    def idle(self) -> bool:
        """Whether nothing is under way; what is not committed then waits for another try."""
        with self._lock:
            return all(job.done() for job in self._jobs)

    def lost(self, identity: CheckpointId) -> bool:
        """Whether a checkpoint that was submitted could not be kept anywhere."""
        return identity in self._lost

    def _stage(self, copied: Snapshot, draft: Manifest, complete: Complete, extra: dict[str, bytes]) -> None:
        began = time.monotonic()
        manifest = self._written(copied, draft, complete, extra)
        if manifest is None:
            self._lost.add(draft.id)
            log.error("%s was not kept; the training goes on, and older checkpoints were not touched.", draft.title)
            return
        self.failure = None
        self.newest_staged = manifest
        seconds = time.monotonic() - began
        log.info("Saved %s (%s, %.1f MB) in %.2f s", manifest.title, manifest.name, manifest.size / 1e6, seconds)
        with self._lock:
            self._waiting[manifest.name] = manifest
        self._later(lambda: self._publish(manifest))
        try:
            self._keep_to_the_budget()
        except MltrainError as error:
            log.warning("Staging could not be kept to its budget: %s", error)

    def _written(
        self, copied: Snapshot, draft: Manifest, complete: Complete, extra: dict[str, bytes]
    ) -> Manifest | None:
        """Write a snapshot, again under another name where the disk refuses; none: it could not be kept."""
        if not self._is_whole(copied.rest) or not self._is_finite(copied, draft):
            return None
        deadline = time.monotonic() + self._patience
        tries, pause = 0, 0.5
        while True:
            tries += 1
            try:
                return self._store.stage(copied, complete(draft), extra)
            except StorageError as error:
                self.failure = error  # what was half written is gone
                log.error("A checkpoint could not be written (try %d): %s", tries, error)
            except RunHeld as error:
                log.warning("%s", error)
                return None
            except Exception as error:
                log.exception("A checkpoint could not be written")
                self.failure = StorageError(f"A checkpoint could not be written: {type(error).__name__}: {error}")
                return None
            if tries < _TRIES_AT_ONCE:
                continue
            if time.monotonic() >= deadline or self._give_way.wait(min(pause, deadline - time.monotonic())):
                return None
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _is_whole(self, rest: Rest) -> bool:
        """Copy what is left of a snapshot, wait until the training's thread has confirmed it, and return whether it is one."""
        rest.copy()
        while not rest.confirmed.wait(_LOOK_SECONDS):
            try:
                self._net.submit(lambda: None)
            except RuntimeError:  # the interpreter is ending: nobody trains any more
                rest.confirm()
        if rest.changed:
            why = (
                "something changed parameters or optimizer state in place after it was due and before the next "
                "optimizer.step(), so it would have been of no step. From now on all is copied at once, as without late_copy."
            )
        elif rest.error is not None:
            why = f"{type(rest.error).__name__}: {rest.error}"
        else:
            return True
        self.failure = StorageError(f"A checkpoint could not be written: {why}")
        log.error("%s", self.failure)
        return False

    def _is_finite(self, copied: Snapshot, draft: Manifest) -> bool:
        """Return whether a training can go on from a snapshot: from NaN it cannot, so the checkpoint before stays the newest."""
        wrong = nonfinite(copied.tree, copied.tensors)
        if wrong:
            self.failure = NonFiniteLoss(
                f"{draft.title} ({draft.name}) is not a checkpoint: {len(wrong)} tensor(s) of weights or optimizer state hold "
                f"NaN or infinity. Expected finite numbers, got: {shortened(wrong, 5)}. The last finite checkpoint stays the "
                "newest. Try: resume from it with a lower learning rate or gradient clipping; register a buffer that is meant "
                "to hold infinity with persistent=False."
            )
            log.error("%s", self.failure)
        return not wrong

    def _later(self, job: Callable[[], None]) -> None:
        with self._lock:
            try:
                self._jobs.append(self._net.submit(_guarded, job))
                return
            except RuntimeError:
                if self._closed:
                    return
        # The interpreter is ending, and takes no more work; it waits for this thread, so what was saved is still completed.
        _guarded(job)

    def _publish(self, manifest: Manifest) -> None:
        with self._lock:
            if manifest.name not in self._waiting:
                return  # staging had no room for it any more
            self._publishing = manifest.name
        try:
            self._store.publish(manifest)
        except StorageError as error:
            log.error(
                "Checkpoint %s is complete on this disk, but could not be uploaded: %s A newer one, or mltrain sync, "
                "takes its place.",
                manifest.name,
                error,
            )
            return
        finally:
            self._publishing = None
        with self._lock:
            for name in [name for name, m in self._waiting.items() if m.id.order <= manifest.id.order]:
                del self._waiting[name]  # a newer commit supersedes what could not be uploaded
        self.newest_committed = manifest
        self._committed(manifest)

    def _keep_to_the_budget(self) -> None:
        if self._overflow is None:
            return
        for manifest, rule in self._overflow(self._store.staged()):
            with self._lock:
                if manifest.name == self._publishing:
                    continue
                self._waiting.pop(manifest.name, None)
            self._store.discard_staged(manifest.id)
            log.warning(
                "Staging is full: %s (%s) was removed from this disk before it could be uploaded: %s.",
                manifest.title,
                manifest.name,
                rule,
            )


def _guarded(job: Callable[[], None]) -> None:
    try:
        job()
    except MltrainError as error:
        log.warning("In the background: %s", error)
    except Exception:
        log.exception("In the background")
