"""The checkpoints of one run in its artifact store, on this machine and behind MLflow's interface to another."""

import hashlib
import io
import json
import logging
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mltrain.checkpoint.manifest import CheckpointId, Manifest
from mltrain.checkpoint.publishing import publish, stage
from mltrain.checkpoint.reader import first_usable
from mltrain.checkpoint.staging import Spool
from mltrain.checkpoint.store import CheckpointStore
from mltrain.errors import DamagedCheckpoint, NoCheckpoint, StorageError
from mltrain.store import retry
from mltrain.store.remote import RemoteArtifacts
from tests.support.places import Files, Place, behind, folder
from tests.support.runs import RUN_ID, manifest_of, snapshot_of, state_at, store_in
from tests.support.values import identical

EXTRA = {"params.json": b'{"lr": 0.1}', "history.csv": b"epoch\n1\n"}


@pytest.fixture
def store(place: Place, tmp_path: Path) -> CheckpointStore:
    return store_in(tmp_path, place)


def again(store: CheckpointStore) -> CheckpointStore:
    """Return the same checkpoints as another process sees them, without the staged copies of this one."""
    return CheckpointStore(RUN_ID, store.artifacts)


def committed(store: CheckpointStore, step: int, attempt: int = 1, **more: Any) -> Manifest:
    manifest = stage(store, snapshot_of(state_at(step)), manifest_of(step, attempt, **more), EXTRA)
    publish(store, manifest)
    return manifest


def folder_of(tmp_path: Path, manifest: Manifest) -> Path:
    return tmp_path / "artifacts" / "checkpoints" / manifest.name


def path_of(manifest: Manifest, name: str) -> str:
    return f"checkpoints/{manifest.name}/{name}"


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


def change(files: Files, path: str, changed: Callable[[bytes], bytes]) -> None:
    files.write(path, changed(files.read(path)))


def replace_by_folder(files: Files, path: str) -> None:
    files.drop(path)
    files.write(f"{path}/inside", b"x")


def replace_by_pickle(files: Files, path: str) -> None:
    pickled = io.BytesIO()
    torch.save({"a": 1}, pickled)
    files.write(path, pickled.getvalue())


DAMAGES: dict[str, Callable[[Files, str], object]] = {
    "truncated": lambda files, path: change(files, path, lambda content: content[:-1]),
    "extended": lambda files, path: change(files, path, lambda content: content + b"\0"),
    "emptied": lambda files, path: change(files, path, lambda content: b""),
    "zeroed": lambda files, path: change(files, path, lambda content: bytes(len(content))),
    "reversed": lambda files, path: change(files, path, lambda content: content[::-1]),
    "missing": lambda files, path: files.drop(path),
    "a folder": replace_by_folder,
    "a pickle": replace_by_pickle,
}


@pytest.mark.parametrize("place", ["on this machine", "elsewhere"], indirect=True)
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "params.json", "history.csv"])
def test_damage_of_a_file_is_found_before_anything_is_deserialised(
    name: str, damage: Callable[[Files, str], object], store: CheckpointStore, place: Place
) -> None:
    manifest = committed(store, 3)
    damage(place.files, path_of(manifest, name))
    other = again(store)
    with pytest.raises(DamagedCheckpoint, match=name):
        other.fetch(manifest)
    assert [problem.file for problem in other.problems(manifest)] == [name]
    if name in ("model.safetensors", "state.json"):
        with pytest.raises(DamagedCheckpoint, match=name):
            other.load(manifest)


def test_damage_is_found_on_every_kind_of_store(store: CheckpointStore, place: Place) -> None:
    manifest = committed(store, 3)
    path = path_of(manifest, "model.safetensors")
    whole = place.files.read(path)
    for damage in DAMAGES.values():
        damage(place.files, path)
        with pytest.raises(DamagedCheckpoint, match=r"model\.safetensors"):
            again(store).load(manifest)
        if f"{path}/inside" in place.files.all():
            place.files.drop(f"{path}/inside" if place.kind == "bucket" else path)
        place.files.write(path, whole)
    assert identical(again(store).load(manifest), state_at(3))


