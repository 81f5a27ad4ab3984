"""A server treats mltrain and MLflow's own client alike."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from mltrain.compat import private
from mltrain.compat.rest import ENTITIES, Pair, RestClient
from mltrain.compat.rest_server import CLIENT_DEFAULTS, RestError
from mltrain.errors import RunNotFound
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.connection import DeferredClient, Refusal
from mltrain.tracking.mlflow_model import Source, log_metrics
from tests.support.servers import TrackingServer

NAMES = ("run_id", "run_name", "experiment_id", "status", "start_time", "end_time", "lifecycle_stage", "artifact_uri")


@pytest.fixture
def uri(tracking_server: TrackingServer) -> str:
    return tracking_server.uri


@pytest.fixture
def clients(uri: str, monkeypatch: pytest.MonkeyPatch) -> tuple[RestClient, MlflowClient]:
    for name, value in CLIENT_DEFAULTS.items():
        monkeypatch.setenv(name, value)
    return RestClient(uri), MlflowClient(uri)


def told(run: Any) -> dict[str, Any]:
    data = run.data
    points = {(point.key, str(point.value), point.timestamp, point.step) for point in private.latest_points(run)}
    metrics = {key: str(value) for key, value in data.metrics.items()}
    of_info = {name: getattr(run.info, name) for name in (*NAMES, "user_id")}
    return {**of_info, "data": (dict(data.tags), dict(data.params), metrics, points)}


def test_a_run_is_the_same_whichever_client_wrote_and_whichever_reads_it(
    clients: tuple[RestClient, MlflowClient], uri: str
) -> None:
    own, theirs = clients
    experiment = own.create_experiment("of both clients")
    assert theirs.get_experiment(experiment).name == "of both clients"
    tags = {"mlflow.user": "me", "mltrain.status": "running"}
    first = own.create_run(experiment, 1_700_000_000_000, tags, "first")
    second = theirs.create_run(experiment, 1_700_000_000_001, tags, "second")
    assert told(first) == told(theirs.get_run(first.info.run_id))
    points = [
        (key, value, 5, step) for key in ("a", "b") for step, value in enumerate((1.5, math.nan, math.inf, -math.inf))
    ]
    for client, run, made in ((own, first, ENTITIES), (theirs, second, private.entities())):
        run_id = run.info.run_id
        client.log_batch(
            run_id,
            params=[made.Param("lr", "1e-3"), made.Param("name", "ü")],
            tags=[made.RunTag("empty", ""), made.RunTag("t", "1")],
        )
        private.log_points(client, run_id, points)
        client.log_param(run_id, "mltrain.attempt.2", "{}")
        client.set_tag(run_id, "more", "words")
        client.delete_tag(run_id, "t")
        client.log_inputs(
            run_id,
            [
                made.DatasetInput(
                    made.Dataset("set", "abc", "local", '{"uri": "/"}'),
                    [made.InputTag("mlflow.data.context", "training")],
                )
            ],
        )
        client.set_terminated(run_id, "KILLED", 1_700_000_009_000)
        client.update_run(run_id, status="RUNNING")
        client.update_run(run_id, name="renamed")
    runs = [told(client.get_run(run.info.run_id)) for client in (own, theirs) for run in (first, second)]
    assert runs[:2] == runs[2:]
    written = [theirs.get_run(run.info.run_id) for run in (first, second)]
    same = [
        {key: value for key, value in told(run).items() if key not in ("run_id", "start_time", "artifact_uri")}
        for run in written
    ]
    assert same[0] == same[1]
    assert same[0]["status"] == "RUNNING"
    assert same[0]["end_time"] == 1_700_000_009_000
    assert str(written[0].inputs) == str(written[1].inputs).replace(second.info.run_id, first.info.run_id)
    for key in ("a", "b", "none"):
        histories = [
            sorted((p.step, p.timestamp, str(p.value)) for p in client.get_metric_history(run.info.run_id, key))
            for client in clients
            for run in (first, second)
        ]
        assert all(history == histories[0] for history in histories)
        between = [str(sorted(private.points(client, uri, [first.info.run_id], key, 1, 3))) for client in clients]
        assert between[0] == between[1]
    assert len(private.points(own, uri, [first.info.run_id], "a", 1, 2)) == 2


def test_searches_find_the_same_page_by_page(clients: tuple[RestClient, MlflowClient]) -> None:
    own = clients[0]
    experiment = own.create_experiment("many")
    for number in range(7):
        own.create_run(experiment, 1000 + number, {"odd": str(number % 2)}, f"run {number}")
    own.delete_run(own.search_runs([experiment])[0].info.run_id)
    for query in ("", "tags.odd = '1'", "tags.odd = 'none'"):
        pages: list[list[Any]] = [[], []]
        for client, found in zip(clients, pages, strict=True):
            token = None
            while True:
                page = client.search_runs([experiment], query, max_results=2, page_token=token)
                found += map(told, page)
                if not (token := page.token):
                    break
        assert pages[0] == pages[1]
        assert bool(pages[0]) == (query != "tags.odd = 'none'")
    found = [
        {
            (one.experiment_id, one.name, one.artifact_location, one.lifecycle_stage)
            for one in client.search_experiments()
        }
        for client in clients
    ]
    assert found[0] == found[1]
    assert own.get_experiment_by_name("many").experiment_id == experiment
    assert own.get_experiment_by_name("none") is None


def test_models_and_versions_are_found(clients: tuple[RestClient, MlflowClient]) -> None:
    own, theirs = clients
    experiment = own.create_experiment("models")
    run_id = own.create_run(experiment, 1, {}, "maker").info.run_id
    model = theirs.create_logged_model(
        experiment, name="net", source_run_id=run_id, tags={"mltrain.checkpoint": "step"}
    )
    theirs.finalize_logged_model(model.model_id, "READY")
    theirs.create_registered_model("registered")
    theirs.create_model_version("registered", f"models:/{model.model_id}", run_id, model_id=model.model_id)
    found = [
        client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'") for client in clients
    ]
    told_of = [[(m.model_id, m.name, str(m.status), m.artifact_location, m.tags) for m in page] for page in found]
    assert told_of[0] == told_of[1]
    assert len(told_of[0]) == 1
    versions = [client.search_model_versions(f"run_id = '{run_id}'", max_results=10) for client in clients]
    assert [[(one.name, int(one.version), one.source, one.run_id) for one in page] for page in versions] == [
        [("registered", 1, f"models:/{model.model_id}", run_id)]
    ] * 2


def test_a_batch_larger_than_a_request_may_be_is_split(clients: tuple[RestClient, MlflowClient]) -> None:
    own, theirs = clients
    run_id = own.create_run("0", 1, {}, "large").info.run_id
    own.log_batch(
        run_id,
        [Pair(f"p{number}", "1") for number in range(250)],
        [Pair(f"t{number}", "1") for number in range(120)],
    )
    run = theirs.get_run(run_id)
    assert len([key for key in run.data.params if key.startswith("p")]) == 250
    assert len([key for key in run.data.tags if key.startswith("t")]) == 120


def test_refusals_are_the_same(clients: tuple[RestClient, MlflowClient], uri: str) -> None:
    own = clients[0]
    run_id = own.create_run("0", 1, {}, "refused").info.run_id
    own.log_param(run_id, "once", "1")
    own.log_param(run_id, "once", "1")
    servers = [TrackingClient(uri, client) for client in clients]
    for call in (
        lambda server: server.log_param(run_id, "once", "2"),
        lambda server: server.create_experiment("Default"),
        lambda server: server.set_tag(run_id, "x" * 300, "value"),
    ):
        raised = []
        for server in servers:
            with pytest.raises(Refusal) as error:
                call(server)
            cause: Any = error.value.__cause__
            raised.append((error.value.permanent, error.value.denied, cause.error_code, str(error.value)[:120]))
        assert raised[0] == raised[1]
        assert raised[0][0] is True
    for server in servers:
        with pytest.raises(RunNotFound, match="Not found in"):
            server.get_run("f" * 32)
    with pytest.raises(RestError) as missing:
        own.ask("GET", "/api/2.0/mlflow/nothing/there")
    assert (missing.value.error_code, missing.value.get_http_status_code()) == ("ENDPOINT_NOT_FOUND", 404)
    for client in (RestClient("http://127.0.0.1:1"), MlflowClient("http://127.0.0.1:1")):
        with pytest.raises(Refusal, match="does not answer") as silent:
            TrackingClient("http://127.0.0.1:1", client).get_run(run_id)
        assert not silent.value.permanent


def test_what_no_plain_client_can_do_goes_to_mlflow(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mltrain.tracking.connection.is_plain", lambda *_: True)
    client = DeferredClient(uri)
    server = TrackingClient(uri, client)
    assert isinstance(client.preferred(), RestClient)
    run = server.create_run("0", 1, {}, "both")
    model = client.create_logged_model("0", name="made", source_run_id=run.info.run_id)
    server.log_points(run.info.run_id, [("loss", 1.0, 5, 3)])
    log_metrics(server, Source(run.info.run_id, "0", "step-000000003-a01", 3, {"loss": 1.0}), model.model_id)
    assert [one.value for one in client.get_logged_model(model.model_id).metrics] == [1.0]
    server.set_tags(run.info.run_id, {"after": "it"})
    server.log_points(run.info.run_id, [("later", 2.0, 5, 1)])
    found = server.get_run(run.info.run_id)
    assert (found.data.tags["after"], found.data.metrics["loss"], found.data.metrics["later"]) == ("it", 1.0, 2.0)


TRAINING = """
import os, shutil, sys
import torch
from mltrain import CheckpointManager
torch.set_num_threads(1)
manager = CheckpointManager(max_to_keep=1)
for step in (1, 2):
    manager.run.log_metrics({"loss": 1.0 / step}, step)
    manager.save({"weight": torch.ones(5) * step}, step=step)
