"""State, metrics and caller of the ``Trainer`` of transformers."""

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


class DisabledMLflowCallback(MLflowCallback):  # type: ignore[misc] # mypy does not read transformers
    """An ``MLflowCallback`` that records nothing.

    It replaces that of the Trainer and of MLflow's autologging, which would record each point a second time.
    """

    def __init__(self) -> None:
        self._initialized = self._auto_end_run = False

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Do nothing."""

    on_log = on_train_end = on_save = on_train_begin


def calling_trainer() -> Any:
    """Return the Trainer that calls this event.

    Raises:
        UsageError: the caller is not a Trainer.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), Trainer):
            return frame.f_locals["self"]
        frame = frame.f_back  # type: ignore[assignment]
    raise UsageError(
        "An event of MltrainCallback was called without a Trainer. Expected a call by a Trainer. Try: "
        "Trainer(callbacks=[MltrainCallback()])"
    )


def state_of(state: Any, live: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state for a checkpoint, without copying tensors."""
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
    """Return the logged values that are single numbers, without ``step``."""
    found: dict[str, float] = {}
    for key, value in logs.items():
        with suppress(UsageError):
            found |= floats({key: value}, "the Trainer") if key != "step" else {}
    return found
