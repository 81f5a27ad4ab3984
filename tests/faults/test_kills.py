"""FAULTS A1 to A3: killed before every single call by which save, publish, prune and resume change anything.

The scheme is SQLite's: before the N-th call, for N = 1 until the process ends undisturbed, and after each the oracle.
A sample runs by default; ``MLTRAIN_SWEEP=full`` makes it every call, ``MLTRAIN_SEED`` chooses another sample.
"""

import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mltrain.checkpoint.manifest import Manifest
from mltrain.checkpoint.store import CheckpointStore
from mltrain.store.local import LocalArtifacts
from tests.faults import scenario
from tests.faults.calls import Call, Calls
from tests.support.equality import identical
from tests.support.forkserver import CALLS, ForkServer
from tests.support.places import Place, bucket, folder, server
from tests.support.runs import RUN_ID
from tests.support.servers import BucketServer, TrackingServer
from tests.support.workplace import Workplace

pytestmark = pytest.mark.faults

FULL = os.environ.get("MLTRAIN_SWEEP") == "full"
SEED = int(os.environ.get("MLTRAIN_SEED", "1"))
EPOCHS = 4


def chosen(count: int, most: int) -> list[int]:
    """All numbers up to ``count``, or a sample of them."""
    if FULL or count <= most:
        return list(range(1, count + 1))
    return sorted(random.Random(SEED).sample(range(1, count + 1), most))


@dataclass
class Bench:
    """Runs the scenario in new processes, one place a trial."""

    kind: str
    tmp: Path
    forks: ForkServer
    tracking: TrackingServer | None = None
    buckets: BucketServer | None = None
    trials: int = 0

    def fresh(self) -> "Trial":
        self.trials += 1
        name, home = f"{self.tmp.name}-{self.trials}", self.tmp / str(self.trials)
        home.mkdir()
        if self.tracking is not None:
            return Trial(self, home, server(self.tracking, f"{name}/artifacts"))
        if self.buckets is not None:
            return Trial(self, home, bucket(self.buckets, f"{name}/artifacts"))
        return Trial(self, home, folder(home / "artifacts"))


@dataclass
class Trial:
    bench: Bench
    home: Path
    place: Place
    attempts: int = 0
    said: str = ""

    def matters(self, call: Call) -> bool:
        """Whether a call changes staging, store or server, not output."""
        if call.target.startswith("socket:") or call.name in ("connect", "sendmmsg"):
            return True
        return call.target.startswith(str(self.home)) and not call.target.endswith((".out", ".err"))

    def run(self, epochs: int, fatal: int = 0) -> tuple[int, Calls]:
        self.attempts += 1
        calls = Calls(self.matters, fatal)
        environment = {**os.environ, CALLS: calls.socket, "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0"}
        if self.bench.tracking is not None:
            environment["MLFLOW_TRACKING_URI"] = self.bench.tracking.uri
        if self.bench.buckets is not None:
            environment |= self.bench.buckets.access
        words = [*("--module", "tests.faults.scenario", str(self.home), self.place.kind, self.place.uri)]
        words += [str(self.attempts), str(epochs)]
        out, err = (self.home / f"{self.attempts}.{name}" for name in ("out", "err"))
        code = self.bench.forks.start(words, self.home, environment, out, err).wait(120)
        calls.finish()
        self.said = out.read_text() + err.read_text()
        return code, calls

    @property
    def store(self) -> CheckpointStore:
        return CheckpointStore(RUN_ID, self.place.opened())

    def intact(self) -> list[Manifest]:
        """All that is committed, every byte of it looked at."""
        store, damaged = self.store, []
        manifests = store.survey(damaged=lambda identity, error: damaged.append(error)).manifests
        assert damaged == []
        assert [store.problems(manifest) for manifest in manifests] == [[]] * len(manifests), self.said
        return list(manifests)


