"""A process opens its own run, whose artifacts are reachable."""

import ast
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import FileInfo
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mltrain import CheckpointManager
from mltrain.delivery.creation import RunCreation
from mltrain.errors import RunHeld, RunNotFound, StorageError, UsageError
from mltrain.ownership.launcher import Launcher
from mltrain.run import adoption, opening
from mltrain.store.opening import UnusableArtifacts, open_artifacts
from mltrain.tracking.client import TrackingClient, connect
from mltrain.tracking.run_artifacts import artifacts_of
from mltrain.tracking.tags import LAUNCHER_OF_TAG
from tests.support import places
from tests.support.database import fresh_database
from tests.support.opened import adopted, dump, empty_run
from tests.support.servers import TrackingServer


def test_a_request_to_stop_while_the_server_makes_the_run_leaves_none(
    server: TrackingClient, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = RunCreation.info

    def interrupted(creation: RunCreation) -> object:
        info = made(creation)
        os.kill(os.getpid(), signal.SIGINT)
        return info

    monkeypatch.setattr(RunCreation, "info", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opening.create(server, None, None, "project", {})
    assert client.search_runs(["0"]) == []


def test_mlflow_run_does_not_leave_a_refused_training_as_failed(
    server: TrackingClient, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = empty_run(client)
    adopted(server, run_id)
    repaired: list[tuple[object, ...]] = []
    monkeypatch.setattr("mltrain.ownership.launcher.after", lambda *what: repaired.append(what[1:]))
    with pytest.raises(UsageError):
        adoption.adoptable(server, Launcher(run_id, 1))
    assert repaired == [(1, run_id, "FINISHED")]


class Away(LocalArtifactRepository):  # type: ignore[misc]
    """A store that does not answer."""

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        raise PermissionError("made to fail")


def test_a_resume_that_is_refused_during_an_outage_of_the_artifact_store_changes_nothing(
    server: TrackingClient, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = empty_run(client)
    adopted(server, run_id)
    away = places.behind(tmp_path / "away", Away).opened()
    monkeypatch.setattr(opening, "writable_artifacts_of", lambda *_: away)
    before = dump(tmp_path)
    with pytest.raises(StorageError):
        opening.resume(server, run_id, take_over=False, launcher=None)
    assert dump(tmp_path) == before


@pytest.mark.parametrize("launcher", ["a finished training", "an orchestrator's run", "no run", "mlflow run"])
def test_only_the_empty_run_of_mlflow_run_is_hidden_beside_a_resumed_one(
    launcher: str, server: TrackingClient, client: MlflowClient
) -> None:
    resumed, other = empty_run(client), empty_run(client)
    adopted(server, resumed)
    if launcher == "a finished training":
        adopted(server, other)
    elif launcher == "no run":
        other = "0" * 32
    elif launcher == "mlflow run":
        client.set_tag(other, "mlflow.project.entryPoint", "main")
    run = opening.resume(server, resumed, take_over=False, launcher=Launcher(other, None))
    run.close("FINISHED", "done", 20.0)
    tags = client.get_run(other).data.tags if launcher != "no run" else {}
    assert (LAUNCHER_OF_TAG in tags) == (launcher == "mlflow run")


def test_a_loop_does_not_write_into_an_active_run_that_holds_a_training(
    server: TrackingClient, client: MlflowClient
) -> None:
    run_id = empty_run(client)
    client.set_tag(run_id, "mltrain.project", "segmentation")
    (Path(client.get_run(run_id).info.artifact_uri)).mkdir(parents=True)
    with mlflow.start_run(run_id), pytest.raises(UsageError, match=f"mltrain train --resume-run {run_id}"):
        CheckpointManager()


def test_an_empty_id_is_not_the_id_of_a_run(server: TrackingClient) -> None:
    with pytest.raises(RunNotFound, match=r"^'' is not the id of a run"):
        CheckpointManager("")


def test_a_second_manager_of_a_run_in_one_process_is_told_to_close_the_first(server: TrackingClient) -> None:
    with CheckpointManager() as manager, pytest.raises(RunHeld, match=r"close\(\) of its manager"):
        CheckpointManager(manager.run.id)


def moved(server: TrackingClient, client: MlflowClient, tmp_path: Path, how: str) -> str:
    run_id = empty_run(client)
    adopted(server, run_id)
    place = Path(client.get_run(run_id).info.artifact_uri)
    place.mkdir(parents=True, exist_ok=True)
    client.set_tag(run_id, "mltrain.project", "project")
    (place / "config.json").write_text("{}")
    if how == "moved":
        (tmp_path / "mlruns").rename(tmp_path / "elsewhere")
    elif how == "an empty mount point":
        shutil.rmtree(tmp_path / "mlruns")
        (tmp_path / "mlruns").mkdir()
    else:
        shutil.rmtree(place.parent)
    return run_id


@pytest.mark.parametrize("how", ["moved", "an empty mount point", "the folder of the run"])
def test_artifacts_that_are_gone_are_named_and_their_folder_is_not_made_again(
    how: str, server: TrackingClient, client: MlflowClient, tmp_path: Path
) -> None:
    run_id = moved(server, client, tmp_path, how)
    place = Path(client.get_run(run_id).info.artifact_uri)
    for attempt in (
        lambda: artifacts_of(server, client.get_run(run_id)),
        lambda: opening.resume(server, run_id, take_over=False, launcher=None),
        lambda: opening.open_run(run_id),
        lambda: CheckpointManager(run_id),
    ):
        before = dump(tmp_path)
        with pytest.raises(StorageError, match=str(place)) as refused:
            attempt()
        assert refused.value.exit_code == 5
        assert not place.exists()
        assert dump(tmp_path) == before
    assert (tmp_path / "mlruns").exists() == (how != "moved")


def test_a_new_run_does_not_make_the_folder_of_an_experiment_that_was_moved(
    server: TrackingClient, client: MlflowClient, tmp_path: Path
) -> None:
    moved(server, client, tmp_path, "moved")
    with pytest.raises(StorageError, match=str(tmp_path / "mlruns")):
        CheckpointManager()
    assert not (tmp_path / "mlruns").exists()


def test_what_moved_with_the_database_is_found_and_the_remedy_leads_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    fresh_database(old / "mlflow.db", old / "mlruns")
    monkeypatch.setenv("MLTRAIN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{old / 'mlflow.db'}")
    with CheckpointManager() as manager:
        run_id = manager.run.id
    old.rename(new)
    server = connect(f"sqlite:///{new / 'mlflow.db'}")
    with pytest.raises(StorageError, match=f"ln -s {new / 'mlruns'} {old / 'mlruns'}"):
        artifacts_of(server, server.run(run_id))
    (old / "mlruns").mkdir(parents=True)  # MLflow makes it for a new experiment
    inner = Path("mlruns", server.run(run_id).info.experiment_id)
    with pytest.raises(StorageError, match=rf"mkdir -p {old / 'mlruns'} && ln -s {new / inner} {old / inner}\."):
        artifacts_of(server, server.run(run_id))


def test_a_run_that_was_killed_before_anything_was_kept_is_no_moved_store(
    server: TrackingClient, client: MlflowClient
) -> None:
    run = client.get_run(empty_run(client))
    assert artifacts_of(server, run).entries() == []


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("mlflow-artifacts:/7", "MLFLOW_TRACKING_URI=http"),
        ("mlflow-artifacts://host:5000/7", "MLFLOW_TRACKING_URI=http"),
        ("s3://bucket/7", "pip install boto3"),
        ("gs://bucket/7", "pip install google-cloud-storage"),
        ("sftp://host/7", "pip install paramiko"),
        ("nothing://known/7", "nothing://known/7"),
        ("runs:/7/model", "runs:/7/model"),
    ],
)
def test_an_experiment_whose_artifacts_cannot_be_reached_gets_no_run(
    uri: str, said: str, server: TrackingClient, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("boto3", "google.cloud.storage", "paramiko"):
        monkeypatch.setitem(sys.modules, module, None)
    experiment = client.create_experiment("elsewhere")
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        database.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (uri, experiment))
        database.commit()
    before = dump(tmp_path)
    with pytest.raises(UnusableArtifacts) as refused:
        opening.create(server, "elsewhere", None, "project", {})
    assert said in str(refused.value)
    assert uri in str(refused.value)
    assert dump(tmp_path) == before
    with pytest.raises(UnusableArtifacts):
        open_artifacts(uri, server.uri)


RESUMED = """
import os, sys, torch
from mltrain import CheckpointManager, open_run
from mltrain.compat.rest_server import Server
manager = CheckpointManager()
manager.save({"model": {"weight": torch.ones(3)}}, step=1)
manager.close("KILLED")
os.environ["MLTRAIN_HOME"] += "-of-another-machine"
sent, send = [], Server.send
Server.send = lambda server, method, path, *rest, **named: sent.append((method, path)) or send(
    server, method, path, *rest, **named
)
run = open_run(manager.run.id)
with CheckpointManager(run) as manager:
    assert manager.load_latest_checkpoint() is not None
    run.continue_exactly_after(1)
    print(len(sent))
    run.log_metrics({"loss": 0.5}, 2)
print(sorted({name.partition(".")[0] for name in sys.modules}))
"""


@pytest.mark.slow
def test_a_resume_from_a_server_takes_few_requests_and_imports_no_database_and_no_drawing(
    tracking_server: TrackingServer, tmp_path: Path
) -> None:
    """``import mlflow`` brings pandas, pyarrow and FastAPI with it; a plain server needs none of them."""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": tracking_server.uri, "MLTRAIN_HOME": str(tmp_path / "home")}
    words = [sys.executable, "-c", RESUMED]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True, env=environment, cwd=tmp_path)
    assert int(done.stdout.splitlines()[0]) <= 16, "requests from opening the run to the first step"
    imported = set(ast.literal_eval(done.stdout.splitlines()[-1]))
    assert {"torch", "requests"} <= imported
    unneeded = {
        "mlflow",
        "pandas",
        "pyarrow",
        "fastapi",
        "opentelemetry",
        "sqlalchemy",
        "alembic",
        "sklearn",
        "matplotlib",
        "flask",
        "torchvision",
        "boto3",
        "lightning",
        "transformers",
    }
    assert not imported & unneeded
