"""``mlflow run`` of this checkout, and the runs that it leaves."""

import signal
import subprocess
import sys
from pathlib import Path

from mlflow import MlflowClient

from tests.support.waiting import eventually
from tests.support.workplace import Workplace

CHECKOUT = Path(__file__).parents[2]

BIN = Path(sys.executable).parent


def mlflow_run(workplace: Workplace, *parameters: str, entry_point: str = "main") -> "subprocess.Popen[str]":
    words = [word for parameter in parameters for word in ("-P", parameter)]
    return subprocess.Popen(
        [str(BIN / "mlflow"), "run", str(CHECKOUT), "-e", entry_point, "--env-manager", "local", *words],
        cwd=workplace.folder,
        env={**workplace.environment, "PATH": f"{BIN}:{workplace.environment['PATH']}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def visible(workplace: Workplace, expected: int) -> dict[str, str]:
    """Wait for ``expected`` active runs; return their statuses."""
    client = MlflowClient(workplace.uri)
    eventually(lambda: len(client.search_runs(["0"])) == expected, f"{expected} visible runs")
    return {run.info.run_id: str(run.info.status) for run in client.search_runs(["0"])}
