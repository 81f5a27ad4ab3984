"""The presets of a stage, from the sections of ``config.yaml``: they are written down once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mltrain.configuration.files import read_mapping

CONFIG_FILE = Path(__file__).with_name("config.yaml")


def presets_of(stage: str) -> dict[str, Mapping[str, Any]]:
    """Return for each preset what it says about a stage."""
    overlays = read_mapping(CONFIG_FILE)["presets"]
    return {name: overlay.get(stage, {}) for name, overlay in overlays.items()}
