"""Who sends metric points: a second process, or the training's own.

python benchmarks/points.py [--steps 4000] [--rounds 3] [--turns 4] [--store server sqlite] [--width 32 256]

Three metrics a step on a tiny model; the width sets how long a step takes. Each way runs in a process of its own, and the ways
take turns, round by round. In each process turns with tracking stand between turns without, and every turn begins when all
points are sent; a ratio compares a turn with the two around it, so other load on the machine weighs on both. The first turn
with tracking starts the second process and is left out.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tracking import served

from mltrain.delivery.journal import Journal
from mltrain.delivery.sender import Sender
from mltrain.delivery.sending_process import SenderProcess
from mltrain.delivery.sync import Existing, HostLock
from mltrain.store.local import LocalArtifacts
from mltrain.tracking.client import connect

WAYS = ("process", "own thread")


def loop(steps: int, width: int, log: Callable[[dict[str, float], int], None]) -> float:
    """Train and log three metrics a step; return the seconds."""
    import torch
    from torch import nn

    net = nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
    optimizer = torch.optim.AdamW(net.parameters())
    inputs, labels = torch.randn(64, 16), torch.randn(64, 1)
    began = time.perf_counter()
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(net(inputs), labels)
        loss.backward()
        optimizer.step()
        log({"loss": loss.item(), "grad_norm": 1.0, "rate": 1e-3}, step)
    return time.perf_counter() - began


def measured(way: str, steps: int, width: int, turns: int, folder: Path) -> dict[str, float]:
    """Return one way's median slowdown, and the untracked step's seconds."""
    import torch

    torch.set_num_threads(1)
    server = connect()
    run_id = server.create_run("0", 1, {}, way).info.run_id
    journal = Journal(folder / "journal.sqlite", 1)
    process = SenderProcess(folder / "journal.sqlite", server.uri) if way == "process" else None
    sender = Sender(server, Existing(run_id, LocalArtifacts(folder)), journal, HostLock(), process)
    now, ratios, alone = time.time_ns, [], []
    loop(300, width, lambda values, step: None)
    plain = loop(steps, width, lambda values, step: None)
    for turn in range(turns + 1):
        first = turn * steps
        tracked = loop(steps, width, lambda values, step, first=first: journal.log_metrics(values, first + step, now()))  # type: ignore[misc]
        journal.flush()
        while journal.unsent():
            time.sleep(0.05)
        before, plain = plain, loop(steps, width, lambda values, step: None)
        ratios.append((before + plain) / 2 / tracked)
        alone.append(plain / steps)
    sender.drain(60.0)
    journal.close()
    return {"ratio": statistics.median(ratios[1:]), "seconds": statistics.median(alone)}


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--steps", type=int, default=4000)
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--turns", type=int, default=4)
    asked.add_argument("--width", type=int, nargs="+", default=[32, 256])
    asked.add_argument("--store", nargs="+", choices=("server", "sqlite"), default=["server", "sqlite"])
    asked.add_argument("--way", choices=WAYS)
    given = asked.parse_args()
    if given.way:
        with tempfile.TemporaryDirectory() as place:
            found = measured(given.way, given.steps, given.width[0], given.turns, Path(place))
        print("RESULT", json.dumps(found))
        return
    for store in given.store:
        with tempfile.TemporaryDirectory() as place:
            process, uri = served(Path(place)) if store == "server" else (None, f"sqlite:///{place}/mlflow.db")
            environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "MLFLOW_DISABLE_TELEMETRY": "true"}
            try:
                for width in given.width:
                    report(store, width, given, environment)
            finally:
                if process is not None:
                    os.killpg(process.pid, 15)
                    process.wait()


def report(store: str, width: int, given: argparse.Namespace, environment: dict[str, str]) -> None:
    """Measure one store's ways in turn; print median and range."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(given.rounds):
        for way in WAYS:
            words = [sys.executable, __file__, "--way", way, "--steps", str(given.steps), "--turns", str(given.turns)]
            words += ["--width", str(width)]
            done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
            found[way].append(json.loads(done.stdout.rpartition("RESULT ")[2]))
    for way, results in found.items():
        ratios, seconds = [one["ratio"] for one in results], [one["seconds"] for one in results]
        print(
            f"{store}, steps of {1e3 * statistics.median(seconds):.2f} ms, {way}: {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f} … {max(ratios):.3f}) of the steps/s without tracking",
            flush=True,
        )


if __name__ == "__main__":
    main()
