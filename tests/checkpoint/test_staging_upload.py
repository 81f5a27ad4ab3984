"""A checkpoint is uploaded while it is staged; whatever becomes of that, the store gets what was hashed, the manifest last."""

import errno
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mltrain.checkpoint.codec import EncodedFile
from mltrain.checkpoint.manifest import Point
from mltrain.checkpoint.staging import BLOCK, StreamedUpload
from mltrain.errors import StorageError
from mltrain.store.artifacts import Send
from mltrain.store.remote import RemoteArtifacts
from tests.support.benches import Bench, steps
from tests.support.disks import refuse
from tests.support.equality import identical
from tests.support.places import FolderFiles, Place
from tests.support.runs import FolderRun, state_at
from tests.support.stored import Watched, again


class Taking(RemoteArtifacts):
    """A folder's store that takes contents from memory in blocks.

    Attributes:
        began: set when a first block has arrived.
        go_on: until it is set, no second block is taken.
        streamed: names of the files that arrived so.
        fails: names of files that are refused after their first block.
        loses: names of files of which the last byte is lost.
    """

    def __init__(self, root: Path) -> None:
        self.repository = Watched(root)
        super().__init__(self.repository)
        self._root = root
        self.began, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()
        self.streamed: list[str] = []
        self.fails: set[str] = set()
        self.loses: set[str] = set()

    def sender(self, folder: str) -> Send | None:
        def send(name: str, content: Iterable[memoryview]) -> None:
            arrived = b""
            for block in content:
                arrived += block
                self.began.set()
                assert self.go_on.wait(60)
                if name in self.fails:
                    raise ConnectionResetError("reset by peer")
            assert len(arrived) == len(content)  # type: ignore[arg-type]
            target = self._root / folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(arrived[:-1] if name in self.loses else arrived)
            self.streamed.append(name)

        return send


@pytest.fixture
def taking(tmp_path: Path) -> Iterator[tuple[Bench, Taking]]:
    root = tmp_path / "artifacts"
    root.mkdir()
    store = Taking(root)
    bench = Bench(FolderRun(tmp_path, place=Place("behind", lambda: store, FolderFiles(root), FolderFiles(tmp_path))))
    yield bench, store
    store.go_on.set()
    bench.settled()
    bench.committer.close()


FILES = {"model.safetensors", "state.json", "params.json"}


def test_all_files_arrive_while_they_are_staged_and_the_manifest_last(taking: tuple[Bench, Taking]) -> None:
    bench, store = taking
    for step in (1, 2):
        bench.save(step)
        assert bench.settled()
    assert sorted(store.streamed) == sorted([*FILES, *FILES])
    assert store.repository.done == ["manifest.json"] * 2
    assert bench.committed == [1, 2]
    for manifest in again(bench.store).manifests():
        assert identical(again(bench.store).load(manifest), state_at(manifest.step))


def test_a_slow_store_gets_the_state_of_the_boundary_and_holds_up_no_training(taking: tuple[Bench, Taking]) -> None:
    """The next snapshot takes the memory that was being sent: what is left comes from the staged copy."""
    bench, store = taking
    weights = torch.arange(float(BLOCK))
    store.go_on.clear()
    bench.put(1, {"model": {"w": weights}})
    assert store.began.wait(60)
    weights.neg_()
    bench.put(2, {"model": {"w": weights}})
    bench.committer.settle()
    assert steps(bench.store.staged()) == [1, 2]
    assert bench.committed == []
    store.go_on.set()
    assert bench.settled()
    first, second = again(bench.store).manifests()
    assert identical(again(bench.store).load(first), {"model": {"w": -weights}})
    assert identical(again(bench.store).load(second), {"model": {"w": weights}})
    assert sorted(store.streamed) == sorted(FILES), "the second had to wait for the first"


@pytest.mark.parametrize("name", sorted(FILES))
def test_what_does_not_arrive_is_uploaded_from_the_staged_copy(name: str, taking: tuple[Bench, Taking]) -> None:
    bench, store = taking
    store.fails = {name}
    bench.save(1)
    assert bench.settled()
    assert store.repository.done == [name, "manifest.json"]
    assert identical(again(bench.store).load(again(bench.store).manifests()[0]), state_at(1))


