"""A ready-made training step: forward, backward, clipping, accumulation, mixed precision, schedule."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mltrain.errors import UsageError
from mltrain.state import Stateful

Metrics = Mapping[str, float | Tensor]


class Step(Protocol):
    """One optimizer step: a callable of a batch that returns metrics; ``loss`` among them is watched for NaN."""

    def __call__(self, batch: Any) -> Metrics:
        """Train on one batch."""
        ...


@runtime_checkable
class HasParts(Protocol):
    """A step that names the stateful parts it is made of."""

    def parts(self) -> Mapping[str, Stateful]:
        """Return the parts by name; the one called ``model`` is what others can load."""
        ...


@runtime_checkable
class HasDevice(Protocol):
    """A step that is told where to compute and how, once, before training."""

    def prepare(self, device: torch.device, amp: str) -> None:
        """Move what it holds to the device."""
        ...


@runtime_checkable
class AllowsLateCopy(Protocol):
    """A step that says whether its checkpoints may be copied under the next forward and backward.

    They may where nothing but ``optimizer.step()`` changes what its optimizers hold: neither the model's forward, nor the step
    itself before that, nor the body of the loop around the trainer.
    """

    late_copy: bool


@runtime_checkable
class HasEpochMetrics(Protocol):
    """A step that accumulates metrics over an epoch."""

    def epoch_metrics(self) -> Mapping[str, float]:
        """Return the metrics of the epoch and start anew. When it raises, nothing has started anew."""
        ...


class Supervised:
    """Trains ``model`` on batches ``(input, target)``.

    Args:
        model: maps an input to an output.
        loss: maps (output, target) to a scalar tensor.
        optimizer: over the model's parameters.
        scheduler: stepped once after each optimizer step.
        clip: largest L2 norm of the gradient; none: not clipped.
        accumulate: into how many micro-batches a batch is cut, to save memory. The gradient is that of the mean
            loss over the batch; accumulation ends within the step, so every boundary is an optimizer step.
        metrics: name to torchmetrics-like object (``update(output, target)``, ``compute()``, ``reset()``),
            accumulated over the epoch on the training batches.
        late_copy: see :class:`AllowsLateCopy`.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], Tensor],
        optimizer: torch.optim.Optimizer,
        *,
        scheduler: Any = None,
        clip: float | None = None,
        accumulate: int = 1,
        metrics: Mapping[str, Any] | None = None,
        late_copy: bool = False,
    ) -> None:
        if accumulate < 1:
            raise UsageError(f"accumulate={accumulate}: a batch is cut into at least one piece.")
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.clip = clip
        self.accumulate = accumulate
        self.late_copy = late_copy
        self.metrics = dict(metrics or {})
        self.device = torch.device("cpu")
        self._autocast: torch.dtype | None = None
        self.scaler = torch.amp.GradScaler(enabled=False)
        for metric in self.metrics.values():
            metric.persistent(True)  # torchmetrics leaves half-finished epochs out of state_dict() otherwise

    def prepare(self, device: torch.device, amp: str) -> None:
        """Move model, loss and metrics to the device; the gradient scaler is for fp16 on CUDA only."""
        self.device = device
        self._autocast = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
        if amp == "fp16" and device.type != "cuda":
            raise UsageError(f"amp=fp16 needs a CUDA device, and this is {device.type}; use amp=bf16 or amp=off.")
        self.model.to(device)
        if isinstance(self.loss, nn.Module):
            self.loss.to(device)
        for metric in self.metrics.values():
            metric.to(device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")

    def parts(self) -> dict[str, Stateful]:
        """Return model, optimizer, and what else there is of scheduler, gradient scaler and metrics."""
        parts: dict[str, Stateful] = {"model": self.model, "optimizer": self.optimizer}
        if self.scheduler is not None:
            parts["scheduler"] = self.scheduler
        if self.scaler.is_enabled():
            parts["scaler"] = self.scaler
        if self.metrics:
            parts["metrics"] = _Metrics(self.metrics)
        return parts

    def __call__(self, batch: Any) -> Metrics:
        """Do one optimizer step and return ``loss``, and the gradient's norm before clipping where it is clipped.

        A loss that is NaN or infinite is returned, and nothing is updated.
        """
        self.model.train()
        inputs, targets = moved(batch, self.device)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        pieces = list(zip(_cut(inputs, self.accumulate), _cut(targets, self.accumulate), strict=True))
        size = sum(_length(piece) for piece, _ in pieces)
        for piece, target in pieces:
            share = _length(piece) / size if len(pieces) > 1 else 1.0
            with torch.autocast(self.device.type, dtype=self._autocast, enabled=self._autocast is not None):
                output = self.model(piece)
                loss = self.loss(output, target) * share
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
            for metric in self.metrics.values():
                metric.update(output.detach(), target)
        result: dict[str, float | Tensor] = {"loss": total}
        if not torch.isfinite(total):
            self.optimizer.zero_grad(set_to_none=True)
            return result  # no update: weights that a resume or the next batch goes on from stay as they were
        if self.clip is not None:
            self.scaler.unscale_(self.optimizer)
            result["grad_norm"] = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip).detach()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scheduler is not None:
            self.scheduler.step()
        return result

    def epoch_metrics(self) -> dict[str, float]:
        """Return each metric over the epoch's training batches and start anew; when one raises, none has started anew."""
        values = floats({name: metric.compute() for name, metric in self.metrics.items()}, "Supervised(metrics=)")
        for metric in self.metrics.values():
            metric.reset()
        return values

    @property
    def learning_rate(self) -> float:
        """Of the first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])


class _Metrics:
    """The accumulators of several metrics as one stateful part."""

    def __init__(self, metrics: Mapping[str, Any]) -> None:
        self._metrics = metrics

    def state_dict(self) -> dict[str, Any]:
        return {
            name: {"state": dict(metric.state_dict()), "updates": metric._update_count}
            for name, metric in self._metrics.items()
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        for name, metric in self._metrics.items():
            metric.reset()
            metric.load_state_dict(state_dict[name]["state"])
            metric._update_count = state_dict[name]["updates"]  # without it compute() warns of a metric never updated


def floats(values: Any, source: str) -> dict[str, float]:
    """Return metrics as floats by name.

    Args:
        values: name to number: Python's, NumPy's, or a tensor with one element.
        source: what returned them, for the message.

    Raises:
        UsageError: it is not a mapping, a name is not text, or a value is not a real number.
    """
    if not isinstance(values, Mapping):
        raise UsageError(
            f"{source} returned {_described(values)}. Expected a mapping from names to numbers, such as {{'val/loss': 0.5}}."
        )
    numbers = {}
    for name, value in values.items():
        if not isinstance(name, str) or not name:
            raise UsageError(f"{source} returned a metric called {name!r:.80}. Expected text such as 'val/loss'.")
        try:
            number = value if isinstance(value, float) else value.item() if hasattr(value, "item") else value
            if isinstance(number, (str, bytes)):
                raise TypeError("text")
            # No file and no database takes half of a surrogate pair, by which Python stands for bytes that are not text.
            numbers[name if name.isascii() else name.encode(errors="backslashreplace").decode()] = float(number)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise UsageError(
                f"{source} returned {_described(value)} as the metric {name!r:.200}. Expected one real number: a float, an "
                "int, or an array or tensor with one element."
            ) from None
    return numbers


def _described(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return f"a {type(value).__name__}" + (f" of shape {tuple(shape)}" if shape is not None else f", {value!r:.80},")


def moved(batch: Any, device: torch.device) -> Any:
    """Return a batch with all its tensors on ``device``; from page-locked memory without waiting."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=batch.is_pinned() if device.type == "cuda" else False)
    if isinstance(batch, Mapping):
        return {key: moved(item, device) for key, item in batch.items()}
    if isinstance(batch, (list, tuple)):
        items = [moved(item, device) for item in batch]
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    return batch


def _length(tree: Any) -> int:
    while not isinstance(tree, Tensor):
        tree = next(iter(tree.values() if isinstance(tree, Mapping) else tree))
    return tree.shape[0]


def _cut(tree: Any, pieces: int) -> list[Any]:
    """Cut every tensor of a nesting along its first dimension into at most ``pieces`` pieces."""
    if pieces == 1:
        return [tree]
    if isinstance(tree, Tensor):
        return list(tree.chunk(pieces))
    if isinstance(tree, Mapping):
        cut = [_cut(item, pieces) for item in tree.values()]
        return [dict(zip(tree, items, strict=True)) for items in zip(*cut, strict=True)]
    cut = [_cut(item, pieces) for item in tree]
    return [type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items) for items in zip(*cut, strict=True)]
