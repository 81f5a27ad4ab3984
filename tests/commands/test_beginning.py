"""What a run records when an attempt begins in it."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from mltrain.commands.train import run_training
from mltrain.commands.train_request import Request
from tests.support.trainings_of_tiny import TINY


def begun(store: Path, run_id: str, **how: Any) -> tuple[dict[str, str], dict[str, Any]]:
    """Resume a run; return its tags and its newest attempt."""
    run_training(Request(project=TINY, resume_run=run_id, allow_change=True, **how))
    run = MlflowClient(f"sqlite:///{store / 'mlflow.db'}").get_run(run_id)
    attempts = json.loads((Path(run.info.artifact_uri) / "attempts.json").read_text())["attempts"]
    return run.data.tags, attempts[-1]


def test_only_a_resume_that_is_not_exact_marks_the_step_from_which_curves_differ(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = run_training(Request(project=TINY, overrides={"epochs": 2})).run_id
    tags, attempt = begun(store, run_id, overrides={"epochs": 3})
    newest = attempt["resumed_from"]
    assert tags["mltrain.resumed_from"] == newest
    assert not [tag for tag in tags if tag.startswith("mltrain.rewound")]
    assert attempt["changed"] == {"epochs": ["2", "3"]}, "more of the same steps"
    assert caplog.text.count("new values are recorded beside") == 0

    with caplog.at_level(logging.WARNING):
        tags, attempt = begun(store, run_id, resume_from="epoch:1")
    step = int(attempt["resumed_from"].split("-")[1])
    assert tags["mltrain.resumed_from"] == attempt["resumed_from"] < newest
    assert tags["mltrain.rewound.3"] == str(step)
    assert "rolled back to" in caplog.text
