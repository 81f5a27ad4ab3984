"""Files and folders are complete and durable, or absent."""

import errno
import hashlib
import itertools
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mltrain.checkpoint.staging import Spool
from mltrain.errors import StorageError
from mltrain.store.durable import probe, replace_file, write_file
from tests.support.disks import ID, Disk, is_complete, name_of, refuse, stage


def test_a_disk_that_takes_few_bytes_at_a_time_gets_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: write(descriptor, memoryview(content)[:3]))
    stage(Spool(tmp_path / "spool"), tmp_path / "store" / ID.name)
    assert is_complete(tmp_path / "store" / ID.name)


def elsewhere(monkeypatch: pytest.MonkeyPatch, boundary: Path) -> None:
    """Make renames into a folder fail, as between two filesystems."""
    rename = os.rename

    def renamed(source: Any, target: Any) -> None:
        if (boundary in Path(source).parents) != (boundary in Path(target).parents):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        rename(source, target)

    monkeypatch.setattr(os, "rename", renamed)


def test_another_filesystem_gets_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere(monkeypatch, tmp_path / "store")
    stage(Spool(tmp_path / "spool"), tmp_path / "store" / ID.name)
    assert is_complete(tmp_path / "store" / ID.name)
    assert [folder.name for folder in (tmp_path / "store").iterdir()] == [ID.name]
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_copy_that_fails_leaves_nothing_on_the_other_filesystem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(monkeypatch, tmp_path / "store")
    refuse(monkeypatch, "fsync", errno.ENOSPC, lambda file: bool(name_of(file, tmp_path / "store")))
    with pytest.raises(StorageError, match="Free some space"):
        stage(Spool(tmp_path / "spool"), tmp_path / "store" / ID.name)
    assert list((tmp_path / "store").iterdir()) == []
    assert list((tmp_path / "spool").iterdir()) == []


def test_the_disk_begins_with_a_piece_before_it_is_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk then works while the hash is computed. So the end of a training need not wait for one after the other."""
    done: list[tuple[str, int, int]] = []

    class Hash:
        def update(self, piece: bytes) -> None:
            done.append(("hashed", done[-1][1], len(piece)))

        def hexdigest(self) -> str:
            return ""

    def begun(descriptor: int, start: int, length: int, advice: int) -> None:
        assert os.fstat(descriptor).st_size == start + length
        done.append(("begun", start, length))
        raise OSError(errno.EINVAL, "advice that a filesystem does not take does no harm")

    monkeypatch.setattr(os, "posix_fadvise", begun, raising=False)
    monkeypatch.setattr(os, "POSIX_FADV_DONTNEED", 4, raising=False)
    monkeypatch.setattr(hashlib, "sha256", Hash)
    assert write_file(tmp_path / "file", [b"abc", memoryview(b"defgh")]) == (8, "")
    assert done == [("begun", 0, 3), ("hashed", 0, 3), ("begun", 3, 5), ("hashed", 3, 5)]
    assert (tmp_path / "file").read_bytes() == b"abcdefgh"


def test_a_replaced_file_is_flushed_before_it_takes_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, replace = os.fsync, os.replace
    done: list[str] = []

    def noted(descriptor: int) -> None:
        done.append(name_of(descriptor, tmp_path))
        fsync(descriptor)

    def named(source: Any, target: Any) -> None:
        done.append("REPLACE")
        replace(source, target)

    (tmp_path / "weights").mkdir()
    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "replace", named)
    replace_file(tmp_path / "weights" / "best.safetensors", b"content")
    temporary, replaced, folder = done
    assert temporary.startswith(".best.safetensors.")
    assert (replaced, folder) == ("REPLACE", "weights")


def test_a_replaced_file_is_the_old_one_or_the_new_one_whatever_call_fails(tmp_path: Path, disk: Disk) -> None:
    file = tmp_path / "weights" / "best.safetensors"
    replace_file(file, b"old")
    for number in itertools.count(1):
        disk.fails(number, errno.ENOSPC)
        with suppress(StorageError):
            replace_file(file, b"new and longer")
        if disk.calls < number:
            assert number > 4, "every call has failed once"
            break
        disk.works()
        assert file.read_bytes() in (b"old", b"new and longer")
        assert [entry.name for entry in file.parent.iterdir()] == ["best.safetensors"], "no temporary file is left"
        replace_file(file, b"old")


def test_folders_that_are_made_on_the_way_are_durable_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, flushed = os.fsync, []

    def noted(descriptor: int) -> None:
        flushed.append(name_of(descriptor, tmp_path))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    (tmp_path / "top").mkdir()
    stage(Spool(tmp_path / "spool"), tmp_path / "top" / "a" / "b" / ID.name)
    assert {"top", "a", "b"} <= set(flushed)


@pytest.mark.parametrize("target", ["store", "spool"])
def test_a_name_whose_flush_failed_is_given_back_so_that_all_is_written_anew(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, store = Spool(tmp_path / "spool"), tmp_path / target
    store.mkdir(exist_ok=True)
    failed = refuse(monkeypatch, "fsync", errno.EIO, lambda file: name_of(file, tmp_path) == target, once=True)
    with pytest.raises(StorageError, match="Input/output error"):
        stage(spool, store / ID.name)
    assert failed
    assert list(store.iterdir()) == []
    stage(spool, store / ID.name)
    assert is_complete(store / ID.name)


def test_a_folder_that_can_be_written_is_as_it_was_after_the_probe(tmp_path: Path) -> None:
    probe(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_probe_removes_what_a_killed_one_left_and_nothing_else(tmp_path: Path) -> None:
    for name in (".probe.0123abcd.tmp", ".probe.mine.tmp", ".other.0123abcd.tmp", "probe.0123abcd.tmp"):
        (tmp_path / name).write_text("probe")
    (tmp_path / ".probe.01234567.tmp").mkdir()  # whatever cannot be removed is in nobody's way
    probe(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        ".other.0123abcd.tmp",
        ".probe.01234567.tmp",
        ".probe.mine.tmp",
        "probe.0123abcd.tmp",
    ]


def test_a_folder_that_cannot_be_written_is_refused_at_any_call(tmp_path: Path, disk: Disk) -> None:
    for number in itertools.count(1):
        disk.fails(number, errno.EROFS)
        try:
            probe(tmp_path)
        except StorageError as refused:
            assert "Mount it writable" in str(refused)
        disk.works()
        assert list(tmp_path.iterdir()) == []
        if number > 20:
            break
    monkey = tmp_path / "file"
    monkey.write_text("in the way")
    with pytest.raises(StorageError):
        probe(monkey / "folder")
