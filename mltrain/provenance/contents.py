"""Cached digests of the files below a path.

A path of at most ``MLTRAIN_FINGERPRINT_GB`` (4 by default) is read completely. In a larger one each file is sampled: its
start, its end, and blocks in between at offsets that depend on its name and size. A sampled digest records the sampling and
the number of unread bytes. No digest depends on times, owners or the path itself.
"""

import hashlib
import logging
import os
import random
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

log = logging.getLogger(__name__)

_BUDGET_GB = 4.0
_MOST_FILES = 200_000
_BLOCK = 65536
_CHUNK = 2**20
_MOST_CACHED = 500_000
_NO_DATA = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
"""Files that desktop environments create in the folders they display."""


@dataclass(frozen=True)
class Entry:
    """A file's size in bytes and its digest."""

    size: int
    digest: str


@dataclass(frozen=True)
class Contents:
    """The files below a path.

    Attributes:
        files: the files by their relative paths, with slashes.
        rule: ``sha256`` if every file was read completely, otherwise ``sample`` with the most bytes read of a file.
        unread: number of bytes that were not read.
        cut: whether there are more files than the limit.
    """

    files: Mapping[str, Entry] = field(default_factory=dict)
    rule: str = "sha256"
    unread: int = 0
    cut: bool = False

    @property
    def digest(self) -> str:
        """The rule and one digest over names, sizes and contents."""
        digest = hashlib.sha256()
        for name, entry in sorted(self.files.items()):
            digest.update(os.fsencode(name) + f"\0{entry.size}\0{entry.digest}\n".encode())
        counted = f"{len(self.files)} file{'s' * (len(self.files) != 1)}{' and more' * self.cut}"
        unread = f", {self.unread / 1e9:.3g} GB not read" if self.unread else ""
        return f"{self.rule}:{digest.hexdigest()[:16]} ({counted}{unread})"


def contents_of(place: Path, rule: str | None = None, *, settled_seconds: float = 2.0) -> Contents:
    """Return the contents of a file or folder, following links.

    Args:
        place: the file or folder.
        rule: rule of an earlier digest to compare with. If ``None``, the budget decides.
        settled_seconds: digests of files that changed more recently are not cached, since such a file could change again
            within the resolution of its timestamp.
    """
    found = sorted(_files(place))
    files, cut = found[:_MOST_FILES], len(found) > _MOST_FILES
    if cut:
        log.warning("%s has more than %d files. Changes in the others are not noticed.", place, _MOST_FILES)
    total = sum(status.st_size for _, _, status in files)
    if rule is None:
        budget = _budget()
        rule = (
            "sha256"
            if total <= budget
            else f"sample{max(2 * _BLOCK, int(budget / max(1, len(files)))) if budget else 0}"
        )
    most = None if rule == "sha256" else int(rule.removeprefix("sample"))
    unread = sum(max(0, status.st_size - most) for _, _, status in files) if most is not None else 0
    if unread:
        log.warning(
            "%s has %.3g GB in %d files, of which %.3g GB are not read: at most %d bytes of each file are. A change in the rest "
            "is noticed only if it changes a size. To read everything, set MLTRAIN_FINGERPRINT_GB=%.0f.",
            place,
            total / 1e9,
            len(files),
            unread / 1e9,
            most,
            total / 2**30 + 1,
        )
    return Contents(_digested(place, files, most, settled_seconds), rule, unread, cut)


def _budget() -> float:
    try:
        return max(0.0, float(os.environ.get("MLTRAIN_FINGERPRINT_GB", _BUDGET_GB))) * 2**30
    except ValueError:
        return _BUDGET_GB * 2**30


_File = tuple[str, Path, os.stat_result]


def _files(place: Path) -> Iterator[_File]:
    """Yield files in a fixed order, one beyond the limit."""
    try:
        status = place.stat()
    except (OSError, ValueError):
        return
    if not stat.S_ISDIR(status.st_mode):
        if stat.S_ISREG(status.st_mode):
            yield place.name, place, status
        return
    left = _MOST_FILES + 1
    for one in _below(place, "", frozenset({(status.st_dev, status.st_ino)})):
        yield one
        left -= 1
        if not left:
            return