def test_a_single_flipped_bit_in_any_file_is_found_before_anything_is_deserialised(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    manifest = committed(store, 3)
    chance = random.Random(1)
    flips = 0
    for file in sorted(folder_of(tmp_path, manifest).iterdir()):
        content = file.read_bytes()
        stride = 20 if file.name == "manifest.json" else 1  # test_manifest.py flips all of its bits
        for place in range(0, len(content), stride):
            changed = bytearray(content)
            changed[place] ^= 1 << chance.randrange(8)
            file.write_bytes(changed)
            other = again(store)
            with pytest.raises(DamagedCheckpoint):
                if file.name == "manifest.json":
                    other.manifest(manifest.id)
                else:
                    other.fetch(manifest, only=lambda name, wanted=file.name: name == wanted)
            flips += 1
        file.write_bytes(content)
    assert flips > 400
    assert again(store).problems(manifest) == []


def test_two_files_swapped_are_found(store: CheckpointStore, place: Place) -> None:
    one, other = committed(store, 3), committed(store, 4)
    here, there = (path_of(manifest, "model.safetensors") for manifest in (one, other))
    kept = place.files.read(here)
    place.files.write(here, place.files.read(there))
    place.files.write(there, kept)
    assert {p.file for m in (one, other) for p in again(store).problems(m)} == {"model.safetensors"}


def test_the_one_before_a_damaged_one_is_used_and_that_is_said(store: CheckpointStore, place: Place) -> None:
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


def test_a_link_in_place_of_a_file_is_not_followed(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    manifest = committed(store, 3)
    file = folder_of(tmp_path, manifest) / "model.safetensors"
    shutil.move(file, tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DamagedCheckpoint, match="cannot be read"):
        again(store).load(manifest)
    (folder_of(tmp_path, manifest) / "manifest.json").unlink()
    (folder_of(tmp_path, manifest) / "manifest.json").symlink_to("/etc/passwd")
    with pytest.raises(DamagedCheckpoint, match="cannot be read"):
        again(store).manifest(manifest.id)


def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    manifest = committed(store, 3)
    for name in ("model.safetensors", "manifest.json"):
        file = folder_of(tmp_path, manifest) / name
        file.unlink()
        os.mkfifo(file)
    with pytest.raises(DamagedCheckpoint):
        again(store).load(manifest)
    with pytest.raises(DamagedCheckpoint):
        again(store).manifest(manifest.id)


def test_descriptors_are_given_back_whatever_was_found(tmp_path: Path) -> None:
    import psutil

    store = store_in(tmp_path)
    manifest = committed(store, 3)
    file = folder_of(tmp_path, manifest) / "model.safetensors"
    file.unlink()
    file.mkdir()
    before = psutil.Process().num_fds()
    for _ in range(20):
        again(store).problems(manifest)
    assert psutil.Process().num_fds() == before


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


def test_a_store_opened_to_be_read_cannot_be_written(tmp_path: Path) -> None:
    store = again(store_in(tmp_path))
    with pytest.raises(StorageError, match="read only"):
        stage(store, snapshot_of(state_at(1)), manifest_of(1), {})


def test_large_weights_are_split_and_come_back(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    manifest = stage(store, snapshot_of(state_at(3)), manifest_of(3), EXTRA, largest_file=16)
    assert sorted(name for name in manifest.files if name.startswith("model")) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    assert identical(store.load(manifest), state_at(3))


class Watched(LocalArtifactRepository):
    """MLflow's repository of a folder; notes what is done, and fails or loses bytes when told to."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.done: list[str] = []
        self.fails_at = 0
        self.loses = 0

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        self.done.append(Path(local_file).name)
        if len(self.done) == self.fails_at:
            raise PermissionError("403")
        super().log_artifact(local_file, artifact_path)
        if self.loses:
            target = Path(self.artifact_dir) / (artifact_path or "") / Path(local_file).name
            target.write_bytes(target.read_bytes()[: -self.loses])


def elsewhere(tmp_path: Path) -> tuple[CheckpointStore, Watched]:
    repository = Watched(tmp_path / "artifacts")
    (tmp_path / "artifacts").mkdir()
    return CheckpointStore(RUN_ID, RemoteArtifacts(repository), Spool(tmp_path / "spool")), repository


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
    with pytest.raises(StorageError, match="bytes here"):
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


@pytest.mark.parametrize("kind", [folder, behind])
def test_an_answer_larger_than_what_was_committed_is_not_taken_into_memory(
    kind: Callable[[Path], Place], tmp_path: Path
) -> None:
    store = store_in(tmp_path, kind(tmp_path / "artifacts"))
    manifest = committed(store, 3)
    with (folder_of(tmp_path, manifest) / "model.safetensors").open("ab") as file:
        file.truncate(2**33)  # a hole: eight gigabytes that take no room on the disk
    with pytest.raises(DamagedCheckpoint, match="bytes"):
        again(store).fetch(manifest)


def test_a_store_that_does_not_answer_is_not_a_damaged_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent(LocalArtifactRepository):
        def list_artifacts(self, path: str | None = None) -> Any:
            raise ConnectionError("nobody there")

    monkeypatch.setattr(retry, "RETRY_SECONDS", 0.05)
    store = CheckpointStore(RUN_ID, RemoteArtifacts(Silent(str(tmp_path))))
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
