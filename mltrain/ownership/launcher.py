"""Living under ``mlflow run``, which makes a run of its own and sets its status after we have gone.

A new training adopts the launcher's run. A resumed one is another run, so the launcher's is nested under it and made to
disappear once the launcher has gone: deleting it earlier makes the launcher fail. A small detached process waits for that.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import psutil

from mltrain.errors import RunNotFound
from mltrain.ownership import liveness
from mltrain.ownership.attempts import conclude, said_of
from mltrain.ownership.liveness import is_running
from mltrain.tracking.client import TrackingClient, connect
from mltrain.tracking.tags import HOLDER_TAG, LAUNCHER_OF_TAG, LAUNCHER_TAG, MLFLOW_PARENT

Action = Literal["delete", "KILLED", "FAILED", "FINISHED"]
ENTRY_POINT = "mlflow.project.entryPoint"
"""The tag by which ``mlflow run`` marks the run that it makes."""
STARTER_PID = "MLTRAIN_STARTER_PID"
"""The variable in which a command that starts several processes leaves its own process id for them."""


@dataclass(frozen=True)
class Launcher:
    """The ``mlflow run`` that started this process: its run, and its process where it was found."""

    run_id: str
    pid: int | None

    def alive(self) -> bool:
        """Whether the launching process still runs."""
        return self.pid is not None and is_running(self.pid)


def detect(environment: MutableMapping[str, str]) -> Launcher | None:
    """Take ``MLFLOW_RUN_ID`` out of the environment, before any child can mistake it for its own, and say who set it."""
    run_id = environment.pop("MLFLOW_RUN_ID", None)
    if not run_id:
        return None
    for parent in psutil.Process().parents()[:4]:
        try:
            words = parent.cmdline()
        except psutil.Error:
            break
        if "run" in words and any(word.endswith(("mlflow", "mlflow.exe", "mlflow.cli")) for word in words):
            return Launcher(run_id, parent.pid)
    return Launcher(run_id, None)


def watched(launcher: Launcher | None, environment: Mapping[str, str]) -> int | None:
    """Return the process whose death is a request to stop: ``mlflow run``, else the command that started several processes."""
    if launcher is not None and launcher.pid is not None:
        return launcher.pid
    starter = environment.get(STARTER_PID, "")
    return int(starter) if starter.isdecimal() else None


def nest(server: TrackingClient, launcher: Launcher, run_id: str) -> None:
    """Put the launcher's run under the run that it resumed, and let it disappear when the launcher has gone."""
    if launcher.run_id == run_id:
        return
    server.set_tag(launcher.run_id, MLFLOW_PARENT, run_id)
    server.set_tag(launcher.run_id, LAUNCHER_OF_TAG, run_id)
    who = liveness.described(launcher.pid) if launcher.pid is not None else {}
    server.set_tag(launcher.run_id, LAUNCHER_TAG, json.dumps(who))
    if launcher.pid is not None:
        after(server, launcher.pid, launcher.run_id, "delete")


def after(server: TrackingClient, pid: int, run_id: str, action: Action, ordinal: int = 1) -> "subprocess.Popen[bytes]":
    """Do something to a run once a process has gone, from a process of its own that outlives this one.

    Args:
        server: where the run is.
        pid: of the process.
        run_id: of the run.
        action: delete it, or give it this status.
        ordinal: of the attempt that has this status; a later one's is left alone.

    Returns:
        That process, which a caller that outlives it may wait for.
    """
    environment = dict(os.environ, MLFLOW_TRACKING_URI=server.uri)
    return subprocess.Popen(
        # -P: the user's working directory may hold modules of any name, and is not searched.
        [sys.executable, "-P", "-m", "mltrain.ownership.launcher", str(pid), run_id, action, str(ordinal)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def repair(server: TrackingClient, run_id: str, experiment_id: str) -> None:
    """Remove launchers' runs under a run whose launchers have gone without anybody clearing up."""
    query = f"tags.`{LAUNCHER_OF_TAG}` = '{run_id}'"
    for run in list(server.search_runs([experiment_id], query)):
        try:
            who = json.loads(run.data.tags.get(LAUNCHER_TAG, "{}"))
        except ValueError:
            continue
        if run.info.run_id != run_id and liveness.is_alive(who) is False:
            with suppress(RunNotFound):  # somebody else was quicker
                server.delete_run(run.info.run_id)


def main(arguments: list[str]) -> None:
    """Wait for a process to go, then delete or re-label a run: ``PID RUN_ID ACTION ORDINAL``."""
    pid, run_id, action, ordinal = int(arguments[0]), arguments[1], arguments[2], int(arguments[3])
    server = connect(retry_seconds=120.0)  # slow, so before the wait
    while is_running(pid):
        time.sleep(0.05)
    if action == "delete":
        if HOLDER_TAG not in server.run(run_id).data.tags:  # else somebody trains in it
            server.delete_run(run_id)
    else:
        conclude(server, run_id, ordinal, said_of(action))


if __name__ == "__main__":
    main(sys.argv[1:])
