"""A checkpoint file is whole or refused; it executes nothing."""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mltrain.checkpoint import checkpoint_file
from mltrain.checkpoint.manifest import CheckpointId
from mltrain.checkpoint.packed import PackedStaging
from mltrain.errors import DamagedCheckpoint, NoCheckpoint, StorageError, UnsupportedValue
from tests.support.runs import manifest_of


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
        weights = load(archive.read("mltrain/data/model.safetensors"))
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


def test_a_later_version_is_refused_by_its_number(tmp_path: Path) -> None:
    file = tmp_path / "wear.ckpt"
    with PackedStaging(tmp_path, CheckpointId(attempt=1, step=1)) as staging:
        staging.describe({"format": "mltrain checkpoint file", "version": 3, "project": "tiny"})
        staging.commit(manifest_of(), file)
    with pytest.raises(DamagedCheckpoint, match=r"has version 3\. Expected version 1 or 2"):
        checkpoint_file.read(file)


def test_a_missing_file_raises_an_error_that_lists_the_present_ones(tmp_path: Path) -> None:
    (tmp_path / "other.ckpt").touch()
    with pytest.raises(NoCheckpoint, match=r"other\.ckpt"):
        checkpoint_file.read(tmp_path / "wear.ckpt")


def test_a_file_that_is_not_there_is_answered_with_the_nearest_and_the_newest(tmp_path: Path) -> None:
    names = [f"checkpoint_epoch_{epoch}.pth" for epoch in range(1, 21)] + ["latest_checkpoint.pth"]
    for age, name in enumerate(names):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (10**9 + age, 10**9 + age))
    said = checkpoint_file.hints_for_missing(tmp_path / "chekpoint_epoch_12.pth")
    assert "checkpoint_epoch_12.pth" in said.split(" Files in ")[0]
    assert ": latest_checkpoint.pth, checkpoint_epoch_20.pth" in said
    assert said.endswith("and 11 more.")


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


GOLDEN = Path(__file__).parents[1] / "golden" / "files"


def test_files_of_the_first_form_are_read_as_ever() -> None:
    """The first ``export=full`` and classifiers wrote ``about.json`` and top-level members."""
    exported = GOLDEN / "exported" / "checkpoint_epoch_2.pth"
    manifest = checkpoint_file.manifest_of(exported)
    assert manifest is not None
    assert (manifest.epoch, manifest.step, manifest.metrics) == (2, 6, {"val/loss": 0.7})
    assert checkpoint_file.origin_of(exported) == checkpoint_file.FileOrigin(
        manifest.run_id, manifest.name, "tiny", complete=True
    )
    assert checkpoint_file.params_of(exported) == {"epochs": 4}
    assert checkpoint_file.read(exported)["progress"] == {"step": 6, "epoch": 2, "batch": 0}
    alone = checkpoint_file.read(GOLDEN / "without_run.pth")
    assert (alone["epoch"], alone["best_acc"], alone["optimizer"]["param_groups"][0]["lr"]) == (4, 54.0, 0.125)
    assert checkpoint_file.origin_of(GOLDEN / "without_run.pth") == checkpoint_file.FileOrigin(
        None, None, None, complete=True
    )
    assert checkpoint_file.manifest_of(GOLDEN / "without_run.pth") is None


@pytest.mark.parametrize("name", ["best_model.pth", "checkpoint_epoch_1.pth", "interrupt_checkpoint.pth"])
def test_a_file_of_a_manager_is_a_checkpoint_file_without_a_run(name: str) -> None:
    state = checkpoint_file.read(GOLDEN / "folder" / name)
    number = {"best_model.pth": 2, "checkpoint_epoch_1.pth": 1, "interrupt_checkpoint.pth": 3}[name]
    assert (state["epoch"], state["best_acc"]) == (number, 50.0 + number)
    assert checkpoint_file.origin_of(GOLDEN / "folder" / name) == checkpoint_file.FileOrigin(
        None, None, None, complete=True
    )


@pytest.mark.parametrize(
    "place", ["exported/checkpoint_epoch_1.pth", "without_run.pth", "folder/checkpoint_epoch_1.pth"]
)
def test_a_changed_byte_of_any_form_is_found(place: str, tmp_path: Path) -> None:
    content = bytearray((GOLDEN / place).read_bytes())
    begin = content.index(b"weight")
    content[content.index(b"F32", begin) + 40] ^= 1
    (tmp_path / "changed.pth").write_bytes(content)
    with pytest.raises(DamagedCheckpoint):
        checkpoint_file.read(tmp_path / "changed.pth")
