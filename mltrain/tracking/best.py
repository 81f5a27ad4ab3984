"""A run's best checkpoint and its metrics, as tags."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mltrain.checkpoint.manifest import Manifest
from mltrain.tracking.tags import AT_BEST_TAG, BEST_TAG

_LONGEST = 8000
"""Most characters of a tag that MLflow accepts."""


@dataclass(frozen=True)
class BestValues:
    """The metrics of a run's best checkpoint.

    Attributes:
        epoch: of the checkpoint.
        step: of the checkpoint.
        metrics: from its manifest and its notes.
    """

    epoch: int
    step: int
    metrics: Mapping[str, float]


def best_tags(manifest: Manifest) -> dict[str, str]:
    """Return the tags for a run's best checkpoint."""
    content = {
        "checkpoint": manifest.name,
        "epoch": manifest.epoch,
        "step": manifest.step,
        "metrics": dict(manifest.metrics),
    }
    text = json.dumps(content)
    return {BEST_TAG: manifest.name, AT_BEST_TAG: text if len(text) <= _LONGEST else "{}"}


def best_values(run: Any) -> BestValues | None:
    """Return a run's best checkpoint metrics, without a request.

    Returns:
        ``None`` if the tags lack them: the run has no best checkpoint, an earlier version of mltrain wrote its tags, or
        the metrics are too long for a tag. The manifest of the checkpoint has them then.
    """
    try:
        content = json.loads(run.data.tags[AT_BEST_TAG])
        if content["checkpoint"] != run.data.tags[BEST_TAG]:
            return None  # an earlier version of mltrain resumed the run
        metrics = {str(key): float(value) for key, value in content["metrics"].items()}
        return BestValues(int(content["epoch"]), int(content["step"]), metrics)
    except (KeyError, ValueError, TypeError, AttributeError):
        return None
