"""The SQLite file of a journal, and what takes its place while the disk refuses or the file is damaged.

A disk that refuses a write ends nothing: the entry stays in a table in memory, is sent from there like any other, and goes
to the disk as soon as that takes it. A damaged file is set aside, and a new one takes its place.
"""

import logging
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from mltrain.delivery.journal_file import BESIDE, FIELDS, MEMORY, connected, means_damage, unsent_in
from mltrain.errors import StorageError
from mltrain.store.durable import put_back, set_aside

log = logging.getLogger(__name__)

UNSENT, SENT, PARKED, DROPPED = range(4)
_ROWS_A_STATEMENT = 250
"""SQLite's module lets other threads run for every statement, and then waits for its turn: a training of short steps pays for
each. But a statement of thousands of rows with something to compute takes SQLite ten times as long a row; and of each number of
rows the module keeps a statement, with memory for all of them, for the next time."""
_FIRST_IN_MEMORY = 2**62 + 1
"""Entries in memory have ids from here on, so that an id tells where its entry is."""
POINT = ("key", "step", "value", "timestamp")
_PLACEHOLDERS = ("?", "?", "?", "?/1000000")
"""SQLite makes milliseconds of nanoseconds. In Python this division of large numbers costs 2 µs amid a training step, whose
data has pushed all else out of the caches."""


