"""``watch`` follows a run through the tracking store."""

import pytest
from mlflow import MlflowClient

from mltrain.commands.watch import watch
from mltrain.errors import RunNotFound
from mltrain.ownership.attempts import holder_tags
from mltrain.tracking.client import TrackingClient


def test_a_run_is_followed_until_it_ends(server: TrackingClient) -> None:
    client = MlflowClient(server.uri)
    run_id = client.create_run("0", tags=holder_tags(1)).info.run_id
    client.log_param(run_id, "epochs", "2")
    waits: list[float] = []

    def goes_on(seconds: float) -> None:
        """What the training does between two looks."""
        waits.append(seconds)
        if len(waits) == 3:
            client.set_tag(run_id, "mltrain.status", "finished")
            return
        for key, value in (("epoch", float(len(waits))), ("val/loss", 1 / len(waits)), ("system/cpu", 1.0)):
            client.log_metric(run_id, key, value, step=len(waits))

    looks = list(watch(server, run_id[:8], 0.5, goes_on))
    assert [(look.state, look.epoch, look.epochs) for look in looks] == [
        ("running", None, 2),
        ("running", 1, 2),
        ("running", 2, 2),
        ("finished", 2, 2),
    ]
    assert waits == [0.5] * 3
    assert looks[-1].metrics == {"epoch": 2.0, "val/loss": 0.5}
    assert looks[2].silent >= looks[1].silent


def test_a_run_that_has_ended_is_looked_at_once(server: TrackingClient) -> None:
    run = MlflowClient(server.uri).create_run("0", tags={"mltrain.status": "stopped"})
    (look,) = watch(server, run.info.run_id, 1.0, lambda seconds: pytest.fail("nothing is waited for"))
    assert (look.state, look.is_live) == ("stopped", False)


def test_a_run_that_is_not_there_cannot_be_watched(server: TrackingClient) -> None:
    with pytest.raises(RunNotFound):
        next(watch(server, "f" * 32, 1.0))
