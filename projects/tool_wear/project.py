"""Training of tool wear: windows, network and evaluation.

``mltrain train tool_wear`` trains on generated tools, and with ``data_path=…`` on recordings in the layout of PHM 2010 or on
an NPZ file. ``config.yaml`` explains every key.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator
from torch import nn

import mltrain
from projects.sample_cache import cache_folder
from projects.tool_wear import npz, phm, synthetic, wear_table
from projects.tool_wear.baselines import Baselines
from projects.tool_wear.held_out import HeldOut
from projects.tool_wear.held_out_wear import HeldOutWear
from projects.tool_wear.intervals import least_windows
from projects.tool_wear.learner import Learner, Recipe, WearLearner
from projects.tool_wear.regressor import WearInterval
from projects.tool_wear.wear_baselines import WearBaselines
from projects.tool_wear.windows import UNLABELLED, Split, Windowing, Windows, refuse, split_by_tool

SYNTHETIC_VAL, SYNTHETIC_TEST = ("c5",), ("c6",)


class Config(mltrain.Config):
    """Target, data, network and training. ``config.yaml`` explains every key at length."""

    num_threads: int | None = Field(1, ge=1, description="Threads of torch on the CPU. Default: torch's own choice.")
    epochs: int = Field(25, ge=0, description="Total number of epochs, also when a run is resumed.")
    early_stopping_patience: int | None = Field(
        10, ge=1, description="Stop after N evaluations without a lower val/loss."
    )

    target: Literal["class", "wear"] = Field("class", description="What to learn: wear classes, or the wear in um.")
    coverage: float = Field(
        0.9, ge=0.01, le=0.99, description="Share of windows that the interval of target=wear covers."
    )

    data_path: Path | None = Field(None, description="A PHM-2010 folder or an NPZ file. Default: generated tools.")
    cache_path: Path | None = Field(None, description="Folder for cached windows. Default: the user's cache folder.")
    data_seed: int = Field(0, ge=0, description="Seed of the generated tools.")
    cuts: int = Field(315, ge=2, description="Cuts in the life of a generated tool.")
    val_tools: tuple[str, ...] = Field((), description="Tools that choose the best epoch. Default: the last one.")
    test_tools: tuple[str, ...] = Field((), description="Tools that only the report evaluates.")

    window_steps: int = Field(128, ge=8, description="Samples in a window.")
    rate: float = Field(5000.0, gt=0, description="Sampling rate of a window [Hz].")
    windows_per_cut: int = Field(2, ge=1, description="Windows cut from each recording.")
    wear_bins: tuple[float, ...] = Field((90.0, 140.0), min_length=1, description="Limits of the wear classes [um].")
    class_names: tuple[str, ...] = Field((), description="Names of the wear classes. Default: from their limits.")
    wear_of: Literal["mean", "max"] = Field("mean", description="Mean or largest flank wear of the flutes.")
    wear_unit: Literal["auto", "um", "mm"] = Field("auto", description="Unit of wear tables; auto recognises mm.")

    rocket_kernels: int = Field(2000, ge=0, description="Kernels of the baseline ROCKET in reports; 0 leaves it out.")

    batch_size: int = Field(64, ge=1, description="Largest number of windows in a batch.")
    epoch_steps: int = Field(1, ge=1, description="Least steps per epoch, by smaller batches, then more passes.")
    lr: float = Field(2e-3, gt=0, description="Learning rate of AdamW.")
    weight_decay: float = Field(0.1, ge=0, description="Weight decay of AdamW.")
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient; larger ones are clipped.")
    hidden: int = Field(64, ge=1, description="Width of the LSTM.")
    layers: int = Field(2, ge=1, description="Number of LSTM layers.")
    kernels: int = Field(0, ge=0, description="Random convolution kernels beside the LSTM; 0: none.")
    dropout: float = Field(0.4, ge=0, lt=1, description="Dropout rate between the layers and before the head.")
    balanced: bool = Field(True, description="Weigh classes in the loss by how rare they are.")
    gain_jitter: float = Field(0.03, ge=0, description="Random gain of each channel in training, as a relative spread.")

    @field_validator("val_tools", "test_tools", "class_names", mode="before")
    @classmethod
    def _as_names(cls, value: object) -> object:
        """Accept names that YAML reads as numbers."""
        if isinstance(value, list | tuple):
            return [str(name) if isinstance(name, int) else name for name in value]
        return value

    @field_validator("val_tools", "test_tools", "wear_bins", "class_names", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        """Accept ``c5,c6``, ``90 140`` and single values beside YAML's lists."""
        if isinstance(value, str):
            return value.replace(",", " ").split()
        return [value] if isinstance(value, int | float) else value

    @field_validator("wear_bins")
    @classmethod
    def _rising(cls, limits: tuple[float, ...]) -> tuple[float, ...]:
        if problem := wear_table.limits_problem(limits):
            raise ValueError(problem)
        return limits

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.class_names and len(set(self.class_names)) != len(self.wear_bins) + 1:
            raise ValueError(
                f"class_names: {len(self.wear_bins)} limits (wear_bins) make {len(self.wear_bins) + 1} classes, and "
                f"{len(set(self.class_names))} different names are given"
            )
        return self

    @property
    def windowing(self) -> Windowing:
        """How recordings become labelled windows."""
        return Windowing(
            steps=self.window_steps,
            rate=self.rate,
            per_cut=self.windows_per_cut,
            bins=self.wear_bins,
            wear_of=self.wear_of,
            wear_unit=self.wear_unit,
            class_names=self.class_names,
        )

    def sample_data(self) -> dict[str, Path | str]:
        """Return the expression that generates the tools; none if ``data_path`` is given."""
        if self.data_path is not None:
            return {}
        arguments = f"{self.windowing}, seed={self.data_seed}, cuts={self.cuts}"
        return {"generated tools": f"projects.tool_wear.synthetic.generate({arguments})"}


