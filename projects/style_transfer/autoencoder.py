"""A trained codec: MONAI's variational autoencoder, trained by a project of its own before the style transfer.

Its training is a run like any other, which can be stopped, resumed and pulled::

    mltrain train projects/style_transfer/autoencoder.py image_dir=styles
    mltrain pull RUN_ID --to codec
    mltrain train style_transfer image_dir=styles codec=autoencoder codec_model=codec
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from monai.networks.nets import AutoencoderKL
from pydantic import Field
from torch import Tensor, nn

import mltrain
from mltrain.errors import DataError
from projects.pulled import weights_in
from projects.style_transfer.codec import psnr
from projects.style_transfer.folders import styles_in
from projects.style_transfer.pictures import StyleCrops, as_pixels, random_crops, read_pictures
from projects.style_transfer.sample import sample_styles

_KL_WEIGHT = 1e-6


class AutoencoderCodec(nn.Module):
    """Latents of a quarter of the image's height and width (Kingma and Welling 2014; Rombach et al., CVPR 2022).

    Args:
        channels: channels of the latents.
        width: channels of the first level; the two below have twice as many.

    """

    def __init__(self, channels: int = 8, width: int = 32) -> None:
        super().__init__()
        self.factor = 4
        self.channels = channels
        self.net = AutoencoderKL(
            spatial_dims=2,
            in_channels=3,
            out_channels=3,
            num_res_blocks=1,
            channels=(width, 2 * width, 2 * width),
            attention_levels=(False, False, False),
            latent_channels=channels,
            norm_num_groups=8,
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
        )

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> "AutoencoderCodec":
        """Return the codec that has these weights.

        Raises:
            DataError: they belong to another network.

        """
        try:
            codec = cls(len(weights["net.quant_conv_mu.conv.bias"]), len(weights["net.encoder.blocks.0.conv.bias"]))
            codec.load_state_dict(dict(weights))
        except (KeyError, RuntimeError, ValueError) as error:
            raise DataError(
                f"These are not the weights of an autoencoder: {error}. Train one with "
                "mltrain train projects/style_transfer/autoencoder.py"
            ) from None
        return codec

    @classmethod
    def load(cls, folder: Path) -> "AutoencoderCodec":
        """Return the codec that ``mltrain pull`` wrote to a folder.

        Raises:
            DataError: the folder holds no codec, or a damaged one.

        """
        return cls.of(weights_in(folder))

    def encode(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to the means of their latents (B, channels, H / 4, W / 4)."""
        means: Tensor = self.net.encode(images)[0]
        return means

    def decode(self, latents: Tensor) -> Tensor:
        """Map latents to images (B, 3, H, W)."""
        images: Tensor = self.net.decode(latents)
        return images

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return sampled reconstructions, and the latents' mean and standard deviation."""
        restored, mean, deviation = self.net(images)
        return restored, mean, deviation


def autoencoder_loss(output: tuple[Tensor, Tensor, Tensor], images: Tensor) -> Tensor:
    """Return the pixels' mean absolute error plus a KL term.

    The term is a small multiple of the KL divergence of the latents from a standard normal.
    """
    restored, mean, deviation = output
    divergence = 0.5 * (mean.square() + deviation.square() - deviation.square().log() - 1).sum((1, 2, 3)).mean()
    return (restored - images).abs().mean() + _KL_WEIGHT * divergence


class Config(mltrain.Config):
    """Pictures, autoencoder and training."""

    epochs: int = Field(40, ge=0, description="Total number of epochs, also when a run is resumed.")
    best_metric: str = Field("val/loss", min_length=1, description="The metric that decides which checkpoint is best.")
    image_dir: Path | None = Field(None, description="As in style_transfer.")
    test_image_dir: Path | None = Field(None, description="Held-out styles, as in style_transfer.")
    image_size: int = Field(64, ge=32, multiple_of=16, description="Side of the crops in pixels.")
    short_side: int = Field(128, ge=32, description="The shorter side of every picture is scaled to it.")
    latent_channels: int = Field(8, ge=1, description="Channels of the latents.")
    width: int = Field(32, ge=8, multiple_of=8, description="Channels of the first level.")
    batch_size: int = Field(4, ge=1, description="Crops of each style per step.")
    steps_per_epoch: int = Field(100, ge=1, description="Steps per epoch.")
    lr: float = Field(1e-3, gt=0, description="Highest learning rate of the one-cycle schedule.")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"quick": {"epochs": 2, "steps_per_epoch": 3, "width": 8}}


def flat(items: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Collate items (styles, 3, H, W) to images and equal targets."""
    images = torch.cat(items)
    return images, images


def build(config: Config) -> mltrain.Task:
    """Read the pictures and build autoencoder, optimizer and schedule.

    Raises:
        mltrain.errors.DataError: pictures cannot be read, or there are fewer than two styles.

    """
    root, held_out = (config.image_dir, config.test_image_dir) if config.image_dir else sample_styles()
    styles = styles_in(root, held_out)
    crops = StyleCrops(
        [read_pictures(style.train, config.short_side) for style in styles],
        config.image_size,
        config.batch_size * config.steps_per_epoch,
    )
    loader = mltrain.ResumableLoader(crops, config.batch_size, collate=flat)
    shown = torch.cat(
        [random_crops(read_pictures(s.held_out, config.short_side), config.image_size, 8) for s in styles]
    )
    codec = AutoencoderCodec(config.latent_channels, config.width)
    optimizer = torch.optim.AdamW(codec.parameters(), config.lr)
    total = config.epochs * len(loader) + 1
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=total)

    @torch.no_grad()
    def restored() -> Tensor:
        codec.eval()
        device = next(codec.parameters()).device
        return codec.decode(codec.encode(shown.to(device))).cpu()

    def evaluate() -> dict[str, float]:
        images = restored()
        return {"val/loss": float((images - shown).abs().mean()), "val/psnr": psnr(shown, images)}

    def images() -> dict[str, Any]:
        both = torch.cat([shown[::4], restored()[::4]], dim=2)
        return {"reconstructions": as_pixels(torch.cat(list(both), dim=2))}

    step = mltrain.Supervised(codec, autoencoder_loss, optimizer, scheduler=scheduler, clip=1.0)
    return mltrain.Task(step, loader, evaluate=evaluate, images=images)
