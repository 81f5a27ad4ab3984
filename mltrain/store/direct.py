"""Writing a new file, hashed on the way: through the system's cache, or past it.

A write through the cache takes more of the processor than the hash does, because the system finds, copies and accounts for
every page. Past it (``O_DIRECT``, open(2)), the disk reads a block of aligned memory while the next one is filled and hashed.
"""

import errno
import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

if sys.platform == "linux":
    import fcntl

BLOCK = 2**24
"""Bytes that go past the cache at once; what is left of a file in the end goes through it."""

_ALIGNED = 4096
"""Memory, place and length of a direct write are multiples of the sector size, which this one is of."""


def write_cached(descriptor: int, content: Iterable[bytes | memoryview], update: Callable[[Any], None]) -> int:
    """Write through the cache, hand each piece to ``update``, and return the number of bytes; flush nothing.

    Raises:
        OSError: the disk is full or fails.
    """
    size = 0
    for piece in content:
        size += _write_all(descriptor, piece)
        _begin_flush(descriptor, size - len(piece), len(piece))
        update(piece)  # while the disk is at work
    return size


def write_direct(descriptor: int, content: Iterable[bytes | memoryview], update: Callable[[Any], None]) -> int:
    """Do so past the cache, but for the last bytes; through it where the filesystem has no other way.

    Raises:
        OSError: the disk is full or fails.
    """
    if not _switch(descriptor, direct=True):
        return write_cached(descriptor, content, update)
    import numpy as np

    size = filled = 0
    block, other = _block(), _block()
    with ThreadPoolExecutor(1, "mltrain-write") as writer:
        under_way: Future[None] | None = None
        for piece in content:
            rest = np.frombuffer(piece, np.uint8)
            while rest.size:
                taken, rest = rest[: BLOCK - filled], rest[BLOCK - filled :]
                np.copyto(block[filled : filled + taken.size], taken)  # without the interpreter's lock
                filled += taken.size
                if filled == BLOCK:
                    if under_way is not None:
                        under_way.result()
                    under_way = _begun(writer, descriptor, block)
                    update(block)  # while the disk is at work
                    size, filled, block, other = size + BLOCK, 0, other, block
        if under_way is not None:
            under_way.result()
    _switch(descriptor, direct=False)
    return size + write_cached(descriptor, [memoryview(block[:filled])], update)


def _block() -> Any:
    """Return aligned memory, which NumPy asks the system for in large pages where there are any."""
    import numpy as np

    whole = np.empty(BLOCK + _ALIGNED, np.uint8)
    start = -whole.ctypes.data % _ALIGNED
    return whole[start : start + BLOCK]


def _begun(writer: ThreadPoolExecutor, descriptor: int, block: Any) -> Future[None]:
    try:
        return writer.submit(_write_block, descriptor, block)
    except RuntimeError:  # the interpreter is ending and starts no more threads
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
            # A filesystem that allows it, and then not of this length or from here, takes the rest through the cache.
            if error.errno != errno.EINVAL or not _switch(descriptor, direct=False):
                raise


def _switch(descriptor: int, *, direct: bool) -> bool:
    """Have further writes go past the cache, or through it; return whether that is new."""
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
    """Have the system begin to write bytes of a file to the disk; what is not there yet, ``fsync`` waits for.

    Linux does so when it is advised that the bytes will not be needed, and keeps them in memory until they are written.
    """
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):  # only advice
            os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_DONTNEED)
