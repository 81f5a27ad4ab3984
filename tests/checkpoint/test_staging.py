"""Local staging: whatever instant it ends at, there is the complete checkpoint or something that does not look like one."""

import errno
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mltrain.checkpoint.manifest import CheckpointId, Manifest
from mltrain.checkpoint.staging import Spool
from mltrain.errors import StorageError
from mltrain.store.durable import probe, replace_file, write_file
from tests.support.runs import manifest_of

CALLS = ("mkdir", "open", "write", "fsync", "rename", "replace")
"""The calls by which staging changes a disk."""

CONTENT = {"model.safetensors": [b"weights", b"", memoryview(b" and more")], "state.json": [b"{}"]}
ID = CheckpointId(attempt=1, step=7)


class Disk:
    """Counts the calls that change the disk, and lets one of them meet its fate."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.fatal = 0
        self.fate: Callable[[str], None] = lambda name: None
        for name in CALLS:
            patch.setattr(os, name, self._watched(name, getattr(os, name)))

    def _watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **named: Any) -> Any:
            self.calls += 1
            if self.calls == self.fatal:
                self.fate(name)
            return call(*arguments, **named)

        return watched

    def fails(self, number: int, error: int) -> None:
        def fail(name: str) -> None:
            raise OSError(error, os.strerror(error))

        self.calls, self.fatal, self.fate = 0, number, fail

    def works(self) -> None:
        self.calls, self.fatal = 0, 0


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    yield Disk(monkeypatch)


def stage(spool: Spool, target: Path, identity: CheckpointId = ID) -> Manifest:
    with spool.staging(identity) as staging:
        for name, content in CONTENT.items():
            staging.write(name, content)
        files = {name: entry.model_dump() for name, entry in staging.files.items()}
        manifest = manifest_of(identity.step, identity.attempt, files=files)
        staging.commit(manifest, target)
    return manifest


def is_complete(folder: Path) -> bool:
    manifest = Manifest.from_json((folder / "manifest.json").read_bytes(), name=folder.name)
    there = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    there.pop("manifest.json")
    return there == {name: entry.sha256 for name, entry in manifest.files.items()}


def test_what_is_committed_is_what_was_written_with_its_digests(tmp_path: Path) -> None:
    target = tmp_path / "artifacts" / "checkpoints" / ID.name
    manifest = stage(Spool(tmp_path / "spool"), target)
    assert is_complete(target)
    assert manifest.files["model.safetensors"].size == len(b"weights and more")
    assert {file.name for file in target.iterdir()} == {*CONTENT, "manifest.json"}
    assert list((tmp_path / "spool").iterdir()) == []


def test_what_is_not_committed_is_removed(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    with spool.staging(ID) as staging:
        staging.write("state.json", [b"{}"])
        assert spool.complete() == []
    with pytest.raises(RuntimeError, match="mistake"), spool.staging(ID) as staging:
        staging.write("state.json", [b"{}"])
        raise RuntimeError("mistake")
    assert list(tmp_path.iterdir()) == []


def test_while_it_is_being_written_it_does_not_look_like_a_checkpoint(tmp_path: Path) -> None:
    with Spool(tmp_path).staging(ID) as staging:
        staging.write("state.json", [b"{}"])
        assert CheckpointId.parse(staging.folder.name) is None


def test_two_stagings_of_one_checkpoint_do_not_meet(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    with spool.staging(ID) as one, spool.staging(ID) as other:
        one.write("state.json", [b"1"])
        other.write("state.json", [b"2"])


def test_a_file_is_never_written_twice(tmp_path: Path) -> None:
    with Spool(tmp_path).staging(ID) as staging:
        staging.write("state.json", [b"1"])
        with pytest.raises(StorageError):
            staging.write("state.json", [b"2"])


def test_a_checkpoint_is_never_overwritten(tmp_path: Path) -> None:
    spool, target = Spool(tmp_path / "spool"), tmp_path / "store" / ID.name
    stage(spool, target)
    before = {file.name: file.read_bytes() for file in target.iterdir()}
    with pytest.raises(StorageError, match="exists already"):
        stage(spool, target)
    assert {file.name: file.read_bytes() for file in target.iterdir()} == before
    assert list(spool.root.iterdir()) == []


@pytest.mark.parametrize(("error", "advice"), [(errno.EIO, "Check that disk"), (errno.ENOSPC, "Free some space")])
def test_a_disk_that_fails_at_any_call_leaves_a_complete_checkpoint_or_none(
    error: int, advice: str, tmp_path: Path, disk: Disk
) -> None:
    for number in itertools.count(1):
        place = tmp_path / f"failing-{number}"
        disk.fails(number, error)
        try:
            stage(Spool(place / "spool"), place / "store" / ID.name)
        except StorageError as refused:
            assert advice in str(refused)
        else:
            assert disk.calls == number - 1 > 10, "every call has failed once"
            break
        disk.works()
        committed = list((place / "store").iterdir()) if (place / "store").exists() else []
        assert all(is_complete(folder) for folder in committed)
        assert not (place / "spool").exists() or list((place / "spool").iterdir()) == [], "nothing is left behind"
        if not committed:
            stage(Spool(place / "spool"), place / "store" / ID.name)
            assert is_complete(place / "store" / ID.name)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_kill_at_any_call_leaves_a_complete_checkpoint_or_litter_that_is_removed(tmp_path: Path, disk: Disk) -> None:
    for number in itertools.count(1):
        place = tmp_path / f"killed-{number}"
        child = os.fork()
        if child == 0:
            disk.calls, disk.fatal, disk.fate = 0, number, lambda name: os._exit(9)
            stage(Spool(place / "spool"), place / "store" / ID.name)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9)
        found = list((place / "store").iterdir()) if (place / "store").exists() else []
        assert all(is_complete(folder) for folder in found)
        spool = Spool(place / "spool")
        spool.discard_litter()
        assert list(spool.root.iterdir()) == []
        if not found:
            stage(spool, place / "store" / ID.name)
            assert is_complete(place / "store" / ID.name)
        if code == 0:
            assert number > 10, "all but the last were killed"
            break


def test_a_disk_that_takes_few_bytes_at_a_time_gets_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: write(descriptor, memoryview(content)[:3]))
    stage(Spool(tmp_path / "spool"), tmp_path / "store" / ID.name)
    assert is_complete(tmp_path / "store" / ID.name)


def name_of(descriptor: int, below: Path) -> str:
    """Return the name of an open file or folder, if it is below a folder."""
    return next((path.name for path in below.rglob("*") if os.path.samestat(os.fstat(descriptor), path.stat())), "")


def elsewhere(monkeypatch: pytest.MonkeyPatch, boundary: Path) -> None:
    """Make renames into a folder from outside of it fail, as between two filesystems."""
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
    fsync = os.fsync

    def fails_there(descriptor: int) -> None:
        if name_of(descriptor, tmp_path / "store"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fails_there)
    with pytest.raises(StorageError, match="Free some space"):
        stage(Spool(tmp_path / "spool"), tmp_path / "store" / ID.name)
    assert list((tmp_path / "store").iterdir()) == []
    assert list((tmp_path / "spool").iterdir()) == []


def test_everything_is_flushed_before_the_name_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, rename = os.fsync, os.rename
    flushed: list[str] = []

    def noted(descriptor: int) -> None:
        flushed.append(name_of(descriptor, tmp_path))
        fsync(descriptor)

    def named(source: Any, target: Any) -> None:
        flushed.append("RENAME")
        rename(source, target)

    spool = Spool(tmp_path / "spool")
    (tmp_path / "store").mkdir()
    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "rename", named)
    stage(spool, tmp_path / "store" / ID.name)
    *files, manifest, folder, rename_, parent = flushed
    assert set(files) == set(CONTENT)
    assert manifest == "manifest.json"
    assert folder.endswith(".tmp")
    assert (rename_, parent) == ("RENAME", "store")


def test_the_disk_begins_with_a_piece_before_it_is_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the disk has nothing to do while a checkpoint is hashed, and the end of a training waits for one after the other."""
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


