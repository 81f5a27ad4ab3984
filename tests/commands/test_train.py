"""A refused attempt leaves no trace."""

import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from mltrain import CheckpointManager
from mltrain.checkpoint.policies import Latest
from mltrain.commands.import_checkpoint import import_file
from mltrain.commands.train import run_training
from mltrain.commands.train_request import Request
from mltrain.errors import StorageError
from mltrain.pipeline import Pipeline, Stage
from mltrain.pipelines.plan import PipelineRequest
from mltrain.pipelines.runner import run as run_pipeline
from mltrain.project import Located, Project
from mltrain.run.checkpoints import open_checkpoints
from mltrain.tracking.client import connect
from tests.support import tiny
from tests.support.trainings_of_tiny import TINY, built_with
from tests.support.unchanged import Unchanged
from tests.support.workplace import Workplace


@pytest.mark.parametrize("how", ["new", "resumed", "forked", "a loop of one's own"])
def test_a_home_that_cannot_be_written_is_refused_before_there_is_a_run(
    how: str, store: Path, trained: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("MLTRAIN_HOME", str(tmp_path / "file" / "home"))
    with Unchanged(store, tmp_path / "home", StorageError):
        if how == "a loop of one's own":
            CheckpointManager()
        source = {"new": {}, "resumed": {"resume_run": trained[1]}, "forked": {"fork_run": trained[1]}}[how]
        run_training(Request(project=TINY, overrides={"epochs": 3}, **source))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_to_keep": 0},
        {"max_to_keep": 2.5},
        {"max_to_keep": True},
        {"device": "cpuu"},
        {"device": "cuda:7"},
        {"device": None},
        {"policy": "Latest(3)"},
        {"policy": Latest},
        {"metric": ""},
        {"metric": 3},
        {"mode": "maximum"},
        {"staging_gigabytes": 0},
        {"staging_gigabytes": "20"},
        {"staging_gigabytes": float("nan")},
        {"run": "not an id"},
        {"run": "0" * 32},
        {"run": 7},
    ],
    ids=str,
)
@pytest.mark.parametrize("run", ["new", "resumed"])
def test_arguments_of_a_manager_are_checked_before_a_run_is_opened(
    arguments: dict[str, Any], run: str, store: Path, trained: tuple[Path, str], tmp_path: Path
) -> None:
    with Unchanged(store, tmp_path / "home"):
        CheckpointManager(**{**({"run": trained[1]} if run == "resumed" else {}), **arguments})


def test_a_new_run_whose_artifacts_cannot_be_written_is_deleted_and_nothing_is_held(
    store: Path, tmp_path: Path
) -> None:
    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    experiment = client.create_experiment("full", "/proc/mltrain/artifacts")
    threads = set(threading.enumerate())
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StorageError):
        patch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
        CheckpointManager()
    assert client.search_runs([experiment]) == []
    assert set(threading.enumerate()) <= threads


@pytest.mark.parametrize("key", ["device=cuda:7", "retention=Newest(2)", "epochs=-1", "from", "stage"])
def test_a_pipeline_that_cannot_be_is_refused_before_there_is_a_run(key: str, store: Path, tmp_path: Path) -> None:
    stages = [
        Stage("first", tiny.Config, build=tiny.build),
        Stage("second", tiny.Config, build=tiny.build, needs={"data": "first"}),
    ]
    located = Located("tiny", Pipeline("tiny", stages))
    name, equals, value = key.partition("=")
    order: dict[str, Any] = {"overrides": {f"second.{name}": value}} if equals else {}
    order |= {"from": {"start": "nothing"}, "stage": {"only": "second"}}.get(key, {})
    with Unchanged(store, tmp_path / "home"):
        run_pipeline(PipelineRequest(located=located, mode="scratch", **order), Quiet(), lambda cleared: True)


