"""A folder of packed checkpoints: names, the second name of the best one, damage, and files of others."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from mltrain.checkpoint.folder import FolderArtifacts
from mltrain.checkpoint.manifest import Manifest
from mltrain.checkpoint.store import CheckpointStore
from mltrain.commands.export import Export
from mltrain.errors import NoCheckpoint, StorageError, UsageError
from mltrain.manager import CheckpointManager
from tests.support import tiny
from tests.support.runs import FolderRun, epochs, state_at, train


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def trained(folder: Path, last: int, best: int | None = None, **options: object) -> None:
    with CheckpointManager(save_dir=folder, max_to_keep=2, **options) as manager:  # type: ignore[arg-type]
        for epoch in range(1, last + 1):
            manager.save_epoch_checkpoint(state_at(epoch), epoch)
            if epoch == best:
                manager.save_best_model(state_at(epoch), 0.5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def test_the_best_has_a_second_name_and_keeps_it_alone_when_its_epoch_goes(folder: Path) -> None:
    trained(folder, 2, best=1)
    assert names(folder) == ["best_model.pth", "checkpoint_epoch_1.pth", "checkpoint_epoch_2.pth"]
    assert (folder / "best_model.pth").samefile(folder / "checkpoint_epoch_1.pth")
    with CheckpointManager(save_dir=folder, max_to_keep=2) as manager:
        manager.load_latest_checkpoint()
        train(manager, 3, 4)
        assert names(folder) == ["best_model.pth", "checkpoint_epoch_3.pth", "checkpoint_epoch_4.pth"]
        assert epochs(manager) == [1, 3, 4]
        manager.save_best_model(state_at(4), 0.7)
        manager.wait()
        assert epochs(manager) == [3, 4]


def test_where_the_disk_has_no_hard_links_the_best_is_a_copy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    trained(folder, 3, best=2)
    assert (folder / "best_model.pth").read_bytes() == (folder / "checkpoint_epoch_2.pth").read_bytes()
    assert CheckpointManager(save_dir=folder).load_best_model()["epoch"] == 2  # type: ignore[index]


def test_a_policy_of_ones_own_decides_and_the_best_of_a_metric_follows_it(folder: Path) -> None:
    with CheckpointManager(save_dir=folder, max_to_keep=1, metric="score", mode="max") as manager:
        for epoch, score in enumerate([1.0, 3.0, 2.0, 4.0, 0.0], 1):
            manager.save_epoch_checkpoint(state_at(epoch), epoch, {"score": score})
        manager.wait()
        assert epochs(manager) == [4, 5]
    assert names(folder) == ["best_model.pth", "checkpoint_epoch_5.pth"]
    with CheckpointManager(save_dir=folder, max_to_keep=1, metric="score", mode="max") as manager:
        manager.load_latest_checkpoint()
        manager.save_epoch_checkpoint(state_at(6), 6, {"score": 5.0})
        manager.wait()
        assert manager.load_best_model()["epoch"] == 6  # type: ignore[index]


@pytest.mark.parametrize("error", [BrokenPipeError("no reader"), ValueError("no number"), EOFError()])
def test_an_error_of_the_callers_function_is_no_damage_of_a_file(error: Exception, folder: Path) -> None:
    trained(folder, 1)
    store = CheckpointStore("any", FolderArtifacts(folder), folder=folder)

    def fails(manifest: Manifest, count: int) -> None:
        raise error

    store.watch(fails)
    with pytest.raises(type(error)) as raised:
        store.fetch(store.manifests()[0])
    assert raised.value is error


def test_a_folder_has_no_outputs_to_remove(folder: Path) -> None:
    trained(folder, 1)
    output = folder / ".mltrain" / "outputs" / "a01"
    output.mkdir(parents=True)
    with pytest.raises(StorageError, match="has no output 'a01'; nothing was removed"):
        FolderArtifacts(folder).remove_output("a01")
    assert output.is_dir()


@pytest.mark.parametrize("damage", ["truncated", "one bit", "nothing left"])
def test_a_damaged_file_is_reported_and_the_one_before_it_is_used(
    damage: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained(folder, 2)
    file = folder / "checkpoint_epoch_2.pth"
    content = bytearray(file.read_bytes())
    if damage == "one bit":
        content[content.index(b"\x00\x00\x00@")] ^= 1  # in the weights, which are 2.0
    file.write_bytes({"truncated": content[:-40], "one bit": content, "nothing left": bytes(len(content))}[damage])
    manager = CheckpointManager(save_dir=folder, max_to_keep=2)
    assert manager.load_latest_checkpoint()["epoch"] == 1  # type: ignore[index]
    assert "is damaged and is skipped" in caplog.text
    manager.close()


def test_when_every_file_is_damaged_nobody_begins_afresh_unawares(folder: Path) -> None:
    trained(folder, 2)
    for file in folder.glob("*.pth"):
        file.write_bytes(file.read_bytes()[:-40])
    with (
        CheckpointManager(save_dir=folder) as manager,
        pytest.raises(NoCheckpoint, match=f"None of the checkpoints of folder {folder} is usable"),
    ):
        manager.load_latest_checkpoint()


def test_checkpoints_of_others_are_refused_and_untouched(folder: Path) -> None:
    folder.mkdir()
    torch.save({"epoch": 47}, folder / "checkpoint_epoch_47.pth")
    with pytest.raises(
        UsageError, match=r"checkpoints that mltrain did not write: checkpoint_epoch_47.pth.*mltrain import"
    ):
        CheckpointManager(save_dir=folder)
    assert names(folder) == ["checkpoint_epoch_47.pth"]
    assert not (folder / ".mltrain").exists()


def test_a_best_model_that_is_copied_elsewhere_is_the_best_there(folder: Path, tmp_path: Path) -> None:
    trained(folder, 3, best=2)
    other = tmp_path / "other"
    other.mkdir()
    (other / "best_model.pth").write_bytes((folder / "best_model.pth").read_bytes())
    assert CheckpointManager(save_dir=other).load_best_model()["epoch"] == 2  # type: ignore[index]


def test_a_folder_that_is_moved_is_continued(folder: Path, tmp_path: Path) -> None:
    trained(folder, 3, best=2)
    moved = folder.rename(tmp_path / "moved")
    with CheckpointManager(save_dir=moved, max_to_keep=2) as manager:
        assert manager.load_latest_checkpoint()["epoch"] == 3  # type: ignore[index]
        assert manager.best().metrics == {"val/loss": 0.5}  # type: ignore[union-attr]


def test_what_an_interrupted_process_left_goes_when_the_next_one_saves(folder: Path) -> None:
    trained(folder, 1)
    left = folder / ".step-000000002-a01.0123abcd.tmp"
    left.write_bytes(b"half")
    (folder / ".notes.tmp").write_bytes(b"of the user")
    with CheckpointManager(save_dir=folder) as manager:
        assert manager.load_latest_checkpoint() is not None
        assert left.exists(), "it may be another process's"
        train(manager, 2, 2)
    assert not left.exists()
    assert (folder / ".notes.tmp").exists()


def test_an_epoch_that_is_rolled_back_is_replaced(folder: Path) -> None:
    trained(folder, 4)
    with CheckpointManager(save_dir=folder, max_to_keep=2) as manager:
        assert manager.load("epoch:3") is not None
        train(manager, 4, 5)
        assert epochs(manager) == [4, 5]
        assert {manifest.id.attempt for manifest in manager.checkpoints()} == {2}


FILES = Path(__file__).parents[1] / "golden" / "files"


def copied(name: str, folder: Path) -> Path:
    shutil.copytree(FILES / name, folder)
    return folder


def test_a_folder_of_an_earlier_version_is_read(folder: Path) -> None:
    manager = CheckpointManager(save_dir=copied("folder", folder))
    assert (manager.load_latest_checkpoint() or {})["epoch"] == 3
    assert (manager.load_best_model() or {})["epoch"] == 2
    assert (manager.load("epoch:1") or {})["best_acc"] == 51.0
    manager.close()


def exported(folder: Path, run: FolderRun) -> Path:
    """Write files with ``export=full`` as a training does: two epochs, of which the first is better, and an interrupted step."""
    with run.manager() as manager:
        manager.when_committed(Export(tiny.Config(model_save_path=folder, export="full"), "tiny"))
        for epoch, loss in ((1, 0.5), (2, 0.7)):
            state = {**state_at(epoch), "progress": {"step": 3 * epoch, "epoch": epoch, "batch": 0}}
            manager.save(state, step=3 * epoch, epoch=epoch, metrics={"val/loss": loss}, kind="epoch")
            manager.wait()
        manager.save({"progress": {"step": 7, "epoch": 2, "batch": 1}}, step=7, epoch=2, kind="interrupted")
        manager.wait()
    return folder


@pytest.mark.parametrize("form", ["of version 1", "of now"])
def test_a_folder_of_exported_files_is_read_and_continued(form: str, folder: Path, local: FolderRun) -> None:
    place = copied("exported", folder) if form == "of version 1" else exported(folder, local)
    manager = CheckpointManager(save_dir=place, max_to_keep=2)
    assert [(one.kind, one.step) for one in manager.checkpoints()] == [("epoch", 3), ("epoch", 6), ("interrupted", 7)]
    assert (manager.load_best_model() or {})["progress"]["epoch"] == 1
    assert (manager.load("epoch:2") or {})["progress"]["step"] == 6
    assert (manager.load_latest_checkpoint() or {})["progress"]["step"] == 7
    manager.save_epoch_checkpoint(state_at(3), 3)
    manager.wait()
    assert "checkpoint_epoch_3.pth" in names(place)
    assert (manager.load_latest_checkpoint() or {})["epoch"] == 3
    manager.close()
