"""mltrain reads MLflow's database exactly as MLflow's client does."""

import math
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from mltrain.compat import database
from mltrain.compat.database import DatabaseReader, Unreadable
from mltrain.compat.private import latest_points
from mltrain.tracking.client import TrackingClient
from tests.support.database import fresh_database

QUERIES = (
    "",
    "tags.`mltrain.status` != ''",
    "tags.`mltrain.status` != 'running'",
    "tags.`mltrain.pipeline` = 'tiny' and tags.`mlflow.user` = 'me'",
    "attributes.run_id LIKE '0%'",
    "attributes.run_id IN ('{run}', '00000000000000000000000000000000')",
)


@pytest.fixture
def client(tmp_path: Path) -> MlflowClient:
    client = MlflowClient(fresh_database(tmp_path / "mlflow.db", tmp_path / "mlruns"))
    other = client.create_experiment("other")
    for number in range(12):
        run = client.create_run("0" if number % 3 else other, start_time=1000 + number // 2, run_name=f"run {number}")
        tags = [RunTag("mltrain.status", ("running", "finished")[number % 2])] if number % 4 else []
        tags += [RunTag("mltrain.pipeline", "tiny"), RunTag("mlflow.user", "me")] if number == 5 else []
        points = [Metric("loss", value, 5, step) for step, value in enumerate((1.0, math.nan, math.inf)[: number % 4])]
        client.log_batch(run.info.run_id, points, [Param("lr", "1e-3")], tags)
    client.delete_run(client.search_runs(["0"])[0].info.run_id)
    return client


@pytest.fixture
def reader(client: MlflowClient, tmp_path: Path) -> DatabaseReader:
    return DatabaseReader(tmp_path / "mlflow.db")


def told(run: Any) -> dict[str, Any]:
    names = (
        "run_id",
        "run_name",
        "experiment_id",
        "status",
        "start_time",
        "end_time",
        "lifecycle_stage",
        "artifact_uri",
    )
    points = {(point.key, str(point.value), point.timestamp, point.step) for point in latest_points(run)}
    data = run.data
    metrics = {key: str(value) for key, value in data.metrics.items()}
    return {name: getattr(run.info, name) for name in (*names, "user_id")} | {
        "data": (dict(data.tags), dict(data.params), metrics, points)
    }


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("page", [1000, 4])
def test_a_search_finds_what_mlflow_finds_in_its_order(
    query: str, page: int, client: MlflowClient, reader: DatabaseReader
) -> None:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    query = query.replace("{run}", client.search_runs(experiments)[1].info.run_id)
    expected = [told(run) for run in client.search_runs(experiments, query)]
    found: list[Any] = []
    token: str | None = None
    while token is not None or not found:
        one = reader.search_runs(experiments, query, max_results=page, page_token=token)
        found += map(told, one)
        token = one.token
        if token is None:
            break
    assert found == expected
    assert expected or query.startswith("attributes")


def test_runs_and_experiments_are_those_of_mlflow(client: MlflowClient, reader: DatabaseReader) -> None:
    deleted = client.search_runs(["0"], run_view_type=mlflow.entities.ViewType.DELETED_ONLY)[0]
    for run_id in (deleted.info.run_id, client.search_runs(["0"])[0].info.run_id):
        assert told(reader.get_run(run_id)) == told(client.get_run(run_id))
    expected = {one.experiment_id: (one.name, one.artifact_location) for one in client.search_experiments()}
    assert {one.experiment_id: (one.name, one.artifact_location) for one in reader.search_experiments()} == expected
    named = reader.get_experiment_by_name("other")
    assert named is not None
    assert named.experiment_id == client.get_experiment_by_name("other").experiment_id
    assert reader.get_experiment_by_name("none") is None


def test_curves_of_many_runs_are_those_of_mlflow_by_one_query(
    client: MlflowClient, reader: DatabaseReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [
        run.info.run_id for run in client.search_runs(["0", *(e.experiment_id for e in client.search_experiments())])
    ]
    client.log_batch(runs[0], [Metric("loss", 7.0, 5, -2), Metric("other", 1.0, 5, 0), Metric("left out", 1.0, 5, 0)])
    reader.get_run(runs[0])
    asked: list[str] = []
    connect = sqlite3.connect

    def traced(*arguments: Any, **named: Any) -> sqlite3.Connection:
        opened = connect(*arguments, **named)
        opened.set_trace_callback(asked.append)
        return opened

    monkeypatch.setattr(database.sqlite3, "connect", traced)
    found = reader.curves(runs, ["loss", "other"])
    assert len([one for one in asked if "FROM metrics" in one]) == 1
    expected = {
        (run, key): sorted(((p.step, p.value) for p in client.get_metric_history(run, key)), key=lambda one: one[0])
        for run in runs
        for key in ("loss", "other")
    }
    assert str(found) == str({one: expected[one] for one in found})
    assert {one for one, points in expected.items() if points} == found.keys()
    assert found[runs[0], "loss"][0] == (-2, 7.0)
    server = TrackingClient("sqlite:///", client)
    assert {one: str(points) for one, points in server.curves(runs, ["loss", "other"]).items()} == {
        one: str(points) for one, points in found.items()
    }


def test_the_revision_is_that_of_the_installed_mlflow(reader: DatabaseReader, tmp_path: Path) -> None:
    assert reader.search_experiments()
    for revision in ("dc11669786a5", "f4a9b2c7d1e6"):
        with closing(sqlite3.connect(tmp_path / "mlflow.db")) as opened:
            opened.execute("UPDATE alembic_version SET version_num = ?", [revision])
            opened.commit()
        assert reader.search_experiments(), "MLflow 3.17 and 3.18 have the same tables of runs"
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as opened:
        opened.execute("UPDATE alembic_version SET version_num = 'another'")
        opened.commit()
    with pytest.raises(Unreadable):
        reader.search_experiments()


@pytest.mark.parametrize("query", ["metrics.loss < 1", "tags.`a` = 'b' or tags.`c` = 'd'", "tags.`a` LIKE 'b%'"])
def test_what_only_mlflow_understands_is_left_to_it(query: str, reader: DatabaseReader) -> None:
    with pytest.raises(Unreadable):
        reader.search_runs(["0"], query)
    with pytest.raises(Unreadable):
        reader.get_run("0" * 32)


def test_a_database_that_is_locked_or_damaged_is_left_to_mlflow(client: MlflowClient, tmp_path: Path) -> None:
    reader = DatabaseReader(tmp_path / "mlflow.db", lock_seconds=0.0)
    with closing(sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)) as opened:
        opened.execute("BEGIN EXCLUSIVE")
        with pytest.raises(Unreadable):
            reader.search_experiments()
        opened.execute("ROLLBACK")
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 100)
    with pytest.raises(Unreadable):
        reader.search_experiments()


def test_a_database_that_is_not_there_has_no_runs_and_is_not_made(tmp_path: Path) -> None:
    reader = DatabaseReader(tmp_path / "mlflow.db")
    assert (list(reader.search_experiments()), list(reader.search_runs(["0"]))) == ([], [])
    assert reader.get_experiment_by_name("any") is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", [None, "sqlite:///here.db", "http://127.0.0.1:5000"])
def test_the_uri_of_the_environment_is_the_one_that_mlflow_takes(
    given: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if given is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    expected = mlflow.get_tracking_uri()
    assert database.uri_of_environment() is None, "where MLflow is imported, a program may have set another one"
    monkeypatch.delitem(sys.modules, "mlflow")
    assert database.uri_of_environment() == expected
    assert (database.database_of(expected) is None) == expected.startswith("http")


def test_a_folder_with_a_file_store_or_a_strange_name_is_left_to_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delitem(sys.modules, "mlflow")
    for name, file in (("with blanks", None), ("files", "mlruns/0/meta.yaml")):
        folder = tmp_path / name
        folder.mkdir()
        if file is not None:
            (folder / file).parent.mkdir(parents=True)
            (folder / file).touch()
        monkeypatch.chdir(folder)
        assert database.uri_of_environment() is None
