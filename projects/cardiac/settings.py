"""The presets of each stage, read from ``config.yaml``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mltrain.configuration.files import read_mapping

CONFIG_FILE = Path(__file__).with_name("config.yaml")


def presets_of(stage: str) -> dict[str, Mapping[str, Any]]:
    """Return the values of a stage in each preset."""
    overlays = read_mapping(CONFIG_FILE)["presets"]
    return {name: overlay.get(stage, {}) for name, overlay in overlays.items()}
