"""Compares runs: differing parameters, best and last metrics."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mltrain.errors import MltrainError, StorageError
from mltrain.ownership.attempts import last_attempt, recorded_attempts
from mltrain.run.checkpoints import checkpoints_of, open_checkpoints, trained_config
from mltrain.run.listing import row
from mltrain.run.run_ids import full_id
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.tags import CHANGED_PREFIX

log = logging.getLogger(__name__)

SYSTEM_PREFIX = "system/"
"""Begins the names of metrics that tell of the machine."""

Values = dict[str, list[Any]]
"""A key, and its value in each run, or ``None``."""


@dataclass(frozen=True)
class Comparison:
    """A comparison of runs.

    Attributes:
        runs: a summary of each run.
        parameters: parameters that differ, as the newest attempt of each run trained with them.
        changed: for each run its parameters that a resume changed, with all their values as text, the first one first.
        best: metrics of each run's best checkpoint.
        last: last value of every metric but those of the machine.
    """

    runs: Sequence[Mapping[str, Any]]
    parameters: Values
    changed: Sequence[Mapping[str, Sequence[str]]]
    best: Values
    last: Values


def compared(server: TrackingClient, run_ids: Sequence[str]) -> Comparison:
    """Compare runs.

    Raises:
        RunNotFound: a run does not exist.
        TrackingError: the server does not answer.
    """
    runs = [server.run(full_id(server, run_id)) for run_id in run_ids]
    found = [_parameters(server, run) for run in runs]
    changed = [changes for _, changes in found]
    parameters = _side_by_side(values for values, _ in found)

    def differs(key: str, values: Sequence[Any]) -> bool:
        histories = [changes.get(key) for changes in changed]
        return any(value != values[0] for value in values) or any(one != histories[0] for one in histories)

    return Comparison(
        [row(server, run) for run in runs],
        {key: values for key, values in parameters.items() if differs(key, values)},
        changed,
        _side_by_side(_best(server, run.info.run_id) for run in runs),
        _side_by_side(measured(run) for run in runs),
    )


def measured(run: Any) -> dict[str, float]:
    """Return the last values of what a run measured, without those of its machine."""
    return {key: value for key, value in run.data.metrics.items() if not key.startswith(SYSTEM_PREFIX)}


def _parameters(server: TrackingClient, run: Any) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Return the typed values that the newest attempt trained with, and the values of those that a resume changed.

    Without a configuration they are the parameters that MLflow has: a launcher logged them, or the first attempt.
    """
    try:
        checkpoints = checkpoints_of(server, run)
        last = last_attempt(run.data.params)
        attempts = [one for one in recorded_attempts(checkpoints.store.artifacts, last) if not one.withdrawn]
        newest = attempts[-1] if attempts else None
        changes = _histories(one.changed for one in attempts)
        if newest is None or any(manifest.id.attempt >= newest.ordinal for manifest in checkpoints.all()):
            values = dict(_flat(trained_config(checkpoints)))
            for key, earlier in changes.items():
                if key in values and _value(earlier[-1]) != values[key]:  # an attempt went back behind the change
                    earlier.append(_text(values[key]))
            return values, changes
        # It has committed nothing yet.
        begun = dict(_flat(trained_config(checkpoints, newest.resumed_from or "latest")))
        return begun | {key: _value(now) for key, (_, now) in newest.changed.items()}, changes
    except StorageError as error:
        log.warning("Run %s is compared without its artifacts: %s", run.info.run_id, error)
    except MltrainError:
        pass
    changes = _histories(_tagged(run))
    return dict(run.data.params) | {key: values[-1] for key, values in changes.items()}, changes


def _histories(changes: Iterable[Mapping[str, Sequence[str]]]) -> dict[str, list[str]]:
    """Return each changed key with all its values, from what the attempts changed, the first attempt first."""
    found: dict[str, list[str]] = {}
    for changed in changes:
        for key, both in changed.items():
            for value in both:
                values = found.setdefault(key, [])
                if values[-1:] != [value]:
                    values.append(value)
    return found


def _tagged(run: Any) -> Iterable[Mapping[str, Sequence[str]]]:
    """Yield what each attempt changed, as the tags of the run record it."""
    tags = {
        key.removeprefix(CHANGED_PREFIX): text for key, text in run.data.tags.items() if key.startswith(CHANGED_PREFIX)
    }
    for ordinal in sorted(filter(str.isdecimal, tags), key=int):
        try:
            yield json.loads(tags[ordinal])
        except ValueError:  # a tag has a largest length
            log.warning("Run %s is compared without what its attempt %s changed.", run.info.run_id, ordinal)


def _text(value: Any) -> str:
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


def _value(text: str) -> Any:
    """Return the value that a recorded change has as text."""
    try:
        return None if text == "none" else json.loads(text)
    except ValueError:
        return text


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _best(server: TrackingClient, run_id: str) -> dict[str, Any]:
    try:
        manifest = open_checkpoints(run_id, server).first("best")
    except MltrainError:
        return {}
    return {"epoch": manifest.epoch, "step": manifest.step, **manifest.metrics}


def _side_by_side(columns: Iterable[Mapping[str, Any]]) -> Values:
    columns = list(columns)
    keys = {key: None for column in columns for key in column}
    return {key: [column.get(key) for column in columns] for key in keys}
