"""Processes that one command starts: their exit code is its own, and the signals that it gets are theirs."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.faults.campaign import command_line
from tests.support import ranks
from tests.support.ranks import TRAIN, assert_ended_alike
from tests.support.waiting import eventually
from tests.support.workplace import Workplace

LAUNCH = ("--module", "tests.distributed.launching")
TWO_SIGNALS = """
import signal, sys
both = {signal.SIGINT, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, both)
print("ready", flush=True)
sys.exit(75 if {signal.sigwait(both), signal.sigwait(both)} == both else 1)
"""
SAVING = """
import os, pathlib, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
pathlib.Path("ready-" + os.environ["RANK"]).touch()
signal.sigwait({signal.SIGUSR1})
pathlib.Path("saved-" + os.environ["RANK"]).touch()
"""


@pytest.mark.parametrize(
    ("code", "expected", "said"),
    [
        ("pass", 0, ""),
        ("import sys; sys.exit(75)", 75, ""),
        (
            "import os, signal, time; os.kill(os.getpid(), 9) if os.environ['RANK'] == '1' else time.sleep(60)",
            137,
            "Process 1 of the training was killed by SIGKILL, as the system does when memory runs out.",
        ),
    ],
)
def test_how_the_processes_end_is_how_the_command_ends(code: str, expected: int, said: str, place: Workplace) -> None:
    done = place.mltrain(*LAUNCH, code)
    assert (done.code, done.err[:7]) == (expected, said and "Error: "), done.err
    assert said in done.err


def test_a_ctrl_c_that_comes_as_two_signals_reaches_all_processes_and_is_waited_for(place: Workplace) -> None:
    """``mlflow run`` sends SIGINT and SIGTERM; torchrun alone would leave at the second."""
    started = place.start(*LAUNCH, TWO_SIGNALS)
    eventually(lambda: started.out.exists() and started.out.read_text().count("ready") == 2, "two processes")
    started.child.kill(signal.SIGINT)
    started.child.kill(signal.SIGTERM)
    done = started.wait(60)
    assert done.code == 75, done.err


def test_torchrun_passes_on_the_signal_that_slurm_sends_with_the_options_of_the_page(place: Workplace) -> None:
    page = Path(__file__).parent.parent.parent / "docs" / "distributed.md"
    (options,) = re.findall(r"--signals-to-handle \S+ --shutdown-timeout \d+", page.read_text(encoding="utf-8"))
    torchrun = ranks.torchrun(2, *options.split())
    with subprocess.Popen(
        [*torchrun, "--no-python", sys.executable, "-c", SAVING], cwd=place.folder, env=place.environment
    ) as started:
        eventually(lambda: len(list(place.folder.glob("ready-*"))) == 2, "two processes")
        started.send_signal(signal.SIGUSR1)
        assert started.wait(60) != 0
    assert {file.name for file in place.folder.glob("saved-*")} == {"saved-0", "saved-1"}


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_signal_to_the_command_ends_with_a_checkpoint_from_which_it_goes_on(
    number: signal.Signals,
    code: int,
    place: Workplace,
    undisturbed: str,
) -> None:
    words = (*TRAIN, f"by-{number.name}", "epochs=2", "save_every_steps=2")
    started = command_line(place, *words, "--processes", "2", "sleep=0.5")
    out = place.folder / "out"
    eventually(lambda: re.search(r"^epoch +1/2", out.read_text(), re.MULTILINE), "an epoch")
    started.send_signal(number)
    assert started.wait(120) == code
    client = MlflowClient(place.uri)
    (run,) = client.search_runs(["0"], f"tags.`mltrain.run_key` = 'by-{number.name}'")
    eventually(lambda: client.get_run(run.info.run_id).info.status == "KILLED", "a run that is closed")
    assert "step-" in place.checkpoint_names(run.info.run_id)[-1]
    again = ranks.run(place, 2, *words)
    assert [rank.code for rank in again] == [0, 0], again
    assert_ended_alike(place, run.info.run_id, undisturbed)
