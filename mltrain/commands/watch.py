"""Follows another process's run through the tracking store."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mltrain.commands.compare import measured
from mltrain.run.listing import LIVE, state
from mltrain.run.naming import full_id
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.tags import BEST_TAG, HEARTBEAT_TAG, LATEST_TAG, meaning_of_best


@dataclass(frozen=True)
class Look:
    """A run at one moment.

    Attributes:
        run_id: the run's id.
        name: the run's name.
        state: as ``mltrain runs`` shows it.
        epoch: the last completed epoch, if any.
        epochs: number of epochs, if the run's parameters have it.
        metrics: the newest value of each, without system metrics.
        best_metric: the metric that decides which checkpoint is best.
        latest: name of the newest checkpoint, if any.
        best: name of the best checkpoint, if any.
        silent: seconds without a heartbeat, on this process's clock.
    """

    run_id: str
    name: str
    state: str
    epoch: int | None
    epochs: int | None
    metrics: Mapping[str, float]
    best_metric: str
    latest: str | None
    best: str | None
    silent: float

    @property
    def is_live(self) -> bool:
        """Whether the run is still being trained."""
        return self.state in LIVE


def watch(
    server: TrackingClient, run_id: str, every: float, sleep: Callable[[float], object] = time.sleep
) -> Iterator[Look]:
    """Poll a run until it has ended; yield each look.

    Args:
        server: the tracking server.
        run_id: the run's id, or its first digits.
        every: seconds between two looks.
        sleep: waits for a number of seconds.

    Raises:
        RunNotFound: there is no such run.
        TrackingError: the server does not answer.
    """
    run_id = full_id(server, run_id)
    beat, heard = None, time.monotonic()
    while True:
        run = server.run(run_id)
        now = run.data.tags.get(HEARTBEAT_TAG)
        if now != beat:
            beat, heard = now, time.monotonic()
        look = _look(server, run, time.monotonic() - heard)
        yield look
        if not look.is_live:
            return
        sleep(every)


def _look(server: TrackingClient, run: Any, silent: float) -> Look:
    tags, metrics, epochs = run.data.tags, run.data.metrics, run.data.params.get("epochs", "")
    return Look(
        run_id=run.info.run_id,
        name=run.info.run_name,
        state=state(server, run),
        epoch=int(metrics["epoch"]) if "epoch" in metrics else None,
        epochs=int(epochs) if epochs.isdecimal() else None,
        metrics=measured(run),
        best_metric=meaning_of_best(run)[0],
        latest=tags.get(LATEST_TAG),
        best=tags.get(BEST_TAG),
        silent=silent,
    )
