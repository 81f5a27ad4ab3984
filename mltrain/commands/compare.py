"""Compares runs: differing parameters, best and last metrics."""

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from mltrain.checkpoint.manifest import CheckpointId, Manifest
from mltrain.checkpoint.reader import CheckpointReader, matching
from mltrain.configuration.fields import as_text, leaves
from mltrain.errors import MltrainError, StorageError
from mltrain.ownership.attempts import STATUS_OF, last_attempt, recorded_attempts, recorded_config
from mltrain.ownership.launcher import ENTRY_POINT
from mltrain.run.checkpoints import checkpoints_of, config_of
from mltrain.run.listing import row
from mltrain.run.naming import full_id
from mltrain.store.opening import open_artifacts
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.names import LONGEST_PARAMETER
from mltrain.tracking.tags import (
    CHANGED_PREFIX,
    LATEST_TAG,
    NAMESPACE,
    ONLY_LOCAL_TAG,
    PROJECT_TAG,
    STATUS_TAG,
    best_values,
    meaning_of_best,
)

log = logging.getLogger(__name__)

SYSTEM_PREFIX = "system/"
"""Prefix of system metrics, such as the machine's memory."""
_READERS = 8
"""Number of runs whose checkpoints are read at the same time."""

Values = dict[str, list[Any]]
"""For each key its values, one a run; ``None`` if a run lacks it."""


@dataclass(frozen=True)
class Comparison:
    """A comparison of runs.

    Attributes:
        runs: a summary of each run.
        parameters: the parameters that differ, with the values of each run's newest attempt.
        changed: for each run the parameters that a resume changed, with all their values as text, oldest first.
        best: metrics of each run's best checkpoint.
        last: last value of every metric, without system metrics.
        decided_by: the metric that decides which checkpoint is best, and ``min`` or ``max``. If ``None``, the runs differ in it.
    """

    runs: Sequence[Mapping[str, Any]]
    parameters: Values
    changed: Sequence[Mapping[str, Sequence[str]]]
    best: Values
    last: Values
    decided_by: tuple[str, str] | None = None

    def ranked(self) -> list[int]:
        """Return the indices of the runs, best first."""
        metric, mode = self.decided_by or ("", "min")
        values = self.best.get(metric, [None] * len(self.runs))
        sign = -1.0 if mode == "max" else 1.0

        def place(number: int) -> tuple[bool, float]:
            value = values[number]
            return (True, 0.0) if value is None or math.isnan(value) else (False, sign * value)

        return sorted(range(len(self.runs)), key=place)


@dataclass(frozen=True)
class _Trained:
    """A run's parameters, changes at resumes, and best metrics."""

    parameters: Mapping[str, Any]
    changed: Mapping[str, list[str]]
    best: Mapping[str, Any]


def compared(server: TrackingClient, run_ids: Sequence[str]) -> Comparison:
    """Compare runs.

    Raises:
        RunNotFound: a run does not exist.
        TrackingError: the server does not answer.
    """
    with ThreadPoolExecutor(_READERS, thread_name_prefix="mltrain-compare") as readers:
        runs = server.runs(list(readers.map(partial(full_id, server), run_ids)))
        trained = list(readers.map(partial(_trained, server), runs))
        rows = list(readers.map(partial(row, server), runs))
    changed = [one.changed for one in trained]
    parameters = _side_by_side(one.parameters for one in trained)

    def differs(key: str, values: Sequence[Any]) -> bool:
        histories = [changes.get(key) for changes in changed]
        return any(as_text(value) != as_text(values[0]) for value in values) or any(
            one != histories[0] for one in histories
        )

    meanings = {meaning_of_best(run) for run in runs}
    return Comparison(
        rows,
        {key: values for key, values in parameters.items() if differs(key, values)},
        changed,
        _side_by_side(one.best for one in trained),
        _side_by_side(measured(run) for run in runs),
        meanings.pop() if len(meanings) == 1 else None,
    )


def measured(run: Any) -> dict[str, float]:
    """Return the last values of a run's non-system metrics."""
    return {key: value for key, value in run.data.metrics.items() if not key.startswith(SYSTEM_PREFIX)}


def _trained(server: TrackingClient, run: Any) -> _Trained:
    """Return a run's values, if necessary from its checkpoints.

    Parameters are the typed values of the newest attempt. A run without a recorded configuration has only the parameters in
    MLflow, logged by a launcher or the first attempt.
    """
    best: Mapping[str, Any] = {}
    try:
        if (recorded := _recorded(server, run)) is not None:
            return recorded
        checkpoints = checkpoints_of(server, run)
        manifests = checkpoints.all()
        best = _best(matching(manifests, "best", checkpoints.notes.context))
        values, changes = _configured(run, checkpoints, manifests)
        return _Trained(_with_a_meaning(run, values, changes), changes, best)
    except StorageError as error:
        log.warning("Run %s is compared without its artifacts: %s", run.info.run_id, error)
    except MltrainError:
        pass
    changes, logged = _histories(_tagged(run)), _logged(run)
    return _Trained(logged | {key: values[-1] for key, values in changes.items()}, changes, best)


