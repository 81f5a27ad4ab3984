"""Marks runs whose process has died as KILLED."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mltrain.errors import RunNotFound
from mltrain.ownership.attempts import LEASE_SECONDS, STATUS_OF, conclude, is_alive, is_held, last_attempt
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.tags import HEARTBEAT_TAG, HOLDER_TAG, STATUS_TAG


@dataclass(frozen=True)
class Reaped:
    """A run recorded as running, and what ``reap`` found.

    Attributes:
        run_id, name: of the run.
        found: ``closed``, ``alive`` on this machine, ``alive elsewhere``, or ``resumed`` meanwhile.
    """

    run_id: str
    name: str
    found: str


def reap(server: TrackingClient, *, sleep: Callable[[float], None] = time.sleep) -> Iterator[Reaped]:
    """Close the runs of dead holders; yield each result.

    A run whose process is alive is never closed. A holder that this machine cannot see is dead when its heartbeat does not
    change for the length of the lease, measured by this process.

    Args:
        server: tracking server that has the runs.
        sleep: waits for a number of seconds.
    """
    watched = []
    for query in (
        # The process recorded how it ended, and was killed before it set MLflow's status.
        f"attributes.status = 'RUNNING' and tags.`{STATUS_TAG}` != 'running'",
        f"tags.`{STATUS_TAG}` = 'running'",
    ):
        for run in _found(server, query):
            alive = is_alive(server, run)
            if alive is None:
                watched.append(run)
            elif not alive:
                yield _closed(server, run)
            elif is_held(run):
                yield Reaped(run.info.run_id, run.info.run_name, "alive")
    if watched:
        sleep(LEASE_SECONDS)
    for before in watched:
        try:
            run = server.run(before.info.run_id)
        except RunNotFound:  # somebody deleted it
            continue
        if run.data.tags.get(HEARTBEAT_TAG) != before.data.tags.get(HEARTBEAT_TAG):
            yield Reaped(run.info.run_id, run.info.run_name, "alive elsewhere")
        elif last_attempt(run.data.params) != last_attempt(before.data.params):
            yield Reaped(run.info.run_id, run.info.run_name, "resumed")
        elif is_held(run) or run.info.status == "RUNNING":
            yield _closed(server, before)


def close_if_dead(server: TrackingClient, run_id: str) -> None:
    """Mark a running run KILLED if its process has died.

    Raises:
        RunNotFound, TrackingError: the run cannot be read or written.
    """
    run = server.run(run_id)
    if is_held(run) and is_alive(server, run) is False:
        _closed(server, run)


def _closed(server: TrackingClient, run: Any) -> Reaped:
    tagged = run.data.tags.get(STATUS_TAG, "")
    outcome = tagged if tagged in STATUS_OF and not is_held(run) else "stopped"
    last = conclude(server, run.info.run_id, last_attempt(run.data.params), outcome)
    return Reaped(run.info.run_id, run.info.run_name, "closed" if last else "resumed")


def _found(server: TrackingClient, query: str) -> list[Any]:
    found: list[Any] = []
    for experiment in server.search_experiments():
        runs = server.search_runs([experiment.experiment_id], query)
        found.extend(run for run in runs if HOLDER_TAG in run.data.tags)
    return found
