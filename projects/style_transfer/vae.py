"""A pretrained variational autoencoder in diffusers' format, as a codec."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mltrain.errors import ConfigError, DataError, UsageError

_CONFIG = "config.json"


class VaeCodec(nn.Module):
    """An ``AutoencoderKL`` from a folder (Rombach et al., CVPR 2022).

    Its weights are large and never trained, so a checkpoint holds only their SHA-256. The folder is needed wherever the
    checkpoint is used; other weights are refused.

    Args:
        folder: holds ``config.json`` and one ``.safetensors`` file, directly or in the folder ``vae`` below it.

    Raises:
        ConfigError: the folder holds no such model.
        DataError: the weights cannot be read, or do not match the configuration.
        UsageError: diffusers is not installed.

    """

    digest: Tensor

    def __init__(self, folder: Path) -> None:
        super().__init__()
        place = folder if (folder / _CONFIG).is_file() else folder / "vae"
        weights = sorted(place.glob("*.safetensors"))
        if not (place / _CONFIG).is_file() or len(weights) != 1:
            raise ConfigError(
                f"codec_model={folder} holds no autoencoder. Expected {_CONFIG} and one .safetensors file, as "
                "AutoencoderKL.save_pretrained writes them, in it or in its folder vae; got "
                f"{', '.join(sorted(file.name for file in folder.glob('*'))) or 'nothing'}."
            )
        # In a list, so that the model is not registered as a submodule: it is neither saved nor trained.
        self._held: list[Any] = [_loaded(place)]
        self.factor = 2 ** (len(self._held[0].config.block_out_channels) - 1)
        self.channels = int(self._held[0].config.latent_channels)
        with weights[0].open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        self.register_buffer("digest", torch.tensor(list(digest), dtype=torch.uint8))

    def encode(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to latent modes (B, channels, H / factor, W / factor)."""
        latents: Tensor = self._model(images.device).encode(2 * images - 1).latent_dist.mode()
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Map latents to images (B, 3, H, W), which may leave [0, 1]."""
        images: Tensor = self._model(latents.device).decode(latents).sample
        return (images + 1) / 2

    def _model(self, device: torch.device) -> Any:
        return self._held[0].to(device)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        given = state_dict.get(f"{prefix}digest")
        if given is not None and not torch.equal(given.cpu(), self.digest.cpu()):
            raise DataError(
                f"The checkpoint was trained with the autoencoder of SHA-256 {_hex(given)}, and codec_model holds that of "
                f"{_hex(self.digest)}. Try: codec_model=FOLDER with the weights of that training."
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


def _loaded(folder: Path) -> Any:
    try:
        from diffusers import AutoencoderKL
    except ImportError:
        raise UsageError("codec=vae needs diffusers, which is not installed. Try: pip install 'mltrain[vae]'") from None
    try:
        model = AutoencoderKL.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False
        )
    except Exception as error:
        raise DataError(f"The autoencoder in {folder} cannot be loaded: {error}") from error
    return model.requires_grad_(False).eval()


def _hex(digest: Tensor) -> str:
    return bytes(digest.tolist()).hex()[:12] + "…"
