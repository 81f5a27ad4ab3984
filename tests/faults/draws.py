"""Runs a command and reports foreign draws of random numbers. Those are draws from Python's global generator outside of
the training.

``main([report, *command])`` appends a line with thread and callers to ``report`` for every such draw.
"""

import os
import random
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

TRAINING = ("drawing_project.py", "tiny.py", "tiny_pipeline.py", "mltrain/rng.py", "mltrain/state.py")
"""Files whose draws belong to the training: the projects of the tests, and what seeds, sets aside and restores."""


def _note(report: Path) -> None:
    frame: FrameType | None = sys._getframe(2)
    callers: list[str] = []
    while frame is not None:
        file = frame.f_code.co_filename
        if file.endswith(TRAINING):
            return
        callers.append(f"{file}:{frame.f_lineno}")
        frame = frame.f_back
    line = f"{threading.current_thread().name}: {' < '.join(callers[:12])}\n"
    descriptor = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(descriptor, line.encode())
    os.close(descriptor)


def watch(report: Path) -> None:
    """Make every draw from Python's global generator pass by; also those of functions that modules hold already."""

    class Watched(random.Random):
        def random(self) -> float:
            _note(report)
            return super().random()

        def getrandbits(self, k: int, /) -> int:
            _note(report)
            return super().getrandbits(k)

        def seed(self, *words: Any, **named: Any) -> None:
            _note(report)
            super().seed(*words, **named)

    generator: Any = random.random.__self__  # type: ignore[attr-defined]
    generator.__class__ = Watched
    for name, value in list(vars(random).items()):
        if getattr(value, "__self__", None) is generator:
            setattr(random, name, getattr(generator, name))


def main(words: Sequence[str]) -> None:
    from mltrain.cli import main as command

    watch(Path(words[0]))
    sys.argv = ["mltrain", *words[1:]]
    command()
