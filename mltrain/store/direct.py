"""Writes new files, hashed on the way, cached or direct.

A write through the page cache takes more processor time than the hash, because the system finds, copies and accounts for every
page. A direct write (``O_DIRECT``, open(2)) sends a block of aligned memory to the disk while the next one is filled and
hashed.
"""

import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import cycle
from typing import Any

if sys.platform == "linux":
    import fcntl

BLOCK = 2**24
"""Bytes of a direct write; the remainder of a file goes through the cache."""

_ALIGNED = 4096
"""Alignment of memory, offset and length of a direct write: a multiple of any sector size."""


def write_cached(descriptor: int, content: Iterable[bytes | memoryview], update: Callable[[Any], None]) -> int:
    """Write through the page cache and return the bytes written.

    Each piece is passed to ``update``. Nothing is flushed.

    Raises:
        OSError: the disk is full or fails.
    """
    size = 0
    for piece in content:
        size += _write_all(descriptor, piece)
        _begin_flush(descriptor, size - len(piece), len(piece))
        update(piece)  # while the disk writes
    return size


def write_direct(
    descriptor: int, content: Iterable[bytes | memoryview], update: Callable[[Any], None], block_size: int = BLOCK
) -> int:
    """Write past the page cache and return the bytes written.

    The last partial block goes through the cache, and so does everything on a filesystem without direct writes. Each piece is
    passed to ``update``. Nothing is flushed. ``block_size`` is a multiple of 4096 bytes.

    Raises:
        OSError: the disk is full or fails.
    """
    if not _switch(descriptor, direct=True):
        return write_cached(descriptor, content, update)
    size, remainder = 0, memoryview(b"")
    with ThreadPoolExecutor(1, "mltrain-write") as writer:
        pending_write: Future[None] | None = None
        for block in fill_blocks(content, (_block(block_size), _block(block_size))):
            if len(block) < block_size:
                remainder = memoryview(block)
                continue
            if pending_write is not None:
                pending_write.result()
            pending_write = _start_write(writer, descriptor, block)
            update(block)  # while the disk writes
            size += block_size
        if pending_write is not None:
            pending_write.result()
    _switch(descriptor, direct=False)
    return size + write_cached(descriptor, [remainder], update)


def fill_blocks(content: Iterable[bytes | memoryview], buffers: Sequence[Any]) -> Iterator[Any]:
    """Yield content copied into the buffers in turn.

    Only the last block may be shorter than its buffer.

    Args:
        content: in pieces of any size.
        buffers: arrays of uint8, all of one size; each is reused once the others are filled.
    """
    import numpy as np

    turn, filled = cycle(buffers), 0
    block = next(turn)
    for piece in content:
        rest: Any = np.frombuffer(piece, np.uint8)
        while rest.size:
            taken, rest = rest[: len(block) - filled], rest[len(block) - filled :]
            np.copyto(block[filled : filled + taken.size], taken)  # without the interpreter's lock
            filled += taken.size
            if filled == len(block):
                yield block
                block, filled = next(turn), 0
    if filled:
        yield block[:filled]


def _block(size: int) -> Any:
    """Return aligned memory.

    NumPy requests it in huge pages where the system has them.
    """
    import numpy as np

    whole = np.empty(size + _ALIGNED, np.uint8)
    start = -whole.ctypes.data % _ALIGNED
    return whole[start : start + size]


def _start_write(writer: ThreadPoolExecutor, descriptor: int, block: Any) -> Future[None]:
    try:
        return writer.submit(_write_block, descriptor, block)
    except RuntimeError:  # the interpreter is exiting and starts no more threads
        done: Future[None] = Future()
        _write_block(descriptor, block)
        done.set_result(None)
        return done


def _write_block(descriptor: int, block: Any) -> None:
    rest = memoryview(block)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except OSError as error:
            # A filesystem may allow direct writes but refuse this length or address; the rest then goes through the cache.
            if error.errno != errno.EINVAL or not _switch(descriptor, direct=False):
                raise


def _switch(descriptor: int, *, direct: bool) -> bool:
    """Turn direct writes on or off; return whether that changed."""
    if sys.platform != "linux":
        return False
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    wanted = flags | os.O_DIRECT if direct else flags & ~os.O_DIRECT
    if wanted == flags:
        return False
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, wanted)
    except OSError:
        return False
    return True


def _write_all(descriptor: int, piece: bytes | memoryview) -> int:
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    return len(piece)


def _begin_flush(descriptor: int, start: int, length: int) -> None:
    """Make the system start writing a file's bytes to disk.

    Linux does so when it is advised that the bytes will not be needed, and keeps them in memory until they are written;
    ``fsync`` waits for the remaining ones.
    """
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):  # the advice is optional
            os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_DONTNEED)
