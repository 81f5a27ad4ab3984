"""An overview of runs, with the state that is true and not only the status that was last written."""

import logging
import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from mltrain.checkpoint.manifest import FILE_NAME, MAX_BYTES, CheckpointId, Manifest, now
from mltrain.errors import MltrainError, UsageError
from mltrain.ownership.attempts import holder_of, is_alive
from mltrain.store.names import CHECKPOINTS
from mltrain.store.opening import open_artifacts
from mltrain.tracking.best import best_values
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.places import artifacts_of
from mltrain.tracking.tags import BEST_TAG, LATEST_TAG, LAUNCHER_OF_TAG, PROJECT_TAG, STATUS_TAG, meaning_of_best

log = logging.getLogger(__name__)

_QUERY = f"tags.`{STATUS_TAG}` != ''"
_PAGE = 250
"""Runs up to which a list takes one request."""
_READERS = 8
"""Manifests that are read at once."""
_COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}
_CONDITION = re.compile(r"(\S(?:.*?\S)??)\s*(<=|>=|<|>|=)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)")

_ENDED = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "stopped"}


@dataclass(frozen=True)
class Selection:
    """Which runs to list, and in which order.

    A metric of a run is what its best checkpoint measured.

    Attributes:
        most: how many at most.
        where: conditions such as ``val/f1 > 0.8``; a run without the metric meets none.
        sort: the metric to sort by, the best first and runs without it last. If ``None``, the newest run comes first.
        mode: whether less or more of it is better. If ``None``, what the runs declare that have it as their best metric.
    """

    most: int = 50
    where: Sequence[str] = ()
    sort: str | None = None
    mode: str | None = None


def listed(server: TrackingClient, experiment: str | None, selection: Selection) -> list[dict[str, Any]]:
    """Return runs of mltrain, each as plain values.

    Args:
        server: has them.
        experiment: its name. If ``None``, every one.
        selection: which of them, and in which order.

    Raises:
        UsageError: a condition cannot be read, or nothing says whether less or more of a metric is better.
        RunNotFound: there is no such experiment.
        TrackingError: the server does not answer.
    """
    if selection.mode not in (None, "min", "max"):
        raise UsageError(f"--mode {selection.mode!r:.20} is not known. Expected min or max.")
    conditions = [_condition(text) for text in selection.where]
    most = max(0, selection.most)
    if experiment is not None:
        identities = [server.once.experiment_id(experiment)]
    else:
        identities = [known.experiment_id for known in server.search_experiments()]
    chosen = bool(conditions or selection.sort)
    runs: Iterable[Any]
    if chosen or most > _PAGE:
        runs = _trainings(server.search_runs_ahead(identities, _QUERY))
    else:
        runs = _runs(server, identities, page=max(1, most))
    with ThreadPoolExecutor(_READERS, thread_name_prefix="mltrain-listing") as readers:
        rows = list(readers.map(partial(_measured_row, server), runs if chosen else islice(runs, most)))
    rows = [
        one for one in rows if all(name in one["metrics"] and meets(one["metrics"][name]) for name, meets in conditions)
    ]
    if selection.sort is not None:
        rows = _sorted(rows, selection.sort, selection.mode)
    return rows[:most]


def _measured_row(server: TrackingClient, run: Any) -> dict[str, Any]:
    """Return what is worth knowing of a run, with the metrics of its best checkpoint."""
    metric, mode = meaning_of_best(run)
    metrics: dict[str, float] = {}
    try:
        metrics = _at_best(server, run, metric)
    except (MltrainError, OSError) as error:
        log.warning("Run %s is listed without the metrics of its best checkpoint: %s", run.info.run_id, error)
    described = {"best_metric": metric, "best_mode": mode, "best_value": metrics.get(metric), "metrics": metrics}
    return row(server, run) | described


def _at_best(server: TrackingClient, run: Any, metric: str) -> dict[str, float]:
    """Return what the best checkpoint of a run measured.

    Where the tags do not tell, its manifest is read without what loads checkpoints, and torch.
    """
    told = best_values(run)
    if told is not None and metric in told.metrics:
        return dict(told.metrics)
    identity = CheckpointId.parse(run.data.tags.get(BEST_TAG, ""))
    if identity is None:
        return {}
    artifacts = open_artifacts(run.info.artifact_uri, server.uri)
    try:
        content = bytes(artifacts.read(f"{CHECKPOINTS}/{identity.name}/{FILE_NAME}", MAX_BYTES))
    except FileNotFoundError:
        artifacts_of(server, run)  # its error says where they went, if all are gone
        raise
    manifest = Manifest.from_json(content, name=identity.name)
    if metric not in manifest.metrics:  # a loop may have declared it after the save
        from mltrain.checkpoint.notes import Notes
        from mltrain.checkpoint.retention import Context

        (manifest,) = Notes.read(artifacts, Context(now())).over([manifest])
    return dict(manifest.metrics)


def _condition(text: str) -> tuple[str, Callable[[float], bool]]:
    match = _CONDITION.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"--where {text!r:.80} cannot be read. Expected METRIC, one of < <= > >= =, and a number: 'val/f1 > 0.8'."
        )
    name, compare, number = match[1], _COMPARISONS[match[2]], float(match[3])
    return name, lambda value: bool(compare(value, number))


def _sorted(rows: Iterable[dict[str, Any]], metric: str, mode: str | None) -> list[dict[str, Any]]:
    """Return rows with the best of a metric first, and those that lack it or hold NaN last."""
    rows = list(rows)
    modes = {one["best_mode"] for one in rows if one["best_metric"] == metric}
    if mode is None and len(modes) != 1:
        raise UsageError(
            f"Nothing says whether less or more of {metric} is better. Expected a metric that the listed runs have as their "
            "best_metric, or --mode. Try: --mode max"
        )
    sign = -1.0 if (mode or modes.pop()) == "max" else 1.0

    def place(one: Mapping[str, Any]) -> tuple[bool, float]:
        value = one["metrics"].get(metric, math.nan)
        return (True, 0.0) if math.isnan(value) else (False, sign * value)

    return sorted(rows, key=place)


def newest(server: TrackingClient) -> Any | None:
    """Return the newest run of mltrain, or ``None``."""
    return next(_runs(server, [known.experiment_id for known in server.search_experiments()], page=5), None)


def _runs(server: TrackingClient, experiments: Iterable[str], page: int) -> Iterator[Any]:
    """Yield the runs of mltrain, the newest first."""
    return _trainings(server.search_runs(experiments, _QUERY, page=page))


def _trainings(found: Iterable[Any]) -> Iterator[Any]:
    """Yield runs without the empty ones of ``mlflow run``."""
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


LIVE = ("running", "running elsewhere")
"""States of a run that a process trains, as far as is known here."""


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
