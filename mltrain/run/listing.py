"""Lists runs with their actual state. The recorded status may differ."""

import logging
import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Any

from mltrain.checkpoint.manifest import FILE_NAME, MAX_BYTES, CheckpointId, Manifest, now
from mltrain.errors import MltrainError, UsageError
from mltrain.ownership.attempts import OUTCOME_OF, holder_of, is_alive
from mltrain.store.names import CHECKPOINTS
from mltrain.store.opening import open_artifacts
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.run_artifacts import artifacts_of
from mltrain.tracking.tags import (
    BEST_TAG,
    LATEST_TAG,
    LAUNCHER_OF_TAG,
    PROJECT_TAG,
    STATUS_TAG,
    best_values,
    meaning_of_best,
)

log = logging.getLogger(__name__)

_QUERY = f"tags.`{STATUS_TAG}` != ''"
_PAGE = 250
"""The most runs that one request lists."""
_READERS = 8
"""Number of manifests read in parallel."""
_COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}
_CONDITION = re.compile(r"(\S(?:.*?\S)??)\s*(<=|>=|<|>|=)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)")


@dataclass(frozen=True)
class Selection:
    """Which runs to list, and in which order.

    The metrics of a run are those of its best checkpoint.

    Attributes:
        most: largest number of runs.
        where: conditions such as ``val/f1 > 0.8``; a run without the metric meets none.
        sort: the metric to sort by, the best first and runs without it last. If ``None``, the newest run comes first.
        mode: ``min`` or ``max``. If ``None``, that of the runs with ``sort`` as their best metric.
    """

    most: int = 50
    where: Sequence[str] = ()
    sort: str | None = None
    mode: str | None = None


def listed(server: TrackingClient, experiment: str | None, selection: Selection) -> list[dict[str, Any]]:
    """Return runs of mltrain, each as plain values.

    Args:
        server: that has the runs.
        experiment: name of the experiment. If ``None``, all experiments.
        selection: which runs, and in which order.

    Raises:
        UsageError: a condition cannot be parsed, or the mode of the metric to sort by is unknown.
        RunNotFound: there is no such experiment.
        TrackingError: the server does not answer.
    """
    if selection.mode not in (None, "min", "max"):
        raise UsageError(f"--mode is invalid. Expected min or max, got {selection.mode!r:.20}.")
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
    """Return a run's row with its best checkpoint's metrics."""
    metric, mode = meaning_of_best(run)
    metrics: dict[str, float] = {}
    try:
        metrics = _at_best(server, run, metric)
    except (MltrainError, OSError) as error:
        log.warning("Run %s is listed without the metrics of its best checkpoint: %s", run.info.run_id, error)
    described = {"best_metric": metric, "best_mode": mode, "best_value": metrics.get(metric), "metrics": metrics}
    return row(server, run) | described


def _at_best(server: TrackingClient, run: Any, metric: str) -> dict[str, float]:
    """Return the metrics of a run's best checkpoint.

    If the tags do not have them, its manifest is read, without importing torch.
    """
    tagged = best_values(run)
    if tagged is not None and metric in tagged.metrics:
        return dict(tagged.metrics)
    identity = CheckpointId.parse(run.data.tags.get(BEST_TAG, ""))
    if identity is None:
        return {}
    artifacts = open_artifacts(run.info.artifact_uri, server.uri)
    try:
        content = bytes(artifacts.read(f"{CHECKPOINTS}/{identity.name}/{FILE_NAME}", MAX_BYTES))
    except FileNotFoundError:
        artifacts_of(server, run)  # raises a clearer error if all artifacts are gone
        raise
    manifest = Manifest.from_json(content, name=identity.name)
    if metric not in manifest.metrics:  # it may have been declared after the save
        from mltrain.checkpoint.notes import Notes
        from mltrain.checkpoint.retention import Context

        (manifest,) = Notes.read(artifacts, Context(now())).over([manifest])
    return dict(manifest.metrics)


def _condition(text: str) -> tuple[str, Callable[[float], bool]]:
    match = _CONDITION.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"--where is invalid. Expected METRIC, one of < <= > >= =, and a number, got {text!r:.80}. Try: 'val/f1 > 0.8'"
        )
    name, compare, number = match[1], _COMPARISONS[match[2]], float(match[3])
    return name, lambda value: bool(compare(value, number))


def _sorted(rows: Iterable[dict[str, Any]], metric: str, mode: str | None) -> list[dict[str, Any]]:
    """Return rows by metric, best first, missing and NaN last."""
    rows = list(rows)
    modes = {one["best_mode"] for one in rows if one["best_metric"] == metric}
    if mode is None and len(modes) != 1:
        raise UsageError(
            f"The mode of {metric} is unknown. Expected the best_metric of the listed runs, or --mode. Try: --mode max"
        )
    sign = -1.0 if (mode or modes.pop()) == "max" else 1.0

    def place(one: Mapping[str, Any]) -> tuple[bool, float]:
        value = one["metrics"].get(metric, math.nan)
        return (True, 0.0) if math.isnan(value) else (False, sign * value)

    return sorted(rows, key=place)


def newest(server: TrackingClient) -> Any | None:
    """Return mltrain's newest run. ``None`` before the first run."""
    return next(_runs(server, [known.experiment_id for known in server.search_experiments()], page=5), None)


def _runs(server: TrackingClient, experiments: Iterable[str], page: int) -> Iterator[Any]:
    """Yield the runs of mltrain, newest first."""
    return _trainings(server.search_runs(experiments, _QUERY, page=page))


def _trainings(found: Iterable[Any]) -> Iterator[Any]:
    """Yield runs except the empty ones that ``mlflow run`` creates."""
    return (run for run in found if LAUNCHER_OF_TAG not in run.data.tags)


def row(server: TrackingClient, run: Any) -> dict[str, Any]:
    """Return a run's columns in a list of runs."""
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
"""States of a run that a process may be training."""


def state(server: TrackingClient, run: Any) -> str:
    """Return a run's state.

    Returns:
        ``running``, ``running elsewhere``, ``dead``, ``finished``, ``stopped``, ``failed`` or ``unknown``.
    """
    tagged = run.data.tags.get(STATUS_TAG)
    if tagged != "running":
        return tagged or OUTCOME_OF.get(run.info.status, "unknown")
    alive = is_alive(server, run)
    return "running elsewhere" if alive is None else "running" if alive else "dead"


def _time(milliseconds: int | None) -> str | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds") if milliseconds else None
