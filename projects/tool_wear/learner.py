"""From training windows to what is trained: network, loss, optimizer, and the order of the batches."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Self

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
"""A batch is not made smaller than this to give an epoch more steps."""


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
        """Return the recipe that the attributes of a configuration or of a classifier spell."""
        return cls(**{field.name: getattr(source, field.name) for field in fields(cls)})


@dataclass(frozen=True)
class Learner:
    """What is trained, and on what.

    Attributes:
        model: takes raw windows and gives logits.
        step: trains it on a batch.
        loader: the batches.
        weights: weight of each class in the loss, shape (classes,), on the CPU.
    """

    model: WearLSTM
    step: mltrain.Supervised
    loader: mltrain.ResumableLoader
    weights: Tensor

    @classmethod
    def on(cls, train: Windows, recipe: Recipe) -> Self:
        """Return a new network with what it needs to learn from these windows; weights follow from torch's seed.

        The scaler is fitted on these windows and part of the network. The learning rate is constant: warm-up and decay
        were tried and reached no better loss on unseen tools, and a constant one needs no plan when ``epochs`` grows on a
        resume.
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
    """What is trained where wear is estimated, and on what.

    Attributes:
        model: takes raw windows and gives quantiles of their wear [um].
        step: trains it on a batch.
        loader: the batches.
        loss: of the quantiles, in standard deviations of the wear of the training windows.
    """

    model: WearRegressor
    step: mltrain.Supervised
    loader: mltrain.ResumableLoader
    loss: PinballLoss

    @classmethod
    def on(cls, train: Windows, recipe: Recipe, coverage: float) -> Self:
        """Return a new network with what it needs to learn the wear of these windows, with the recipe of the classes.

        Args:
            train: windows with a wear each.
            recipe: ``balanced`` has no meaning here.
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
    """Return a new network with a scaler, and kernels where the recipe has some, that fit these windows."""
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
    """Return the batches of windows with their targets, shape (N,), as the recipe plans an epoch."""
    batch_size, passes = epoch_plan(len(train), recipe.batch_size, recipe.epoch_steps)
    return mltrain.ResumableLoader(TrainingWindows(train, targets, recipe.gain_jitter, passes), batch_size)


def optimizer_with(
    model: WearLSTM, state: Mapping[str, Any], *, lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return an optimizer of a network's parameters that has taken a state over."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    optimizer.load_state_dict(dict(state))
    return optimizer


def epoch_plan(windows: int, batch_size: int, least_steps: int) -> tuple[int, int]:
    """Return the batch size and how often an epoch passes over the windows, so that it has at least so many steps.

    An epoch of one or two steps makes ``epochs`` and ``early_stopping_patience`` mean next to nothing. Smaller batches
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
    """Training windows; each time one is fetched, its channels get random gains, as sensors do when they are mounted anew.

    Args:
        windows: the signals.
        targets: a class (int64) or wear [um] (float32) for each, shape (N,).
        spread: standard deviation of the relative gain; its numbers come from torch's global generator.
        passes: how often each window stands in an epoch.
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
    """Compute with so many CPU threads within a block; if ``None``, as torch is set."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def brief(measured: Mapping[str, float]) -> str:
    """Return the metrics of an epoch that a line of the log has room for."""
    return ", ".join(
        f"{name} {measured[name]:.4g}" for name in ("train/loss", "val/loss", "val/accuracy") if name in measured
    )
