"""Listing runs."""

from mlflow import MlflowClient

from mltrain.run.listing import Selection, listed
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.tags import LAUNCHER_OF_TAG
from tests.support.opened import empty_run


def test_a_search_takes_all_pages(server: TrackingClient, client: MlflowClient) -> None:
    made = {empty_run(client) for _ in range(7)}
    found = [run.info.run_id for run in server.search_runs(["0"], "", page=2)]
    assert len(found) == 7
    assert set(found) == made


def test_runs_that_are_hidden_do_not_take_the_places_of_those_that_are_shown(
    server: TrackingClient, client: MlflowClient
) -> None:
    for hidden in (False, True, True):
        run_id = empty_run(client)
        client.set_tag(run_id, "mltrain.status", "finished")
        if hidden:
            client.set_tag(run_id, LAUNCHER_OF_TAG, "0" * 32)
    assert len(listed(server, None, Selection(most=1))) == 1
