"""The classifier: a recurrent network over normalised sensor windows."""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mltrain.errors import StateMismatch
from mltrain.restoring.modules import fitted
from projects.tool_wear.kernels import Kernels
from projects.tool_wear.scaler import Scaler


class StackedLSTM(nn.LSTM):
    """An LSTM with dropout from torch's generator on every device.

    cuDNN uses its own generator, which torch cannot save, so a resumed training would draw other numbers. torch's own kernels
    are slower and are used only in training with dropout.
    """

    def forward(self, *inputs: Any) -> Any:
        """Return states (N, T, H) and the last ones, as :class:`torch.nn.LSTM` does."""
        if inputs[0].device.type == "cuda" and self.training and self.dropout:
            with torch.backends.cudnn.flags(enabled=False):
                return super().forward(*inputs)
        return super().forward(*inputs)


class WearLSTM(nn.Module):
    """A stacked LSTM (Hochreiter and Schmidhuber, 1997), with random convolution kernels beside it.

    The head sees the mean of the LSTM's states over time, for the strength of the signals over the whole window; the last state,
    for their course; and the features of the kernels. Steps of NaN are padding and have no effect.

    Args:
        scaler: normalisation of the C raw channels, saved with the weights.
        classes: number of outputs.
        hidden: width of the hidden state.
        layers: number of LSTM layers.
        dropout: dropout rate between the layers and before the head.
        kernels: random convolutions of the normalised signals. If ``None``, the head sees the LSTM alone.
    """

    def __init__(
        self,
        scaler: Scaler,
        classes: int,
        *,
        hidden: int = 64,
        layers: int = 2,
        dropout: float = 0.4,
        kernels: Kernels | None = None,
    ) -> None:
        super().__init__()
        self.classes = classes
        self.scaler = scaler
        # PyTorch warns of dropout with a single layer, because it only applies between layers.
        between = dropout if layers > 1 else 0.0
        self.lstm = StackedLSTM(scaler.mean.numel(), hidden, layers, batch_first=True, dropout=between)
        self.kernels = kernels
        features = 2 * hidden + (0 if kernels is None else len(kernels.mean))
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(features, classes))

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> Self:
        """Return a network with the weights of a ``state_dict``; their shapes determine its sizes.

        Raises:
            StateMismatch: they are not the weights of such a network.
        """
        try:
            mean, std, head = weights["scaler.mean"], weights["scaler.std"], weights["head.1.weight"]
            hidden = weights["lstm.weight_hh_l0"].shape[1]
            drawn = any(name.startswith("kernels.") for name in weights)
            parts = [weights[f"kernels.{name}"] for name in ("weight", "bias", "mean", "std") if drawn]
        except KeyError as error:
            raise StateMismatch("the tool wear network", missing=[str(error.args[0])]) from None
        layers = sum(name.startswith("lstm.weight_hh_l") for name in weights)
        kernels = Kernels(*parts) if parts else None
        model = cls(Scaler(mean, std), len(head), hidden=hidden, layers=layers, kernels=kernels)
        model.load_state_dict(fitted(weights, model))
        return model

    def forward(self, signals: Tensor) -> Tensor:
        """Return logits of shape (N, classes) for raw signals of shape (N, T, C); steps of NaN at the end are padding."""
        inside = ~signals[..., 0].isnan()
        scaled = self.scaler(signals)
        if not torch.compiler.is_exporting() and bool(inside.all()):
            states, _ = self.lstm(scaled)
            features = [states.mean(dim=1), states[:, -1]]
        else:
            scaled = torch.where(inside[..., None], scaled, 0.0)
            states, _ = self.lstm(scaled)
            lengths = inside.sum(dim=1)
            mean = torch.where(inside[..., None], states, 0.0).sum(dim=1) / lengths[:, None]
            features = [mean, states[torch.arange(states.shape[0], device=states.device), lengths - 1]]
        if self.kernels is not None:
            features.append(self.kernels(scaled, inside))
        logits: Tensor = self.head(torch.cat(features, dim=1))
        return logits


def class_weights(labels: NDArray[np.int64], classes: int) -> Tensor:
    """Return weights (classes,) that balance the classes: N / (classes * N_c).

    It is the "balanced" rule of King and Zeng, "Logistic Regression in Rare Events Data" (2001). A class without windows
    has the weight 0.
    """
    counts = np.bincount(labels, minlength=classes)
    weights = np.divide(len(labels), classes * counts, out=np.zeros(classes), where=counts > 0)
    return torch.from_numpy(weights).float()


@torch.no_grad()
def logits_of(model: nn.Module, signals: NDArray[np.float32], batch_size: int = 512) -> Tensor:
    """Return the logits (N, classes) of raw signals (N, T, C), on the CPU.

    The model computes them in batches on its device, in evaluation mode, and then returns to its former mode.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        batches = [model(batch.to(device)).cpu() for batch in torch.split(torch.from_numpy(signals), batch_size)]
    finally:
        model.train(training)
    return torch.cat(batches)
