"""What the machine is doing while a run trains."""

import threading

import pytest

from mltrain.delivery import system_metrics as system
from mltrain.delivery.system_metrics import SYSTEM_KEYS, SystemMonitor


def test_the_first_record_is_made_at_once() -> None:
    recorded = threading.Event()
    records: list[dict[str, float]] = []

    def record(metrics: dict[str, float]) -> None:
        records.append(metrics)
        recorded.set()

    monitor = SystemMonitor(record)
    assert recorded.wait(30)
    monitor.close()
    assert set(records[0]) == set(SYSTEM_KEYS)


def test_nothing_is_recorded_once_the_monitor_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first measurement may outlast a short run."""
    measuring, go_on = threading.Event(), threading.Event()
    records: list[dict[str, float]] = []

    def slow() -> dict[str, float]:
        measuring.set()
        go_on.wait(30)
        return {}

    monkeypatch.setattr(system, "system_metrics", slow)
    monitor = SystemMonitor(records.append)
    assert measuring.wait(30)
    threading.Timer(0.2, go_on.set).start()
    monitor.close()
    assert go_on.is_set()
    assert records == []


def test_a_record_that_is_being_made_is_waited_for() -> None:
    recording, records = threading.Event(), []

    def record(metrics: dict[str, float]) -> None:
        recording.set()
        closing.wait(30)
        records.append(metrics)

    closing = threading.Event()
    monitor = SystemMonitor(record)
    assert recording.wait(30)
    threading.Timer(0.2, closing.set).start()
    monitor.close()
    assert len(records) == 1
