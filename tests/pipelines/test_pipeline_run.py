"""A pipeline finds its run and its stages' runs."""

from pathlib import Path

from mlflow import MlflowClient

from mltrain.pipeline import Pipeline, Stage
from mltrain.pipelines.pipeline_run import children, chosen_parent
from mltrain.run.preparation import user
from mltrain.tracking.client import TrackingClient
from tests.support import tiny
from tests.support.database import MORE_THAN_A_PAGE, many


def test_the_run_of_a_pipeline_is_found_behind_a_thousand_runs_of_its_stages(
    server: TrackingClient, tmp_path: Path
) -> None:
    pipeline = Pipeline("long", [Stage("first", tiny.Config, build=tiny.build)])
    own = {"mltrain.pipeline": "long", "mlflow.user": user()}
    (parent,) = many(tmp_path, 1, own)
    stages = many(tmp_path, MORE_THAN_A_PAGE, {**own, "mltrain.stage": "first", "mlflow.parentRunId": parent})
    found = chosen_parent(server, pipeline, run=None, experiment=None)
    assert found is not None
    assert found.info.run_id == parent
    client = MlflowClient(server.uri)
    assert {run.info.run_id for run in children(server, client.get_run(parent), "first")} == set(stages)
