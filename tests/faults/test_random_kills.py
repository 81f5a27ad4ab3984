"""FAULTS A1, A5: SIGKILL at any moment, any number of times; the training ends as if nothing had happened."""

import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from mltrain.testing import assert_survives_kills
from tests.faults.campaign import SEED, Reference, Victim, command_line, moments, trials
from tests.support import tiny
from tests.support.forkserver import ForkServer
from tests.support.workplace import Workplace

pytestmark = [pytest.mark.faults, pytest.mark.timeout(5400)]

OFTEN_SAVED = ("save_every_steps=2", "sleep=0.01")


def test_kills_at_random_moments_change_nothing(tmp_path: Path, fork_server: ForkServer) -> None:
    """1,000 kills: MLTRAIN_TRIALS=1000."""
    wanted, random_numbers = trials(12), random.Random(SEED)
    reference = Reference.of(Workplace(tmp_path / "reference", fork_server), *OFTEN_SAVED)
    kills = trainings = 0
    while kills < wanted:
        victim = Victim(Workplace(tmp_path / f"victim-{trainings}", fork_server), OFTEN_SAVED)
        for after in moments(random_numbers, 1.3 * reference.seconds):
            done = victim.attempt(signal.SIGKILL, after)
            kills += done.code == -signal.SIGKILL
            assert done.code in (0, -signal.SIGKILL), victim.told()
            if done.code == 0:
                break
        assert victim.run_id is not None
        reference.assert_same(victim.workplace, victim.run_id, victim.told())
        trainings += 1
    print(f"{kills} kills in {trainings} trainings, seed {SEED}: 0 not identical")


def test_fifty_kills_in_a_row_during_a_resume_lose_nothing(tmp_path: Path, fork_server: ForkServer) -> None:
    wanted, random_numbers = trials(5), random.Random(SEED)
    reference = Reference.of(Workplace(tmp_path / "reference", fork_server), *OFTEN_SAVED)
    victim = Victim(Workplace(tmp_path / "victim", fork_server), (*OFTEN_SAVED, "kill_at=9"))
    victim.attempt(signal.SIGKILL, 60)
    assert victim.run_id is not None
    began = time.monotonic()
    started = victim.workplace.start("train", "--resume-run", victim.run_id, "kill_at=10")
    started.until("Training on cpu")
    until_training = time.monotonic() - began
    started.child.kill(signal.SIGKILL)
    started.wait()
    for _ in range(wanted):
        done = victim.attempt(signal.SIGKILL, random_numbers.uniform(0, until_training))
        assert done.code == -signal.SIGKILL, victim.told()
    resumed = victim.workplace.mltrain("train", "--resume-run", victim.run_id, "kill_at=0")
    assert resumed.code == 0, f"{victim.told()}\n{resumed.err}"
    reference.assert_same(victim.workplace, victim.run_id, victim.told())


def test_the_command_line_as_a_user_starts_it_is_killed_and_resumed(tmp_path: Path, fork_server: ForkServer) -> None:
    """30 kills: MLTRAIN_TRIALS=30."""
    wanted, random_numbers = trials(2), random.Random(SEED)
    reference = Reference.of(Workplace(tmp_path / "reference", fork_server), *OFTEN_SAVED)
    began = time.monotonic()
    assert command_line(Workplace(tmp_path / "timed", fork_server), "train", "tiny.py", *OFTEN_SAVED).wait(300) == 0
    longest = time.monotonic() - began
    kills = trainings = 0
    while kills < wanted:
        workplace = Workplace(tmp_path / f"victim-{trainings}", fork_server)
        run_id: str | None = None
        code = -signal.SIGKILL
        while code != 0:
            words = ["train", "--resume-run", run_id] if run_id else ["train", "tiny.py", *OFTEN_SAVED]
            process = command_line(workplace, *words)
            # Half of them after the imports, which take most of the time.
            after = longest * random_numbers.choice((random_numbers.uniform(0, 0.7), random_numbers.uniform(0.7, 1.2)))
            after = after if kills < wanted else 300.0
            with suppress(subprocess.TimeoutExpired):
                process.wait(after)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
            kills += code == -signal.SIGKILL
            assert code in (0, -signal.SIGKILL), (workplace.folder / "err").read_text()
            said = (workplace.folder / "out").read_text()
            run_id = run_id or next(
                (s.removeprefix("run_id=") for s in said.splitlines() if s.startswith("run_id=")), None
            )
        assert run_id is not None
        reference.assert_same(workplace, run_id, f"seed {SEED}, {workplace.folder}")
        trainings += 1
    print(f"{kills} kills of the command in {trainings} trainings, seed {SEED}: 0 not identical")


@pytest.mark.parametrize(("first", "second"), [(2, 4), (15, 17)])
def test_two_kills_within_one_epoch_with_another_number_of_workers_each_time(
    first: int, second: int, tmp_path: Path, fork_server: ForkServer
) -> None:
    reference = Reference.of(Workplace(tmp_path / "reference", fork_server))
    workplace = Workplace(tmp_path / "victim", fork_server)
    often = ("save_every_steps=1",)
    killed = workplace.mltrain("train", "tiny.py", *often, f"kill_at={first}", "num_workers=4")
    assert killed.code == -signal.SIGKILL, killed.err
    for workers, kill_at in ((1, second), (3, second + 1), (0, 0)):
        done = workplace.mltrain("train", "--resume-run", killed.run_id, f"kill_at={kill_at}", f"num_workers={workers}")
        assert done.code == (-signal.SIGKILL if kill_at else 0), done.err
    reference.assert_same(workplace, killed.run_id, "workers 4, 1, 3, 0")


def test_processes_are_killed_for_real_and_resumed(tmp_path: Path) -> None:
    run_id = assert_survives_kills(
        Path(tiny.__file__), {"epochs": 2, "save_every_steps": 2}, kill_at=[3, 5, 9], folder=tmp_path
    )
    assert "run_id=" + run_id in (tmp_path / "resumed.log").read_text()


def test_a_kill_that_did_not_happen_is_no_pass(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="Expected a SIGKILL after step 50"):
        assert_survives_kills(Path(tiny.__file__), {"epochs": 1}, kill_at=[50], folder=tmp_path)
