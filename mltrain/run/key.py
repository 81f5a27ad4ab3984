"""Run keys: names by which a command finds its run again.

A run is found by its tag :data:`RUN_KEY_TAG`. Two processes may both create a run before either sees the other's. So a run
trains only once its key is confirmed in a parameter, which is write-once:

1. Every process creates its run, then lists the runs of the key.
2. Only the process of the oldest run continues. It marks all others as duplicates, and confirms its own last.

A process that lists only its own run may confirm it before an older run appears. The older run's process then fails to mark it
as a duplicate, and stops. So at most one run of a key is confirmed.
"""

import re
from contextlib import suppress
from typing import Any

from mltrain.delivery.creation import existing_experiment
from mltrain.errors import MltrainError, RunHeld, TrackingError, UsageError
from mltrain.ownership.attempts import holder_of, named
from mltrain.ownership.launcher import Launcher
from mltrain.redaction import redacted
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.connection import Refusal
from mltrain.tracking.tags import RUN_KEY_TAG

_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/@+=, -]{0,199}", re.ASCII)
_DUPLICATE = "(duplicate)"
"""The value of the parameter in a run whose key another run has. No key has parentheses."""
_TRIES = 20


def refuse_unusable_key(key: Any) -> None:
    """Check that a value can be a run key.

    Raises:
        UsageError: it has other characters, is too long, or looks like a secret.
    """
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise UsageError(
            f"run_key={key!r:.80} is not a run key. Expected at most 200 letters, digits, spaces and characters of _.:/@+=,- "
            "beginning with a letter or digit. Try: --run-key NAME"
        )
    if redacted(key) != key:
        raise UsageError(
            "run_key= looks like a secret. Expected a public name, because runs show it. Try: --run-key NAME"
        )


def find(server: TrackingClient, experiment: str | None, launcher: Launcher | None, key: str) -> Any | None:
    """Return the run that has a key in an experiment.

    Returns ``None`` if no run has the key. Deleted runs are ignored.

    Args:
        server: tracking server that is searched.
        experiment: name of the experiment. If ``None``, MLflow's default.
        launcher: the ``mlflow run`` that started this process. If given, its run's experiment is searched.
        key: of the run.

    Raises:
        UsageError: several runs have the key.
        TrackingError: the server does not answer.
    """
    try:
        if launcher is not None:
            experiment_id: str | None = server.run(launcher.run_id).info.experiment_id
        else:
            experiment_id = existing_experiment(server, experiment)
        found = _with_key(server, experiment_id, key) if experiment_id is not None else []
    except Refusal as error:
        raise TrackingError(
            f"{error} A training with a run key must first find the run that has it. Try: the same command once the tracking "
            "server is back, or without --run-key"
        ) from error
    confirmed = [run for run in found if _is_confirmed(run, key)]
    if len(confirmed) > 1:
        raise UsageError(
            f"The run key {key!r} belongs to {len(confirmed)} runs: {', '.join(run.info.run_id for run in confirmed)}. "
            "Expected one. Try: delete all but one of them, or mltrain train --resume-run ID"
        )
    return next(iter(confirmed or found), None)


def confirm(server: TrackingClient, run_id: str, key: str) -> None:
    """Confirm that a run has a key.

    Raises:
        RunHeld: another run has the key.
        TrackingError: the server does not answer.
    """
    experiment_id = server.run(run_id).info.experiment_id
    for _ in range(_TRIES):
        found = _with_key(server, experiment_id, key)
        confirmed = next((run for run in found if _is_confirmed(run, key)), None)
        first = confirmed or found[0] if found else None
        if first is None or first.info.run_id != run_id:
            raise _overtaken(server, key, first)
        if confirmed is not None:
            return
        others = [run.info.run_id for run in found[1:]]
        if all(_wrote(server, other, _DUPLICATE) for other in others) and _wrote(server, run_id, key):
            return
    raise _overtaken(server, key, None)


def release(server: TrackingClient, run_id: str) -> None:
    """Remove the key's tag. The run stays, although another one has the key."""
    with suppress(MltrainError):
        server.once.delete_tag(run_id, RUN_KEY_TAG)


def _with_key(server: TrackingClient, experiment_id: str, key: str) -> list[Any]:
    """Return the runs with a key, without duplicates, oldest first."""
    found = server.search_runs([experiment_id], f"tags.`{RUN_KEY_TAG}` = '{key}'")
    runs = [run for run in found if run.data.params.get(RUN_KEY_TAG) != _DUPLICATE]
    return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))


def _is_confirmed(run: Any, key: str) -> bool:
    return bool(run.data.params.get(RUN_KEY_TAG) == key)


def _wrote(server: TrackingClient, run_id: str, value: str) -> bool:
    """Write the parameter; return false if another process has written another value."""
    try:
        server.log_param(run_id, RUN_KEY_TAG, value)
    except Refusal as error:
        if not error.permanent:
            raise
        return False
    return True


def _overtaken(server: TrackingClient, key: str, run: Any | None) -> RunHeld:
    who = f": run {run.info.run_id}, by {named(holder_of(run))}" if run is not None else ""
    return RunHeld(
        f"Another process just began the training of the run key {key!r}{who}. Expected one process per key. "
        "Try: the same command once that process has ended"
    )
