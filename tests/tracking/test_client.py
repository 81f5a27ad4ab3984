"""The pages of a search, requested ahead."""

import base64
import json
import threading
from typing import Any

import pytest

from mltrain.compat.database import Page
from mltrain.tracking.client import TrackingClient


class Paging:
    """An ``MlflowClient`` with many runs and known or foreign tokens."""

    def __init__(self, runs: int, *, known: bool = True, largest: int = 1000) -> None:
        self.runs, self.known, self.largest = runs, known, largest
        self.asked: list[int] = []

    def search_runs(self, experiments: list[str], filter_string: str, max_results: int, page_token: str | None) -> Any:
        begin = 0
        if page_token:
            text = base64.b64decode(page_token).decode() if self.known else page_token[::-1]
            begin = int(json.loads(text)["offset"])
        self.asked.append(begin)
        end = min(self.runs, begin + min(max_results, self.largest))
        token = json.dumps({"offset": end})
        token = base64.b64encode(token.encode()).decode() if self.known else token[::-1]
        return Page(range(begin, end), token if end < self.runs else None)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("largest", [1000, 80])
@pytest.mark.parametrize("runs", [0, 1, 100, 101, 1000, 1300, 3000])
def test_pages_requested_ahead_hold_each_run_once_and_in_order(runs: int, largest: int, known: bool) -> None:
    client = Paging(runs, known=known, largest=largest)
    assert list(TrackingClient("http://127.0.0.1:1", client).search_runs_ahead(["0"], "")) == list(range(runs))
    assert len(client.asked) <= 1 + runs // min(largest, 100) + 4


def test_pages_are_requested_ahead_of_one_that_takes_long() -> None:
    """One request at a time would wait for one worker."""
    fifth = threading.Event()

    class Slow(Paging):
        def search_runs(
            self, experiments: list[str], filter_string: str, max_results: int, page_token: str | None
        ) -> Any:
            answer = super().search_runs(experiments, filter_string, max_results, page_token)
            if answer[0] == 400:
                fifth.set()
            assert answer[0] != 100 or fifth.wait(20), "the fifth page is not requested before the second came"
            return answer

    assert list(TrackingClient("http://127.0.0.1:1", Slow(700)).search_runs_ahead(["0"], "")) == list(range(700))
