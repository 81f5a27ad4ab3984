"""What can be refused is refused before a run is claimed, created or changed: a refused attempt leaves no trace."""

import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from mlflow import MlflowClient
from pydantic import model_validator

from mltrain import CheckpointManager
from mltrain.checkpoint.policies import Latest
from mltrain.commands.import_checkpoint import import_file
from mltrain.commands.train import run_training
from mltrain.commands.train_request import Request
from mltrain.errors import ConfigError, StateMismatch, StorageError
from mltrain.pipeline import Pipeline, Stage
from mltrain.pipelines.request import PipelineRequest
from mltrain.pipelines.runner import run as run_pipeline
from mltrain.project import Located, Project
from mltrain.run.checkpoints import open_checkpoints, trained_config
from mltrain.tracking.client import connect
from tests.support import tiny
from tests.support.database import fresh_database
from tests.support.unchanged import Unchanged
from tests.support.workplace import Workplace

TINY = Project("tiny", tiny.Config, tiny.build, Path(tiny.__file__))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A store with one finished run, which many attempts are made on."""
    folder = tmp_path_factory.mktemp("refused")
    fresh_database(folder / "mlflow.db", folder / "mlruns")
    (folder / "data").mkdir()
    (folder / "data" / "file").write_text("one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        patch.setenv("MLTRAIN_HOME", str(folder / "home"))
        yield folder, run_training(Request(project=TINY, overrides={"epochs": 1, "data": str(folder / "data")})).run_id


@pytest.fixture
def store(trained: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{trained[0] / 'mlflow.db'}")
    monkeypatch.setenv("MLTRAIN_HOME", str(tmp_path / "home"))
    return trained[0]


class Mute:
    """A part without a state."""


def built_with(**changes: Any) -> Project:
    """A project whose task is built in a way that cannot be trained."""

    def build(config: tiny.Config) -> Any:
        task = tiny.build(config)
        given = {name: getattr(task, name) for name in ("step", "loader", "evaluate", "images", "report", "state")}
        return type(task)(**{**given, **changes})

    return Project("tiny", tiny.Config, build, Path(tiny.__file__))


BAD_KEYS = {
    "a device that is not here": {"device": "cuda:7"},
    "half precision on the CPU": {"amp": "fp16"},
    "a policy that cannot be read": {"retention": "Newest(2)"},
    "negative epochs": {"epochs": "-1"},
    "no checkpoint to keep": {"max_to_keep": "0"},
    "neither less nor more": {"best_mode": "maximum"},
    "a folder below a file": {"model_save_path": f"{tiny.__file__}/weights"},
    "data that are not there": {"data": "/nowhere/at/all", "num_threads": "0"},
}
BAD_TASKS: dict[str, dict[str, Any]] = {
    "a step that cannot be called": {"step": 3},
    "pictures that cannot be called": {"images": {"a": 1}},
    "an evaluation that cannot be called": {"evaluate": 0.5},
    "a part with a name that is taken": {"state": {"progress": tiny.build(tiny.Config()).loader}},
    "a part without a state": {"state": {"mute": Mute()}},
    "parts that are no mapping": {"state": [1]},
}


@pytest.mark.parametrize("how", ["new", "resumed", "forked"])
@pytest.mark.parametrize("what", [*BAD_KEYS, *BAD_TASKS])
def test_a_training_that_cannot_be_is_refused_before_there_is_a_run(
    what: str, how: str, store: Path, trained: tuple[Path, str], tmp_path: Path
) -> None:
    source = {"new": {}, "resumed": {"resume_run": trained[1]}, "forked": {"fork_run": trained[1]}}[how]
    project = built_with(**BAD_TASKS[what]) if what in BAD_TASKS else TINY
    with Unchanged(store, tmp_path / "home"):
        run_training(Request(project=project, overrides={"epochs": 3, **BAD_KEYS.get(what, {})}, **source))  # type: ignore[arg-type]


def test_a_precision_that_the_step_would_not_use_is_refused_before_there_is_a_run(store: Path, tmp_path: Path) -> None:
    project = built_with(step=lambda batch: {"loss": 1.0})
    with Unchanged(store, tmp_path / "home", ConfigError):
        run_training(Request(project=project, overrides={"epochs": 1, "amp": "bf16"}))


@pytest.mark.parametrize("which", ["step:999", "epoch:7", "interrupted", "newest", "step-000000999-a01"])
@pytest.mark.parametrize("source", ["resume_run", "fork_run", None])
def test_a_checkpoint_that_is_not_there_is_refused_before_the_run_is_claimed(
    which: str, source: str | None, store: Path, trained: tuple[Path, str], tmp_path: Path
) -> None:
    named: dict[str, Any] = {source: trained[1]} if source is not None else {}
    with Unchanged(store, tmp_path / "home"):
        run_training(Request(project=TINY, resume_from=which, **named))


@pytest.mark.parametrize("source", ["resume_run", "fork_run"])
def test_a_model_of_another_shape_is_refused_before_the_run_is_claimed(
    source: str, store: Path, trained: tuple[Path, str], tmp_path: Path
) -> None:
    named: dict[str, Any] = {source: trained[1]}
    with Unchanged(store, tmp_path / "home", StateMismatch):
        run_training(Request(project=TINY, overrides={"epochs": 3, "hidden": 17}, **named))


def test_changed_data_are_refused_before_the_run_is_claimed(
    store: Path, trained: tuple[Path, str], tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("two")
    with Unchanged(store, tmp_path / "home"):
        run_training(
            Request(project=TINY, resume_run=trained[1], overrides={"epochs": 3, "data": str(tmp_path / "other")})
        )


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
    trained: tuple[Path, str], store: Path
) -> None:
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


def params_of(run_id: str) -> dict[str, Any]:
    """The configuration beside the newest checkpoint of a run."""
    return trained_config(open_checkpoints(run_id))


def test_a_fork_begins_with_the_configuration_of_its_checkpoint_and_reports_only_what_it_changes(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = run_training(Request(project=TINY, overrides={"epochs": 1, "lr": 0.01, "max_to_keep": 9})).run_id
    for overrides in ({"epochs": 2, "lr": 0.001, "batch_size": 4}, {"epochs": 3}):
        run_training(Request(resume_run=source, project=TINY, overrides=overrides))
    caplog.clear()
    kept = params_of(run_training(Request(project=TINY, fork_run=source, overrides={"epochs": 4})).run_id)
    assert (kept["epochs"], kept["lr"], kept["batch_size"]) == (4, 0.001, 4)
    assert not [record for record in caplog.records if "changed" in record.getMessage() or "planned" in record.msg]
    changed = params_of(
        run_training(Request(project=TINY, fork_run=source, overrides={"epochs": 4, "lr": 0.02})).run_id
    )
    assert (changed["lr"], changed["batch_size"]) == (0.02, 4)
    assert "base_lrs.0=0.001" in caplog.text
    assert "base_lrs.0=0.02" in caplog.text
    assert "batch_size" not in caplog.text
    for named in ({"fork_run": source}, {"resume_run": source}):
        older = Request(project=TINY, resume_from="epoch:1", overrides={"epochs": 2}, **named)  # type: ignore[arg-type]
        params = params_of(run_training(older).run_id)
        assert (params["lr"], params["batch_size"]) == (0.01, 8), named


def test_what_a_checkpoint_was_trained_with_is_checked_and_not_what_the_run_began_with(store: Path) -> None:
    class Config(tiny.Config):
        warmup: int = 0

        @model_validator(mode="after")
        def _short(self) -> Self:
            if self.warmup > self.epochs:
                raise ValueError("warmup is longer than the training")
            return self

    project = Project("tiny", Config, tiny.build, Path(tiny.__file__))
    source = run_training(Request(project=project, overrides={"epochs": 1})).run_id
    run_training(Request(project=project, resume_run=source, overrides={"epochs": 3}))
    fork = run_training(Request(project=project, fork_run=source, overrides={"warmup": 2}))
    assert params_of(fork.run_id)["warmup"] == 2


class Spoilt(tiny.Faulty):
    """A step that counts those of its process, so that its loss is not finite once only, whatever goes back."""

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
    assert f"back to the state of step {6 if how == 'rewound' else 12}; the data go on from here" in caplog.text


def test_a_rollback_in_the_first_epoch_after_an_import_puts_back_what_the_file_lacks(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    net = tiny.build(tiny.Config()).step.parts()["model"]  # type: ignore[attr-defined]
    torch.save({"model": net.state_dict(), "epoch": 1}, tmp_path / "net.pth")
    imported = import_file(tmp_path / "net.pth", connect(), None, {}, None).run_id
    overrides = {"epochs": 2, "on_nonfinite": "rollback", "nan_at": 2}
    done = run_training(Request(project=SPOILT, resume_run=imported, overrides=overrides))
    assert done.exit_code == 0, done.why
    assert "back to the state of step 0" in caplog.text


def test_a_run_goes_to_an_experiment_of_its_project_and_is_called_by_what_differs(workplace: Workplace) -> None:
    done = workplace.mltrain("train", "tiny.py", "epochs=1", "lr=0.02", MLFLOW_EXPERIMENT_ID="")
    assert done.code == 0, done.err
    client = MlflowClient(workplace.uri)
    run = client.get_run(done.run_id)
    assert client.get_experiment(run.info.experiment_id).name == "tiny"
    assert str(run.info.run_name).startswith("tiny epochs=1 lr=0.02 20")
    assert "none" not in run.data.params.values()
    assert run.data.params["lr"] == "0.02"
