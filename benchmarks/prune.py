"""Measures ``mltrain prune --experiment`` over many runs. Does its time grow with their number alone?

``python -m benchmarks.prune [--runs 250 500 1000] [--server-runs 50 100 200] [--checkpoints 10]`` makes experiments of so
many ended runs with so many small checkpoints each, on this machine's disk and behind an MLflow server with one worker, and
prunes them with ``Latest(2) | Best(1)``. A call is one to the tracking store; a request is one over HTTP.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
import torch
from mlflow import MlflowClient

from mltrain.checkpoint.manifest import FILE_NAME, CheckpointId, Manifest, now
from mltrain.checkpoint.policies import parse
from mltrain.checkpoint.publishing import stage
from mltrain.checkpoint.snapshot import HostBuffers, snapshot
from mltrain.checkpoint.staging import Spool
from mltrain.checkpoint.store import CheckpointStore
from mltrain.commands.prune import Rules, carry_out, plan_experiment
from mltrain.store.local import LocalArtifacts
from mltrain.tracking.client import TrackingClient
from tests.support.database import fresh_database
from tests.support.servers import TrackingServer

KEEP = "Latest(2) | Best(1)"
NOBODY = "0" * 32


class Counted:
    """Counts tracking calls and HTTP requests while open."""

    def __init__(self) -> None:
        self.calls = self.requests = 0

    @contextmanager
    def open(self) -> Iterator["Counted"]:
        """Count until the block ends."""
        call, send = TrackingClient.tried, requests.Session.send

        def counted_call(server: TrackingClient, *arguments: Any, **named: Any) -> Any:
            self.calls += 1
            return call(server, *arguments, **named)

        def counted_send(session: requests.Session, *arguments: Any, **named: Any) -> Any:
            self.requests += 1
            return send(session, *arguments, **named)

        TrackingClient.tried, requests.Session.send = counted_call, counted_send  # type: ignore[method-assign, assignment]
        try:
            yield self
        finally:
            TrackingClient.tried, requests.Session.send = call, send  # type: ignore[method-assign]


def sample(folder: Path) -> Manifest:
    """Write a small checkpoint whose files all others share."""
    store = CheckpointStore(NOBODY, LocalArtifacts(folder), Spool(folder / "staging"))
    state = snapshot({"model": {"weight": torch.ones(100)}, "epoch": 1}, HostBuffers())
    draft = Manifest.model_validate(
        {
            **{"run_id": NOBODY, "id": CheckpointId(attempt=1, step=1), "kind": "epoch", "epoch": 1, "parent": None},
            **{"parts": ("model", "epoch"), "files": {}, "created": now()},
        }
    )
    return stage(store, state, draft, {"params.json": b"{}", "history.csv": b"epoch\n"})


def make(client: MlflowClient, name: str, runs: int, checkpoints: int, root: Path, template: Path) -> None:
    """Make an experiment of ended runs; their files are links to those of the template."""
    written = sample(template)
    source = template / "checkpoints" / written.name
    experiment = client.create_experiment(name)
    for number in range(runs):
        tags = {"mltrain.status": "finished", "mltrain.best_metric": "val/loss", "mltrain.retention": KEEP}
        run_id = client.create_run(experiment, run_name=f"run-{number}", tags=tags).info.run_id
        client.set_terminated(run_id)
        for step in range(1, checkpoints + 1):
            manifest = written.model_copy(
                update={
                    **{"run_id": run_id, "id": CheckpointId(attempt=1, step=step), "epoch": step},
                    "metrics": {"val/loss": float((step * 7 + number) % checkpoints)},
                }
            )
            place = root / experiment / run_id / "artifacts" / "checkpoints" / manifest.name
            place.mkdir(parents=True)
            for file in written.files:
                os.link(source / file, place / file)
            (place / FILE_NAME).write_bytes(manifest.to_json())


def measure(where: str, server: TrackingClient, name: str, runs: int) -> None:
    """Plan, carry out, and print a row of the table."""
    with Counted().open() as counted:
        began, cpu = time.monotonic(), time.process_time()
        plans = plan_experiment(server, name, Rules(parse(KEEP)))
        planned = time.monotonic()
        for plan in plans:
            carry_out(server, plan)
        ended, cpu = time.monotonic(), time.process_time() - cpu
    removed = sum(len(plan.removals) for plan in plans)
    assert len(plans) == runs
    assert removed >= runs
    print(
        f"| {where} | {runs} | {removed} | {planned - began:.1f} s | {ended - planned:.1f} s | "
        f"{1000 * (ended - began) / runs:.0f} ms | {1000 * cpu / runs:.0f} ms | "
        f"{counted.calls / runs:.1f} | {counted.requests / runs:.1f} |",
        flush=True,
    )


def main() -> None:
    """Make, prune, print."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--runs", type=int, nargs="*", default=[250, 500, 1000])
    words.add_argument("--server-runs", type=int, nargs="*", default=[50, 100, 200])
    words.add_argument("--checkpoints", type=int, default=10)
    given = words.parse_args()
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}
    os.environ |= {**quiet, "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0"}
    print("| where | runs | removed | plan | deed | a run | CPU a run | calls a run | requests a run |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory(prefix="mltrain-prune-") as temporary:
        folder = Path(temporary)
        os.environ["MLTRAIN_HOME"] = str(folder / "home")
        fresh_database(folder / "mlflow.db", folder / "mlruns")
        os.environ["MLFLOW_TRACKING_URI"] = uri = f"sqlite:///{folder / 'mlflow.db'}"
        os.chdir(folder)
        for runs in given.runs:
            make(MlflowClient(uri), f"of {runs}", runs, given.checkpoints, folder / "mlruns", folder / f"t{runs}")
            measure("this machine", TrackingClient(uri, MlflowClient(uri)), f"of {runs}", runs)
        if given.server_runs:
            (folder / "server").mkdir()
            tracking = TrackingServer(folder / "server")
            tracking.start()
            try:
                os.environ["MLFLOW_TRACKING_URI"] = tracking.uri
                client = MlflowClient(tracking.uri)
                for runs in given.server_runs:
                    root = tracking.folder / "artifacts"
                    make(client, f"of {runs}", runs, given.checkpoints, root, folder / f"s{runs}")
                    measure("a server", TrackingClient(tracking.uri, client), f"of {runs}", runs)
            finally:
                tracking.kill()


if __name__ == "__main__":
    main()
