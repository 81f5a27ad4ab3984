"""Training under ``mlflow run``, which creates a run of its own.

The launcher sets that run's status after this process ends.

A new training adopts the launcher's run. A resumed training has a run already, so the launcher's run is nested under it and
deleted after the launcher ends: an earlier deletion makes the launcher fail. A small detached process waits for that.
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
from mltrain.ownership.attempts import OUTCOME_OF, conclude
from mltrain.tracking.client import TrackingClient, connect
from mltrain.tracking.tags import HOLDER_TAG, LAUNCHER_OF_TAG, LAUNCHER_TAG, MLFLOW_PARENT

Action = Literal["delete", "KILLED", "FAILED", "FINISHED"]
ENTRY_POINT = "mlflow.project.entryPoint"
"""The tag by which ``mlflow run`` marks the run that it creates."""
STARTER_PID = "MLTRAIN_STARTER_PID"
"""The environment variable with the process id of the command that started the ranks."""


@dataclass(frozen=True)
class Launcher:
    """The ``mlflow run`` that started this process.

    Attributes:
        run_id: of the run that it created.
        pid: its process id. If ``None``, no such process was found.
    """

    run_id: str
    pid: int | None


def detect(environment: MutableMapping[str, str]) -> Launcher | None:
    """Return the launcher that set ``MLFLOW_RUN_ID``, and remove the variable.

    Otherwise a child process would take that run for its own.
    """
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
    """Return the process whose end requests a stop.

    It is ``mlflow run``, otherwise the command that started the ranks.
    """
    if launcher is not None and launcher.pid is not None:
        return launcher.pid
    starter = environment.get(STARTER_PID, "")
    return int(starter) if starter.isdecimal() else None


def nest(server: TrackingClient, launcher: Launcher, run_id: str) -> None:
    """Nest the launcher's run under the resumed run.

    It is deleted after the launcher ends.
    """
    if launcher.run_id == run_id:
        return
    server.set_tag(launcher.run_id, MLFLOW_PARENT, run_id)
    server.set_tag(launcher.run_id, LAUNCHER_OF_TAG, run_id)
    who = liveness.described(launcher.pid) if launcher.pid is not None else {}
    server.set_tag(launcher.run_id, LAUNCHER_TAG, json.dumps(who))
    if launcher.pid is not None:
        after(server, launcher.pid, launcher.run_id, "delete")


def after(server: TrackingClient, pid: int, run_id: str, action: Action, ordinal: int = 1) -> "subprocess.Popen[bytes]":
    """Delete a run or set its status after a process.

    A detached process, which outlives this one, waits for the end of that process.

    Args:
        server: tracking server that has the run.
        pid: of the process to wait for.
        run_id: of the run.
        action: ``delete``, or the status to set.
        ordinal: of the attempt whose status this is; the status of a later attempt is not changed.

    Returns:
        The detached process.
    """
    environment = dict(os.environ, MLFLOW_TRACKING_URI=server.uri)
    return subprocess.Popen(
        # -P: do not import from the user's working directory, which may hold modules of any name.
        [sys.executable, "-P", "-m", "mltrain.ownership.launcher", str(pid), run_id, action, str(ordinal)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def repair(server: TrackingClient, run_id: str, experiment_id: str) -> None:
    """Delete the remaining nested runs of launchers that have ended."""
    query = f"tags.`{LAUNCHER_OF_TAG}` = '{run_id}'"
    for run in list(server.search_runs([experiment_id], query)):
        try:
            who = json.loads(run.data.tags.get(LAUNCHER_TAG, "{}"))
        except ValueError:
            continue
        if run.info.run_id != run_id and liveness.is_alive(who) is False:
            with suppress(RunNotFound):  # another process deleted it first
                server.delete_run(run.info.run_id)


def main(arguments: list[str]) -> None:
    """Await a process's end; delete a run or set its status.

    Args:
        arguments: ``PID RUN_ID ACTION ORDINAL``, as :func:`after` gives them.
    """
    pid, run_id, action, ordinal = int(arguments[0]), arguments[1], arguments[2], int(arguments[3])
    server = connect(retry_seconds=120.0)  # before the wait, because it is slow
    while liveness.is_running(pid):
        time.sleep(0.05)
    if action == "delete":
        if HOLDER_TAG not in server.run(run_id).data.tags:  # otherwise a training has adopted it
            server.delete_run(run_id)
    else:
        conclude(server, run_id, ordinal, OUTCOME_OF[action])


if __name__ == "__main__":
    main(sys.argv[1:])
