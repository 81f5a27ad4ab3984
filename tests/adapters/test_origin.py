from pathlib import Path

import pytest

from mltrain import CheckpointManager
from mltrain.adapters.origin import Address, Origin, refuse_checkpoints
from mltrain.errors import NoCheckpoint, UsageError
from tests.support.runs import state_at


def test_an_address_names_a_run_or_a_folder_and_a_checkpoint() -> None:
    assert Address.parse("mltrain:abcd") == Address("abcd", "latest")
    assert Address.parse("mltrain:abcd@step:12") == Address("abcd", "step:12")
    assert Address.parse("mltrain:./here@best") == Address("./here", "best")
    assert Address("./here").is_folder
    assert not Address("abcd").is_folder
    assert Address.parse("last.ckpt") is None
    assert Address.parse(None) is None
    with pytest.raises(UsageError, match="names no run"):
        Address.parse("mltrain:")


def test_a_folder_may_have_an_at_sign_in_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "net@small" / "best@2"
    folder.mkdir(parents=True)
    assert Address.parse(f"mltrain:{folder}") == Address(str(folder), "latest")
    assert Address.parse(f"mltrain:{folder}@epoch:3") == Address(str(folder), "epoch:3")
    assert Address.parse(f"mltrain:{tmp_path}/net@small@best") == Address(f"{tmp_path}/net@small", "best")
    assert Address.parse(f"mltrain:{folder.parent}") == Address(str(folder.parent), "latest")


def test_a_folder_at_home_is_the_same_for_the_manager_and_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    with CheckpointManager(save_dir="~/net@small") as manager:
        manager.save_epoch_checkpoint(state_at(1), 1)
    address = Address.parse("mltrain:~/net@small")
    assert address == Address("~/net@small")
    assert Origin.read(address).manifest.epoch == 1
    with pytest.raises(UsageError, match="continue from mltrain:~/net@small"):
        refuse_checkpoints("~/net@small")
    assert [entry.name for entry in tmp_path.iterdir()] == ["home"]


def test_the_home_of_an_unknown_user_is_refused() -> None:
    for use in (
        lambda: CheckpointManager(save_dir="~nosuchuser/ck"),
        lambda: refuse_checkpoints("~nosuchuser/ck"),
        lambda: Origin.read(Address("~nosuchuser/ck")),
        lambda: Address.parse("mltrain:~nosuchuser/ck@best"),
    ):
        with pytest.raises(UsageError, match=r"'~nosuchuser/ck.*' is not a valid path: .* Expected ~ alone"):
            use()


def test_reading_a_folder_that_does_not_exist_leaves_none(tmp_path: Path) -> None:
    with pytest.raises(NoCheckpoint):
        Origin.read(Address(str(tmp_path / "mistyped")))
    assert list(tmp_path.iterdir()) == []
