"""The commit in the background: the training waits for a copy into memory and a busy local disk, and for nothing else."""

import copy
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from torch import nn

from mltrain.checkpoint.manifest import Point
from mltrain.errors import UnsupportedValue
from mltrain.store.artifacts import DeferredArtifacts
from tests.support.benches import Bench, Gate, steps
from tests.support.equality import identical
from tests.support.places import behind
from tests.support.runs import FolderRun, manifest_of, state_at


def beyond(folder: Path, repository: Any) -> FolderRun:
    return FolderRun(folder, place=behind(folder / "artifacts", lambda _: repository))


@pytest.fixture
def far(tmp_path: Path) -> Iterator[tuple[Bench, Gate]]:
    gate = Gate(tmp_path / "artifacts")
    bench = Bench(beyond(tmp_path, gate))
    yield bench, gate
    gate.open.set()
    bench.settled()
    bench.committer.close()


def test_what_is_submitted_is_committed_in_order(here: Bench) -> None:
    for step in range(1, 6):
        here.save(step)
    assert here.settled()
    assert here.committed == [1, 2, 3, 4, 5]
    assert steps(here.store.manifests()) == [1, 2, 3, 4, 5]
    assert here.committer.newest_committed == here.committer.newest_staged == here.store.manifests()[-1]
    assert here.committer.idle


def test_a_state_may_change_as_soon_as_it_is_submitted(here: Bench) -> None:
    weights = torch.zeros(1000)
    for step in range(1, 6):
        weights.fill_(step)
        here.put(step, {"model": {"w": weights}})
        weights.fill_(-1)
    assert here.settled()
    for manifest in here.store.manifests():
        assert identical(here.store.load(manifest), {"model": {"w": torch.full((1000,), float(manifest.step))}})


