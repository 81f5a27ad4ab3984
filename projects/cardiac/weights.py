"""Loading and saving the weights of a stage's network."""

import json
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from mltrain.config import Config
from mltrain.errors import DataError
from projects.cardiac.deformation import DeformationNet, RefinedFlowNet
from projects.pulled import weights_in


def load(net: nn.Module, folder: Path | None, stage: str) -> None:
    """Load weights of ``mltrain pull`` into a network, and freeze it.

    Raises:
        DataError: the folder has no weights, or they are damaged or belong to another stage.
    """
    key = f"{stage}_weights"
    if folder is None:
        raise DataError(f"This stage needs the weights of the {stage} network. Try: {key}=FOLDER")
    weights = weights_in(folder)
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise DataError(
            f"{folder} does not hold the weights of a {stage} network: {error}. Try, with a run that trained it: "
            f"mltrain pull RUN_ID --to {folder}"
        ) from None
    net.eval().requires_grad_(False)


def motion_net(folder: Path | None) -> DeformationNet:
    """Return the motion network that ``mltrain pull`` wrote to a folder.

    The names of its weights show whether it refines optical flow.

    Raises:
        DataError: as :func:`load`.
    """
    net: DeformationNet = RefinedFlowNet()
    if folder is not None and not any(name.startswith(f"purposes.{net.purpose}.") for name in _names(folder)):
        net = DeformationNet("motion")
    load(net, folder, "motion")
    return net


def _names(folder: Path) -> set[str]:
    """Return the names of the readable weights in a folder; :func:`load` raises errors for the others."""
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
