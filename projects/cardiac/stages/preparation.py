"""Preparation of the patients: configuration of the stage, and the making of its files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

import mltrain
from projects.cardiac.labels import LabelMap
from projects.cardiac.settings import presets_of


class Config(mltrain.Config):
    """Where the patients come from and how they are cut. Of the keys of every project ``seed`` and ``num_threads`` count."""

    source: Literal["phantom", "layout", "acdc"] = Field("phantom", description="Phantoms, or a layout of files.")
    data: Path | None = Field(None, description="The folder with the files; not for phantoms.")
    file_pixel_mm: float | None = Field(None, gt=0, description="Size of a pixel, where the files say it wrongly.")

    labels: LabelMap | None = Field(None, description="Values of cine labels: acdc, emidec, or a map by structure.")
    late_labels: LabelMap | None = Field(None, description="The same of late enhancement, where a layout has it.")

    pixel_mm: float = Field(1.5, gt=0, description="Size of a pixel after resampling.")
    side: int = Field(80, ge=48, multiple_of=16, description="Of the square about the myocardium, in pixels.")

    splits: Path | None = Field(None, description="JSON that names the cases of train and val. Default: drawn.")
    val_fraction: float = Field(1 / 3, gt=0, lt=1, description="Share of the patients held out where it is drawn.")
    split_seed: int = Field(0, ge=0, description="Of that draw; apart from seed.")
    patient_regex: str | None = Field(None, description="Cases in which it finds the same are one patient.")

    cases: int = Field(48, ge=2, description="Phantom patients, two thirds of them with an infarct.")
    slices: int = Field(3, ge=1, le=3, description="Slices of a phantom, from base to apex.")
    frames: int = Field(12, ge=4, le=60, description="Frames of a phantom's heart beat.")
    chronic: bool = Field(False, description="Old infarcts in phantoms, whose wall is thin.")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = presets_of("preparation")

    def resolved(self) -> dict[str, Any]:
        """Every field as plain values; label maps only where they are given.

        So a preparation from before there were label maps has the same configuration, and a pipeline keeps it.
        """
        values = super().resolved()
        return {key: value for key, value in values.items() if value is not None or not key.endswith("labels")}

    def sample_data(self) -> dict[str, Path | str]:
        """Return what draws the phantoms, with ``source=phantom``."""
        if self.source != "phantom":
            return {}
        names = ("cases", "slices", "frames", "chronic", "seed")
        arguments = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return {"phantoms": f"projects.cardiac.phantom_source.PhantomSource({arguments})"}


def prepare(config: Config, to: Path) -> dict[str, float]:
    """Prepare the patients; see :func:`projects.cardiac.preparation.prepare`."""
    from projects.cardiac import preparation

    return preparation.prepare(config, to)