class JournalDatabase:
    """The tables ``points`` and ``items`` of a journal.

    Args:
        path: of the SQLite file; its folder is made.
        budget: bytes that the file may have; beyond it no further metric points are taken, which is logged.
        mend: whether to set a damaged file aside. Not for a second process beside the one that writes.
        most_kept: so many entries of a kind are kept in memory while the disk refuses them; then the oldest are lost, which is
            logged.

    Attributes:
        path: of the SQLite file.
        damaged: where a damaged file was set aside to; ``None`` if it was intact.
        left_out: how many points are lost: there was no room for them, or they could not be written.
        in_memory: whether the disk refuses at present, and entries wait in memory.

    Raises:
        StorageError: The file cannot be made.
    """

    def __init__(self, path: Path, budget: int, *, mend: bool, most_kept: int) -> None:
        self.path = path
        self.damaged: Path | None = None
        self.left_out = 0
        self.in_memory = False
        self._budget, self._mend, self._most_kept = budget, mend, most_kept
        self._on_disk = True
        self._refused = self._warned_of_budget = False
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = self._opened()
        except (OSError, sqlite3.Error) as error:
            raise StorageError(f"The journal {path} cannot be opened: {error}.") from error

    def rows(self, query: str) -> list[Any]:
        """Return the rows of a query, in which ``{points}`` and ``{items}`` stand for the tables.

        Raises:
            StorageError: the disk refuses.
        """
        for again in (True, False):
            try:
                with self._lock:
                    all_of = {table: f"all_{table}" if self.in_memory else table for table in FIELDS}
                    return self._database.execute(query.format_map(all_of)).fetchall()
            except sqlite3.Error as error:
                if not (again and self._mended(error)):
                    raise StorageError(f"The journal {self.path} cannot be read: {error}.") from error
        raise AssertionError

    def count(self, what: str) -> int:
        """Return the number of rows of a table or subquery."""
        return int(self.rows(f"SELECT count(*) FROM {what}")[0][0])  # noqa: S608

    def lost(self) -> int:
        """Return how many entries are lost when this process ends: those left out, and those that are in memory only."""
        waiting = f"WHERE state IN ({UNSENT}, {PARKED})"
        if not self._on_disk:
            return self.left_out + sum(self.count(f"{table} {waiting}") for table in ("{points}", "{items}"))
        if not self.in_memory:
            return self.left_out
        return self.left_out + sum(self.count(f"kept_{table} {waiting}") for table in FIELDS)

    def mark(self, table: str, ids: Sequence[int], state: int) -> None:
        """Set the state of entries; what is sent is deleted."""
        for first in range(0, len(ids), _ROWS_A_STATEMENT):
            self._mark_some(table, list(ids[first : first + _ROWS_A_STATEMENT]), state)

    def write(self, attempt: int, points: list[str | float], items: Sequence[tuple[str, str, str]]) -> None:
        """Write entries in the name of an attempt; what the disk refuses is kept in memory, which is logged.

        Args:
            attempt: its ordinal.
            points: the fields of one point after the other.
            items: kind, key and value of each.
        """
        flat, item = list(chain.from_iterable(items)), (("kind", "key", "value"), ("?", "?", "?"))
        for again in (True, False):
            try:
                with self._transaction():
                    if self.in_memory:
                        self._move_to_disk()
                        self.in_memory = False
                    self._insert(attempt, "points", POINT, _PLACEHOLDERS, self._fitting(points))
                    self._insert(attempt, "items", *item, flat)
                self._refused = False
                return
            except sqlite3.Error as error:
                if again and self._mended(error):
                    continue
                if points or items:
                    level = logging.DEBUG if self._refused else logging.ERROR
                    waiting = len(points) // len(POINT) + len(items)
                    text = "%d entries could not be written to the journal: %s. They wait in memory."
                    log.log(level, text, waiting, error)
                    self._refused = True
                break
        with self._lock:
            self._keep_in_memory()
            self._insert(attempt, "kept_points", POINT, _PLACEHOLDERS, points)
            self._insert(attempt, "kept_items", *item, flat)
            self._forget_oldest()

    @contextmanager
    def durably(self) -> Iterator[sqlite3.Connection]:
        """Return a transaction, with the connection; what the disk refuses is raised as :class:`StorageError`."""
        try:
            with self._transaction():
                yield self._database
        except sqlite3.Error as error:
            raise StorageError(f"The journal {self.path} cannot be written: {error}.") from error

    def close(self) -> None:
        """Close the file."""
        with self._lock:  # a reader finishes first: SQLite crashes where it is closed under a query
            self._database.close()

    def _opened(self) -> sqlite3.Connection:
        """Open the file; set it aside where it is damaged and a new one can be made in its place."""
        try:
            return connected(self.path)
        except sqlite3.Error as error:
            if not self._mend or not means_damage(error) or not os.path.lexists(self.path):
                raise
            return self._anew(error)

    def _anew(self, error: sqlite3.Error) -> sqlite3.Connection:
        """Set the file aside and open a new one; leave it where it is if the disk takes no new one either."""
        aside = set_aside(self.path, beside=BESIDE)
        try:
            database = connected(self.path)
        except sqlite3.Error:
            put_back(aside, self.path, beside=BESIDE)
            raise
        self.damaged = aside
        log.warning(
            "The journal %s is damaged (%s). It is kept as %s for people, and a new one begins. What the tracking store had "
            "not taken from it comes back only where a checkpoint carries it.",
            self.path,
            error,
            aside.name,
        )
        return database

    def _mended(self, error: sqlite3.Error) -> bool:
        """Put a new file in the place of a damaged one, in the middle of a training; return whether that was it."""
        if not self._mend or not self._on_disk or not means_damage(error):
            return False
        with self._lock:
            kept = {table: self._kept(table) for table in FIELDS} if self.in_memory else {}
            self.left_out += unsent_in(self._database)
            self._database.close()
            self.in_memory = False
            try:
                self._database = self._anew(error)
            except (OSError, sqlite3.Error) as another:
                log.error("The journal is damaged (%s), and the disk takes no new one: %s", error, another)
                self._database, self._on_disk = connected(None), False
            if kept:
                self._keep_in_memory()
            for table, rows in kept.items():
                places = ",".join("?" * (len(FIELDS[table]) + 1))
                names = ",".join((*FIELDS[table], "state"))
                self._database.executemany(f"INSERT INTO kept_{table} ({names}) VALUES ({places})", rows)  # noqa: S608
        return True

    def _kept(self, table: str) -> list[Any]:
        names = ",".join((*FIELDS[table], "state"))
        return self._database.execute(f"SELECT {names} FROM kept_{table} ORDER BY id").fetchall()  # noqa: S608

    def _has_room(self) -> bool:
        pages, size, free = (
            self._database.execute(f"PRAGMA main.{name}").fetchone()[0]
            for name in ("page_count", "page_size", "freelist_count")
        )
        return bool((pages - free) * size <= self._budget)

    def _mark_some(self, table: str, ids: list[int], state: int) -> None:
        if not self.in_memory:
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
        change = f"DELETE FROM {place}" if state == SENT else f"UPDATE {place} SET state = {state}"  # noqa: S608
        self._database.execute(f"{change} WHERE id IN ({','.join('?' * len(ids))})", ids)

    def _keep_in_memory(self) -> None:
        """From now on entries wait in memory, until the disk takes them."""
        if not self._database.execute("SELECT 1 FROM temp.sqlite_master LIMIT 1").fetchone():
            self._database.executescript(MEMORY)
        self.in_memory = True

    def _move_to_disk(self) -> None:
        """Do on the disk what was done in memory while the disk refused. Within a transaction."""
        for table, fields in FIELDS.items():
            for state in (SENT, PARKED):
                ids = [row[0] for row in self._database.execute(f"SELECT id FROM marked_{table} WHERE state = {state}")]  # noqa: S608
                for first in range(0, len(ids), _ROWS_A_STATEMENT):
                    self._apply(table, table, ids[first : first + _ROWS_A_STATEMENT], state)
            names = ",".join((*fields, "state"))
            self._database.execute(f"INSERT INTO {table} ({names}) SELECT {names} FROM kept_{table} ORDER BY id")  # noqa: S608
            for kept in ("kept", "marked"):
                self._database.execute(f"DELETE FROM {kept}_{table}")  # noqa: S608

    def _fitting(self, points: list[str | float]) -> list[str | float]:
        """Return what of these points the budget has room for: all or nothing."""
        if not points or self._has_room():
            return points
        if not self._warned_of_budget:
            self._warned_of_budget = True
            log.error(
                "The journal has reached its budget of %.1f GB, because the tracking store has been away for so "
                "long. Further metric points are NOT kept; checkpoints are. MLTRAIN_JOURNAL_GB gives it more.",
                self._budget / 1e9,
            )
        self.left_out += len(points) // len(POINT)
        return []

    def _forget_oldest(self) -> None:
        for table in FIELDS:
            oldest = f"(SELECT id FROM kept_{table} ORDER BY id DESC LIMIT -1 OFFSET {self._most_kept})"  # noqa: S608
            gone = self._database.execute(f"DELETE FROM kept_{table} WHERE id IN {oldest}").rowcount  # noqa: S608
            if gone:
                log.error("The oldest of them are lost, because memory is bounded to %d of a kind.", self._most_kept)
                self.left_out += gone

    def _insert(
        self, attempt: int, table: str, fields: Sequence[str], placeholders: Sequence[str], values: list[Any]
    ) -> None:
        row = f"({attempt},{','.join(placeholders)})"
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
