"""A durable journal of what the tracking server has to learn: metric points, parameters, tags, files.

The training thread puts entries into lists and goes on. A thread of the journal writes them to SQLite, within a second
of their birth; the sender reads them from there and marks them when the server has acknowledged them.
"""

import logging
import os
import re
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar

import psutil

from mltrain.errors import StorageError

log = logging.getLogger(__name__)

Kind = Literal["param", "tag", "image", "file", "inputs"]
_T = TypeVar("_T")

_UNSENT, _SENT, _PARKED, _DROPPED = range(4)
_GATHER_SECONDS = 0.5
_ROWS_A_STATEMENT = 250
"""SQLite's module lets other threads run for every statement, and then waits for its turn: a training of short steps pays for
each. But a statement of thousands of rows with something to compute takes SQLite ten times as long a row; and of each number of
rows the module keeps a statement, with memory for all of them, for the next time."""
_MOST_QUEUED = 100_000
"""So many points may wait for the local disk; then the training waits for it as well, and memory does not grow."""
_MOST_KEPT = 500_000
"""So many points are kept in memory while the disk refuses them; then the oldest go, and that is said."""
_POINT = ("key", "step", "value", "timestamp")
_PLACEHOLDERS = ("?", "?", "?", "?/1000000")
"""SQLite makes milliseconds of nanoseconds. In Python this division of large numbers costs 2 µs amid a training step, whose
data has pushed all else out of the caches."""
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS points (
    id INTEGER PRIMARY KEY, attempt INTEGER NOT NULL, key TEXT NOT NULL, step INTEGER NOT NULL,
    value REAL, timestamp INTEGER NOT NULL, state INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS unsent_points ON points (id) WHERE state = 0;
CREATE TABLE IF NOT EXISTS items (
    id INTEGER PRIMARY KEY, attempt INTEGER NOT NULL, kind TEXT NOT NULL, key TEXT NOT NULL,
    value TEXT NOT NULL, state INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS unsent_items ON items (id) WHERE state = 0;
"""
_NETWORK_FILESYSTEMS = {"nfs", "nfs4", "cifs", "smbfs", "smb3", "fuse.sshfs", "lustre", "beegfs", "gpfs", "ceph", "9p"}


@dataclass(frozen=True)
class StoredPoint:
    """A metric point in the journal; ``timestamp`` in milliseconds since 1970, given at its birth."""

    id: int
    key: str
    step: int
    value: float
    timestamp: int


@dataclass(frozen=True)
class StoredItem:
    """A parameter, a tag, or a file to upload."""

    id: int
    kind: Kind
    key: str
    value: str


class Journal:
    """The journal of one run on this host.

    Args:
        path: of the SQLite file; its folder is made.
        attempt: entries are written in the name of this attempt.
        budget: bytes that the file may have; beyond it no further metric points are taken, and that is said.

    Raises:
        StorageError: the file cannot be made.
    """

    def __init__(self, path: Path, attempt: int, budget: int | None = None) -> None:
        self.attempt = attempt
        self.left_out = 0
        """How many points are lost: there was no room for them, or they could not be written."""
        self._said_full = False
        self._budget = journal_budget() if budget is None else budget
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, check_same_thread=False, timeout=60, isolation_level=None)
            self._database.execute(f"PRAGMA journal_mode={'WAL' if _is_local(path) else 'DELETE'}")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise StorageError(f"The journal {path} cannot be opened: {error}.") from error
        self._lock = threading.Lock()
        self._points: list[str | float] = []
        """The fields of one point after the other: an object for each would cost a training of short steps its cache."""
        self._items: list[tuple[Kind, str, str]] = []
        self._flushes: list[threading.Event] = []
        self._closing = False
        self._asked = threading.Event()
        """Set when somebody waits for what is queued to be written."""
        self._room = threading.Event()
        self._room.set()
        self.arrived = threading.Event()
        """Set when there is something new to send."""
        self._writer = threading.Thread(target=self._write, name="mltrain-journal", daemon=True)
        self._writer.start()

    def log_metrics(self, values: Mapping[str, float], step: int, born: int) -> None:
        """Queue metric points of one step.

        Args:
            values: name to value; anything that ``float`` takes.
            step: of 64 bits.
            born: nanoseconds since 1970.

        Raises:
            TypeError, ValueError: a value is no number, or the step is beyond 64 bits.
        """
        step = int(step)
        if not _INT64_MIN <= step <= _INT64_MAX:
            raise ValueError(f"A step of at most 64 bits was expected, and {step:.3e} came.")
        points: list[str | float] = []
        for key, value in values.items():
            # NumPy's numbers and tensors would reach the database as bytes, or not at all.
            points += (key if key.isascii() else _writable(key), step, float(value), born)
        self._points.extend(points)  # in one step, which no other thread interrupts
        if len(self._points) > _MOST_QUEUED * len(_POINT):
            self._wait_for_room()

    def add_points(self, points: Iterable[tuple[str, int, float, int]]) -> None:
        """Queue points (key, step, value, timestamp in milliseconds since 1970) that were born earlier, at most in 2262."""
        cleaned = [(_writable(key), step, value, min(_INT64_MAX, 1_000_000 * at)) for key, step, value, at in points]
        self._points.extend(list(chain.from_iterable(cleaned)))
        if len(self._points) > _MOST_QUEUED * len(_POINT):
            self._wait_for_room()

    def log_item(self, kind: Kind, key: str, value: str) -> None:
        """Queue a parameter, a tag, or a file."""
        self._items.append((kind, _writable(key), _writable(value)))

    def _wait_for_room(self) -> None:
        self._room.clear()
        self._asked.set()
        while not self._room.wait(0.5) and self._writer.is_alive():
            continue

    def flush(self) -> None:
        """Return when everything queued so far is on the disk, or the disk has refused it, which is logged."""
        written = threading.Event()
        self._flushes.append(written)
        self._asked.set()
        while not written.wait(0.5) and self._writer.is_alive():
            continue

    def unsent_points(self, most: int = 1000, up_to_step: int | None = None) -> list[StoredPoint]:
        """Return the oldest points that the server has not acknowledged."""
        limit = "" if up_to_step is None else f" AND step <= {int(up_to_step)}"
        with self._lock:
            rows = self._database.execute(
                f"SELECT id, key, step, value, timestamp FROM points WHERE state = 0{limit} ORDER BY id LIMIT ?",  # noqa: S608 - an int
                (most,),
            ).fetchall()
        return [StoredPoint(i, key, step, float("nan") if v is None else v, at) for i, key, step, v, at in rows]

    def unsent_points_up_to(self, most: int) -> int:
        """Return how many points the server has not acknowledged, counted up to ``most``."""
        with self._lock:
            return int(
                self._database.execute(
                    "SELECT count(*) FROM (SELECT 1 FROM points WHERE state = 0 LIMIT ?)", (most,)
                ).fetchone()[0]
            )

    def unsent_items(self, most: int = 100, kind: Kind | None = None) -> list[StoredItem]:
        """Return the oldest parameters, tags and files, or those of one kind, that the server has not acknowledged."""
        with self._lock:
            rows = self._database.execute(
                "SELECT id, kind, key, value FROM items WHERE state = 0 AND kind = coalesce(?, kind) ORDER BY id LIMIT ?",
                (kind, most),
            ).fetchall()
        return [StoredItem(*row) for row in rows]

    def unsent(self) -> int:
        """Return how many entries wait for the server."""
        with self._lock:
            counts = [
                self._database.execute(f"SELECT count(*) FROM {table} WHERE state = 0").fetchone()[0]  # noqa: S608
                for table in ("points", "items")
            ]
        return sum(counts)

    def parked(self) -> int:
        """Return how many entries the server refused for good."""
        with self._lock:
            counts = [
                self._database.execute(f"SELECT count(*) FROM {table} WHERE state = {_PARKED}").fetchone()[0]  # noqa: S608
                for table in ("points", "items")
            ]
        return sum(counts)

    def unpark(self) -> None:
        """Let what was refused for good be tried again: somebody may have mended the cause."""
        with self._transaction():
            for table in ("points", "items"):
                self._database.execute(f"UPDATE {table} SET state = 0 WHERE state = {_PARKED}")  # noqa: S608

    def mark_sent(self, entries: Sequence[StoredPoint | StoredItem]) -> None:
        """Note that the server has acknowledged these; what is sent need not be kept."""
        self._mark(entries, _SENT)

    def park(self, entries: Sequence[StoredPoint | StoredItem]) -> None:
        """Set entries aside that the server refuses for good, so that the rest flows."""
        self._mark(entries, _PARKED)

    def drop_overtaken(self, resumed_attempt: int, resumed_step: int) -> int:
        """Keep locally, but never send, what earlier attempts left unsent beyond the point where this one continues."""
        with self._lock:
            dropped = self._database.execute(
                "UPDATE points SET state = ? WHERE state = 0 AND attempt < ? AND NOT (attempt <= ? AND step <= ?)",
                (_DROPPED, self.attempt, resumed_attempt, resumed_step),
            ).rowcount
            self._database.execute(
                "UPDATE items SET state = ? WHERE state = 0 AND attempt < ? AND kind = 'tag'", (_DROPPED, self.attempt)
            )
        return dropped

    def drop_beyond(self, ends: Mapping[int, int]) -> int:
        """Keep locally, but never send, what was logged by attempts that a later one overtook.

        Args:
            ends: for each of these attempts, the step up to which it counts. Its points and pictures up to there are still
                to be sent; of its tags and files the later attempt has newer ones.

        Returns:
            How many points and pictures were dropped.
        """
        dropped = 0
        with self._transaction():
            for attempt, step in ends.items():
                dropped += self._database.execute(
                    "UPDATE points SET state = ? WHERE state = 0 AND attempt = ? AND step > ?",
                    (_DROPPED, attempt, step),
                ).rowcount
                self._database.execute(
                    "UPDATE items SET state = ? WHERE state = 0 AND attempt = ? AND kind IN ('tag', 'file', 'inputs')",
                    (_DROPPED, attempt),
                )
                images = self._database.execute(
                    "SELECT id, value FROM items WHERE state = 0 AND attempt = ? AND kind = 'image'", (attempt,)
                ).fetchall()
                beyond = [(_DROPPED, number) for number, value in images if image_step(value) > step]
                self._database.executemany("UPDATE items SET state = ? WHERE id = ?", beyond)
                dropped += len(beyond)
        return dropped

    def close(self) -> None:
        """Write what is queued and close the file."""
        self._closing = True
        self._asked.set()
        self._writer.join()
        with self._lock:  # whoever still reads does so to the end: SQLite crashes where it is closed under a query
            self._database.close()

    def _has_room(self) -> bool:
        pages, size, free = (
            self._database.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "page_size", "freelist_count")
        )
        return bool((pages - free) * size <= self._budget)

    def _mark(self, entries: Sequence[StoredPoint | StoredItem], state: int) -> None:
        with self._transaction():
            for table, kind in (("points", StoredPoint), ("items", StoredItem)):
                deed = f"DELETE FROM {table}" if state == _SENT else f"UPDATE {table} SET state = {state}"  # noqa: S608
                ids = [entry.id for entry in entries if isinstance(entry, kind)]
                for first in range(0, len(ids), _ROWS_A_STATEMENT):
                    some = ids[first : first + _ROWS_A_STATEMENT]
                    self._database.execute(f"{deed} WHERE id IN ({','.join('?' * len(some))})", some)

    def _write(self) -> None:
        """Write in batches what arrives within a fraction of a second, or until somebody waits; ends when it is closed.

        What the disk refuses is kept, and tried again together with what comes next.
        """
        points: list[str | float] = []
        items: list[tuple[Kind, str, str]] = []
        last = False
        while not last:
            self._asked.wait(_GATHER_SECONDS)  # and not for each entry: waking up costs the training a turn
            self._asked.clear()
            last = self._closing
            flushes = _taken(self._flushes)  # before what they wait for
            items += _taken(self._items)
            points += _taken(self._points)
            if points or items:
                try:
                    self._store(points, items)
                    points, items = [], []
                    self.arrived.set()
                except sqlite3.Error as error:
                    waiting = len(points) // len(_POINT) + len(items)
                    log.error("%d entries could not be written to the journal: %s", waiting, error)
                    excess = max(0, len(points) - _MOST_KEPT * len(_POINT))
                    if excess or len(items) > _MOST_KEPT:
                        log.error("The oldest of them are lost, because memory is bounded to %d of a kind.", _MOST_KEPT)
                        self.left_out += excess // len(_POINT)
                        del points[:excess], items[:-_MOST_KEPT]
                except Exception:  # not the disk's: trying again would keep what comes next from being written, too
                    lost = len(points) // len(_POINT) + len(items)
                    log.exception(
                        "%d entries cannot be kept in the journal, and are lost. This is a mistake of mltrain's", lost
                    )
                    self.left_out += len(points) // len(_POINT)
                    points, items = [], []
            self._room.set()
            for event in flushes:
                event.set()

    def _store(self, points: list[str | float], items: list[tuple[Kind, str, str]]) -> None:
        with self._transaction():
            if points and not self._has_room():
                if not self._said_full:
                    self._said_full = True
                    log.error(
                        "The journal has reached its budget of %.1f GB, because the tracking server has been away for so "
                        "long. Further metric points are NOT kept; checkpoints are. MLTRAIN_JOURNAL_GB gives it more.",
                        self._budget / 1e9,
                    )
                self.left_out += len(points) // len(_POINT)
                points = []
            self._insert("points", _POINT, _PLACEHOLDERS, points)
            self._insert("items", ("kind", "key", "value"), ("?", "?", "?"), list(chain.from_iterable(items)))

    def _insert(self, table: str, fields: Sequence[str], placeholders: Sequence[str], values: list[Any]) -> None:
        row = f"({self.attempt},{','.join(placeholders)})"
        most = _ROWS_A_STATEMENT * len(fields)
        for first in range(0, len(values), most):
            some = values[first : first + most]
            rows = ",".join([row] * (len(some) // len(fields)))
            self._database.execute(f"INSERT INTO {table} (attempt,{','.join(fields)}) VALUES {rows}", some)  # noqa: S608 - fixed names

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")  # SQLite does not wait for a lock in the middle of a transaction
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:  # SQLite has ended some by itself
                    self._database.execute("ROLLBACK")
                raise


def image_step(value: str) -> int:
    """Return the step of a picture in the journal."""
    match = re.search(r"\+step\+(\d+)\+timestamp\+", value, re.ASCII)
    return int(match[1]) if match else 0


def journal_budget() -> int:
    """Return how many bytes a journal may have, from ``MLTRAIN_JOURNAL_GB`` (default 2)."""
    try:
        return int(float(os.environ.get("MLTRAIN_JOURNAL_GB", "2")) * 1e9)
    except ValueError:
        return 2 * 10**9


def _writable(text: str) -> str:
    """Spell out halves of surrogate pairs, by which Python stands for bytes that are no text; no database takes them."""
    return text.encode(errors="backslashreplace").decode()


def _taken(queued: list[_T]) -> list[_T]:
    """Take what is in a list that other threads append to, in steps that none of them interrupts."""
    taken = queued[:]
    del queued[: len(taken)]
    return taken


def _is_local(path: Path) -> bool:
    """Whether a file is on a filesystem of this machine; SQLite's write-ahead log needs shared memory, which others lack."""
    place = os.path.realpath(path.parent)
    mounts = [
        p for p in psutil.disk_partitions(all=True) if (place + os.sep).startswith(p.mountpoint.rstrip(os.sep) + os.sep)
    ]
    return not mounts or max(mounts, key=lambda p: len(p.mountpoint)).fstype not in _NETWORK_FILESYSTEMS
