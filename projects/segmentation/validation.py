"""Loss and overlap on the held-out samples."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from projects.segmentation.metrics import overlap_metrics


class Validation:
    """Computes ``val/loss`` and overlap metrics such as ``val/iou``.

    It runs on the network's device.

    Args:
        net: maps images to logits.
        loss: maps (logits, masks) to their mean loss.
        batches: pairs (images, masks), the same ones in every iteration; all images of a batch have one size.
        classes: names of several classes; empty for a binary mask.
        logits: maps images of any size to logits. If ``None``, the network itself does.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        batches: Iterable[tuple[Tensor, Tensor]],
        classes: Sequence[str] = (),
        logits: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._net = net
        self._loss = loss
        self._batches = batches
        self._classes = classes
        self._logits = logits or net

    @torch.inference_mode()
    def __call__(self) -> dict[str, float]:
        """Run over all samples; the network is left in evaluation mode."""
        device = next(self._net.parameters()).device
        metrics = {name: metric.to(device) for name, metric in overlap_metrics(self._classes).items()}
        self._net.eval()
        total, count = torch.zeros((), device=device), 0
        for batch in self._batches:
            images, masks = (part.to(device) for part in batch)
            logits = self._logits(images)
            total += len(images) * self._loss(logits, masks)
            count += len(images)
            for metric in metrics.values():
                metric.update(logits, masks)
        scores = {f"val/{name}": float(metric.compute()) for name, metric in metrics.items()}
        return {"val/loss": float(total) / count, **scores}
