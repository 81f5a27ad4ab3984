"""FAULTS A6: one request to stop at a random moment of any phase, directly and through ``mlflow run``."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.faults.campaign import SEED, Reference, Victim, trials
from tests.support.forkserver import ForkServer
from tests.support.launched import mlflow_run, visible
from tests.support.waiting import eventually, let_pass
from tests.support.workplace import Workplace

pytestmark = [pytest.mark.faults, pytest.mark.timeout(5400)]

GRACE_SECONDS = 25
PHASES = ("save_every_steps=2", "sleep=0.02", "evaluation_sleep=0.1")
"""Training, evaluating and saving take about as long as starting does."""


def test_a_signal_at_a_random_moment_ends_in_time_with_a_true_code_and_status(
    tmp_path: Path, fork_server: ForkServer
) -> None:
    """60 signals: MLTRAIN_TRIALS=60."""
    wanted, random_numbers = trials(8), random.Random(SEED)
    reference = Reference.of(Workplace(tmp_path / "reference", fork_server), *PHASES)
    codes: dict[str, int] = {}
    number = 0
    while sum(codes.values()) < wanted:
        number += 1
        victim = Victim(Workplace(tmp_path / f"victim-{number}", fork_server), PHASES)
        sent = random_numbers.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1))
        after = random_numbers.uniform(0, 1.1 * reference.seconds)
        began = time.monotonic()
        done = victim.attempt(sent, after)
        held = time.monotonic() - began - after
        if victim.story[-1].startswith("nothing"):
            continue
        before_handlers, before_first_step = (-sent,), (130, 143)
        assert done.code in (0, 75, *before_first_step, *before_handlers), victim.told()
        assert held < GRACE_SECONDS, victim.told()
        codes[str(done.code)] = codes.get(str(done.code), 0) + 1
        client = MlflowClient(victim.workplace.uri)
        assert "Traceback" not in done.err, victim.told()
        if done.code in before_handlers:
            victim.workplace.mltrain("reap")
        found = {run.info.run_id: str(run.info.status) for run in client.search_runs(["0"])}
        assert len(found) <= 1, victim.told()
        if victim.run_id is None:
            assert not found or set(found.values()) == {"KILLED"}, victim.told()
            continue
        assert found[victim.run_id] == ("FINISHED" if done.code == 0 else "KILLED"), victim.told()
        if done.code != 0:
            if done.code == 75:
                assert f"mltrain train --resume-run {victim.run_id}" in done.out, victim.told()
            resumed = victim.workplace.mltrain("train", "--resume-run", victim.run_id)
            assert resumed.code == 0, victim.told() + resumed.err
        reference.assert_same(victim.workplace, victim.run_id, victim.told())
    print(f"{sum(codes.values())} signals, seed {SEED}; exit codes {dict(sorted(codes.items()))}")


def test_a_signal_at_a_random_moment_of_mlflow_run_leaves_one_run_that_resumes(
    tmp_path: Path, fork_server: ForkServer
) -> None:
    """12 signals: MLTRAIN_TRIALS=12."""
    wanted, random_numbers = trials(2), random.Random(SEED + 1)
    reference = Reference.of(Workplace(tmp_path / "reference", fork_server), *PHASES)
    sent = number = 0
    while sent < wanted:
        number += 1
        workplace = Workplace(tmp_path / f"victim-{number}", fork_server)
        started = mlflow_run(workplace, "project=tests/support/tiny.py", *PHASES)
        assert started.stdout is not None
        said = ""
        while "Training on" not in said:
            said += (line := started.stdout.readline())
            assert line, said
        let_pass(random_numbers.uniform(0, 2.0))
        if started.poll() is not None:
            continue
        if random_numbers.random() < 0.5:
            os.killpg(started.pid, signal.SIGINT)  # a terminal's Ctrl+C goes to the whole group
        else:
            started.terminate()
        sent += 1
        said += started.communicate(timeout=60)[0]
        (run_id,) = visible(workplace, 1)
        eventually(lambda of=(workplace, run_id): of[0].status(of[1]) in ("KILLED", "FINISHED"), said, GRACE_SECONDS)
        if workplace.status(run_id) == "KILLED":
            resumed = workplace.mltrain("train", "tiny.py", "--resume-run", run_id)
            assert resumed.code == 0, said + resumed.err
        reference.assert_same(workplace, run_id, said)
    print(f"{sent} signals through mlflow run, seed {SEED}")
