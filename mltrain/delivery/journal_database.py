"""The SQLite file of a journal, with fallbacks for faults.

If the disk fails, entries stay in a table in memory, are sent from there, and are written once the disk works again. A damaged
file is renamed, and a new one takes its place.
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

UNSENT, SENT, PARKED, DROPPED, HELD = range(5)
_ROWS_A_STATEMENT = 250
"""The sqlite3 module releases the interpreter lock for every statement and waits for it again, which slows a training of short
steps. But in a statement of thousands of computed rows each row takes SQLite ten times as long, and the module caches a
statement, with memory for all rows, for each number of rows."""
_FIRST_IN_MEMORY = 2**62 + 1
"""Entries in memory have ids from here on, so that an id shows where its entry is."""
POINT = ("key", "step", "value", "timestamp")
_PLACEHOLDERS = ("?", "?", "?", "?/1000000")
"""SQLite converts nanoseconds to milliseconds. In Python this division costs 2 µs within a training step, with cold caches."""


class JournalDatabase:
    """The tables ``points`` and ``items`` of a journal.

    Args:
        path: of the SQLite file; its folder is created.
        budget: largest size of the file in bytes; beyond it metric points are dropped, which is logged.
        mend: whether to replace a damaged file. Only for the process that writes.
        most_kept: how many entries of a kind are kept in memory while the disk fails; beyond it the oldest are dropped,
            which is logged.

    Attributes:
        path: of the SQLite file.
        damaged: where a damaged file was moved to; ``None`` if it was intact.
        left_out: how many points are lost: beyond the budget, or not writable.
        in_memory: whether the disk fails at present and entries are in memory.

    Raises:
        StorageError: the file cannot be created.
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
        """Return a query's rows. Its tables are ``{points}`` and ``{items}``.

        Raises:
            StorageError: the disk fails.
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
        """Return the number of entries lost when this process ends: left out, or only in memory."""
        waiting = f"WHERE state IN ({UNSENT}, {PARKED})"
        if not self._on_disk:
            return self.left_out + sum(self.count(f"{table} {waiting}") for table in ("{points}", "{items}"))
        if not self.in_memory:
            return self.left_out
        return self.left_out + sum(self.count(f"kept_{table} {waiting}") for table in FIELDS)

    def mark(self, table: str, ids: Sequence[int], state: int) -> None:
        """Set the state of entries; sent ones are deleted."""
        for first in range(0, len(ids), _ROWS_A_STATEMENT):
            self._mark_some(table, list(ids[first : first + _ROWS_A_STATEMENT]), state)

    def write(self, attempt: int, points: list[str | float], items: Sequence[tuple[str, str, str]]) -> None:
        """Write entries; keep them in memory if the disk fails.

        Args:
            attempt: its ordinal.
            points: the fields of all points, one point after the other.
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
                    text = "%d entries could not be written to the journal: %s. They are kept in memory."
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
        """Open a transaction on the connection; raise :class:`StorageError` if the disk fails."""
        try:
            with self._transaction():
                yield self._database
        except sqlite3.Error as error:
            raise StorageError(f"The journal {self.path} cannot be written: {error}.") from error

    def close(self) -> None:
        """Close the file."""
        with self._lock:  # after any query: SQLite crashes if it is closed during one
            self._database.close()

    def _opened(self) -> sqlite3.Connection:
        """Open the file; replace a damaged one if possible."""
        try:
            return connected(self.path)
        except sqlite3.Error as error:
            if not self._mend or not means_damage(error) or not os.path.lexists(self.path):
                raise
            return self._replaced(error)

    def _replaced(self, error: sqlite3.Error) -> sqlite3.Connection:
        """Rename the file and open a new one.

        The renaming is undone if no new file can be created.
        """
        aside = set_aside(self.path, beside=BESIDE)
        try:
            database = connected(self.path)
        except sqlite3.Error:
            put_back(aside, self.path, beside=BESIDE)
            raise
        self.damaged = aside
        log.warning(
            "The journal %s is damaged (%s). It was renamed to %s, and a new one begins. Of its unsent records only those "
            "that a checkpoint carries can be recovered.",
            self.path,
            error,
            aside.name,
        )
        return database

    def _mended(self, error: sqlite3.Error) -> bool:
        """Replace a damaged file during a training; return whether the error meant damage."""
        if not self._mend or not self._on_disk or not means_damage(error):
            return False
        with self._lock:
            kept = {table: self._kept(table) for table in FIELDS} if self.in_memory else {}
            self.left_out += unsent_in(self._database)
            self._database.close()
            self.in_memory = False
            try:
                self._database = self._replaced(error)
            except (OSError, sqlite3.Error) as another:
                log.error("The journal is damaged (%s), and no new one can be created: %s", error, another)
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
                    return  # the damaged file held them
                log.error("The journal cannot record on the disk which entries were sent: %s", error)
        with self._lock:
            self._keep_in_memory()
            self._apply(table, f"kept_{table}", [i for i in ids if i >= _FIRST_IN_MEMORY], state)
            here = [(i, state) for i in ids if i < _FIRST_IN_MEMORY]
            self._database.executemany(f"INSERT OR REPLACE INTO marked_{table} VALUES (?, ?)", here)  # noqa: S608

    def _apply(self, table: str, place: str, ids: list[int], state: int) -> None:
        change = f"DELETE FROM {place}" if state == SENT else f"UPDATE {place} SET state = {state}"  # noqa: S608
        self._database.execute(f"{change} WHERE id IN ({','.join('?' * len(ids))})", ids)

    def _keep_in_memory(self) -> None:
        """Keep entries in memory until the disk works again."""
        if not self._database.execute("SELECT 1 FROM temp.sqlite_master LIMIT 1").fetchone():
            self._database.executescript(MEMORY)
        self.in_memory = True

    def _move_to_disk(self) -> None:
        """Write the entries and changes from memory, within a transaction."""
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
        """Return the points; none if they exceed the budget."""
        if not points or self._has_room():
            return points
        if not self._warned_of_budget:
            self._warned_of_budget = True
            log.error(
                "The journal is full after a long outage of the tracking server. Expected at most %.1f GB. Further metric "
                "points are lost; checkpoints are still saved. Try: a larger MLTRAIN_JOURNAL_GB",
                self._budget / 1e9,
            )
        self.left_out += len(points) // len(POINT)
        return []

    def _forget_oldest(self) -> None:
        for table in FIELDS:
            oldest = f"(SELECT id FROM kept_{table} ORDER BY id DESC LIMIT -1 OFFSET {self._most_kept})"  # noqa: S608
            gone = self._database.execute(f"DELETE FROM kept_{table} WHERE id IN {oldest}").rowcount  # noqa: S608
            if gone:
                log.error("The oldest of them are lost: memory holds at most %d of a kind.", self._most_kept)
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
            self._database.execute("BEGIN IMMEDIATE")  # within a transaction SQLite does not wait for a lock
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:  # SQLite ends some by itself
                    self._database.execute("ROLLBACK")
                raise
