"""Files of a checkpoint are verified before anything is deserialised."""

import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from mltrain.checkpoint.manifest import Manifest
from mltrain.checkpoint.store import CheckpointStore
from mltrain.checkpoint.verified_files import VerifiedFiles
from mltrain.errors import DamagedCheckpoint
from mltrain.store.artifacts import Received, in_parallel, unwatched
from mltrain.store.local import LocalArtifacts
from tests.support.equality import identical
from tests.support.places import Files, Place, behind, folder
from tests.support.runs import state_at, store_in
from tests.support.stored import DAMAGES, again, committed, folder_of, path_of


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


@pytest.mark.parametrize("error", [BrokenPipeError("no reader"), ValueError("no number"), EOFError()])
def test_an_error_of_the_callers_function_is_raised_and_is_no_damage(
    error: Exception, store: CheckpointStore, place: Place
) -> None:
    manifest = committed(store, 3)
    for reader in (store, again(store)):  # the first one reads the staged copy of a remote store
        calls: list[int] = []

        def fails(manifest: Manifest, count: int, calls: list[int] = calls) -> None:
            calls.append(count)
            raise error

        reader.watch(fails)
        with pytest.raises(type(error)) as raised:
            reader.fetch(manifest, only="model.safetensors".__eq__)
        assert raised.value is error
        assert len(calls) == 1
        with pytest.raises(type(error)):
            reader.fetch(manifest)  # its files in several threads
        reader.watch(lambda manifest, count: None)
        assert reader.problems(manifest) == []


class InThreads(LocalArtifacts):
    """Counts a file in several threads; rereads after an error."""

    def read(self, path: str, most: int, received: Received = unwatched) -> bytearray:
        with suppress(Exception):
            in_parallel(received, [1] * 8)
        return super().read(path, most)


def test_an_error_of_the_callers_function_ends_a_read_in_several_threads(tmp_path: Path) -> None:
    manifest = committed(store_in(tmp_path), 3)
    files = VerifiedFiles(InThreads(tmp_path / "artifacts"), None)

    def fails(manifest: Manifest, count: int) -> None:
        raise BrokenPipeError("no reader")

    files.arrived = fails
    with pytest.raises(BrokenPipeError, match="no reader"):
        files.read(manifest, "state.json", manifest.files["state.json"])


def test_a_file_whose_staged_copy_is_damaged_counts_once(tmp_path: Path) -> None:
    store = store_in(tmp_path, behind(tmp_path / "artifacts"))
    manifest, counts = committed(store, 3), []
    staged = store.local_folder(manifest.id) / "model.safetensors"
    staged.write_bytes(bytes(staged.stat().st_size))
    store.watch(lambda manifest, count: counts.append(count))
    store.fetch(manifest, only="model.safetensors".__eq__)
    assert sum(counts) == manifest.files["model.safetensors"].size


def test_two_files_swapped_are_found(store: CheckpointStore, place: Place) -> None:
    one, other = committed(store, 3), committed(store, 4)
    here, there = (path_of(manifest, "model.safetensors") for manifest in (one, other))
    kept = place.files.read(here)
    place.files.write(here, place.files.read(there))
    place.files.write(there, kept)
    assert {p.file for m in (one, other) for p in again(store).problems(m)} == {"model.safetensors"}


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
