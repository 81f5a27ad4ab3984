"""The classifier: a recurrent network over normalised sensor windows."""

from collections.abc import Mapping
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mltrain.errors import StateMismatch
from mltrain.restoring.modules import fitted
from projects.tool_wear.scaler import Scaler


class WearLSTM(nn.Module):
    """A stacked LSTM (Hochreiter and Schmidhuber, 1997) whose head sees the mean over time and the last hidden state.

    The mean tells how strong the signals are over the whole window, the last state how they went on.

    Args:
        scaler: normalisation of the C channels; it takes raw signals, and is saved with the weights.
        classes: how many classes there are.
        hidden: width of the hidden state.
        layers: how many LSTM layers are stacked.
        dropout: share of the values dropped between the layers and before the head.
    """

    def __init__(
        self, scaler: Scaler, classes: int, *, hidden: int = 64, layers: int = 2, dropout: float = 0.4
    ) -> None:
        super().__init__()
        self.classes = classes
        self.scaler = scaler
        # PyTorch warns when one layer alone is given a dropout, which it would only apply between layers.
        between = dropout if layers > 1 else 0.0
        self.lstm = nn.LSTM(scaler.mean.numel(), hidden, layers, batch_first=True, dropout=between)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * hidden, classes))

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> Self:
        """Return a network with these weights, as its ``state_dict`` names them; its sizes are read off their shapes.

        Raises:
            StateMismatch: they are not the weights of such a network.
        """
        try:
            mean, std, head = weights["scaler.mean"], weights["scaler.std"], weights["head.1.weight"]
            hidden = weights["lstm.weight_hh_l0"].shape[1]
        except KeyError as error:
            raise StateMismatch("the tool wear network", missing=[str(error.args[0])]) from None
        layers = sum(name.startswith("lstm.weight_hh_l") for name in weights)
        model = cls(Scaler(mean, std), len(head), hidden=hidden, layers=layers)
        model.load_state_dict(fitted(weights, model))
        return model

    def forward(self, signals: Tensor) -> Tensor:
        """Return logits of shape (N, classes) for raw signals of shape (N, T, C)."""
        states, _ = self.lstm(self.scaler(signals))
        logits: Tensor = self.head(torch.cat([states.mean(dim=1), states[:, -1]], dim=1))
        return logits


def class_weights(labels: NDArray[np.int64], classes: int) -> Tensor:
    """Return a weight for each class, shape (classes,), so that all weigh the same in the loss: N / (classes * N_c).

    It is the "balanced" rule of King and Zeng, "Logistic Regression in Rare Events Data" (2001). A class without a window
    weighs nothing.
    """
    counts = np.bincount(labels, minlength=classes)
    weights = np.divide(len(labels), classes * counts, out=np.zeros(classes), where=counts > 0)
    return torch.from_numpy(weights).float()


@torch.no_grad()
def logits_of(model: nn.Module, signals: NDArray[np.float32], batch_size: int = 512) -> Tensor:
    """Return the logits (N, classes) of raw signals (N, T, C) on the CPU, computed in batches on the model's device.

    The model is put into evaluation mode, and back into the mode that it was in.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        batches = [model(batch.to(device)).cpu() for batch in torch.split(torch.from_numpy(signals), batch_size)]
    finally:
        model.train(training)
    return torch.cat(batches)
