"""Preparation of the patients: configuration of the stage, and the making of its files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

import mltrain
from projects.cardiac.labels import LabelMap
from projects.cardiac.settings import presets_of


class Config(mltrain.Config):
    """Source and cropping of the patients. Of the keys of every project only ``seed`` and ``num_threads`` have an effect."""

    source: Literal["phantom", "layout", "acdc"] = Field("phantom", description="Phantoms, or the layout of the files.")
    data: Path | None = Field(None, description="Folder of the files; unused for phantoms.")
    file_pixel_mm: float | None = Field(None, gt=0, description="Size of a pixel in mm that overrides the files' own.")

    labels: LabelMap | None = Field(None, description="Values of cine labels: acdc, emidec, or a map by structure.")
    late_labels: LabelMap | None = Field(None, description="The same for late enhancement, with source=layout.")

    pixel_mm: float = Field(1.5, gt=0, description="Size of a pixel after resampling, in mm.")
    side: int = Field(80, ge=48, multiple_of=16, description="Side of the square about the myocardium, in pixels.")

    splits: Path | None = Field(None, description="JSON file with the cases of train and val. Default: random.")
    val_fraction: float = Field(1 / 3, gt=0, lt=1, description="Share of the patients to hold out at random.")
    split_seed: int = Field(0, ge=0, description="Seed of this draw, independent of seed.")
    patient_regex: str | None = Field(None, description="Cases with the same match are one patient.")

    cases: int = Field(48, ge=2, description="Number of phantom patients, two thirds of them with an infarct.")
    slices: int = Field(3, ge=1, le=3, description="Slices per phantom, from base to apex.")
    frames: int = Field(12, ge=4, le=60, description="Frames of a phantom's heart beat.")
    chronic: bool = Field(False, description="Give phantoms old infarcts, with a thin wall.")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = presets_of("preparation")

    def resolved(self) -> dict[str, Any]:
        """Return every field as plain values; label maps only if they are given.

        Preparations from before label maps then have the same configuration, and a pipeline does not repeat them.
        """
        values = super().resolved()
        return {key: value for key, value in values.items() if value is not None or not key.endswith("labels")}

    def sample_data(self) -> dict[str, Path | str]:
        """Return the expression that draws the phantoms, with ``source=phantom``."""
        if self.source != "phantom":
            return {}
        names = ("cases", "slices", "frames", "chronic", "seed")
        arguments = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return {"phantoms": f"projects.cardiac.phantom_source.PhantomSource({arguments})"}


def prepare(config: Config, to: Path) -> dict[str, float]:
    """Prepare the patients; see :func:`projects.cardiac.preparation.prepare`."""
    from projects.cardiac import preparation

    return preparation.prepare(config, to)