def test_a_resume_that_fails_once_the_run_is_claimed_leaves_it_with_its_status(
    trained: tuple[Path, str], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLTRAIN_GRACE_SECONDS", "1")
    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    attempts = Path(client.get_run(trained[1]).info.artifact_uri) / "attempts.json"
    kept = attempts.read_bytes()
    attempts.unlink()
    attempts.mkdir()  # so that the record of the new attempt is refused
    try:
        with pytest.raises(StorageError):
            run_training(Request(project=TINY, resume_run=trained[1], overrides={"epochs": 3}))
    finally:
        shutil.rmtree(attempts)
        attempts.write_bytes(kept)
    run = client.get_run(trained[1])
    assert (run.info.status, run.data.tags["mltrain.status"]) == ("FINISHED", "finished")


class Quiet:
    """A display of a pipeline that shows nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **named: None


class Spoilt(tiny.Faulty):
    """A step whose loss is NaN once in a process. A recovery does not reset its counter."""

    def parts(self) -> Any:
        return self.inner.parts()


def spoilt(config: tiny.Config) -> Any:
    task = tiny.build(config)
    return replace(task, step=Spoilt(task.step.inner, config))  # type: ignore[attr-defined]


SPOILT = Project("tiny", tiny.Config, spoilt, Path(tiny.__file__))


def test_the_policy_of_a_task_decides_which_checkpoints_stay_unless_the_configuration_has_one(store: Path) -> None:
    project = built_with(policy=Latest(2), evaluate=None)
    for keys, policy, kept in (({}, "Latest(2)", [2, 3]), ({"retention": "Latest(1)"}, "Latest(1)", [3])):
        done = run_training(Request(project=project, overrides={"epochs": 3, "save_interval": 1, **keys}))
        assert MlflowClient().get_run(done.run_id).data.tags["mltrain.retention"] == policy
        assert [manifest.epoch for manifest in open_checkpoints(done.run_id).all()] == kept


@pytest.mark.parametrize("how", ["forked", "resumed", "rewound"])
def test_a_rollback_before_the_first_checkpoint_goes_back_to_the_one_that_training_began_from(
    how: str, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = run_training(Request(project=SPOILT, overrides={"epochs": 2, "on_nonfinite": "rollback"})).run_id
    named: dict[str, Any] = {
        "forked": {"fork_run": source},
        "resumed": {"resume_run": source},
        "rewound": {"resume_run": source, "resume_from": "epoch:1"},
    }[how]
    done = run_training(Request(project=SPOILT, overrides={"epochs": 3, "nan_at": 2}, **named))
    assert done.exit_code == 0, done.why
    assert f"rolled back to step {6 if how == 'rewound' else 12}; the data continue from here" in caplog.text


def test_a_rollback_in_the_first_epoch_after_an_import_puts_back_what_the_file_lacks(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    net = tiny.build(tiny.Config()).step.parts()["model"]  # type: ignore[attr-defined]
    torch.save({"model": net.state_dict(), "epoch": 1}, tmp_path / "net.pth")
    imported = import_file(tmp_path / "net.pth", connect(), None, {}, None).run_id
    overrides = {"epochs": 2, "on_nonfinite": "rollback", "nan_at": 2}
    done = run_training(Request(project=SPOILT, resume_run=imported, overrides=overrides))
    assert done.exit_code == 0, done.why
    assert "rolled back to step 0" in caplog.text


def test_a_run_goes_to_an_experiment_of_its_project_and_is_called_by_what_differs(workplace: Workplace) -> None:
    done = workplace.mltrain("train", "tiny.py", "epochs=1", "lr=0.02", MLFLOW_EXPERIMENT_ID="")
    assert done.code == 0, done.err
    client = MlflowClient(workplace.uri)
    run = client.get_run(done.run_id)
    assert client.get_experiment(run.info.experiment_id).name == "tiny"
    assert str(run.info.run_name).split(maxsplit=2)[2] == "lr=0.02 epochs=1 tiny", "the project's keys come first"
    assert "none" not in run.data.params.values()
    assert run.data.params["lr"] == "0.02"
