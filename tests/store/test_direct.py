import errno
import fcntl
import hashlib
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mltrain.store import direct
from mltrain.store.durable import write_file
from tests.support.disks import refuse

BLOCK = 2**16
PLACES = ["the filesystem goes past its cache", "it allows no direct writes", "it allows them, and then refuses each"]


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, int]]:
    """Whether each write went past the cache, and its length."""
    noted: list[tuple[bool, int]] = []
    write = os.write

    def written(descriptor: int, content: Any) -> int:
        length = write(descriptor, content)
        noted.append((is_direct(descriptor), length))
        return length

    monkeypatch.setattr(os, "write", written)
    return noted


def is_direct(descriptor: int) -> bool:
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)


def refuse_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = fcntl.fcntl

    def refused(descriptor: int, command: int, *flags: int) -> int:
        if command == fcntl.F_SETFL and flags[0] & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return plain(descriptor, command, *flags)

    monkeypatch.setattr(fcntl, "fcntl", refused)


def allows_direct(folder: Path) -> bool:
    with (folder / "probe").open("wb") as probe:
        return direct._switch(probe.fileno(), direct=True)


def pieces(size: int) -> list[bytes | memoryview]:
    """Random bytes in pieces of many lengths, some empty."""
    chance, content = random.Random(size), memoryview(random.Random(0).randbytes(size))
    found: list[bytes | memoryview] = [b""]
    while len(content):
        length = chance.choice([1, 7, 4096, BLOCK, 3 * BLOCK + 1])
        found += [content[:length], b""]
        content = content[length:]
    return found


def write(file: Path, content: list[bytes | memoryview]) -> tuple[int, str]:
    """Write directly, in small blocks; return the size and the digest."""
    digest = hashlib.sha256()
    with file.open("xb", buffering=0) as opened:
        return direct.write_direct(opened.fileno(), content, digest.update, BLOCK), digest.hexdigest()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 4096, 9 * BLOCK - 3])
def test_a_file_holds_all_bytes_in_order_and_their_digest(
    tmp_path: Path, writes: list[tuple[bool, int]], monkeypatch: pytest.MonkeyPatch, place: str, size: int
) -> None:
    possible = allows_direct(tmp_path)
    if place == PLACES[1]:
        refuse_flag(monkeypatch)
    if place == PLACES[2]:
        refuse(monkeypatch, "write", errno.EINVAL, is_direct)
    content = b"".join(pieces(size))
    assert write(tmp_path / "file", pieces(size)) == (size, hashlib.sha256(content).hexdigest())
    assert (tmp_path / "file").read_bytes() == content
    past = size - size % BLOCK if possible and place == PLACES[0] else 0
    assert sum(length for is_past, length in writes if is_past) == past
    assert sum(length for is_past, length in writes if not is_past) == size - past


@pytest.mark.parametrize("cached", [True, False])
def test_only_a_file_that_is_not_read_soon_goes_past_the_cache(
    tmp_path: Path, writes: list[tuple[bool, int]], cached: bool
) -> None:
    possible = allows_direct(tmp_path)
    write_file(tmp_path / "file", [bytes(direct.BLOCK)], cached=cached)
    assert any(is_past for is_past, _ in writes) == (possible and not cached)


def test_a_disk_that_is_full_is_an_error_of_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, "write", errno.ENOSPC, is_direct)
    if not allows_direct(tmp_path):
        pytest.skip("this filesystem has no direct writes")
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "file", pieces(BLOCK))


def test_a_block_is_not_filled_anew_while_the_disk_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, hashed = os.write, []

    def slow(descriptor: int, content: Any) -> int:
        before = bytes(content)
        for _ in range(50):  # gives the other thread its turn
            os.sched_yield()
            assert bytes(content) == before
        return write(descriptor, content)

    monkeypatch.setattr(os, "write", slow)
    with (tmp_path / "file").open("wb", buffering=0) as opened:
        direct.write_direct(opened.fileno(), pieces(8 * BLOCK), lambda piece: hashed.append(bytes(piece)), BLOCK)
    assert (tmp_path / "file").read_bytes() == b"".join(hashed)


def test_an_interpreter_that_ends_starts_no_thread_and_writes_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ending(*_: object) -> None:
        raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    monkeypatch.setattr(ThreadPoolExecutor, "submit", ending)
    write(tmp_path / "file", pieces(3 * BLOCK + 1))
    assert (tmp_path / "file").read_bytes() == b"".join(pieces(3 * BLOCK + 1))
