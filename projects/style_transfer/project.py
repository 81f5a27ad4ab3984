"""Style transfer between folders of pictures, one folder per style."""

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

import mltrain
from mltrain.errors import ConfigError
from mltrain.rng import own_rng
from projects.style_transfer.autoencoder import AutoencoderCodec
from projects.style_transfer.baselines import baselines, content_change
from projects.style_transfer.codec import Codec, LinearCodec, Standardized, codec_in, inner_weights
from projects.style_transfer.flow import Flow, Method, even_times
from projects.style_transfer.folders import Style, styles_in
from projects.style_transfer.gallery import Gallery
from projects.style_transfer.metrics import Judgement
from projects.style_transfer.pictures import StyleCrops, random_crops, read_pictures
from projects.style_transfer.report import Report
from projects.style_transfer.sample import sample_styles
from projects.style_transfer.step import Energy, TransferStep
from projects.style_transfer.translator import EveryStyle, KnownStyles, Translator
from projects.style_transfer.transport import StyleMaps
from projects.style_transfer.vae import VaeCodec
from projects.style_transfer.velocity import GRID, VelocityNet

_FITTING_CROPS = 128

_RIDGE = 0.3
"""Ridge of the maps between styles. Of 0.03, 0.1 and 0.3, 0.3 changed content least at the same distance to the style."""


class Config(mltrain.Config):
    """Data, codec, flow and training. ``config.yaml`` explains every key at length."""

    epochs: int = Field(8, ge=0, description="Total number of epochs, also when a run is resumed.")
    eval_interval: int = Field(2, ge=1, description="Evaluate and draw pictures every N epochs.")
    save_interval: int = Field(2, ge=0, description="Save a checkpoint every N epochs; 0: never.")
    best_metric: str = Field(
        "val/quality", min_length=1, description="The metric that decides which checkpoint is best."
    )
    best_mode: Literal["min", "max"] = Field("max", description="Whether a lower or higher value is better.")

    image_dir: Path | None = Field(None, description="Folder with one folder per style. Default: the sample styles.")
    test_image_dir: Path | None = Field(
        None, description="Held-out pictures of the same styles. Default: a random share."
    )
    val_fraction: float = Field(0.2, gt=0, lt=1, description="Share of each style to hold out at random.")
    split_seed: int = Field(0, ge=0, description="Seed of this draw, so that runs with another seed hold out the same.")
    image_size: int = Field(64, ge=32, multiple_of=16, description="Side of the training crops in pixels.")
    short_side: int = Field(128, ge=32, description="The shorter side of every picture is scaled to it.")
    num_workers: int = Field(0, ge=0, description="Processes that cut crops in advance.")

    codec: Literal["linear", "autoencoder", "vae", "own"] = Field(
        "linear", description="Codec between images and latents."
    )
    latent_channels: int = Field(12, ge=1, le=48, description="Channels of the linear codec; 48 are lossless.")
    codec_model: Path | None = Field(None, description="Folder of the model for codec=autoencoder or codec=vae.")
    codec_file: Path | None = Field(None, description="Python file with a function codec(), for codec=own.")

    width: int = Field(32, ge=8, multiple_of=8, description="Channels of the network's first level.")
    batch_size: int = Field(16, ge=2, description="Crops of each style per step.")
    steps_per_epoch: int = Field(80, ge=1, description="Steps per epoch.")
    route: Literal["transport", "noise"] = Field(
        "transport", description="How the flow connects styles: by optimal transport, or through noise."
    )
    anchor_epochs: int = Field(3, ge=0, description="With route=noise: epochs of flow matching before the energy.")
    lr: float = Field(1e-3, gt=0, description="Highest learning rate of the one-cycle schedule.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of AdamW.")
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient; larger ones are clipped.")

    w_style: float = Field(1.0, ge=0, description="Weight of the sliced Wasserstein distance to the target style.")
    w_content: float = Field(0.5, ge=0, description="Weight of the change of self-similarity.")
    content_budget: float = Field(
        1.0, gt=0, description="Change of content without penalty, in multiples of that by a colour matrix."
    )
    ode_integration_steps: int = Field(2, ge=1, description="Integration steps in each direction, in training.")
    num_steps: int = Field(8, ge=1, description="Integration steps in each direction, at inference.")
    integrator: Method = Field("heun", description="Method of integration; both are of second order.")
    temperature: float = Field(0.0, ge=0, description="Noise while generating at inference; 0: none.")

    eval_crops: int = Field(16, ge=2, description="Held-out crops of each style to translate in an evaluation.")
    classifier_steps: int = Field(150, ge=1, description="Training steps of the classifier of styles.")

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.short_side < self.image_size:
            raise ValueError(f"crops of image_size={self.image_size} do not fit in short_side={self.short_side}")
        if self.test_image_dir and not self.image_dir:
            raise ValueError(
                "test_image_dir holds out pictures of the styles in image_dir, and image_dir is not given. Try: image_dir=FOLDER"
            )
        if (self.codec in ("autoencoder", "vae")) != (self.codec_model is not None):
            raise ValueError("codec=autoencoder or codec=vae and codec_model are given together or not at all")
        if (self.codec == "own") != (self.codec_file is not None):
            raise ValueError("codec=own and codec_file are given together or not at all")
        return self

    def sample_data(self) -> dict[str, Path | str]:
        """Return the folders of the sample styles; none if ``image_dir`` is given."""
        return (
            {}
            if self.image_dir is not None
            else dict(zip(("sample styles", "test styles"), sample_styles(), strict=True))
        )


