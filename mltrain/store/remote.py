"""Artifacts in a remote store: tracking server, S3 and others."""

import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from mltrain.compat.private import PartOpener, content_sender, download, part_opener
from mltrain.errors import DamagedCheckpoint, StorageError
from mltrain.store.artifacts import CountedOnce, Entry, Hashed, Received, Send, in_parallel, unwatched, validated
from mltrain.store.folders import state_folder
from mltrain.store.local import LocalArtifacts
from mltrain.store.names import (
    CHECKPOINT,
    CHECKPOINTS,
    COMPONENT,
    MANIFEST,
    OUTPUT_RECORD,
    OUTPUTS,
)
from mltrain.store.removal import DEAD_SECONDS, discard_received, output_name, refuse_unless_model
from mltrain.store.retry import RETRY_SECONDS, full_disk, http_status, with_retries
from mltrain.store.server_artifacts import ServerArtifacts

T = TypeVar("T")

_RECEIVED = "received"
_SMALL = 64 * 2**20
"""A plain server's files of at most this many bytes take one request; their folder is listed only after a failure."""


@contextmanager
def _receiving(path: str, size: int) -> Iterator[Path]:
    """Create a download's temporary folder on a disk with room.

    It is below MLTRAIN_HOME if there is room, because the system's temporary folder is often in memory.
    """
    places = [state_folder() / _RECEIVED, Path(tempfile.gettempdir())]
    for place in places:
        with suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(place).free >= size and os.access(place, os.W_OK):
                break
    else:
        raise _no_room(path, size, places, "no free space")
    discard_received(places[0])
    with tempfile.TemporaryDirectory(prefix="mltrain-", dir=place) as temporary:
        yield Path(temporary)


def _no_room(path: str, size: int, places: Sequence[Path], why: str | None) -> StorageError:
    return StorageError(
        f"{path} cannot be downloaded: {why}. Expected {size} free bytes in {' or '.join(map(str, places))}. "
        "Try: set MLTRAIN_HOME to a folder on a larger disk"
    )


class _HashedDownload:
    """A download over several connections, hashed in order.

    The receiving threads hash the bytes that are complete from the start.

    Args:
        size: of the content, in bytes.
        received: called with the bytes of each piece; those of a repeated part count once.

    Attributes:
        content: the bytes received so far.
    """

    def __init__(self, size: int, received: Received) -> None:
        self.content = Hashed(size)
        self._received = received
        self._whole = memoryview(self.content)
        self._ends: dict[int, int] = {}
        """Start of each contiguous range of received bytes to its end."""
        self._digest, self._hashed = hashlib.sha256(), 0
        self._hashing, self._has_repeats = threading.Lock(), False

    def begins(self, first: int) -> None:
        """Note a part's start, perhaps after a failed try."""
        self._has_repeats |= first in self._ends
        self._ends.setdefault(first, first)

    def brings(self, first: int, at: int, piece: bytes) -> int:
        """Store a piece at its offset; return the piece's end."""
        end = at + len(piece)
        self._whole[at:end] = piece
        if end > self._ends[first]:  # an earlier try of the part did not get as far
            before, self._ends[first] = self._ends[first], end
            self._received(end - before)
        while self._next() > self._hashed and self._hashing.acquire(blocking=False):  # else another thread hashes
            try:
                hashable = self._next()
                self._digest.update(self._whole[self._hashed : hashable])
                self._hashed = hashable
            finally:
                self._hashing.release()
        return end

    def finished(self) -> Hashed:
        """Return the whole content, hashed.

        If a part arrived more than once, everything is hashed again.
        """
        if self._has_repeats:
            self._digest, self._hashed = hashlib.sha256(), 0
        self._digest.update(self._whole[self._hashed :])
        self.content.sha256 = self._digest.hexdigest()
        return self.content

    def _next(self) -> int:
        """Return the end of the bytes that are hashable now."""
        return max((end for first, end in self._ends.copy().items() if first <= self._hashed), default=0)


