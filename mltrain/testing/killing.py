"""Kills real training processes, and resumes from a tracking store."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mltrain.commands.compare import measured
from mltrain.commands.result import Display, Outcome
from mltrain.commands.train import run_training
from mltrain.commands.train_request import Request
from mltrain.run.checkpoints import open_checkpoints
from mltrain.testing.differences import Trained, assert_same
from mltrain.tracking.client import connect
from mltrain.trainer.loop import Trainer


def assert_survives_kills(
    project: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    kill_at: Sequence[int],
    folder: Path,
) -> str:
    """Assert that a killed and resumed training ends bit-identical.

    Each attempt is a separate process, killed with SIGKILL after its step, and resumed by the run's id from a
    tracking store in ``folder``. It trains steps after the last checkpoint again.

    Args:
        project: a registered name, a file or a folder.
        overrides: keys of its configuration.
        kill_at: one total of steps for each kill; an attempt killed between two checkpoints goes back to the last one.
        folder: an empty folder for the tracking store, staging and logs.

    Returns:
        The id of the run that was killed and resumed.

    Raises:
        AssertionError: parts or metrics differ; or an attempt ended before its kill, or could not be resumed.
    """
    word = str(Path(project).resolve()) if os.path.exists(project) else str(project)  # noqa: PTH110 - no error if too long
    _, reference = _attempt(folder, word, overrides or {}, "undisturbed")
    run_id: str | None = None
    for number, step in enumerate(kill_at, 1):
        code, run_id = _attempt(folder, word, overrides or {}, f"kill-{number}", resume_run=run_id, kill_at=step)
        if code != -signal.SIGKILL:
            raise AssertionError(
                f"Attempt {number} ended with exit code {code}. Expected a SIGKILL after step {step}. "
                f"See {folder / f'kill-{number}.log'}"
            )
    code, run_id = _attempt(folder, word, overrides or {}, "resumed", resume_run=run_id)
    if code != 0:
        raise AssertionError(f"The resumed training ended with exit code {code}. See {folder / 'resumed.log'}")
    expected, got = (_recorded(folder, one) for one in (reference, run_id))
    assert_same(expected, got, f"A SIGKILL after step {', '.join(map(str, kill_at))}")
    return run_id


class _KillAt(Display):
    """Kills its own process after a number of steps."""

    def __init__(self, step: int) -> None:
        self._step = step

    def opened(self, run: Any, where: str) -> None:
        print(f"run_id={run.id}", flush=True)

    def stepped(self, trainer: Trainer) -> None:
        if trainer.progress.step == self._step:
            os.kill(os.getpid(), signal.SIGKILL)

    def ended(self, outcome: Outcome) -> None:
        print(outcome.why, flush=True)


def _attempt(
    folder: Path,
    project: str,
    overrides: Mapping[str, Any],
    name: str,
    *,
    resume_run: str | None = None,
    kill_at: int = 0,
) -> tuple[int, str]:
    """Train in another process; return exit code and run id."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{name}.log"
    request = {"project": project, "overrides": {k: str(v) for k, v in overrides.items()}, "resume_run": resume_run}
    with log.open("wb") as output:
        code = subprocess.run(
            [sys.executable, "-m", "mltrain.testing", json.dumps(request), str(kill_at)],
            env={**os.environ, **_places(folder)},
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    said = log.read_text(encoding="utf-8", errors="replace")
    ids = [line.removeprefix("run_id=") for line in said.splitlines() if line.startswith("run_id=")]
    if not ids or (code != 0 and not kill_at):
        raise AssertionError(f"The training ended with exit code {code}:\n{said[-2000:]}")
    return code, ids[0]


def _places(folder: Path) -> dict[str, str]:
    return {
        "MLFLOW_TRACKING_URI": f"sqlite:///{(folder / 'mlflow.db').resolve()}",
        "MLTRAIN_HOME": str((folder / "home").resolve()),
    }


def _recorded(folder: Path, run_id: str) -> Trained:
    server = connect(_places(folder)["MLFLOW_TRACKING_URI"])
    manifest, parts = open_checkpoints(run_id, server).load("latest")
    keys = measured(server.run(run_id))  # system metrics depend on time
    points = {key: {p.step: p.value for p in server.history(run_id, key)} for key in keys}
    return Trained(parts, points, manifest.step)


def main(request: str, kill_at: str) -> None:
    """Train as requested in JSON; kill this process after ``kill_at`` steps."""
    run_training(Request(**json.loads(request)), _KillAt(int(kill_at)))
