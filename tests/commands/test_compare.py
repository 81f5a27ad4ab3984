"""A comparison asks for many runs at once, and leaves out what only machines read."""

from pathlib import Path
from typing import Any

import pytest

from mltrain.commands.compare import compared
from mltrain.compat import private
from mltrain.errors import RunNotFound
from mltrain.tracking.client import TrackingClient, connect_to_read
from tests.support.database import many


def test_forty_runs_take_as_many_requests_as_four(
    server: TrackingClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_ids = many(tmp_path, 40, {"mltrain.status": "finished"})
    asked: list[str] = []
    once = TrackingClient._tried

    def counted(self: TrackingClient, function: Any, *arguments: Any, **named: Any) -> Any:
        asked.append(getattr(function, "__name__", "?"))
        return once(self, function, *arguments, **named)

    monkeypatch.setattr(TrackingClient, "_tried", counted)
    counts = []
    for count in (4, 40):
        asked.clear()
        comparison = compared(server, run_ids[:count])
        assert [run["run_id"] for run in comparison.runs] == run_ids[:count]
        counts.append(len(asked))
    assert counts[0] == counts[1] <= 2, asked


def test_runs_that_are_missing_or_deleted_are_named(server: TrackingClient, tmp_path: Path) -> None:
    first, second = many(tmp_path, 2, {})
    server.delete_run(second)
    with pytest.raises(RunNotFound, match=f"{second} is deleted"):
        compared(server, [first, second])
    with pytest.raises(RunNotFound, match="0" * 32):
        compared(server, [first, "0" * 32])


def test_curves_of_a_server_are_asked_for_by_the_hundred(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def points(client: Any, uri: str, run_ids: list[str], key: str) -> dict[str, list[tuple[int, float]]]:
        asked.append((key, len(run_ids)))
        return {run_id: [(2, 0.5), (1, 1.0)] for run_id in run_ids}

    monkeypatch.setattr(private, "points_of_runs", points)
    run_ids = [f"{number:032x}" for number in range(150)]
    found = TrackingClient("http://127.0.0.1:1", object()).curves(run_ids, ["a", "b"])
    assert sorted(asked) == [("a", 50), ("a", 100), ("b", 50), ("b", 100)]
    assert found[run_ids[-1], "b"] == [(1, 1.0), (2, 0.5)]
    assert len(found) == 300


def test_claims_are_no_parameters_of_a_comparison(server: TrackingClient, tmp_path: Path) -> None:
    runs = many(tmp_path, 2, {})
    for number, run_id in enumerate(runs):
        server.log_params(run_id, [("lr", str(number)), ("mltrain.attempt.1", str(number)), ("mltrain.run_key", "k")])
    assert compared(connect_to_read(), runs).parameters == {"lr": ["0", "1"]}
