"""Folders of this host."""

from collections import namedtuple
from pathlib import Path

import psutil
import pytest

from mltrain.errors import StorageError, UsageError
from mltrain.store.folders import expanded, filesystem_of, refuse_unwritable, state_folder

Mount = namedtuple("Mount", ("mountpoint", "fstype"))


def test_the_filesystem_is_that_of_the_deepest_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "data"
    (inner / "runs").mkdir(parents=True)
    (tmp_path / "link").symlink_to(inner)
    mounts = [Mount("/", "ext4"), Mount(str(inner), "NFS4"), Mount(str(tmp_path / "dat"), "xfs")]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)
    assert filesystem_of(inner / "runs") == filesystem_of(tmp_path / "link" / "runs") == "nfs4"
    assert filesystem_of(tmp_path) == "ext4"
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: [])
    assert filesystem_of(inner) == "unknown filesystem"


def test_a_folder_that_would_be_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"is not a folder. Another\."):
        refuse_unwritable(tmp_path / "file" / "inner", "Another.")
    refuse_unwritable(tmp_path / "new" / "inner", "Another.")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_state_folder_is_the_one_that_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLTRAIN_HOME", "~/here")
    assert state_folder() == Path.home() / "here"


def test_a_path_of_an_unknown_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert expanded("~/runs") == Path.home() / "runs"
    monkeypatch.setenv("MLTRAIN_HOME", "~nosuchuser/state")
    with pytest.raises(UsageError, match="'~nosuchuser/state' is not a valid path"):
        state_folder()
