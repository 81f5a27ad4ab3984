"""Each rank uploads its files; rank 0 waits for them."""

import shutil
from pathlib import Path

import pytest

from mltrain.checkpoint.manifest import CheckpointId, FileEntry, Manifest, now
from mltrain.checkpoint.shards import Part
from mltrain.distributed.uploads import PeerUploads, Upload, Uploads
from mltrain.errors import StorageError
from mltrain.store.opening import Address
from tests.support.waiting import eventually


class Notes:
    """What ranks leave for each other, in this process: what :class:`Uploads` and :class:`PeerUploads` ask of a world."""

    rank, size, seconds = 1, 2, 60.0

    def __init__(self) -> None:
        self.notes: dict[str, str] = {}

    def note(self, key: str, text: str) -> None:
        self.notes[key] = text

    def noted(self, key: str) -> str | None:
        return self.notes.get(key)


def stage(folder: Path) -> None:
    """Stage what rank 1 has of a checkpoint: a part of one file."""
    folder.mkdir(parents=True)
    (folder / "state-r00001.safetensors").write_bytes(b"pieces")
    files = {"state-r00001.safetensors": FileEntry(size=6, sha256="0" * 64)}
    part = Part(rank=1, weights=None, files=files, pieces={})
    (folder / "part-r00001.json").write_text(part.model_dump_json())


def test_uploads_are_tried_again_until_they_arrive_or_are_needed_no_more(tmp_path: Path) -> None:
    notes, store = Notes(), tmp_path / "store"
    overtaken: set[int] = set()
    uploads = Uploads(notes, lambda artifacts, ordinal: ordinal in overtaken, lambda staging, uri: None)
    peer_uploads = PeerUploads(notes)
    store.write_text("no folder, so the store refuses")

    def add(step: int) -> Manifest:
        identity = CheckpointId(attempt=1, step=step)
        manifest = Manifest(
            run_id="r", id=identity, kind="step", epoch=0, parent=None, parts=(), files={}, created=now()
        )
        folder = tmp_path / "staging" / manifest.name
        stage(folder)
        assert not peer_uploads.expects(manifest)
        peer_uploads.add(manifest, str(step))
        assert peer_uploads.expects(manifest)
        uploads.add(Upload(Address(str(store), "sqlite://"), folder, manifest, "part-r00001.json", str(step)))
        return manifest

    def refused(manifest: Manifest) -> bool:
        return notes.noted(f"{manifest.step}/1") is not None

    first, second = add(1), add(2)
    eventually(lambda: refused(first) and refused(second), "the refusal of both")
    for manifest in (first, second):
        with pytest.raises(StorageError, match="Rank 1 could not upload its files: "):
            peer_uploads.wait(manifest)
    shutil.rmtree(tmp_path / "staging" / first.name)  # rank 0 needs it no more
    store.unlink()
    eventually(lambda: notes.noted("2/1") == "done", "the upload")
    peer_uploads.wait(second)
    assert [file.name for file in sorted((store / "checkpoints").rglob("*-r*"))] == [
        "part-r00001.json",
        "state-r00001.safetensors",
    ]
    overtaken.add(1)
    late = add(3)
    eventually(lambda: refused(late), "the refusal")
    with pytest.raises(StorageError, match="A later attempt of run r has begun; this process does not publish"):
        peer_uploads.wait(late)
    assert not (store / "checkpoints" / late.name).exists()
    uploads.close(60)  # at once: nothing waits
    never = add(4)
    peer_uploads.stop()
    with pytest.raises(StorageError, match="Rank 1 has not uploaded its files of step-000000004-a01"):
        peer_uploads.wait(never)
