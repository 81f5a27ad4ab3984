"""The halves of a commit: staged on this disk, uploaded with the manifest last."""

import logging
from pathlib import Path

import pytest

from mltrain.checkpoint.publishing import publish, stage
from mltrain.errors import StorageError
from tests.support.equality import identical
from tests.support.runs import manifest_of, snapshot_of, state_at, store_in
from tests.support.stored import EXTRA, again, committed, elsewhere


def test_a_store_opened_to_be_read_cannot_be_written(tmp_path: Path) -> None:
    store = again(store_in(tmp_path))
    with pytest.raises(StorageError, match="read-only"):
        stage(store, snapshot_of(state_at(1)), manifest_of(1), {})


def test_large_weights_are_split_and_come_back(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    manifest = stage(store, snapshot_of(state_at(3)), manifest_of(3), EXTRA, largest_file=16)
    assert sorted(name for name in manifest.files if name.startswith("model")) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    assert identical(store.load(manifest), state_at(3))


def test_an_upload_ends_with_the_manifest(tmp_path: Path) -> None:
    store, repository = elsewhere(tmp_path)
    manifest = committed(store, 3)
    assert sorted(repository.done[:-1]) == sorted(manifest.files)
    assert repository.done[-1] == "manifest.json"


@pytest.mark.parametrize("fails_at", range(1, 6))
def test_an_upload_that_fails_anywhere_is_no_checkpoint_and_can_be_repeated(fails_at: int, tmp_path: Path) -> None:
    store, repository = elsewhere(tmp_path)
    repository.fails_at = fails_at
    manifest = stage(store, snapshot_of(state_at(3)), manifest_of(3), EXTRA)
    assert len(manifest.files) == 4
    with pytest.raises(StorageError):
        publish(store, manifest)
    assert again(store).manifests() == []
    assert store.staged() == [manifest]
    assert identical(store.load(manifest), state_at(3)), "the staged copy serves meanwhile"
    publish(store, manifest)
    assert identical(again(store).load(manifest), state_at(3))


def test_an_upload_that_arrives_short_is_noticed(tmp_path: Path) -> None:
    store, repository = elsewhere(tmp_path)
    repository.loses = 1
    manifest = stage(store, snapshot_of(state_at(3)), manifest_of(3), EXTRA)
    with pytest.raises(StorageError, match="bytes in the artifact store"):
        publish(store, manifest)
    assert again(store).manifests() == []


def test_the_staged_copy_stays_until_a_later_one_is_committed(tmp_path: Path) -> None:
    store, _ = elsewhere(tmp_path)
    first = committed(store, 1)
    assert [manifest.step for manifest in store.staged()] == [1]
    second = stage(store, snapshot_of(state_at(2)), manifest_of(2), EXTRA)
    assert [manifest.step for manifest in store.staged()] == [1, 2]
    publish(store, second)
    assert [manifest.step for manifest in store.staged()] == [2]
    assert [manifest.step for manifest in store.manifests()] == [first.step, 2]


def test_a_damaged_staged_copy_is_left_aside_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, _ = elsewhere(tmp_path)
    manifest = stage(store, snapshot_of(state_at(1)), manifest_of(1), EXTRA)
    file = tmp_path / "spool" / manifest.name / "manifest.json"
    file.write_bytes(file.read_bytes()[:-10])
    with caplog.at_level(logging.WARNING):
        assert store.staged() == []
    assert manifest.name in caplog.text


def test_a_damaged_staged_copy_does_not_hide_the_intact_one_in_the_store(tmp_path: Path) -> None:
    store, _ = elsewhere(tmp_path)
    manifest = committed(store, 1)
    file = tmp_path / "spool" / manifest.name / "model.safetensors"
    file.write_bytes(bytes(file.stat().st_size))
    assert identical(store.load(manifest), state_at(1))
