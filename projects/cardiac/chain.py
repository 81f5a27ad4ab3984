"""The stages in one process without a tracking store.

They serve experiments that train them many times.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import mltrain
from mltrain.rng import own_rng, seed_everything
from projects.cardiac import infarct, motion, registration, weights

log = logging.getLogger(__name__)

STAGES: Mapping[str, tuple[type[mltrain.Config], Callable[[Any], mltrain.Task]]] = {
    "motion": (motion.Config, motion.build),
    "registration": (registration.Config, registration.build),
    "infarct": (infarct.Config, infarct.build),
}
"""Configuration and build function of each trained stage, in order."""


def train(stage: str, preset: str | None, to: Path, **overrides: Any) -> dict[str, float]:
    """Train a stage, write its weights, and return its metrics.

    The weights are written as by ``mltrain pull``. They are the last, not the best, so the held-out cases choose nothing.
    """
    kind, build = STAGES[stage]
    config = kind.load(preset=preset, overrides=overrides)
    torch.set_num_threads(config.num_threads or torch.get_num_threads())
    seed_everything(config.seed)
    task = build(config)
    for _ in range(config.epochs):
        for batch in task.loader:
            task.step(batch)
    assert task.evaluate is not None
    assert isinstance(task.step, mltrain.Supervised)
    with torch.no_grad(), own_rng(config.seed):
        measured = dict(task.evaluate())
    weights.save(task.step.model, config, to)
    log.info("%s: %s", stage, ", ".join(f"{name} {value:.3f}" for name, value in measured.items()))
    return measured
