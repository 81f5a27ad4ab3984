"""Interrupts and resumes a training within one process."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mltrain import device as devices
from mltrain.project import Project, find
from mltrain.rng import seed_everything
from mltrain.testing.differences import Trained, assert_same
from mltrain.testing.doubles import MemorySaver, MemoryTracker, StopAt
from mltrain.trainer.loop import Trainer


def assert_resumes_exactly(
    project: str | Path | Project, overrides: Mapping[str, Any] | None = None, *, interrupt_at: Sequence[int] = ()
) -> None:
    """Assert that an interrupted and resumed training ends bit-identical.

    Trains once without interruption and once interrupted after each of the given steps. At an interruption the state goes
    through the files of a checkpoint, all random number generators are reseeded, and everything is built again. After every
    step this draws a number from each global generator and compares it (``testing/draws``), to find draws outside the training.

    Args:
        project: a registered name, a file, a folder, or a :class:`~mltrain.project.Project`.
        overrides: keys of its configuration; make the training small.
        interrupt_at: ascending steps. If empty, after the first step, in the middle, and before the last one.

    Raises:
        AssertionError: parts and metrics differ; the message lists them, with the first step at which they do.
        ValueError: a step is out of range.
    """
    found = project if isinstance(project, Project) else find(str(project))
    expected = _in_memory(found, overrides, ())
    if interrupt_at:
        steps = tuple(interrupt_at)
    else:
        steps = tuple(sorted({1, expected.steps // 2, expected.steps - 1} & set(range(1, expected.steps))))
    if not steps or list(steps) != sorted(set(steps)) or not 0 < steps[0] <= steps[-1] < expected.steps:
        raise ValueError(
            f"interrupt_at={list(steps)} does not fit a training of {expected.steps} steps. Expected ascending numbers "
            f"from 1 to {expected.steps - 1}."
        )
    got = _in_memory(found, overrides, steps)
    assert_same(expected, got, f"An interruption after step {', '.join(map(str, steps))}")


class _DrawingTracker(MemoryTracker):
    """Draws from every global generator, to reveal other draws."""

    def log_metrics(self, values: Mapping[str, float], step: int, *, compared: bool = True) -> None:
        super().log_metrics(values, step, compared=compared)
        if compared:
            draws = random.random() + float(np.random.rand()) + float(torch.rand(()))  # noqa: S311 - what a training draws
            self.points.setdefault("testing/draws", {})[step] = draws


def _in_memory(project: Project, overrides: Mapping[str, Any] | None, interrupt_at: Sequence[int]) -> Trained:
    files = [project.config_file] if project.config_file is not None else []
    config = project.config.load(files, overrides=overrides)
    tracker, saver = _DrawingTracker(), MemorySaver()
    for stop_at in (*interrupt_at, None):
        stop = StopAt(stop_at)
        devices.set_up(config)
        seed_everything(config.seed)
        task = project.build(config)
        trainer = Trainer(task, config, tracker, saver, stop)
        if saver.checkpoints:
            seed_everything(random.SystemRandom().randrange(2**32))  # the restore has to replace them
            trainer.restore(saver.checkpoints[-1].parts())
        else:
            seed_everything(config.seed)
        stop.progress = trainer.progress
        for _ in trainer.steps():
            pass
    return Trained(saver.checkpoints[-1].parts(), tracker.points, saver.checkpoints[-1].step)
