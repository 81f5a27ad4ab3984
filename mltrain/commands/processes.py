"""``processes=N``: one command starts all processes of a training on this machine."""

import os
import sys
from collections.abc import Mapping, Sequence

from mltrain.commands.ranks import is_one_of_several
from mltrain.errors import UsageError
from mltrain.ownership import job
from mltrain.ownership.launcher import STARTER_PID
from mltrain.signals import STOPPING

_A_CORE = 4
"""How many processes a core may be shared by: more of them would only run out of memory."""


def run_in_processes(count: str, words: Sequence[str], run_key: str | None) -> int | None:
    """Start the processes that a command asks for, and return the exit code of their training.

    Args:
        count: how many, as the user wrote it.
        words: the command line of each: this command's own.
        run_key: that the command names.

    Returns:
        The exit code, or ``None`` where this process is to train: as the only one, or as one of those that were started.

    Raises:
        UsageError: the count is no number of processes, or not that of the launcher that has started this process.
    """
    number = _number(count)
    started = _started(os.environ)
    if started is not None and started != number:
        raise UsageError(
            f"processes={number} starts torchrun, and a launcher has started this process already, as one of {started}. "
            "Expected one launcher. Try: the same command without processes=, or without the launcher"
        )
    if started is not None or number == 1:
        return None
    if run_key == "auto":
        job.key_of(os.environ)  # torchrun draws a new id at each start, which is the key of no job
    from mltrain.distributed.torchrun import run

    os.environ[STARTER_PID] = str(os.getpid())
    return run(number, [*_interpreter(), *words], STOPPING)


def _number(count: str) -> int:
    most = max(_A_CORE * (os.cpu_count() or 1), 16)
    try:
        number = int(count)
    except ValueError:
        number = 0
    if not 1 <= number <= most:
        raise UsageError(
            f"processes={count!r:.40} is no number of processes for this machine. Expected 1 to {most}, one a GPU or a core. "
            "Try: processes=2; for several machines, torchrun on each: docs/distributed.md"
        )
    return number


def _started(environment: Mapping[str, str]) -> int | None:
    """Return as one of how many processes a launcher has started this one, or ``None``."""
    if is_one_of_several(environment) or "TORCHELASTIC_RUN_ID" in environment:
        return int(environment.get("WORLD_SIZE") or 1)
    return None


def _interpreter() -> list[str]:
    """Return how this program was started; ``python -m`` searches the working directory for modules, a script does not."""
    as_module = os.path.basename(sys.argv[0]) == "__main__.py"  # noqa: PTH119 - it is no path that is opened
    return [sys.executable, *([] if as_module else ["-P"]), "-m", "mltrain"]
