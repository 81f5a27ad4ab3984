"""What the machine is doing while a run trains."""

import threading
from collections.abc import Callable

import psutil

SYSTEM_SECONDS = 15.0
"""How often the use of CPU and memory is recorded; the step of such a point is the run's age in seconds."""

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
        threading.Thread(target=self._watch, name="mltrain-system", daemon=True).start()

    def close(self) -> None:
        """Record nothing more."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.is_set():
            self._record(system_metrics())
            self._closed.wait(SYSTEM_SECONDS)
