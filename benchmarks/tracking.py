"""What tracking costs: steps per second with three metrics a step on a tiny model, beside the same loop without tracking.

python benchmarks/tracking.py [--steps 20000] [--store sqlite|server] [--rounds 3] [--others 300]

Each way runs in a process of its own; the server is MLflow's, with one worker. Two processes of the same program differ in speed
by up to a fifth, and machines change theirs within a minute, so the loop with tracking stands between two without, in the same
process: as a whole run, from before the process that sends is started until the tracking store has every point ("with the
flush"), and by turns of 20,000 steps, each of which begins when all points are sent. There the clock is compared with the CPU
time of the training's thread: the difference is what it waits for others, and the rest what sharing the machine costs. What the
store itself can take is measured beside it: the same number of points in batches of 1,000, and nothing else. Lightning's logger
is among the ways where Lightning is installed.
"""

import argparse
import importlib.util
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

TURN = 20_000
OTHERS = ("log_metric", "log_metrics", "log_metrics, asynchronous", "Lightning's MLFlowLogger")


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


def nothing(values: dict[str, float], step: int) -> None:
    """Log nothing."""


def measured(way: str, steps: int) -> dict[str, float]:
    """Run one way in this process."""
    loop(300, nothing)  # warm
    if way == "mltrain by turns":
        from mltrain.run.opening import open_run

        run, done = open_run(), 0
        ratios: list[float] = []
        waited = 0.0
        plain = loop(TURN, nothing)
        while done < steps + TURN:
            began = time.thread_time()
            with_it = loop(TURN, lambda values, step, first=done: run.log_metrics(values, first + step))  # type: ignore[misc]
            waited += max(0.0, with_it - (time.thread_time() - began))
            done += TURN
            while run.outbox.journal.unsent():
                time.sleep(0.05)
            before, plain = plain, loop(TURN, nothing)
            ratios.append((before + plain) / 2 / with_it)
        run.close("FINISHED", "benchmark", 600.0)
        low, median, high = statistics.quantiles(ratios[1:], n=4)  # the first turn starts what sends points
        spreads = {"low": low, "median": median, "high": high, "first": ratios[0]}
        return {"steps": steps, "loop": 1.0, "all": 1.0, "waited": waited / done, **spreads}
    if way == "mltrain":
        from mltrain.run.opening import open_run

        before = loop(steps, nothing)
        run = open_run()
        began = time.perf_counter()
        seconds = loop(steps, run.log_metrics)
        delivered = run.close("FINISHED", "benchmark", 600.0)
        whole = time.perf_counter() - began
        assert delivered
        assert stored(run.id) == 3 * steps
        plain = (before + loop(steps, nothing)) / 2
        return {"steps": steps, "loop": seconds, "all": whole, "plain": plain}
    if way.startswith("Lightning"):
        from lightning.pytorch.loggers import MLFlowLogger

        logger = MLFlowLogger(tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
        _ = logger.run_id
        seconds = loop(steps, logger.log_metrics)
        logger.finalize()
        return {"steps": steps, "loop": seconds, "all": seconds}
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
    """Count the points of a run in the tracking store."""
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
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--others", type=int, default=300, help="steps of the ways that take milliseconds a call")
    asked.add_argument("--store", choices=("sqlite", "server"), default="server")
    asked.add_argument("--way")
    given = asked.parse_args()
    if given.way:
        print("RESULT", json.dumps(measured(given.way, given.steps)))
        return
    with tempfile.TemporaryDirectory() as place:
        process, uri = served(Path(place)) if given.store == "server" else (None, f"sqlite:///{place}/mlflow.db")
        environment = {
            **os.environ,
            "MLFLOW_TRACKING_URI": uri,
            "MLTRAIN_HOME": f"{place}/home",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }

        def one(way: str, steps: int) -> dict[str, float]:
            words = [sys.executable, __file__, "--way", way, "--steps", str(steps)]
            done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True, cwd=place)
            found: dict[str, float] = json.loads(done.stdout.rpartition("RESULT ")[2])
            return found | {"loop": steps / found["loop"], "all": steps / found["all"]}

        try:
            report(one, given.steps, given.rounds, given.others, given.store)
        finally:
            if process is not None:
                os.killpg(process.pid, 15)
                process.wait()


def report(one: Callable[[str, int], dict[str, float]], steps: int, rounds: int, others: int, store: str) -> None:
    """Measure all ways; print their steps a second. Beside them stands the highest possible number."""
    plain: list[float] = []
    ratios: list[float] = []
    flushed: list[float] = []
    for _ in range(rounds):
        tracked, alone = one("mltrain", steps), one("store", steps)
        rate = steps / tracked["plain"]
        plain.append(rate)
        ratios.append(tracked["loop"] / rate)
        flushed.append(tracked["all"] / min(rate, alone["all"]))
        print(
            f"{store}: without tracking {rate:.0f} steps/s; the store alone takes {3 * alone['all']:.0f} points/s; mltrain "
            f"{tracked['loop']:.0f} steps/s = {ratios[-1]:.3f}, {tracked['all']:.0f} with the flush = {flushed[-1]:.3f}",
            flush=True,
        )
    turns = one("mltrain by turns", 2 * steps)
    print(
        f"mltrain in the loop by turns: {turns['median']:.3f} (quartiles {turns['low']:.3f} … {turns['high']:.3f}) of no "
        f"tracking; in the first turn, in which the process that sends starts, {turns['first']:.3f}; "
        f"{1e6 * turns['waited']:.0f} µs a step were waited for other threads"
    )
    print(f"mltrain in the loop, whole runs: {spread(ratios)} of no tracking")
    print(f"with the last flush: {spread(flushed)} of what is possible, the slower of no tracking and the store alone")
    for way in OTHERS:
        if way.startswith("Lightning") and importlib.util.find_spec("lightning") is None:
            print(f"{way}: Lightning is not installed")
            continue
        found, rate = one(way, others), statistics.median(plain)
        print(
            f"{way:<28} {found['loop']:>6.0f} steps/s in the loop = {found['loop'] / rate:.3f} of no tracking; with the "
            f"flush {found['all']:.0f}",
            flush=True,
        )


def spread(values: list[float]) -> str:
    """Say the median and the ends."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} … {max(values):.3f})"


if __name__ == "__main__":
    main()
