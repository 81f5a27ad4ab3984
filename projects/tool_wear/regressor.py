"""The network that estimates wear in micrometres: the classifier's layers with three quantiles as outputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.regression import MeanAbsoluteError

from mltrain.errors import StateMismatch
from mltrain.restoring.modules import fitted
from projects.tool_wear.model import WearLSTM

OUTPUTS = 3
"""The lower quantile, the median, and the upper quantile."""

MEDIAN = 1
"""Index of the median among the outputs."""


class WearRegressor(nn.Module):
    """Estimates median wear and a quantile on either side; they never cross.

    Args:
        network: gives three outputs for raw signals.
        mean: mean wear of the training windows [um], shape ().
        std: standard deviation of that wear [um], shape (); 0 counts as 1.

    Attributes:
        margin: distance by which an interval extends beyond the outer quantiles [um], shape (). An evaluation sets it
            from the validation windows, and it is saved with the weights.
    """

    mean: Tensor
    std: Tensor
    margin: Tensor

    def __init__(self, network: WearLSTM, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", mean.clone().float())
        self.register_buffer("std", torch.where(std > 0, std, torch.ones_like(std)).float())
        self.register_buffer("margin", torch.zeros(()))

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> Self:
        """Return a network with the weights of a ``state_dict``; their shapes determine its sizes.

        Raises:
            StateMismatch: they are not the weights of such a network.
        """
        inner = {name.removeprefix("network."): one for name, one in weights.items() if name.startswith("network.")}
        if missing := [name for name in ("mean", "std", "margin") if name not in weights]:
            raise StateMismatch("the network that estimates tool wear", missing=missing)
        model = cls(WearLSTM.of(inner), weights["mean"], weights["std"])
        model.load_state_dict(fitted(weights, model))
        return model

    def forward(self, signals: Tensor) -> Tensor:
        """Return lower, median and upper quantile (N, 3) [um] of raw signals (N, T, C)."""
        below, median, above = self.network(signals).unbind(dim=1)
        quantiles = torch.stack([median - F.softplus(below), median, median + F.softplus(above)], dim=1)
        return self.mean + self.std * quantiles


class WearInterval(nn.Module):
    """Maps raw signals (N, T, C) to wear and its limits [um]: lower limit, estimate, upper limit, shape (N, 3)."""

    def __init__(self, model: WearRegressor) -> None:
        super().__init__()
        self.model = model

    def forward(self, signals: Tensor) -> Tensor:
        """Return limits with the margin of the network, like :func:`projects.tool_wear.intervals.widened`."""
        lower, median, upper = self.model(signals).unbind(dim=1)
        limits = (torch.minimum(lower - self.model.margin, median), torch.maximum(upper + self.model.margin, median))
        return torch.stack([limits[0], median, limits[1]], dim=1).clamp(min=0.0)


@dataclass(frozen=True)
class PinballLoss:
    """The mean quantile loss over the outputs (Koenker and Bassett, "Regression Quantiles", Econometrica 46, 1978).

    Attributes:
        levels: the quantile that each output estimates, from 0 to 1.
        unit: unit of the loss [um].
    """

    levels: tuple[float, ...]
    unit: float

    @classmethod
    def around(cls, coverage: float, unit: float) -> Self:
        """Return the loss of the median and an equal-tailed interval."""
        return cls(((1.0 - coverage) / 2.0, 0.5, (1.0 + coverage) / 2.0), unit)

    def __call__(self, quantiles: Tensor, wear: Tensor) -> Tensor:
        """Return the scalar loss of quantiles (N, levels) and wear (N,) [um]."""
        levels = torch.tensor(self.levels, device=quantiles.device)
        excess = (wear[:, None] - quantiles.float()) / self.unit
        return torch.maximum(levels * excess, (levels - 1.0) * excess).mean()


class MedianError(MeanAbsoluteError):
    """Mean absolute error of the median."""

    def update(self, preds: Tensor, target: Tensor) -> Any:
        """Add quantiles (N, 3) and wear (N,), both in um."""
        return super().update(preds[:, MEDIAN].contiguous(), target)
