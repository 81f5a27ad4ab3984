"""What a journal's database keeps, marks and drops."""

import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import psutil

from mltrain.delivery.journal import Journal
from tests.support.journals import points


def test_what_is_sent_is_gone_and_what_is_parked_is_kept(journal: Journal, place: Path) -> None:
    journal.log_metrics({"a": 1, "b": 2, "c": 3}, 1, 1)
    journal.log_item("param", "lr", "0.1")
    journal.flush()
    a, b, _ = journal.unsent_points()
    journal.mark_sent([a, *journal.unsent_items()])
    journal.park([b])
    assert [key for key, *_ in points(journal)] == ["c"]
    assert journal.unsent() == 1
    with closing(sqlite3.connect(place)) as database:
        assert database.execute("SELECT key, state FROM points ORDER BY id").fetchall() == [("b", 2), ("c", 0)]


def test_a_point_and_an_item_of_the_same_number_are_not_mistaken_for_each_other(journal: Journal) -> None:
    journal.log_metrics({"a": 1}, 1, 1)
    journal.log_item("tag", "b", "2")
    journal.flush()
    assert journal.unsent_points()[0].id == journal.unsent_items()[0].id
    journal.mark_sent(journal.unsent_points())
    assert (points(journal), [item.key for item in journal.unsent_items()]) == ([], ["b"])


def journal_of_attempts(place: Path, attempts: dict[int, list[int]]) -> None:
    for attempt, steps in attempts.items():
        journal = Journal(place, attempt)
        for step in steps:
            journal.log_metrics({"loss": step}, step, step)
        journal.log_item("tag", f"of {attempt}", "")
        journal.log_item("param", f"of {attempt}", "")
        journal.close()


def test_what_was_overtaken_is_kept_and_never_sent(place: Path) -> None:
    journal_of_attempts(place, {1: [10, 20, 30], 2: [25, 35]})
    journal = Journal(place, 3)
    journal.log_metrics({"loss": 0}, 21, 0)
    journal.flush()
    journal.hold_earlier()
    journal.drop_held()
    journal.unpark()
    assert [step for _, step, *_ in points(journal)] == [21]
    assert [(item.kind, item.key) for item in journal.unsent_items()] == [("param", "of 1"), ("param", "of 2")]
    journal.close()
    with closing(sqlite3.connect(place)) as database:
        assert database.execute("SELECT count(*) FROM points").fetchone() == (6,)


def test_what_an_attempt_holds_back_is_sent_unless_it_is_dropped(place: Path) -> None:
    journal_of_attempts(place, {1: [10, 20]})
    journal = Journal(place, 2)
    journal.hold_earlier()
    assert (points(journal), [item.kind for item in journal.unsent_items()]) == ([], ["param"])
    journal.close()
    journal = Journal(place, 3)  # of a process that found it as a killed one left it
    journal.hold_earlier()
    assert points(journal) == []
    journal.unpark()
    assert [step for _, step, *_ in points(journal)] == [10, 20]
    assert {item.kind for item in journal.unsent_items()} == {"tag", "param"}
    journal.close()


def test_the_points_of_an_attempt_beyond_a_step_can_be_dropped(place: Path) -> None:
    journal_of_attempts(place, {1: [10, 20], 2: [15, 25]})
    journal = Journal(place, 2)
    assert journal.drop_beyond({2: 15}) == 1
    assert [step for _, step, *_ in points(journal)] == [10, 20, 15]
    journal.close()


def test_of_an_overtaken_attempt_pictures_go_by_their_step_and_tags_and_files_are_dropped(place: Path) -> None:
    journal = Journal(place, 1)
    for step in (5, 15):
        journal.log_item("image", "net", f'{{"files": [["/a/net+step+{step}+timestamp+1+b.png", "images"]]}}')
    for kind in ("tag", "file", "inputs", "param"):
        journal.log_item(kind, kind, "")  # type: ignore[arg-type]
    journal.close()
    journal = Journal(place, 2)
    assert journal.drop_beyond({1: 10}) == 1
    assert [(item.kind, "+step+5+" in item.value) for item in journal.unsent_items()] == [
        ("image", True),
        ("param", False),
    ]
    journal.close()


COUNTS = range(3000, 3600, 15)
"""Each time another number of rows, for which SQLite needs another statement."""


def plainly_written(database: sqlite3.Connection, count: int) -> None:
    """Write points to a table as the journal does, row-wise."""
    rows = [("loss", step, 0.1 * step, 0) for step in range(count)]
    with database:
        database.executemany("INSERT INTO points (key, step, value, timestamp) VALUES (?, ?, ?, ?/1000000)", rows)
    ids = database.execute("SELECT id FROM points ORDER BY id").fetchall()
    with database:
        database.executemany("DELETE FROM points WHERE id = ?", ids)


