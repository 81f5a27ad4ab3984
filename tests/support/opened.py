"""Runs that mlflow run has made, and what adopts them."""

import sqlite3
from contextlib import closing
from pathlib import Path

from mlflow import MlflowClient

from mltrain.ownership.launcher import Launcher
from mltrain.run import adoption
from mltrain.tracking.client import TrackingClient


def empty_run(client: MlflowClient) -> str:
    return str(client.create_run("0", run_name="launcher").info.run_id)


def adopted(server: TrackingClient, run_id: str) -> None:
    run = adoption.adopt(server, Launcher(run_id, None), None, "project", {}, fallback="project lr=1")
    run.close("FINISHED", "done", 20.0)


def dump(tmp_path: Path) -> list[str]:
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        return list(database.iterdump())
