"""Opens the SQLite file of a journal: tables, damage, network filesystems."""

import os
import sqlite3
from pathlib import Path

from mltrain.store.folders import filesystem_of

_PASSING = {
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_INTERRUPT,
}
"""Errors of SQLite that do not mean that the file is damaged."""
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
MEMORY = """
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
"""While the disk fails: the entries kept in memory, and the new states of entries on the disk."""
BESIDE = ("-wal", "-shm", "-journal")
"""Suffixes of the files that belong to a SQLite database."""
FIELDS = {"points": ("attempt", "key", "step", "value", "timestamp"), "items": ("attempt", "kind", "key", "value")}
_NETWORK_FILESYSTEMS = {"nfs", "nfs4", "cifs", "smbfs", "smb3", "fuse.sshfs", "lustre", "beegfs", "gpfs", "ceph", "9p"}


def connected(path: Path | None) -> sqlite3.Connection:
    """Return a connection to a journal; check its file first.

    Args:
        path: of the file. If ``None``, the journal is in memory.

    Raises:
        sqlite3.Error: the file is damaged or cannot be opened.
    """
    if path is not None and path.with_name("attempts.json").is_file() and path.is_file() and not path.stat().st_size:
        raise sqlite3.DatabaseError("it is empty")  # to SQLite an empty file is a new database
    database = sqlite3.connect(path or ":memory:", check_same_thread=False, timeout=60, isolation_level=None)
    try:
        database.text_factory = lambda text: text.decode(errors="backslashreplace")
        if path is not None:
            shared = filesystem_of(path.parent) in _NETWORK_FILESYSTEMS  # without the shared memory that WAL needs
            database.execute(f"PRAGMA journal_mode={'DELETE' if shared else 'WAL'}")
        database.execute("PRAGMA synchronous=NORMAL")
        database.execute("PRAGMA temp_store=MEMORY")
        try:
            database.executescript(_SCHEMA)
            for table, fields in FIELDS.items():
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


def budget_of_environment() -> int:
    """Return the largest size of a journal in bytes: ``MLTRAIN_JOURNAL_GB``, default 2."""
    try:
        return int(float(os.environ.get("MLTRAIN_JOURNAL_GB", "2")) * 1e9)
    except ValueError:
        return 2 * 10**9


def unsent_in(database: sqlite3.Connection) -> int:
    """Count the unsent entries in a damaged file; 1 if unreadable."""
    try:
        return sum(database.execute(f"SELECT count(*) FROM main.{t} WHERE state = 0").fetchone()[0] for t in FIELDS)  # noqa: S608
    except sqlite3.Error:
        return 1


def means_damage(error: sqlite3.Error) -> bool:
    """Whether an error means damage. Neither time nor space mends it."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
    return code & 0xFF not in _PASSING and not isinstance(error, sqlite3.ProgrammingError | sqlite3.InterfaceError)
