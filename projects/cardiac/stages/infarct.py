"""The infarct: configuration of the stage, and its training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

import mltrain
from projects.cardiac.settings import presets_of

Inputs = Literal["anatomy", "frames", "motion", "all"]
Labels = Literal["carried_over", "exact"]


class Config(mltrain.Config):
    """How infarcts are learnt. ``config.yaml`` explains every key at length."""

    epochs: int = Field(40, ge=0, description="Total number of epochs, also when a run is resumed.")
    best_metric: str = Field("val/infarct_dice", min_length=1, description="The metric that decides which one is best.")
    best_mode: Literal["min", "max"] = Field("max", description="Whether a lower or higher value is better.")

    prepared: Path | None = Field(None, description="The folder that preparation wrote.")
    motion_weights: Path | None = Field(None, description="The folder that mltrain pull made of a motion run.")
    registration_weights: Path | None = Field(None, description="The same of a registration run.")
    inputs: Inputs = Field("all", description="anatomy, frames, motion or all: what the network sees.")
    labels: Labels = Field("carried_over", description="carried_over by registration; exact: phantoms only.")
    batch_size: int = Field(8, ge=1, description="Slices a step.")
    lr: float = Field(3e-3, gt=0, description="The highest learning rate of the one-cycle schedule.")
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient.")
    turns: bool = Field(True, description="Augmentation: quarter turns and mirror images, displacements included.")
    threshold: float = Field(0.5, gt=0, lt=1, description="Of the probability, in masks.")
    least_mm2: float = Field(60.0, ge=0, description="A patient with less predicted infarct in every slice has none.")
    least_share: float = Field(
        0.1, gt=0, le=1, description="Of an AHA segment that is infarct, for it to count as hit."
    )
    shown: int = Field(2, ge=0, description="How many held-out cases are pictured.")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = presets_of("infarct")


def build(config: Config) -> "mltrain.Task":
    """Build what is trained; see :func:`projects.cardiac.infarct.build`."""
    from projects.cardiac import infarct

    return infarct.build(config)
