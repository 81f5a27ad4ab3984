"""A comparison reads many runs at once, for people."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mltrain.commands import compare
from mltrain.commands.compare import compared
from mltrain.compat import private
from mltrain.errors import RunNotFound, StorageError
from mltrain.run import listing
from mltrain.run.listing import Selection, listed
from mltrain.tracking import run_artifacts
from mltrain.tracking.client import TrackingClient, connect_to_read
from tests.support.database import many


def answered(server: TrackingClient, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets each request the server answers.

    A locked database makes the client repeat a request, and threads of other tests use other clients.
    """
    requests: list[str] = []
    once = TrackingClient.tried

    def counted(self: TrackingClient, function: Any, *arguments: Any, **named: Any) -> Any:
        answer = once(self, function, *arguments, **named)
        if self is server:
            requests.append(getattr(function, "__name__", "?"))
        return answer

    monkeypatch.setattr(TrackingClient, "tried", counted)
    return requests


def test_forty_runs_take_as_many_requests_as_four(
    server: TrackingClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_ids = many(tmp_path, 40, {"mltrain.status": "finished"})
    asked = answered(server, monkeypatch)
    counts = []
    for count in (4, 40):
        asked.clear()
        comparison = compared(server, run_ids[:count])
        assert [run["run_id"] for run in comparison.runs] == run_ids[:count]
        counts.append(len(asked))
    assert counts[0] == counts[1] <= 2, asked


def finished_runs(folder: Path, count: int, **more: str) -> list[str]:
    """Add finished runs of one attempt to the database; their artifacts are nowhere."""
    name = "step-000000008-a01"
    values = {"checkpoint": name, "epoch": 2, "step": 8, "metrics": {"val/loss": 0.25, "val/f1": math.nan}}
    tags = {
        "mltrain.status": "finished",
        "mltrain.project": "tiny",
        "mltrain.latest": name,
        "mltrain.best": name,
        "mltrain.at_best": json.dumps(values),
    }
    return many(
        folder, count, {**tags, **{f"mltrain.{key}": value for key, value in more.items()}}, "s3://nowhere/{run}"
    )


def test_lists_and_comparisons_of_finished_runs_ask_for_no_artifacts(
    server: TrackingClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_ids = finished_runs(tmp_path, 250)
    for number, run_id in enumerate(run_ids[:2]):
        server.log_params(run_id, [("lr", json.dumps(number / 10)), ("name", "cells"), ("mltrain.attempt.1", "{}")])
    asked = answered(server, monkeypatch)

    def opened(*place: str) -> Any:
        raise AssertionError(f"{place} is opened")

    for module in (listing, compare, run_artifacts):
        monkeypatch.setattr(module, "open_artifacts", opened)
    rows = listed(server, None, Selection(most=1000))
    assert [row["best_value"] for row in rows] == [0.25] * 250
    assert len(asked) == 1 + 3, "experiments, and each hundred runs"
    asked.clear()
    comparison = compared(server, run_ids)
    assert len(asked) == 1 + 3, "experiments, and each hundred runs"
    assert comparison.parameters == {"lr": [0.0, 0.1, *[None] * 248], "name": ["cells", "cells", *[None] * 248]}
    assert comparison.best["epoch"] == [2] * 250
    assert comparison.best["val/loss"] == [0.25] * 250


@pytest.mark.parametrize(
    "tags",
    [
        {"status": "running"},
        {"newest_only_local": "step-000000009-a01 on a host"},
        {"changed.2": '{"lr": ["0.1", "0.2"]}'},
        {"latest": "step-000000008-a02"},
        {"best": "step-000000009-a01"},
        {"at_best": "{}"},
    ],
    ids=["running", "only local", "changed by a resume", "nothing committed", "best of an older version", "too long"],
)
def test_a_run_whose_checkpoints_know_more_is_compared_by_them(
    server: TrackingClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tags: dict[str, str]
) -> None:
    plain, other = finished_runs(tmp_path, 1)[0], finished_runs(tmp_path, 1, **tags)[0]
    asked: list[str] = []

    def gone(uri: str, tracking_uri: str) -> Any:
        asked.append(uri)
        raise StorageError("gone")

    monkeypatch.setattr(run_artifacts, "open_artifacts", gone)
    compared(server, [plain, other])
    assert asked == [f"s3://nowhere/{other}"]


def test_runs_that_are_missing_or_deleted_are_named(server: TrackingClient, tmp_path: Path) -> None:
    first, second = many(tmp_path, 2, {})
    server.delete_run(second)
    with pytest.raises(RunNotFound, match=f"{second} is deleted"):
        compared(server, [first, second])
    with pytest.raises(RunNotFound, match="0" * 32):
        compared(server, [first, "0" * 32])


def test_curves_of_a_server_are_asked_for_by_the_hundred(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def points(client: Any, uri: str, run_ids: list[str], key: str) -> list[tuple[str, tuple[int, float]]]:
        asked.append((key, len(run_ids)))
        return [(run_id, point) for run_id in run_ids for point in ((2, 0.5), (1, 1.0))]

    monkeypatch.setattr(private, "points", points)
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