def test_only_what_was_being_staged_is_litter(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    litter = spool.root / f"{ID.name}.0123abcd.tmp"
    litter.mkdir()
    (litter / "manifest.json").write_text("{}")
    canary = tmp_path / "canary"
    canary.mkdir()
    (canary / "precious").write_text("keep")
    for other in ("notes.tmp", f"{ID.name}.tmp", f"{ID.name}.0123ABCD.tmp"):
        (spool.root / other).mkdir()
    (spool.root / f"{ID.name}.01234567.tmp").symlink_to(canary)
    (spool.root / f"{ID.name}.76543210.tmp").write_text("a file")
    stage(spool, spool.root / ID.name)
    assert spool.discard_litter() == 1
    assert not litter.exists()
    assert len(list(spool.root.iterdir())) == 6
    assert (canary / "precious").read_text() == "keep"


def test_only_what_has_a_manifest_is_complete(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    stage(spool, tmp_path / ID.name)
    (tmp_path / "step-000000008-a01").mkdir()
    (tmp_path / "notes").mkdir()
    assert [folder.name for folder in spool.complete()] == [ID.name]


def test_a_place_that_cannot_be_a_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="could not be written"):
        Spool(tmp_path / "file" / "spool")


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
    fsync, failed = os.fsync, []

    def fails_once(descriptor: int) -> None:
        if name_of(descriptor, tmp_path) == target and not failed:
            failed.append(True)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fails_once)
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
