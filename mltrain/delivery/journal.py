"""A durable journal of records for the tracking server.

The training thread only appends entries to lists. A thread of the journal writes them to SQLite within a second; the sender
reads them from there and marks them when the server has acknowledged them.
"""

import logging
import os
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, TypeVar

from mltrain.delivery.forked import warned_of_fork
from mltrain.delivery.journal_database import DROPPED, HELD, PARKED, POINT, SENT, UNSENT, JournalDatabase
from mltrain.delivery.journal_file import budget_of_environment

log = logging.getLogger(__name__)

Kind = Literal["param", "tag", "image", "file", "inputs"]
_T = TypeVar("_T")

_GATHER_SECONDS = 0.5
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


@dataclass(frozen=True)
class StoredPoint:
    """A metric point logged at ``timestamp`` milliseconds since 1970."""

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
        path: of the SQLite file; its folder is created.
        attempt: ordinal of the attempt that logs.
        budget: largest size of the file in bytes. If ``None``, ``MLTRAIN_JOURNAL_GB``.
        mend: whether to replace a damaged file. Only for the process that writes.
        most_queued: how many points may wait for the local disk; beyond that the training waits as well, to bound memory.
        most_kept: see :class:`~mltrain.delivery.journal_database.JournalDatabase`.

    Attributes:
        arrived: set when there are new entries to send.

    Raises:
        StorageError: the file cannot be created.
    """

    def __init__(
        self,
        path: Path,
        attempt: int,
        budget: int | None = None,
        *,
        mend: bool = True,
        most_queued: int = 100_000,
        most_kept: int = 500_000,
    ) -> None:
        self.path = path
        self.attempt = attempt
        self._most_queued = most_queued
        budget = budget_of_environment() if budget is None else budget
        self._database = JournalDatabase(path, budget, mend=mend, most_kept=most_kept)
        self._points: list[str | float] = []
        """The fields of all points in one list: an object for each point would evict a fast training's data from the cache."""
        self._items: list[tuple[Kind, str, str]] = []
        self._flushes: list[threading.Event] = []
        self._closing = False
        self._asked = threading.Event()
        """Set when a thread waits until the queued entries are written."""
        self._room = threading.Event()
        self._room.set()
        self.arrived = threading.Event()
        self._process = os.getpid()
        self._writer = threading.Thread(target=self._write, name="mltrain-journal", daemon=True)
        self._writer.start()

    @property
    def damaged(self) -> Path | None:
        """Where a damaged file was moved to; ``None`` if it was intact."""
        return self._database.damaged

    @property
    def left_out(self) -> int:
        """How many points are lost: beyond the budget, or not writable."""
        return self._database.left_out

    def log_metrics(self, values: Mapping[str, float], step: int, time_ns: int) -> None:
        """Queue metric points of one step.

        Args:
            values: name to value; anything that ``float`` accepts.
            step: at most 64 bits.
            time_ns: when they were measured, in nanoseconds since 1970.

        Raises:
            TypeError, ValueError: a value is no number, or the step is beyond 64 bits.
        """
        if not _INT64_MIN <= (step := int(step)) <= _INT64_MAX:
            raise ValueError(f"The step is too large. Expected at most 64 bits, got {step:.3e}.")
        points: list[str | float] = []
        for key, value in values.items():
            # float(), because SQLite stores NumPy's numbers and tensors as bytes or not at all.
            points += (key if key.isascii() else _writable(key), step, float(value), time_ns)
        self._queue(points)

    def add_points(self, points: Iterable[tuple[str, int, float, int]]) -> None:
        """Queue points logged earlier: key, step, value, timestamp in milliseconds since 1970, up to 2262."""
        cleaned = [(_writable(key), step, value, min(_INT64_MAX, 1_000_000 * at)) for key, step, value, at in points]
        self._queue(list(chain.from_iterable(cleaned)))

    def log_item(self, kind: Kind, key: str, value: str) -> None:
        """Queue a parameter, a tag, or a file."""
        if not self.is_forked():
            self._items.append((kind, _writable(key), _writable(value)))

    def is_forked(self) -> bool:
        """Whether this process is a fork of the writer's own; the first call in one logs a warning."""
        return (process := os.getpid()) != self._process and warned_of_fork(self._process, process)

    def flush(self) -> None:
        """Wait until the queued entries are written; a failure is logged."""
        written = threading.Event()
        self._flushes.append(written)
        self._asked.set()
        while not written.wait(0.5) and self._writer.is_alive():
            continue

    def unsent_points(self, most: int = 1000, up_to_step: int | None = None) -> list[StoredPoint]:
        """Return the oldest points that the server has not acknowledged."""
        limit = "" if up_to_step is None else f" AND step <= {int(up_to_step)}"
        query = f"SELECT id, key, step, value, timestamp FROM {{points}} WHERE state = 0{limit} ORDER BY id LIMIT {int(most)}"  # noqa: S608
        rows = self._database.rows(query)
        return [StoredPoint(i, key, step, float("nan") if v is None else v, at) for i, key, step, v, at in rows]

    def unsent_points_up_to(self, most: int) -> int:
        """Return the number of unacknowledged points, at most ``most``."""
        return self._database.count(f"(SELECT 1 FROM {{points}} WHERE state = 0 LIMIT {int(most)})")  # noqa: S608

    def unsent_items(self, most: int = 100, kind: Kind | None = None) -> list[StoredItem]:
        """Return the oldest unacknowledged items, of one kind or all."""
        which = f"state = 0 AND kind = '{kind}'" if kind is not None else "state = 0"
        query = f"SELECT id, kind, key, value FROM {{items}} WHERE {which} ORDER BY id LIMIT {int(most)}"  # noqa: S608
        return [StoredItem(*row) for row in self._database.rows(query)]

    def unsent(self) -> int:
        """Return the number of unsent entries."""
        return sum(self._database.count(f"{table} WHERE state = {UNSENT}") for table in ("{points}", "{items}"))

    def parked(self) -> int:
        """Return the number of entries that the server refused permanently."""
        return sum(self._database.count(f"{table} WHERE state = {PARKED}") for table in ("{points}", "{items}"))

    def lost(self) -> int:
        """Return the number of entries lost when this process ends: left out, or only in memory."""
        return self._database.lost()

    def unpark(self) -> None:
        """Queue parked and held entries again."""
        self._move(f"{PARKED}, {HELD}", UNSENT)

    def mark_sent(self, entries: Sequence[StoredPoint | StoredItem]) -> None:
        """Delete entries that the server has acknowledged."""
        self._mark(entries, SENT)

    def park(self, entries: Sequence[StoredPoint | StoredItem]) -> None:
        """Set aside permanently refused entries, so they block no others."""
        self._mark(entries, PARKED)

    def hold_earlier(self) -> None:
        """Hold earlier attempts' unsent points and tags back for now."""
        with self._database.durably() as database:
            for which in ("points SET state = ? WHERE", "items SET state = ? WHERE kind = 'tag' AND"):
                database.execute(f"UPDATE {which} state = 0 AND attempt < ?", (HELD, self.attempt))

    def drop_held(self) -> None:
        """Never send held entries; they stay in the file."""
        self._move(str(HELD), DROPPED)

    def drop_beyond(self, ends: Mapping[int, int]) -> int:
        """Never send entries beyond the ends of earlier attempts.

        An attempt ends at the step where the next one branched off. The entries stay in the file.

        Args:
            ends: for each of these attempts that step. Points and pictures up to it are still sent; tags and files are not,
                because the later attempt has newer ones.

        Returns:
            The number of dropped points and pictures.
        """
        dropped = 0
        with self._database.durably() as database:
            for attempt, step in ends.items():
                dropped += database.execute(
                    "UPDATE points SET state = ? WHERE state = 0 AND attempt = ? AND step > ?",
                    (DROPPED, attempt, step),
                ).rowcount
                database.execute(
                    "UPDATE items SET state = ? WHERE state = 0 AND attempt = ? AND kind IN ('tag', 'file', 'inputs')",
                    (DROPPED, attempt),
                )
                images = database.execute(
                    "SELECT id, value FROM items WHERE state = 0 AND attempt = ? AND kind = 'image'", (attempt,)
                ).fetchall()
                beyond = [(DROPPED, number) for number, value in images if image_step(value) > step]
                database.executemany("UPDATE items SET state = ? WHERE id = ?", beyond)
                dropped += len(beyond)
        return dropped

    def close(self) -> None:
        """Write the queued entries and close the file."""
        self._closing = True
        self._asked.set()
        self._writer.join()
        self._database.close()

    def _move(self, states: str, then: int) -> None:
        with self._database.durably() as database:
            for table in ("points", "items"):
                database.execute(f"UPDATE {table} SET state = {then} WHERE state IN ({states})")  # noqa: S608

    def _mark(self, entries: Sequence[StoredPoint | StoredItem], state: int) -> None:
        for table, kind in (("points", StoredPoint), ("items", StoredItem)):
            self._database.mark(table, [entry.id for entry in entries if isinstance(entry, kind)], state)

    def _queue(self, points: list[str | float]) -> None:
        if not self.is_forked():
            self._points.extend(points)  # atomic: no other thread interrupts it
        if len(self._points) <= self._most_queued * len(POINT):
            return
        self._room.clear()
        self._asked.set()
        while not self._room.wait(0.5) and self._writer.is_alive():
            continue

    def _write(self) -> None:
        """Write the queued entries every half second, until closed.

        If a thread waits, they are written at once. Entries that the disk does not take stay in memory, are sent from there,
        and are written again with the next ones.
        """
        last = False
        while not last:
            self._asked.wait(_GATHER_SECONDS)  # no wake-up for each entry: each makes the training wait for the lock
            self._asked.clear()
            last = self._closing
            flushes = _taken(self._flushes)  # before the entries that they wait for
            items = _taken(self._items)
            points = _taken(self._points)
            if points or items or self._database.in_memory:
                try:
                    self._database.write(self.attempt, points, items)
                except Exception:  # not the disk's error: a retry would block all later entries
                    lost = len(points) // len(POINT) + len(items)
                    log.exception(
                        "%d entries cannot be written to the journal and are lost. This is a bug of mltrain", lost
                    )
                    self._database.left_out += len(points) // len(POINT)
                self.arrived.set()
            self._room.set()
            for event in flushes:
                event.set()


def image_step(value: str) -> int:
    """Return the step of a picture in the journal."""
    return int(match[1]) if (match := re.search(r"\+step\+(\d+)\+timestamp\+", value, re.ASCII)) else 0


def _writable(text: str) -> str:
    """Return text with escaped lone surrogates, which databases refuse."""
    return text.encode(errors="backslashreplace").decode()


def _taken(queued: list[_T]) -> list[_T]:
    """Empty a list and return its items. Other threads may append without a lock."""
    taken = queued[:]
    del queued[: len(taken)]
    return taken