def build(config: Config) -> mltrain.Task:
    """Build network, data and evaluation; see :class:`~projects.tool_wear.learner.Learner`."""
    split, recipe = split_of(config), Recipe.of(config)
    learner: Learner | WearLearner
    held_out: HeldOut | HeldOutWear
    if config.target == "wear":
        learner = WearLearner.on(split.train, recipe, config.coverage)
        baselines = wear_baselines_of(config, split)
        held_out = HeldOutWear(learner.model, split, learner.loss, baselines, config.coverage)
    else:
        learner = Learner.on(split.train, recipe)
        held_out = HeldOut(learner.model, split, learner.weights, baselines_of(config, split))
    return mltrain.Task(
        learner.step,
        learner.loader,
        evaluate=held_out.evaluate,
        images=held_out.images,
        report=held_out.report,
        predictor=lambda: (
            WearInterval(learner.model)
            if isinstance(learner, WearLearner)
            else nn.Sequential(learner.model, nn.Softmax(1)),
            torch.from_numpy(split.train.signals[:2]).float(),
        ),
    )


def baselines_of(config: Config, split: Split) -> Baselines:
    """Return the baselines of a classifier."""
    return Baselines(split.train, config.data_seed, config.rocket_kernels)


def wear_baselines_of(config: Config, split: Split) -> WearBaselines:
    """Return the baselines of a regression of wear."""
    return WearBaselines(split, config.coverage, config.data_seed, config.rocket_kernels)


def split_of(config: Config) -> Split:
    """Return the configured windows with a target, split by tool.

    Raises:
        DataError: they cannot be read or split.
    """
    val, test = config.val_tools, config.test_tools
    if config.data_path is None and not (val or test):
        val, test = SYNTHETIC_VAL, SYNTHETIC_TEST
    return split_known(config, known_of(config), val, test)


def known_of(config: Config) -> Windows:
    """Return the configured windows with known targets (class or wear).

    Raises:
        DataError: they cannot be read, or there are none.
    """
    windows = windows_of(config)
    if config.target == "class":
        return windows.where(windows.labels != UNLABELLED)
    without = replace(windows, classes=(), labels=np.full(len(windows), UNLABELLED))
    known = without.where(~np.isnan(windows.wear))
    if not len(known):
        refuse(
            "target=wear cannot be learnt",
            [
                f"{config.data_path} has no wear. Expected the array wear (N,) [um] in an NPZ file, or wear tables in a "
                "folder. Try: target=class"
            ],
        )
    return known


def split_known(config: Config, windows: Windows, val: Sequence[str], test: Sequence[str]) -> Split:
    """Split the windows of :func:`known_of` by tool; all tools not named are for training.

    Raises:
        DataError: they cannot be split, or too few are left to calibrate an interval.
    """
    split = split_by_tool(windows, val, test)
    least = least_windows(config.coverage)
    if config.target == "wear" and len(split.val) < least:
        refuse(
            "The interval of the wear cannot be calibrated",
            [
                f"the validation tools {', '.join(split.val.tool_names)} have {len(split.val)} windows, and a coverage of "
                f"{config.coverage:g} needs {least}. Try: a lower coverage, more val_tools, or more windows_per_cut"
            ],
        )
    return split


def windows_of(config: Config) -> Windows:
    """Return all configured windows, also those without a class.

    Raises:
        DataError: they cannot be read.
    """
    if config.data_path is None:
        return synthetic.generate(config.windowing, config.data_seed, cuts=config.cuts)
    if config.data_path.is_file():
        return npz.read(config.data_path, config.windowing)
    cache = config.cache_path or cache_folder() / "tool_wear"
    return phm.read_cached(config.data_path, config.windowing, cache)
