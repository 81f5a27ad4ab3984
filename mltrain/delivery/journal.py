"""A durable journal of what the tracking server has to learn: metric points, parameters, tags, files.

The training thread puts entries into lists and goes on. A thread of the journal writes them to SQLite, within a second
after they are logged; the sender reads them from there and marks them when the server has acknowledged them.

A disk that refuses a write ends nothing: the entry stays in a table in memory, is sent from there like any other, and goes
to the disk as soon as that takes it. A damaged file is set aside, and a new one takes its place.
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
from mltrain.store.durable import put_back, set_aside

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
"""So many entries of a kind are kept in memory while the disk refuses them; then the oldest are lost, which is logged."""
_FIRST_IN_MEMORY = 2**62 + 1
"""Entries in memory have ids from here on, so that an id tells where its entry is."""
_PASSING = {
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_INTERRUPT,
}
"""Errors of SQLite that do not mean that the file is damaged."""
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
_MEMORY = """
CREATE TEMP TABLE kept_points (
    id INTEGER PRIMARY KEY AUTOINCREMENT, attempt INTEGER, key TEXT, step INTEGER, value REAL, timestamp INTEGER,
    state INTEGER NOT NULL DEFAULT 0);
CREATE TEMP TABLE kept_items (
    id INTEGER PRIMARY KEY AUTOINCREMENT, attempt INTEGER, kind TEXT, key TEXT, value TEXT,
    state INTEGER NOT NULL DEFAULT 0);
INSERT INTO temp.sqlite_sequence VALUES ('kept_points', 1 << 62), ('kept_items', 1 << 62);
CREATE TEMP TABLE marked_points (id INTEGER PRIMARY KEY, state INTEGER);
CREATE TEMP TABLE marked_items (id INTEGER PRIMARY KEY, state INTEGER);
CREATE TEMP VIEW all_points AS SELECT id, attempt, key, step, value, timestamp, state FROM main.points
    WHERE id NOT IN (SELECT id FROM marked_points) UNION ALL SELECT * FROM kept_points;
CREATE TEMP VIEW all_items AS SELECT id, attempt, kind, key, value, state FROM main.items
    WHERE id NOT IN (SELECT id FROM marked_items) UNION ALL SELECT * FROM kept_items;
