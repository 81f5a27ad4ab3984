"""The classifier's part of a checkpoint, for predictions."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mltrain.errors import DataError, StateMismatch
from mltrain.trainer.ports import Saver
from projects.tool_wear.learner import Recipe
from projects.tool_wear.places import Place

OWN = "classifier"
"""Name of this part: best weights, classes, parameters, and whether there was validation data."""


class Position(NamedTuple):
    """Progress of the training in a checkpoint."""

    epoch: int
    """Epochs done."""
    best_epoch: int
    """The epoch with the lowest loss on validation data; 0 before the first."""
    epochs_without_improvement: int
    """Evaluations since then; early stopping counts them."""


class Keeper:
    """Adds best weights, classes and parameters to every saved state."""

    def __init__(self, saver: Saver, classes: NDArray[Any], parameters: Mapping[str, Any], *, validated: bool) -> None:
        self._saver = saver
        self._own: dict[str, Any] = {
            "best": {},
            "classes": classes,
            "parameters": dict(parameters),
            "validated": validated,
        }

    def save(self, state: Mapping[str, Any], **facts: Any) -> None:
        """Save a state, and remember the best weights so far."""
        if state["best"]["step"] == state["progress"]["step"]:
            self._own["best"] = {name: weight.detach().cpu().clone() for name, weight in state["model"].items()}
        self._saver.save(self.put_together(state), **facts)

    def put_together(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the state with the added part."""
        return {**state, OWN: dict(self._own)}

    def taken_apart(self, state: Mapping[str, Any], source: Place) -> dict[str, Any]:
        """Return the trainer's part, and remember the state's best weights.

        Raises:
            StateMismatch, DataError: the state is not a classifier's, or was trained on other classes.
        """
        own, now = own_part(state, source), self._own["classes"]
        if not np.array_equal(own["classes"], now):
            raise DataError(f"{source} was trained on the classes {own['classes'].tolist()}; here are {now.tolist()}.")
        self._own["best"] = own["best"]
        return {name: part for name, part in state.items() if name != OWN}


def before(state: Mapping[str, Any], recipe: Recipe) -> Recipe:
    """Return the recipe; for a checkpoint from before kernels and ``epoch_steps``, without them."""
    recorded = state.get(OWN, {}).get("parameters")
    return recipe if recorded is None or "kernels" in recorded else replace(recipe, kernels=0, epoch_steps=1)


def own_part(state: Mapping[str, Any], source: Place) -> Mapping[str, Any]:
    """Return the classifier's part of a state.

    Raises:
        StateMismatch: the state is not a classifier's.
    """
    own: Mapping[str, Any] | None = state.get(OWN)
    if own is None:
        raise StateMismatch(
            "a ToolWearClassifier",
            missing=[OWN],
            advice=f"Continue a run of mltrain train with: mltrain train --resume-run {source}",
        )
    return own
