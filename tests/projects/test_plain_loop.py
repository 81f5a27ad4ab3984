"""The example of a loop of one's own: ten added lines, killed and continued, and what Python users pull from it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import mltrain
from tests.support.waiting import eventually
from tests.support.workplace import Workplace

LOOP = Path(mltrain.__file__).parent.parent / "projects" / "plain_loop" / "loop.py"


def start(workplace: Workplace, *words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, str(LOOP), *words],
        cwd=workplace.folder,
        env=workplace.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def test_what_the_loop_adds_is_ten_lines() -> None:
    assert sum(line.endswith("# +") for line in LOOP.read_text(encoding="utf-8").splitlines()) <= 10


@pytest.mark.faults
def test_a_killed_loop_continues_the_same_run(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    first = start(workplace)
    assert first.stdout is not None
    run_id = first.stdout.readline().strip().removeprefix("run_id=")
    commits = "mlruns/0/*/artifacts/checkpoints/step-*-a01/manifest.json"
    eventually(lambda: any(file.parent.name > "step-000000010-a01" for file in workplace.folder.glob(commits)), commits)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    second = start(workplace, run_id)
    lines = second.communicate(timeout=120)[0].splitlines()
    assert second.returncode == 0
    assert lines[0] == f"run_id={run_id}"
    assert int(lines[1].split()[1].rstrip(":")) > 10
    assert lines[-1].startswith("epoch 200:")
    rows = workplace.mltrain("checkpoints", run_id, "--json").json
    assert rows[-1]["epoch"] == 200
    assert sum("best" in row["is"] for row in rows) == 1

    monkeypatch.setitem(os.environ, "MLFLOW_TRACKING_URI", workplace.uri)
    weights = mltrain.load_best(run_id)
    pulled = mltrain.pull(run_id, to=workplace.folder / "pulled")
    assert set(weights) == {f"{layer}.{kind}" for layer in (0, 2, 4) for kind in ("weight", "bias")}
    assert "best" in next(row["is"] for row in rows if row["checkpoint"] == pulled.manifest.name)
