"""A problem that a small network learns in seconds. As a program it trains until it is stopped."""

import logging
import sys
import time
from typing import Any

import numpy as np

from projects.tool_wear import ToolWearClassifier

SMALL: dict[str, Any] = {
    "device": "cpu",
    "hidden": 12,
    "layers": 1,
    "kernels": 8,
    "batch_size": 16,
    "epoch_steps": 1,
    "lr": 1e-2,
    "epochs": 4,
    "num_threads": 1,
}
"""Parameters of a small classifier: 8 steps an epoch."""


def small_classifier(**changes: Any) -> ToolWearClassifier:
    return ToolWearClassifier(**{**SMALL, **changes})


def waves(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows of 24 steps and two channels; the classes 3, 5 and 8 differ in the amplitude of the first channel."""
    rng = np.random.default_rng(seed)
    classes = rng.choice([3, 5, 8], count)
    phases = rng.uniform(0, 2 * np.pi, (count, 1))
    signals = rng.normal(0.0, 0.3, (count, 24, 2))
    signals[..., 0] += classes[:, None] * np.sin(np.arange(24) * 0.7 + phases)
    return signals, classes


TRAIN, VAL = waves(128, 0), waves(64, 1)


def inverted() -> tuple[np.ndarray, np.ndarray]:
    """Validation data on which every step of learning does harm: the classes 3 and 8 are swapped."""
    signals, classes = VAL
    return signals, np.where(classes == 3, 8, np.where(classes == 8, 3, 5))


class _Pause(logging.Handler):
    """Sleeps 0.1 seconds after an epoch, so tests can interrupt."""

    def emit(self, record: logging.LogRecord) -> None:
        time.sleep(0.1)


if __name__ == "__main__":
    _, file, epochs = sys.argv
    log = logging.getLogger("projects.tool_wear.classifier")
    log.setLevel(logging.INFO)
    log.addHandler(_Pause())
    log.addHandler(logging.StreamHandler())
    ToolWearClassifier(**{**SMALL, "epochs": int(epochs), "patience": None}).train(TRAIN, VAL, checkpoint_path=file)
