"""Checks whether this machine and the store meet mltrain's needs."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Literal

import torch

from mltrain.checkpoint.manifest import CheckpointId, Manifest, now
from mltrain.checkpoint.publishing import publish, stage
from mltrain.checkpoint.snapshot import HostBuffers, snapshot
from mltrain.checkpoint.staging import Spool
from mltrain.checkpoint.store import CheckpointStore
from mltrain.errors import MltrainError
from mltrain.ownership.run_folder import home_of
from mltrain.provenance import fingerprint
from mltrain.store.folders import filesystem_of
from mltrain.store.names import CHECKPOINTS
from mltrain.store.opening import open_artifacts
from mltrain.store.removal import discard_empty
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.run_artifacts import refuse_unusable_location

_ENOUGH_BYTES = 5 * 10**9
_CLOCK_SECONDS = 60


@dataclass(frozen=True)
class Finding:
    """The result of a check, with details or a remedy."""

    check: str
    state: Literal["good", "note", "bad"]
    detail: str


def examine(server: TrackingClient) -> Iterator[Finding]:
    """Check server, artifact store, disks, clock, versions and devices."""
    yield Finding(
        "versions", "good", ", ".join(f"{name} {version}" for name, version in fingerprint.versions().items())
    )
    yield Finding("devices", "good", _devices())
    yield _guarded("tracking", lambda: _tracking(server))
    yield _guarded("clock", lambda: _clock(server))
    yield _guarded("staging", lambda: _disk(home_of(server, "0" * 32)))
    yield _guarded("artifact store", lambda: _store(server))


def _guarded(check: str, examine: Callable[[], Finding]) -> Finding:
    try:
        return examine()
    except MltrainError as error:
        return Finding(check, "bad", str(error))


def _devices() -> str:
    found = [f"cpu ({torch.get_num_threads()} threads)"]
    found += [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return ", ".join(found + (["mps"] if torch.backends.mps.is_available() else []))


def _tracking(server: TrackingClient) -> Finding:
    began = time.monotonic()
    next(server.once.search_experiments(page=1), None)
    return Finding("tracking", "good", f"{server.shown} answers in {1000 * (time.monotonic() - began):.0f} ms")


def _clock(server: TrackingClient) -> Finding:
    if not server.uri.startswith("http"):
        return Finding("clock", "good", "the tracking store is on this machine's clock")
    import requests

    try:
        answered = requests.head(f"{server.uri}/health", timeout=10).headers.get("Date", "")
        apart = abs((parsedate_to_datetime(answered) - now()).total_seconds())
    except (requests.RequestException, ValueError, TypeError):
        return Finding("clock", "note", "the server sends no date")
    state: Literal["good", "note"] = "good" if apart < _CLOCK_SECONDS else "note"
    return Finding(
        "clock", state, f"{apart:.0f} s from the server's; mltrain orders nothing by clocks, but charts show them"
    )


def _disk(folder: Path) -> Finding:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        began = time.monotonic()
        staging = Spool(Path(place)).staging(CheckpointId(attempt=1, step=0))
        with staging:
            staging.write("model.safetensors", [b"\0" * 2**20] * 32)
        seconds = time.monotonic() - began
    free = shutil.disk_usage(folder).free
    rate = 32 / max(seconds, 1e-6)
    detail = f"{folder.parent}: {filesystem_of(folder)}, {free / 1e9:.0f} GB free, writes {rate:.0f} MiB/s durably"
    return Finding("staging", "good" if free > _ENOUGH_BYTES else "note", detail)


def _store(server: TrackingClient) -> Finding:
    refuse_unusable_location(server, server.once.get_experiment("0"))  # MLflow would create a moved folder again
    made: list[Path] = []
    run = server.create_run("0", time.time_ns() // 1_000_000, {}, "mltrain doctor")
    try:
        artifacts = open_artifacts(run.info.artifact_uri, server.uri)
        if artifacts.local_root:
            made = [folder for folder in (artifacts.local_root, *artifacts.local_root.parents) if not folder.exists()]
            made = [artifacts.local_root / CHECKPOINTS, *made]
        with tempfile.TemporaryDirectory() as place:
            store = CheckpointStore(run.info.run_id, artifacts, Spool(Path(place)))
            blank = Manifest(
                run_id=run.info.run_id,
                id=CheckpointId(attempt=1, step=1),
                kind="step",
                epoch=0,
                parent=None,
                parts=("model",),
                files={},
                created=now(),
            )
            written = stage(store, snapshot({"model": {"weight": torch.arange(1000.0)}}, HostBuffers()), blank, {})
            publish(store, written)
            problems = store.problems(written)
            store.remove(written.id)
            if problems or store.names():
                return Finding("artifact store", "bad", f"{problems or 'deletes nothing'}: retention cannot work")
        where = (
            f"{artifacts.local_root} ({filesystem_of(artifacts.local_root)})"
            if artifacts.local_root
            else run.info.artifact_uri
        )
        return Finding("artifact store", "good", f"{where}: writes, reads back and deletes")
    finally:
        server.once.delete_run(run.info.run_id)
        discard_empty(made)  # they would hide a moved store
