"""Only the training draws from global random generators."""

import os
import random
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.support.forkserver import ForkServer
from tests.support.servers import BucketServer, TrackingServer
from tests.support.workplace import Done, Workplace

pytestmark = pytest.mark.faults

HERE = Path(__file__).parent
TRIALS = int(os.environ.get("MLTRAIN_TRIALS", "4"))
SEED = int(os.environ.get("MLTRAIN_SEED", "0"))


def in_bucket(workplace: Workplace, store: BucketServer) -> Workplace:
    workplace.environment |= store.access
    return workplace


@pytest.fixture(params=["folder", "server", "bucket"])
def stored(request: pytest.FixtureRequest, tmp_path: Path, fork_server: ForkServer) -> Workplace:
    """A machine with artifacts in a folder, server or bucket."""
    tracking: TrackingServer | None = None
    if request.param == "server":
        tracking = request.getfixturevalue("tracking_server")
    workplace = Workplace(tmp_path / "here", fork_server, tracking.uri if tracking is not None else None)
    shutil.copy(HERE / "drawing_project.py", workplace.folder)
    location = None
    if request.param == "bucket":
        in_bucket(workplace, request.getfixturevalue("bucket_server"))
        location = f"s3://{BucketServer.bucket}/{tmp_path.name}"
    MlflowClient(workplace.uri).create_experiment(tmp_path.name, artifact_location=location)
    return workplace


class Watcher:
    """Runs commands, and gathers the draws outside of the training."""

    def __init__(self, workplace: Workplace) -> None:
        self._workplace = workplace
        self._report = workplace.folder / "draws"

    def __call__(self, *words: str, code: int = 0, **environment: str) -> Done:
        done = self._workplace.mltrain(
            "--module", "tests.faults.draws", str(self._report), *words, timeout=300, **environment
        )
        assert done.code == code, done.err
        return done

    @property
    def draws(self) -> list[str]:
        return self._report.read_text(encoding="utf-8").splitlines() if self._report.exists() else []


def test_only_the_training_draws(stored: Workplace, tmp_path: Path) -> None:
    mltrain = Watcher(stored)
    run_id = mltrain("train", "drawing_project.py", f"experiment={tmp_path.name}", "epochs=4").run_id
    mltrain("train", "--resume-run", run_id, "epochs=8")
    assert mltrain.draws == []
    for words in (
        ("runs",),
        ("compare", run_id, run_id),
        ("checkpoints", run_id),
        ("inspect", run_id),
        ("verify", run_id),
        ("pin", run_id, "--checkpoint", "latest"),
        ("unpin", run_id, "--checkpoint", "latest"),
        ("prune", run_id, "--keep", "Latest(1)", "--yes"),
        ("evaluate", run_id),
        ("pull", run_id, "--to", str(tmp_path / "pulled")),
        ("import", str(tmp_path / "pulled" / "model.safetensors"), "drawing_project.py", "--experiment", tmp_path.name),
        ("sync",),
        ("reap",),
        ("doctor",),
    ):
        mltrain(*words)
        assert mltrain.draws == [], words


def test_only_the_trainings_of_a_pipeline_draw(workplace: Workplace) -> None:
    shutil.copy(HERE.parent / "support" / "tiny_pipeline.py", workplace.folder)
    mltrain = Watcher(workplace)
    mltrain("pipeline", "tiny_pipeline.py", "--mode", "scratch")
    mltrain("pipeline", "tiny_pipeline.py", "--mode", "skip")
    assert mltrain.draws == []


def test_a_draw_in_another_thread_is_found(workplace: Workplace) -> None:
    shutil.copy(HERE / "drawing_project.py", workplace.folder)
    mltrain = Watcher(workplace)
    mltrain("train", "drawing_project.py", "epochs=1", DRAW_ELSEWHERE="1")
    assert len(mltrain.draws) == 4
    assert all(line.startswith("a thread of somebody else's: ") for line in mltrain.draws)


def test_a_training_in_a_bucket_is_reproduced_through_kills(
    tmp_path: Path, fork_server: ForkServer, bucket_server: BucketServer
) -> None:
    """``MLTRAIN_TRIALS`` resumes, each on a new machine. ``MLTRAIN_SEED`` chooses the moments of the kills."""
    chance = random.Random(SEED)
    here = in_bucket(Workplace(tmp_path / "here", fork_server), bucket_server)
    location = f"s3://{bucket_server.bucket}/{tmp_path.name}"
    MlflowClient(here.uri).create_experiment("bucket", artifact_location=location)
    machines = [here, *(in_bucket(here.elsewhere(f"machine-{n}"), bucket_server) for n in range(TRIALS))]
    for machine in machines:
        shutil.copy(HERE / "drawing_project.py", machine.folder)
    words = ("train", "drawing_project.py", "experiment=bucket", f"epochs={2 * TRIALS + 2}")
    undisturbed = here.mltrain(*words, timeout=600)
    assert undisturbed.code == 0, undisturbed.err
    killed = here.mltrain(*words, timeout=300, KILL_AT=str(chance.randrange(5, 12)))
    run_id = killed.run_id
    for number, machine in enumerate(machines[1:], 1):
        kill_at = chance.randrange(5, 12) if number < TRIALS else 0
        done = machine.mltrain("train", "--resume-run", run_id, timeout=600, KILL_AT=str(kill_at))
        assert done.code in ((0,) if number == TRIALS else (0, -9)), done.err
    assert here.points(run_id) == here.points(undisturbed.run_id)
