"""The process after ``mlflow run`` imports nothing from the user's folders."""

import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mltrain.ownership import launcher
from mltrain.tracking.client import TrackingClient
from tests.support.database import fresh_database


@pytest.mark.faults
def test_modules_in_the_working_directory_are_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = fresh_database(tmp_path / "mlflow.db", tmp_path / "mlruns")
    client = MlflowClient(uri)
    run_id = client.create_run("0").info.run_id
    for name in ("json", "psutil", "mlflow", "mltrain"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'a').close()\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert launcher.after(TrackingClient(uri, client), gone.pid, run_id, "KILLED").wait(120) == 0
    assert client.get_run(run_id).info.status == "KILLED"
    assert not (tmp_path / "executed").exists()
