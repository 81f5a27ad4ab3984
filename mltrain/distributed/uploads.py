"""Uploads of sharded checkpoints.

Each rank uploads its own files and then its part file; rank 0 waits for all, and commits.

No rank waits in a collective here, because an upload may last longer than a collective's timeout and is retried when the
store is back. Each rank notes in the rendezvous store how its upload ended. Rank 0 looks the files up in the artifact store
before it commits.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mltrain.checkpoint.manifest import CheckpointId, Manifest
from mltrain.checkpoint.shards import Part
from mltrain.checkpoint.staging import Spool
from mltrain.distributed.node import Destination
from mltrain.errors import PeerLost, RunHeld, StorageError
from mltrain.store.artifacts import Artifacts
from mltrain.store.names import CHECKPOINTS
from mltrain.store.opening import Address
from mltrain.store.removal import discard_staged
from mltrain.store.retry import FullJitter

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_ABANDONED = "its process is ending"


class Notes(Protocol):
    """Notes between ranks, without waiting: :class:`mltrain.distributed.world.World`."""

    rank: int
    size: int
    seconds: float

    def note(self, key: str, text: str) -> None:
        """Leave a note."""
        ...

    def noted(self, key: str) -> str | None:
        """Return the newest note of a key, or ``None``."""
        ...


@dataclass(frozen=True)
class Upload:
    """One rank's files of one checkpoint, to be uploaded.

    Attributes:
        address: of the artifact store.
        folder: with the staged copy of this node.
        manifest: of the checkpoint.
        part: name of this rank's part file.
        token: of this try to save the checkpoint, for the note to rank 0.
    """

    address: Address
    folder: Path
    manifest: Manifest
    part: str
    token: str


class Uploads:
    """Uploads a rank's staged files in a thread, with retries.

    Args:
        world: the ranks.
        overtaken: returns whether the artifact store records an attempt of the run later than the given one.
        opened: called once with the staging folder of this node and the tracking URI, before any file is staged.
    """

    def __init__(
        self, world: Notes, overtaken: Callable[[Artifacts, int], bool], opened: Callable[[Path, str], None]
    ) -> None:
        self._world = world
        self._overtaken = overtaken
        self._opened: Callable[[Path, str], None] | None = opened
        self._spool: Spool | None = None
        self._change = threading.Condition()
        self._waiting: dict[str, Upload] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    def spool(self, destination: Destination) -> Spool:
        """Return this node's staging folder.

        Raises:
            StorageError: the folder cannot be created.
        """
        assert destination.address is not None
        self._spool = Spool(destination.here)
        if self._opened is not None:
            self._opened(self._spool.root, destination.address.tracking_uri)
            self._opened = None
        return self._spool

    def add(self, upload: Upload) -> None:
        """Upload this rank's staged files in the background."""
        with self._change:
            self._waiting[upload.token] = upload
            self._change.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="mltrain-store", daemon=True)
                self._thread.start()

    def close(self, seconds: float) -> None:
        """Wait for pending uploads within a timeout; start no others."""
        deadline = time.monotonic() + seconds
        with self._change:
            self._change.wait_for(lambda: not self._waiting, max(0.0, deadline - time.monotonic()))
            self._closed = True
            self._change.notify_all()

    def discard_before(self, committed: CheckpointId) -> None:
        """Remove this node's staged checkpoints older than a committed one."""
        for folder in self._spool.complete() if self._spool is not None else []:
            found = CheckpointId.parse(folder.name)
            if found is not None and found.order < committed.order:
                discard_staged(folder)

    def _serve(self) -> None:
        jitter, failures = FullJitter(multiplier=0.2, max=10), 0
        while True:
            with self._change:
                if failures and not self._closed:
                    self._change.wait(jitter.seconds(failures))
                self._change.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                jobs = list(self._waiting.values())
            why: str | None = None
            for job in jobs:
                why = why if why is not None else self._try_upload(job)
                self._note(job, why)
            failures = failures + 1 if why is not None else 0

    def _try_upload(self, job: Upload) -> str | None:
        """Upload one checkpoint's files; return why it failed, or ``None``."""
        why: str | None = None
        try:
            artifacts = job.address.open()
            target = f"{CHECKPOINTS}/{job.manifest.name}"
            data = Part.from_json((job.folder / job.part).read_bytes(), job.part).files
            self._refuse_overtaken(artifacts, job)
            if data:
                artifacts.upload_all([job.folder / name for name in sorted(data)], target)
            self._refuse_overtaken(artifacts, job)
            artifacts.upload(job.folder / job.part, target)
        except RunHeld as held:
            why = f"{held}"
            log.error("%s", held)
        except Exception as error:  # noqa: BLE001 - rank 0 waits for an answer in any case
            if (job.folder / job.part).is_file():
                return f"{error}"
            # Otherwise rank 0 no longer needs this checkpoint, and another rank of this node has removed it.
        with self._change:
            self._waiting.pop(job.token, None)
            self._change.notify_all()
        return why

    def _refuse_overtaken(self, artifacts: Artifacts, job: Upload) -> None:
        if self._closed:
            raise StorageError(_ABANDONED)
        if self._overtaken(artifacts, job.manifest.id.attempt):
            raise RunHeld(
                f"A later attempt of run {job.manifest.run_id} has begun; this process does not publish {job.manifest.name}."
            )

    def _note(self, job: Upload, why: str | None) -> None:
        try:
            self._world.note(f"{job.token}/{self._world.rank}", f"failed {why}" if why is not None else "done")
        except PeerLost as lost:
            log.debug("Rank 0 is gone: %s", lost)


class PeerUploads:
    """The other ranks' uploads, for which rank 0 waits: :class:`mltrain.checkpoint.ports.Peers`.

    Args:
        world: the ranks.
    """

    def __init__(self, world: Notes) -> None:
        self._world = world
        self._tokens: dict[str, str] = {}
        self._stopped = threading.Event()

    def add(self, manifest: Manifest, token: str) -> None:
        """Expect uploads of a checkpoint staged by all ranks."""
        self._tokens[manifest.name] = token

    def expects(self, manifest: Manifest) -> bool:
        """See :class:`mltrain.checkpoint.ports.Peers`."""
        return manifest.name in self._tokens

    def wait(self, manifest: Manifest) -> None:
        """See :class:`mltrain.checkpoint.ports.Peers`."""
        token, deadline = self._tokens[manifest.name], time.monotonic() + self._world.seconds
        missing = set(range(1, self._world.size))
        while True:
            for rank in sorted(missing):
                outcome, _, why = (self._world.noted(f"{token}/{rank}") or "").partition(" ")
                if outcome == "failed":
                    raise StorageError(f"Rank {rank} could not upload its files: {why}")
                if outcome != "done":
                    break
                missing.remove(rank)
            if not missing:
                return
            if self._stopped.wait(_POLL_SECONDS) or time.monotonic() > deadline:
                raise StorageError(f"Rank {min(missing)} has not uploaded its files of {manifest.name}.")

    def stop(self) -> None:
        """See :class:`mltrain.checkpoint.ports.Peers`."""
        self._stopped.set()