def test_thousands_of_points_at_once_cost_neither_time_nor_memory(journal: Journal, tmp_path: Path) -> None:
    process = psutil.Process()
    before, ours, plain = process.memory_info().rss, 0.0, 0.0
    with closing(sqlite3.connect(tmp_path / "plain.sqlite")) as database:
        database.execute("CREATE TABLE points (id INTEGER PRIMARY KEY, key TEXT, step INTEGER, value REAL, timestamp)")
        for count in COUNTS:
            began = time.process_time()
            journal.add_points(("loss", step, 0.1 * step, 0) for step in range(count))
            journal.flush()
            journal.mark_sent(journal.unsent_points(count))
            between = time.process_time()
            plainly_written(database, count)
            ours, plain = ours + between - began, plain + time.process_time() - between
    assert ours < 4 * plain  # measured: 1.4; with one statement for all rows 9
    assert process.memory_info().rss - before < 40e6


def test_what_a_full_disk_refuses_can_be_sent_and_marked_from_memory(place: Path) -> None:
    with closing(Journal(place, 1)) as journal:
        journal.log_metrics({"loss": 0}, 0, 1)
        journal.flush()
        filled(journal)
        journal.add_points(("loss", step, 0.1, step) for step in range(1, 5000))
        journal.log_item("tag", "a", "b")
        journal.flush()
        assert [point.step for point in journal.unsent_points(10_000)] == list(range(5000))
        assert journal.unsent_points_up_to(10_000) == 5000
        assert journal.damaged is None
        assert journal.lost() == 5000  # what this process would take with it: all but the point on the disk
        journal.mark_sent(journal.unsent_points(3000))
        journal.mark_sent(journal.unsent_items())
        assert [point.step for point in journal.unsent_points(10_000)] == list(range(3000, 5000))
        journal.park(journal.unsent_points(1000))
        assert (journal.unsent(), journal.parked(), journal.lost()) == (1000, 1000, 2000)
        journal._database._database.execute("PRAGMA max_page_count = 1000000")
        journal.flush()
        assert (journal.unsent(), journal.parked(), journal.lost()) == (1000, 1000, 0)
    with closing(Journal(place, 1)) as again:
        assert [point.step for point in again.unsent_points(10_000)] == list(range(4000, 5000))
        assert again.parked() == 1000


def test_what_was_sent_while_the_disk_was_full_is_not_sent_again(place: Path) -> None:
    with closing(Journal(place, 1)) as journal:
        journal.add_points(("loss", step, 0.1, step) for step in range(100))
        journal.flush()
        filled(journal)
        journal.add_points(("loss", step, 0.1, step) for step in range(100, 5000))
        journal.flush()
        journal.mark_sent(journal.unsent_points(60))
        journal._database._database.execute("PRAGMA max_page_count = 1000000")
        journal.flush()
    with closing(Journal(place, 1)) as again:
        assert [point.step for point in again.unsent_points(10_000)] == list(range(60, 5000))


def filled(journal: Journal) -> None:
    """Let the database grow no further. SQLite reports it like a full disk."""
    journal._database._database.execute("PRAGMA max_page_count = 1")


def test_two_readers_see_the_same(journal: Journal, place: Path) -> None:
    journal.log_metrics({"loss": 1}, 1, 1)
    journal.flush()
    other = Journal(place, 1)
    assert points(other) == points(journal)
    other.close()


def test_keys_and_values_are_data_and_never_commands(journal: Journal) -> None:
    key = "'; DROP TABLE points; --"
    journal.log_metrics({key: 1}, 1, 1)
    journal.log_item("tag", key, key)
    journal.flush()
    assert points(journal)[0][0] == key
    assert journal.unsent_items()[0].value == key


def test_closing_waits_for_threads_that_still_read(tmp_path: Path) -> None:
    """SQLite crashes if a query outlives its database. A sender that outlives its grace may be in the middle of one."""
    codes = []
    for number in range(40):
        child = os.fork()
        if child == 0:
            sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
            journal = Journal(tmp_path / f"{number}.sqlite", 1)
            for step in range(200):
                journal.log_metrics({f"key{index}": 1.0 for index in range(20)}, step, 1)
            journal.flush()

            reading, closing_now = threading.Event(), threading.Event()

            def during_a_query(left: list[int], reading: threading.Event, closing_now: threading.Event) -> int:
                left[0] -= 1
                if left[0] <= 0:  # the middle of a query, which another thread is about to close
                    reading.set()
                    closing_now.wait()
                return 0

            handler = partial(during_a_query, [number * 7 + 1], reading, closing_now)
            journal._database._database.set_progress_handler(handler, 100)

            def read(journal: Journal = journal) -> None:
                with suppress(sqlite3.Error):
                    while True:
                        journal.unsent_points(5000)

            for _ in range(2):
                threading.Thread(target=read, daemon=True).start()
            close = journal._database.close

            def closing_while_read(
                close: Callable[[], None] = close, closing_now: threading.Event = closing_now
            ) -> None:
                closing_now.set()
                close()

            journal._database.close = closing_while_read  # type: ignore[method-assign]
            reading.wait()
            journal.close()
            os._exit(0)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    assert codes == [0] * 40
