"""What the machine is doing while a run trains."""

import threading
from collections.abc import Callable

import psutil

SYSTEM_SECONDS = 15.0
"""How often the use of CPU and memory is recorded; the step of such a point is the run's age in seconds."""

_LAST_SECONDS = 1.0
"""For so long the end of a run waits for a record that is being made."""

SYSTEM_KEYS = (
    "system/cpu_utilization_percentage",
    "system/system_memory_usage_megabytes",
    "system/system_memory_usage_percentage",
    "system/process_memory_megabytes",
)
"""The names that MLflow's page of system metrics knows."""


def system_metrics() -> dict[str, float]:
    """Return what this machine is doing, under :data:`SYSTEM_KEYS`."""
    memory, own = psutil.virtual_memory(), psutil.Process().memory_info().rss
    return dict(zip(SYSTEM_KEYS, (psutil.cpu_percent(), memory.used / 1e6, memory.percent, own / 1e6), strict=True))


class SystemMonitor:
    """Records what the machine is doing at once and every 15 seconds, on a thread of its own.

    Args:
        record: takes the metrics.
    """

    def __init__(self, record: Callable[[dict[str, float]], None]) -> None:
        self._record = record
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="mltrain-system", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Record nothing more: what was recorded after the journal has been sent would wait on this disk."""
        self._closed.set()
        self._thread.join(_LAST_SECONDS)

    def _watch(self) -> None:
        while not self._closed.is_set():
            metrics = system_metrics()
            if self._closed.is_set():
                return
            self._record(metrics)
            self._closed.wait(SYSTEM_SECONDS)
