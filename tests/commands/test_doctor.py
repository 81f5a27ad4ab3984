"""``mltrain doctor``: what it finds, and that it leaves nothing behind."""

from pathlib import Path

import pytest

from mltrain import CheckpointManager
from mltrain.commands.doctor import examine
from mltrain.tracking.client import connect
from tests.support.database import fresh_database, use_database


def test_a_store_that_was_moved_is_bad_and_its_folder_is_not_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_database(monkeypatch, tmp_path, "my runs")
    server = connect(retry_seconds=0.0)
    with CheckpointManager(metric="val/loss") as manager:
        manager.run.set_tag("mltrain.project", "a loop")
    (tmp_path / "my runs").rename(tmp_path / "elsewhere")
    found = {finding.check: finding for finding in examine(server)}
    assert found["artifact store"].state == "bad"
    assert "does not exist" in found["artifact store"].detail
    assert f"'{tmp_path}/my runs" in found["artifact store"].detail  # quoted, so that the remedy can be pasted
    assert not (tmp_path / "my runs").exists()


def test_nothing_of_the_check_is_left_in_the_artifact_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh_database(tmp_path / "mlflow.db", tmp_path / "my runs")
    monkeypatch.setenv("MLTRAIN_HOME", str(tmp_path / "home"))
    found = {finding.check: finding for finding in examine(connect(f"sqlite:///{tmp_path / 'mlflow.db'}"))}
    assert found["artifact store"].state == "good"
    assert not (tmp_path / "my runs").exists()
