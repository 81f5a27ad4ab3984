"""The wanted run is found unchanged, and opened as requested."""

import logging
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

import mltrain
from mltrain.commands.train import run_training
from mltrain.commands.train_request import Request
from mltrain.commands.wanted_run import WantedRun, continued
from mltrain.config import Config
from mltrain.errors import TrackingError, UsageError
from mltrain.ownership.launcher import Launcher
from mltrain.project import Project
from mltrain.tracking.client import TrackingClient, connect
from mltrain.tracking.tags import LAUNCHER_OF_TAG, RUN_KEY_TAG
from tests.support import tiny
from tests.support.trainings_of_tiny import TINY
from tests.support.unchanged import Unchanged
from tests.support.workplace import Workplace

KEY = "nightly"


def test_a_new_run_knows_where_it_comes_from(server: TrackingClient) -> None:
    request = Request(fork_run="f" * 32, tags={"team": "vision"}, preset="quick", overrides={"lr": 0.1})
    wanted = WantedRun(request, server, None)
    assert wanted.known("another") is None
    run = wanted.open("projects/tiny.py", Config.load(overrides={"run_name": "of the source"}))
    run.close("FINISHED", "done", 20.0)
    recorded = MlflowClient(server.uri).get_run(run.id)
    assert recorded.info.run_name.endswith(" lr=0.1 quick tiny"), "and not that of the source"
    origin = {"mlflow.parentRunId": "f" * 32, "mltrain.forked_from": "f" * 32, "team": "vision"}
    assert origin.items() <= recorded.data.tags.items()


@pytest.mark.parametrize(("experiment", "warns"), [("another", True), ("Default", False), (None, False)])
def test_the_run_of_a_launcher_is_adopted_in_the_experiment_where_it_is(
    experiment: str | None, warns: bool, server: TrackingClient, caplog: pytest.LogCaptureFixture
) -> None:
    client = MlflowClient(server.uri)
    run_id = client.create_run("0").info.run_id
    wanted = WantedRun(Request(), server, Launcher(run_id, None))
    with caplog.at_level(logging.WARNING):
        assert wanted.known(experiment) is None
    assert ("experiment=another is not used" in caplog.text) == warns
    assert client.get_run(run_id).data.tags.keys() <= {"mlflow.runName"}, "nothing was changed"
    run = wanted.open("tiny", Config.load(overrides={"run_name": "mine"}))
    run.close("FINISHED", "done", 20.0)
    assert run.id == run_id
    assert client.get_run(run_id).info.run_name == "mine"


def test_a_resumed_run_is_found_and_opened_as_its_next_attempt(server: TrackingClient) -> None:
    first = WantedRun(Request(), server, None).open("tiny", Config.load())
    first.close("KILLED", "stopped", 20.0)
    wanted = WantedRun(Request(resume_run=first.id), server, None)
    found = wanted.known(None)
    assert found is not None
    assert found.info.run_id == first.id
    run = wanted.open("tiny", Config.load())
    assert (run.id, run.ordinal) == (first.id, 2)
    run.close("FINISHED", "done", 20.0)


