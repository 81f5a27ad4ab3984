"""CPU and memory use of the machine during training."""

import threading
from collections.abc import Callable

import psutil

SYSTEM_SECONDS = 15.0
"""Seconds between two records; the step of such a point is the run's age in seconds."""

_LAST_SECONDS = 1.0
"""Seconds that the end of a run waits for a record that is under way."""

SYSTEM_KEYS = (
    "system/cpu_utilization_percentage",
    "system/system_memory_usage_megabytes",
    "system/system_memory_usage_percentage",
    "system/process_memory_megabytes",
)
"""The names that MLflow's system metrics page shows."""


def system_metrics() -> dict[str, float]:
    """Return CPU and memory use of this machine, under :data:`SYSTEM_KEYS`."""
    memory, own = psutil.virtual_memory(), psutil.Process().memory_info().rss
    return dict(zip(SYSTEM_KEYS, (psutil.cpu_percent(), memory.used / 1e6, memory.percent, own / 1e6), strict=True))


class SystemMonitor:
    """Records CPU and memory use every 15 seconds.

    Args:
        record: called with the metrics.
    """

    def __init__(self, record: Callable[[dict[str, float]], None]) -> None:
        self._record = record
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="mltrain-system", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop recording. Records made after the journal is sent would stay on this disk."""
        self._closed.set()
        self._thread.join(_LAST_SECONDS)

    def _watch(self) -> None:
        while not self._closed.is_set():
            metrics = system_metrics()
            if self._closed.is_set():
                return
            self._record(metrics)
            self._closed.wait(SYSTEM_SECONDS)
