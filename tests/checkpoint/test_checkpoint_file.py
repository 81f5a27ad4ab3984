"""A checkpoint file is whole or refused, and nothing in it is executed."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mltrain.checkpoint import checkpoint_file
from mltrain.errors import DamagedCheckpoint, NoCheckpoint, StorageError, UnsupportedValue


def state() -> dict[str, Any]:
    return {
        "model": {"weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(3)},
        "epoch": 4,
        "best": None,
        "classes": np.array([1, 5, 9]),
        "history": [{"loss": 0.5}, {"loss": float("nan")}],
    }


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "new" / "wear.ckpt"
    checkpoint_file.write(file, state())
    again = checkpoint_file.read(file)
    assert torch.equal(again["model"]["weight"], state()["model"]["weight"])
    assert again["model"]["count"].dtype == torch.int64
    assert np.array_equal(again["classes"], state()["classes"])
    assert (again["epoch"], again["best"]) == (4, None)
    assert np.isnan(again["history"][1]["loss"])


def test_equal_states_make_equal_files(tmp_path: Path) -> None:
    checkpoint_file.write(tmp_path / "a", state())
    checkpoint_file.write(tmp_path / "b", state())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_weights_in_it_are_readable_by_anyone(tmp_path: Path) -> None:
    from safetensors.torch import load

    checkpoint_file.write(tmp_path / "a", state())
    with zipfile.ZipFile(tmp_path / "a") as archive:
        weights = load(archive.read("model.safetensors"))
    assert torch.equal(weights["weight"], state()["model"]["weight"])


def test_every_flipped_byte_of_the_content_is_found(tmp_path: Path) -> None:
    file = tmp_path / "wear.ckpt"
    checkpoint_file.write(file, state())
    whole = bytearray(file.read_bytes())
    undetected = []
    for position in range(0, len(whole), 7):
        damaged = whole.copy()
        damaged[position] ^= 0x10
        file.write_bytes(damaged)
        try:
            read = checkpoint_file.read(file)
        except DamagedCheckpoint:
            continue
        # What is not found is in the archive's own bookkeeping, such as dates, and changes nothing.
        if not torch.equal(read["model"]["weight"], state()["model"]["weight"]) or read["epoch"] != 4:
            undetected.append(position)
    assert undetected == []


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    file = tmp_path / "wear.ckpt"
    checkpoint_file.write(file, state())
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DamagedCheckpoint):
        checkpoint_file.read(file)


def test_a_member_that_is_not_listed_or_missing_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "wear.ckpt"
    checkpoint_file.write(file, state())
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("more.safetensors", b"x")
    with pytest.raises(DamagedCheckpoint, match=r"more\.safetensors"):
        checkpoint_file.read(file)


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("the file was unpickled",))


def test_a_pickle_is_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "evil.pth"
    file.write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(DamagedCheckpoint, match="mltrain import"):
        checkpoint_file.read(file)


def test_a_file_of_torch_save_is_refused_with_what_to_do(tmp_path: Path) -> None:
    torch.save({"model": torch.zeros(2)}, tmp_path / "weights.pth")
    with pytest.raises(DamagedCheckpoint, match="mltrain import"):
        checkpoint_file.read(tmp_path / "weights.pth")


def test_compressed_members_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    file = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("about.json", b"0" * 10**7)
    with pytest.raises(DamagedCheckpoint, match="compressed"):
        checkpoint_file.read(file)


def test_a_later_version_is_refused_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "wear.ckpt"
    monkeypatch.setattr(checkpoint_file, "VERSION", 2)
    checkpoint_file.write(file, state())
    monkeypatch.undo()
    with pytest.raises(DamagedCheckpoint, match="version 2, and version 1 is read here"):
        checkpoint_file.read(file)


def test_a_file_that_is_not_there_is_said_with_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "other.ckpt").touch()
    with pytest.raises(NoCheckpoint, match=r"other\.ckpt"):
        checkpoint_file.read(tmp_path / "wear.ckpt")


def test_a_state_that_cannot_be_stored_leaves_the_file_before_it_alone(tmp_path: Path) -> None:
    file = tmp_path / "wear.ckpt"
    checkpoint_file.write(file, state())
    before = file.read_bytes()
    with pytest.raises(UnsupportedValue, match="hook"):
        checkpoint_file.write(file, {**state(), "hook": print})
    assert file.read_bytes() == before
    assert [other.name for other in tmp_path.iterdir()] == ["wear.ckpt"]


def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        checkpoint_file.write(tmp_path / "file" / "wear.ckpt", state())