@pytest.fixture
def client(store: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{store / 'mlflow.db'}")


def keyed(key: str = KEY, project: Project = TINY, **more: Any) -> Request:
    overrides = {"epochs": 2, **more.pop("overrides", {})}
    return Request(project=project, run_key=key, overrides=overrides, **more)


def test_the_same_command_continues_and_then_finds_the_training_complete(
    store: Path,
    client: MlflowClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stopped = run_training(keyed(overrides={"signal_at": 8}))
    assert stopped.exit_code == 75
    done = mltrain.train(TINY, run_key=KEY, epochs=2, num_threads=2)  # another machine may have other threads
    assert (done.run_id, done.exit_code) == (stopped.run_id, 0)
    run = client.get_run(done.run_id)
    assert (run.data.tags[RUN_KEY_TAG], run.data.params[RUN_KEY_TAG]) == (KEY, KEY)
    assert f"\nmltrain evaluate {done.run_id}\n" in run.data.tags["mlflow.note.content"]  # the task has no report
    assert [(point.step, point.value) for point in client.get_metric_history(done.run_id, "epoch")] == [(6, 1), (12, 2)]

    monkeypatch.setenv("MLTRAIN_HOME", str(tmp_path / "unused"))
    before = client.get_run(done.run_id).to_dictionary()
    complete = run_training(keyed())
    assert (complete.run_id, complete.exit_code) == (done.run_id, 0)
    assert "nothing is left to train" in complete.why
    assert complete.newest is not None and complete.newest.step == 12
    assert complete.metrics["val/loss"] == done.metrics["val/loss"]
    assert client.get_run(done.run_id).to_dictionary() == before

    other = Project("another", tiny.Config, tiny.build, Path(tiny.__file__))
    refused: list[tuple[Request, str]] = [
        (
            keyed(project=other),
            f"belongs to run {done.run_id}, which trains another project. Expected 'tiny', got 'another'",
        ),
        (
            keyed(overrides={"lr": 0.5, "epochs": 3}),
            r"Expected epochs=2, lr=0.01, got epochs=3, lr=0.5\. Try: another --run-key",
        ),
        (keyed(overrides={"seed": 1}), f"--resume-run {done.run_id} seed=1"),
        (keyed(resume_from="best"), "would take the run back each time"),
        (keyed(resume_run=done.run_id), "Expected one of the two"),
        (keyed("it's"), "is not a run key"),
        (keyed("auto"), "run_key=auto found no job"),
    ]
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SKYPILOT_TASK_ID", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    for request, message in refused:
        with Unchanged(store, tmp_path / "unused", UsageError):
            try:
                run_training(request)
            except UsageError as error:
                assert re.search(message, str(error)), error
                raise

    client.delete_run(done.run_id)
    monkeypatch.setenv("SLURM_JOB_ID", "71")
    anew = run_training(keyed(overrides={"epochs": 1}))
    assert anew.run_id != done.run_id
    of_job = {run_training(keyed("auto", overrides={"epochs": 1})).run_id for _ in range(2)}
    assert len(of_job) == 1
    assert anew.run_id not in of_job
    assert client.search_runs(["0"], f"tags.`{RUN_KEY_TAG}` = 'slurm-71'")


def test_a_run_that_was_killed_before_it_recorded_anything_is_trained(client: MlflowClient) -> None:
    empty = client.create_run("0", tags={RUN_KEY_TAG: "early"}).info.run_id
    done = run_training(keyed("early"))
    assert (done.run_id, done.exit_code) == (empty, 0)
    assert client.get_run(empty).data.params["epochs"] == "2"
    assert run_training(keyed("early")).run_id == empty


def test_a_fork_with_a_key_is_made_once(trained: tuple[Path, str], client: MlflowClient) -> None:
    runs = [run_training(keyed("fork", fork_run=trained[1], overrides={"signal_at": count})) for count in (8, 0)]
    assert [run.exit_code for run in runs] == [75, 0]
    assert runs[0].run_id == runs[1].run_id != trained[1]
    assert client.get_run(runs[0].run_id).data.tags["mltrain.forked_from"].startswith(trained[1])


def test_mlflow_run_with_a_key_adopts_its_run_once_and_hides_it_afterwards(
    client: MlflowClient,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launched = [client.create_run("0", tags={"mlflow.project.entryPoint": "main"}).info.run_id for _ in range(3)]
    done = []
    for run_id, signal_at in zip(launched, (8, 0, 0), strict=True):
        monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
        done.append(run_training(keyed("launched", overrides={"signal_at": signal_at})))
    assert [outcome.exit_code for outcome in done] == [75, 0, 0]
    assert {outcome.run_id for outcome in done} == {launched[0]}
    for run_id in launched[1:]:
        assert client.get_run(run_id).data.tags[LAUNCHER_OF_TAG] == launched[0]


def test_without_an_answer_of_the_server_nobody_knows_which_run_has_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLTRAIN_HOME", str(tmp_path / "home"))
    with pytest.raises(TrackingError, match="without --run-key"):
        continued(keyed(), connect(retry_seconds=0.0), None)
    assert not (tmp_path / "home").exists()


JOBS = {
    "torchrun": {"TORCHELASTIC_RUN_ID": "nightly"},
    "slurm": {"SLURM_JOB_ID": "71"},
    "skypilot": {"SKYPILOT_TASK_ID": "sky-managed-2026-11-26_train_7-0"},
    "kubernetes": {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
}
"""What each launcher leaves for the processes of one job, beside what differs between two of them."""


@pytest.mark.parametrize("job", sorted(JOBS))
def test_two_starts_of_a_job_at_once_make_one_run_and_a_kill_is_continued(job: str, workplace: Workplace) -> None:
    words = ("train", "tiny.py", "--run-key", "auto", "epochs=2")
    starts = [
        {**JOBS[job], "HOSTNAME": f"train-{suffix}", "SLURM_RESTART_COUNT": str(number)}
        for number, suffix in enumerate(("x7k2p", "bb4dz", "c8d2f"))
    ]
    both = [workplace.start(*words, "sleep=0.1", "kill_at=9", **start) for start in starts[:2]]
    codes = sorted(one.wait().code for one in both)
    assert codes == [-signal.SIGKILL, 4]
    again = workplace.mltrain(*words, **starts[2])
    assert again.code == 0, again.err
    runs = workplace.mltrain("runs", "--json").json
    assert [run["run_id"] for run in runs] == [again.run_id]
    assert workplace.points(again.run_id)["epoch"] == [(6, 1.0), (12, 2.0)]
    complete = workplace.mltrain(*words, **starts[0])
    assert complete.code == 0
    assert f"run_id={again.run_id}" in complete.out
    assert "is complete, and nothing is left to train" in complete.out
    assert f"Evaluate: mltrain evaluate {again.run_id}" in complete.out
