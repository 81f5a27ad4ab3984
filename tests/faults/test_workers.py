"""Signals that reach a training and its worker processes."""

import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.support.workplace import Workplace

pytestmark = pytest.mark.faults

PROJECT = Path(__file__).parent / "workers_project.py"


@pytest.mark.parametrize(
    ("loader", "start", "number", "each"),
    [
        ("resumable", "fork", "SIGTERM", False),
        ("resumable", "fork", "SIGTERM", True),
        ("resumable", "spawn", "SIGINT", False),
        ("resumable", "forkserver", "SIGUSR1", False),
        ("stateful", "fork", "SIGTERM", False),
        ("stateful", "spawn", "SIGTERM", True),
        ("stateful", "forkserver", "SIGTERM", False),
        ("evaluation", "fork", "SIGTERM", False),
        ("pool", "fork", "SIGTERM", False),
        ("pool", "fork", "SIGHUP", True),
    ],
)
def test_a_signal_to_all_processes_is_a_request_that_lets_the_step_finish(
    workplace: Workplace, loader: str, start: str, number: str, each: bool
) -> None:
    shutil.copy(PROJECT, workplace.folder)
    words, sent = (f"loader={loader}", f"start={start}"), {"SIGNAL": number, **({"EACH": "1"} if each else {})}
    command = workplace.start("train", PROJECT.name, *words, **sent)
    done = command.wait(300)
    assert done.code == 75, done.err
    assert f"{number}: finishing this step" in done.err
    assert "Traceback" not in done.err
    _, orphans = psutil.wait_procs(members_of(command.child.pid), timeout=60)
    assert orphans == []
    kinds = [kept["kind"] for kept in workplace.mltrain("checkpoints", done.run_id, "--json").json]
    assert kinds == (["epoch"] if loader in ("evaluation", "pool") else ["interrupted"])
    resumed = workplace.mltrain("train", "--resume-run", done.run_id, timeout=300)
    assert resumed.code == 0, resumed.err
    undisturbed = workplace.mltrain("train", PROJECT.name, *words, timeout=300)
    assert workplace.points(done.run_id) == workplace.points(undisturbed.run_id)


@pytest.mark.parametrize("loader", ["resumable", "stateful", "evaluation"])
@pytest.mark.parametrize(("number", "advice"), [(signal.SIGKILL, "by SIGKILL"), (signal.SIGBUS, "more shared memory")])
def test_the_death_of_a_worker_is_reported_with_advice(
    workplace: Workplace, loader: str, number: signal.Signals, advice: str
) -> None:
    shutil.copy(PROJECT, workplace.folder)
    command = workplace.start("train", PROJECT.name, f"loader={loader}", DEATH=str(int(number)))
    done = command.wait(300)
    assert done.code == 1, done.err
    *_, note, last = done.err.splitlines()
    assert "A worker process of the loader died" in note
    assert advice in note
    assert last.startswith(f"Run {done.run_id} is FAILED; its checkpoints are intact.")
    _, orphans = psutil.wait_procs(members_of(command.child.pid), timeout=60)
    assert orphans == []
    resumed = workplace.mltrain("train", "--resume-run", done.run_id, timeout=300)
    assert resumed.code == 0, resumed.err


def members_of(group: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError):
            if os.getpgid(process.pid) == group:
                found.append(process)
    return found
