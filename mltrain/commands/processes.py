"""``processes=N``: starts all processes of a training on this machine."""

import os
import sys
from collections.abc import Mapping, Sequence

from mltrain.commands.ranks import is_one_of_several
from mltrain.errors import UsageError
from mltrain.ownership import job
from mltrain.ownership.launcher import STARTER_PID
from mltrain.signals import STOPPING

_PROCESSES_PER_CORE = 4
"""Upper limit: more processes would only run out of memory."""


def run_in_processes(count: str, words: Sequence[str], run_key: str | None) -> int | None:
    """Start the processes of a training; return the exit code.

    Args:
        count: the number of processes, as the user wrote it.
        words: the arguments of each process, which are this command's own.
        run_key: the run key of the command, if any.

    Returns:
        The exit code. ``None`` if this process should train: as the only one, or as one that a launcher started.

    Raises:
        UsageError: ``count`` is invalid, or differs from the number that a launcher started.
    """
    number = _number(count)
    started = _started(os.environ)
    if started is not None and started != number:
        raise UsageError(
            f"processes={number} starts torchrun, but a launcher has already started this process as one of {started}. "
            "Expected one launcher. Try: the same command without processes=, or without the launcher"
        )
    if started is not None or number == 1:
        return None
    if run_key == "auto":
        job.key_of(os.environ)  # raises outside a job: torchrun's own id is new at each start, so it is no run key
    from mltrain.distributed.torchrun import run

    os.environ[STARTER_PID] = str(os.getpid())
    return run(number, [*_interpreter(), *words], STOPPING)


def _number(count: str) -> int:
    most = max(_PROCESSES_PER_CORE * (os.cpu_count() or 1), 16)
    try:
        number = int(count)
    except ValueError:
        number = 0
    if not 1 <= number <= most:
        raise UsageError(
            f"processes={count!r:.40} is not a valid number for this machine. Expected 1 to {most}, one per GPU or core. "
            "Try: processes=2; for several machines, torchrun on each: docs/distributed.md"
        )
    return number


def _started(environment: Mapping[str, str]) -> int | None:
    """Return the number of launched processes, or ``None`` without launcher."""
    if is_one_of_several(environment) or "TORCHELASTIC_RUN_ID" in environment:
        return int(environment.get("WORLD_SIZE") or 1)
    return None


def _interpreter() -> list[str]:
    """Return the command of this program.

    ``python -m`` searches the working directory for modules; a script does not, which ``-P`` imitates.
    """
    as_module = os.path.basename(sys.argv[0]) == "__main__.py"  # noqa: PTH119 - the path is not opened
    return [sys.executable, *([] if as_module else ["-P"]), "-m", "mltrain"]