def test_the_manifest_is_completed_when_the_state_is_written(here: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    makers: list[str] = []

    def pending(step: int) -> list[Point]:
        makers.append(threading.current_thread().name)
        return []

    monkeypatch.setattr(here.run, "pending", pending)
    here.save(1)
    assert here.settled()
    assert all(name.startswith("mltrain-disk") for name in makers)
    assert len(makers) == 1


def test_a_state_that_cannot_be_stored_is_refused_where_it_is_submitted(here: Bench) -> None:
    with pytest.raises(UnsupportedValue, match=r"^optimizer is a builtins\.object"):
        here.save(1, optimizer=object())
    here.save(2)
    assert here.settled()
    assert here.committed == [2]


def test_training_goes_on_while_the_artifact_store_does_not_answer(far: tuple[Bench, Gate]) -> None:
    bench, gate = far
    for step in range(1, 6):
        bench.save(step)
    assert gate.reached.wait(60)
    assert not bench.committer.wait(0.01)
    assert bench.committed == []
    assert bench.committer.newest_committed is None
    assert not bench.committer.idle
    gate.open.set()
    assert bench.settled()
    assert bench.committed == [1, 2, 3, 4, 5]


def test_everything_is_complete_on_this_disk_while_it_waits_for_the_store(far: tuple[Bench, Gate]) -> None:
    bench, gate = far
    bench.save(1)
    bench.save(2)
    assert gate.reached.wait(60)
    bench.save(3)
    bench.save(4)  # returns when the third is on the disk
    assert steps(bench.store.staged())[:3] == [1, 2, 3]


def test_what_could_not_be_uploaded_stays_staged_until_a_later_one_is_committed(
    far: tuple[Bench, Gate], caplog: pytest.LogCaptureFixture
) -> None:
    bench, gate = far
    gate.open.set()
    gate.refuses = "step-000000002"
    bench.save(1)
    bench.save(2)
    with caplog.at_level(logging.ERROR):
        assert not bench.settled(), "not all is committed"
    assert "step-000000002-a01 is complete on this disk" in caplog.text
    assert (bench.committer.idle, bench.committed) == (True, [1])
    assert bench.committer.newest_staged is not None
    assert (bench.committer.newest_staged.step, bench.committer.failure) == (2, None)
    assert steps(bench.store.staged()) == [1, 2]
    bench.save(3)
    assert bench.settled()
    assert steps(bench.store.staged()) == [3]
    assert bench.committed == [1, 3]


def test_a_run_that_waits_to_be_created_is_no_error_at_each_checkpoint(
    far: tuple[Bench, Gate], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, gate = far
    gate.open.set()
    target = bench.run.artifacts
    monkeypatch.setattr(bench.store, "artifacts", DeferredArtifacts())
    with caplog.at_level(logging.WARNING):
        bench.save(1)
        bench.save(2)
        assert not bench.settled(), "there is no store yet"
    assert caplog.text == "", "that there is no run was logged when the training began without it"
    monkeypatch.setattr(bench.store, "artifacts", target)
    bench.save(3)
    assert bench.settled()
    assert bench.committed[-1] == 3


def test_an_attempt_that_is_overtaken_while_it_writes_makes_nothing_visible(
    here: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The committer asks for the points between copy and write."""

    def overtaken(step: int) -> list[Point]:
        here.run.overtaken = step == 2
        return []

    monkeypatch.setattr(here.run, "pending", overtaken)
    here.save(1)
    here.save(2)
    assert here.settled()
    assert here.committed == [1]
    assert steps(here.store.manifests()) == [1]
    assert manifest_of(2).id in here.committer.lost


def test_an_attempt_that_is_overtaken_while_it_uploads_commits_nothing(
    far: tuple[Bench, Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest makes a checkpoint visible. So the committer asks for the lease right before it writes that."""
    bench, gate = far
    upload_all = bench.store.artifacts.upload_all

    def then_overtaken(files: Any, folder: str, sent: Any = ()) -> None:
        upload_all(files, folder, sent)
        bench.run.overtaken = True

    gate.open.set()
    bench.save(1)
    assert bench.settled()
    monkeypatch.setattr(bench.store.artifacts, "upload_all", then_overtaken)
    bench.save(2)
    assert not bench.settled()
    assert bench.committed == [1]
    assert steps(bench.store.manifests()) == [1]
    assert steps(bench.store.staged()) == [1, 2]  # the new holder decides about what was staged


def test_what_is_declared_of_a_checkpoint_is_recorded_after_its_commit(
    here: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(here.run, "write_json", lambda name, content: here.committed.append(-1))
    here.save(1)
    here.committer.declare(manifest_of(1), {"val/loss": 0.5}, best=True)
    here.save(2)
    assert here.settled()
    assert here.committed == [1, -1, 2]


def test_a_second_checkpoint_of_a_step_is_reported_and_the_first_stays(here: Bench) -> None:
    here.save(1)
    here.put(1, state_at(9))
    here.settled()
    assert "exists already" in str(here.committer.failure)
    (manifest,) = here.store.manifests()
    assert identical(here.store.load(manifest), state_at(1))


def test_an_upload_is_tried_again_while_the_store_is_away_for_a_moment(tmp_path: Path) -> None:
    class Stumbling(LocalArtifactRepository):
        stumbles = 0

        def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
            self.stumbles += 1
            if self.stumbles % 2:
                raise ConnectionResetError("reset by peer")
            super().log_artifact(local_file, artifact_path)

    (tmp_path / "artifacts").mkdir()
    repository = Stumbling(str(tmp_path / "artifacts"))
    bench = Bench(beyond(tmp_path, repository))
    bench.save(1)
    assert bench.settled()
    bench.committer.close()
    assert bench.committed == [1]
    assert repository.stumbles >= 6


def test_what_is_written_is_the_state_of_the_boundary_whatever_the_next_steps_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net, critic = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)), nn.Linear(2, 1)
    optimizers = [torch.optim.AdamW(net.parameters(), lr=0.1), torch.optim.Adam(critic.parameters(), lr=0.1)]

    def step() -> None:
        loss = critic(net(torch.randn(16, 6))).square().mean()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    def state() -> dict[str, Any]:
        named = {f"optimizer{number}": optimizer.state_dict() for number, optimizer in enumerate(optimizers)}
        return {"model": net.state_dict(), "critic": critic.state_dict(), **named, "rng": torch.get_rng_state()}

    blocked, write = threading.Event(), os.write

    def waits(descriptor: int, content: bytes) -> int:
        assert blocked.wait(60)
        return write(descriptor, content)

    monkeypatch.setattr(os, "write", waits)
    bench = Bench(FolderRun(tmp_path))
    step()
    expected = copy.deepcopy(state())
    bench.put(1, state())
    for _ in range(3):
        step()  # forward changes batch norm and the generator; backward and the optimizers all else, while nothing is written
    assert bench.store.manifests() == []
    blocked.set()
    assert bench.settled()
    (manifest,) = bench.store.manifests()
    loaded = bench.store.load(manifest)
    assert not identical(state()["model"], expected["model"])
    assert identical(
        loaded, {**expected, "model": OrderedDict(expected["model"]), "critic": OrderedDict(expected["critic"])}
    )
    bench.committer.close()
