"""Putting the weights of an earlier stage into its network."""

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from mltrain.config import Config
from mltrain.errors import DataError


def load(net: nn.Module, folder: Path | None, stage: str) -> None:
    """Put the weights that ``mltrain pull`` left in a folder into a network, which then only evaluates.

    Raises:
        DataError: there are none, they are damaged, or they belong to another stage.
    """
    key = f"{stage}_weights"
    if folder is None:
        raise DataError(f"This stage needs the {stage} network. Say where its weights are: {key}=FOLDER")
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise DataError(
            f"{folder} holds no model*.safetensors, and the weights of the {stage} network were expected there. "
            f"Pull them: mltrain pull RUN_ID --to {folder}"
        )
    try:
        net.load_state_dict({name: tensor for file in files for name, tensor in load_file(file).items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise DataError(
            f"{folder} does not hold the weights of a {stage} network: {error}. Pull those of a run that trained it: "
            f"mltrain pull RUN_ID --to {folder}"
        ) from None
    net.eval().requires_grad_(False)


def save(net: nn.Module, config: Config, folder: Path) -> None:
    """Write weights and configuration under the names that ``mltrain pull`` uses."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, folder / "model.safetensors")
    (folder / "params.json").write_text(json.dumps(config.resolved(), indent=1), encoding="utf-8")
