"""Run keys from the launcher's name of this process's job.

These names survive when the launcher starts the job again: a requeued SLURM job keeps its id (``sbatch --requeue``;
``SLURM_RESTART_COUNT`` counts), a managed SkyPilot job its task id over all recoveries, a Kubernetes Job its name over all
pods, and torchrun its rendezvous id over all restarts of its workers.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from mltrain.errors import UsageError

NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""Where Kubernetes writes a pod's namespace."""
_DRAWN = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
"""The rendezvous id that ``torchrun --standalone`` generates at each launch."""
_POD = re.compile(r"(.+)-[bcdfghjklmnpqrstvwxz2456789]{5}", re.ASCII)
"""The name of a pod: Kubernetes appends five letters and digits, never vowels, 0, 1 or 3."""


def key_of(environment: Mapping[str, str], namespace_file: Path = NAMESPACE_FILE) -> str:
    """Return the run key of this process's job.

    The name that survives most restarts takes precedence: a rendezvous id that the user gave to torchrun, then the job of
    SLURM (each task of an array is a job), SkyPilot or Kubernetes, and last an id that torchrun generated.

    Args:
        environment: of this process.
        namespace_file: holds the namespace of a pod that has no ``POD_NAMESPACE``.

    Raises:
        UsageError: no known launcher has named a job.
    """
    rendezvous = environment.get("TORCHELASTIC_RUN_ID", "none")
    drawn = _DRAWN.fullmatch(rendezvous) is not None
    named = f"torchrun-{rendezvous}" if rendezvous not in ("", "none") else None
    found = (
        (None if drawn else named)
        or _slurm(environment)
        or _with_prefix("skypilot", environment.get("SKYPILOT_TASK_ID"))
        or _kubernetes(environment, namespace_file)
        or named
    )
    if found is None:
        raise UsageError(
            "run_key=auto found no job that this process belongs to. Expected torchrun with --rdzv-id, or a job of SLURM, "
            "SkyPilot or Kubernetes, got none of their environment variables. Try: --run-key NAME"
        )
    return found


def _with_prefix(prefix: str, value: str | None) -> str | None:
    return f"{prefix}-{value}" if value else None


def _slurm(environment: Mapping[str, str]) -> str | None:
    job = environment.get("SLURM_JOB_ID")
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    if array and task:
        job = f"{array}_{task}"
    cluster = environment.get("SLURM_CLUSTER_NAME")
    return _with_prefix("slurm", f"{cluster}-{job}" if cluster and job else job)


def _kubernetes(environment: Mapping[str, str], namespace_file: Path) -> str | None:
    """Return the run key of a pod's Job.

    It is the pod's name without the suffix that Kubernetes appends.

    The pods of an indexed Job are the ranks of one training if ``WORLD_SIZE`` or torchrun is set, else separate trainings.
    """
    pod = environment.get("POD_NAME") or environment.get("HOSTNAME")
    if "KUBERNETES_SERVICE_HOST" not in environment or not pod:
        return None
    without_suffix = _POD.fullmatch(pod)
    job, index = without_suffix[1] if without_suffix is not None else pod, environment.get("JOB_COMPLETION_INDEX")
    if index:
        together = environment.get("WORLD_SIZE", "1") not in ("", "1") or "TORCHELASTIC_RUN_ID" in environment
        job = job.removesuffix(f"-{index}") + ("" if together else f"-{index}")
    space = environment.get("POD_NAMESPACE")
    with suppress(OSError, ValueError):
        space = space or namespace_file.read_text(encoding="utf-8").strip()
    return _with_prefix("kubernetes", f"{space}-{job}" if space else job)
