"""Measures a resume by metric points and by checkpoint size.

python -m benchmarks.resume [--points 10000 1000000] [--store sqlite|server] [--times 5] [--megabytes 300]

Gives a run so many points of four keys, of which a checkpoint has all but the last hundred steps, and resumes it so many times in
a fresh process and an empty folder, measured after imports: claim, load, and finding out what the tracking store has beyond the
checkpoint. With a server and megabytes it prints what a resume may take: 1.2 times the plain transfer of the same bytes, over as
many connections as bring them soonest, and 0.7 s. A request is one over HTTP; the points are put into the database directly.
"""

import argparse
import json
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import torch

from benchmarks.timeline import transfers
from tests.support.database import fresh_database
from tests.support.servers import TrackingServer

BEYOND = 100
KEYS = ("loss", "accuracy", "rate", "norm")


def filled(database: Path, steps: int, megabytes: int) -> str:
    """Make an ended run with ``steps`` steps; return its id. Its checkpoint is a hundred steps before the end."""
    from mltrain import CheckpointManager

    manager = CheckpointManager()
    manager.save({"model": {"weight": torch.randn(1000 + 250_000 * megabytes)}, "step": steps - BEYOND})
    run_id = str(manager.run.id)
    manager.close("KILLED")
    with closing(sqlite3.connect(database)) as tables:
        for key in KEYS:
            rows = ((key, float(step), step, run_id, step, False) for step in range(1, steps + 1))
            tables.executemany(
                "INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan) VALUES (?, ?, ?, ?, ?, ?)", rows
            )
            tables.execute(
                "INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid) VALUES (?, ?, ?, ?, ?, ?)",
                (key, float(steps), steps, steps, False, run_id),
            )
        tables.commit()
    return run_id


RESUME = """
import json, sys, time
import requests
from mltrain import CheckpointManager
from mltrain.tracking.client import TrackingClient

run_id, step = sys.argv[1], int(sys.argv[2])
calls = []
for kind, name in ((TrackingClient, "tried"), (requests.Session, "send")):
    def counted(*arguments, _call=getattr(kind, name), _name=name, **named):
        calls.append(_name)
        return _call(*arguments, **named)
    setattr(kind, name, counted)
began = time.perf_counter()
manager = CheckpointManager(run_id)
state = manager.load_latest_checkpoint()
assert state is not None and state["step"] == step
manager.run.continue_exactly_after(step)
seconds, asked = time.perf_counter() - began, calls[:]
manager.close("KILLED")
print(json.dumps([seconds, asked.count("tried"), asked.count("send")]))
"""
"""What a fresh process does that resumes: only there nothing has imported MLflow."""


def resumed(run_id: str, steps: int) -> tuple[float, int, int]:
    """Resume a run once; return the seconds after imports until the training could go on, calls and requests."""
    shutil.rmtree(os.environ["MLTRAIN_HOME"])  # else the checkpoint would come from this disk
    words = [sys.executable, "-c", RESUME, run_id, str(steps - BEYOND)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    seconds, calls, requests = json.loads(done.stdout.splitlines()[-1])
    return seconds, calls, requests


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--points", type=int, nargs="+", default=[10_000, 1_000_000])
    asked.add_argument("--store", choices=("sqlite", "server"), default="sqlite")
    asked.add_argument("--times", type=int, default=5)
    asked.add_argument("--megabytes", type=int, default=0, help="of the checkpoint")
    given = asked.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        server = TrackingServer(folder) if given.store == "server" else None
        if server is None:
            fresh_database(folder / "mlflow.db", folder / "mlruns")
        else:
            server.start()
        os.environ["MLTRAIN_HOME"] = f"{place}/home"
        os.environ["MLFLOW_TRACKING_URI"] = server.uri if server is not None else f"sqlite:///{place}/mlflow.db"
        try:
            for points in given.points:
                steps = points // len(KEYS)
                run_id = filled(folder / "mlflow.db", steps, given.megabytes)
                seconds, calls, sent = zip(*(resumed(run_id, steps) for _ in range(given.times)), strict=True)
                print(
                    f"{given.store}, {points} points: {statistics.median(seconds):.2f} s ({min(seconds):.2f} … "
                    f"{max(seconds):.2f}) a resume, {max(calls)} calls, {max(sent)} requests",
                    flush=True,
                )
            if server is not None and given.megabytes:
                plain = [one for _ in range(3) for one in transfers(server.uri, os.urandom(1 << 20) * given.megabytes)]
                _, connections, soonest = min((one for one in plain if one[0] == "received"), key=lambda one: one[2])
                print(
                    f"plain transfer: {soonest:.2f} s over {connections}; a resume may take {1.2 * soonest + 0.7:.2f} s"
                )
        finally:
            if server is not None:
                server.kill()


if __name__ == "__main__":
    main()
