"""Scripts that end without closing their manager: saves are completed, and a run that is created late is awaited."""

import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mltrain import CheckpointManager
from mltrain.delivery.sync import sync
from mltrain.tracking.client import connect
from tests.support.runs import FolderRun, epochs


@pytest.mark.parametrize("where", ["on this machine", "elsewhere"])
def test_a_process_that_ends_without_closing_completes_what_it_saved(where: str, tmp_path: Path) -> None:
    place = "places.folder" if where == "on this machine" else "places.behind"
    script = (
        "from tests.support.runs import *\n"
        f"folder = Path({str(tmp_path)!r})\n"
        f"run = FolderRun(folder, place={place}(folder / 'artifacts'))\n"
        "run.manager().save(state_at(1))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    with FolderRun(tmp_path, 2).manager() as manager:
        assert epochs(manager) == [1]


LATE = """
import atexit, os, signal, sys, threading
from mltrain import CheckpointManager
from mltrain.adapters.training import Training
from mltrain.run import opening
from mltrain.tracking.client import TrackingClient
from tests.support.runs import state_at

ended, never, create_run = threading.Event(), threading.Event(), TrackingClient.create_run


def answer(*arguments):
    ended.wait()
    return create_run(*arguments)


def no_answer(*arguments):
    never.wait()


def interrupted(*arguments):  # by Ctrl+C while the script waits for this answer
    main, names = threading.main_thread().ident, []
    while not {"_process_ends", "wait"} <= set(names):
        frame, names = sys._current_frames()[main], []
        while frame is not None:
            names.append(frame.f_code.co_name)
            frame = frame.f_back
    os.kill(os.getpid(), signal.SIGINT)
    never.wait()


opening.creation_seconds = lambda server: 0.0  # the script begins without a run
"""


def a_script_ends_before_its_run_is_created(how: str, answer: str = "answer") -> str:
    """Return what it prints to standard error. The server answers as soon as the interpreter is exiting."""
    script = f"{LATE}\nTrackingClient.create_run = {answer}\n{how}\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    return done.stderr


OPEN = "manager = CheckpointManager()\natexit.register(ended.set)\n"
SAVE = OPEN + "manager.save_epoch_checkpoint(state_at(1), 1)\n"


@pytest.mark.faults
@pytest.mark.parametrize(
    ("how", "status", "saved"),
    [
        (SAVE, "FINISHED", [1]),
        (f"{SAVE}sys.exit(0)", "FINISHED", [1]),
        (f"{SAVE}1 / 0", "FAILED", [1]),
        (f"{SAVE}raise KeyboardInterrupt", "KILLED", [1]),
        (OPEN + "manager.run.log_metrics({'accuracy': 1.0}, 1)", "FINISHED", []),
        (OPEN.replace("CheckpointManager", "Training") + "manager.save(state_at(1), 1, 1)", "FINISHED", [1]),
    ],
    ids=["its last line", "sys.exit", "an exception", "Ctrl+C", "an evaluation", "an engine"],
)
def test_a_script_that_ends_before_its_run_is_created_waits_for_the_run(
    how: str, status: str, saved: list[int], uri: str
) -> None:
    a_script_ends_before_its_run_is_created(how)
    (run,) = MlflowClient(uri).search_runs(["0"])
    assert (run.info.status, "mltrain.newest_only_local" in run.data.tags) == (status, False)
    with CheckpointManager(run.info.run_id) as manager:
        assert epochs(manager) == saved


@pytest.mark.faults
@pytest.mark.parametrize(("answer", "grace"), [("no_answer", "0"), ("interrupted", "600")])
def test_a_run_that_is_not_created_in_time_is_completed_by_sync(
    answer: str, grace: str, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLTRAIN_GRACE_SECONDS", grace)
    errors = a_script_ends_before_its_run_is_created(SAVE, answer)
    assert "is on this machine only" in errors
    assert MlflowClient(uri).search_runs(["0"]) == []
    list(sync(connect()))
    (run,) = MlflowClient(uri).search_runs(["0"])
    assert run.info.status == "FINISHED"
    with CheckpointManager(run.info.run_id) as manager:
        assert epochs(manager) == [1]


WATCHED = """
wait = threading.Event.wait


def watched(event, timeout=None):
    if sys._getframe(1).f_code.co_name == "_grace_after_upload":
        print("waits" if timeout > 0 else "does not wait", file=sys.stderr)
    return wait(event, timeout)


threading.Event.wait = watched
"""


@pytest.mark.faults
def test_managers_that_an_exiting_script_has_left_open_share_the_wait_for_their_runs(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLTRAIN_GRACE_SECONDS", "1")
    lines = a_script_ends_before_its_run_is_created(f"{WATCHED}{SAVE}first = manager\n{SAVE}", "no_answer").splitlines()
    assert [line for line in lines if line in ("waits", "does not wait")] == ["waits", "does not wait"]


@pytest.mark.faults
def test_an_interrupt_of_the_upload_at_exit_ends_the_wait_for_the_server_too(uri: str) -> None:
    interrupt = "def interrupt(*_):\n    raise KeyboardInterrupt\n\n\nmanager.committer.retry = interrupt\n"
    watch = "manager.run.detach = lambda status, grace: print(f'{grace} seconds', file=sys.stderr)\n"
    assert "\n0.0 seconds" in a_script_ends_before_its_run_is_created(SAVE + interrupt + watch)


@pytest.mark.faults
def test_an_interrupt_of_the_wait_at_exit_ends_it_for_every_manager(uri: str) -> None:
    watch = "manager.run.detach = lambda status, grace: print(f'{grace} seconds', file=sys.stderr)\n"
    lines = a_script_ends_before_its_run_is_created(f"{SAVE}{watch}first = manager\n{SAVE}{watch}", "interrupted")
    assert lines.splitlines().count("0.0 seconds") == 2


@pytest.mark.faults
def test_managers_that_an_exiting_script_has_left_open_share_one_grace_period(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLTRAIN_GRACE_SECONDS", "600")
    script = """
import time, types
from mltrain import CheckpointManager
from mltrain.checkpoint import closing
from tests.support.runs import state_at


def detach(status, grace):
    print("whole" if grace is None or grace > 500 else grace)
    closing.time = types.SimpleNamespace(monotonic=lambda: time.monotonic() + 600)  # so long the delivery took


managers = [CheckpointManager(), CheckpointManager()]
for manager in managers:
    manager.save(state_at(1))
    manager.run.detach = detach
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.splitlines() == ["whole", "0.0"]


@pytest.mark.faults
def test_a_long_upload_at_exit_takes_no_time_from_the_records(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLTRAIN_GRACE_SECONDS", "600")
    upload = """
import time, types
from mltrain.checkpoint import closing


def upload():
    closing.time = types.SimpleNamespace(monotonic=lambda: time.monotonic() + 600)  # so long it took


manager.committer.retry = upload
manager.run.detach = lambda status, grace: print("whole" if grace > 500 else grace, file=sys.stderr)
"""
    assert a_script_ends_before_its_run_is_created(SAVE + upload).splitlines()[-1] == "whole"
