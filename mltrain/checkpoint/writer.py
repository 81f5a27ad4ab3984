"""The background writer: the training waits for a copy into host memory, and for nothing else but a busy local disk.

Two threads, because two things are waited for: the local disk, which frees the host copy, and the artifact store, which
reads what was staged. Threads and not processes: hashing, writing and uploading release the interpreter's lock, and a
process would need a second copy of the state.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from mltrain.checkpoint.manifest import Manifest
from mltrain.checkpoint.store import CheckpointStore
from mltrain.errors import MltrainError, RunHeld, StorageError
from mltrain.state import HostBuffers, snapshot

log = logging.getLogger(__name__)


class Writer:
    """Writes checkpoints in the background, one after the other.

    Args:
        store: where they go.
        committed: called in the background after each commit, with its manifest; prunes, sets hints.
    """

    def __init__(self, store: CheckpointStore, committed: Callable[[Manifest], None]) -> None:
        self._store = store
        self._committed = committed
        self._buffers = HostBuffers()
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="mltrain-disk")
        self._net = ThreadPoolExecutor(1, thread_name_prefix="mltrain-store")
        self._staging: Future[None] | None = None
        self._jobs: list[Future[None]] = []
        self._lock = threading.Lock()
        self._waiting: dict[str, Manifest] = {}
        self.newest_committed: Manifest | None = None
        self.newest_staged: Manifest | None = None
        self.failure: MltrainError | None = None
        """Why the newest checkpoint could not be kept anywhere, if so."""

    def submit(self, state: Mapping[str, Any], manifest: Callable[[], Manifest], extra: Mapping[str, bytes]) -> None:
        """Copy a state and write it in the background.

        Args:
            state: of tensors and plain values; may change as soon as this returns.
            manifest: makes the manifest, without files and tensors; called in the background.
            extra: further small files.

        Raises:
            UnsupportedValue: the state holds something else; the message names the path to it.
        """
        if self._staging is not None:
            self._staging.result()  # the one host copy is still being written to the local disk
        copied = snapshot(state, self._buffers)
        staging = self._disk.submit(self._stage, copied, manifest, dict(extra))
        self._staging = staging
        with self._lock:
            self._jobs = [job for job in self._jobs if not job.done()] + [staging]

    def run(self, job: Callable[[], None]) -> None:
        """Do something in the background after what has been submitted so far has been staged and published."""
        self._disk.submit(lambda: self._later(job))

    def retry(self) -> None:
        """Try again, in the background, to upload the newest checkpoint that could not be uploaded."""
        waiting = list(self._waiting.values())
        if waiting and self.idle:
            newest = max(waiting, key=lambda manifest: manifest.id.order)
            self._later(lambda: self._publish(newest))

    def drain(self, seconds: float) -> bool:
        """Wait for everything submitted, for at most so long; return whether it is all committed."""
        deadline = time.monotonic() + seconds
        for pool in (self._disk, self._net):
            marker = pool.submit(lambda: None)
            try:
                marker.result(max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                return False
        return not self._waiting

    def close(self) -> None:
        """Take no more work; what is under way is abandoned where it stands, complete in staging or invisible."""
        self._disk.shutdown(wait=False, cancel_futures=True)
        self._net.shutdown(wait=False, cancel_futures=True)

    @property
    def idle(self) -> bool:
        """Whether nothing is under way; what is not committed then waits for another try."""
        with self._lock:
            return all(job.done() for job in self._jobs)

    def _stage(self, copied: Any, make: Callable[[], Manifest], extra: dict[str, bytes]) -> None:
        began = time.monotonic()
        manifest: Manifest | None = None
        for attempt in (1, 2):
            try:
                manifest = self._store.stage(copied, make(), extra)
                break
            except StorageError as error:
                # What was half written is gone; a second try goes under another name.
                log.error("A checkpoint could not be written (try %d of 2): %s", attempt, error)
                self.failure = error
            except RunHeld as error:
                log.warning("%s", error)
                return
            except Exception as error:
                log.exception("A checkpoint could not be written")
                self.failure = StorageError(f"A checkpoint could not be written: {type(error).__name__}: {error}")
                return
        if manifest is None:
            return
        self.failure = None
        self.newest_staged = manifest
        seconds = time.monotonic() - began
        log.info("Saved %s (%s, %.1f MB) in %.2f s", manifest.title, manifest.name, manifest.size / 1e6, seconds)
        self._waiting[manifest.name] = manifest
        self._later(lambda: self._publish(manifest))

    def _later(self, job: Callable[[], None]) -> None:
        with self._lock:
            self._jobs.append(self._net.submit(_guarded, job))

    def _publish(self, manifest: Manifest) -> None:
        try:
            self._store.publish(manifest)
        except StorageError as error:
            log.error(
                "Checkpoint %s is complete on this disk, but could not be uploaded: %s It will be tried again with the next.",
                manifest.name,
                error,
            )
            return
        self._waiting.pop(manifest.name, None)
        self.newest_committed = manifest
        for earlier in [m for m in list(self._waiting.values()) if m.id.order < manifest.id.order]:
            self._waiting.pop(earlier.name, None)  # a newer commit supersedes what could not be uploaded
        self._committed(manifest)


def _guarded(job: Callable[[], None]) -> None:
    try:
        job()
    except MltrainError as error:
        log.warning("In the background: %s", error)
    except Exception:
        log.exception("In the background")
