"""A durable journal of undelivered writes to the tracking server."""

import logging
import math
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrain.delivery.journal import Journal
from tests.support.journals import points


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
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    journal.add_points([("a", 2**63, 0.0, 0)])  # a step that SQLite cannot hold
    journal.flush()
    journal.log_metrics({"a": 1}, 1, 1_000_000)
    journal.flush()
    assert points(journal) == [("a", 1, 1.0, 1)]
    assert "1 entries cannot be written" in caplog.text
    assert journal.left_out == 1  # so that the run's record says it


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
    assert "metric points are lost" in caplog.text
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


def test_what_the_disk_refuses_is_reported_and_written_later(
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
