"""The artifacts of a run that does not exist yet are empty and take nothing."""

from pathlib import Path

import pytest

from mltrain.errors import StorageError
from mltrain.store.deferred import DeferredArtifacts
from mltrain.store.local import LocalArtifacts
from tests.support.folders import file_in


def test_before_the_run_exists_nothing_is_there_and_nothing_is_taken(tmp_path: Path) -> None:
    artifacts = DeferredArtifacts()
    assert artifacts.entries() == []
    assert artifacts.local_root is None
    with pytest.raises(FileNotFoundError):
        artifacts.read("a.json", 10)
    with pytest.raises(StorageError, match="has not answered yet"):
        artifacts.upload(file_in(tmp_path))


def test_once_it_exists_everything_is_passed_on(tmp_path: Path) -> None:
    artifacts = DeferredArtifacts()
    artifacts.target = LocalArtifacts(tmp_path / "store")
    artifacts.upload(file_in(tmp_path), "folder")
    assert [entry.name for entry in artifacts.entries("folder")] == ["a.json"]
    assert artifacts.read("folder/a.json", 10) == b"content"