class RemoteArtifacts:
    """Artifacts in a remote store, through an MLflow artifact repository.

    Args:
        repository: MLflow's, or :class:`~mltrain.store.server_artifacts.ServerArtifacts` for a plain server.
        part: bytes that one connection downloads; a larger file takes several connections.
        piece: bytes that a connection delivers at a time.
        uris: of the artifacts and of the tracking server. If ``None``, peers cannot open the store by address.
        retry_seconds: how long a request is retried after transient failures.
    """

    def __init__(
        self,
        repository: Any,
        *,
        part: int = 32 * 2**20,
        piece: int = 2**20,
        uris: tuple[str, str] | None = None,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self.local_root: Path | None = None
        self.uris = uris
        self._part, self._piece = part, piece
        self._open_part = repository.open_part if isinstance(repository, ServerArtifacts) else part_opener(repository)
        self._repository, self._retry_seconds = repository, retry_seconds

    def entries(self, folder: str = "") -> list[Entry]:
        """See :class:`Artifacts`."""
        path = validated(folder) if folder else None
        listed = self._with_retries(lambda: self._repository.list_artifacts(path))
        found = [Entry(PurePosixPath(info.path).name, info.is_dir, info.file_size) for info in listed]
        return [entry for entry in found if COMPONENT.fullmatch(entry.name)]

    def upload(self, file: Path, folder: str = "") -> None:
        """See :class:`Artifacts`."""
        self.upload_all([file], folder)

    def upload_all(self, files: Sequence[Path], folder: str, sent: Collection[str] = ()) -> None:
        """See :class:`Artifacts`."""
        path = validated(folder) if folder else None
        sizes = {validated(file.name): file.stat().st_size for file in files}

        def upload(file: Path) -> None:
            self._with_retries(lambda: self._repository.log_artifact(str(file), path))

        in_parallel(upload, [file for file in files if file.name not in sent])
        stored = {entry.name: entry.size for entry in self.entries(folder)}
        wrong = [name for name, size in sizes.items() if stored.get(name) != size]
        if any(name in sent for name in wrong):
            self.upload_all(files, folder)
        elif wrong:
            name = wrong[0]
            raise StorageError(f"{name} has {stored.get(name)} bytes in the artifact store. Expected {sizes[name]}.")

    def sender(self, folder: str) -> Send | None:
        """See :class:`Artifacts`."""
        path, own = validated(folder), isinstance(self._repository, ServerArtifacts)
        send = self._repository.send if own else content_sender(self._repository)
        if send is None:
            return None

        def to_folder(name: str, content: Iterable[memoryview]) -> None:
            send(f"{path}/{validated(name)}", content)

        return to_folder

    def read(self, path: str, most: int, received: Received = unwatched) -> bytearray:
        """See :class:`Artifacts`."""
        validated(path)
        if isinstance(self._repository, ServerArtifacts) and most <= _SMALL:
            received = counted = CountedOnce(received)
            with suppress(Exception):  # even a missing file: the server's response depends on its storage
                return self._repository.content(path, most, counted, self._piece)
            counted.begins_again()
        folder, _, name = path.rpartition("/")
        size = next((entry.size for entry in self.entries(folder) if entry.name == name and not entry.is_dir), None)
        if size is None:
            raise FileNotFoundError(path)
        if size > most:
            raise DamagedCheckpoint(f"{path} has {size} bytes. Expected at most {most}.")
        try:
            if self._open_part is None:
                return self._read_through_file(path, size, received)
            return self._read_into_memory(self._open_part, path, size, received)
        except StorageError as error:
            if http_status(error) == 404:
                raise FileNotFoundError(path) from error  # removed after it was listed
            raise

    def _read_into_memory(self, open_part: PartOpener, path: str, size: int, received: Received) -> bytearray:
        arrival = _HashedDownload(size, received)
        if not size:
            return arrival.finished()
        # The first response tells whether the store sends parts; its content is received beside the other parts.
        opened = [self._with_retries(partial(open_part, path, 0, min(self._part, size), self._piece))]
        sends_parts = opened[0][0]

        def receive(first: int) -> None:
            """Download a part, or all from a store without parts."""
            last = min(first + self._part, size)
            is_part, pieces = opened.pop() if first == 0 and opened else open_part(path, first, last, self._piece)
            start, end = (first, last) if is_part else (0, size)
            arrival.begins(start)
            at = start
            for piece in pieces:
                if at + len(piece) > end:
                    break
                at = arrival.brings(start, at, piece)
            if at != end:
                raise ConnectionError(f"{path}: the store did not send exactly the bytes {start} to {end - 1}")

        firsts = range(0, size, self._part) if sends_parts else [0]
        in_parallel(lambda first: self._with_retries(partial(receive, first)), firsts)
        return arrival.finished()

    def _read_through_file(self, path: str, size: int, received: Received) -> bytearray:
        name = PurePosixPath(path).name
        with _receiving(path, size) as temporary:
            file = temporary / name

            def receive() -> None:
                try:
                    download(self._repository, path, file)
                except Exception as error:
                    refusal = full_disk(error)
                    if refusal is None:
                        raise
                    raise _no_room(path, size, [temporary.parent], refusal.strerror) from error

            self._with_retries(receive)
            return LocalArtifacts(temporary).read(name, size, received)

    def remove_checkpoint(self, name: str) -> None:
        """See :class:`Artifacts`."""
        if not CHECKPOINT.fullmatch(name):
            raise StorageError(f"{name!r} is not the name of a checkpoint; nothing was removed.")
        self._remove_folder(f"{CHECKPOINTS}/{name}", MANIFEST)

    def remove_output(self, name: str) -> None:
        """See :class:`Artifacts`."""
        self._remove_folder(f"{OUTPUTS}/{output_name(name)}", OUTPUT_RECORD)

    def _remove_folder(self, folder: str, first: str) -> None:
        """Remove a folder, one of its files before the rest.

        Every step is verified before the next, because some stores report success without removing anything: S3 lists refused
        deletions in its response, which MLflow does not read.
        """
        for path in (f"{folder}/{first}", folder):
            self._remove(path)
            remaining = {entry.name for entry in self.entries(folder)}
            if first in remaining or (remaining and path == folder):
                raise StorageError(f"The artifact store did not remove all of {path}; is deletion permitted there?")

    def _remove(self, path: str) -> None:
        self._with_retries(lambda: self._repository.delete_artifacts(path))

    def remove_model(self, model_id: str) -> None:
        """See :class:`Artifacts`."""
        refuse_unless_model(str(self._repository.artifact_uri), model_id)
        for entry in self.entries():
            self._with_retries(partial(self._repository.delete_artifacts, validated(entry.name)))
        if self.entries():
            raise StorageError(f"The artifact store did not remove all of {self._repository.artifact_uri}.")

    def unfinished(self, untouched: float = 0.0) -> list[str]:
        """See :class:`Artifacts`; broken uploads are for the store's lifecycle rules."""
        return []

    def remove_unfinished(self, untouched: float = DEAD_SECONDS) -> int:
        """See :class:`Artifacts`."""
        return 0

    def _with_retries(self, call: Callable[[], T]) -> T:
        return with_retries(call, self._retry_seconds)
