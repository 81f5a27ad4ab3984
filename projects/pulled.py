"""Weights from a folder that ``mltrain pull`` wrote."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mltrain.errors import DataError


def weights_in(folder: Path) -> dict[str, Tensor]:
    """Return the weights in a folder, by name.

    Raises:
        DataError: there are none, or a file is damaged.
    """
    advice = f"Try: mltrain pull RUN_ID --to {folder}"
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise DataError(f"{folder} holds no weights. Expected model*.safetensors. {advice}")
    try:
        return {name: tensor for file in files for name, tensor in load_file(file).items()}
    except (OSError, SafetensorError) as error:
        raise DataError(f"The weights in {folder} are damaged: {error}. {advice}") from None
