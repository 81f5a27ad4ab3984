"""Only files with a disposable name are discarded."""

from pathlib import Path

import pytest

from mltrain.errors import StorageError
from mltrain.store.removal import discard_cached, discard_empty, discard_sent, discard_staged, discard_temporary
from tests.support.folders import NAME, file_in


@pytest.mark.parametrize("name", [NAME, f"{NAME}.0123abcd.tmp"])
def test_a_staged_checkpoint_can_be_discarded(name: str, tmp_path: Path) -> None:
    file_in(tmp_path / name)
    discard_staged(tmp_path / name)
    discard_staged(tmp_path / name)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["spool", f"{NAME}.tmp", f"{NAME}.0123ABCD.tmp", f"{NAME}.0123abcd.tmp.x"])
def test_nothing_else_can_be_discarded_as_staged(name: str, tmp_path: Path) -> None:
    file_in(tmp_path / name)
    with pytest.raises(StorageError, match="nothing was removed"):
        discard_staged(tmp_path / name)
    assert (tmp_path / name / "a.json").exists()


def test_only_what_is_in_an_outbox_is_discarded_as_sent(tmp_path: Path) -> None:
    sent, other = file_in(tmp_path / "outbox"), file_in(tmp_path / "inbox")
    discard_sent(sent)
    discard_sent(sent)
    with pytest.raises(StorageError, match="not in an outbox"):
        discard_sent(other)
    with pytest.raises(StorageError, match="not in an outbox"):
        discard_sent(tmp_path / "outbox" / ".." / "inbox" / "a.json")
    beside = file_in(tmp_path, "journal.sqlite")
    with pytest.raises(StorageError, match="not in an outbox"):
        discard_sent(tmp_path / "outbox" / ".." / "journal.sqlite")
    assert beside.exists()
    assert (sent.exists(), other.exists()) == (False, True)


def test_only_a_temporary_file_is_discarded_as_temporary(tmp_path: Path) -> None:
    temporary, other = file_in(tmp_path, ".a.json.0123abcd.tmp"), file_in(tmp_path, "a.json")
    discard_temporary(temporary)
    with pytest.raises(StorageError, match="not a temporary file"):
        discard_temporary(other)
    assert (temporary.exists(), other.exists()) == (False, True)


def test_only_a_file_in_a_copy_of_an_output_can_be_discarded(tmp_path: Path) -> None:
    copy = tmp_path / ("0a" * 32)
    file_in(copy / "parts", "stray")
    precious = file_in(tmp_path / "precious", "file")
    (copy / "link").symlink_to(precious.parent)
    for folder, file in (
        (copy, precious),
        (copy, copy),
        (copy, copy / ".." / "precious" / "file"),
        (copy, copy / "link" / "file"),
        (precious.parent, precious),
    ):
        with pytest.raises(StorageError, match="was not removed"):
            discard_cached(folder, file)
    discard_cached(copy, copy / "parts" / "stray")
    discard_cached(copy, copy / "link")
    assert [path.name for path in copy.rglob("*")] == ["parts"]
    assert precious.exists()


def test_only_empty_folders_are_discarded(tmp_path: Path) -> None:
    outer, inner, full = tmp_path / "outer", tmp_path / "outer" / "inner", tmp_path / "full"
    inner.mkdir(parents=True)
    file_in(full)
    discard_empty([inner, outer, full, tmp_path / "missing"])
    assert [one.name for one in tmp_path.iterdir()] == ["full"]
    assert (full / "a.json").exists()
