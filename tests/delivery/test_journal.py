"""A durable journal of what the tracking server has to learn."""

import logging
import math
import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrain.delivery.journal import Journal
from mltrain.errors import StorageError


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "new" / "journal.sqlite"


@pytest.fixture
def journal(place: Path) -> Iterator[Journal]:
    journal = Journal(place, 1)
    yield journal
    journal.close()


def points(journal: Journal, **options: int) -> list[tuple[str, int, float, int]]:
    return [(p.key, p.step, p.value, p.timestamp) for p in journal.unsent_points(**options)]


def test_what_was_flushed_waits_in_the_order_of_its_birth(journal: Journal) -> None:
    journal.log_metrics({"loss": 0.5, "accuracy": 0.25}, 1, 1_000_000_000)
    journal.log_metrics({"loss": 0.4}, 2, 2_000_000_000)
    journal.log_item("tag", "mltrain.status", "running")
    journal.flush()
    assert points(journal) == [("loss", 1, 0.5, 1000), ("accuracy", 1, 0.25, 1000), ("loss", 2, 0.4, 2000)]
    assert [(item.kind, item.key, item.value) for item in journal.unsent_items()] == [
        ("tag", "mltrain.status", "running")
    ]
    assert journal.unsent() == 4
    assert journal.arrived.is_set()


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.tuples(st.text(min_size=1, max_size=9), st.integers(-(2**62), 2**62), st.floats(), st.integers(0, 2**43)),
        max_size=20,
    )
)
def test_every_point_comes_back_as_it_was(born: list[tuple[str, int, float, int]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "journal.sqlite", 1)
        journal.add_points(born)
        journal.flush()
        back = points(journal)
        journal.close()
    # Adding 0.0 leaves everything as it is, but makes 0.0 of -0.0, as SQLite does.
    assert [(key, step, repr(value), at) for key, step, value, at in back] == [
        (key, step, repr(value + 0.0), at) for key, step, value, at in born
    ]


def test_a_journal_survives_its_process(place: Path) -> None:
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from mltrain.delivery.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1]), 1)\n"
        "journal.log_metrics({'loss': 0.5}, 1, 1_000_999_999)\n"
        "journal.log_item('param', 'lr', '0.1')\n"
        "journal.flush()\n"
        "os._exit(9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(place)], timeout=120, check=False)
    assert done.returncode == 9
    journal = Journal(place, 2)
    assert points(journal) == [("loss", 1, 0.5, 1000)]
    assert [item.key for item in journal.unsent_items()] == ["lr"]
    journal.close()


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


def test_batches_are_bounded_and_take_the_oldest_first(journal: Journal) -> None:
    for step in range(25):
        journal.log_metrics({"loss": step}, step, step)
        journal.log_item("tag", str(step), "")
    journal.flush()
    assert [step for _, step, *_ in points(journal, most=10)] == list(range(10))
    assert [item.key for item in journal.unsent_items(3)] == ["0", "1", "2"]
    assert [step for _, step, *_ in points(journal, up_to_step=4)] == [0, 1, 2, 3, 4]


def test_points_keep_what_they_were_born_with_and_not_what_numbers_they_came_as(journal: Journal) -> None:
    journal.log_metrics({"a": np.float32(0.5), "b": torch.tensor(2.0), "c": True, "d": 3}, np.int64(7), 1_000_000)  # type: ignore[dict-item, arg-type]
    journal.flush()
    assert points(journal) == [("a", 7, 0.5, 1), ("b", 7, 2.0, 1), ("c", 7, 1.0, 1), ("d", 7, 3.0, 1)]
    assert all(type(value) is float for _, _, value, _ in points(journal))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 5e-324, 1.7976931348623157e308])
def test_every_float_is_kept(value: float, journal: Journal) -> None:
    journal.log_metrics({"a": value}, 1, 1)
    journal.flush()
    assert repr(points(journal)[0][2]) == repr(value)


def test_a_value_that_is_no_number_is_refused_where_it_is_logged(journal: Journal) -> None:
    with pytest.raises((TypeError, ValueError)):
        journal.log_metrics({"a": "high"}, 1, 1)  # type: ignore[dict-item]
    journal.log_metrics({"a": 1}, 1, 1)
    journal.flush()
    assert journal.unsent() == 1


def test_text_that_no_database_takes_is_spelled_out_and_what_follows_is_kept(journal: Journal) -> None:
    journal.log_item("tag", "place", "/data/\udcff")
    journal.log_metrics({"a\ud800": 1, "é": 2}, 1, 1)
    journal.flush()
    assert [(item.key, item.value) for item in journal.unsent_items()] == [("place", "/data/\\udcff")]
    journal.add_points([("b\ud800", 1, 3.0, 1)])  # as another machine's checkpoint may carry
    journal.flush()
    assert [key for key, *_ in points(journal)] == ["a\\ud800", "é", "b\\ud800"]