def test_what_arrives_short_is_noticed_and_sent_again(taking: tuple[Bench, Taking]) -> None:
    bench, store = taking
    store.loses = {"model.safetensors"}
    bench.save(1)
    assert bench.settled()
    assert {*store.repository.done} == {*FILES, "manifest.json"}
    assert store.repository.done[-1] == "manifest.json"
    assert identical(again(bench.store).load(again(bench.store).manifests()[0]), state_at(1))


def test_a_checkpoint_that_the_disk_refuses_is_not_committed_from_memory(
    taking: tuple[Bench, Taking], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, _ = taking
    with monkeypatch.context() as patch:
        refuse(patch, "write", errno.ENOSPC)
        bench.save(1)
        bench.settled()
        assert bench.committer.idle
    assert "Free some space" in str(bench.committer.failure)
    assert again(bench.store).manifests() == []
    bench.save(2)
    assert bench.settled()
    assert bench.committed == steps(again(bench.store).manifests()) == [2]


def test_a_checkpoint_that_is_staged_at_the_second_try_is_committed(
    taking: tuple[Bench, Taking], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, _ = taking
    failed = refuse(monkeypatch, "fsync", errno.EIO, once=True)
    bench.save(1)
    assert bench.settled()
    assert failed
    assert identical(again(bench.store).load(again(bench.store).manifests()[0]), state_at(1))


def test_an_attempt_that_is_overtaken_sends_nothing(
    taking: tuple[Bench, Taking], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, store = taking
    bench.run.overtaken = True
    bench.save(1)
    bench.settled()
    assert not store.began.is_set()
    bench.run.overtaken = False

    def overtaken(step: int) -> list[Point]:
        bench.run.overtaken = True
        return []

    monkeypatch.setattr(bench.run, "pending", overtaken)  # asked for before the first byte is staged
    bench.save(2)
    bench.settled()
    assert again(bench.store).manifests() == []


def test_a_newer_checkpoint_is_not_sent_before_one_that_waits(taking: tuple[Bench, Taking]) -> None:
    bench, store = taking
    store.fails = {"model.safetensors"}
    store.repository.fails_at = 1
    bench.save(1)
    assert not bench.settled()
    assert steps(bench.store.staged()) == [1]
    store.streamed.clear()
    bench.save(2)
    assert bench.settled()
    assert store.streamed == []
    assert bench.committed == [2]


def test_a_committer_that_is_closed_sends_nothing_more(taking: tuple[Bench, Taking]) -> None:
    bench, store = taking
    store.go_on.clear()
    bench.put(1, {"model": {"w": torch.arange(float(BLOCK))}})
    assert store.began.wait(60)
    bench.committer.settle()
    bench.committer.close()
    store.go_on.set()
    assert bench.committer._stream.sent() <= FILES - {"model.safetensors"}
    assert steps(bench.store.staged()) == [1]


def sent(upload: Callable[[Send], StreamedUpload], files: dict[str, Any]) -> tuple[StreamedUpload, dict[str, bytes]]:
    arrived: dict[str, bytes] = {}

    def send(name: str, content: Iterable[memoryview]) -> None:
        arrived[name] = b"".join(bytes(block) for block in content)

    made = upload(send)
    assert made.begin([EncodedFile(name, pieces, sum(map(len, pieces))) for name, pieces in files.items()])
    return made, arrived


def test_blocks_are_as_large_as_can_be_whatever_the_pieces_are() -> None:
    upload = StreamedUpload(lambda name, content: None, block_size=4)
    pieces = [b"ab", b"", memoryview(b"cdefghij"), b"k"]
    blocks = [bytes(block) for block in upload.blocks(EncodedFile("file", pieces, 11))]
    assert blocks == [b"abcd", b"efgh", b"ijk"]


def test_an_empty_file_is_left_to_the_later_upload() -> None:
    upload, arrived = sent(StreamedUpload, {"empty": [], "full": [b"content"]})
    assert upload.sent() == {"full"}
    assert arrived == {"full": b"content"}


def test_nothing_is_sent_where_the_store_takes_only_files_and_nothing_twice(tmp_path: Path) -> None:
    file = EncodedFile.of("file", b"content")
    assert not StreamedUpload().begin([file])
    assert StreamedUpload().sent() == frozenset()
    upload, _ = sent(StreamedUpload, {"file": [b"content"]})
    assert not upload.begin([file])
    given_up = StreamedUpload(lambda name, content: None)
    given_up.abandon()
    assert not given_up.begin([file])
    with pytest.raises(StorageError, match="cancelled"):
        list(given_up.blocks(file))
