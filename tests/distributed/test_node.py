"""The staged copy of one node, without a process group."""

from pathlib import Path

import pytest

from mltrain.checkpoint.manifest import FILE_NAME, CheckpointId, Manifest, now
from mltrain.checkpoint.staging import Spool
from mltrain.checkpoint.store import CheckpointStore
from mltrain.distributed.node import Destination, NodeCopy
from mltrain.store.artifacts import DeferredArtifacts
from mltrain.store.local import LocalArtifacts
from mltrain.store.opening import Address, open_artifacts
from tests.support.places import behind

EARLIER, NAME = CheckpointId(attempt=1, step=3), CheckpointId(attempt=1, step=5)
DRAWN = f"{NAME.name}.0123abcd.tmp"


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "staging")


def manifest(epoch: int = 0) -> Manifest:
    return Manifest(run_id="r", id=NAME, kind="step", epoch=epoch, parent=None, parts=(), files={}, created=now())


def test_ranks_of_a_node_share_a_folder_and_the_first_completes_it(spool: Spool) -> None:
    first, second = NodeCopy(spool, DRAWN, []), NodeCopy(spool, DRAWN, [])
    assert first.folder == second.folder == spool.root / DRAWN
    (second.folder / "part-r00001.json").write_bytes(b"1")
    second.complete(manifest())
    assert spool.complete() == []
    second.discard()
    assert first.folder.is_dir()
    first.complete(manifest())
    assert spool.complete() == [second.folder] == [first.folder]
    assert {file.name for file in first.folder.iterdir()} == {FILE_NAME, "part-r00001.json"}


def test_what_rank_0_does_not_need_any_more_is_removed_and_nothing_else(spool: Spool) -> None:
    for name in (EARLIER.name, "step-000000004-a01", f"{EARLIER.name}.00000000.tmp", "other"):
        (spool.root / name).mkdir()
        (spool.root / name / FILE_NAME).write_bytes(b"{}")
    copy = NodeCopy(spool, DRAWN, [EARLIER.name])
    assert {folder.name for folder in spool.root.iterdir()} == {EARLIER.name, DRAWN, "other"}
    copy.discard()
    assert {folder.name for folder in spool.root.iterdir()} == {EARLIER.name, "other"}


def test_a_try_that_another_node_could_not_complete_is_replaced(spool: Spool) -> None:
    NodeCopy(spool, f"{NAME.name}.00000000.tmp", []).complete(manifest())
    again = NodeCopy(spool, DRAWN, [NAME.name])
    again.complete(manifest(epoch=7))
    (staged,) = spool.complete()
    assert Manifest.from_json((staged / FILE_NAME).read_bytes()).epoch == 7


def test_other_ranks_learn_of_a_store_what_they_can_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLTRAIN_HOME", str(tmp_path / "home"))
    spool = Spool(tmp_path / "home" / "0123" / "r" / "staging")
    folder = Destination.of(CheckpointStore("r", LocalArtifacts(tmp_path), spool))
    assert folder == Destination(str(tmp_path))
    remote = open_artifacts("mlflow-artifacts:/0/r/artifacts", "http://user:secret@localhost:5000")
    found = Destination.of(CheckpointStore("r", DeferredArtifacts(remote), spool))
    address = Address("mlflow-artifacts:/0/r/artifacts", "http://user:secret@localhost:5000")
    assert found == Destination(None, address, "0123/r/staging")
    assert "secret" not in repr(found)
    monkeypatch.setenv("MLTRAIN_HOME", str(tmp_path / "of another node"))
    assert found.here == tmp_path / "of another node" / "0123" / "r" / "staging"
    for unknown in (DeferredArtifacts(), behind(tmp_path / "somewhere").opened()):
        assert Destination.of(CheckpointStore("r", unknown, spool)) is None