def test_a_time_that_no_clock_has_costs_nothing_else(journal: Journal) -> None:
    journal.add_points([("a", 1, 1.0, 2**62), ("b", 1, 2.0, 1_700_000_000_000)])  # a manifest may hold it
    journal.flush()
    assert points(journal) == [("a", 1, 1.0, (2**63 - 1) // 1_000_000), ("b", 1, 2.0, 1_700_000_000_000)]


def test_a_step_beyond_64_bits_is_refused_where_it_is_logged(journal: Journal) -> None:
    with pytest.raises(ValueError, match="64 bits"):
        journal.log_metrics({"a": 1}, 2**63, 1)
    journal.log_metrics({"a": 1}, 2**63 - 1, 1)
    journal.flush()
    assert journal.unsent() == 1


def test_entries_that_cannot_be_written_at_all_do_not_end_the_journal(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("mltrain.delivery.journal_database.POINT", ("key", "step", "value", "\ud800"))
        journal.log_metrics({"a": 0}, 0, 1)
        journal.flush()
    journal.log_metrics({"a": 1}, 1, 1_000_000)
    journal.flush()
    assert points(journal) == [("a", 1, 1.0, 1)]
    assert "1 entries cannot be kept" in caplog.text
    assert journal.left_out == 1  # so that the run's record says it


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
    assert journal.drop_overtaken(resumed_attempt=1, resumed_step=20) == 3
    assert [step for _, step, *_ in points(journal)] == [10, 20, 21]
    assert [(item.kind, item.key) for item in journal.unsent_items()] == [("param", "of 1"), ("param", "of 2")]
    assert journal.drop_overtaken(resumed_attempt=1, resumed_step=20) == 0
    journal.close()
    with closing(sqlite3.connect(place)) as database:
        assert database.execute("SELECT count(*) FROM points").fetchone() == (6,)


def test_a_resume_from_the_newest_drops_nothing_up_to_it(place: Path) -> None:
    journal_of_attempts(place, {1: [10, 20], 2: [30]})
    journal = Journal(place, 3)
    assert journal.drop_overtaken(resumed_attempt=2, resumed_step=30) == 0
    assert len(points(journal)) == 3
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


def test_beyond_its_budget_the_journal_takes_no_more_points_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path / "journal.sqlite", 1, budget=100_000)
    for round_ in range(5):
        journal.add_points(("loss", step, 0.0, 0) for step in range(round_ * 1000, round_ * 1000 + 1000))
        journal.flush()
    journal.log_item("tag", "mltrain.status", "finished")
    journal.flush()
    assert 0 < journal.left_out < 5000
    assert journal.unsent() == 5000 - journal.left_out + 1
    assert "NOT kept" in caplog.text
    journal.mark_sent(journal.unsent_points(5000))  # the server is back, and there is room again
    journal.add_points([("loss", 9000, 0.0, 0)])
    journal.flush()
    assert [step for _, step, *_ in points(journal)] == [9000]
    journal.close()


def test_the_training_waits_for_a_slow_disk_and_memory_does_not_grow(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(place, 1, most_queued=100)
    with closing(sqlite3.connect(place, isolation_level=None, check_same_thread=False)) as database:
        database.execute("BEGIN EXCLUSIVE")
        threading.Timer(1.0, lambda: database.execute("ROLLBACK")).start()
        for step in range(1000):
            journal.log_metrics({"loss": 0.0}, step, 0)
            assert len(journal._points) < 4 * 110
    journal.flush()
    assert journal.unsent() == 1000
    journal.close()
    assert "could not be written" not in caplog.text  # a lock is waited for, and is no error


COUNTS = range(3000, 3600, 15)
"""Each time another number of rows, for which SQLite needs another statement."""


def plainly_written(database: sqlite3.Connection, count: int) -> None:
    """Do to a table what the journal does with points, row by row."""
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


def test_what_memory_has_no_room_for_while_the_disk_refuses_is_counted(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(place, 1, most_kept=10)
    with closing(sqlite3.connect(place)) as database:
        database.execute("ALTER TABLE points RENAME TO away")
        journal.add_points(("loss", step, 0.0, 0) for step in range(25))
        journal.flush()
        database.execute("ALTER TABLE away RENAME TO points")
    journal.flush()
    assert [step for _, step, *_ in points(journal)] == list(range(15, 25))
    assert journal.left_out == 15
    journal.close()
    assert "The oldest of them are lost" in caplog.text


def test_what_was_refused_can_be_tried_again(journal: Journal) -> None:
    journal.log_metrics({"a": 1}, 1, 1)
    journal.log_item("param", "b", "2")
    journal.flush()
    journal.park([*journal.unsent_points(), *journal.unsent_items()])
    assert (journal.unsent(), journal.parked()) == (0, 2)
    journal.unpark()
    assert (journal.unsent(), journal.parked()) == (2, 0)


def test_several_threads_may_log_at_once(journal: Journal) -> None:
    def log(number: int) -> None:
        for step in range(50):
            journal.log_metrics({f"of {number}": step}, step, step)

    threads = [threading.Thread(target=log, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.flush()
    got = points(journal)
    assert len(got) == 200
    assert all([step for key, step, *_ in got if key == f"of {number}"] == list(range(50)) for number in range(4))


def test_what_the_disk_refuses_is_said_and_written_later(
    journal: Journal, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(sqlite3.connect(place)) as database:
        database.execute("ALTER TABLE points RENAME TO away")
    with caplog.at_level(logging.ERROR):
        journal.log_metrics({"loss": 1}, 1, 1)
        journal.log_item("tag", "a", "b")
        journal.flush()
    assert "2 entries could not be written to the journal: no such table" in caplog.text
    with closing(sqlite3.connect(place)) as database:
        database.execute("ALTER TABLE away RENAME TO points")
    journal.log_metrics({"loss": 2}, 2, 2)
    journal.flush()
    assert [step for _, step, *_ in points(journal)] == [1, 2]
    assert len(journal.unsent_items()) == 1


def test_a_flush_of_a_closed_journal_returns(place: Path) -> None:
    journal = Journal(place, 1)
    journal.log_metrics({"loss": 1}, 1, 1)
    journal.close()
    journal.flush()
    again = Journal(place, 2)
    assert len(points(again)) == 1
    again.close()


def garbage(place: Path) -> None:
    place.write_bytes(b"not a database" * 100)


def garbage_header(place: Path) -> None:
    place.write_bytes(b"SQLite format 3\0" + b"\xff" * 2000)


def truncated(place: Path) -> None:
    os.truncate(place, place.stat().st_size // 2)


def random_pages(place: Path) -> None:
    content = place.read_bytes()
    place.write_bytes(content[:4096] + random.Random(0).randbytes(len(content) - 4096))


def emptied(place: Path) -> None:
    place.write_bytes(b"")
    place.with_name("attempts.json").write_text("{}")  # the run has begun, so that its journal was not empty


def a_folder(place: Path) -> None:
    place.unlink()
    place.mkdir()


def a_dangling_link(place: Path) -> None:
    place.unlink()
    place.symlink_to(place.parent / "nowhere" / "journal.sqlite")


def another_database(place: Path) -> None:
    place.unlink()
    with closing(sqlite3.connect(place)) as database:
        database.execute("CREATE TABLE points (id INTEGER PRIMARY KEY, x, y)")


def a_folder_for_a_log(place: Path) -> None:
    (place.parent / "journal.sqlite-wal").mkdir()


@pytest.mark.parametrize(
    "harm",
    [
        garbage,
        garbage_header,
        truncated,
        random_pages,
        emptied,
        a_folder,
        a_dangling_link,
        another_database,
        a_folder_for_a_log,
    ],
)
def test_a_damaged_file_is_set_aside_and_a_new_one_begins(
    harm: Callable[[Path], None], place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = Journal(place, 1)
    before.add_points(("loss", step, 0.1, step) for step in range(3000))
    before.close()
    harm(place)
    with closing(Journal(place, 2)) as journal:
        assert journal.unsent() == 0
        journal.log_metrics({"loss": 1}, 1, 1)
        journal.flush()
    assert str(place) in caplog.text
    assert [aside.name for aside in place.parent.glob("journal.sqlite.damaged-*[0-9a-f]")] != []
    with closing(Journal(place, 3)) as again:
        assert again.damaged is None
        assert len(again.unsent_points()) == 1


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
    """Let the database take no further page, which SQLite reports like a full disk."""
    journal._database._database.execute("PRAGMA max_page_count = 1")


def test_a_file_that_is_damaged_in_the_middle_is_replaced_and_the_loss_is_counted(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(Journal(place, 1)) as journal:
        journal.add_points(("loss", step, 0.1, step) for step in range(3000))
        journal.flush()
        journal._database._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        journal._database._database.execute("PRAGMA cache_size = 0")
        with place.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (place.stat().st_size - 4096))
        assert journal.unsent() == 0
        journal.log_metrics({"loss": 1}, 3001, 1)
        journal.flush()
        assert [point.step for point in journal.unsent_points()] == [3001]
        assert journal.lost() > 0
    assert "is damaged" in caplog.text


def test_a_place_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be opened"):
        Journal(tmp_path / "file" / "journal.sqlite", 1)


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


def test_closing_waits_for_whoever_still_reads(tmp_path: Path) -> None:
    """A sender that outlives its grace may be in the middle of a query; SQLite crashes the process where it is closed then."""
    codes = []
    for number in range(40):
        child = os.fork()
        if child == 0:
            sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
            journal = Journal(tmp_path / f"{number}.sqlite", 1)
            for step in range(200):
                journal.log_metrics({f"key{index}": 1.0 for index in range(20)}, step, 1)
            journal.flush()

            def read(journal: Journal = journal) -> None:
                with suppress(sqlite3.Error):
                    while True:
                        journal.unsent_points(5000)

            for _ in range(2):
                threading.Thread(target=read, daemon=True).start()
            time.sleep(0.05 + number * 0.001)
            journal.close()
            os._exit(0)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    assert codes == [0] * 40
