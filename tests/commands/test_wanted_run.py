"""The run that a training wants: found without a change, and opened as the request says."""

import logging

import pytest
from mlflow import MlflowClient

from mltrain.commands.train_request import Request
from mltrain.commands.wanted_run import WantedRun
from mltrain.config import Config
from mltrain.ownership.launcher import Launcher
from mltrain.tracking.client import TrackingClient


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
