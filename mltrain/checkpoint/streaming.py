"""Uploads checkpoint files from memory while they are staged.

Each file gets one try; the manifest is not among them. A file that fails is uploaded later from the staged copy, with retries.
The sending threads read the snapshot's memory until the next snapshot needs it, and the remaining bytes from the staged copy,
so a slow store does not delay training.
"""

import logging
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from mltrain.checkpoint.codec import EncodedFile
from mltrain.checkpoint.manifest import CheckpointId
from mltrain.checkpoint.store import CheckpointStore
from mltrain.errors import StorageError
from mltrain.store.artifacts import PARALLEL_FILES, Send
from mltrain.store.direct import fill_blocks
from mltrain.store.names import CHECKPOINTS

log = logging.getLogger(__name__)

BLOCK = 2**19
"""Bytes per send. MLflow's own upload sends 16 KB at a time, and waits for the interpreter's lock each time."""


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

    @classmethod
    def to(cls, store: CheckpointStore, identity: CheckpointId) -> "StreamedUpload":
        """Return a checkpoint's upload to a store.

        It does nothing if the store takes no content from memory.
        """
        send = store.artifacts.sender(f"{CHECKPOINTS}/{identity.name}")
        return cls() if send is None else cls(send, store.local_folder(identity))

    def begin(self, files: Sequence[EncodedFile]) -> bool:
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

    def blocks(self, file: EncodedFile) -> Iterator[memoryview]:
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

    def _rest(self, file: EncodedFile, at: int) -> Iterator[memoryview]:
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

    def __init__(self, file: EncodedFile, upload: StreamedUpload) -> None:
        self._file, self._upload = file, upload

    def __len__(self) -> int:
        return self._file.size

    def __iter__(self) -> Iterator[memoryview]:
        return self._upload.blocks(self._file)


def _blocks(file: EncodedFile, size: int) -> Generator[memoryview, None, None]:
    """Yield the content in blocks, all in the same memory."""
    import numpy as np

    for block in fill_blocks(file.content, [np.empty(size, np.uint8)]):
        yield memoryview(block)
