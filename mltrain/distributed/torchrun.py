"""Starts a training's processes with torchrun; forwards signals to them."""

import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import psutil
import torch.distributed.run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

_torchrun: Any = torch.distributed.run  # untyped
_LEFT_TO_TORCHRUN = "SIGQUIT"
"""The only signal that torchrun handles itself. After a second signal, as from a Ctrl+C under ``mlflow run``, it would exit
while its processes still save."""


def run(count: int, command: Sequence[str], signals: Sequence[str]) -> int:
    """Run a command in several processes; return their exit code.

    Args:
        count: number of processes.
        command: program and arguments, the same for all.
        signals: names of the signals to forward to each process, which then has no time limit.
    """
    if not logging.getLogger("mltrain").isEnabledFor(logging.INFO):
        logging.disable(logging.ERROR)  # the processes report their own errors
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    arguments = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(count)]
    arguments += ["--signals-to-handle", _LEFT_TO_TORCHRUN, "--no-python", *command]
    with _forwarding(signals):
        try:
            _torchrun.run(_torchrun.parse_args(arguments))
        except ChildFailedError as failed:
            return _exit_code(failed)
    return 0


def _exit_code(failed: ChildFailedError) -> int:
    """Return the exit code of the process that failed first.

    A message reports if a signal killed that process.
    """
    first: ProcessFailure
    rank, first = failed.get_first_failure()
    if first.exitcode >= 0:
        return first.exitcode
    name = signal.Signals(-first.exitcode).name
    why = ", as the system does when memory runs out" if name == "SIGKILL" else ""
    print(
        f"Error: Process {rank} of the training was killed by {name}{why}. The committed checkpoints are intact. "
        "Try: mltrain train --resume-run ID",
        file=sys.stderr,
        flush=True,
    )
    return 128 - first.exitcode


@contextmanager
def _forwarding(signals: Sequence[str]) -> Iterator[None]:
    """Forward signals to the training's processes.

    torchrun starts them in their own sessions. While there are none, a signal raises ``KeyboardInterrupt``.
    """

    def forward(number: int, frame: FrameType | None) -> None:
        children = psutil.Process().children()
        for child in children:
            with suppress(psutil.Error):
                child.send_signal(number)
        if not children:
            raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in signals if hasattr(signal, name)]
    before = {one: signal.signal(one, forward) for one in numbers if signal.getsignal(one) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
