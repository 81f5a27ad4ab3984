"""The home of a run: one folder for one store, however its address is spelled, and what its lock proves."""

import sys
import uuid
from pathlib import Path

import pytest

from mltrain.errors import StorageError
from mltrain.ownership.run_folder import address_of, home_of, homes, known_home, refuse_unwritable_places, stores
from mltrain.tracking.client import TrackingClient

RUN = "a" * 32


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("sqlite:///{here}/m.db", "sqlite:///{here}/./m.db"),
        ("sqlite:///{here}/m.db", "sqlite:///{here}/deeper/../m.db"),
        ("sqlite:///{here}/m.db", "sqlite:///m.db"),
        ("sqlite:///{here}/m.db", "sqlite:///./m.db"),
        ("sqlite:///{here}/m.db", "sqlite:///{here}/link/m.db"),
        ("file://{here}/mlruns", "mlruns"),
        ("file://{here}/mlruns", "{here}/mlruns/"),
        ("file://{here}/mlruns", "./mlruns"),
        ("http://localhost:5000", "http://127.0.0.1:5000/"),
        ("http://LOCALHOST:5000", "http://[::1]:5000"),
        ("http://example.org", "http://Example.org:80/"),
        ("https://example.org/mlflow", "https://user:password@example.org:443/mlflow/"),
        ("postgresql://a:b@db/mlflow", "postgresql://a:c@db/mlflow"),
    ],
)
def test_spellings_of_one_store_have_one_folder(
    one: str, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deeper").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    one, other = one.format(here=tmp_path), other.format(here=tmp_path)
    assert address_of(one) == address_of(other)
    assert homes(TrackingClient(one, None)) == homes(TrackingClient(other, None))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("sqlite:///a.db", "sqlite:///b.db"),
        ("http://localhost:5000", "http://localhost:5001"),
        ("http://example.org", "https://example.org"),
        ("http://example.org/a", "http://example.org/b"),
        ("databricks", "databricks-uc"),
    ],
)
def test_other_stores_have_other_folders(one: str, other: str) -> None:
    assert homes(TrackingClient(one, None)) != homes(TrackingClient(other, None))


def test_a_password_is_in_no_address() -> None:
    assert "secret" not in address_of("postgresql://user:secret@db:5432/mlflow")


def test_a_home_that_an_earlier_version_made_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLTRAIN_HOME", str(tmp_path))
    server = TrackingClient("http://127.0.0.1:5000/", None)
    run_id = "a" * 32
    earlier = tmp_path / uuid.uuid5(uuid.NAMESPACE_URL, server.uri).hex[:12] / run_id
    earlier.mkdir(parents=True)
    assert known_home(server, run_id) == earlier
    assert [(root, address) for root, address in stores(server)] == [(earlier.parent, None)]


def test_a_home_in_whose_place_something_else_is_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLTRAIN_HOME", str(tmp_path))
    server = TrackingClient("http://localhost:5000", None)
    place = homes(server) / ("a" * 32)
    place.parent.mkdir(parents=True)
    place.write_text("no folder")
    assert home_of(server, "a" * 32).is_dir()
    assert [file.read_text() for file in place.parent.glob("*.damaged-*")] == ["no folder"]


@pytest.mark.skipif(sys.platform != "linux", reason="root may write anywhere but in /proc")
def test_a_database_in_a_folder_that_takes_no_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLTRAIN_HOME", str(tmp_path))
    with pytest.raises(
        StorageError, match=r"/proc cannot be written: .* The runs are recorded there. Try: MLFLOW_TRACKING_URI="
    ):
        refuse_unwritable_places(TrackingClient("sqlite:////proc/mlflow.db", None))


def test_a_database_that_this_user_may_only_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLTRAIN_HOME", str(tmp_path))
    file = tmp_path / "mlflow.db"
    server = TrackingClient(f"sqlite:///{file}", None)
    refuse_unwritable_places(server)
    assert not file.exists()
    file.touch()
    refuse_unwritable_places(server)
    monkeypatch.setattr("os.access", lambda place, mode: False)
    with pytest.raises(StorageError, match=r"mlflow\.db cannot be written by this user"):
        refuse_unwritable_places(server)
