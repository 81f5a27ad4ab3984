"""A journal's file that is damaged or cannot be written."""

import os
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from mltrain.delivery.journal import Journal
from mltrain.errors import StorageError


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


def test_a_folder_that_cannot_be_made_raises_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be opened"):
        Journal(tmp_path / "file" / "journal.sqlite", 1)
