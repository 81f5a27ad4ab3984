"""The checkpoints of a run, on local or remote storage."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mltrain.checkpoint.manifest import CheckpointId, Manifest
from mltrain.checkpoint.reader import first_usable
from mltrain.checkpoint.store import CheckpointStore
from mltrain.errors import DamagedCheckpoint, NoCheckpoint, StorageError
from mltrain.store.remote import RemoteArtifacts
from tests.support.equality import identical
from tests.support.places import Place
from tests.support.runs import RUN_ID, manifest_of, state_at, store_in
from tests.support.stored import (
    DAMAGES,
    EXTRA,
    again,
    committed,
    folder_of,
    path_of,
)


def test_a_committed_checkpoint_loads_anywhere(store: CheckpointStore) -> None:
    manifest = committed(store, 3)
    other = again(store)
    assert [found.to_json() for found in other.manifests()] == [manifest.to_json()]
    assert identical(other.load(other.manifests()[0]), state_at(3))


def test_the_manifest_tells_of_every_file_and_tensor(store: CheckpointStore, place: Place) -> None:
    manifest = committed(store, 3)
    files = {path.removeprefix(path_of(manifest, "")): content for path, content in place.files.all().items()}
    assert Manifest.from_json(files.pop("manifest.json")) == manifest
    assert {name: (entry.size, entry.sha256) for name, entry in manifest.files.items()} == {
        name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in files.items()
    }
    assert manifest.tensors["model.weight"].shape == (4,)
    assert files["params.json"] == EXTRA["params.json"]


def test_checkpoints_are_listed_oldest_first_by_attempt_and_step(store: CheckpointStore) -> None:
    for step, attempt in ((30, 1), (10, 2), (20, 1), (5, 3)):
        committed(store, step, attempt)
    names = [(manifest.id.attempt, manifest.step) for manifest in again(store).manifests()]
    assert names == [(1, 20), (1, 30), (2, 10), (3, 5)]
    assert [identity.order for identity in store.names()] == names[::-1]


def test_nothing_has_been_saved_at_first(store: CheckpointStore) -> None:
    assert (store.names(), store.manifests(), store.staged(), list(store.survey().uncommitted)) == ([], [], [], [])
    assert store.manifest(CheckpointId(attempt=1, step=1)) is None
    with pytest.raises(NoCheckpoint, match="None of the 0"):
        first_usable(store, [], store.load)


def test_without_a_manifest_there_is_no_checkpoint(store: CheckpointStore, place: Place) -> None:
    manifest = committed(store, 3)
    place.files.drop(path_of(manifest, "manifest.json"))
    other = again(store)
    assert other.manifests() == []
    assert other.manifest(manifest.id) is None
    assert list(other.survey().uncommitted) == [manifest.id]


def test_strange_folders_and_links_among_the_checkpoints_are_left_out(
    store: CheckpointStore, place: Place, tmp_path: Path
) -> None:
    manifest = committed(store, 3)
    for name in ("notes", "step-1-a1", "step-000000001-a01.0123abcd.tmp", "..step-000000001-a01"):
        place.files.write(f"checkpoints/{name}/manifest.json", b"{}")
    place.files.write("checkpoints/step-000000009-a01", b"a file")
    if store.artifacts.local_root is not None:  # a server resolves its links itself
        link = folder_of(tmp_path, manifest).with_name("step-000000008-a01")
        link.symlink_to(folder_of(tmp_path, manifest))
    assert [found.name for found in again(store).manifests()] == [manifest.name]


def test_a_manifest_of_another_checkpoint_or_run_is_damage(store: CheckpointStore, place: Place) -> None:
    manifest = committed(store, 3)
    for path, content in place.files.all().items():
        place.files.write(path.replace(manifest.name, "step-000000004-a01"), content)
    found: list[CheckpointId] = []
    assert [m.step for m in again(store).manifests(damaged=lambda identity, error: found.append(identity))] == [3]
    assert [identity.step for identity in found] == [4]
    other = CheckpointStore("f" * 32, store.artifacts)
    with pytest.raises(DamagedCheckpoint, match="moved or swapped"):
        other.manifest(manifest.id)


def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_is_used(store: CheckpointStore, place: Place) -> None:
    manifests = [committed(store, step) for step in (1, 2, 3)]
    for manifest in manifests[1:]:
        DAMAGES["zeroed"](place.files, path_of(manifest, "model.safetensors"))
    said: list[str] = []
    other = again(store)
    found, parts = first_usable(other, manifests[::-1], other.load, lambda identity, error: said.append(identity.name))
    assert (found.step, parts["epoch"]) == (1, 1)
    assert said == [manifests[2].name, manifests[1].name]


def test_when_none_is_usable_the_next_command_is_named(store: CheckpointStore, place: Place) -> None:
    manifest = committed(store, 3)
    DAMAGES["missing"](place.files, path_of(manifest, "state.json"))
    with pytest.raises(NoCheckpoint, match=f"mltrain verify {RUN_ID}"):
        first_usable(store, [manifest], again(store).load)


def test_what_is_removed_is_gone_with_its_folder(store: CheckpointStore, place: Place) -> None:
    manifests = [committed(store, step) for step in (1, 2)]
    store.remove(manifests[0].id)
    assert not [path for path in place.files.all() if manifests[0].name in path]
    assert store.names() == [manifests[1].id]
    assert [manifest.step for manifest in store.manifests()] == [2]
    store.remove(manifests[0].id)  # one that is gone already is no error


def test_a_removal_that_was_cut_short_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_in(tmp_path)
    manifest = committed(store, 3)
    count = len(list(folder_of(tmp_path, manifest).iterdir()))
    backup = tmp_path / "backup"
    shutil.copytree(folder_of(tmp_path, manifest), backup)
    unlink = os.unlink
    for number in range(1, count + 1):
        calls = 0

        def failing(path: Any, *rest: Any, fatal: int = number, **named: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == fatal:
                raise OSError(5, "Input/output error")
            unlink(path, *rest, **named)

        monkeypatch.setattr(os, "unlink", failing)
        with pytest.raises(StorageError):
            store.remove(manifest.id)
        monkeypatch.setattr(os, "unlink", unlink)
        left = again(store)
        usable = [found for found in left.manifests() if not left.problems(found)]
        assert (len(usable) == 1) == (number == 1), "a manifest only with all its data"
        assert [found.name for found in left.manifests()] == [found.name for found in usable]
        shutil.rmtree(folder_of(tmp_path, manifest))
        shutil.copytree(backup, folder_of(tmp_path, manifest))


def test_a_store_that_does_not_answer_is_not_a_damaged_checkpoint(tmp_path: Path) -> None:
    class Silent(LocalArtifactRepository):
        def list_artifacts(self, path: str | None = None) -> Any:
            raise ConnectionError("nobody there")

    store = CheckpointStore(RUN_ID, RemoteArtifacts(Silent(str(tmp_path)), retry_seconds=0.05))
    with pytest.raises(StorageError, match="nobody there"):
        store.manifests()
    with pytest.raises(StorageError, match="nobody there"):
        store.load(manifest_of(1, size=5))


def test_ten_thousand_leftovers_do_not_hide_the_newest(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    manifest = committed(store, 5, attempt=2)
    checkpoints = tmp_path / "artifacts" / "checkpoints"
    for step in range(10_000):
        os.mkdir(checkpoints / f"step-{step:09d}-a01")  # noqa: PTH102 - quicker
    assert again(store).names()[0] == manifest.id
    assert [found.name for found in again(store).manifests()] == [manifest.name]


def test_of_thousands_of_checkpoints_all_are_listed_and_the_newest_is_found(place: Place) -> None:
    count = {"folder": 10_000, "behind": 1500, "server": 300, "bucket": 1100}[place.kind]  # S3 lists 1,000 a page
    content = manifest_of(1).to_json()
    for step in range(1, count + 1):
        place.files.write(f"checkpoints/step-{step:09d}-a01/manifest.json", content)
    for attempt, step in ((1, count // 2), (2, 7)):
        manifest = manifest_of(step, attempt)
        place.files.write(path_of(manifest, "manifest.json"), manifest.to_json())
    store = CheckpointStore(RUN_ID, place.opened())
    names = store.names()
    assert (len(names), names[0].name) == (count + 1, "step-000000007-a02")
    if place.kind in ("folder", "behind"):  # elsewhere every manifest takes two requests
        damaged: list[str] = []
        survey = store.survey(damaged=lambda identity, error: damaged.append(identity.name))
        assert [m.id.order for m in survey.manifests] == [(1, 1), (1, count // 2), (2, 7)]
        assert len(damaged) == count - 2, "what was copied under another name is no checkpoint"


def test_the_tensors_of_the_manifest_are_json_for_others(tmp_path: Path) -> None:
    manifest = committed(store_in(tmp_path), 3)
    raw = json.loads((folder_of(tmp_path, manifest) / "manifest.json").read_bytes())
    assert raw["tensors"]["model.bias"] == {
        **{"file": "model.safetensors", "dtype": "float32", "shape": [2]},
        **{"global_shape": None, "offsets": None},
    }


def test_a_checkpoint_that_somebody_else_removed_is_not_remembered(store: CheckpointStore, place: Place) -> None:
    manifests = [committed(store, step) for step in (1, 2, 3)]
    assert [manifest.step for manifest in store.manifests()] == [1, 2, 3]
    place.files.drop(path_of(manifests[0], "manifest.json"))  # a removal that was cut short: its data are there
    for path in [path for path in place.files.all() if manifests[1].name in path]:
        place.files.drop(path)
    assert [manifest.step for manifest in store.manifests()] == [3]
    assert store.manifest(manifests[0].id) is None


def test_a_manifest_that_was_damaged_meanwhile_is_not_remembered(store: CheckpointStore, place: Place) -> None:
    manifest = committed(store, 3)
    assert len(store.manifests()) == 1
    DAMAGES["truncated"](place.files, path_of(manifest, "manifest.json"))
    found: list[CheckpointId] = []
    assert store.manifests(damaged=lambda identity, error: found.append(identity)) == []
    assert found == [manifest.id]