@pytest.fixture(params=["folder", "server", "bucket"])
def bench(
    request: pytest.FixtureRequest, tmp_path: Path, fork_server: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    found = Bench(request.param, tmp_path, fork_server)
    if request.param == "server":
        found.tracking = request.getfixturevalue("tracking_server")
    if request.param == "bucket":
        found.buckets = request.getfixturevalue("bucket_server")
        for name, value in found.buckets.access.items():
            monkeypatch.setenv(name, value)
    yield found


def undisturbed(epochs: int) -> dict[str, object]:
    """The state after so many epochs, computed here."""
    state = scenario.started()
    for _ in range(epochs):
        state = scenario.trained(state)
    return state


def check(trial: Trial, committed_before: int) -> None:
    """Check the trial after a kill and after a resume."""
    manifests = trial.intact()
    newest = max((manifest.epoch for manifest in manifests), default=0)
    printed = [int(line.split()[1]) for line in trial.said.splitlines() if line.startswith("committed")]
    assert newest >= max([committed_before, *printed]), "what was committed is there"
    assert {manifest.epoch for manifest in manifests} >= scenario.kept(newest), "never fewer than promised"

    code, _ = trial.run(EPOCHS + 1)  # one more, so that there is a next prune wherever it died
    assert code == 0, trial.said
    manifests = trial.intact()
    assert {manifest.epoch for manifest in manifests} == scenario.kept(EPOCHS + 1)
    survey = trial.store.survey()
    half = [identity.name for identity in survey.uncommitted]
    assert half == [], "nothing half-removed after the next prune"
    assert identical(trial.store.load(survey.manifests[-1]), undisturbed(EPOCHS + 1)), "as if nothing had happened"
    artifacts = trial.place.opened()
    artifacts.remove_unfinished(untouched=0)  # as ``mltrain prune`` does once it is an hour old
    assert [path.name for path in trial.home.rglob("*.tmp")] + artifacts.unfinished() == []


def swept(bench: Bench, epochs_before: int, most: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Kill before every call after ``epochs_before`` undisturbed epochs."""

    def prepared() -> Trial:
        trial = bench.fresh()
        if epochs_before:
            code, _ = trial.run(epochs_before)
            assert code == 0, trial.said
        return trial

    trial = prepared()
    code, calls = trial.run(EPOCHS)
    assert code == 0, trial.said
    assert identical(trial.store.load(trial.intact()[-1]), undisturbed(EPOCHS))
    kinds, died_in, killed = Counter(call.name for call in calls.made), Counter[str](), 0
    number, last = 0, len(calls.made)
    for number in chosen(last, most):
        trial = prepared()
        code, calls = trial.run(EPOCHS, fatal=number)
        if calls.killed_before is None:  # what threads do side by side is not the same number of calls every time
            assert code == 0, trial.said
            continue
        assert code == -signal.SIGKILL
        died_in[calls.killed_before.name] += 1
        killed += 1
        try:
            check(trial, epochs_before)
        except AssertionError as error:
            raise AssertionError(f"killed before call {number}, {calls.killed_before}: {error}") from error
        shutil.rmtree(trial.home)
    while FULL:  # until it ends undisturbed
        number += 1
        trial = prepared()
        code, calls = trial.run(EPOCHS, fatal=number)
        if calls.killed_before is None:
            assert code == 0, trial.said
            break
        killed += 1
        died_in[calls.killed_before.name] += 1
        check(trial, epochs_before)
    assert killed >= min(most, last) / 2
    with capsys.disabled():
        what = "save, publish, prune" if not epochs_before else "resume, then save, publish, prune"
        print(f"\n{bench.kind}: {what}: {last} calls {dict(kinds)}; killed {killed} times, in {dict(died_in)}; 0 lost")


def test_killed_before_any_call_nothing_committed_is_lost(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    swept(bench, 0, 4, capsys)


def test_killed_before_any_call_of_a_resume_nothing_is_lost(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    swept(bench, 2, 2, capsys)


@pytest.mark.parametrize("where", ["on this machine", "on a server"])
def test_killed_before_any_call_of_mltrain_prune_the_next_prune_ends_it(
    where: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    fork_server: ForkServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if where == "on this machine":
        workplace = Workplace(tmp_path / "here", fork_server)
        root = workplace.folder / "mlruns"
    else:
        tracking: TrackingServer = request.getfixturevalue("tracking_server")
        workplace, root = Workplace(tmp_path / "here", fork_server, tracking.uri), tracking.folder / "artifacts"
    done = workplace.mltrain("train", "tiny.py", "epochs=5", "max_to_keep=9", "best_metric=none-such")
    assert done.code == 0, done.err
    artifacts, backup = root / "0" / done.run_id / "artifacts", tmp_path / "backup"
    shutil.copytree(artifacts, backup)
    names = sorted(folder.name for folder in (backup / "checkpoints").iterdir())
    store = CheckpointStore(done.run_id, LocalArtifacts(artifacts))

    def matters(call: Call) -> bool:
        return call.target.startswith((str(artifacts), "socket:")) or call.name in ("connect", "sendmmsg")

    def pruned(fatal: int = 0) -> Calls:
        shutil.rmtree(artifacts)
        shutil.copytree(backup, artifacts)
        calls = Calls(matters, fatal)
        ended = workplace.mltrain("prune", done.run_id, "--keep", "Latest(2)", "--yes", **{CALLS: calls.socket})
        calls.finish()
        assert ended.code == (0 if calls.killed_before is None else -signal.SIGKILL), ended.err
        return calls

    def left() -> list[str]:
        manifests = store.survey().manifests
        assert [store.problems(manifest) for manifest in manifests] == [[]] * len(manifests)
        return [manifest.name for manifest in manifests]

    made = pruned().made
    assert left() == names[-2:]
    killed = 0
    for number in chosen(len(made), 2):
        calls = pruned(number)
        killed += calls.killed_before is not None
        assert set(left()) >= set(names[-2:]), f"killed before call {number}, {calls.killed_before}"
        again = workplace.mltrain("prune", done.run_id, "--keep", "Latest(2)", "--yes")
        assert again.code == 0, again.err
        assert (left(), store.survey().uncommitted) == (names[-2:], ()), f"killed before call {number}"
    assert killed >= 1
    with capsys.disabled():
        kinds = Counter(call.name for call in made)
        print(
            f"\n{where}: mltrain prune: {len(made)} calls {dict(kinds)}; killed {killed} times; 0 lost, 0 half-removed"
        )
