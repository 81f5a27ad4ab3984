"""A permanent refusal of one item does not block others."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from mltrain.delivery.journal import Journal
from mltrain.delivery.sender import Sender
from mltrain.delivery.sync import Existing, HostLock
from mltrain.errors import StorageError
from mltrain.store.local import LocalArtifacts
from mltrain.tracking.client import TrackingClient
from tests.support.waiting import eventually


class Recording:
    """A tracking server that may refuse points of one key."""

    def __init__(self, refused: str = "") -> None:
        self.taken: list[tuple[str, int]] = []
        self.refused = refused
        self.denied = False
        """Whether the user may not write, or the run is deleted."""
        self.asked = threading.Semaphore(0)

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        self.asked.release()
        if self.denied:
            raise MlflowException("not you", error_code=PERMISSION_DENIED)
        if any(metric.key == self.refused for metric in metrics):
            raise MlflowException("bad key", error_code=INVALID_PARAMETER_VALUE)
        self.taken += [(metric.key, metric.step) for metric in metrics]

    def get_run(self, run_id: str) -> Any:
        return SimpleNamespace(info=SimpleNamespace(lifecycle_stage="active"))


class Forbidding(LocalArtifacts):
    """An artifact store that answers 403."""

    def upload(self, file: Path, folder: str = "") -> None:
        forbidden = ConnectionError("403")
        forbidden.response = type("Response", (), {"status_code": 403})  # type: ignore[attr-defined]
        raise StorageError("403") from forbidden


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.sqlite", 1)


def test_a_file_that_is_refused_is_parked_and_points_flow(journal: Journal, tmp_path: Path) -> None:
    server = Recording()
    sender = Sender(TrackingClient("double:", server), Existing("0" * 32, Forbidding(tmp_path)), journal, HostLock())
    journal.log_item("file", "", str(tmp_path / "file"))
    journal.log_metrics({"a": 1.0}, 1, 1)
    assert sender.drain(20)
    assert server.taken == [("a", 1)]
    journal.close()


def test_a_point_that_is_refused_is_parked_and_the_others_of_its_batch_flow(journal: Journal, tmp_path: Path) -> None:
    server = Recording(refused="bad")
    for step in range(50):
        journal.log_metrics({"bad" if step == 17 else "good": float(step)}, step, step)
    journal.flush()
    sender = Sender(
        TrackingClient("double:", server), Existing("0" * 32, LocalArtifacts(tmp_path)), journal, HostLock()
    )
    assert sender.drain(20)
    assert sorted(server.taken) == [("good", step) for step in range(50) if step != 17]
    journal.close()


def denied(journal: Journal, folder: Path, **seconds: float) -> tuple[Recording, Sender]:
    """A sender that has been denied to send a point."""
    server = Recording()
    server.denied = True
    journal.log_metrics({"a": 1.0}, 1, 1)
    journal.flush()
    sender = Sender(
        TrackingClient("double:", server),
        Existing("0" * 32, LocalArtifacts(folder)),
        journal,
        HostLock(),
        **seconds,
    )
    assert server.asked.acquire(timeout=20)
    eventually(lambda: sender.trouble is not None, "the sender's notice")
    return server, sender


def test_what_was_denied_is_tried_once_more_at_the_end(journal: Journal, tmp_path: Path) -> None:
    server, sender = denied(journal, tmp_path)
    server.denied = False
    assert sender.drain(20)
    assert server.taken == [("a", 1)]
    journal.close()


def test_what_is_granted_while_the_sender_drains_is_sent(journal: Journal, tmp_path: Path) -> None:
    server, sender = denied(journal, tmp_path, held_at_the_end_seconds=0.05)
    drained: list[bool] = []
    draining = threading.Thread(target=lambda: drained.append(sender.drain(20)))
    draining.start()
    assert server.asked.acquire(timeout=20)
    server.denied = False
    draining.join()
    assert drained == [True]
    assert server.taken == [("a", 1)]
    journal.close()


def test_what_is_denied_to_the_end_is_left_in_the_journal(journal: Journal, tmp_path: Path) -> None:
    server, sender = denied(journal, tmp_path, held_at_the_end_seconds=0.05)
    assert not sender.drain(2)
    assert server.asked.acquire(timeout=20)
    assert journal.unsent() == 1
    journal.close()


def test_what_was_held_back_is_tried_at_once_when_it_is_released(journal: Journal, tmp_path: Path) -> None:
    server, sender = denied(journal, tmp_path, held_seconds=3600.0)
    server.denied = False
    sender.release()
    journal.arrived.set()
    assert server.asked.acquire(timeout=20)
    assert sender.drain(20)
    assert server.taken == [("a", 1)]
    journal.close()
