"""Runs that are said to be running and are not: found, and closed as KILLED."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mltrain.tracking.attempts import (
    HEARTBEAT_TAG,
    HOLDER_TAG,
    LEASE_SECONDS,
    STATUS_OF,
    STATUS_TAG,
    is_alive,
)
from mltrain.tracking.server import Server, paged, tags_of


@dataclass(frozen=True)
class Reaped:
    """A run that was said to be running, and what was found: ``closed``, ``alive`` or ``alive elsewhere``."""

    run_id: str
    name: str
    found: str


def reap(server: Server, *, lease_seconds: float = LEASE_SECONDS) -> Iterator[Reaped]:
    """Close the runs whose holders are gone; never one whose process is alive here.

    A holder on another machine is watched: it is gone when its heartbeat does not change for the length of the lease, on
    the clock of this process.
    """
    watched = []
    for run in _found(server, f"attributes.status = 'RUNNING' and tags.`{STATUS_TAG}` != 'running'"):
        status = STATUS_OF.get(tags_of(run).get(STATUS_TAG, ""))
        if status is not None and not is_alive(server, run):
            # It had said how it ended, and was killed before MLflow's own status followed.
            server.insist(server.client.set_terminated, run.info.run_id, status)
            yield Reaped(run.info.run_id, run.info.run_name, "closed")
    for run in _found(server, f"tags.`{STATUS_TAG}` = 'running'"):
        alive = is_alive(server, run)
        if alive is None:
            watched.append(run)
        elif alive:
            yield Reaped(run.info.run_id, run.info.run_name, "alive")
        else:
            yield _closed(server, run)
    if watched:
        time.sleep(lease_seconds)
        for run in watched:
            after = server.run(run.info.run_id)
            if tags_of(after).get(HEARTBEAT_TAG) != tags_of(run).get(HEARTBEAT_TAG):
                yield Reaped(run.info.run_id, run.info.run_name, "alive elsewhere")
            else:
                yield _closed(server, run)


def _closed(server: Server, run: Any) -> Reaped:
    server.insist(server.client.set_tag, run.info.run_id, STATUS_TAG, "stopped")
    server.insist(server.client.set_terminated, run.info.run_id, "KILLED")
    return Reaped(run.info.run_id, run.info.run_name, "closed")


def _found(server: Server, query: str) -> list[Any]:
    found: list[Any] = []
    for experiment in paged(server.insist, server.client.search_experiments, max_results=1000):
        runs = paged(
            server.insist, server.client.search_runs, [experiment.experiment_id], filter_string=query, max_results=500
        )
        found.extend(run for run in runs if HOLDER_TAG in run.data.tags)
    return found
