"""Retention watched from outside while a training commits and prunes."""

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from mltrain.checkpoint import retention
from mltrain.checkpoint.manifest import Manifest
from mltrain.checkpoint.policies import parse
from mltrain.checkpoint.retention import Context, Policy
from mltrain.checkpoint.store import CheckpointStore
from mltrain.errors import MltrainError
from mltrain.store.opening import open_artifacts
from tests.support.forkserver import ForkServer
from tests.support.runs import manifest_of
from tests.support.servers import TrackingServer
from tests.support.workplace import Workplace

pytestmark = pytest.mark.faults

FULL = os.environ.get("MLTRAIN_SWEEP") == "full"


@pytest.fixture
def remote(tracking_server: TrackingServer, tmp_path: Path, fork_server: ForkServer) -> Workplace:
    return Workplace(tmp_path / "here", fork_server, tracking_server.uri)


@dataclass
class Look:
    """What an observer saw: the newest at its first look, what was valid at one of two, the newest listed afterwards."""

    before: int
    valid: set[int]
    after: int = 0


@dataclass
class Observer:
    """Polls the checkpoints of a run all along; a listing is no snapshot, so it looks twice."""

    uri: str
    run_id: str
    pause: float
    looks: list[Look] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)

    def __enter__(self) -> "Observer":
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._poll)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _poll(self) -> None:
        artifacts = open_artifacts(MlflowClient(self.uri).get_run(self.run_id).info.artifact_uri, self.uri)
        while not self._ended.is_set():
            # What is away by now went because of a commit no newer than the newest in this list: a step is an epoch here.
            listed = max((name.step for name in CheckpointStore(self.run_id, artifacts).names()), default=0)
            if self.looks:
                self.looks[-1].after = listed
            first, second = self._valid(artifacts), self._valid(artifacts)
            self.looks.append(Look(max(first, default=0), first | second))
            self._ended.wait(self.pause)

    def _valid(self, artifacts: Any) -> set[int]:
        store = CheckpointStore(self.run_id, artifacts)
        try:
            manifests = store.survey(damaged=lambda identity, error: None).manifests
            return {manifest.epoch for manifest in manifests if not store.problems(manifest)}
        except MltrainError as error:
            self.troubles.append(str(error))
            return set()


def judged(client: MlflowClient, run_id: str, epochs: int) -> list[Manifest]:
    """Return a manifest of every epoch with its recorded metrics."""
    metrics = {
        key: {point.step: point.value for point in client.get_metric_history(run_id, key)}
        for key in ("val/loss", "val/accuracy", "epoch")
    }
    steps = {int(epoch): step for step, epoch in metrics.pop("epoch").items()}
    return [
        manifest_of(steps[epoch], epoch=epoch, metrics={key: points[steps[epoch]] for key, points in metrics.items()})
        for epoch in range(1, epochs + 1)
    ]


def promised(manifests: list[Manifest], policy: Policy) -> set[int]:
    """The epochs that stay after the last commit."""
    context = Context(manifests[-1].created)
    keep = retention.protected(manifests, context, resumed_from=None, in_use=())
    return {m.epoch for m in manifests} - {r.manifest.epoch for r in retention.plan(manifests, policy, context, keep)}


@pytest.mark.parametrize("where", ["on this machine", "on a server"])
def test_an_observer_never_sees_fewer_than_promised_and_at_the_end_exactly_those(
    where: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    workplace: Workplace = request.getfixturevalue("workplace" if where == "on this machine" else "remote")
    epochs, every = (200, 50) if FULL else (16, 5)
    keep = f"Latest(3) | Best(2, 'val/accuracy', 'max') | EveryNth(epochs={every})"
    started = workplace.start("train", "tiny.py", f"epochs={epochs}", "items=8", "sleep=0.02", f"retention={keep}")
    run_id = started.run_id
    # Looking at every byte keeps a server with one worker busy: it has to serve the training as well.
    with Observer(workplace.uri, run_id, 0.02 if where == "on this machine" else 1.0) as observer:
        done = started.wait(1500 if FULL else 240)
    assert done.code == 0, done.err

    history = judged(MlflowClient(workplace.uri), run_id, epochs)
    policy = parse(keep)
    at = [set[int]()] + [promised(history[:epoch], policy) for epoch in range(1, epochs + 1)]
    removals = 0
    for look in observer.looks[:-1]:
        due = set.intersection(*at[look.before : look.after + 1])
        assert due <= look.valid, f"epochs {sorted(due - look.valid)} were away between {look.before} and {look.after}"
        removals += look.after > look.before
    assert observer.troubles == []
    assert removals >= 3, "it looked while they came and went"
    rows = workplace.mltrain("checkpoints", run_id, "--json").json
    assert {row["epoch"] for row in rows} == at[epochs]
    assert workplace.mltrain("verify", run_id, "--json").json["uncommitted"] == []
    with capsys.disabled():
        print(f"\n{where}: {epochs} epochs, {len(observer.looks)} looks, {len(rows)} checkpoints left, 0 too few")
