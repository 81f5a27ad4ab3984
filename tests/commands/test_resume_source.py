"""Where a training begins: the start, a checkpoint of its run, or one of another run."""

from pathlib import Path
from typing import Any, Self

import pytest
from pydantic import model_validator

from mltrain.commands.train import run_training
from mltrain.commands.train_request import Request
from mltrain.project import Project
from mltrain.run.checkpoints import open_checkpoints, trained_config
from tests.support import tiny
from tests.support.trainings_of_tiny import TINY
from tests.support.unchanged import Unchanged


@pytest.mark.parametrize("which", ["step:999", "epoch:7", "interrupted", "newest", "step-000000999-a01"])
@pytest.mark.parametrize("source", ["resume_run", "fork_run", None])
def test_a_checkpoint_that_is_not_there_is_refused_before_the_run_is_claimed(
    which: str, source: str | None, store: Path, trained: tuple[Path, str], tmp_path: Path
) -> None:
    named: dict[str, Any] = {source: trained[1]} if source is not None else {}
    with Unchanged(store, tmp_path / "home"):
        run_training(Request(project=TINY, resume_from=which, **named))


def params_of(run_id: str) -> dict[str, Any]:
    """The configuration beside the newest checkpoint of a run."""
    return trained_config(open_checkpoints(run_id))


def test_a_fork_begins_with_the_configuration_of_its_checkpoint_and_reports_only_what_it_changes(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = run_training(Request(project=TINY, overrides={"epochs": 1, "lr": 0.01, "max_to_keep": 9})).run_id
    for overrides in ({"epochs": 2, "lr": 0.001, "batch_size": 4}, {"epochs": 3}):
        run_training(Request(resume_run=source, project=TINY, overrides=overrides))
    caplog.clear()
    kept = params_of(run_training(Request(project=TINY, fork_run=source, overrides={"epochs": 4})).run_id)
    assert (kept["epochs"], kept["lr"], kept["batch_size"]) == (4, 0.001, 4)
    assert not [record for record in caplog.records if "changed" in record.getMessage() or "planned" in record.msg]
    changed = params_of(
        run_training(Request(project=TINY, fork_run=source, overrides={"epochs": 4, "lr": 0.02})).run_id
    )
    assert (changed["lr"], changed["batch_size"]) == (0.02, 4)
    assert "base_lrs.0=0.001" in caplog.text
    assert "base_lrs.0=0.02" in caplog.text
    assert "batch_size" not in caplog.text
    for named in ({"fork_run": source}, {"resume_run": source}):
        older = Request(project=TINY, resume_from="epoch:1", overrides={"epochs": 2}, **named)  # type: ignore[arg-type]
        params = params_of(run_training(older).run_id)
        assert (params["lr"], params["batch_size"]) == (0.01, 8), named


def test_what_a_checkpoint_was_trained_with_is_checked_and_not_what_the_run_began_with(store: Path) -> None:
    class Config(tiny.Config):
        warmup: int = 0

        @model_validator(mode="after")
        def _short(self) -> Self:
            if self.warmup > self.epochs:
                raise ValueError("warmup is longer than the training")
            return self

    project = Project("tiny", Config, tiny.build, Path(tiny.__file__))
    source = run_training(Request(project=project, overrides={"epochs": 1})).run_id
    run_training(Request(project=project, resume_run=source, overrides={"epochs": 3}))
    fork = run_training(Request(project=project, fork_run=source, overrides={"warmup": 2}))
    assert params_of(fork.run_id)["warmup"] == 2
