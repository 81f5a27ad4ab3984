"""Run keys: a name from outside that one run of an experiment has, so that the same command again finds that run.

The tag :data:`RUN_KEY_TAG` is searched for. Two processes may create a run each before either sees the other's. So a run
begins to train only when its key is confirmed in a parameter, which is write-once:

1. Every process lists the runs of the key after it has created its own.
2. Only the process of the oldest run goes on. It marks all others as duplicates, and confirms its own last.

A process that listed only its own run confirmed it before an older one was there to be seen; that older run's process then fails
to mark it as a duplicate, and gives way. So of all runs of a key at most one is confirmed.
"""

import re
from contextlib import suppress
from typing import Any

from mltrain.delivery.creation import existing_experiment
from mltrain.errors import MltrainError, RunHeld, TrackingError, UsageError
from mltrain.ownership.attempts import holder_of, named
from mltrain.ownership.launcher import Launcher
from mltrain.redaction import redacted
from mltrain.tracking.client import Refusal, TrackingClient
from mltrain.tracking.tags import RUN_KEY_TAG

_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/@+=, -]{0,199}", re.ASCII)
_DUPLICATE = "(duplicate)"
"""The value of the parameter in a run that another one of the same key overtook. No key has parentheses."""
_TRIES = 20


def refuse_unusable_key(key: Any) -> None:
    """Refuse a text that cannot be a run key.

    Raises:
        UsageError: it has other characters, is too long, or looks like a secret, which no run may show.
    """
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise UsageError(
            f"run_key={key!r:.80} is not a run key. Expected at most 200 letters, digits, spaces and characters of _.:/@+=,- "
            "beginning with a letter or digit. Try: --run-key NAME"
        )
    if redacted(key) != key:
        raise UsageError("run_key= holds what looks like a secret, and runs show their keys. Try: --run-key NAME")


def find(server: TrackingClient, experiment: str | None, launcher: Launcher | None, key: str) -> Any | None:
    """Return the run that has a key in an experiment, or ``None``; deleted runs have none.

    Args:
        server: where.
        experiment: its name. If ``None``, MLflow's choice.
        launcher: the ``mlflow run`` that started this process, whose run's experiment it is then.
        key: of the run.

    Raises:
        UsageError: several runs have it.
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
            f"{error} A training with a run key begins when the tracking store has answered which run has it. Try: the same "
            "command when it answers, or without --run-key"
        ) from error
    confirmed = [run for run in found if _is_confirmed(run, key)]
    if len(confirmed) > 1:
        raise UsageError(
            f"The run key {key!r} belongs to {len(confirmed)} runs: {', '.join(run.info.run_id for run in confirmed)}. "
            "Expected one. Try: delete all but one of them, or mltrain train --resume-run ID"
        )
    return next(iter(confirmed or found), None)


def confirm(server: TrackingClient, run_id: str, key: str) -> None:
    """Make a run the one that has a key.

    Raises:
        RunHeld: another run has it.
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


def give_up(server: TrackingClient, run_id: str) -> None:
    """Take the key from a run that did not get it, and that its launcher still needs."""
    with suppress(MltrainError):
        server.once.delete_tag(run_id, RUN_KEY_TAG)


def _with_key(server: TrackingClient, experiment_id: str, key: str) -> list[Any]:
    """Return the runs that claim a key and are no duplicates, the oldest first."""
    found = server.search_runs([experiment_id], f"tags.`{RUN_KEY_TAG}` = '{key}'")
    runs = [run for run in found if run.data.params.get(RUN_KEY_TAG) != _DUPLICATE]
    return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))


def _is_confirmed(run: Any, key: str) -> bool:
    return bool(run.data.params.get(RUN_KEY_TAG) == key)


def _wrote(server: TrackingClient, run_id: str, value: str) -> bool:
    """Write the parameter, and return whether it has this value now; if not, somebody else was quicker."""
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
        f"Another process began the training of the run key {key!r} at this moment{who}. Expected one process a key. "
        "Try: the same command again when that one has ended"
    )
