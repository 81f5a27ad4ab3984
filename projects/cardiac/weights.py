"""Putting the weights of an earlier stage into its network."""

import json
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from mltrain.config import Config
from mltrain.errors import DataError
from projects.cardiac.deformation import DeformationNet, RefinedFlowNet


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


def motion_net(folder: Path | None) -> DeformationNet:
    """Return the motion network that ``mltrain pull`` left in a folder: one that refines optical flow, or one that does not.

    Raises:
        DataError: as :func:`load`.
    """
    net: DeformationNet = RefinedFlowNet()
    if folder is not None and not any(name.startswith(f"purposes.{net.purpose}.") for name in _names(folder)):
        net = DeformationNet("motion")
    load(net, folder, "motion")
    return net


def _names(folder: Path) -> set[str]:
    """Return the names of the weights in a folder that can be read; :func:`load` says what is wrong with the others."""
    names: set[str] = set()
    for file in folder.glob("model*.safetensors"):
        with suppress(OSError, SafetensorError), safe_open(file, "pt") as weights:
            names.update(weights.keys())
    return names


def save(net: nn.Module, config: Config, folder: Path) -> None:
    """Write weights and configuration under the names that ``mltrain pull`` uses."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, folder / "model.safetensors")
    (folder / "params.json").write_text(json.dumps(config.resolved(), indent=1), encoding="utf-8")
