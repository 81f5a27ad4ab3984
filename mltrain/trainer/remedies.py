"""Remedies for errors of torch that end a training."""

import re

import torch

_WORKER_DIED = re.compile(r"DataLoader worker \(pid.*\) (exited unexpectedly|is killed by signal)")
_DEATHS = {
    "Bus error": (
        "of a bus error",
        "more shared memory (docker run --shm-size=8g), which was probably full, or fewer num_workers",
    ),
    "Killed": (
        "by SIGKILL",
        "fewer num_workers or more memory, if dmesg or the job's log says that the system ran out of it",
    ),
    "": ("unexpectedly", "num_workers=0, which shows the error, or fewer num_workers, which need less memory"),
}
"""Cause and remedy by torch's name of the signal."""


def advise(error: RuntimeError, device: torch.device, step: int) -> None:
    """Add the remedy for full memory or a dead worker.

    Args:
        error: receives the note, if it is of one of these kinds.
        device: of the training.
        step: the last complete one.
    """
    reasons = f"{error} {error.__cause__ or ''}"  # the loader's error has that of SIGCHLD's handler as its cause
    intact = f"after step {step}; checkpoints up to there are intact. Try:"
    if isinstance(error, torch.OutOfMemoryError):
        error.add_note(f"{device} ran out of memory {intact} a smaller batch, Supervised(accumulate=...), or amp=bf16.")
    elif _WORKER_DIED.search(reasons) is not None:
        death, remedy = next(found for reason, found in _DEATHS.items() if reason in reasons)
        error.add_note(f"A worker process of the loader died {death} {intact} {remedy}.")
