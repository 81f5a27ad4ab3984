"""Compares runs: differing parameters, best and last metrics."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mltrain.errors import MltrainError, StorageError
from mltrain.ownership.attempts import recorded_config
from mltrain.run.checkpoints import open_checkpoints
from mltrain.run.listing import row
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.places import artifacts_of

log = logging.getLogger(__name__)

Values = dict[str, list[Any]]
"""A key, and its value in each run, or ``None``."""


@dataclass(frozen=True)
class Comparison:
    """A comparison of runs.

    Attributes:
        runs: a summary of each run.
        parameters: parameters that differ.
        best: metrics of each run's best checkpoint.
        last: last value of every metric.
    """

    runs: Sequence[Mapping[str, Any]]
    parameters: Values
    best: Values
    last: Values


def compared(server: TrackingClient, run_ids: Sequence[str]) -> Comparison:
    """Compare runs.

    Raises:
        RunNotFound: a run does not exist.
        TrackingError: the server does not answer.
    """
    runs = [server.run(run_id) for run_id in run_ids]
    parameters = _side_by_side(_parameters(server, run) for run in runs)
    return Comparison(
        [row(server, run) for run in runs],
        {key: values for key, values in parameters.items() if any(value != values[0] for value in values)},
        _side_by_side(_best(server, run_id) for run_id in run_ids),
        _side_by_side(dict(run.data.metrics) for run in runs),
    )


def _parameters(server: TrackingClient, run: Any) -> dict[str, Any]:
    """Return the typed values of a configuration, else the parameters that a launcher logged."""
    try:
        recorded = recorded_config(artifacts_of(server, run))
    except StorageError as error:
        log.warning("Run %s is compared without its artifacts: %s", run.info.run_id, error)
        return dict(run.data.params)
    except MltrainError:
        return dict(run.data.params)
    return dict(_flat(recorded["config"]))


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
