"""What a run measures of itself, and of its machine."""

from mlflow import MlflowClient

from mltrain.run.opening import open_run
from tests.support.waiting import eventually


def test_the_first_metric_of_a_run_is_the_trainings_own(uri: str) -> None:
    """MLflow's comparison draws the metric that a run has first; the machine's come after it, with their own times."""
    run = open_run()
    eventually(lambda: run.outbox._early, "a record of the machine")
    run.log_metrics({"val/loss": 0.5}, 1)
    assert run.close("FINISHED", "done", 60.0)
    client = MlflowClient(uri)
    keys = list(client.get_run(run.id).data.metrics)
    assert keys[0] == "val/loss"
    assert "system/cpu_utilization_percentage" in keys
    times = [
        client.get_metric_history(run.id, key)[0].timestamp for key in ("system/cpu_utilization_percentage", "val/loss")
    ]
    assert times[0] <= times[1]


def test_what_the_machine_did_is_kept_where_nothing_was_measured(uri: str) -> None:
    run = open_run()
    eventually(lambda: run.outbox._early, "a record of the machine")
    run.close("FINISHED", "done", 60.0)
    assert "system/cpu_utilization_percentage" in MlflowClient(uri).get_run(run.id).data.metrics
