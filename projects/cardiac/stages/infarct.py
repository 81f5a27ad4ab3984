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
    """Training of the infarct network. ``config.yaml`` explains every key at length."""

    epochs: int = Field(40, ge=0, description="Total number of epochs, also when a run is resumed.")
    best_metric: str = Field(
        "val/infarct_dice", min_length=1, description="The metric that decides which checkpoint is best."
    )
    best_mode: Literal["min", "max"] = Field("max", description="Whether a lower or higher value is better.")

    prepared: Path | None = Field(None, description="The folder that preparation wrote.")
    motion_weights: Path | None = Field(None, description="Folder of mltrain pull with the weights of a motion run.")
    registration_weights: Path | None = Field(
        None, description="Folder of mltrain pull with the weights of a registration run."
    )
    inputs: Inputs = Field("all", description="Input channels of the network.")
    labels: Labels = Field(
        "carried_over", description="Training labels: carried_over by registration, or exact (phantoms only)."
    )
    batch_size: int = Field(8, ge=1, description="Slices per step.")
    lr: float = Field(3e-3, gt=0, description="The highest learning rate of the one-cycle schedule.")
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient; larger ones are clipped.")
    turns: bool = Field(True, description="Augmentation: quarter turns and mirror images, displacements included.")
    threshold: float = Field(0.5, gt=0, lt=1, description="Infarct is where its probability is above this, in masks.")
    least_mm2: float = Field(60.0, ge=0, description="A patient with less predicted infarct in every slice has none.")
    least_share: float = Field(
        0.1, gt=0, le=1, description="Least share of infarct for an AHA segment to count as infarcted."
    )
    shown: int = Field(2, ge=0, description="Number of held-out cases to draw pictures of.")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = presets_of("infarct")


def build(config: Config) -> "mltrain.Task":
    """Build the training; see :func:`projects.cardiac.infarct.build`."""
    from projects.cardiac import infarct

    return infarct.build(config)
