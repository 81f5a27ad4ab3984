"""What tracking costs: steps per second with three metrics a step on a tiny model, beside the same loop without tracking.

python benchmarks/tracking.py [--steps 20000] [--store sqlite|server] [--others 300]

Each way runs in a process of its own, against a fresh database; the server is MLflow's, with one worker.

"By turns" is rounds of 500 steps with and without tracking, each pair compared and the median taken, so that a machine that
is busy with other things disturbs both alike. "With the flush" is until the tracking store has every point. What the store
itself can take is measured beside it: the same number of points in batches of 1,000, and nothing else.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

WAYS = (
    "none",
    "mltrain",
    "store",
    "mltrain by turns",
    "none again",
    "log_metric",
    "log_metrics",
    "log_metrics, asynchronous",
)


def loop(steps: int, log: Callable[[dict[str, float], int], None]) -> float:
    """Train a tiny model and log three metrics a step; return the seconds."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(net.parameters())
    inputs, labels = torch.randn(64, 16), torch.randn(64, 1)
    began = time.perf_counter()
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(net(inputs), labels)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        log({"loss": loss.item(), "grad_norm": float(norm), "rate": 1e-3}, step)
    return time.perf_counter() - began


def measured(way: str, steps: int) -> dict[str, float]:
    """Run one way in this process."""
    loop(300, lambda values, step: None)  # warm
    began = time.perf_counter()
    if way.startswith("none"):
        seconds = loop(steps, lambda values, step: None)
        return {"steps": steps, "loop": seconds, "all": seconds}
    if way == "mltrain by turns":
        from mltrain.tracking.opening import open_run

        run, ratios, done = open_run(), [], 0
        for _ in range(steps // 500):
            with_it = loop(500, lambda values, step, first=done: run.log_metrics(values, first + step))  # type: ignore[misc]
            done += 500
            while run.journal.unsent() > 100:
                time.sleep(0.05)
            ratios.append(loop(500, lambda values, step: None) / with_it)
        run.close("FINISHED", "benchmark", 600.0)
        low, median, high = statistics.quantiles(ratios, n=4)
        return {"steps": steps, "loop": 1.0, "all": 1.0, "low": low, "median": median, "high": high}
    if way == "mltrain":
        from mltrain.tracking.opening import open_run

        run = open_run()
        began = time.perf_counter()
        seconds = loop(steps, run.log_metrics)
        delivered = run.close("FINISHED", "benchmark", 600.0)
        whole = time.perf_counter() - began
        assert delivered
        return {"steps": steps, "loop": seconds, "all": whole, "points": stored(run.id)}
    import mlflow
    from mlflow.entities import Metric

    with mlflow.start_run() as active:
        began = time.perf_counter()
        if way == "store":
            client = mlflow.MlflowClient()
            for first in range(0, 3 * steps, 1000):
                batch = [Metric(f"m{n % 3}", 0.5, 1_700_000_000_000 + n, n // 3) for n in range(first, first + 1000)]
                client.log_batch(active.info.run_id, metrics=batch)
            seconds = time.perf_counter() - began
        elif way == "log_metric":
            seconds = loop(
                steps, lambda values, step: [mlflow.log_metric(k, v, step) for k, v in values.items()] and None
            )
        else:
            waits = way == "log_metrics"
            seconds = loop(steps, lambda values, step: mlflow.log_metrics(values, step, synchronous=waits) and None)
            if not waits:
                mlflow.flush_async_logging()
        whole = time.perf_counter() - began
    return {"steps": steps, "loop": seconds, "all": whole}


def stored(run_id: str) -> int:
    """Count the points that the tracking store has of a run."""
    import mlflow

    client = mlflow.MlflowClient()
    return sum(len(client.get_metric_history(run_id, key)) for key in ("loss", "grad_norm", "rate"))


def served(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start a tracking server on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = str(Path(sys.executable).parent / "mlflow")
    words = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    places = [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = subprocess.Popen([program, *words, *places], env=environment, start_new_session=True, **quiet)  # type: ignore[call-overload]
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
            return process, f"http://127.0.0.1:{port}"
        except OSError:
            time.sleep(0.3)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--steps", type=int, default=20_000)
    asked.add_argument("--others", type=int, default=300, help="steps of the ways that take milliseconds a call")
    asked.add_argument("--store", choices=("sqlite", "server"), default="server")
    asked.add_argument("--way")
    given = asked.parse_args()
    if given.way:
        print("RESULT", json.dumps(measured(given.way, given.steps)))
        return
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        process, uri = served(Path(place)) if given.store == "server" else (None, f"sqlite:///{place}/mlflow.db")
        home = {"MLFLOW_TRACKING_URI": uri, "MLTRAIN_HOME": f"{place}/home", "MLFLOW_DISABLE_TELEMETRY": "true"}
        try:
            for way in WAYS:
                steps = given.others if way.startswith("log_") else given.steps
                words = [sys.executable, __file__, "--way", way, "--steps", str(steps)]
                done = subprocess.run(
                    words, env={**os.environ, **home}, capture_output=True, text=True, check=True, cwd=place
                )
                results[way] = json.loads(done.stdout.rpartition("RESULT ")[2])
        finally:
            if process is not None:
                os.killpg(process.pid, 15)
                process.wait()
    rate = {way: found["steps"] / found["loop"] for way, found in results.items()}
    whole = {way: found["steps"] / found["all"] for way, found in results.items()}
    plain = (rate["none"] + rate["none again"]) / 2
    print(
        f"{given.store}; without tracking {plain:.0f} steps/s ({rate['none']:.0f} before, {rate['none again']:.0f} after)"
    )
    print(f"the store alone takes {3 * whole['store']:.0f} points/s, that is {whole['store']:.0f} steps/s")
    turns = results["mltrain by turns"]
    spread = f"{turns['low']:.3f} … {turns['high']:.3f}"
    print(f"mltrain in the loop, by turns: {turns['median']:.3f} of no tracking (quartiles {spread})")
    for way in WAYS:
        if not way.startswith(("none", "store")) and way != "mltrain by turns":
            print(
                f"{way:<28} in the loop {rate[way]:>6.0f} steps/s = {rate[way] / plain:.3f}; with the flush "
                f"{whole[way]:>6.0f} = {whole[way] / min(plain, whole['store']):.3f} of what is possible"
            )


if __name__ == "__main__":
    main()
