"""FAULTS D6 with real networks: the cardiac pipeline killed inside a stage or between two ends with the same models.

By default one kill of the smallest pipeline there is. ``MLTRAIN_SWEEP=full``: in ``quick``, inside every stage and between every
two.
"""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mltrain.run import stage_outputs as outputs
from mltrain.run.checkpoints import open_checkpoints
from mltrain.store.local import LocalArtifacts
from mltrain.tracking.client import TrackingClient
from tests.support.equality import identical
from tests.support.forkserver import ForkServer
from tests.support.waiting import eventually
from tests.support.workplace import Done, Workplace

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

CARDIAC = Path(__file__).parents[2] / "projects" / "cardiac"
STAGES = ["preparation", "motion", "registration", "infarct"]
FULL = os.environ.get("MLTRAIN_SWEEP") == "full"
SIZE = [] if FULL else ["preparation.cases=4", "preparation.frames=4", "epochs=3", "motion.passes=1"]
BETWEEN = [(stage, "") for stage in STAGES[1:]]
INSIDE = [("preparation", "follow it with"), *((stage, "epoch    2/") for stage in STAGES[1:])]
"""The stage that begins or runs, and what it says when it is killed; nothing: as soon as it is decided to run it."""


@dataclass(frozen=True)
class Cardiac:
    workplace: Workplace

    def words(self) -> list[str | Path]:
        return ["pipeline", CARDIAC, "--mode", "resume", "--preset", "quick", "device=cpu", "num_threads=1", *SIZE]

    def resume(self) -> Done:
        return self.workplace.mltrain(*self.words(), timeout=600)

    def killed(self, stage: str, moment: str) -> Done:
        """Start, and kill the process at a stage's moment."""
        started = self.workplace.start(*self.words())
        number = STAGES.index(stage) + 1

        def is_reached() -> bool:
            shown = started.out.read_text() if started.out.exists() else ""
            _, found, said = shown.partition(f"[{number}/4] {stage}: run")
            return bool(found) and moment in said

        eventually(lambda: is_reached() or started.child.ended.is_set(), "the moment", 600)
        if not started.child.ended.is_set():
            started.child.kill(signal.SIGKILL)
        return started.wait(30)

    def runs(self) -> dict[str, list[str]]:
        """The runs of every stage."""
        found: dict[str, list[str]] = {stage: [] for stage in STAGES}
        for run in MlflowClient(self.workplace.uri).search_runs(["0"]):
            if "mltrain.stage" in run.data.tags:
                found[run.data.tags["mltrain.stage"]].append(run.info.run_id)
        return found

    def same_as(self, other: "Cardiac") -> bool:
        """Whether both pipelines prepared and trained the same bits."""
        mine, theirs = ({stage: ids[0] for stage, ids in one.runs().items()} for one in (self, other))
        digests = [
            outputs.made(
                runs["preparation"], LocalArtifacts(Path(client.get_run(runs["preparation"]).info.artifact_uri))
            ).digest
            for runs, client in ((mine, self.client), (theirs, other.client))
        ]
        return digests[0] == digests[1] and all(
            identical(self.parts(mine[stage]), other.parts(theirs[stage])) for stage in STAGES[1:]
        )

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.workplace.uri)

    def parts(self, run_id: str) -> object:
        return open_checkpoints(run_id, TrackingClient(self.workplace.uri, self.client)).load("latest")[1]


@pytest.fixture(scope="module")
def undisturbed_cardiac(tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer) -> Cardiac:
    cardiac = Cardiac(Workplace(tmp_path_factory.mktemp("cardiac") / "here", fork_server))
    done = cardiac.resume()
    assert done.code == 0, done.err
    return cardiac


@pytest.mark.parametrize(("stage", "moment"), [*INSIDE, *BETWEEN] if FULL else INSIDE[1:2])
def test_a_kill_changes_none_of_the_models(
    stage: str, moment: str, workplace: Workplace, undisturbed_cardiac: Cardiac
) -> None:
    cardiac = Cardiac(workplace)
    killed = cardiac.killed(stage, moment)
    assert killed.code == -signal.SIGKILL, killed.err
    begun = [name for name, ids in cardiac.runs().items() if ids]
    # The kill arrives milliseconds after the decision was read: the stage's run may have been created by then.
    assert begun in (STAGES[: STAGES.index(stage) + 1], STAGES[: STAGES.index(stage) + bool(moment)])
    done = cardiac.resume()
    assert done.code == 0, done.err
    for number, name in enumerate(STAGES, 1):
        line = next(line for line in done.out.splitlines() if line.startswith(f"[{number}/4] {name}: "))
        print(line)
        before = STAGES.index(name) < STAGES.index(stage)
        assert (f"{name}: skip" in line) == before
        assert (f"{name}: resume (dead" in line) == (name == stage and stage in begun)
    assert all(len(ids) == 1 for ids in cardiac.runs().values())
    assert cardiac.same_as(undisturbed_cardiac)
