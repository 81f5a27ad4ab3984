"""An overview of runs, with the state that is true and not only the status that was last written."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from mltrain.ownership.attempts import holder_of, is_alive
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.tags import BEST_TAG, LATEST_TAG, LAUNCHER_OF_TAG, PROJECT_TAG, STATUS_TAG

_ENDED = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "stopped"}


def listed(server: TrackingClient, experiment: str | None, most: int) -> list[dict[str, Any]]:
    """Return the newest runs of mltrain, each as plain values.

    Raises:
        RunNotFound: there is no such experiment.
        TrackingError: the server does not answer.
    """
    if experiment is not None:
        identities = [server.once.experiment_id(experiment)]
    else:
        identities = [known.experiment_id for known in server.search_experiments()]
    found = islice(_runs(server, identities, page=max(1, min(most, 1000))), max(0, most))
    return [row(server, run) for run in found]


def newest(server: TrackingClient) -> Any | None:
    """Return the newest run of mltrain, or ``None``."""
    return next(_runs(server, [known.experiment_id for known in server.search_experiments()], page=5), None)


def _runs(server: TrackingClient, experiments: Iterable[str], page: int) -> Iterator[Any]:
    """Yield the runs of mltrain, the newest first."""
    found = server.search_runs(experiments, f"tags.`{STATUS_TAG}` != ''", page=page)
    return (run for run in found if LAUNCHER_OF_TAG not in run.data.tags)


def row(server: TrackingClient, run: Any) -> dict[str, Any]:
    """Return what is worth knowing of a run at a glance."""
    tags, metrics = run.data.tags, run.data.metrics
    return {
        "run_id": run.info.run_id,
        "name": run.info.run_name,
        "project": tags.get(PROJECT_TAG),
        "state": state(server, run),
        "status": run.info.status,
        "epoch": int(metrics["epoch"]) if "epoch" in metrics else None,
        "latest": tags.get(LATEST_TAG),
        "best": tags.get(BEST_TAG),
        "started": _time(run.info.start_time),
        "experiment_id": run.info.experiment_id,
        "holder": holder_of(run) or None,
    }


def state(server: TrackingClient, run: Any) -> str:
    """Return ``running``, ``finished``, ``stopped``, ``failed``, ``dead``, or ``unknown`` for a holder elsewhere."""
    said = run.data.tags.get(STATUS_TAG)
    if said != "running":
        return said or _ENDED.get(run.info.status, "unknown")
    alive = is_alive(server, run)
    return "running elsewhere" if alive is None else "running" if alive else "dead"


def _time(milliseconds: int | None) -> str | None:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds") if milliseconds else None
