"""Dice loss and cross entropy, without void pixels."""

import torch
import torch.nn.functional as F
from monai.losses.dice import DiceLoss
from torch import Tensor, nn


class DiceAndEntropy(nn.Module):
    """Sum of Dice loss and cross entropy.

    One channel of logits is binary; several are a softmax.

    Without void pixels and with every class in every image it equals MONAI's ``DiceCELoss``, several classes without their
    background. It differs where that is of no use:

    * Pixels whose target is -1 count in neither part.
    * The Dice coefficient of a class that an image does not hold is left out: it would be 0 for a single wrong pixel and
      for a thousand alike. Cross entropy alone judges these images, so an empty mask has a loss of 0 where none is found.
    """

    def __init__(self) -> None:
        super().__init__()
        self._dice = DiceLoss(reduction="none")

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (N, K, H, W) and classes (N, 1, H, W; 0 background, -1 void)."""
        logits = logits.float()
        judged = target >= 0
        count = judged.sum().clamp(min=1)
        if logits.shape[1] == 1:
            truth = (target > 0).float()
            probability = logits.sigmoid()
            entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        else:
            # No nll_loss, which has no deterministic algorithm on CUDA.
            every = torch.arange(logits.shape[1], device=target.device).view(1, -1, 1, 1) == target.clamp(min=0)
            entropy = -(every * logits.log_softmax(1)).sum(1, keepdim=True)
            truth, probability = every[:, 1:].float(), logits.softmax(1)[:, 1:]
        truth = truth * judged
        dice = self._dice(probability * judged, truth).flatten(1)
        present = truth.flatten(2).sum(2) > 0
        loss: Tensor = (entropy * judged).sum() / count + (dice * present).sum() / present.sum().clamp(min=1)
        return loss
