import json
import socket
from dataclasses import replace
from urllib.request import urlopen

import pytest
from mlflow import MlflowClient

from mltrain.commands.ui import pages
from mltrain.errors import RunNotFound, TrackingError, UsageError
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.pages import location
from mltrain.tracking.tags import STATUS_TAG


@pytest.fixture
def run_id(server: TrackingClient) -> str:
    run = MlflowClient(server.uri).create_run("0", tags={STATUS_TAG: "finished"})
    return str(run.info.run_id)


def at_a_server(store: TrackingClient) -> TrackingClient:
    """A client whose address is that of a server."""
    return replace(store, uri="http://tracking.example:5000/")


def test_a_server_shows_its_own_pages_in_the_mode_that_has_runs(server: TrackingClient, run_id: str) -> None:
    with pages(at_a_server(server), run_id, None) as (address, process):
        assert process is None
        assert address == (f"http://tracking.example:5000/#/experiments/0/runs/{run_id}?workflowType=machine_learning")
    assert location(at_a_server(server), "0", run_id).endswith(address)
    with pages(at_a_server(server), None, None) as (address, _):
        assert address == "http://tracking.example:5000/#/experiments/0?workflowType=machine_learning"


def test_a_store_without_a_run_opens_at_its_experiments(server: TrackingClient) -> None:
    with pages(at_a_server(server), None, None) as (address, _):
        assert address == "http://tracking.example:5000/#/experiments?workflowType=machine_learning"


def test_what_cannot_be_shown_is_refused_before_a_server_is_started(server: TrackingClient, run_id: str) -> None:
    with pytest.raises(RunNotFound), pages(server, "f" * 32, None):
        pass
    with pytest.raises(UsageError, match="UI itself"), pages(at_a_server(server), run_id, 5000):
        pass
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match="cannot be used"), pages(server, run_id, taken.getsockname()[1]):
            pass


def test_a_server_that_does_not_start_is_an_error_with_its_last_words(
    server: TrackingClient, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(TrackingError, match="did not start"), pages(server, run_id, None):
        pass


@pytest.mark.slow
def test_mlflows_own_server_is_started_for_a_store_without_one_and_ends(server: TrackingClient, run_id: str) -> None:
    with pages(server, run_id, None) as (address, process):
        assert process is not None
        base = address.partition("/#")[0]
        with urlopen(f"{base}/ajax-api/2.0/mlflow/runs/get?run_id={run_id}") as answer:
            assert json.load(answer)["run"]["info"]["run_id"] == run_id
    assert process.poll() is not None
