"""The sender finds the server's newer points with few reads."""

import logging
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric
from sqlalchemy import Engine, event

from mltrain.delivery.deduplication import Delivered, delivered_beyond, points_between
from mltrain.delivery.system_metrics import SYSTEM_KEYS
from mltrain.tracking.client import TrackingClient
from tests.support.database import fresh_database


@pytest.fixture
def server(tmp_path: Path) -> TrackingClient:
    uri = fresh_database(tmp_path / "mlflow.db", tmp_path / "mlruns")
    return TrackingClient(uri, MlflowClient(uri))


@pytest.fixture
def rows() -> Iterator[list[int]]:
    """How many rows of metric history each statement returned."""
    counted: list[int] = []

    def count(connection: object, cursor: object, statement: str, *rest: object) -> None:
        if "FROM metrics" in statement:
            counted.append(1)

    event.listen(Engine, "after_cursor_execute", count)
    yield counted
    event.remove(Engine, "after_cursor_execute", count)


def run_with(server: TrackingClient, points: dict[str, range]) -> str:
    run_id = str(server.client.create_run("0").info.run_id)
    for key, steps in points.items():
        metrics = [Metric(key, float(step), 1_700_000_000_000 + step, step) for step in steps]
        for first in range(0, len(metrics), 1000):
            server.client.log_batch(run_id, metrics=metrics[first : first + 1000])
    return run_id


def test_only_what_is_beyond_the_start_is_delivered_already(server: TrackingClient) -> None:
    run_id = run_with(server, {"loss": range(100), "val/loss": range(0, 90, 10)})
    delivered = delivered_beyond(server, server.run(run_id), 95)
    for step in (95, 96, 99, 100):
        new = delivered.new({"loss": float(step), "val/loss": 0.0}, step, True)
        assert ("loss" in new) is (step not in (96, 99))
        assert "val/loss" in new


def test_a_key_that_ends_before_the_start_is_not_looked_at(server: TrackingClient, rows: list[int]) -> None:
    run_id = run_with(server, {f"old{n}": range(3) for n in range(20)} | {"loss": range(50)})
    run = server.run(run_id)
    rows.clear()
    delivered_beyond(server, run, 10)
    few = len(rows)
    assert 0 < few < 6  # of one key
    delivered_beyond(server, run, 49)
    assert len(rows) == few


def test_what_the_machine_did_is_not_looked_at(server: TrackingClient) -> None:
    run_id = run_with(server, {SYSTEM_KEYS[0]: range(0, 900, 15)})
    delivered = delivered_beyond(server, server.run(run_id), 10)
    assert delivered.new({SYSTEM_KEYS[0]: 1.0}, 15, False) == {SYSTEM_KEYS[0]: 1.0}


def test_more_points_than_an_answer_holds_are_all_read(server: TrackingClient) -> None:
    run_id = run_with(server, {"loss": range(5000)})
    found = list(points_between(server, run_id, "loss", 100, 4999))
    assert sorted(step for step, _ in found) == list(range(100, 5000))
    assert all(value == step for step, value in found)


def test_a_value_that_differs_is_reported_once_and_one_that_may_differ_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    delivered = Delivered({("loss", 1): 0.5, ("loss", 2): 0.5, ("seconds", 1): 3.0})
    with caplog.at_level(logging.WARNING):
        assert delivered.new({"seconds": 4.0}, 1, False) == {}
        assert caplog.text == ""
        for step in (1, 2):
            assert delivered.new({"loss": 0.25}, step, True) == {}
    assert caplog.text.count("this resume is not exact") == 1


@pytest.mark.parametrize(
    ("stored", "now"), [(math.nan, math.nan), (sys.float_info.max, math.inf), (-sys.float_info.max, -math.inf)]
)
def test_what_mlflow_stores_of_strange_numbers_is_the_same_value(
    stored: float, now: float, caplog: pytest.LogCaptureFixture
) -> None:
    assert Delivered({("loss", 1): stored}).new({"loss": now}, 1, True) == {}
    assert caplog.text == ""
