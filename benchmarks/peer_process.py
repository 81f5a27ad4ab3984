"""Measures one training or one resume of a peer.

python -m benchmarks.peer_process NAME WORK STORE, as :mod:`benchmarks.peer_stores` starts it.
"""

import json
import os
import pkgutil
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.peer_loops import LIMITS, LOOPS
from benchmarks.peer_training import Training, Work, report

IMPORTS = {
    "mltrain": ("mltrain:CheckpointManager", "mltrain:open_run"),
    "Lightning + MLFlowLogger": ("lightning.pytorch.loggers", "mlflow"),
    "Trainer of transformers": ("transformers.trainer", "mlflow"),
    "async_save + upload thread": ("torch.distributed.checkpoint", "mlflow"),
}
"""What a resume does not wait for: modules and names that are imported before. mltrain needs no MLflow on a plain server."""


def flush(folder: Path) -> float:
    """Flush a folder's files to the disk; return the seconds."""
    began = time.perf_counter()
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
    return time.perf_counter() - began


def cpu_seconds() -> float:
    """Return the CPU time of this process and ended children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def bare_steps(work: Work) -> int:
    """Return the number of bare steps around a measurement."""
    return max(2, min(5000, work.steps // 4))


def measured(name: str, work: Work, store: Path) -> dict[str, Any]:
    """Train or resume in this process; return the measurements. ``store`` holds the artifacts.

    Right before and right after, the same network is trained without anything else: processes differ in how fast they train.
    """
    for module in IMPORTS.get(name.split(",")[0], ("mlflow",)):
        pkgutil.resolve_name(module)
    training = Training.of(work)
    beside = [] if work.run else [training.bare(number) for number in (2, bare_steps(work))][1:]  # the first are slow
    before = cpu_seconds()
    training.clock.ask()
    {**LOOPS, **LIMITS}[name](training)
    over, cpu = time.perf_counter(), cpu_seconds() - before
    began, ended = list(training.clock.began), list(training.clock.ended)
    flushed = flush(store)
    beside.append(training.bare(bare_steps(work)))
    copy = training.copy_seconds() if work.every else 1.0
    seconds = [end - begin for begin, end in zip(began, ended, strict=True)]
    between = [begin - end for begin, end in zip(began[1:], ended, strict=False)]
    saves = [number for number in range(1, len(between) + 1) if work.every and number % work.every == 0]
    usual = statistics.median(gap for number, gap in enumerate(between, 1) if number not in saves)
    step = statistics.median(seconds)
    bare, bare_cpu = (statistics.mean(one[kind] for one in beside) for kind in (0, 1))
    stalls = [(between[number - 1] - usual) / copy for number in saves]
    held = [stall + (seconds[number] - step) / copy for number, stall in zip(saves, stalls, strict=True)]
    return {
        **{"wall": over - began[0], "end": over - ended[-1], "flushed": over + flushed - ended[-1]},
        **{"first": stalls[:1], "later": stalls[1:], "held": held, "copy": copy, "step": step},
        **{"rate": len(ended) / (ended[-1] - began[0]), "cpu": cpu},
        **{"bare": bare, "bare_cpu": bare_cpu, "steps": len(ended), "beside": [one[0] for one in beside]},
        "state": sum(tensor.nbytes for tensor in training.tensors()),
    }


def main() -> None:
    name, text, store = sys.argv[1:]
    torch.set_num_threads(1)
    report(measured(name, Work(**json.loads(text)), Path(store)))


if __name__ == "__main__":
    main()
