"""Exactly once: what the server has beyond the step from which a training continues is let pass, whoever computed it.

The work is bounded by the stretch that is computed again, not by the run: a key whose latest step is not beyond the start
is not looked at, and of the others only the steps beyond it are read.
"""

import logging
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from mltrain.delivery.system_metrics import SYSTEM_KEYS
from mltrain.tracking.client import LateClient, Server

log = logging.getLogger(__name__)

_ROWS = 2000
"""MLflow returns at most 2,500 points of an interval, and picks some where there are more."""


class Delivered:
    """The points that a server has beyond a step.

    Attributes:
        points: value by key and step.
    """

    def __init__(self, points: Mapping[tuple[str, int], float] | None = None) -> None:
        self.points = dict(points or {})
        self._differing: set[str] = set()

    def new(self, values: Mapping[str, float], step: int, compared: bool) -> Mapping[str, float]:
        """Return those of the values of a step that are not there yet.

        Args:
            values: name to value.
            step: optimizer steps done.
            compared: whether one that is there has to be the same; if not, that is said once a key.
        """
        return {key: value for key, value in values.items() if not self._has(key, step, float(value), compared)}

    def _has(self, key: str, step: int, value: float, compared: bool) -> bool:
        if (key, step) not in self.points:
            return False
        before = self.points[(key, step)]
        if compared and not _same(before, value) and key not in self._differing:
            self._differing.add(key)
            log.warning(
                "%s at step %d is %r now and was %r before: this resume is not exact.", key, step, value, before
            )
        return True


def delivered_beyond(server: Server, run: Any, step: int) -> Delivered:
    """Return what a run has beyond a step.

    Raises:
        TrackingError: the server does not answer.
    """
    points: dict[tuple[str, int], float] = {}
    for latest in run.data._metric_objs:  # the public mapping has the values without their steps
        if latest.step > step and latest.key not in SYSTEM_KEYS:
            for point in points_between(server, run.info.run_id, latest.key, step + 1, latest.step):
                points[(latest.key, point[0])] = point[1]
    return Delivered(points)


def points_between(server: Server, run_id: str, key: str, first: int, last: int) -> Iterator[tuple[int, float]]:
    """Yield step and value of the points of a key from one step to another, both included."""
    spans = [(first, last)]
    while spans:
        low, high = spans.pop()
        found = server.insist(_interval, server, run_id, key, low, high)
        if len(found) >= _ROWS and low < high:  # perhaps only some of them
            middle = (low + high) // 2
            spans += [(middle + 1, high), (low, middle)]
        else:
            yield from found


def _interval(server: Server, run_id: str, key: str, first: int, last: int) -> list[tuple[int, float]]:
    client = server.client.made() if isinstance(server.client, LateClient) else server.client
    store: Any = client._tracking_client.store
    if not server.uri.startswith(("http://", "https://")):
        found = store.get_metric_history_bulk_interval([run_id], key, _ROWS, first, last)
        return [(int(metric.step), float(metric.value)) for metric in found]
    from mlflow.utils.rest_utils import http_request, verify_rest_response

    # MLflow's client does not offer what its UI asks the server for.
    endpoint = "/api/2.0/mlflow/metrics/get-history-bulk-interval"
    asked = {"run_ids": run_id, "metric_key": key, "start_step": first, "end_step": last, "max_results": _ROWS}
    answer = verify_rest_response(http_request(store.get_host_creds(), endpoint, "GET", params=asked), endpoint)
    return [(int(m.get("step", 0)), float(m.get("value", 0.0))) for m in answer.json().get("metrics", [])]


def _same(before: float, now: float) -> bool:
    if math.isinf(now):  # MLflow stores the largest number in its place
        return math.copysign(sys.float_info.max, now) == before or before == now
    return before == now or (before != before and now != now)