def build(config: Config) -> mltrain.Task:
    """Read pictures, fit the codec, build network, optimizer and schedule.

    Raises:
        mltrain.errors.DataError: there are fewer than two styles, or pictures cannot be read; the error names all of them.
        mltrain.errors.ConfigError: the codec cannot be loaded, or image_size does not suit it.

    """
    styles = read_styles(config)
    pictures = iter(read_pictures([file for style in styles for file in style.files], config.short_side))
    train, held_out = [], []
    for style in styles:
        train.append(list(itertools.islice(pictures, len(style.train))))
        held_out.append(list(itertools.islice(pictures, len(style.held_out))))
    known = KnownStyles([style.name for style in styles])
    translator = make_translator(config, known, Standardized(make_codec(config)))
    if config.image_size % (translator.codec.factor * GRID):
        raise ConfigError(
            f"image_size={config.image_size} does not suit this codec. Expected a multiple of "
            f"{translator.codec.factor * GRID}: {translator.codec.factor} pixels per latent times {GRID} latents."
        )
    budget = math.inf
    with own_rng(config.seed):
        crops = [random_crops(style, config.image_size, _FITTING_CROPS) for style in train]
        translator.codec.fit(torch.cat(crops))
        if config.route == "transport":
            known.maps = StyleMaps.fit([translator.codec.encode(one) for one in crops], _RIDGE)
            budget = config.content_budget * content_change(translator.codec, baselines(crops)["colour matrix"], crops)

    energy = Energy(
        style=config.w_style,
        content=config.w_content,
        anchor_steps=config.anchor_epochs * config.steps_per_epoch,
        budget=budget,
    )
    items = StyleCrops(train, config.image_size, config.batch_size * config.steps_per_epoch)
    loader = mltrain.ResumableLoader(items, config.batch_size, num_workers=config.num_workers)
    optimizer = AdamW(translator.net.parameters(), config.lr, weight_decay=config.weight_decay)
    # One more than the steps: the schedule also steps after the last one, and past its end it would rise again.
    scheduler = OneCycleLR(optimizer, config.lr, total_steps=config.epochs * len(loader) + 1, pct_start=0.1)
    flow = Flow(translator.net, even_times(config.ode_integration_steps), config.integrator)
    step = TransferStep(translator.net, translator.codec, known, flow, energy, optimizer, scheduler, clip=config.clip)
    judgement = Judgement(
        translator,
        energy,
        train,
        held_out,
        side=config.image_size,
        crops=config.eval_crops,
        classifier_steps=config.classifier_steps,
    )
    gallery = Gallery(translator, [style[0] for style in held_out])
    return mltrain.Task(
        step,
        loader,
        evaluate=judgement,
        images=gallery,
        report=Report(judgement, gallery),
        state={"styles": known},
        predictor=(
            None
            if config.route == "noise"
            else lambda: (EveryStyle(translator), torch.rand(2, 3, config.image_size, config.image_size))
        ),
    )


def read_styles(config: Config) -> tuple[Style, ...]:
    """Return the styles with their training and held-out files."""
    root, held_out = (config.image_dir, config.test_image_dir) if config.image_dir else sample_styles()
    return styles_in(root, held_out, fraction=config.val_fraction, split_seed=config.split_seed)


def make_codec(config: Config, weights: Mapping[str, Tensor] | None = None) -> Codec:
    """Return the configured codec; ``weights`` from a checkpoint replace the model folder of an autoencoder."""
    if config.codec_file is not None:
        return codec_in(config.codec_file)
    if config.codec == "vae" and config.codec_model is not None:
        return VaeCodec(config.codec_model)
    if config.codec_model is not None:
        return AutoencoderCodec.load(config.codec_model) if weights is None else AutoencoderCodec.of(weights)
    return LinearCodec(channels=config.latent_channels)


def make_translator(config: Config, known: KnownStyles, codec: Standardized) -> Translator:
    """Return a translator between these styles with a new network."""
    net = VelocityNet(codec.channels, len(known.names), config.width)
    flow = Flow(net, even_times(config.num_steps), config.integrator, config.temperature)
    return Translator(codec, net, known, flow, config.short_side)


def restored(config: Config, parts: Mapping[str, Any]) -> Translator:
    """Return a checkpoint's translator, without the pictures of its training."""
    codec = Standardized(make_codec(config, inner_weights(parts["codec"])))
    codec.load_state_dict(parts["codec"])
    known = KnownStyles(parts["styles"]["names"])
    known.load_state_dict(parts["styles"])
    translator = make_translator(config, known, codec)
    translator.net.load_state_dict(parts["model"])
    return translator
