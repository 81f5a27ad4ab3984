"""Local staging: whatever instant it ends at, there is the complete checkpoint or something that does not look like one."""

import errno
import itertools
import os
from pathlib import Path
from typing import Any

import pytest

from mltrain.checkpoint.manifest import CheckpointId
from mltrain.checkpoint.staging import Spool
from mltrain.errors import StorageError
from tests.support.disks import CONTENT, ID, Disk, is_complete, name_of, stage


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
            disk.calls, disk.fatal, disk.failure = 0, number, lambda name: os._exit(9)
            stage(Spool(place / "spool"), place / "store" / ID.name)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9)
        found = list((place / "store").iterdir()) if (place / "store").exists() else []
        assert all(is_complete(folder) for folder in found)
        spool = Spool(place / "spool")
        spool.discard_unfinished()
        assert list(spool.root.iterdir()) == []
        if not found:
            stage(spool, place / "store" / ID.name)
            assert is_complete(place / "store" / ID.name)
        if code == 0:
            assert number > 10, "all but the last were killed"
            break


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
    assert spool.discard_unfinished() == 1
    assert not litter.exists()
    assert len(list(spool.root.iterdir())) == 6
    assert (canary / "precious").read_text() == "keep"


def test_only_what_has_a_manifest_is_complete(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    stage(spool, tmp_path / ID.name)
    (tmp_path / "step-000000008-a01").mkdir()
    (tmp_path / "notes").mkdir()
    assert [folder.name for folder in spool.complete()] == [ID.name]


def test_a_path_that_cannot_be_a_folder_raises_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="could not be written"):
        Spool(tmp_path / "file" / "spool")
