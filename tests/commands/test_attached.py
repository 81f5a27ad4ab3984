"""A program and its children end with the parent process. Even after SIGKILL."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.waiting import eventually

PARENT = """
import subprocess, sys, time
sleep = "import time; time.sleep(600)"
child = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {sleep!r}]); {sleep}"
guard = [sys.executable, "-m", "mltrain.commands.attached"]
program = subprocess.Popen([*guard, sys.executable, "-c", child], stdin=subprocess.PIPE, start_new_session=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL on Windows")
def test_a_program_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT])
    family = psutil.Process(parent.pid)
    try:
        eventually(lambda: len(family.children(recursive=True)) == 3, "guard, program and its child")
        started = family.children(recursive=True)
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    eventually(
        lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in started), "their end"
    )


def test_the_code_of_a_program_that_ends_by_itself_is_handed_on() -> None:
    command = [sys.executable, "-m", "mltrain.commands.attached", sys.executable, "-c", "raise SystemExit(3)"]
    done = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert done.wait(60) == 3
    assert done.stdin is not None
    done.stdin.close()
