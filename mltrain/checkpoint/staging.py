"""Local staging: write a checkpoint, flush it, rename it; meanwhile send its files.

The files go to a folder with a temporary name (``step-…-a….<random>.tmp``), the manifest last, and the folder gets its final
name once everything is flushed. A power failure at any moment leaves either the complete checkpoint or a folder that is not
taken for one.

A store on another machine may take the files from memory while they are staged, except the manifest. Each gets one try. A file
that fails is uploaded later from the staged copy, with retries. The sending threads read the snapshot's memory until the next
snapshot needs it, and the remaining bytes from the staged copy, so a slow store does not delay training.
"""

import logging
import secrets
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from mltrain.checkpoint.manifest import FILE_NAME, CheckpointId, FileEntry, Manifest
from mltrain.errors import StorageError
from mltrain.store.artifacts import PARALLEL_FILES, Send
from mltrain.store.direct import fill_blocks
from mltrain.store.durable import make_folder, refused, rename_folder, replace_file, write_file
from mltrain.store.removal import discard_staged, is_half_staged

if TYPE_CHECKING:
    from mltrain.checkpoint.codec import EncodedFile

log = logging.getLogger(__name__)

BLOCK = 2**19
"""Bytes per send. MLflow's own upload sends 16 KB at a time, and waits for the interpreter's lock each time."""


