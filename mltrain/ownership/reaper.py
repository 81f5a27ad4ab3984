"""Marks runs whose process has died as KILLED."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mltrain.errors import RunNotFound
from mltrain.ownership.attempts import LEASE_SECONDS, STATUS_OF, conclude, is_alive, is_held, last_attempt
from mltrain.tracking.client import TrackingClient, tags_of
from mltrain.tracking.tags import HEARTBEAT_TAG, HOLDER_TAG, STATUS_TAG


@dataclass(frozen=True)
class Reaped:
    """A run recorded as running, and what ``reap`` found.

    ``closed``; ``alive`` here or ``alive elsewhere``; or ``resumed`` by somebody at this moment.
    """

    run_id: str
    name: str
    found: str


def reap(
    server: TrackingClient, *, lease_seconds: float = LEASE_SECONDS, sleep: Callable[[float], None] = time.sleep
) -> Iterator[Reaped]:
    """Close the runs whose holders are gone; never one whose process is alive.

    A holder that cannot be seen from here is watched: it is gone when its heartbeat does not change for the length of the
    lease, on the clock of this process.

    Args:
        server: whose runs.
        lease_seconds: for how long a holder is watched.
        sleep: waits for so many seconds.
    """
    watched = []
    for query in (
        # It had said how it ended, and was killed before MLflow's own status followed.
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
        sleep(lease_seconds)
    for before in watched:
        try:
            run = server.run(before.info.run_id)
        except RunNotFound:  # somebody deleted it
            continue
        if tags_of(run).get(HEARTBEAT_TAG) != tags_of(before).get(HEARTBEAT_TAG):
            yield Reaped(run.info.run_id, run.info.run_name, "alive elsewhere")
        elif last_attempt(run.data.params) != last_attempt(before.data.params):
            yield Reaped(run.info.run_id, run.info.run_name, "resumed")
        elif is_held(run) or run.info.status == "RUNNING":
            yield _closed(server, before)


def close_if_dead(server: TrackingClient, run_id: str) -> None:
    """Close a run as KILLED if it is recorded as running and its process is known to be gone.

    Raises:
        RunNotFound, TrackingError: the run cannot be read or written.
    """
    run = server.run(run_id)
    if is_held(run) and is_alive(server, run) is False:
        _closed(server, run)


def _closed(server: TrackingClient, run: Any) -> Reaped:
    said = tags_of(run).get(STATUS_TAG, "")
    said = said if said in STATUS_OF and not is_held(run) else "stopped"
    last = conclude(server, run.info.run_id, last_attempt(run.data.params), said)
    return Reaped(run.info.run_id, run.info.run_name, "closed" if last else "resumed")


def _found(server: TrackingClient, query: str) -> list[Any]:
    found: list[Any] = []
    for experiment in server.search_experiments():
        runs = server.search_runs([experiment.experiment_id], query)
        found.extend(run for run in runs if HOLDER_TAG in run.data.tags)
    return found
