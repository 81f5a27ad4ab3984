"""Adopting the run that mlflow run has made."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from mltrain.errors import MltrainError, RunNotFound, UsageError
from mltrain.ownership.launcher import Launcher
from mltrain.run import adoption
from mltrain.tracking.client import TrackingClient
from tests.support.opened import adopted, dump, empty_run


def test_an_empty_run_with_the_parameters_of_its_launcher_is_adopted(
    server: TrackingClient, client: MlflowClient
) -> None:
    run_id = empty_run(client)
    client.log_param(run_id, "epochs", "'3'")
    client.set_terminated(run_id, "FAILED")  # a launcher that gave up before
    run = adoption.adopt(server, Launcher(run_id, None), None, "project", {}, fallback="project lr=1")
    assert client.get_run(run_id).info.status == "RUNNING"
    run.close("FINISHED", "done", 20.0)


@pytest.mark.parametrize(
    ("present", "wanted", "expected"),
    [("wistful-rat-123", None, "project lr=1"), ("launcher", None, "launcher"), ("launcher", "mine", "mine")],
)
def test_an_adopted_run_keeps_the_name_that_a_user_chose(
    present: str, wanted: str | None, expected: str, server: TrackingClient, client: MlflowClient
) -> None:
    run_id = client.create_run("0", run_name=present).info.run_id
    run = adoption.adopt(server, Launcher(run_id, None), wanted, "project", {}, fallback="project lr=1")
    assert client.get_run(run_id).info.run_name == expected
    run.close("FINISHED", "done", 20.0)


@pytest.mark.parametrize("what", ["a training", "metrics", "an artifact", "a tag of mltrain", "a claim"])
def test_a_run_in_which_something_was_recorded_is_not_adopted(
    what: str, server: TrackingClient, client: MlflowClient, tmp_path: Path
) -> None:
    run_id = empty_run(client)
    if what == "a training":
        adopted(server, run_id)
    elif what == "metrics":
        client.log_metric(run_id, "loss", 1.0)
    elif what == "an artifact":
        client.log_text(run_id, "text", "notes.txt")
    elif what == "a tag of mltrain":
        client.set_tag(run_id, "mltrain.latest", "step-000000001-a01")
    else:
        client.log_param(run_id, "mltrain.attempt.1", "{}")
    before = dump(tmp_path)
    with pytest.raises(UsageError, match="MLFLOW_RUN_ID"):
        adopted(server, run_id)
    assert dump(tmp_path) == before


def test_the_refusal_names_the_command_that_continues_the_training(
    server: TrackingClient, client: MlflowClient
) -> None:
    run_id = empty_run(client)
    adopted(server, run_id)
    with pytest.raises(UsageError, match=f"mltrain train --resume-run {run_id}"):
        adopted(server, run_id)


@pytest.mark.parametrize("run_id", ["0" * 32, "a word", "deleted"])
def test_a_run_that_is_not_there_is_not_adopted(run_id: str, server: TrackingClient, client: MlflowClient) -> None:
    if run_id == "deleted":
        run_id = empty_run(client)
        client.delete_run(run_id)
    with pytest.raises(RunNotFound, match=r"MLFLOW_RUN_ID.*[.?] Or unset MLFLOW_RUN_ID"):
        adopted(server, run_id)


def test_a_run_is_adopted_once_also_by_two_at_the_same_moment(server: TrackingClient, client: MlflowClient) -> None:
    run_id = empty_run(client)
    first = adoption.adoptable(server, Launcher(run_id, None))
    adopted(server, run_id)
    assert first.info.run_id == run_id  # the second had seen it empty as well
    with pytest.raises(MltrainError):
        adopted(server, run_id)
