"""What the tags of a run tell of its best checkpoint: its name, and what it measured."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mltrain.checkpoint.manifest import Manifest
from mltrain.tracking.tags import AT_BEST_TAG, BEST_TAG

_LONGEST = 8000
"""Characters of a tag that MLflow takes."""


@dataclass(frozen=True)
class BestValues:
    """What the best checkpoint of a run measured.

    Attributes:
        epoch: of the checkpoint.
        step: of the checkpoint.
        metrics: that its manifest and its notes have.
    """

    epoch: int
    step: int
    metrics: Mapping[str, float]


def best_tags(manifest: Manifest) -> dict[str, str]:
    """Return the tags that call a checkpoint the best one of its run."""
    content = {
        "checkpoint": manifest.name,
        "epoch": manifest.epoch,
        "step": manifest.step,
        "metrics": dict(manifest.metrics),
    }
    text = json.dumps(content)
    return {BEST_TAG: manifest.name, AT_BEST_TAG: text if len(text) <= _LONGEST else "{}"}


def best_values(run: Any) -> BestValues | None:
    """Return what the best checkpoint of a run measured, without a request.

    Returns:
        ``None`` where the tags do not tell: the run has no best checkpoint, an earlier version of mltrain wrote its tags, or a
        tag is too short for all metrics. Then the manifest of the checkpoint tells.
    """
    try:
        content = json.loads(run.data.tags[AT_BEST_TAG])
        if content["checkpoint"] != run.data.tags[BEST_TAG]:
            return None  # an earlier version of mltrain resumed the run
        metrics = {str(key): float(value) for key, value in content["metrics"].items()}
        return BestValues(int(content["epoch"]), int(content["step"]), metrics)
    except (KeyError, ValueError, TypeError, AttributeError):
        return None