def _recorded(server: TrackingClient, run: Any) -> _Trained | None:
    """Return an ended run's values without reading checkpoints.

    ``None`` if a resume changed parameters or committed nothing, or if a checkpoint is not uploaded yet.
    """
    tags, best = run.data.tags, best_values(run)
    newest = CheckpointId.parse(tags.get(LATEST_TAG, ""))
    settled = tags.get(STATUS_TAG) in STATUS_OF and ONLY_LOCAL_TAG not in tags and PROJECT_TAG in tags
    if best is None or newest is None or not settled or newest.attempt != last_attempt(run.data.params):
        return None
    if any(key.startswith(CHANGED_PREFIX) for key in tags):
        return None
    measured_at_best = {"epoch": best.epoch, "step": best.step, **best.metrics}
    logged = _logged(run)
    if ENTRY_POINT in tags or any(len(value) >= LONGEST_PARAMETER for value in logged.values()):
        # mlflow run logs parameters as the user typed them, and MLflow truncates long ones.
        config = recorded_config(open_artifacts(run.info.artifact_uri, server.uri))["config"]
        return _Trained(_with_a_meaning(run, dict(leaves(config)), {}), {}, measured_at_best)
    return _Trained({key: _value(text) for key, text in logged.items()}, {}, measured_at_best)


def _with_a_meaning(run: Any, values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that the run logged or later changed."""
    logged = _logged(run)
    return {key: value for key, value in values.items() if not logged or key in logged or key in changes}


def _logged(run: Any) -> dict[str, str]:
    """Return the parameters of a run without mltrain's internal ones."""
    return {key: value for key, value in run.data.params.items() if not key.startswith(NAMESPACE)}


def _configured(
    run: Any, checkpoints: CheckpointReader, manifests: Sequence[Manifest]
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Return the newest attempt's values, and every changed key's history."""
    last = last_attempt(run.data.params)
    # The first attempt changes nothing.
    recorded = recorded_attempts(checkpoints.store.artifacts, last) if last > 1 else []
    attempts = [one for one in recorded if not one.withdrawn]
    newest = attempts[-1] if attempts else None
    changes = _histories(one.changed for one in attempts)

    def config(which: str) -> dict[str, Any]:
        return dict(leaves(config_of(checkpoints, matching(manifests, which, checkpoints.notes.context))))

    if newest is None or any(manifest.id.attempt >= newest.ordinal for manifest in manifests):
        values = config("latest")
        for key, earlier in changes.items():
            if key in values and _value(earlier[-1]) != values[key]:  # an attempt went back to before the change
                earlier.append(as_text(values[key]))
        return values, changes
    begun = config(newest.resumed_from or "latest")  # it has committed nothing yet
    return begun | {key: _value(now) for key, (_, now) in newest.changed.items()}, changes


def _histories(changes: Iterable[Mapping[str, Sequence[str]]]) -> dict[str, list[str]]:
    """Return all values of each changed key, oldest first."""
    found: dict[str, list[str]] = {}
    for changed in changes:
        for key, both in changed.items():
            for value in both:
                values = found.setdefault(key, [])
                if values[-1:] != [value]:
                    values.append(value)
    return found


def _tagged(run: Any) -> Iterable[Mapping[str, Sequence[str]]]:
    """Yield each attempt's changes from the run's tags."""
    tags = {
        key.removeprefix(CHANGED_PREFIX): text for key, text in run.data.tags.items() if key.startswith(CHANGED_PREFIX)
    }
    for ordinal in sorted(filter(str.isdecimal, tags), key=int):
        try:
            yield json.loads(tags[ordinal])
        except ValueError:  # the tag was cut at MLflow's length limit
            log.warning("Run %s is compared without the changes of its attempt %s.", run.info.run_id, ordinal)


def _value(text: str) -> Any:
    """Parse the text of a value in a recorded change."""
    try:
        return None if text == "none" else json.loads(text)
    except ValueError:
        return text


def _best(ranked: Sequence[Manifest]) -> dict[str, Any]:
    return {"epoch": ranked[0].epoch, "step": ranked[0].step, **ranked[0].metrics} if ranked else {}


def _side_by_side(columns: Iterable[Mapping[str, Any]]) -> Values:
    columns = list(columns)
    keys = {key: None for column in columns for key in column}
    return {key: [column.get(key) for column in columns] for key in keys}
