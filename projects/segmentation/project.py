"""Image segmentation, trained on folders of images and masks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BeforeValidator, Field, field_validator, model_validator
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

import mltrain
from mltrain.errors import ConfigError
from projects.segmentation import split
from projects.segmentation.augment import Augmentation, Flips
from projects.segmentation.dataset import OneSize, SegmentationData
from projects.segmentation.folders import EmptyMasks, Sample, require_sound, survey_all
from projects.segmentation.framing import STRIDE, crops_an_epoch, framing, windowed
from projects.segmentation.gallery import Gallery
from projects.segmentation.labels import Declaration
from projects.segmentation.loss import DiceAndEntropy
from projects.segmentation.metrics import overlap_metrics
from projects.segmentation.model import Probabilities, SegmentationNet
from projects.segmentation.montage import montage
from projects.segmentation.pairing import MASK_SUFFIX, FolderPair
from projects.segmentation.predict import Segmenter
from projects.segmentation.report import Report
from projects.segmentation.sample import blobs, mni152
from projects.segmentation.summary import summary
from projects.segmentation.validation import Validation

SAMPLES = {"mni152": mni152, "blobs": blobs}


def _sides(given: Any) -> Any:
    """Read ``128`` as a square, ``112x96`` as height and width."""
    if isinstance(given, str):
        given = given.lower().split("x")
        given = given * 2 if len(given) == 1 else given
    return (given, given) if isinstance(given, int) else given


def _number(given: Any) -> Any:
    """Convert text to a number; pydantic does not for a choice between numbers."""
    return int(given) if isinstance(given, str) and given.isdecimal() else given


Side = Annotated[int, Field(ge=16, multiple_of=STRIDE)]
ImageSize = Annotated[tuple[Side, Side], BeforeValidator(_sides)]
Channels = Annotated[Literal[1, 3], BeforeValidator(_number)]


class Config(mltrain.Config):
    """Data, network and training. ``config.yaml`` explains every key at length."""

    num_threads: int | None = Field(1, ge=1, description="Threads of torch on the CPU. Default: torch's own choice.")
    epochs: int = Field(40, ge=0, description="Total number of epochs, also when a run is resumed.")
    best_metric: str = Field("val/f1", min_length=1, description="The metric that decides which checkpoint is best.")
    best_mode: Literal["min", "max"] = Field("max", description="Whether a lower or higher value is better.")

    image_path: Path | None = Field(
        None, description="Folder of training images. Default: the data set named by sample."
    )
    gt_path: Path | None = Field(
        None, description="Folder of the training masks, paired by stem (a.jpg with a.png or a_mask.png)."
    )
    mask_suffix: str = Field(
        MASK_SUFFIX,
        description="Optional ending of the stems of masks: a_mask.png belongs to a.jpg.",
    )
    foreground: str | None = Field(
        None, description="Mask values of the foreground: nonzero, 1,3, 128-255 or #ff0000. Default: the higher of two."
    )
    void: str | None = Field(None, description="Mask values excluded from the loss and all metrics, such as 255.")
    classes: tuple[str, ...] | None = Field(
        None, description="Several classes by mask value: [1,2], [liver=1,vessel=2-4], or names for 1, 2, …"
    )
    val_image_path: Path | None = Field(None, description="Folder of held-out images. Default: split from image_path.")
    val_gt_path: Path | None = Field(None, description="Folder of the held-out masks.")
    test_image_dir: Path | None = Field(None, description="Folder of images without masks to show predictions for.")
    sample: Literal["mni152", "blobs"] = Field("mni152", description="Sample data set used without image_path.")

    splits: Path | None = Field(None, description="CSV with the columns stem and split (train, val or test).")
    val_fraction: float = Field(0.2, gt=0, lt=1, description="Share of the samples to hold out at random.")
    group_regex: str | None = Field(None, description="Samples whose stems have the same match are not divided.")
    split_seed: int = Field(0, ge=0, description="Seed of this draw, so that runs with another seed hold out the same.")
    empty_masks: EmptyMasks = Field("refuse", description="What to do with masks without foreground.")

    resize: Literal["auto", "stretch", "none"] = Field(
        "auto",
        description="Whether to stretch every image to image_size; auto stretches if image_size is given.",
    )
    image_size: ImageSize | None = Field(
        None,
        description="128, or height x width as 112x96, multiples of 8. Default with stretch: the median, 256 at most.",
    )
    crop_size: ImageSize | None = Field(
        None,
        description="Size of random crops in training and of windows in prediction. Default: the median image, 256 at most.",
    )
    crops: int | None = Field(
        None, ge=1, description="Crops per image and epoch. Default: as many as cover the image, 16 at most."
    )
    channels: Channels | None = Field(
        None, description="1 for grey, 3 for colour. Default: grey if all images are grey."
    )
    batch_size: int = Field(8, ge=1, description="Images per step.")
    lr: float = Field(5e-3, gt=0, description="The highest learning rate of the one-cycle schedule.")
    weight_decay: float = Field(1e-2, ge=0, description="Weight decay of AdamW.")
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient; larger ones are clipped.")

    flips: Flips = Field("both", description="Augmentation: none, horizontal or both.")
    quarter_turns: bool = Field(
        False, description="Augmentation for images without an orientation; needs a square size."
    )
    brightness: float = Field(0.0, ge=0, description="Augmentation: largest relative change of brightness.")
    noise: float = Field(0.0, ge=0, description="Augmentation: largest noise, relative to the images' contrast.")

    num_workers: int = Field(0, ge=0, description="Processes that read images in advance.")
    cache_megabytes: int = Field(1024, ge=0, description="Memory for cached images of each of the two sets.")
    shown: int = Field(4, ge=0, description="Number of held-out images to show with their predictions.")
    worst: int = Field(5, ge=0, description="Number of worst images that a report shows.")
    threshold: float = Field(
        0.5, gt=0, lt=1, description="Foreground is where its probability is above this, in written masks."
    )

    @field_validator("foreground", "void", mode="before")
    @classmethod
    def _as_text(cls, given: Any) -> Any:
        """Accept ``1`` and ``[1, 3]`` like the text ``1,3``."""
        if isinstance(given, (list, tuple)):
            given = ",".join(map(str, given))
        return str(given) if isinstance(given, int) and not isinstance(given, bool) else given

    @field_validator("classes", mode="before")
    @classmethod
    def _as_texts(cls, given: Any) -> Any:
        """Accept ``liver=1,vessel=2`` and ``{liver: 1}`` as a list of texts."""
        if isinstance(given, str):
            given = given.strip("[]").split(",")
        if isinstance(given, Mapping):
            given = [f"{name}={value}" for name, value in given.items()]
        return tuple(str(one).strip() for one in given) if isinstance(given, (list, tuple)) else given

    @model_validator(mode="before")
    @classmethod
    def _of_an_earlier_version(cls, given: Any) -> Any:
        """Read a configuration without ``resize`` as ``resize=stretch``, like earlier versions."""
        if isinstance(given, Mapping) and "image_size" in given and "resize" not in given:
            return {**given, "resize": "stretch"}
        return given

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        for one, other in (("image_path", "gt_path"), ("val_image_path", "val_gt_path")):
            if (getattr(self, one) is None) != (getattr(self, other) is None):
                raise ValueError(f"{one} and {other} are given together or not at all")
        if self.splits and self.image_path is None:
            raise ValueError("splits divides the images of image_path, and image_path is not given")
        if self.splits and self.val_image_path:
            raise ValueError("val_image_path and splits exclude one another")
        if self.resize == "none" and self.image_size is not None:
            raise ValueError("image_size has no meaning with resize=none. Try: crop_size")
        sides = zip(self.crop_size or (), self.image_size or (), strict=False)
        if any(crop > side for crop, side in sides):
            raise ValueError("crop_size is larger than image_size, from which crops are cut")
        self.declaration  # noqa: B018 - raises for values that cannot be read
        return self

    @property
    def declaration(self) -> Declaration:
        """Meaning of mask values, by ``foreground``, ``void`` and ``classes``."""
        return Declaration.of(self.foreground, self.void, self.classes)

    def sample_data(self) -> dict[str, Path | str]:
        """Return the folders of the sample data; none if ``image_path`` is given."""
        if self.image_path is not None:
            return {}
        given = SAMPLES[self.sample]()
        held_out = {} if self.val_image_path is not None else {f"val {self.sample}": given.val.images.parent}
        return {self.sample: given.train.images.parent, **held_out}


def build(config: Config) -> mltrain.Task:
    """Read the folders and build network, optimizer and schedule.

    Raises:
        mltrain.errors.DataError: images and masks do not fit together; the error names all of them.
    """
    train, val = read_samples(config)
    frame = framing(
        train,
        resize=config.resize,
        image_size=config.image_size,
        crop_size=config.crop_size,
        square=config.quarter_turns,
    )
    if config.quarter_turns and frame.window[0] != frame.window[1]:
        key = "image_size" if frame.window == frame.stretched_to else "crop_size"
        raise ConfigError(
            f"quarter_turns needs a square {key}; got {frame.window[0]}x{frame.window[1]}. Try: {key}={frame.window[0]}"
        )
    labels = train[0].labels
    channels = config.channels or max(item.channels for item in train)
    mean, std = intensity(train)
    net = SegmentationNet(channels, frame.window, mean, std, framing=frame, values=labels.written_values)
    segmenter = Segmenter(net, threshold=config.threshold)
    loader, held_out = _loaders(config, train, val, net, std)
    loss = DiceAndEntropy()
    optimizer = AdamW(net.parameters(), config.lr, weight_decay=config.weight_decay)
    # One more than the steps: the schedule also steps after the last one, and past its end it would rise again.
    scheduler = OneCycleLR(optimizer, config.lr, total_steps=config.epochs * len(loader) + 1)
    step = mltrain.Supervised(
        net, loss, optimizer, scheduler=scheduler, clip=config.clip, metrics=overlap_metrics(labels.names)
    )
    return mltrain.Task(
        step,
        loader,
        evaluate=Validation(
            net, loss, held_out, labels.names, lambda images: windowed(net, images, net.framing.window)
        ),
        images=Gallery(segmenter, val, config.test_image_dir, config.shown),
        report=Report(segmenter, val, config.worst),
        preview=lambda: {"data/pairs": montage(train)},
        summary=summary(train, val, frame),
        predictor=lambda: (Probabilities(net), torch.zeros(2, net.channels, *net.framing.window)),
    )


def _loaders(
    config: Config, train: Sequence[Sample], val: Sequence[Sample], net: SegmentationNet, std: float
) -> tuple[mltrain.ResumableLoader, DataLoader[tuple[Tensor, Tensor]]]:
    """Return the loaders of augmented training and of held-out batches."""
    frame, channels, cache_bytes = net.framing, net.channels, config.cache_megabytes * 2**20
    augmentation = Augmentation(
        crop=frame.window if frame.crops else None,
        flips=config.flips,
        quarter_turns=config.quarter_turns,
        brightness=config.brightness,
        noise=config.noise,
        deviation=std,
    )
    repeat = (config.crops or crops_an_epoch(train, frame)) if frame.crops else 1
    loader = mltrain.ResumableLoader(
        SegmentationData(train, frame.stretched_to, channels, augmentation, cache_bytes=cache_bytes, repeat=repeat),
        config.batch_size,
        num_workers=config.num_workers,
    )
    # An evaluation of a checkpoint on other data scales them as that checkpoint's training did.
    held_out = SegmentationData(val, lambda: net.framing.stretched_to, channels, cache_bytes=cache_bytes)
    return loader, DataLoader(held_out, batch_sampler=OneSize(held_out, config.batch_size))


def read_samples(config: Config) -> split.Parts:
    """Read every file once, and return training and held-out samples."""
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
    found = survey_all(
        folders, empty_masks=config.empty_masks, declaration=config.declaration, mask_suffix=config.mask_suffix
    )
    require_sound(zip(folders, found, strict=True))
    return [one.samples for one in found]


def intensity(samples: Sequence[Sample]) -> tuple[float, float]:
    """Return mean and standard deviation of the pixels; every image has the same weight."""
    mean = sum(item.mean for item in samples) / len(samples)
    mean_square = sum(item.mean_square for item in samples) / len(samples)
    return mean, max(mean_square - mean**2, 1e-12) ** 0.5