def _below(folder: Path, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[_File]:
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            log.warning("%s cannot be listed (%s). Changes in it are not noticed.", folder, error.strerror)
        return
    for name in names:
        path = folder / name
        with suppress(OSError):  # a broken link or a file that has vanished counts as missing
            status = path.stat()
            identity = (status.st_dev, status.st_ino)
            if stat.S_ISREG(status.st_mode) and name not in _NO_DATA:
                yield prefix + name, path, status
            elif stat.S_ISDIR(status.st_mode) and identity not in above:  # a link to a parent folder would never end
                yield from _below(path, f"{prefix}{name}/", above | {identity})


def _digested(place: Path, files: list[_File], most: int | None, settled_seconds: float) -> dict[str, Entry]:
    cache = _Cache(most, settled_seconds)
    known = cache.known(files)
    stop, missing = threading.Event(), [file for file in files if file[0] not in known]

    def read(file: _File) -> tuple[_File, str | None]:
        return file, None if stop.is_set() else _digest_of(file, most, stop)

    found: dict[str, Entry] = {name: Entry(status.st_size, known[name]) for name, _, status in files if name in known}
    fresh: list[tuple[_File, str]] = []
    refused: list[str] = []
    pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1, len(missing)) or 1, thread_name_prefix="mltrain-digest")
    try:
        for file, digest in pool.map(read, missing):
            name, path, status = file
            if digest is None:
                if not path.exists():
                    continue  # it has vanished
                refused.append(name)
            else:
                fresh.append((file, digest))
            found[name] = Entry(status.st_size, digest or "unreadable")
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
    if refused:
        log.warning(
            "%d files in %s cannot be read, such as %s. Only their names and sizes are compared.",
            len(refused),
            place,
            refused[0],
        )
    cache.keep(fresh)
    return found


def _digest_of(file: _File, most: int | None, stop: threading.Event) -> str | None:
    """Return a file's digest, ``None`` if it is unreadable.

    At most ``most`` bytes are sampled, if that is not ``None``.
    """
    name, path, status = file
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as content:
            if most is None or status.st_size <= most:
                while not stop.is_set() and (chunk := content.read(_CHUNK)):
                    digest.update(chunk)
            else:
                for offset in _offsets(name, status.st_size, most):
                    content.seek(offset)
                    digest.update(content.read(_BLOCK))
    except OSError:
        return None
    return digest.hexdigest()[:32]


def _offsets(name: str, size: int, most: int) -> list[int]:
    """Return the block offsets, which depend on name and size."""
    count = most // _BLOCK
    if not count:
        return []
    draw = random.Random(f"{name}\0{size}")  # noqa: S311 - the sample need not be secret
    between = [draw.randrange(size - _BLOCK) for _ in range(max(0, count - 2))]
    return sorted({0, size - _BLOCK, *between})


class _Cache:
    """Cache of digests by path, size, times and inode."""

    def __init__(self, most: int | None, settled_seconds: float) -> None:
        self._settled_seconds = settled_seconds
        self._rule = "sha256" if most is None else f"sample{most}"
        home = os.environ.get("MLTRAIN_HOME") or platformdirs.user_state_dir("mltrain", appauthor=False)
        self._file = Path(home).expanduser() / "fingerprints.sqlite"

    def known(self, files: list[_File]) -> dict[str, str]:
        """Return the cached digests of unchanged files."""
        found: dict[str, str] = {}
        if files and self._file.exists():
            try:
                with closing(self._opened()) as database:
                    for name, path, status in files:
                        row = database.execute(
                            "SELECT digest FROM files WHERE path = ? AND rule = ? AND stamp = ?",
                            (os.fsencode(path.absolute()), self._rule, _stamp(status)),
                        ).fetchone()
                        if row is not None and isinstance(row[0], str):
                            found[name] = row[0]
            except (sqlite3.Error, OSError) as error:
                log.info("%s cannot be used: %s", self._file, error)
                return {}
        return found

    def keep(self, fresh: list[tuple[_File, str]]) -> None:
        """Cache digests of files that did not change meanwhile."""
        rows = [
            (os.fsencode(path.absolute()), self._rule, _stamp(status), digest, int(time.time()))
            for (_, path, status), digest in fresh
            if time.time() - max(status.st_mtime, status.st_ctime) > self._settled_seconds and _is_still(path, status)
        ]
        if not rows:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._write(rows)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # locked, or the disk is full
                log.info("%s cannot be written: %s", self._file, error)
                return
            log.info("%s is damaged and is emptied: %s", self._file, error)
            with suppress(OSError, sqlite3.Error):
                self._file.write_bytes(b"")
                self._write(rows)
        except OSError as error:
            log.info("%s cannot be written: %s", self._file, error)

    def _opened(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._file, timeout=2.0)
        database.execute("PRAGMA synchronous = OFF")  # lost digests are computed again
        database.execute(
            "CREATE TABLE IF NOT EXISTS files "
            "(path BLOB, rule TEXT, stamp TEXT, digest TEXT, used INTEGER, PRIMARY KEY (path, rule)) WITHOUT ROWID"
        )
        return database

    def _write(self, rows: list[tuple[bytes, str, str, str, int]]) -> None:
        with closing(self._opened()) as database, database:
            database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", rows)
            (count,) = database.execute("SELECT count(*) FROM files").fetchone()
            if count > _MOST_CACHED:
                database.execute(
                    "DELETE FROM files WHERE used <= (SELECT used FROM files ORDER BY used LIMIT 1 OFFSET ?)",
                    (count - _MOST_CACHED // 2,),
                )


def _stamp(status: os.stat_result) -> str:
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def _is_still(path: Path, status: os.stat_result) -> bool:
    try:
        return _stamp(path.stat()) == _stamp(status)
    except OSError:
        return False
