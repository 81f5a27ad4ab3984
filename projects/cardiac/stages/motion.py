"""The motion of the heart: configuration of the stage, and its training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

import mltrain
from projects.cardiac.settings import presets_of


class Config(mltrain.Config):
    """Training of the motion network. ``config.yaml`` explains every key at length."""

    epochs: int = Field(20, ge=0, description="Total number of epochs, also when a run is resumed.")
    prepared: Path | None = Field(None, description="The folder that preparation wrote.")
    start: Literal["optical_flow", "still"] = Field(
        "optical_flow", description="Displacement to refine: optical flow, or zero."
    )
    batch_size: int = Field(4, ge=1, description="Pairs of frames per step.")
    passes: int = Field(1, ge=1, description="Passes over all slices per epoch, each with another random frame.")
    lr: float = Field(1e-3, gt=0, description="The highest learning rate of the one-cycle schedule.")
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient; larger ones are clipped.")
    intensity_weight: float = Field(100.0, ge=0, description="Weight of the mean squared difference of grey levels.")
    correlation_weight: float = Field(1.0, ge=0, description="Weight of the local normalised cross-correlation.")
    smoothness_weight: float = Field(0.06, ge=0, description="Weight of the diffusion energy of the displacements.")
    shown: int = Field(2, ge=0, description="Number of held-out cases to draw pictures of.")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = presets_of("motion")

    @model_validator(mode="before")
    @classmethod
    def _of_an_earlier_version(cls, given: Any) -> Any:
        """Read a configuration without ``start`` as ``start=still``, like earlier versions."""
        own = set(cls.model_fields) - set(mltrain.Config.model_fields) - {"start"}
        if isinstance(given, Mapping) and "start" not in given and own <= given.keys():
            return {**given, "start": "still"}
        return given


def build(config: Config) -> "mltrain.Task":
    """Build the training; see :func:`projects.cardiac.motion.build`."""
    from projects.cardiac import motion

    return motion.build(config)
