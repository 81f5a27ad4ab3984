"""Files beside the run: whole checkpoints under the names that scripts use, or weights alone; never instead of the run."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mltrain.checkpoint import checkpoint_file, tensor_file
from mltrain.checkpoint.manifest import Manifest
from mltrain.commands.export import Export
from mltrain.errors import StorageError
from tests.support import tiny
from tests.support.equality import identical
from tests.support.runs import FolderRun


def state(number: int) -> dict[str, Any]:
    return {"model": {"weight": torch.full((2, 3), float(number))}, "step": number}


def exported(run: FolderRun, **keys: Any) -> list[Manifest]:
    """Save two epochs and an interrupted step. The first epoch is the better one."""
    with run.manager() as manager:
        manager.when_committed(Export(tiny.Config(**keys), "tiny"))
        for epoch, loss in ((1, 0.5), (2, 0.7)):
            manager.save(state(epoch), step=epoch * 3, epoch=epoch, metrics={"val/loss": loss}, kind="epoch")
            manager.wait()
        manager.save(state(7), step=7, epoch=2, kind="interrupted")
        manager.wait()
        return manager.checkpoints()


def test_whole_checkpoints_have_the_names_of_the_guides(local: FolderRun, tmp_path: Path) -> None:
    one, two, interrupted = exported(local, model_save_path=tmp_path / "out", export="full")
    expected = {
        "checkpoint_epoch_1.pth": one,
        "checkpoint_epoch_2.pth": two,
        "best_model.pth": one,
        "interrupted_checkpoint.pth": interrupted,
        "latest_checkpoint.pth": interrupted,
    }
    assert {file.name for file in (tmp_path / "out").iterdir()} == expected.keys()
    for name, manifest in expected.items():
        file = tmp_path / "out" / name
        assert checkpoint_file.manifest_of(file) == manifest
        assert checkpoint_file.origin_of(file) == checkpoint_file.FileOrigin(
            local.id, manifest.name, "tiny", complete=True
        )
    assert identical(checkpoint_file.read(tmp_path / "out" / "checkpoint_epoch_2.pth"), state(2))


def test_nothing_in_an_exported_file_can_be_executed(local: FolderRun, tmp_path: Path) -> None:
    exported(local, model_save_path=tmp_path / "out", export="full")
    for file in (tmp_path / "out").iterdir():
        with zipfile.ZipFile(file) as archive:
            assert {Path(name).suffix for name in archive.namelist()} <= {".json", ".safetensors", ".csv"}
            for name in archive.namelist():
                if name.endswith(".json"):
                    json.loads(archive.read(name))


def test_only_the_newest_and_the_best_are_files_where_only_they_are_kept(local: FolderRun, tmp_path: Path) -> None:
    exported(local, model_save_path=tmp_path / "out", export="full", checkpoint_mode="latest")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "best_model.pth",
        "interrupted_checkpoint.pth",
        "latest_checkpoint.pth",
    }


def test_a_checkpoint_path_is_one_file_with_the_newest(local: FolderRun, tmp_path: Path) -> None:
    manifests = exported(local, checkpoint_path=tmp_path / "deep" / "my_checkpoint.pth")
    assert checkpoint_file.manifest_of(tmp_path / "deep" / "my_checkpoint.pth") == manifests[-1]
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["my_checkpoint.pth"]


def test_weights_alone_tell_the_run_and_the_checkpoint(local: FolderRun, tmp_path: Path) -> None:
    one, _, interrupted = exported(local, model_save_path=tmp_path / "out")
    for name, manifest, number in (("latest", interrupted, 7), ("best", one, 1)):
        file = tmp_path / "out" / f"{name}.safetensors"
        assert identical(load_file(file), state(number)["model"])
        stamp = {"run_id": local.id, "checkpoint": manifest.name, "project": "tiny"}
        measured = {"metric": "val/loss", "value": "0.5"} if name == "best" else {}
        assert tensor_file.stamp_of(file) == stamp | measured
        assert checkpoint_file.origin_of(file) == checkpoint_file.FileOrigin(**stamp, complete=False)


def test_a_file_that_cannot_be_written_is_a_warning_and_the_run_has_the_checkpoint(
    local: FolderRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise StorageError("No space left on device")

    monkeypatch.setattr(checkpoint_file, "write_checkpoint", full)
    assert len(exported(local, model_save_path=tmp_path / "out", export="full")) == 3
    assert "is in the run, but could not be copied to a file: No space left on device" in caplog.text


BEST = {"full": "best_model.pth", "weights": "best.safetensors"}


@pytest.mark.parametrize("export", ["full", "weights"])
def test_a_best_file_that_the_run_has_left_behind_is_kept_under_another_name(
    export: str, local: FolderRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A new line of checkpoints may have a worse best."""
    with local.manager() as manager:
        manager.when_committed(Export(tiny.Config(model_save_path=tmp_path / "out", export=export), "tiny"))
        for epoch, loss in ((1, 0.5), (2, 0.2)):
            manager.save(state(epoch), step=epoch, epoch=epoch, metrics={"val/loss": loss}, kind="epoch")
            manager.wait()
        before = (tmp_path / "out" / BEST[export]).read_bytes()
        assert manager.load("epoch:1") is not None
        manager.save(state(3), step=2, epoch=2, metrics={"val/loss": 0.4}, kind="epoch")
        manager.wait()
    (kept,) = [file for file in (tmp_path / "out").iterdir() if ".before-" in file.name]
    assert kept.read_bytes() == before
    assert (tmp_path / "out" / BEST[export]).read_bytes() != before
    assert "its val/loss of 0.2 is better than 0.4" in caplog.text