"""
"""While the disk refuses: what it has not taken, and which of its entries have been sent or refused since."""
_BESIDE = ("-wal", "-shm", "-journal")
"""What SQLite names the files that belong to one of its databases."""
_FIELDS = {"points": ("attempt", "key", "step", "value", "timestamp"), "items": ("attempt", "kind", "key", "value")}
_NETWORK_FILESYSTEMS = {"nfs", "nfs4", "cifs", "smbfs", "smb3", "fuse.sshfs", "lustre", "beegfs", "gpfs", "ceph", "9p"}


@dataclass(frozen=True)
class StoredPoint:
    """A metric point in the journal; ``timestamp`` in milliseconds since 1970, given when it is logged."""

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
        mend: set a damaged file aside. Not for a second process beside the one that writes.

    Attributes:
        path: of the SQLite file.
        damaged: where a damaged file was set aside to; ``None`` if it was intact.

    Raises:
        StorageError: the file cannot be made.
    """

    def __init__(self, path: Path, attempt: int, budget: int | None = None, *, mend: bool = True) -> None:
        self.attempt = attempt
        self.damaged: Path | None = None
        self.path, self._mend = path, mend
        self._in_memory = False
        """Whether the disk refuses at present, and entries wait in memory."""
        self._on_disk = True
        self._refused = False
        self.left_out = 0
        """How many points are lost: there was no room for them, or they could not be written."""
        self._said_full = False
        self._budget = journal_budget() if budget is None else budget
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = self._opened()
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
        fields = "id, key, step, value, timestamp"
        query = f"SELECT {fields} FROM {{points}} WHERE state = 0{limit} ORDER BY id LIMIT {int(most)}"  # noqa: S608
        rows = self._rows(query)
        return [StoredPoint(i, key, step, float("nan") if v is None else v, at) for i, key, step, v, at in rows]

    def unsent_points_up_to(self, most: int) -> int:
        """Return how many points the server has not acknowledged, counted up to ``most``."""
        return self._count(f"(SELECT 1 FROM {{points}} WHERE state = 0 LIMIT {int(most)})")  # noqa: S608

    def unsent_items(self, most: int = 100, kind: Kind | None = None) -> list[StoredItem]:
        """Return the oldest parameters, tags and files, or those of one kind, that the server has not acknowledged."""
        which = f"state = 0 AND kind = '{kind}'" if kind is not None else "state = 0"
        rows = self._rows(
            f"SELECT id, kind, key, value FROM {{items}} WHERE {which} ORDER BY id LIMIT {int(most)}"  # noqa: S608
        )
        return [StoredItem(*row) for row in rows]

    def unsent(self) -> int:
        """Return how many entries wait for the server."""
        return sum(self._count(f"{table} WHERE state = {_UNSENT}") for table in ("{points}", "{items}"))

    def parked(self) -> int:
        """Return how many entries the server refused for good."""
        return sum(self._count(f"{table} WHERE state = {_PARKED}") for table in ("{points}", "{items}"))

    def lost(self) -> int:
        """Return how many entries are lost when this process ends: those left out, and those that are in memory only."""
        if not self._on_disk:
            return self.left_out + self.unsent() + self.parked()
        if not self._in_memory:
            return self.left_out
        kept = sum(self._count(f"kept_{table} WHERE state IN ({_UNSENT}, {_PARKED})") for table in _FIELDS)
        return self.left_out + kept

    def unpark(self) -> None:
        """Let what was refused for good be tried again: somebody may have mended the cause."""
        with self._durably():
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
        with self._durably():
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
        with self._durably():
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

    def _opened(self) -> sqlite3.Connection:
        """Open the file; set it aside where it is damaged and a new one can be made in its place."""
        try:
            return _connected(self.path)
        except sqlite3.Error as error:
            if not self._mend or not _means_damage(error) or not os.path.lexists(self.path):
                raise
            return self._anew(error)

    def _anew(self, error: sqlite3.Error) -> sqlite3.Connection:
        """Set the file aside and open a new one; leave it where it is if the disk takes no new one either."""
        aside = set_aside(self.path, beside=_BESIDE)
        try:
            database = _connected(self.path)
        except sqlite3.Error:
            put_back(aside, self.path, beside=_BESIDE)
            raise
        self.damaged = aside
        log.warning(
            "The journal %s is damaged (%s). It is kept as %s for people, and a new one begins. What the tracking server had "
            "not taken from it comes back only where a checkpoint carries it.",
            self.path,
            error,
            aside.name,
        )
        return database

    def _mended(self, error: sqlite3.Error) -> bool:
        """Put a new file in the place of a damaged one, in the middle of a training; return whether that was it."""
        if not self._mend or not self._on_disk or not _means_damage(error):
            return False
        with self._lock:
            kept = {table: self._kept(table) for table in _FIELDS} if self._in_memory else {}
            self.left_out += _unsent_in(self._database)
            self._database.close()
            self._in_memory = False
            try:
                self._database = self._anew(error)
            except (OSError, sqlite3.Error) as another:
                log.error("The journal is damaged (%s), and the disk takes no new one: %s", error, another)
                self._database, self._on_disk = _connected(None), False
            if kept:
                self._keep_in_memory()
            for table, rows in kept.items():
                places = ",".join("?" * (len(_FIELDS[table]) + 1))
                names = ",".join((*_FIELDS[table], "state"))
                self._database.executemany(f"INSERT INTO kept_{table} ({names}) VALUES ({places})", rows)  # noqa: S608
        return True

    def _kept(self, table: str) -> list[Any]:
        names = ",".join((*_FIELDS[table], "state"))
        return self._database.execute(f"SELECT {names} FROM kept_{table} ORDER BY id").fetchall()  # noqa: S608

    def _rows(self, query: str) -> list[Any]:
        """Return the rows of a query, in which ``{points}`` and ``{items}`` stand for the tables.

        Raises:
            StorageError: the disk refuses.
        """
        for again in (True, False):
            try:
                with self._lock:
                    all_of = {table: f"all_{table}" if self._in_memory else table for table in _FIELDS}
                    return self._database.execute(query.format_map(all_of)).fetchall()
            except sqlite3.Error as error:
                if not (again and self._mended(error)):
                    raise StorageError(f"The journal {self.path} cannot be read: {error}.") from error
        raise AssertionError

    def _count(self, what: str) -> int:
        return int(self._rows(f"SELECT count(*) FROM {what}")[0][0])  # noqa: S608

    def _has_room(self) -> bool:
        pages, size, free = (
            self._database.execute(f"PRAGMA main.{name}").fetchone()[0]
            for name in ("page_count", "page_size", "freelist_count")
        )
        return bool((pages - free) * size <= self._budget)

    def _mark(self, entries: Sequence[StoredPoint | StoredItem], state: int) -> None:
        for table, kind in (("points", StoredPoint), ("items", StoredItem)):
            ids = [entry.id for entry in entries if isinstance(entry, kind)]
            for first in range(0, len(ids), _ROWS_A_STATEMENT):
                self._mark_some(table, ids[first : first + _ROWS_A_STATEMENT], state)

    def _mark_some(self, table: str, ids: list[int], state: int) -> None:
        if not self._in_memory:
            try:
                with self._transaction():
                    self._apply(table, table, ids, state)
                    return
            except sqlite3.Error as error:
                if self._mended(error):
                    return  # they went with the file
                log.error("The journal cannot note on the disk what was sent: %s", error)
        with self._lock:
            self._keep_in_memory()
            self._apply(table, f"kept_{table}", [i for i in ids if i >= _FIRST_IN_MEMORY], state)
            here = [(i, state) for i in ids if i < _FIRST_IN_MEMORY]
            self._database.executemany(f"INSERT OR REPLACE INTO marked_{table} VALUES (?, ?)", here)  # noqa: S608

    def _apply(self, table: str, place: str, ids: list[int], state: int) -> None:
        deed = f"DELETE FROM {place}" if state == _SENT else f"UPDATE {place} SET state = {state}"  # noqa: S608
        self._database.execute(f"{deed} WHERE id IN ({','.join('?' * len(ids))})", ids)

    def _keep_in_memory(self) -> None:
        """From now on entries wait in memory, until the disk takes them."""
        if not self._database.execute("SELECT 1 FROM temp.sqlite_master LIMIT 1").fetchone():
            self._database.executescript(_MEMORY)
        self._in_memory = True

    def _move_to_disk(self) -> None:
        """Do on the disk what was done in memory while the disk refused. Within a transaction."""
        for table, fields in _FIELDS.items():
            for state in (_SENT, _PARKED):
                ids = [row[0] for row in self._database.execute(f"SELECT id FROM marked_{table} WHERE state = {state}")]  # noqa: S608
                for first in range(0, len(ids), _ROWS_A_STATEMENT):
                    self._apply(table, table, ids[first : first + _ROWS_A_STATEMENT], state)
            names = ",".join((*fields, "state"))
            self._database.execute(f"INSERT INTO {table} ({names}) SELECT {names} FROM kept_{table} ORDER BY id")  # noqa: S608
            for kept in ("kept", "marked"):
                self._database.execute(f"DELETE FROM {kept}_{table}")  # noqa: S608

    def _write(self) -> None:
        """Write in batches what arrives within a fraction of a second, or until somebody waits; ends when it is closed.

        What the disk refuses is kept in memory, where it can be sent from, and tried again together with what comes next.
        """
        last = False
        while not last:
            self._asked.wait(_GATHER_SECONDS)  # and not for each entry: waking up costs the training a turn
            self._asked.clear()
            last = self._closing
            flushes = _taken(self._flushes)  # before what they wait for
            items = _taken(self._items)
            points = _taken(self._points)
            if points or items or self._in_memory:
                try:
                    self._store(points, items)
                except Exception:  # not the disk's: trying again would keep what comes next from being written, too
                    lost = len(points) // len(_POINT) + len(items)
                    log.exception(
                        "%d entries cannot be kept in the journal, and are lost. This is a mistake of mltrain's", lost
                    )
                    self.left_out += len(points) // len(_POINT)
                self.arrived.set()
            self._room.set()
            for event in flushes:
                event.set()

    def _store(self, points: list[str | float], items: list[tuple[Kind, str, str]]) -> None:
        for again in (True, False):
            try:
                with self._transaction():
                    if self._in_memory:
                        self._move_to_disk()
                        self._in_memory = False
                    self._insert("points", _POINT, _PLACEHOLDERS, self._fitting(points))
                    self._insert("items", ("kind", "key", "value"), ("?", "?", "?"), list(chain.from_iterable(items)))
                self._refused = False
                return
            except sqlite3.Error as error:
                if again and self._mended(error):
                    continue
                if points or items:
                    level = logging.DEBUG if self._refused else logging.ERROR
                    waiting = len(points) // len(_POINT) + len(items)
                    log.log(
                        level,
                        "%d entries could not be written to the journal: %s. They wait in memory.",
                        waiting,
                        error,
                    )
                    self._refused = True
                break
        with self._lock:
            self._keep_in_memory()
            self._insert("kept_points", _POINT, _PLACEHOLDERS, points)
            self._insert("kept_items", ("kind", "key", "value"), ("?", "?", "?"), list(chain.from_iterable(items)))
            self._forget_oldest()

    def _fitting(self, points: list[str | float]) -> list[str | float]:
        """Return what of these points the budget has room for: all or nothing."""
        if not points or self._has_room():
            return points
        if not self._said_full:
            self._said_full = True
            log.error(
                "The journal has reached its budget of %.1f GB, because the tracking server has been away for so "
                "long. Further metric points are NOT kept; checkpoints are. MLTRAIN_JOURNAL_GB gives it more.",
                self._budget / 1e9,
            )
        self.left_out += len(points) // len(_POINT)
        return []

    def _forget_oldest(self) -> None:
        for table in _FIELDS:
            oldest = f"(SELECT id FROM kept_{table} ORDER BY id DESC LIMIT -1 OFFSET {_MOST_KEPT})"  # noqa: S608
            gone = self._database.execute(f"DELETE FROM kept_{table} WHERE id IN {oldest}").rowcount  # noqa: S608
            if gone:
                log.error("The oldest of them are lost, because memory is bounded to %d of a kind.", _MOST_KEPT)
                self.left_out += gone

    def _insert(self, table: str, fields: Sequence[str], placeholders: Sequence[str], values: list[Any]) -> None:
        row = f"({self.attempt},{','.join(placeholders)})"
        most = _ROWS_A_STATEMENT * len(fields)
        for first in range(0, len(values), most):
            some = values[first : first + most]
            rows = ",".join([row] * (len(some) // len(fields)))
            self._database.execute(f"INSERT INTO {table} (attempt,{','.join(fields)}) VALUES {rows}", some)  # noqa: S608 - fixed names

    @contextmanager
    def _durably(self) -> Iterator[None]:
        """A transaction; what the disk refuses is raised as :class:`StorageError`."""
        try:
            with self._transaction():
                yield
        except sqlite3.Error as error:
            raise StorageError(f"The journal {self.path} cannot be written: {error}.") from error

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


def _connected(path: Path | None) -> sqlite3.Connection:
    """Return a connection to a journal, looked through for damage; ``None`` means one in memory."""
    if path is not None and path.with_name("attempts.json").is_file() and path.is_file() and not path.stat().st_size:
        raise sqlite3.DatabaseError("it is empty")  # SQLite takes that for a new one
    database = sqlite3.connect(path or ":memory:", check_same_thread=False, timeout=60, isolation_level=None)
    try:
        database.text_factory = lambda text: text.decode(errors="backslashreplace")
        if path is not None:
            database.execute(f"PRAGMA journal_mode={'WAL' if _is_local(path) else 'DELETE'}")
        database.execute("PRAGMA synchronous=NORMAL")
        database.execute("PRAGMA temp_store=MEMORY")
        try:
            database.executescript(_SCHEMA)
            for table, fields in _FIELDS.items():
                database.execute(f"SELECT id, {','.join(fields)}, state FROM {table} LIMIT 0")  # noqa: S608
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
                raise
            raise sqlite3.DatabaseError(f"it has other tables: {error}") from error
        found = database.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise sqlite3.DatabaseError(found)
    except BaseException:
        database.close()
        raise
    return database


def _unsent_in(database: sqlite3.Connection) -> int:
    """Return how many entries wait in a damaged file; at least one where it does not tell."""
    try:
        return sum(database.execute(f"SELECT count(*) FROM main.{t} WHERE state = 0").fetchone()[0] for t in _FIELDS)  # noqa: S608
    except sqlite3.Error:
        return 1


def _means_damage(error: sqlite3.Error) -> bool:
    """Whether an error of SQLite does not pass by waiting, or by space on the disk."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
    return code & 0xFF not in _PASSING and not isinstance(error, sqlite3.ProgrammingError | sqlite3.InterfaceError)


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
