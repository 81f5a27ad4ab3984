"""What the callback for the ``Trainer`` of transformers asks of it."""

import dataclasses
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from transformers import Trainer
from transformers.integrations import MLflowCallback

from mltrain.errors import UsageError
from mltrain.metrics import floats
from mltrain.rng import Rng


class Silent(MLflowCallback):  # type: ignore[misc] # mypy does not read transformers
    """Stands where the Trainer and MLflow's autologging have an ``MLflowCallback``, which records each point a second time."""

    def __init__(self) -> None:
        self._initialized = self._auto_end_run = False

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Open no run."""

    on_log = on_train_end = on_save = on_train_begin


def calling() -> Any:
    """Return the Trainer whose event is being handled."""
    frame = sys._getframe(1)
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), Trainer):
            return frame.f_locals["self"]
        frame = frame.f_back  # type: ignore[assignment]
    raise UsageError(
        "An event of MltrainCallback was called from outside of a Trainer. Expected Trainer(callbacks=[MltrainCallback()])."
    )


def state_of(state: Any, live: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint holds: the live tensors, not copies."""
    scaler = getattr(live["optimizer"], "scaler", None)
    return {
        "model": live["model"].state_dict(),
        "optimizer": live["optimizer"].state_dict(),
        "scheduler": live["lr_scheduler"].state_dict(),
        **({"scaler": scaler.state_dict()} if scaler is not None else {}),
        "rng": Rng().state_dict(),
        "trainer": dataclasses.asdict(state),
    }


def numbers_of(logs: Mapping[str, Any]) -> dict[str, float]:
    """Return what is one number; the Trainer logs other values, too."""
    found: dict[str, float] = {}
    for key, value in logs.items():
        with suppress(UsageError):
            found |= floats({key: value}, "the Trainer") if key != "step" else {}
    return found
