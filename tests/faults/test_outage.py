"""FAULTS C2: ten minutes without a tracking server, compressed.

What ten minutes at twenty steps a second record (36,000 points of three metrics) is recorded as fast as this machine can,
while the way to the server is reset, hangs and answers 503 by turns. The waits between tries are not compressed. The whole
of it is this file with ``MLTRAIN_SWEEP=full`` (``-s`` shows the figures); else a tenth.
"""

import os
import threading
import time
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from tests.faults.proxy import FaultProxy, Rule
from tests.support.waiting import eventually, let_pass

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]

STEPS = 12_000 if os.environ.get("MLTRAIN_SWEEP") == "full" else 1_200
LONGEST = 3600.0
"""Seconds until a request gives up while every request hangs: longer than the test may take."""


class Loop:
    """A tiny training with three metrics and timed logging calls."""

    def __init__(self, log: object) -> None:
        self.log = log
        self.step = 0
        self.net = torch.nn.Linear(16, 1)
        self.inputs = torch.randn(64, 16)

    def run(self, steps: int) -> tuple[float, list[float]]:
        """Return the steps per second and the seconds per call."""
        held = []
        began = time.perf_counter()
        for _ in range(steps):
            self.net.zero_grad()
            loss = (self.net(self.inputs) ** 2).mean()
            loss.backward()
            self.step += 1
            values = {"loss": loss.item(), "double": 2.0 * self.step, "half": self.step / 2}
            asked = time.perf_counter()
            self.log(values, self.step)  # type: ignore[operator]
            held.append(time.perf_counter() - asked)
        return steps / (time.perf_counter() - began), held


def test_ten_minutes_without_a_server_lose_nothing_and_hold_nobody(
    proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "MLFLOW_TRACKING_URI": proxy.uri,
        "MLTRAIN_HOME": str(tmp_path),
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(int(LONGEST)),
    }.items():
        monkeypatch.setenv(name, value)
    from mltrain.run.opening import open_run

    run = open_run()
    loop = Loop(run.log_metrics)
    loop.run(STEPS // 10)
    before, _ = loop.run(STEPS // 4)

    # No request is answered and none gives up, so a call that waited for an answer or a retry would not return.
    proxy.hang_seconds = LONGEST
    proxy.rules = [Rule(".", ["hang"])]
    loop.run(1)
    eventually(lambda: proxy.happened["hang"], "a request that hangs")
    hanging = threading.Thread(target=loop.run, args=(STEPS // 4,), daemon=True)
    hanging.start()
    eventually(lambda: not hanging.is_alive(), "the end of the steps while every request hangs")

    proxy.hang_seconds = 2.0
    proxy.rules = [Rule(".", ["reset", "hang", "503"])]
    proxy.end_hangs()
    proxy.happened.clear()
    began = time.monotonic()
    speeds, held = [], []
    for _ in range(4):
        speed, calls = loop.run(STEPS // 4)
        speeds.append(speed)
        held += calls
    let_pass(max(0.0, (60 if STEPS > 10_000 else 6) - (time.monotonic() - began)))
    away = time.monotonic() - began
    waiting = run.outbox.journal.unsent()
    proxy.rules = []
    after, _ = loop.run(STEPS // 4)
    assert run.close("FINISHED", "done", 300.0)
    faults = sum(proxy.happened[fault] for fault in ("reset", "hang", "503"))
    late = sum(seconds > 0.05 for seconds in held)
    print(
        f"\naway for {away:.0f} s ({faults} faults), {waiting} records waited; steps/s {before:.0f} before, "
        f"{min(speeds):.0f} … {max(speeds):.0f} without, {after:.0f} after; a call held the training for "
        f"{1e6 * sorted(held)[len(held) // 2]:.0f} µs (median), {1e3 * max(held):.1f} ms (longest), {late} of {len(held)} "
        "longer than 50 ms"
    )
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")
    client = MlflowClient(proxy.uri)
    steps = loop.step
    expected = {"double": lambda step: 2.0 * step, "half": lambda step: step / 2}
    for key, value in expected.items():
        found = [(point.step, point.value) for point in client.get_metric_history(run.id, key)]
        assert sorted(found) == [(step, value(step)) for step in range(1, steps + 1)]
    assert faults >= 2
    assert waiting >= 3 * STEPS * 0.9  # nothing got through
