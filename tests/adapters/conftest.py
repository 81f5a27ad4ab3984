import warnings
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from accelerate.state import AcceleratorState, GradientState

from tests.support.database import use_database


@pytest.fixture
def tracking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A tracking store and home of the test's process; its URI."""
    uri = use_database(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    yield uri
    while mlflow.active_run() is not None:
        mlflow.end_run()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's import hooks are of the kind that Python 3.12 drops
        mlflow.autolog(disable=True, silent=True)
        mlflow.pytorch.autolog(disable=True, silent=True)  # autolog() leaves it on where Lightning was imported before


@pytest.fixture(autouse=True)
def no_accelerator() -> Iterator[None]:
    """Let no test see the gradients that another one accumulates: accelerate keeps that in one place of the process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
