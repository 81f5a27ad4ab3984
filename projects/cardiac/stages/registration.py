"""Registration of late enhancement: configuration of the stage, and its training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

import mltrain
from projects.cardiac.settings import presets_of


class Config(mltrain.Config):
    """Training of the registration network. ``config.yaml`` explains every key at length."""

    epochs: int = Field(20, ge=0, description="Total number of epochs, also when a run is resumed.")
    prepared: Path | None = Field(None, description="The folder that preparation wrote.")
    batch_size: int = Field(4, ge=1, description="Slices per step.")
    lr: float = Field(2e-3, gt=0, description="The highest learning rate of the one-cycle schedule.")
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient; larger ones are clipped.")
    correlation_weight: float = Field(1.0, ge=0, description="Weight of the local normalised cross-correlation.")
    mask_weight: float = Field(
        1.0, ge=0, description="Weight of the Dice loss on the myocardium; 0: grey levels alone."
    )
    fill_scar: bool = Field(
        True, description="Fill scar with the level of the rest of the wall to compare grey levels."
    )
    smoothness_weight: float = Field(1.5, ge=0, description="Weight of the diffusion energy of the displacements.")
    shown: int = Field(2, ge=0, description="Number of held-out cases to draw pictures of.")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = presets_of("registration")


def build(config: Config) -> "mltrain.Task":
    """Build the training; see :func:`projects.cardiac.registration.build`."""
    from projects.cardiac import registration

    return registration.build(config)
