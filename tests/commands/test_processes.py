"""One command starts all processes of a training; a number that makes no sense is refused before anything is done."""

import os
import sys
from typing import Any

import pytest

from mltrain.commands import processes
from mltrain.errors import UsageError
from mltrain.ownership import job
from mltrain.ownership.launcher import STARTER_PID
from tests.support.workplace import Workplace

LAUNCHERS = ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")
RANK = {"WORLD_SIZE": "3", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[str]]]:
    """Records the command for torchrun instead of starting it."""
    from mltrain.distributed import torchrun

    calls: list[tuple[int, list[str]]] = []

    def run(count: int, command: list[str], signals: Any) -> int:
        calls.append((count, command))
        return 75

    monkeypatch.setattr(torchrun, "run", run)
    monkeypatch.setenv(STARTER_PID, "")
    for name in (*LAUNCHERS, "SLURM_JOB_ID", "SKYPILOT_TASK_ID", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    return calls


@pytest.mark.parametrize("count", ["0", "-2", "two", "2.0", "1e1", "", "99999", "2,2", "gpu"])
def test_what_is_no_number_of_processes_is_refused(count: str, started: list[Any]) -> None:
    with pytest.raises(UsageError, match=r"is not a valid number for this machine\. Expected 1 to \d+"):
        processes.run_in_processes(count, ["train", "p.py"], None)
    assert started == []


def test_each_process_gets_the_command_as_it_stands(started: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["train", "p.py", "--processes", "2", "lr=1e-3"]
    for program, options in (("/bin/mltrain", ["-P"]), ("/site-packages/mltrain/__main__.py", [])):
        monkeypatch.setattr(sys, "argv", [program, *words])
        assert processes.run_in_processes("2", words, None) == 75
        assert started.pop() == (2, [sys.executable, *options, "-m", "mltrain", *words])
    assert os.environ[STARTER_PID] == str(os.getpid())


def test_one_process_and_a_process_that_was_started_train_themselves(
    started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert processes.run_in_processes("1", ["train"], None) is None
    for name, value in RANK.items():
        monkeypatch.setenv(name, value)
    assert processes.run_in_processes("3", ["train"], None) is None
    assert started == []


@pytest.mark.parametrize("environment", [RANK, {"TORCHELASTIC_RUN_ID": "nightly", "WORLD_SIZE": "1"}])
def test_a_launcher_within_a_launcher_is_refused(
    environment: dict[str, str], started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=rf"as one of {environment['WORLD_SIZE']}\. Expected one launcher"):
        processes.run_in_processes("2", ["train"], None)
    assert started == []


def test_a_key_of_the_job_needs_a_job(started: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun draws a new id at each start."""
    with pytest.raises(UsageError, match="found no job that this process belongs to"):
        processes.run_in_processes("2", ["train"], "auto")
    monkeypatch.setenv("SLURM_JOB_ID", "71")
    assert processes.run_in_processes("2", ["train"], "auto") == 75
    assert job.key_of({**os.environ, "TORCHELASTIC_RUN_ID": "9f1a6c2e-7b1d-4a41-9d3c-0c7f5d1e2b3a"}) == "slurm-71"


def test_the_command_line_refuses_before_there_is_a_run(workplace: Workplace) -> None:
    for words in (("train", "tiny.py", "--processes", "0"), ("train", "tiny.py", "processes=none-such")):
        refused = workplace.mltrain(*words)
        assert refused.code == 2
        assert "is not a valid number for this machine" in refused.err
    assert workplace.mltrain("runs", "--json").json == []
