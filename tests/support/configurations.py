"""A configuration with many kinds of fields, and its files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from mltrain.config import Config


class Network(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = 8
    activation: Literal["relu", "gelu"] = "relu"
    rates: list[float] = [0.1]


class Example(Config):
    lr: float = Field(1e-3, gt=0, description="The learning rate.")
    batch_size: int = 16
    title: str = "plain"
    note: str | None = None
    network: Network = Network()
    weights: dict[str, float] = Field(default_factory=dict)
    sizes: list[int] = Field(default=[1, 2])
    image_path: Path | None = None
    augment: bool = True

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {"epochs": 1, "weights": {"a": 1.0}},
        "wide": {"network": {"width": 64}},
    }


def written(folder: Path, text: str) -> Path:
    file = folder / "config.json"
    file.write_text(text)
    return file


def yaml_file(folder: Path, text: str, name: str = "config.yaml") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file
