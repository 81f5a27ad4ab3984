"""FAULTS A6-A11: requests to stop, at any phase, directly and through ``mlflow run``."""

import signal
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.faults.campaign import command_line
from tests.support.waiting import eventually, let_pass
from tests.support.workplace import Workplace

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_finishes_the_step_and_commits_an_interrupted_checkpoint(number: int, workplace: Workplace) -> None:
    started = workplace.start(
        "train", "tiny.py", "epochs=1000", "sleep=0.05", "save_interval=0", "best_metric=none-such"
    )
    started.until("epoch    1/")
    started.child.kill(number)
    done = started.wait()
    assert done.code == 75, done.err  # what is not in the store when the grace is over ends with 76
    assert f"mltrain train --resume-run {done.run_id}" in done.out
    assert workplace.status(done.run_id) == "KILLED"
    rows = workplace.mltrain("checkpoints", done.run_id, "--json").json
    assert [row["kind"] for row in rows] == ["interrupted"]


def test_an_interrupt_before_the_first_step_leaves_no_checkpoint_and_a_killed_run(workplace: Workplace) -> None:
    first = workplace.mltrain("train", "tiny.py", "epochs=1", "kill_at=1")
    slow = "import time\nfrom tiny import Config\n\ndef build(config):\n    time.sleep(30)\n"
    (workplace.folder / "slow.py").write_text(slow, encoding="utf-8")
    started = workplace.start("train", "slow.py", "--resume-run", first.run_id)
    run_id = started.run_id
    let_pass(0.5)
    started.child.kill(signal.SIGINT)
    done = started.wait(30)
    assert done.code == 130, done.err
    assert workplace.status(run_id) == "KILLED"
    assert workplace.mltrain("checkpoints", run_id, "--json").json == []


def test_int_and_term_within_a_second_are_one_request(workplace: Workplace) -> None:
    started = workplace.start("train", "tiny.py", "epochs=1000", "sleep=0.1")
    started.until("epoch    1/")
    started.child.kill(signal.SIGINT)
    started.child.kill(signal.SIGTERM)
    assert started.wait().code == 75


def test_usr1_can_mean_to_save_and_go_on(workplace: Workplace) -> None:
    started = workplace.start(
        "train", "tiny.py", "epochs=3", "items=200", "sleep=0.1", "on_usr1=checkpoint", "save_interval=0"
    )
    started.until("epoch    1/")
    started.child.kill(signal.SIGUSR1)
    done = started.wait()
    assert done.code == 0, done.err
    rows = workplace.mltrain("checkpoints", done.run_id, "--json").json
    assert "step" in [row["kind"] for row in rows]


def test_a_stopped_process_that_goes_on_finishes(workplace: Workplace) -> None:
    started = workplace.start("train", "tiny.py", "epochs=3", "sleep=0.05")
    started.until("Training on cpu")
    started.child.kill(signal.SIGSTOP)
    let_pass(2)
    assert started.child.code is None
    started.child.kill(signal.SIGCONT)
    assert started.wait().code == 0


def test_an_exception_in_user_code_leaves_the_last_commit_and_a_failed_run(workplace: Workplace) -> None:
    done = workplace.mltrain("train", "tiny.py", "raise_at=8")
    assert done.code == 1
    assert "the user's own mistake" in done.err
    assert f"mltrain train --resume-run {done.run_id}" in done.err.strip().splitlines()[-1]
    assert workplace.status(done.run_id) == "FAILED"
    resumed = workplace.mltrain("train", "--resume-run", done.run_id, "raise_at=0")
    assert resumed.code == 0, resumed.err


def test_a_nonfinite_loss_aborts_with_its_own_code(workplace: Workplace) -> None:
    done = workplace.mltrain("train", "tiny.py", "nan_at=8")
    assert done.code == 7
    assert "step 8" in done.err
    assert workplace.status(done.run_id) == "FAILED"
    assert [row["step"] for row in workplace.mltrain("checkpoints", done.run_id, "--json").json] == [6]


def test_a_live_run_is_not_resumed_by_a_second_process(workplace: Workplace) -> None:
    started = workplace.start("train", "tiny.py", "epochs=1000", "sleep=0.05")
    run_id = started.run_id
    started.until("Training on cpu")
    second = workplace.mltrain("train", "--resume-run", run_id)
    assert second.code == 4, second.err
    assert str(started.child.pid) in second.err
    started.child.kill(signal.SIGTERM)
    assert started.wait().code == 75


def test_a_dead_run_is_reaped_and_a_live_one_is_not(workplace: Workplace) -> None:
    killed = workplace.mltrain("train", "tiny.py", "kill_at=8")
    alive = workplace.start("train", "tiny.py", "epochs=1000", "sleep=0.05")
    alive.until("Training on cpu")
    found = {one["run_id"]: one["found"] for one in workplace.mltrain("reap", "--json").json}
    alive.child.kill(signal.SIGTERM)
    done = alive.wait()
    assert found == {killed.run_id: "closed", done.run_id: "alive"}
    assert workplace.status(killed.run_id) == "KILLED"


WORKER = """
import os, signal
from tiny import Config, Noisy
import mltrain, tiny

class Fatal(Noisy):
    def __getitem__(self, index):
        if index == self.fatal and os.environ.get("FATAL") == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if index == self.fatal and os.environ.get("FATAL") == "memory":
            raise MemoryError("cannot allocate 40 GiB")
        return super().__getitem__(index)

def build(config):
    task = tiny.build(config)
    data = Fatal(config.items)
    order = mltrain.ResumableLoader(data, config.batch_size)
    data.fatal = list(order._order())[20]  # in the third batch
    return mltrain.Task(task.step, mltrain.ResumableLoader(data, config.batch_size, num_workers=config.num_workers))
"""


def processes_in(folder: Path) -> set[int]:
    """The processes that work in a folder."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            found |= {process.pid} if process.cwd() == str(folder) else set()
    return found


@pytest.mark.parametrize(("cause", "said"), [("kill", "killed by signal"), ("memory", "cannot allocate 40 GiB")])
def test_the_end_of_a_data_worker_is_an_error_that_names_it(cause: str, said: str, workplace: Workplace) -> None:
    (workplace.folder / "worker.py").write_text(WORKER, encoding="utf-8")
    words = ("train", "worker.py", "num_workers=2", "save_every_steps=1")
    before = processes_in(workplace.folder)
    done = workplace.mltrain(*words, FATAL=cause)
    assert done.code == 1, done.err
    assert said in done.err
    # Another worker may print an EOFError after that line, if this process ends while it waits for its next batch.
    assert f"mltrain train --resume-run {done.run_id}" in done.err
    assert workplace.status(done.run_id) == "FAILED"
    # A worker looks every five seconds whether its parent is there.
    eventually(lambda: processes_in(workplace.folder) <= before, "the end of every worker")
    resumed = workplace.mltrain("train", "--resume-run", done.run_id)
    assert resumed.code == 0, resumed.err


def test_a_hangup_that_was_ignored_at_the_start_is_ignored(workplace: Workplace) -> None:
    """What ``nohup`` does."""
    process = command_line(workplace, "train", "tiny.py", "epochs=3", "sleep=0.1", ignored=signal.SIGHUP)
    eventually(lambda: "Training on cpu" in (workplace.folder / "out").read_text())
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 0, (workplace.folder / "err").read_text()
    assert "all epochs done" in (workplace.folder / "out").read_text()
