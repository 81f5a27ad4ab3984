"""Network, loss, optimizer and batches for some training windows."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

import mltrain
from projects.tool_wear.kernels import Kernels
from projects.tool_wear.model import WearLSTM, class_weights
from projects.tool_wear.regressor import OUTPUTS, MedianError, PinballLoss, WearRegressor
from projects.tool_wear.scaler import Scaler
from projects.tool_wear.windows import Windows

LEAST_BATCH = 8
"""Smallest batch to which batches are reduced so that an epoch has more steps."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Hyper-parameters of network and training; ``config.yaml`` explains each."""

    hidden: int
    layers: int
    dropout: float
    batch_size: int
    lr: float
    weight_decay: float
    clip: float
    balanced: bool
    gain_jitter: float
    kernels: int
    epoch_steps: int

    @classmethod
    def of(cls, source: object) -> Self:
        """Return the recipe of a configuration or of a classifier."""
        return cls(**{field.name: getattr(source, field.name) for field in fields(cls)})


@dataclass(frozen=True)
class Learner:
    """A classifier with its training step and batches.

    Attributes:
        model: takes raw windows and gives logits.
        step: the training step.
        loader: the batches.
        weights: weight of each class in the loss, shape (classes,), on the CPU.
    """

    model: WearLSTM
    step: mltrain.Supervised
    loader: mltrain.ResumableLoader
    weights: Tensor

    @classmethod
    def on(cls, train: Windows, recipe: Recipe) -> Self:
        """Return a new network, its step and its batches; torch's seed determines the weights.

        The scaler is fitted on these windows and part of the network. The learning rate is constant: warm-up and decay
        reached no better loss on unseen tools, and a constant rate needs no plan when ``epochs`` grows on a resume.
        """
        classes = len(train.classes)
        model = network_on(train, classes, recipe)
        weights = class_weights(train.labels, classes) if recipe.balanced else torch.ones(classes)
        step = mltrain.Supervised(
            model,
            nn.CrossEntropyLoss(weights.clone()),
            torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay),
            clip=recipe.clip,
            metrics={
                "accuracy": MulticlassAccuracy(classes, average="micro"),
                "f1": MulticlassF1Score(classes, average="macro"),
            },
        )
        return cls(model, step, loader_on(train, train.labels, recipe), weights)


@dataclass(frozen=True)
class WearLearner:
    """A regression of wear with its training step and batches.

    Attributes:
        model: takes raw windows and gives quantiles of their wear [um].
        step: the training step.
        loader: the batches.
        loss: loss of the quantiles, in standard deviations of the wear of the training windows.
    """

    model: WearRegressor
    step: mltrain.Supervised
    loader: mltrain.ResumableLoader
    loss: PinballLoss

    @classmethod
    def on(cls, train: Windows, recipe: Recipe, coverage: float) -> Self:
        """Return a new network, its step and its batches.

        Args:
            train: windows with a wear each.
            recipe: hyper-parameters; ``balanced`` has no effect.
            coverage: share of the windows between the two outer quantiles.
        """
        wear = torch.from_numpy(train.wear).double()
        model = WearRegressor(network_on(train, OUTPUTS, recipe), wear.mean(), wear.std(correction=0))
        loss = PinballLoss.around(coverage, float(model.std))
        step = mltrain.Supervised(
            model,
            loss,
            torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay),
            clip=recipe.clip,
            metrics={"mae_um": MedianError()},
        )
        return cls(model, step, loader_on(train, train.wear, recipe), loss)


def network_on(train: Windows, outputs: int, recipe: Recipe) -> WearLSTM:
    """Return a new network; scaler and kernels fit these windows."""
    scaler = Scaler.fitted(train.signals)
    return WearLSTM(
        scaler,
        outputs,
        hidden=recipe.hidden,
        layers=recipe.layers,
        dropout=recipe.dropout,
        kernels=Kernels.drawn(recipe.kernels, scaler(torch.from_numpy(train.signals))) if recipe.kernels else None,
    )


def loader_on(
    train: Windows, targets: NDArray[np.int64] | NDArray[np.float32], recipe: Recipe
) -> mltrain.ResumableLoader:
    """Return the batches of windows and their targets (N,)."""
    batch_size, passes = epoch_plan(len(train), recipe.batch_size, recipe.epoch_steps)
    return mltrain.ResumableLoader(TrainingWindows(train, targets, recipe.gain_jitter, passes), batch_size)


def epoch_plan(windows: int, batch_size: int, least_steps: int) -> tuple[int, int]:
    """Return batch size and passes for at least ``least_steps`` steps.

    With epochs of one or two steps, ``epochs`` and ``early_stopping_patience`` would have little meaning. Smaller batches
    come first, down to :data:`LEAST_BATCH`, since they also generalise better (Keskar et al., "On Large-Batch Training for
    Deep Learning", ICLR 2017); then several passes.
    """
    if math.ceil(windows / batch_size) >= least_steps:
        return batch_size, 1
    batch_size = min(batch_size, max(LEAST_BATCH, windows // least_steps))
    passes = 1
    while math.ceil(windows * passes / batch_size) < least_steps:
        passes += 1
    return batch_size, passes


class TrainingWindows(Dataset[tuple[Tensor, Tensor]]):
    """Training windows, each draw with random gains of its channels.

    The gains differ like those of newly mounted sensors.

    Args:
        windows: the signals.
        targets: a class (int64) or wear [um] (float32) for each, shape (N,).
        spread: standard deviation of the relative gain; random numbers are from torch's global generator.
        passes: number of times that each window is in an epoch.
    """

    def __init__(
        self,
        windows: Windows,
        targets: NDArray[np.int64] | NDArray[np.float32],
        spread: float,
        passes: int = 1,
    ) -> None:
        self._signals = torch.from_numpy(windows.signals)
        self._targets = torch.from_numpy(targets)
        self._spread = spread
        self._passes = passes

    def __len__(self) -> int:
        return len(self._signals) * self._passes

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return signals (T, C), float32, and their target, shape ()."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Return several items at once: one draw of random numbers for a whole batch."""
        chosen = torch.as_tensor(indices) % len(self._signals)
        signals = self._signals[chosen]
        gains = 1.0 + self._spread * torch.randn(len(chosen), 1, signals.shape[2])
        return list(zip(signals * gains, self._targets[chosen], strict=True))


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Use this number of CPU threads within a block. If ``None``, torch's setting applies."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def brief(measured: Mapping[str, float]) -> str:
    """Return an epoch's main metrics as a line."""
    return ", ".join(
        f"{name} {measured[name]:.4g}" for name in ("train/loss", "val/loss", "val/accuracy") if name in measured
    )
