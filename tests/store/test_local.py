"""Artifacts in a folder of this machine: no link is followed, nothing else is removed."""

import os
import shutil
import threading
from pathlib import Path

import pytest
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mltrain.errors import StorageError
from mltrain.store.local import LocalArtifacts
from mltrain.store.remote import RemoteArtifacts
from tests.support.folders import NAME, file_in, tree


def test_links_are_neither_listed_nor_followed(root: Path, tmp_path: Path) -> None:
    local = LocalArtifacts(root)
    (root / "link").symlink_to(tmp_path / "canary")
    (root / "checkpoints" / "step-000000002-a01").symlink_to(tmp_path)
    assert [entry.name for entry in local.entries()] == ["checkpoints"]
    assert [entry.name for entry in local.entries("checkpoints")] == [NAME]
    with pytest.raises(OSError, match="link"):
        local.read("link", 100)


def test_what_vanishes_while_it_is_listed_does_not_hide_the_rest(tmp_path: Path) -> None:
    names = {f"step-{step:09d}-a01" for step in range(100)}
    for name in names:
        (tmp_path / "artifacts" / "checkpoints" / name).mkdir(parents=True)
    stop, removed = threading.Event(), 0

    def prune() -> None:
        nonlocal removed
        while not stop.is_set():
            for number in range(50):
                place = tmp_path / "artifacts" / "checkpoints" / f"step-{number:09d}-a02"
                place.mkdir()
                place.rmdir()
                removed += 1

    thread, listings = threading.Thread(target=prune), 0
    thread.start()
    try:
        while removed < 500 or listings < 100:
            found = {entry.name for entry in LocalArtifacts(tmp_path / "artifacts").entries("checkpoints")}
            assert names - found == set()
            listings += 1
    finally:
        stop.set()
        thread.join()


def test_an_upload_onto_a_link_does_not_write_through_it(root: Path, tmp_path: Path) -> None:
    (root / "a.json").symlink_to(tmp_path / "canary")
    with pytest.raises(StorageError):
        LocalArtifacts(root).upload(file_in(tmp_path / "outside"))
    assert (tmp_path / "canary").read_text() == "precious"


def test_the_manifest_goes_first(root: Path) -> None:
    removed: list[str] = []

    class Noting(LocalArtifactRepository):
        def delete_artifacts(self, artifact_path: str | None = None) -> None:
            removed.append(str(artifact_path))
            super().delete_artifacts(artifact_path)

    file_in(root / "checkpoints" / NAME, "manifest.json")
    RemoteArtifacts(Noting(str(root))).remove_checkpoint(NAME)
    assert removed == [f"checkpoints/{NAME}/manifest.json", f"checkpoints/{NAME}"]


def test_a_link_or_a_file_called_like_a_checkpoint_is_not_removed(root: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    file_in(precious, "manifest.json")
    (root / "checkpoints" / "step-000000002-a01").symlink_to(precious)
    (root / "checkpoints" / "step-000000003-a01").write_text("a file")
    before = tree(tmp_path)
    for name in ("step-000000002-a01", "step-000000003-a01"):
        with pytest.raises(StorageError, match="not a folder"):
            LocalArtifacts(root).remove_checkpoint(name)
    assert tree(tmp_path) == before


def test_links_in_a_checkpoint_go_and_what_they_point_at_stays(root: Path, tmp_path: Path) -> None:
    (root / "checkpoints" / NAME / "model.safetensors").symlink_to(tmp_path / "canary")
    (root / "checkpoints" / NAME / "folder").symlink_to(tmp_path)
    LocalArtifacts(root).remove_checkpoint(NAME)
    assert not (root / "checkpoints" / NAME).exists()
    assert (tmp_path / "canary").read_text() == "precious"


def test_what_nobody_put_into_a_checkpoint_is_not_removed_with_it(root: Path) -> None:
    file_in(root / "checkpoints" / NAME / "folder", "theirs")
    with pytest.raises(StorageError, match="could not be removed completely"):
        LocalArtifacts(root).remove_checkpoint(NAME)
    assert (root / "checkpoints" / NAME / "folder" / "theirs").exists()


def aged(file: Path, seconds: float) -> Path:
    then = file.stat().st_mtime - seconds
    os.utime(file, (then, then))
    return file


def test_litter_of_broken_uploads_is_found_and_what_is_dead_is_removed_and_nothing_else(
    root: Path, tmp_path: Path
) -> None:
    local = LocalArtifacts(root)
    aged(file_in(root / "checkpoints", ".artifact.uploading.abc"), 3700)
    file_in(root, ".artifact.uploading.fresh")  # perhaps another tool is writing it
    file_in(root / "checkpoints", "kept")
    (root / ".artifact.uploading.link").symlink_to(tmp_path / "canary")
    aged(file_in(tmp_path / "another run", ".artifact.uploading.abc"), 3700)
    (root / "linked").symlink_to(tmp_path / "another run")
    (root / ".artifact.uploading.folder").mkdir()
    before = tree(tmp_path)
    assert local.unfinished() == [".artifact.uploading.fresh", "checkpoints/.artifact.uploading.abc"]
    assert local.unfinished(3600) == ["checkpoints/.artifact.uploading.abc"]
    assert local.remove_unfinished() == 1
    assert before.keys() - tree(tmp_path).keys() == {"artifacts/checkpoints/.artifact.uploading.abc"}
    assert local.unfinished() == [".artifact.uploading.fresh"]


def test_what_somebody_began_to_stage_beside_the_artifacts_is_litter_too(root: Path, tmp_path: Path) -> None:
    staging = tmp_path / ".mltrain-staging"
    staging.mkdir()
    file_in(staging / f"{NAME}.0123abcd.tmp", "model.safetensors")
    file_in(staging / "notes", "model.safetensors")
    (staging / "step-000000002-a01.0123abcd.tmp").symlink_to(tmp_path)
    local = LocalArtifacts(root)
    assert local.unfinished() == [f"../.mltrain-staging/{NAME}.0123abcd.tmp"]
    assert local.remove_unfinished() == 1
    assert local.unfinished() == []
    assert sorted(path.name for path in staging.iterdir()) == ["notes", "step-000000002-a01.0123abcd.tmp"]


def test_checkpoints_behind_a_link_are_not_removed(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "another run" / "checkpoints"
    shutil.move(root / "checkpoints", tmp_path / "here")
    other.mkdir(parents=True)
    file_in(other / NAME, "manifest.json")
    (root / "checkpoints").symlink_to(other)
    before = tree(tmp_path)
    with pytest.raises(StorageError, match="nothing was removed"):
        LocalArtifacts(root).remove_checkpoint(NAME)
    assert tree(tmp_path) == before


def test_links_in_an_output_go_and_what_they_point_at_stays(root: Path, tmp_path: Path) -> None:
    output = root / "output" / "a01"
    file_in(output, "output.json")
    (output / "file").symlink_to(tmp_path / "canary")
    (output / "folder").symlink_to(tmp_path)
    LocalArtifacts(root).remove_output("a01")
    assert not output.exists()
    assert (tmp_path / "canary").read_text() == "precious"


def test_a_link_called_like_an_output_is_not_removed(root: Path, tmp_path: Path) -> None:
    file_in(tmp_path / "precious", "output.json")
    (root / "output").mkdir()
    (root / "output" / "a01").symlink_to(tmp_path / "precious")
    with pytest.raises(StorageError, match="not a folder"):
        LocalArtifacts(root).remove_output("a01")
    assert (tmp_path / "precious" / "output.json").exists()
