"""Delivers each point once: skips points beyond the resumed step that the server already has.

The cost depends on the steps that are recomputed, not on the length of the run: only keys with later steps are read, and
only those steps.
"""

import logging
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from mltrain.compat.private import MOST_POINTS, latest_points
from mltrain.delivery.system_metrics import SYSTEM_KEYS
from mltrain.tracking.client import TrackingClient

log = logging.getLogger(__name__)


class Delivered:
    """The points that a server has beyond a step.

    Attributes:
        points: value by key and step.
    """

    def __init__(self, points: Mapping[tuple[str, int], float] | None = None) -> None:
        self.points = dict(points or {})
        self._differing: set[str] = set()

    def new(self, values: Mapping[str, float], step: int, compared: bool) -> Mapping[str, float]:
        """Return a step's values that the server lacks.

        Args:
            values: name to value.
            step: optimizer steps done.
            compared: whether to compare with an existing point; a difference is logged once per key.
        """
        return {key: value for key, value in values.items() if not self._has(key, step, float(value), compared)}

    def _has(self, key: str, step: int, value: float, compared: bool) -> bool:
        if (key, step) not in self.points:
            return False
        before = self.points[(key, step)]
        if compared and not _same(before, value) and key not in self._differing:
            self._differing.add(key)
            log.warning(
                "%s at step %d is %r and was %r before the resume: this resume is not exact.", key, step, value, before
            )
        return True


def delivered_beyond(server: TrackingClient, run: Any, step: int) -> Delivered:
    """Return the server's points of a run beyond a step.

    Raises:
        TrackingError: the server does not answer.
    """
    points: dict[tuple[str, int], float] = {}
    for latest in latest_points(run):
        if latest.step > step and latest.key not in SYSTEM_KEYS:
            for point in points_between(server, run.info.run_id, latest.key, step + 1, latest.step):
                points[(latest.key, point[0])] = point[1]
    return Delivered(points)


def points_between(server: TrackingClient, run_id: str, key: str, first: int, last: int) -> Iterator[tuple[int, float]]:
    """Yield step and value of points (steps ``first`` to ``last`` inclusive)."""
    spans = [(first, last)]
    while spans:
        low, high = spans.pop()
        found = server.points_between(run_id, key, low, high)
        if len(found) >= MOST_POINTS and low < high:  # the answer may be cut
            middle = (low + high) // 2
            spans += [(middle + 1, high), (low, middle)]
        else:
            yield from found


def _same(before: float, now: float) -> bool:
    if math.isinf(now):  # MLflow stores the largest float instead
        return math.copysign(sys.float_info.max, now) == before or before == now
    return before == now or (before != before and now != now)