def best_of_another_run(folder: Path, export: str, loss: float, project: str = "tiny") -> bytes:
    """Let another run write its best file to a folder; return the content."""
    folder.mkdir()
    state = {"model": {"weight": torch.zeros(2, 3)}}
    run = FolderRun(folder.parent / "other")
    run.id = "f" * 32
    with run.manager() as manager:
        manager.when_committed(Export(tiny.Config(model_save_path=folder, export=export), project))
        manager.save(state, step=1, epoch=1, metrics={"val/loss": loss}, kind="epoch")
        manager.wait()
    return (folder / BEST[export]).read_bytes()


@pytest.mark.parametrize("export", BEST)
def test_a_better_best_file_of_another_run_stays_and_one_warning_names_it(
    export: str, local: FolderRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = best_of_another_run(tmp_path / "out", export, 0.2)
    exported(local, model_save_path=tmp_path / "out", export=export)
    assert (tmp_path / "out" / BEST[export]).read_bytes() == before
    assert caplog.text.count("whose val/loss of 0.2 is better than 0.5") == 1


@pytest.mark.parametrize("export", BEST)
def test_a_worse_best_file_of_another_run_is_replaced(export: str, local: FolderRun, tmp_path: Path) -> None:
    best_of_another_run(tmp_path / "out", export, 0.9)
    exported(local, model_save_path=tmp_path / "out", export=export)
    written = checkpoint_file.origin_of(tmp_path / "out" / BEST[export])
    assert written is not None
    assert written.run_id == local.id
    assert not [file.name for file in (tmp_path / "out").iterdir() if ".before-" in file.name]


@pytest.mark.parametrize("kind", ["of torch", "of another project", "damaged"])
def test_a_best_file_that_cannot_be_compared_is_kept_under_another_name(
    kind: str, local: FolderRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "out" / "best_model.pth"
    if kind == "of torch":
        file.parent.mkdir()
        torch.save({"model": torch.zeros(2)}, file)
    else:
        content = best_of_another_run(tmp_path / "out", "full", 0.2, project="other")
        file.write_bytes(content if kind == "of another project" else content[:-50])
    before = file.read_bytes()
    exported(local, model_save_path=tmp_path / "out", export="full")
    (kept,) = [other for other in file.parent.iterdir() if ".before-" in other.name]
    assert kept.read_bytes() == before
    assert kept.name in caplog.text
    assert checkpoint_file.origin_of(file).run_id == local.id  # type: ignore[union-attr]
