"""What the machine is doing while a run trains."""

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
