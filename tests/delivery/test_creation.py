"""How a run comes to be: exactly once."""

import threading
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from mltrain.delivery.creation import RunCreation, RunIdentity, RunSpec, experiment_id, recorded_spec
from mltrain.errors import RunNotFound
from mltrain.ownership.run_folder import remember_home
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.connection import Refusal
from mltrain.tracking.tags import REQUEST_ID_TAG
from tests.support.database import fresh_database


@pytest.fixture
def server(tmp_path: Path) -> TrackingClient:
    uri = fresh_database(tmp_path / "mlflow.db", tmp_path / "mlruns")
    return TrackingClient(uri, MlflowClient(uri))


class Losing:
    """A client that loses the answers to its first creations."""

    def __init__(self, client: MlflowClient, lost: int, *, late: bool = False) -> None:
        self._client = client
        self._lost = lost
        self._late = late
        self.applied: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def create_run(self, *arguments: Any) -> Any:
        if self._lost > 0:
            self._lost -= 1
            self.applied.append(arguments)
            if not self._late:
                self._client.create_run(*arguments)
            raise ConnectionError("reset")
        created = self._client.create_run(*arguments)
        if self._late:
            for earlier in self.applied:
                self._client.create_run(*earlier)  # the request that had been on its way all the time
        return created


def active(server: TrackingClient, spec: RunSpec) -> list[str]:
    return [run.info.run_id for run in server.client.search_runs(["0"], f"tags.`{REQUEST_ID_TAG}` = '{spec.id}'")]


def test_asking_twice_creates_once(server: TrackingClient) -> None:
    spec = RunSpec(None, "name", {"a": "b"})
    creation = RunCreation(server, spec)
    assert creation.info().run_id == creation.info().run_id
    run = server.run(creation.info().run_id)
    assert (run.info.run_name, run.data.tags["a"], run.info.start_time) == ("name", "b", spec.began)
    assert active(server, spec) == [run.info.run_id]


def test_a_lost_answer_makes_no_second_run(server: TrackingClient) -> None:
    spec = RunSpec(None, "name", {})
    creation = RunCreation(TrackingClient(server.uri, Losing(server.client, 1)), spec)
    with pytest.raises(Refusal):
        creation.info()
    assert active(server, spec) == [creation.info().run_id]


def test_another_process_finds_what_this_one_created_without_knowing(server: TrackingClient) -> None:
    spec = RunSpec(None, "name", {})
    with pytest.raises(Refusal):
        RunCreation(TrackingClient(server.uri, Losing(server.client, 1)), spec).info()
    assert active(server, spec) == [RunCreation(server, spec, tried=True).info().run_id]


def test_a_request_that_is_applied_very_late_leaves_no_second_run(server: TrackingClient) -> None:
    spec = RunSpec(None, "name", {})
    creation = RunCreation(TrackingClient(server.uri, Losing(server.client, 1, late=True)), spec)
    with pytest.raises(Refusal):
        creation.info()
    info = creation.info()
    assert len(active(server, spec)) == 2
    assert creation.delete_duplicates() == 1
    assert active(server, spec) == [info.run_id]


def test_threads_that_ask_at_once_get_the_same_run(server: TrackingClient) -> None:
    creation = RunCreation(server, RunSpec(None, "name", {}))
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(creation.info().run_id)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1


def test_every_listener_hears_that_the_run_is_created_although_one_fails(
    server: TrackingClient, caplog: pytest.LogCaptureFixture
) -> None:
    identity = RunIdentity(server, RunCreation(server, RunSpec(None, "late", {})))
    heard: list[str] = []
    identity.when_known(lambda: heard.append("first"))
    identity.when_known(lambda: {}["missing"])
    identity.when_known(lambda: heard.append("last"))
    identity.created()
    assert heard == ["first", "last"]
    assert "KeyError" in caplog.text


def test_a_spec_comes_back_from_the_disk_as_it_was(tmp_path: Path) -> None:
    assert recorded_spec(tmp_path) is None
    spec = RunSpec("experiment", "name", {"a": "ü"})
    spec.save(tmp_path)
    assert recorded_spec(tmp_path) == spec


@pytest.mark.parametrize("content", ['{"id": 1', "[]", "{}", '{"experiment": 1, "name": 2, "tags": 3}', "\0" * 100])
def test_of_a_damaged_spec_what_else_is_known_takes_its_place(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = tmp_path / ("a" * 32)
    RunSpec("experiment", "name", {}, id=home.name).save(home)
    (home / "birth.json").write_text(content)
    recovered = recorded_spec(home)
    assert recovered is not None
    assert (recovered.id, recovered.run_id) == (home.name, None)
    assert str(home / "birth.json") in caplog.text
    remember_home("b" * 32, home)
    created = recorded_spec(home)
    assert created is not None
    assert created.run_id == "b" * 32


def test_an_experiment_is_made_where_there_is_none_and_refused_where_it_is_deleted(server: TrackingClient) -> None:
    made = experiment_id(server, "new")
    assert experiment_id(server, "new") == made
    server.client.delete_experiment(made)
    with pytest.raises(RunNotFound, match="deleted"):
        experiment_id(server, "new")
