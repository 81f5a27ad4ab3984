"""Binary segmentation of the images in a folder, learnt from the masks in another."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from monai.losses.dice import DiceCELoss
from pydantic import BeforeValidator, Field, model_validator
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

import mltrain
from mltrain.errors import ConfigError
from projects.segmentation import split
from projects.segmentation.augment import Augmentation, Flips
from projects.segmentation.dataset import STRIDE, SegmentationData, natural_size
from projects.segmentation.folders import EmptyMasks, FolderPair, Sample, require_sound, survey
from projects.segmentation.gallery import Gallery
from projects.segmentation.metrics import overlap_metrics
from projects.segmentation.model import SegmentationNet
from projects.segmentation.predict import Segmenter
from projects.segmentation.report import Report
from projects.segmentation.sample import blobs, mni152
from projects.segmentation.validation import Validation

SAMPLES = {"mni152": mni152, "blobs": blobs}


def _sides(given: Any) -> Any:
    """Take ``128`` for 128 by 128, and ``112x96`` for a height of 112 and a width of 96."""
    if isinstance(given, str):
        given = given.lower().split("x")
        given = given * 2 if len(given) == 1 else given
    return (given, given) if isinstance(given, int) else given


def _number(given: Any) -> Any:
    """Take a digit for a number, which a choice between numbers does not by itself."""
    return int(given) if isinstance(given, str) and given.isdecimal() else given


Side = Annotated[int, Field(ge=16, multiple_of=STRIDE)]
ImageSize = Annotated[tuple[Side, Side], BeforeValidator(_sides)]
Channels = Annotated[Literal[1, 3], BeforeValidator(_number)]


class Config(mltrain.Config):
    """Where images and masks are, and how the network is trained. ``config.yaml`` explains every key at length."""

    num_threads: int | None = Field(1, ge=1, description="Threads of torch on the CPU. Default: torch's own choice.")
    epochs: int = Field(40, ge=0, description="The total, also when a run is resumed.")
    best_metric: str = Field("val/f1", min_length=1, description="The metric that decides which one is best.")
    best_mode: Literal["min", "max"] = Field("max", description="Whether less or more of it is better.")

    image_path: Path | None = Field(
        None, description="Folder of training images. Default: the data set named by sample."
    )
    gt_path: Path | None = Field(
        None, description="Folder of their masks, paired by stem (a.jpg, a.png or a_mask.png)."
    )
    val_image_path: Path | None = Field(None, description="Folder of held-out images. Default: split from image_path.")
    val_gt_path: Path | None = Field(None, description="Folder of their masks.")
    test_image_dir: Path | None = Field(None, description="Images without masks to show predictions for, if any.")
    sample: Literal["mni152", "blobs"] = Field("mni152", description="What is trained on without image_path.")

    splits: Path | None = Field(None, description="CSV with the columns stem and split (train, val or test).")
    val_fraction: float = Field(0.2, gt=0, lt=1, description="Share held out where nothing else says what is.")
    group_regex: str | None = Field(None, description="Stems in which it finds the same stay on the same side.")
    split_seed: int = Field(0, ge=0, description="Of the draw; apart from seed, so that runs share what is held out.")
    empty_masks: EmptyMasks = Field("refuse", description="Masks without foreground: refuse, keep or drop.")

    image_size: ImageSize | None = Field(
        None, description="128, or height x width as 112x96, multiples of 8. Default: the images' own, 256 at most"
    )
    channels: Channels | None = Field(None, description="1: grey, 3: colour. Default: grey if all images are.")
    batch_size: int = Field(8, ge=1, description="Images a step.")
    lr: float = Field(5e-3, gt=0, description="The highest learning rate of the one-cycle schedule.")
    weight_decay: float = Field(1e-2, ge=0, description="Of AdamW.")
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient.")

    flips: Flips = Field("both", description="Augmentation: none, horizontal or both.")
    quarter_turns: bool = Field(False, description="Augmentation for pictures without an up; wants a square size.")
    brightness: float = Field(0.0, ge=0, description="Augmentation: largest change of brightness, relative.")
    noise: float = Field(0.0, ge=0, description="Augmentation: largest noise, relative to the images' contrast.")

    num_workers: int = Field(0, ge=0, description="Processes that read images ahead.")
    cache_megabytes: int = Field(1024, ge=0, description="Memory for images once read, for each of the two sets.")
    shown: int = Field(4, ge=0, description="How many held-out images are shown with their predictions.")
    worst: int = Field(5, ge=0, description="How many of the worst images a report pictures.")
    threshold: float = Field(0.5, gt=0, lt=1, description="Of the probability, in masks that are written or shown.")

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        for one, other in (("image_path", "gt_path"), ("val_image_path", "val_gt_path")):
            if (getattr(self, one) is None) != (getattr(self, other) is None):
                raise ValueError(f"{one} and {other} are given together or not at all")
        if self.splits and self.image_path is None:
            raise ValueError("splits says what of image_path is held out, and image_path is not given")
        if self.splits and self.val_image_path:
            raise ValueError("val_image_path and splits exclude one another")
        return self


def build(config: Config) -> mltrain.Task:
    """Read the folders and make network, optimizer and schedule.

    Raises:
        mltrain.errors.DataError: images and masks that do not fit together, all of them named.
    """
    train, val = read_samples(config)
    size = config.image_size or natural_size(train)
    if config.quarter_turns and size[0] != size[1]:
        raise ConfigError(
            f"quarter_turns needs a square image_size, and it is {size[0]}x{size[1]}; try image_size={size[0]}."
        )
    channels = config.channels or max(item.channels for item in train)
    mean, std = intensity(train)
    augmentation = Augmentation(
        flips=config.flips,
        quarter_turns=config.quarter_turns,
        brightness=config.brightness,
        noise=config.noise,
        deviation=std,
    )
    room = config.cache_megabytes * 2**20
    loader = mltrain.ResumableLoader(
        SegmentationData(train, size, channels, augmentation, cache_bytes=room),
        config.batch_size,
        num_workers=config.num_workers,
    )
    held_out = DataLoader(SegmentationData(val, size, channels, cache_bytes=room), config.batch_size)

    net = SegmentationNet(channels, size, mean, std)
    loss = DiceCELoss(sigmoid=True)
    optimizer = AdamW(net.parameters(), config.lr, weight_decay=config.weight_decay)
    # One more than there are steps: the schedule is also stepped after the last, and past its end it would rise again.
    scheduler = OneCycleLR(optimizer, config.lr, total_steps=config.epochs * len(loader) + 1)
    step = mltrain.Supervised(net, loss, optimizer, scheduler=scheduler, clip=config.clip, metrics=overlap_metrics())
    segmenter = Segmenter(net, size, config.threshold)
    return mltrain.Task(
        step,
        loader,
        evaluate=Validation(net, loss, held_out),
        images=Gallery(segmenter, val, config.test_image_dir, config.shown),
        report=Report(segmenter, val, config.worst),
    )


def read_samples(config: Config) -> split.Parts:
    """The samples to train on and those held out, every file of which was read once."""
    own, own_val = _folders(config.image_path, config.gt_path), _folders(config.val_image_path, config.val_gt_path)
    if own is not None and own_val is None:
        (samples,) = _surveyed(config, own)
        if config.splits is not None:
            return split.tabled(samples, config.splits)
        return split.drawn(samples, config.val_fraction, config.split_seed, config.group_regex)
    given = SAMPLES[config.sample]
    train, val = _surveyed(config, own or given().train, own_val or given().val)
    return train, val


def _folders(images: Path | None, masks: Path | None) -> FolderPair | None:
    return None if images is None or masks is None else FolderPair(images=images, masks=masks)


def _surveyed(config: Config, *folders: FolderPair) -> list[tuple[Sample, ...]]:
    found = [survey(pair, empty_masks=config.empty_masks) for pair in folders]
    require_sound(zip(folders, found, strict=True))
    return [one.samples for one in found]


def intensity(samples: Sequence[Sample]) -> tuple[float, float]:
    """Mean and standard deviation of all pixels of the images, every image with the same weight."""
    mean = sum(item.mean for item in samples) / len(samples)
    mean_square = sum(item.mean_square for item in samples) / len(samples)
    return mean, max(mean_square - mean**2, 1e-12) ** 0.5
