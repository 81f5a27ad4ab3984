from pathlib import Path

import pytest

from mltrain.errors import DataError
from projects.sample_cache import cache_folder, write_once


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLTRAIN_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("MLTRAIN_CACHE", "")
    assert cache_folder().name == "mltrain"


def test_a_folder_is_written_once(tmp_path: Path) -> None:
    calls = []

    def write(folder: Path) -> None:
        calls.append(folder)
        (folder / "data").write_text("x")

    assert write_once(tmp_path, "set", write) == write_once(tmp_path, "set", write) == tmp_path / "set"
    assert len(calls) == 1
    assert (tmp_path / "set" / "data").read_text() == "x"


def test_a_folder_that_could_not_be_filled_does_not_appear(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError("disk full")

    with pytest.raises(DataError, match=r"(?s)disk full.*MLTRAIN_CACHE"):
        write_once(tmp_path, "set", fail)
    assert [file.name for file in tmp_path.iterdir()] == [".set.lock"]


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".set.partial-abc" / "deep").mkdir(parents=True)
    write_once(tmp_path, "set", lambda folder: (folder / "data").touch())
    assert sorted(file.name for file in tmp_path.iterdir()) == [".set.lock", "set"]
