"""Follows the log of a running stage, from this machine's file or else from the run's artifacts."""

import time
from collections.abc import Iterator

from mltrain.errors import MltrainError, NoCheckpoint
from mltrain.ownership.run_folder import known_home
from mltrain.pipelines.event_log import LOG_FILE
from mltrain.run.listing import state
from mltrain.store.opening import open_artifacts
from mltrain.tracking.client import TrackingClient

_MOST = 2**26
_LIVE = ("running", "running elsewhere")


def followed(server: TrackingClient, run_id: str, *, seconds: float = 0.5) -> Iterator[str]:
    """Yield the lines of a stage's log until the run ends.

    Raises:
        NoCheckpoint: the run has ended without a log.
    """
    shown = 0
    while True:
        run = server.run(run_id)
        live = state(server, run) in _LIVE
        text = _text(server, run_id, str(run.info.artifact_uri))
        if text is None and not live:
            raise NoCheckpoint(f"Run {run_id} has no {LOG_FILE}, here or among its artifacts.")
        complete, newline, _ = (text or "").rpartition("\n")
        lines = complete.split("\n") if newline else []
        yield from lines[shown:]
        shown = max(shown, len(lines))
        if not live:
            return
        time.sleep(seconds)


def _text(server: TrackingClient, run_id: str, artifact_uri: str) -> str | None:
    try:
        return (known_home(server, run_id) / LOG_FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        pass
    try:
        return open_artifacts(artifact_uri, server.uri).read(LOG_FILE, _MOST).decode("utf-8", "replace")
    except (OSError, MltrainError):
        return None