manager.close()
run_id = str(manager.run.id)
shutil.rmtree(os.environ["MLTRAIN_HOME"])
manager = CheckpointManager(run_id, max_to_keep=1)
state = manager.load_latest_checkpoint()
assert float(state["weight"][0]) == 2.0
manager.run.continue_exactly_after(2)
manager.save({"weight": torch.ones(5)}, step=3)
manager.close()
assert not {"mlflow", "pandas", "fastapi", "sqlalchemy"} & set(sys.modules), sorted(sys.modules)
import mlflow
mlflow.set_experiment("afterwards")
with mlflow.start_run() as run:
    mlflow.log_param("key", "value")
    mlflow.log_metric("loss", 1.0)
assert mlflow.MlflowClient().get_run(run_id).data.metrics["loss"] == 0.5
assert mlflow.get_run(run.info.run_id).data.params == {"key": "value"}
print("RUN", run_id)
"""


def test_a_training_on_a_server_imports_nothing_of_mlflow_and_leaves_it_whole(uri: str, tmp_path: Path) -> None:
    home = {"MLFLOW_TRACKING_URI": uri, "MLTRAIN_HOME": str(tmp_path / "home")}
    ran = subprocess.run(
        [sys.executable, "-c", TRAINING],
        env={**os.environ, **home},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    run = MlflowClient(uri).get_run(ran.stdout.split()[-1])
    assert (run.info.status, run.data.tags["mltrain.latest"]) == ("FINISHED", "step-000000003-a02")