class Spool:
    """The folder with the staged checkpoints of one run.

    Raises:
        StorageError: the folder cannot be created or written to.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        make_folder(root)

    def staging(self, identity: CheckpointId) -> "Staging":
        """Begin to stage a checkpoint."""
        return Staging(self.root / f"{identity.name}.{secrets.token_hex(4)}.tmp")

    def complete(self) -> list[Path]:
        """Return the folders of complete checkpoints, sorted by name."""
        return sorted(f for f in self._folders() if CheckpointId.parse(f.name) and (f / FILE_NAME).is_file())

    def discard_unfinished(self) -> int:
        """Remove incomplete stagings and return their number.

        Only the process that holds the run may call this.
        """
        unfinished = [folder for folder in self._folders() if is_half_staged(folder)]
        for folder in unfinished:
            discard_staged(folder)
        return len(unfinished)

    def _folders(self) -> list[Path]:
        try:
            return list(self.root.iterdir())
        except OSError as error:
            raise StorageError(f"{self.root} cannot be listed: {error.strerror}. Try: check that disk.") from error


class Staging:
    """A checkpoint being written.

    Leaving the block without :meth:`commit` removes it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, FileEntry] = {}
        self._committed = False

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir()
        except OSError as error:
            raise refused(self.folder.parent, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._committed:
            discard_staged(self.folder)

    def write(self, name: str, content: Iterable[bytes | memoryview], *, cached: bool = True) -> None:
        """Write, hash and flush a file.

        Args:
            name: of the file.
            content: in pieces.
            cached: whether the file is read soon, as for an upload; see :func:`~mltrain.store.durable.write_file`.

        Raises:
            StorageError: the disk is full or fails.
        """
        size, digest = write_file(self.folder / name, content, cached=cached)
        self.files[name] = FileEntry(size=size, sha256=digest)

    def commit(self, manifest: Manifest, target: Path, guard: Callable[[], None] = lambda: None) -> None:
        """Write the manifest, flush everything, and rename to ``target``.

        Args:
            manifest: of the checkpoint.
            target: the final path of the checkpoint.
            guard: called right before the rename; its errors are raised.

        Raises:
            StorageError: the disk is full or fails, or the folder ``target`` exists.
        """
        self.write(FILE_NAME, [manifest.to_json()])
        del self.files[FILE_NAME]
        self._place(target, guard)
        self._committed = True

    def _place(self, target: Path, guard: Callable[[], None]) -> None:
        rename_folder(self.folder, target, guard)


def assign_run_id(folder: Path, run_id: str) -> Manifest:
    """Write the run's final id into a staged manifest.

    The checkpoint was staged under the run's provisional id. Returns the new manifest.

    Raises:
        StorageError: the disk refuses.
        DamagedCheckpoint: the manifest was changed.
    """
    content = (folder / FILE_NAME).read_bytes()
    manifest = Manifest.from_json(content, name=folder.name).model_copy(update={"run_id": run_id})
    replace_file(folder / FILE_NAME, manifest.to_json())
    return manifest


class StreamedUpload:
    """Uploads one checkpoint's files from memory while they are staged.

    Args:
        send: uploads content under a name. If ``None``, nothing is uploaded.
        staged: the future folder of the staged copy.
        block_size: bytes per send.
    """

    def __init__(self, send: Send | None = None, staged: Path | None = None, block_size: int = BLOCK) -> None:
        self._send = send
        self._staged = staged
        self._block_size = block_size
        self._reading = threading.Lock()
        self._released = self._abandoned = False
        self._uploads: dict[str, Future[None]] = {}

    def begin(self, files: "Sequence[EncodedFile]") -> bool:
        """Start uploading files in the background.

        Returns whether files are uploaded this way.
        """
        if self._send is None or self._abandoned or self._uploads:
            return False
        pool = ThreadPoolExecutor(PARALLEL_FILES, thread_name_prefix="mltrain-stream")
        try:
            for file in (one for one in files if one.size):
                self._uploads[file.name] = pool.submit(self._send, file.name, _Content(file, self))
        except RuntimeError:  # the interpreter is exiting and starts no more threads
            self.abandon()
        pool.shutdown(wait=False)
        return not self._abandoned

    def release(self) -> None:
        """Stop reading the snapshot's memory.

        The remaining bytes are read from the staged copy, which has to be complete.
        """
        with self._reading:
            self._released = True

    def abandon(self) -> None:
        """Stop sending."""
        self._abandoned = True
        self.release()

    def sent(self) -> frozenset[str]:
        """Wait for the uploads and return the successful files' names."""
        taken = set()
        for name, upload in self._uploads.items():
            error = upload.exception()
            if error is None:
                taken.add(name)
            else:
                log.debug("%s was not uploaded while it was staged: %s: %s", name, type(error).__name__, error)
        return frozenset(taken)

    def blocks(self, file: "EncodedFile") -> Iterator[memoryview]:
        """Yield a file's content in blocks.

        Each block is valid until the next one is requested.
        """
        at, blocks = 0, _blocks(file, self._block_size)
        while True:
            with self._reading:
                self._raise_if_abandoned()
                block = None if self._released else next(blocks, None)
            if block is None:
                break
            yield block
            at += len(block)
        blocks.close()  # frees its references to the snapshot
        if at < file.size:
            yield from self._rest(file, at)

    def _rest(self, file: "EncodedFile", at: int) -> Iterator[memoryview]:
        assert self._staged is not None
        block = bytearray(self._block_size)
        with (self._staged / file.name).open("rb", buffering=0) as opened:
            opened.seek(at)
            while count := opened.readinto(block):
                self._raise_if_abandoned()
                yield memoryview(block)[:count]

    def _raise_if_abandoned(self) -> None:
        if self._abandoned:
            raise StorageError("The upload was cancelled.")


class _Content:
    """A file's sized content, read while it is sent."""

    def __init__(self, file: "EncodedFile", upload: StreamedUpload) -> None:
        self._file, self._upload = file, upload

    def __len__(self) -> int:
        return self._file.size

    def __iter__(self) -> Iterator[memoryview]:
        return self._upload.blocks(self._file)


def _blocks(file: "EncodedFile", size: int) -> Generator[memoryview, None, None]:
    """Yield the content in blocks, all in the same memory."""
    import numpy as np

    for block in fill_blocks(file.content, [np.empty(size, np.uint8)]):
        yield memoryview(block)
