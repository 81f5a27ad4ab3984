from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mltrain.tracking.pages import location, page_of, page_of_experiment


def store(uri: str) -> Any:
    return SimpleNamespace(uri=uri, shown=uri)


@pytest.mark.parametrize("address", ["http://here:5000", "http://here:5000/"])
def test_every_address_names_the_mode_that_shows_runs(address: str) -> None:
    assert page_of(address, "3", "abc") == "http://here:5000/#/experiments/3/runs/abc?workflowType=machine_learning"
    assert page_of_experiment(address, "3") == "http://here:5000/#/experiments/3?workflowType=machine_learning"
    assert page_of_experiment(address, None) == "http://here:5000/#/experiments?workflowType=machine_learning"


def test_the_page_of_a_server_is_named_to_people(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert location(store("https://here/"), "3", "abc").splitlines() == [
        "Runs are kept at https://here/",
        f"Look at {page_of('https://here', '3', 'abc')}",
    ]


def test_a_store_without_a_server_has_no_page_until_mltrain_ui_serves_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert location(store("sqlite:///mlflow.db"), "3", "abc") == (
        f"Runs are kept in sqlite:///mlflow.db, seen from {tmp_path}."
    )
